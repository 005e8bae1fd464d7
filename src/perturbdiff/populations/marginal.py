"""Cells without their perturbation, as marginal pretraining sees them: ``D_c ~ F(. | c)`` for each context c.

Cells stay in the groups of their source, so that a population is of one perturbation, whose name is not told. Assay
batches of different sources are different ones, whatever their names: a label that two sources have is written with the
source before it, and cells without an assay batch have the source's name.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from perturbdiff.cells.order import Runs, Segments
from perturbdiff.cells.source import Source

HELD_BACK = 8
"""One in so many cells of a group judges a pretraining, at most, and does not train."""


@dataclass(frozen=True, eq=False)
class Marginal:
    """A source whose cells have no perturbation.

    Attributes:
        source: of the cells.
        batches: what each label of assay batch is called.
    """

    source: Source
    batches: dict[str, str]
    control: None = None

    @cached_property
    def runs(self) -> Runs:
        """The same runs, without perturbation."""
        own = self.source.runs
        nothing = pd.Categorical.from_codes(np.zeros(len(own), dtype=np.int8), pd.Index([""]))
        batch = own.labels["assay_batch"].cat.rename_categories(self.batches)
        return Runs(own.labels.assign(perturbation=nothing, assay_batch=batch), own.offsets, None)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - all else is the source's
        """All else is as in the source."""
        return getattr(self.source, name)


def batch_names(names: Sequence[str], batches: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """What the assay batches of each source are called among those of all."""
    shared = Counter(label for own in batches for label in {*own})
    found = []
    for name, own in zip(names, batches, strict=True):
        called = {label: label if shared[label] == 1 else f"{name}: {label}" for label in own}
        found.append({label: new if label else name for label, new in called.items()})
    taken = Counter(new for called in found for new in called.values())
    return [
        {label: new if taken[new] == 1 else f"{name}: {label}" for label, new in called.items()}
        for name, called in zip(names, found, strict=True)
    ]


def held_back(segments: Segments, cells_per_population: int) -> tuple[Segments, Segments]:
    """Stretches to train on, and the last cells of some, which are random ones, to judge by.

    Each group that is large enough gives a whole population: the cells of a small one are drawn where the others are
    not, so that they differ more than cells do, and a distance to them is too small. Where no group is large, those of
    2 `HELD_BACK` cells and more give their share.
    """
    taken = np.where(segments.sizes >= HELD_BACK * cells_per_population, cells_per_population, 0)
    if not taken.any():
        taken = segments.sizes // HELD_BACK
        taken[taken < 2] = 0
    judging = taken > 0
    return (
        Segments(segments.run, segments.start, segments.stop - taken),
        Segments(segments.run[judging], (segments.stop - taken)[judging], segments.stop[judging]),
    )
