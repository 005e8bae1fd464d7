"""Epochs of populations, and their minibatches, from any source.

An epoch shows every cell once. A group of n cells is shuffled and cut into ``ceil(n / m)`` populations, all of m cells
but the last (where that would leave one cell alone, the last two populations have m - 1 and 2, for m > 2); groups under
2 cells are left out and counted, and no cell is duplicated. Beside each population stand as many control cells of the
same cell type and assay batch, none of them twice in a population that they suffice for (see `pairing` for the
other pairings, and for what stands in where they do not).

Control -> control populations are added until they are a share s of the epoch, ``n_control = s / (1 - s) n_perturbed``:
min(m, n / 2) cells of a control group of n >= 4, against as many others of the same group.

An epoch is drawn slab by slab (see `blocks`), each a function of (seed, epoch, slab). Data without perturbations
(no control label) are drawn as populations whose control stream is zero.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch

from perturbdiff.cells.order import Flags, Integers, Loaded, Runs, Segments, gathered, totals_of
from perturbdiff.cells.source import Source
from perturbdiff.core.choices import Pairing
from perturbdiff.core.population import NULL, Condition, PopulationBatch
from perturbdiff.labels.vocabulary import Vocabulary
from perturbdiff.populations.blocks import SLAB, Blocks, Streams, block_size, window
from perturbdiff.populations.pairing import (
    CANDIDATES,
    SMALLEST_GROUP,
    Groups,
    cut,
    drawn_beside,
    encoded,
    match_controls,
    nearest_controls,
    transported_controls,
)

type _Population = tuple[Integers, Integers, list[int], list[int]]

HELD = 1 << 30
"""Bytes of control cells that are held in memory at most; where there are more, they are read beside the perturbed."""


class Draw(NamedTuple):
    """One population of an epoch: which cells, which control cells, under which condition.

    Attributes:
        rows: positions in the source, at most cells_per_population of them.
        control_rows: control cells to pair with them: as many, or more for the nearest to be chosen from; empty where
            the data have no perturbations.
        condition: vocabulary indices in the order of `COVARIATES`, 0 the trained null.
        group: what it is a sample of, in the order of `COVARIATES`: as `condition`, but a label that the vocabulary
            takes for the null has a number of its own.
        key: the running number of the population, unique over all epochs.
        source: of several, the one that the positions are of.
    """

    rows: Integers
    control_rows: Integers
    condition: tuple[int, ...]
    group: tuple[int, ...]
    key: int
    source: int = 0


@dataclass(frozen=True, eq=False)
class Slab:
    """Populations whose cells are read together.

    Attributes:
        first: the key of its first population.
        draws: its populations, in their order, from `first` on.
    """

    first: int
    draws: list[Draw]


class Populations:
    """The populations of one part of a split, epoch by epoch.

    Attributes:
        groups: of perturbed cells, those of a single cell left out.
        controls: groups of control cells.
        pools: the numbers [start, stop) of `controls` that serve each group.
        conditions: vocabulary indices of each group [groups, 3].
        left_out: how many groups of a single cell are never drawn.
        notes: sentences for the user: controls from other assay batches, groups left out.
        reader: of the panel, in units of the scale.
    """

    def __init__(
        self,
        source: Source,
        segments: Segments,
        genes: Sequence[str],
        scale: float,
        vocabularies: Mapping[str, Vocabulary],
        *,
        cells_per_population: int,
        control_share: float,
        seed: int,
        controls: Segments | None = None,
        pairing: Pairing = "assay_batch",
        held: int = HELD,
        present: Flags | None = None,
    ) -> None:
        """Sort the cells into groups, match their controls and open the panel.

        Args:
            source: of all cells.
            segments: the part to draw; its perturbed cells are drawn, its control cells too where control_share > 0.
            genes: the gene panel, the columns of what `batch` returns.
            scale: what log1p counts per 10^4 are divided by, positive.
            vocabularies: one for each of `COVARIATES`.
            cells_per_population: m, at least 2.
            control_share: share of control -> control populations in an epoch, in [0, 1); of no use without
                perturbations.
            seed: of every epoch.
            controls: the control cells to draw beside the perturbed ones, those of `segments` when absent. A part that
                holds no controls (validation) is given the training controls here.
            pairing: which control cells stand beside which perturbed ones.
            held: bytes of control cells to hold in memory, at most.
            present: which genes of the panel were measured [genes]; all when None.

        Raises:
            ValueError: for an argument out of range, controls that are not control cells, no group of two cells, a
                group without control cells of its cell type, or a label outside its vocabulary.
        """
        _check(scale, cells_per_population, control_share)
        self.cells_per_population, self.scale, self.seed = cells_per_population, float(scale), seed
        self.n_genes, self.pairing = len(genes), pairing
        self.present = None if present is None or present.all() else torch.from_numpy(present)
        self._marginal = source.control is None
        perturbed, control = drawn_beside(source, segments, controls)
        groups = Groups.of(perturbed)
        self.groups = groups.at_least(SMALLEST_GROUP)
        self.left_out = len(groups) - len(self.groups)
        if not len(self.groups):
            raise ValueError(
                f"{perturbed.n_cells} perturbed cells in {len(groups)} groups give no population, which takes at least "
                f"{SMALLEST_GROUP} cells of one (perturbation, cell type, assay batch); hand in a part that has some."
            )
        self.controls = Groups.of(control)
        self.pools, pool_notes = self._match(source.runs)
        self.conditions = encoded(source.runs, self.groups, vocabularies)
        self.told_apart = self._tell_apart(source.runs)
        self._blocks = Blocks.of(self.groups, cells_per_population)
        self._large_controls = np.flatnonzero(self.controls.sizes >= 2 * SMALLEST_GROUP)
        self._n_control = self._count_control_populations(control_share)
        drawn = encoded(source.runs, self.controls, vocabularies) if self._n_control else np.zeros((0, 3), np.int64)
        self._control_conditions = drawn
        self._length = int(self._blocks.n_populations.sum()) + self._n_control
        self.notes = (*_left_out_note(self.left_out), *pool_notes)
        self.reader = source.reader(genes, self.groups.segments.union(control), scale)
        fits = 0 < control.n_cells * source.bytes_per_cell <= held
        self._held = (self.reader.load(control.positions()),) if fits else ()

    def _match(self, runs: Runs) -> tuple[Integers, list[str]]:
        if self._marginal:
            return np.zeros((len(self.groups), 2), np.int64), []
        return match_controls(runs, self.groups, self.controls, any_batch=self.pairing == "cell_type")

    def _tell_apart(self, runs: Runs) -> Integers:
        # without control cells a population is known by its condition only
        if self._marginal:
            return self.conditions
        return np.where(self.conditions == NULL, -1 - runs.codes[self.groups.run], self.conditions)

    def __len__(self) -> int:
        """Count the populations of an epoch."""
        return self._length

    def _count_control_populations(self, control_share: float) -> int:
        if self._marginal or control_share == 0:
            return 0
        if not len(self._large_controls):
            raise ValueError(
                f"control_share={control_share} asks for control -> control populations, but no (cell type, assay "
                f"batch) has the {2 * SMALLEST_GROUP} control cells that they take; set control_share to 0."
            )
        n_perturbed = int(self._blocks.n_populations.sum())
        return max(1, round(n_perturbed * control_share / (1 - control_share)))

    def slabs(self, first: int = 0) -> Iterator[Slab]:
        """Yield the slabs of all epochs without end, from the one that holds population `first` on, cut to it."""
        epoch, skipped = divmod(first, len(self))
        while True:
            rng = np.random.default_rng([self.seed, epoch])
            # a control -> control population is a block of its own, numbered after the others
            order = rng.permutation(len(self._blocks) + self._n_control)
            counts = np.append(self._blocks.n_populations, np.ones(self._n_control, np.int64))[order]
            ends = np.cumsum(np.add.reduceat(counts, np.arange(0, len(order), SLAB)))
            for slab in range(int(np.searchsorted(ends, skipped, side="right")), len(ends)):
                begins = int(ends[slab - 1]) if slab else 0
                draws = self._draw(epoch, slab, order[slab * SLAB : (slab + 1) * SLAB], epoch * len(self) + begins)
                cut_off = max(0, skipped - begins)
                yield Slab(epoch * len(self) + begins + cut_off, draws[cut_off:])
            epoch, skipped = epoch + 1, 0

    def plan(self, epoch: int, at_most: int | None = None) -> list[Draw]:
        """Draw the populations of an epoch, or the first `at_most` of them.

        Every perturbed cell of a group of two and more is in exactly one.
        """
        drawn = (draw for slab in self.slabs(epoch * len(self)) for draw in slab.draws)
        return list(islice(drawn, len(self) if at_most is None else min(at_most, len(self))))

    def load(self, draws: Sequence[Draw]) -> Loaded:
        """Read what `batch` needs for these populations, those that are held left out."""
        rows = np.unique(np.concatenate([rows for draw in draws for rows in (draw.rows, draw.control_rows)]))
        for held in self._held:
            rows = rows[~np.isin(rows, held.positions, assume_unique=True)]
        return self.reader.load(rows)

    def batch(self, draws: Sequence[Draw], loaded: Sequence[Loaded] | None = None) -> PopulationBatch:
        """Fetch the expression of `draws`, log1p counts per 10^4 divided by the scale, float32, on the CPU.

        The tensors are [draws, cells_per_population, genes]; a shorter population is padded with zeros, which the mask
        (None where all are full) marks false. `loaded` is what `load` gave, for these populations and others; it is
        called when absent. Of the control cells the total counts come along, where all are known.
        """
        parts = (*([self.load(draws)] if loaded is None else loaded), *self._held)
        lengths = np.array([len(draw.rows) for draw in draws])
        exists = np.arange(self.cells_per_population) < lengths[:, None]
        paired = [self._paired(draw, parts) for draw in draws]
        there = np.stack([exists, exists & (not self._marginal)])
        perturbed, control = self._dense([*(draw.rows for draw in draws), *paired], there, parts)
        return PopulationBatch(
            perturbed=perturbed,
            control=control,
            mask=None if exists.all() else torch.from_numpy(exists),
            condition=Condition(*torch.tensor([draw.condition for draw in draws], dtype=torch.int64).T.contiguous()),
            key=torch.tensor([draw.key for draw in draws], dtype=torch.int64),
            genes=None if self.present is None else self.present.expand(len(draws), -1),
            totals=None if self._marginal else _totals(paired, exists, parts),
        )

    def _paired(self, draw: Draw, parts: Sequence[Loaded]) -> Integers:
        if self._marginal or self.pairing not in {"nearest", "optimal_transport"}:
            return draw.control_rows
        pair = nearest_controls if self.pairing == "nearest" else transported_controls
        both = [
            np.concatenate([rows.toarray() for _, rows in gathered(parts, positions)])
            for positions in (draw.rows, draw.control_rows)
        ]
        return draw.control_rows[pair(*both)]

    def _dense(self, populations: list[Integers], exists: Flags, parts: Sequence[Loaded]) -> torch.Tensor:
        """The cells of populations, one after the other, where `exists` [...] says; zeros elsewhere [..., genes]."""
        padded = (np.empty if exists.all() else np.zeros)((exists.size, self.n_genes), dtype=np.float32)
        place = np.flatnonzero(exists)
        for which, chosen in gathered(parts, np.concatenate(populations)):
            if chosen.shape[0]:
                own = place[which] - place[which.start]
                # cells that are not there are rows without values
                ends = np.zeros(own[-1] + 2, dtype=chosen.indptr.dtype)
                ends[1:][own] = np.diff(chosen.indptr)
                slots = (chosen.data, chosen.indices, np.cumsum(ends, out=ends))
                rows = padded[place[which.start] : place[which.start] + len(ends) - 1]
                sp.csr_matrix(slots, shape=rows.shape, copy=False).toarray(out=rows)
        return torch.from_numpy(padded.reshape(*exists.shape, self.n_genes))

    def _draw(self, epoch: int, slab: int, blocks: Integers, first: int) -> list[Draw]:
        """Draw the populations of a slab: those of its blocks, mixed."""
        rng = np.random.default_rng([self.seed, epoch, slab])
        streams = Streams(self.controls, rng, block_size(self.cells_per_population))
        own = blocks < len(self._blocks)
        drawn = [*self._perturbed(epoch, blocks[own], rng, streams), *self._control(epoch, blocks[~own], rng)]
        mixed_up = enumerate((drawn[i] for i in rng.permutation(len(drawn)).tolist()), first)
        return [Draw(rows, control, tuple(asked), tuple(own), key) for key, (rows, control, asked, own) in mixed_up]

    def _perturbed(
        self, epoch: int, blocks: Integers, rng: np.random.Generator, streams: Streams
    ) -> Iterator[_Population]:
        """Shuffle the cells within their pieces, all pieces at once, and cut."""
        pieces = self._blocks.pieces(blocks)
        size, group = self._blocks.size[pieces], self._blocks.group[pieces]
        rows = self.groups.positions(self._blocks.numbers(pieces, (self.seed, epoch)))
        shuffled = rng.permutation(len(rows))
        piece_of_cell = np.repeat(np.arange(len(pieces)), size)
        rows = rows[shuffled[np.argsort(piece_of_cell[shuffled], kind="stable")]]
        piece, sizes = cut(size, self.cells_per_population)
        labels = zip(self.conditions[group].tolist(), self.told_apart[group].tolist(), strict=True)
        conditions, pools = list(labels), self.pools[group].tolist()
        stops = np.cumsum(sizes).tolist()
        beside = CANDIDATES if self.pairing == "nearest" else 1
        for i, n_cells, stop in zip(piece.tolist(), sizes.tolist(), stops, strict=True):
            first, last = pools[i]
            control = rows[:0] if self._marginal else streams.take(first, last, beside * n_cells)
            yield rows[stop - n_cells : stop], control, *conditions[i]

    def _control(self, epoch: int, blocks: Integers, rng: np.random.Generator) -> Iterator[_Population]:
        """Cycle through the shuffled control groups; both halves of a population are cells of one draw, so disjoint."""
        groups = np.random.default_rng([self.seed, epoch, 0, 1]).permutation(self._large_controls)
        for turn in (blocks - len(self._blocks)).tolist():
            group = groups[turn % len(groups)]
            start, n_cells = self.controls.offsets[group], int(self.controls.sizes[group])
            size = min(self.cells_per_population, n_cells // 2)
            wanted = n_cells if n_cells <= block_size(self.cells_per_population) else 2 * size
            both = self.controls.positions(start + rng.permutation(window(rng, n_cells, wanted))[: 2 * size])
            condition = self._control_conditions[group].tolist()
            yield both[:size], both[size:], condition, condition


def _check(scale: float, cells_per_population: int, control_share: float) -> None:
    if not (np.isfinite(scale) and scale > 0):
        raise ValueError(f"scale={scale} must be positive and finite; use the measured scale of the training cells.")
    if cells_per_population < SMALLEST_GROUP:
        raise ValueError(f"cells_per_population={cells_per_population} must be at least {SMALLEST_GROUP}; raise it.")
    if not 0 <= control_share < 1:
        raise ValueError(f"control_share={control_share} must be in [0, 1); use 0 for no control populations.")


def _totals(paired: list[Integers], exists: Flags, parts: Sequence[Loaded]) -> torch.Tensor | None:
    """The total counts of control cells where `exists` [populations, cells], 1 elsewhere; None if one is unknown."""
    totals = np.ones(exists.shape, dtype=np.float32)
    totals[exists] = totals_of(parts, np.concatenate(paired))
    return None if np.isnan(totals).any() else torch.from_numpy(totals)


def _left_out_note(left_out: int) -> list[str]:
    if not left_out:
        return []
    return [f"{left_out} groups of a single cell are left out: a population takes at least {SMALLEST_GROUP} cells."]
