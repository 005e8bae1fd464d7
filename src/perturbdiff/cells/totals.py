"""Total counts of control cells: whether they are all known, before anything is made of them."""

import numpy as np

from perturbdiff.cells.order import Integers, Segments, totals_of
from perturbdiff.cells.source import Source

_CELLS = 1 << 13
"""So many cells are read at a time."""


def uncounted(source: Source, segments: Segments) -> int:
    """How many control cells of these segments have no known total count; 0, and nothing is read, where counts are."""
    if source.scale == "counts":
        return 0
    positions = segments.take(source.runs.is_control[segments.run]).positions()
    slabs = (positions[start : start + _CELLS] for start in range(0, len(positions), _CELLS))
    return sum(_unknown(source, slab) for slab in slabs)


def _unknown(source: Source, positions: Integers) -> int:
    # totals are over all genes, whatever the panel
    reader = source.reader([str(source.genes[0])], Segments.of(source.runs, positions))
    return int(np.isnan(totals_of([reader.load(positions)], positions)).sum())
