"""Blocks and slabs: an epoch's order of reading, in which every cell appears once and neighbours are read together.

Reading cells one by one from a disk costs a whole chunk for each. So groups are cut into *blocks* of about a thousand
neighbouring cells (a part of a large group, or many small ones), the blocks of an epoch are put into random order, and
64 of them at a time, a *slab*, are read at once. Within a slab the cells of a group are shuffled and cut into
populations, and the populations of all its blocks are mixed.

A group of more than one block is turned anew each epoch, as a ring, before it is cut, so that blocks differ between
epochs. Everything is a function of (seed, epoch, slab): any slab can be drawn without those before it, at a cost that
does not depend on the number of cells.
"""

from dataclasses import dataclass

import numpy as np

from perturbdiff.cells.order import Hashes, Integers, aranges, mixed
from perturbdiff.populations.pairing import Groups, cut

BLOCK = 1024
"""Cells of a block, about."""

SLAB = 64
"""Blocks of a slab."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """How groups are cut into pieces of at most one block, and pieces packed into blocks.

    Attributes:
        groups: what is cut.
        group: of each piece.
        start: of each piece within its group, before the group is turned.
        size: of each piece.
        first: block b holds the pieces ``first[b]`` to ``first[b + 1]``.
        n_populations: of each block.
    """

    groups: Groups
    group: Integers
    start: Integers
    size: Integers
    first: Integers
    n_populations: Integers

    @classmethod
    def of(cls, groups: Groups, m: int) -> "Blocks":
        """Cut groups for populations of up to m cells: all but the last piece of a group hold whole populations."""
        group, size = cut(groups.sizes, block_size(m))
        before = np.cumsum(size) - size
        start = before - groups.offsets[group]
        # neighbouring pieces share a block as long as they begin within one block's length
        number = before // block_size(m)
        first = np.append(np.flatnonzero(np.diff(number, prepend=-1)), len(size)).astype(np.int64)
        cumulative = np.append(0, np.cumsum(-(-size // m)))
        return cls(groups, group, start, size, first, np.diff(cumulative[first]))

    def __len__(self) -> int:
        """Count the blocks."""
        return len(self.n_populations)

    def pieces(self, blocks: Integers) -> Integers:
        """The pieces of some blocks, in their order."""
        return aranges(self.first[blocks], self.first[blocks + 1] - self.first[blocks])

    def numbers(self, pieces: Integers, key: tuple[int, int]) -> Integers:
        """The cells of some pieces, piece after piece, as numbers of `groups`, in an epoch of (seed, epoch) = key."""
        group, size = self.group[pieces], self.size[pieces]
        n_cells = self.groups.sizes[group]
        turn = np.where(n_cells > size, _turns(group, key) % n_cells.astype(np.uint64), 0).astype(np.int64)
        within = aranges(self.start[pieces] + turn, size)
        return np.repeat(self.groups.offsets[group], size) + within % np.repeat(n_cells, size)


def block_size(m: int) -> int:
    """Cells of a whole block: about `BLOCK`, in whole populations of m."""
    return m * -(-BLOCK // m)


def window(rng: np.random.Generator, n_cells: int, wanted: int) -> Integers:
    """Neighbours on a ring of `n_cells`, from a random one on: `wanted` of them, or all where there are no more."""
    if n_cells <= wanted:
        return np.arange(n_cells, dtype=np.int64)
    return (rng.integers(n_cells) + np.arange(wanted, dtype=np.int64)) % n_cells


class Streams:
    """Control cells of a slab without end: for each pool a window of neighbours, permutation after permutation."""

    def __init__(self, controls: Groups, rng: np.random.Generator, window_size: int) -> None:
        self._controls, self._rng, self._window_size = controls, rng, window_size
        self._windows: dict[tuple[int, int], Integers] = {}
        self._next: dict[tuple[int, int], Integers] = {}

    def take(self, start: int, stop: int, n_cells: int) -> Integers:
        """Draw `n_cells` of the numbers start to stop as positions, all different where the window is large enough."""
        pool = (start, stop)
        if pool not in self._windows:
            numbers = start + window(self._rng, stop - start, max(self._window_size, n_cells))
            self._windows[pool] = self._controls.positions(numbers)
            self._next[pool] = numbers[:0]
        rest, cells = self._next[pool], self._windows[pool]
        if len(rest) < n_cells:
            rest = np.concatenate([self._rng.permutation(cells) for _ in range(-(-n_cells // len(cells)))])
        taken, self._next[pool] = rest[:n_cells], rest[n_cells:]
        return taken


def _turns(group: Integers, key: tuple[int, int]) -> Hashes:
    """A random word for each group in an epoch."""
    seed, epoch = (np.array([part], dtype=np.uint64) for part in key)
    return mixed(group.astype(np.uint64) + mixed(epoch + mixed(seed + np.uint64(1))))
