r"""Groups of cells, their cut into populations, and the control cells that stand beside each group.

A group is all cells of one (perturbation, cell type, assay batch). Its controls are those of its cell type and assay
batch where there are at least two, else those of its cell type in any assay batch; the matching loops over groups,
never over cells.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from perturbdiff.data.recipe import COVARIATES

type Integers = np.ndarray[Any, np.dtype[np.int64]]

SMALLEST_GROUP = 2
"""Cells that a group, and the controls of a group, must have."""


@dataclass(frozen=True)
class Groups:
    """Rows sorted by (perturbation, cell type, assay batch).

    Attributes:
        order: the rows, those of a group contiguous.
        offsets: group g is ``order[offsets[g]:offsets[g + 1]]``.
        codes: [groups, 3], the category codes of the labels of each group, in lexicographic order.
    """

    order: Integers
    offsets: Integers
    codes: Integers

    @classmethod
    def of(cls, labels: pd.DataFrame, rows: Integers) -> "Groups":
        """Group `rows` of categorical `labels` by one lexsort."""
        codes = np.stack([labels[name].cat.codes.to_numpy()[rows] for name in COVARIATES], axis=1).astype(np.int64)
        by_group = np.lexsort(codes.T[::-1])
        codes = codes[by_group]
        first = np.ones(len(rows), dtype=np.bool_)
        first[1:] = (codes[1:] != codes[:-1]).any(axis=1)
        starts = np.flatnonzero(first)
        return cls(order=rows[by_group], offsets=np.append(starts, len(rows)), codes=codes[starts])

    @property
    def sizes(self) -> Integers:
        """Cells per group."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        """Count the groups."""
        return len(self.codes)

    def at_least(self, n_cells: int) -> "Groups":
        """Keep the groups of `n_cells` and more."""
        sizes = self.sizes
        kept = sizes >= n_cells
        offsets = np.append(0, np.cumsum(sizes[kept]))
        return Groups(self.order[np.repeat(kept, sizes)], offsets, self.codes[kept])


def cut(sizes: Integers, m: int) -> tuple[Integers, Integers]:
    """Cut groups of the given sizes into populations of up to m cells: the group and the size of each population."""
    n_populations = -(-sizes // m)
    group_of = np.repeat(np.arange(len(sizes)), n_populations)
    population_sizes = np.full(len(group_of), m)
    last = np.cumsum(n_populations) - 1
    population_sizes[last] = sizes - (n_populations - 1) * m
    if m > SMALLEST_GROUP:
        alone = last[population_sizes[last] == 1]
        population_sizes[alone] = 2
        population_sizes[alone - 1] -= 1
    return group_of, population_sizes


def match_controls(labels: pd.DataFrame, groups: Groups, controls: Groups) -> tuple[Integers, list[str]]:
    """The range [start, stop) of `controls.order` that serves each group, [groups, 2], and a note on each fallback."""
    exact: dict[tuple[int, int], tuple[int, int]] = {}
    of_type: dict[int, tuple[int, int]] = {}
    bounds = zip(controls.offsets[:-1].tolist(), controls.offsets[1:].tolist(), strict=True)
    for (_, cell_type, assay_batch), (start, stop) in zip(controls.codes.tolist(), bounds, strict=True):
        of_type[cell_type] = (of_type.get(cell_type, (start, stop))[0], stop)
        if stop - start >= SMALLEST_GROUP:
            exact[cell_type, assay_batch] = (start, stop)
    pools = np.zeros((len(groups), 2), np.int64)
    borrowed: list[int] = []
    for group, (_, cell_type, assay_batch) in enumerate(groups.codes.tolist()):
        pool = exact.get((cell_type, assay_batch))
        if pool is None:
            pool = of_type.get(cell_type, (0, 0))
            borrowed.append(group)
        if pool[1] - pool[0] < SMALLEST_GROUP:
            raise ValueError(
                f"group {name_of(labels, groups, group)} has {pool[1] - pool[0]} control cells of its cell type, fewer "
                f"than {SMALLEST_GROUP}; add control cells or exclude the cell type."
            )
        pools[group] = pool
    return pools, _borrowed_note(labels, groups, borrowed)


def name_of(labels: pd.DataFrame, groups: Groups, group: int) -> str:
    """The labels of a group, for a sentence: ``('IFN-beta', 'B cells', 'donor 1')``."""
    names = [labels[name].cat.categories[code] for name, code in zip(COVARIATES, groups.codes[group], strict=True)]
    return "(" + ", ".join(repr(str(name)) for name in names if name != "") + ")"


def _borrowed_note(labels: pd.DataFrame, groups: Groups, borrowed: list[int]) -> list[str]:
    if not borrowed:
        return []
    return [
        f"{len(borrowed)} of {len(groups)} groups, such as {name_of(labels, groups, borrowed[0])}, have fewer than "
        f"{SMALLEST_GROUP} control cells in their assay batch: those of their cell type in any assay batch stand in."
    ]
