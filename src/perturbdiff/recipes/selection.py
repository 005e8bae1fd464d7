"""Which cells: those that a rule matches by their labels, and those that are held out of training for a part."""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import model_validator

from perturbdiff.core.choices import COVARIATES
from perturbdiff.recipes.tables import Table, validated

_CONTROL = ("Cc", "Zl", "Zp")
"""Categories of characters that break a line or are not seen."""


class Match(Table):
    """A cell matches where each named covariate's label is in its list; an absent covariate means any."""

    perturbation: tuple[str, ...] | None = None
    cell_type: tuple[str, ...] | None = None
    assay_batch: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        named = self.named()
        if not named:
            raise ValueError(f"it names no cells; give a list for one of {', '.join(COVARIATES)}")
        for key, labels in named.items():
            if not labels:
                raise ValueError(f"{key} = [] matches no cell; list labels, or leave the key out to mean any")
            for label in labels:
                if control_character(label) is not None:
                    raise ValueError(
                        f"{key} {label!r} holds the control character {control_character(label)!r}, and a label is one "
                        "line of text; mend the label"
                    )
        return self

    def named(self) -> dict[str, tuple[str, ...]]:
        """The covariates that are named, with their labels."""
        lists = {key: getattr(self, key) for key in COVARIATES}
        return {key: labels for key, labels in lists.items() if labels is not None}


class HoldOut(Match):
    """Matching cells are held out of training for a part, but for those that `keep_*` leaves there (few-shot).

    Attributes:
        part: what they are held out for.
        keep_fraction, keep_cells, keep_populations: so many of each matching (perturbation, cell type, assay batch)
            stay in training, drawn by seed; a population has training.cells_per_population cells.
        keep_total: so many of all matching cells together, whichever groups they are of.
        hold_out_controls: whether control cells that match are held out too.
        other_doses: what training cells of the same drug in the same context at another dose are: a "leak", or meant
            to "train".
    """

    part: Literal["test", "validation"]
    keep_fraction: float | None = None
    keep_cells: int | None = None
    keep_populations: int | None = None
    keep_total: int | None = None
    hold_out_controls: bool = False
    other_doses: Literal["leak", "train"] = "leak"

    @model_validator(mode="after")
    def _check_keep(self) -> Self:
        keys = ("keep_fraction", "keep_cells", "keep_populations", "keep_total")
        both = [f"{key} = {getattr(self, key)}" for key in keys if getattr(self, key) is not None]
        if len(both) > 1:
            raise ValueError(f"{' and '.join(both)} both say how many cells stay in training; give one of them")
        if self.keep_fraction is not None and not 0 < self.keep_fraction < 1:
            raise ValueError(
                f"keep_fraction = {self.keep_fraction} is not between 0 and 1; leave it out to keep no cell"
            )
        for key in keys[1:]:
            kept = getattr(self, key)
            if kept is not None and kept < 1:
                raise ValueError(f"{key} = {kept} is below 1; leave it out to keep no cell")
        return self

    @property
    def keeps(self) -> bool:
        """Whether some of the matching cells stay in training."""
        kept = (self.keep_fraction, self.keep_cells, self.keep_populations, self.keep_total)
        return any(number is not None for number in kept)


def hold_outs_from(rules: Sequence[Mapping[str, Any] | HoldOut]) -> tuple[HoldOut, ...]:
    """Hold-out rules given as tables: `[{"part": "test", "cell_type": ["B"]}]`; errors as in `validated`."""
    return tuple(
        rule if isinstance(rule, HoldOut) else validated(HoldOut, rule, f"hold_out[{i}]")
        for i, rule in enumerate(rules)
    )


def control_character(label: str) -> str | None:
    """The first control character of a label (a newline, a tab), which no label may hold; None where there is none."""
    return next((sign for sign in label if unicodedata.category(sign) in _CONTROL), None)
