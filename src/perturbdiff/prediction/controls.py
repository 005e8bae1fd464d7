"""The control cells that a prediction starts from: their panel, their totals, and what is expected of them."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from perturbdiff.cells.memory import Cells
from perturbdiff.checkpoint import Checkpoint
from perturbdiff.populations.departures import Hidden
from perturbdiff.recipes.settings import Guidance, Settings

if TYPE_CHECKING:
    from perturbdiff.populations.expected import Expectation, Surroundings

DRAWS_HELD = 256
"""Draws of what is hidden that need not be made again, at most."""

type Rows = npt.NDArray[np.int64]


class Controls(NamedTuple):
    """The control cells of a prediction.

    Attributes:
        rows: those that are used, ascending.
        expression: log1p counts per 10^4 [rows, panel].
        totals: their total counts [rows]; None where the model has no use for them.
    """

    rows: Rows
    expression: "sp.csr_matrix[np.float32]"
    totals: npt.NDArray[np.float64] | None

    def of(self, rows: Rows) -> tuple["sp.csr_matrix[np.float32]", npt.NDArray[np.float64] | None]:
        """The expression and the totals of some of them."""
        place = np.searchsorted(self.rows, rows)
        return self.expression[place], None if self.totals is None else self.totals[place]


def panel_of(cells: Cells, genes: list[str], missing: list[str], rows: Rows) -> "sp.csr_matrix[np.float32]":
    """log1p counts per 10^4 of the panel, missing genes as columns of zeros."""
    if not missing:
        return cells.log_expression(genes, rows)
    absent = set(missing)
    present = [i for i, gene in enumerate(genes) if gene not in absent]
    found = cells.log_expression([genes[i] for i in present], rows).tocoo()
    columns = np.asarray(present)[found.col]
    return sp.csr_matrix((found.data, (found.row, columns)), shape=(len(rows), len(genes)), dtype=np.float32)


def check_whole_numbers(checkpoint: Checkpoint, settings: Settings) -> None:
    """Refuse whole numbers of counts of a model, or of a sampling, that makes none.

    Raises:
        ValueError: the model changes log1p values, or the guidance those of x_0 itself.
    """
    target, sampling = checkpoint.settings.model.target, settings.sampling
    if target != "counts":
        raise ValueError(
            f"this model changes log1p values (target = {target!r}), so its cells are no "
            'whole numbers of counts; train one with target = "counts", or predict log1p values.'
        )
    given = sampling.guidance
    if sampling.guidance_of == "x_0" and any(given.strengths if isinstance(given, Guidance) else [given]):
        raise ValueError(
            f"guidance of x_0 itself (guidance_of = {sampling.guidance_of!r}) gives no whole numbers of "
            'counts; set guidance_of = "change", or leave the guidance out.'
        )


def totals_of(cells: Cells, rows: Rows, checkpoint: Checkpoint) -> npt.NDArray[np.float64] | None:
    """The total counts of control cells [rows], where the model changes counts.

    Raises:
        ValueError: they are not known.
    """
    if checkpoint.settings.model.target != "counts":
        return None
    totals: npt.NDArray[np.float64] = cells.known_totals[rows]
    unknown = int(np.isnan(totals).sum())
    if unknown:
        raise ValueError(
            f"{unknown} of {len(rows)} control cells hold log1p values that do not tell their counts, which this model "
            "changes; give the file with counts, or name the layer that holds them."
        )
    return totals


class Ahead:
    """What is expected of the populations of conditions, by their control cells, before the network speaks.

    Of a condition that is drawn once it is what is expected; each of several draws departs from it as donors do, by
    what nobody observed of them.

    Args:
        expectation: of the model.
        labels: the number of each condition's perturbation.
        contexts: the names of its cell type and assay batch.
        control: the control cells.
        rows: those of each condition, ascending.
        draws: of each condition.
        n_cells: of each draw; None for as many as there are control cells.
        seed: of what is hidden.
    """

    def __init__(
        self,
        expectation: "Expectation",
        labels: npt.NDArray[np.int64],
        contexts: Sequence[tuple[str, str]],
        control: Controls,
        rows: Sequence[Rows],
        *,
        draws: int,
        n_cells: int | None,
        seed: int,
    ) -> None:
        self._expectation, self._labels = expectation, labels
        keys = [(context, own.tobytes()) for context, own in zip(contexts, rows, strict=True)]
        around: dict[tuple[tuple[str, str], bytes], Surroundings] = {}
        for key, own in zip(keys, rows, strict=True):
            if key not in around:
                expression, totals = control.of(own)
                around[key] = expectation.surroundings(key[0], expression.toarray(), totals)
        self._around = [around[key] for key in keys]
        self._batches = [batch for _, batch in contexts]
        self._sizes = [n_cells or len(own) for own in rows]
        self._several, self._seed = draws > 1, seed
        self._hidden = lru_cache(DRAWS_HELD)(self._hidden_of)

    def of(self, populations: Sequence[tuple[int, int]]) -> npt.NDArray[np.float32]:
        """The change that is expected of populations [populations, panel], given as (condition, repeat)."""
        found = {}
        for condition, repeat in dict.fromkeys(populations):
            label, there = int(self._labels[condition]), self._around[condition]
            if self._several:
                hidden = self._hidden(repeat, self._batches[condition])
                found[condition, repeat] = self._expectation.drawn(label, there, hidden, self._sizes[condition])
            else:
                found[condition, repeat] = self._expectation.of(label, there)
        return np.stack([found[one] for one in populations])

    def _hidden_of(self, repeat: int, batch: str) -> Hidden:
        return Hidden.of(self._expectation.changes, self._seed, repeat, batch)
