"""Sums over cells, gene by gene: all that the panel and the scale need to know of expression, from one pass.

With y = log1p(10^4 c / t) and x = expm1(y), a gene's sums over cells of x, x^2, y and y^2 give its mean and variance as
counts and as logarithms. The sums are of blocks of so many cells, counted along the segments that are
measured, and within a block of each gene's values in the order of its cells. So they are the same to the last bit for
every source of the same cells, however it keeps them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from perturbdiff.cells.moments import Logs, Moments, Sums
from perturbdiff.cells.order import Integers, Segments, aranges
from perturbdiff.cells.source import Source

if TYPE_CHECKING:
    import scipy.sparse as sp

_CELLS = 2048
"""Cells of a block. Another number gives other last bits."""

_BLOCKS = 4
"""Blocks that are read at once."""

_BYTES = 1 << 27
"""Blocks that are read at once take about so much at most, or are one."""

type Track = Callable[[Sequence[int]], Iterator[int]]


def measure(source: Source, genes: Sequence[str] | None, segments: Segments, track: Track = iter) -> Moments:
    """The moments of some genes (None: all of the source's, in its order) over the cells of these segments.

    One pass; some blocks of cells are in memory at a time, and short segments share a block. `track` wraps the list of
    reads, to show progress.

    Raises:
        ValueError: a gene is not there; the nearest is named.
    """
    names = [str(gene) for gene in (source.genes if genes is None else genes)]
    ends = np.cumsum(segments.sizes, dtype=np.int64)
    n_cells = int(ends[-1]) if len(ends) else 0
    sums = np.zeros((4, len(names)))
    lowest = np.full(len(names), np.inf if n_cells else 0, dtype=np.float32)
    highest = np.zeros(len(names), dtype=np.float32)
    fitting = int(_BYTES // (_CELLS * max(1.0, source.bytes_per_cell)))
    cells = _CELLS * min(_BLOCKS, max(1, fitting))
    for first in track(range(0, n_cells, cells)):
        positions = _positions(segments, ends, first, min(first + cells, n_cells))
        # a reader of these cells only: one of all cells may hold them in memory
        loaded = source.reader(names, Segments.of(source.runs, positions)).load(positions)
        for start in range(0, len(positions), _CELLS):
            _add(loaded.rows(positions[start : start + _CELLS]), sums, lowest, highest)
    counts, counts_squared, logs, logs_squared = sums
    known = pd.Index(names, dtype=str)
    return Moments(known, n_cells, counts, counts_squared, logs, logs_squared, lowest, highest)


def _add(block: "sp.csr_matrix[np.float32]", sums: Sums, lowest: Logs, highest: Logs) -> None:
    """Add a block of cells to the four sums [4, genes] and the extremes, in place."""
    by_gene = block.tocsc()  # a gene's values in the order of the cells, whatever the order of genes in a cell
    by_gene.eliminate_zeros()
    stored = np.diff(by_gene.indptr)
    lowest[stored < block.shape[0]] = 0
    filled = np.flatnonzero(stored)
    if not len(filled):
        return
    starts = by_gene.indptr[filled]
    logs = by_gene.data.astype(np.float64)
    counts = np.expm1(logs)
    for total, values in zip(sums, (counts, counts * counts, logs, logs * logs), strict=True):
        total[filled] += np.add.reduceat(values, starts)
    highest[filled] = np.maximum(highest[filled], np.maximum.reduceat(by_gene.data, starts))
    lowest[filled] = np.minimum(lowest[filled], np.minimum.reduceat(by_gene.data, starts))


def _positions(segments: Segments, ends: Integers, first: int, last: int) -> Integers:
    """The positions of the `first` to `last` cell of all segments, told one after the other; `ends` adds up sizes."""
    chosen = slice(int(np.searchsorted(ends, first, side="right")), int(np.searchsorted(ends, last, side="left")) + 1)
    begins = ends[chosen] - segments.sizes[chosen]
    skipped = np.maximum(first - begins, 0)
    return aranges(segments.start[chosen] + skipped, np.minimum(ends[chosen], last) - begins - skipped)
