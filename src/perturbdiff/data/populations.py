r"""Cells drawn as populations: up to m cells of one (perturbation, cell type, assay batch), and as many control cells.

An epoch shows every cell once. A group of n cells is shuffled and cut into ``ceil(n / m)`` populations, all of m cells
but the last (where that would leave one cell alone, the last two populations have m - 1 and 2, for m > 2); groups under
2 cells are left out and counted, and no cell is duplicated. Beside each population stand as many control cells of the
same cell type and assay batch, from a stream of permutations of these controls: without replacement while they last,
and never one cell twice in a population that the controls suffice for. Where an assay batch has fewer than 2 control
cells of a type, the type's control cells of all assay batches serve; where these are fewer than 2, that is an error.

Control -> control populations are added until they are a share s of the epoch, ``n_control = s / (1 - s) n_perturbed``:
min(m, n / 2) cells of a control group of n >= 4, against as many others of the same group.

The plan of an epoch is a function of (seed, epoch) and costs one permutation and one sort, however many groups there
are. Data without perturbations (no control label) are drawn as populations whose control stream is zero.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from perturbdiff.core.population import COVARIATES, Condition, PopulationBatch
from perturbdiff.data.cells import Cells
from perturbdiff.data.pairing import SMALLEST_GROUP, Groups, cut, match_controls
from perturbdiff.data.vocabulary import Vocabulary

type Integers = np.ndarray[Any, np.dtype[np.int64]]
type Flags = np.ndarray[Any, np.dtype[np.bool_]]
type _Population = tuple[Integers, Integers, tuple[int, int, int]]
type _Take = Callable[[int, int, int], Integers]


class Draw(NamedTuple):
    """One population of an epoch: which cells, which control cells, under which condition.

    Attributes:
        rows: positions in the cells handed to `Populations`, at most cells_per_population of them.
        control_rows: as many control cells; empty where the data have no perturbations.
        condition: vocabulary indices in the order of `COVARIATES`, 0 the trained null.
        key: the running number of the population, unique over all epochs.
    """

    rows: Integers
    control_rows: Integers
    condition: tuple[int, int, int]
    key: int


class _Stream:
    """Control cells without end: permutation after permutation of one pool of rows."""

    def __init__(self, pool: Integers, rng: np.random.Generator) -> None:
        self._pool, self._rng = pool, rng
        self._next = pool[:0]

    def take(self, n_cells: int) -> Integers:
        """Draw `n_cells` rows, all different where the pool is large enough."""
        if len(self._next) < n_cells:
            whole = [self._rng.permutation(self._pool) for _ in range(-(-n_cells // len(self._pool)))]
            self._next = np.concatenate(whole)
        taken, self._next = self._next[:n_cells], self._next[n_cells:]
        return taken


class Populations:
    """The populations of one part of a split, epoch by epoch.

    Attributes:
        left_out: groups of a single cell, which are never drawn.
        notes: sentences for the user: controls from other assay batches, groups left out.
    """

    def __init__(
        self,
        cells: Cells,
        rows: Integers,
        genes: Sequence[str],
        scale: float,
        vocabularies: Mapping[str, Vocabulary],
        *,
        cells_per_population: int,
        control_share: float,
        seed: int,
        control_rows: Integers | None = None,
    ) -> None:
        """Sort the rows into groups, match their controls and build the panel's matrix.

        Args:
            cells: all cells of the data.
            rows: the part to draw; its perturbed cells are drawn, its control cells too where control_share > 0.
            genes: the gene panel, the columns of what `batch` returns.
            scale: what log1p counts per 10^4 are divided by, positive.
            vocabularies: one for each of `COVARIATES`.
            cells_per_population: m, at least 2.
            control_share: share of control -> control populations in an epoch, in [0, 1); of no use without
                perturbations.
            seed: of every plan.
            control_rows: the control cells to draw beside the perturbed ones, those of `rows` when absent. A part that
                holds no controls (validation) is given the training controls here.

        Raises:
            ValueError: for an argument out of range, control rows that are not control cells, no group of two cells, a
                group without control cells of its cell type, or a label outside its vocabulary.
        """
        _check(scale, cells_per_population, control_share)
        self.cells_per_population, self.scale, self.seed = cells_per_population, float(scale), seed
        self._marginal = cells.control is None
        perturbed, control = _divide(cells, np.asarray(rows, np.int64), control_rows)
        groups = Groups.of(cells.labels, perturbed)
        self._groups = groups.at_least(SMALLEST_GROUP)
        self.left_out = len(groups) - len(self._groups)
        if not len(self._groups):
            raise ValueError(
                f"{len(perturbed)} perturbed cells in {len(groups)} groups give no population, which takes at least "
                f"{SMALLEST_GROUP} cells of one (perturbation, cell type, assay batch); hand in a part that has some."
            )
        self._controls = Groups.of(cells.labels, control)
        self._pools, pool_notes = self._match(cells.labels)
        self._condition = _encode(cells.labels, self._groups, vocabularies)
        self._group_of, self._sizes = cut(self._groups.sizes, cells_per_population)
        self._large_controls = np.flatnonzero(self._controls.sizes >= 2 * SMALLEST_GROUP)
        self._n_control = self._count_control_populations(control_share)
        self._control_condition = _encode(cells.labels, self._controls, vocabularies) if self._n_control else []
        self.notes = (*_left_out_note(self.left_out), *pool_notes)
        needed = np.zeros(cells.n_cells, dtype=np.bool_)
        needed[self._groups.order] = needed[control] = True
        self._rows = np.flatnonzero(needed)
        self._matrix = cells.log_expression(genes, self._rows)

    def _match(self, labels: pd.DataFrame) -> tuple[Integers, list[str]]:
        if self._marginal:
            return np.zeros((len(self._groups), 2), np.int64), []
        return match_controls(labels, self._groups, self._controls)

    def __len__(self) -> int:
        """Count the populations of an epoch."""
        return len(self._sizes) + self._n_control

    def _count_control_populations(self, control_share: float) -> int:
        if self._marginal or control_share == 0:
            return 0
        if not len(self._large_controls):
            raise ValueError(
                f"control_share={control_share} asks for control -> control populations, but no (cell type, assay "
                f"batch) has the {2 * SMALLEST_GROUP} control cells that they take; set control_share to 0."
            )
        return max(1, round(len(self._sizes) * control_share / (1 - control_share)))

    def plan(self, epoch: int) -> list[Draw]:
        """Draw the populations of an epoch, in random order; a function of (seed, epoch) only.

        Every perturbed cell of a group of two and more is in exactly one of them.
        """
        rng = np.random.default_rng([self.seed, epoch])
        take = self._control_streams(rng)
        populations = [*self._perturbed_populations(rng, take), *self._control_populations(rng, take)]
        order = rng.permutation(len(self)).tolist()
        shuffled = (populations[i] for i in order)
        first = epoch * len(self)
        return [Draw(rows, control, condition, first + i) for i, (rows, control, condition) in enumerate(shuffled)]

    def batch(self, draws: Sequence[Draw]) -> PopulationBatch:
        """Fetch the expression of `draws`, log1p counts per 10^4 divided by the scale, float32, on the CPU.

        The tensors are [draws, cells_per_population, genes]; a shorter population is padded with zeros, which the mask
        (None where all are full) marks false.
        """
        lengths = np.array([len(draw.rows) for draw in draws])
        exists = np.arange(self.cells_per_population) < lengths[:, None]
        return PopulationBatch(
            perturbed=self._expression([draw.rows for draw in draws], exists),
            control=self._expression([draw.control_rows for draw in draws], exists),
            mask=None if exists.all() else torch.from_numpy(exists),
            condition=Condition(*torch.tensor([draw.condition for draw in draws], dtype=torch.int64).T.contiguous()),
            key=torch.tensor([draw.key for draw in draws], dtype=torch.int64),
        )

    def _expression(self, populations: list[Integers], exists: Flags) -> torch.Tensor:
        rows = np.concatenate(populations)
        padded = torch.zeros((*exists.shape, self._matrix.shape[1]), dtype=torch.float32)
        if len(rows):
            chosen = self._matrix[np.searchsorted(self._rows, rows)]
            chosen.data /= np.float32(self.scale)
            padded[torch.from_numpy(exists)] = torch.from_numpy(chosen.toarray())
        return padded

    def _control_streams(self, rng: np.random.Generator) -> _Take:
        """Give the epoch's source of control rows: `take(start, stop, n)` draws n of the sorted rows start to stop."""
        streams: dict[tuple[int, int], _Stream] = {}

        def take(start: int, stop: int, n_cells: int) -> Integers:
            if (start, stop) not in streams:
                streams[start, stop] = _Stream(self._controls.order[start:stop], rng)
            return streams[start, stop].take(n_cells)

        return take

    def _perturbed_populations(self, rng: np.random.Generator, take: _Take) -> Iterator[_Population]:
        """Shuffle the cells within their groups, all groups at once, and cut."""
        group_of_cell = np.repeat(np.arange(len(self._groups)), self._groups.sizes)
        shuffled = rng.permutation(len(group_of_cell))
        shuffled = shuffled[np.argsort(group_of_cell[shuffled], kind="stable")]
        rows = self._groups.order[shuffled]
        stops = np.cumsum(self._sizes)
        for group, size, stop in zip(self._group_of, self._sizes, stops, strict=True):
            control = rows[:0] if self._marginal else take(self._pools[group, 0], self._pools[group, 1], size)
            yield rows[stop - size : stop], control, self._condition[group]

    def _control_populations(self, rng: np.random.Generator, take: _Take) -> Iterator[_Population]:
        """Cycle through the shuffled control groups; both halves of a population are cells of one draw, so disjoint."""
        groups = rng.permutation(self._large_controls)
        offsets = self._controls.offsets
        for turn in range(self._n_control):
            group = groups[turn % len(groups)]
            start, stop = offsets[group], offsets[group + 1]
            size = min(self.cells_per_population, (stop - start) // 2)
            both = take(start, stop, 2 * size)
            yield both[:size], both[size:], self._control_condition[group]


def _check(scale: float, cells_per_population: int, control_share: float) -> None:
    if not (np.isfinite(scale) and scale > 0):
        raise ValueError(f"scale={scale} must be positive and finite; use the measured scale of the training cells.")
    if cells_per_population < SMALLEST_GROUP:
        raise ValueError(f"cells_per_population={cells_per_population} must be at least {SMALLEST_GROUP}; raise it.")
    if not 0 <= control_share < 1:
        raise ValueError(f"control_share={control_share} must be in [0, 1); use 0 for no control populations.")


def _divide(cells: Cells, rows: Integers, control_rows: Integers | None) -> tuple[Integers, Integers]:
    """Rows to draw and control rows; without perturbations every row is drawn and there is no control."""
    if cells.control is None:
        return rows, rows[:0]
    is_control = cells.is_control
    if control_rows is None:
        control_rows = rows[is_control[rows]]
    control_rows = np.asarray(control_rows, np.int64)
    n_wrong = int(np.count_nonzero(~is_control[control_rows]))
    if n_wrong:
        raise ValueError(
            f"{n_wrong} of {len(control_rows)} control rows are not labelled {cells.control!r}; hand in "
            "control cells only."
        )
    return rows[~is_control[rows]], control_rows


def _left_out_note(left_out: int) -> list[str]:
    if not left_out:
        return []
    return [f"{left_out} groups of a single cell are left out: a population takes at least {SMALLEST_GROUP} cells."]


def _encode(labels: pd.DataFrame, groups: Groups, vocabularies: Mapping[str, Vocabulary]) -> list[tuple[int, int, int]]:
    """Vocabulary indices of each group's labels."""
    columns = []
    for name, codes in zip(COVARIATES, groups.codes.T, strict=True):
        used, place = np.unique(codes, return_inverse=True)
        used_labels = pd.Series(labels[name].cat.categories[used].astype(str))
        columns.append(vocabularies[name].encode(used_labels)[place])
    return [(p, c, b) for p, c, b in np.stack(columns, axis=1).tolist()]
