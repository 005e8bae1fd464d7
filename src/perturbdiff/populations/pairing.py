r"""Groups of one condition, their cut into populations, and the control cells that stand beside each group.

A group is all cells of one (perturbation, cell type, assay batch) that a part of a split has. Its controls are those of
its cell type and assay batch where there are at least two, else those of its cell type in any assay batch; with
``pairing="cell_type"`` always the latter. Nothing here loops over groups or cells.

Which of a population's control cells stands beside which perturbed cell is left to chance. Two pairings choose, by the
squared Euclidean distance of expression: "nearest" gives each perturbed cell the nearest of several times as many
control cells, one control cell perhaps to several; "optimal_transport" permutes the drawn control cells so that the sum
of the distances is smallest.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from perturbdiff.cells.order import Flags, Integers, Runs, Segments
from perturbdiff.cells.source import Source
from perturbdiff.core.choices import COVARIATES
from perturbdiff.labels.vocabulary import Vocabulary

type Expression = np.ndarray[Any, np.dtype[np.float32]]

SMALLEST_GROUP = 2
"""Cells that a group, and the controls of a group, must have."""

CANDIDATES = 4
"""So many times as many control cells as perturbed ones compete to be the nearest."""


def _pot() -> Any:  # noqa: ANN401 - without types of its own
    """POT, imported where distances are asked for: it takes seconds, and most trainings pair by labels alone."""
    return import_module("ot")


@dataclass(frozen=True, eq=False)
class Groups:
    """The cells of some stretches, numbered 0, 1, ... in their order; the stretches of one run are a group.

    Attributes:
        segments: the stretches.
        run: the run of each group.
        offsets: group g holds the numbers ``offsets[g]`` to ``offsets[g + 1]``.
    """

    segments: Segments
    run: Integers
    offsets: Integers

    @classmethod
    def of(cls, segments: Segments) -> "Groups":
        """Group stretches by their run."""
        run, first = np.unique(segments.run, return_index=True)
        before = np.append(0, np.cumsum(segments.sizes))
        return cls(segments, run, before[np.append(first, len(segments))].astype(np.int64))

    @cached_property
    def sizes(self) -> Integers:
        """Cells per group."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        """Count the groups."""
        return len(self.run)

    @property
    def n_cells(self) -> int:
        """The cells of all groups."""
        return int(self.offsets[-1])

    def at_least(self, n_cells: int) -> "Groups":
        """Keep the groups of `n_cells` and more."""
        kept = self.run[self.sizes >= n_cells]
        return Groups.of(self.segments.take(np.isin(self.segments.run, kept)))

    def positions(self, numbers: Integers) -> Integers:
        """The positions in the source of cells by their numbers here."""
        stretch = np.searchsorted(self._before, numbers, side="right") - 1
        return self.segments.start[stretch] + numbers - self._before[stretch]

    @cached_property
    def _before(self) -> Integers:
        return np.append(0, np.cumsum(self.segments.sizes)).astype(np.int64)


def cut(sizes: Integers, m: int) -> tuple[Integers, Integers]:
    """Cut groups of the given sizes into populations of up to m cells: the group and the size of each population."""
    n_populations = -(-sizes // m)
    group_of = np.repeat(np.arange(len(sizes)), n_populations)
    population_sizes = np.full(len(group_of), m)
    last = np.cumsum(n_populations) - 1
    population_sizes[last] = sizes - (n_populations - 1) * m
    if m > SMALLEST_GROUP:
        alone = last[(population_sizes[last] == 1) & (n_populations > 1)]
        population_sizes[alone] = 2
        population_sizes[alone - 1] -= 1
    return group_of, population_sizes


def match_controls(runs: Runs, groups: Groups, controls: Groups, *, any_batch: bool) -> tuple[Integers, list[str]]:
    """The numbers [start, stop) of `controls` that serve each group, [groups, 2], and a note on those that fall back.

    Raises:
        ValueError: a group has fewer than two control cells of its cell type.
    """
    # control runs differ in cell type and assay batch only, so that those of a type are neighbours, in order
    wanted, there = runs.codes[groups.run], runs.codes[controls.run]
    first = controls.offsets[np.searchsorted(there[:, 1], wanted[:, 1], side="left")]
    last = controls.offsets[np.searchsorted(there[:, 1], wanted[:, 1], side="right")]
    pools = np.stack([first, last], axis=1)
    short = np.flatnonzero(last - first < SMALLEST_GROUP)
    if len(short):
        group = int(short[0])
        raise ValueError(
            f"group {runs.name(int(groups.run[group]))} has {last[group] - first[group]} control cells of its cell "
            f"type, fewer than {SMALLEST_GROUP}; add control cells or exclude the cell type."
        )
    if any_batch:
        return pools, []
    n_batches = len(runs.labels["assay_batch"].cat.categories)
    key, keys = (codes[:, 1] * n_batches + codes[:, 2] for codes in (wanted, there))
    found = np.minimum(np.searchsorted(keys, key), max(0, len(keys) - 1))
    own = (keys[found] == key) & (controls.sizes[found] >= SMALLEST_GROUP)
    pools[own, 0], pools[own, 1] = controls.offsets[found[own]], controls.offsets[found[own] + 1]
    return pools, _borrowed_note(runs, groups, np.flatnonzero(~own))


def nearest_controls(perturbed: Expression, candidates: Expression) -> Integers:
    """The candidate nearest to each perturbed cell [cells]; the first of several equally near."""
    found: Integers = np.argmin(_pot().dist(perturbed, candidates), axis=1).astype(np.int64)
    return found


def transported_controls(perturbed: Expression, controls: Expression) -> Integers:
    """The permutation of as many control cells that has the smallest sum of squared distances [cells]."""
    n_cells = len(perturbed)
    share: npt.NDArray[np.float64] = np.full(n_cells, 1 / n_cells)
    plan = _pot().emd(share, share, _pot().dist(perturbed, controls).astype(np.float64))
    found: Integers = np.argmax(plan, axis=1).astype(np.int64)
    return found


def divided(segments: Segments, is_control: Flags) -> tuple[Segments, Segments]:
    """The perturbed and the control stretches among some; `is_control` is of the runs."""
    control = is_control[segments.run]
    return segments.take(~control), segments.take(control)


def drawn_beside(source: Source, segments: Segments, controls: Segments | None) -> tuple[Segments, Segments]:
    """What to draw and its controls; without perturbations everything is drawn and there is no control."""
    runs = source.runs
    if source.control is None:
        return segments, segments.take(np.zeros(len(segments), dtype=bool))
    perturbed, own = divided(segments, runs.is_control)
    if controls is None:
        return perturbed, own
    n_wrong = divided(controls, runs.is_control)[0].n_cells
    if n_wrong:
        raise ValueError(
            f"{n_wrong} of {controls.n_cells} control cells are not labelled {source.control!r}; hand in control "
            "cells only."
        )
    return perturbed, controls


def encoded(runs: Runs, groups: Groups, vocabularies: Mapping[str, Vocabulary]) -> Integers:
    """Vocabulary indices of each group's labels [groups, 3]."""
    columns = []
    for name, codes in zip(COVARIATES, runs.codes[groups.run].T, strict=True):
        used, place = np.unique(codes, return_inverse=True)
        used_labels = pd.Series(runs.labels[name].cat.categories[used].astype(str))
        columns.append(vocabularies[name].encode(used_labels)[place])
    return np.stack(columns, axis=1)


def _borrowed_note(runs: Runs, groups: Groups, borrowed: Integers) -> list[str]:
    if not len(borrowed):
        return []
    return [
        f"{len(borrowed)} of {len(groups)} groups, such as {runs.name(int(groups.run[borrowed[0]]))}, have fewer than "
        f"{SMALLEST_GROUP} control cells in their assay batch: those of their cell type in any assay batch stand in."
    ]
