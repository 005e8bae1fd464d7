"""The canonical order of cells: runs of one condition, segments of them, and what is read of them.

A *source* holds its cells in the canonical order: by (perturbation, cell type, assay batch) as text, then by a hash of
the cell's name. All cells of one condition are one contiguous *run*, in an order that is random to biology and yet a
function of the names alone: a segment of a run is a random draw of its cells, whatever files they came from and
wherever they are kept. A *position* is an index into that order. Whoever draws populations sees positions only, so
cells in memory and a store give the same populations.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from perturbdiff.core.choices import COVARIATES
from perturbdiff.recipes.dataset import PLAIN, Grammar

if TYPE_CHECKING:
    import scipy.sparse as sp

CHUNK = 1 << 20
"""So many cells are looked at a time."""

type Integers = npt.NDArray[np.int64]
type Hashes = npt.NDArray[np.uint64]
type Flags = npt.NDArray[np.bool_]


def mixed(x: Hashes) -> Hashes:
    """The finalizer of splitmix64, a bijection of 64-bit words in which every bit depends on every other."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    found: Hashes = x ^ (x >> np.uint64(31))
    return found


def name_hashes(names: "pd.Index | npt.NDArray[np.object_]") -> Hashes:
    """A 64-bit hash of each name [n]: what cells of a run are sorted by, and cells are told apart by."""
    texts = np.array([str(name) for name in names], dtype=object)
    return mixed(np.asarray(pd.util.hash_array(texts, categorize=False), dtype=np.uint64))


def digested(hashes: Hashes, offsets: Integers) -> Hashes:
    """Two sums of hashes of names for each range ``offsets[i]`` to ``offsets[i + 1]``, none empty [ranges, 2].

    Equal for equal sets of names in any order, and sums of ranges are the sums of what they hold.
    """
    words = np.stack([mixed(hashes), mixed(~hashes)], axis=1)
    found: Hashes = np.add.reduceat(words, offsets[:-1], axis=0)
    return found


@dataclass(frozen=True, eq=False)
class Runs:
    """The runs of a source, in its order.

    Attributes:
        labels: a row a run: categories perturbation, cell_type, assay_batch, sorted as text; "" where the data have no
            such covariate.
        offsets: run r holds the positions ``offsets[r]`` to ``offsets[r + 1]``.
        control: label of the control cells; None where no cell is perturbed.
        grammar: what labels of perturbation are made of.
    """

    labels: pd.DataFrame
    offsets: Integers
    control: str | None
    grammar: Grammar = PLAIN

    def __len__(self) -> int:
        """Count the runs."""
        return len(self.labels)

    @property
    def n_cells(self) -> int:
        """The cells of all runs."""
        return int(self.offsets[-1])

    @cached_property
    def sizes(self) -> Integers:
        """Cells of each run."""
        return np.diff(self.offsets)

    @cached_property
    def is_control(self) -> Flags:
        """Which runs are of control cells; all of them where the data have no perturbation."""
        if self.control is None:
            return np.ones(len(self), dtype=bool)
        return np.asarray(self.labels["perturbation"] == self.control)

    @cached_property
    def codes(self) -> Integers:
        """The category codes of each run's labels [runs, 3]."""
        return np.stack([self.labels[name].cat.codes.to_numpy(dtype=np.int64) for name in COVARIATES], axis=1)

    def whole(self, chosen: Flags | None = None) -> "Segments":
        """The chosen runs (all when None), each from end to end."""
        run = np.arange(len(self), dtype=np.int64) if chosen is None else np.flatnonzero(chosen).astype(np.int64)
        return Segments(run, self.offsets[run], self.offsets[run + 1])

    def of(self, positions: Integers) -> Integers:
        """The run of each position."""
        return np.searchsorted(self.offsets, positions, side="right").astype(np.int64) - 1

    def name(self, run: int) -> str:
        """The labels of a run, for a sentence: ``('IFN-beta', 'B cells', 'donor 1')``."""
        labels = [str(label) for label in self.labels.iloc[run] if label != ""]
        return "(" + ", ".join(repr(label) for label in labels) + ")"


@dataclass(frozen=True, eq=False)
class Segments:
    """Segments of runs: positions ``start`` to ``stop``, ascending and disjoint."""

    run: Integers
    start: Integers
    stop: Integers

    @classmethod
    def of(cls, runs: Runs, positions: Integers) -> "Segments":
        """The segments that ascending positions make."""
        positions = np.asarray(positions, dtype=np.int64)
        run = runs.of(positions)
        first = np.ones(len(positions), dtype=bool)
        first[1:] = (np.diff(positions) != 1) | (np.diff(run) != 0)
        starts = np.flatnonzero(first)
        last = np.append(starts[1:], len(positions)) - 1
        return cls(run[starts], positions[starts], positions[last[: len(starts)]] + 1)

    def __len__(self) -> int:
        """Count the segments."""
        return len(self.run)

    @cached_property
    def sizes(self) -> Integers:
        """Cells of each segment."""
        return self.stop - self.start

    @property
    def n_cells(self) -> int:
        """The cells of all segments."""
        return int(self.sizes.sum())

    def take(self, chosen: Flags) -> "Segments":
        """The chosen segments."""
        return Segments(self.run[chosen], self.start[chosen], self.stop[chosen])

    def union(self, other: "Segments") -> "Segments":
        """These segments and others, none of which overlap."""
        run, start, stop = (
            np.concatenate([getattr(self, key), getattr(other, key)]) for key in ("run", "start", "stop")
        )
        order = np.argsort(start, kind="stable")
        return Segments(run[order], start[order], stop[order])

    def ranges(self) -> "Iterator[tuple[int, int]]":
        """The segments as ranges, start and stop, neighbours joined: what can be read in one go."""
        ends = np.ones(len(self), dtype=bool)
        ends[:-1] = self.start[1:] != self.stop[:-1]
        begins = np.roll(ends, 1)
        yield from zip(self.start[begins].tolist(), self.stop[ends].tolist(), strict=True)

    def thinned(self, at_most: int | None) -> "Segments":
        """About so many cells at most: an even share of every segment, its first cells, which are random ones."""
        if at_most is None or self.n_cells <= at_most:
            return self
        return Segments(self.run, self.start, self.start + -(-self.sizes * at_most // self.n_cells))

    def positions(self) -> Integers:
        """All positions, ascending [n_cells]."""
        return aranges(self.start, self.sizes)


def chunks(segments: Segments) -> "Iterator[tuple[int, int]]":
    """Ranges of positions of bounded length, in which neighbouring segments are joined."""
    for start, stop in segments.ranges():
        yield from ((at, min(at + CHUNK, stop)) for at in range(start, stop, CHUNK))


def aranges(start: Integers, sizes: Integers) -> Integers:
    """The integers of ranges, one after the other: ``start[i], ..., start[i] + sizes[i] - 1``."""
    before = np.cumsum(sizes) - sizes
    return np.repeat(start - before, sizes) + np.arange(int(sizes.sum()), dtype=np.int64)


def thinned_note(segments: Segments, some: Segments) -> tuple[str, ...]:
    """The sentence on segments that were thinned."""
    if some.n_cells == segments.n_cells:
        return ()
    return (f"{some.n_cells} of {segments.n_cells} cells are read, an even share of every group.",)


class Loaded(NamedTuple):
    """Expression of some cells: log1p counts per 10^4 of a panel, divided by the scale of their reader.

    Attributes:
        positions: of the rows, ascending, each once.
        matrix: [positions, genes].
        totals: the total counts of the cells [positions], NaN where one is unknown; None where all are.
    """

    positions: Integers
    matrix: "sp.csr_matrix[np.float32]"
    totals: npt.NDArray[np.float64] | None = None

    def rows(self, positions: Integers) -> "sp.csr_matrix[np.float32]":
        """The rows of these positions, in their order; they must be there."""
        found: sp.csr_matrix[np.float32] = self.matrix[np.searchsorted(self.positions, positions)]
        return found


def gathered(parts: Sequence[Loaded], positions: Integers) -> "Iterator[tuple[slice, sp.csr_matrix[np.float32]]]":
    """The rows of these positions, in their order, out of several readings that together have them.

    Yields which of the positions come next, and their rows; neighbours that lie in one reading come together.
    """
    if len(parts) == 1:
        yield slice(0, len(positions)), parts[0].rows(positions)
        return
    where = np.full(len(positions), -1)
    for i, part in enumerate(parts):
        where[(where < 0) & (_places(part, positions) >= 0)] = i
    edges = np.append(np.flatnonzero(np.diff(where, prepend=-1)), len(where)).tolist()
    for first, last in pairwise(edges):
        yield slice(first, last), parts[where[first]].rows(positions[first:last])


def totals_of(parts: Sequence[Loaded], positions: Integers) -> npt.NDArray[np.float64]:
    """The total counts of the cells at these positions, in their order, out of several readings; NaN where unknown."""
    totals = np.full(len(positions), np.nan)
    for part in parts:
        if part.totals is not None:
            at = _places(part, positions)
            there = np.isnan(totals) & (at >= 0)
            totals[there] = part.totals[at[there]]
    return totals


def _places(part: Loaded, positions: Integers) -> Integers:
    """The row of a reading at which each position stands; -1 where it does not."""
    if not len(part.positions):
        return np.full(len(positions), -1, dtype=np.int64)
    at = np.minimum(np.searchsorted(part.positions, positions), len(part.positions) - 1).astype(np.int64)
    return np.where(part.positions[at] == positions, at, -1)


def arrange(
    labels: pd.DataFrame, hashes: Hashes, control: str | None, grammar: Grammar = PLAIN
) -> tuple[Integers, Runs]:
    """The canonical order of cells (which row stands at each position) and its runs.

    Args:
        labels: a row a cell, categories sorted as text.
        hashes: of the cells' names.
        control: label of the control cells.
        grammar: what labels of perturbation are made of.
    """
    codes = np.stack([labels[name].cat.codes.to_numpy() for name in COVARIATES], axis=1).astype(np.int64)
    order = np.lexsort((hashes, *codes.T[::-1])).astype(np.int64)
    codes = codes[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = (codes[1:] != codes[:-1]).any(axis=1)
    starts = np.flatnonzero(first)
    of_runs: dict[str, Any] = {name: labels[name].array[order[starts]] for name in COVARIATES}
    return order, Runs(pd.DataFrame(of_runs), np.append(starts, len(order)).astype(np.int64), control, grammar)
