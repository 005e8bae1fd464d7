"""The cut of the canonical order into buckets of about equal weight, before any cell has been moved.

A bucket is a few whole runs, or a range of name hashes of a run that is larger. Hashes are spread evenly, so ranges of
equal width hold about equally many cells. The cut depends on the cells alone, not on the files or the memory there is.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perturbdiff.cells.order import Hashes, Integers
from perturbdiff.store.layout import CELL_VALUES, PART_VALUES


@dataclass(frozen=True, eq=False)
class Buckets:
    """Run r lies in the buckets ``first[r]`` to ``first[r] + pieces[r]``."""

    first: Integers
    pieces: Integers

    def __len__(self) -> int:
        """Count the buckets."""
        return int((self.first + self.pieces).max(initial=0))

    def of(self, run: npt.NDArray[np.int32], hashes: Hashes) -> Integers:
        """The bucket of each cell; ascends with (run, hash)."""
        pieces = self.pieces[run].astype(np.uint64)
        return self.first[run] + (((hashes >> np.uint64(32)) * pieces) >> np.uint64(32)).astype(np.int64)


def cut(cells: Integers, values: Integers) -> Buckets:
    """Cut runs of so many cells and values into buckets of about `PART_VALUES`."""
    weight = values + CELL_VALUES * cells
    pieces = np.maximum(1, -(-weight // PART_VALUES))
    first = np.zeros(len(weight), dtype=np.int64)
    bucket, filled = -1, 0
    for run, (heavy, n_pieces) in enumerate(zip(weight.tolist(), pieces.tolist(), strict=True)):
        if n_pieces > 1 or bucket < 0 or filled + heavy > PART_VALUES:
            bucket, filled = bucket + 1, 0
        first[run] = bucket
        filled += heavy
        if n_pieces > 1:
            bucket, filled = bucket + n_pieces - 1, PART_VALUES
    return Buckets(first, pieces)


def n_parts(cells: Integers, values: Integers) -> Integers:
    """How many parts a bucket makes: one, but where it turned out to be heavier than was thought."""
    weight = values + CELL_VALUES * cells
    return np.where(weight > PART_VALUES + PART_VALUES // 2, -(-weight // PART_VALUES), 1) * (cells > 0)
