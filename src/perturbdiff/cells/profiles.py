"""Duplicates in disguise: cells with the same profile."""

import numpy as np
import scipy.sparse as sp

from perturbdiff.cells.order import Hashes, Integers, mixed
from perturbdiff.cells.reading import Matrix

_ROWS = 4096


def profile_hashes(values: Matrix) -> tuple[Hashes, Integers]:
    """A 64-bit hash of every row of [n, genes], equal for equal rows, and its number of expressed genes [n].

    The hash is a sum over expressed genes of a mixed (gene, value), so it needs no sorting and one pass in chunks.
    """
    keys = mixed(np.arange(1, values.shape[1] + 1, dtype=np.uint64))
    hashes = np.zeros(values.shape[0], dtype=np.uint64)
    expressed = np.zeros(values.shape[0], dtype=np.int64)
    for start in range(0, values.shape[0], _ROWS):
        block = sp.csr_matrix(values[start : start + _ROWS], dtype=np.float64)
        block.eliminate_zeros()
        terms = mixed(block.data.view(np.uint64) ^ keys[block.indices])
        filled = np.flatnonzero(np.diff(block.indptr))
        if len(filled):
            hashes[start + filled] = np.add.reduceat(terms, block.indptr[filled])
        expressed[start : start + _ROWS] = np.diff(block.indptr)
    return hashes, expressed
