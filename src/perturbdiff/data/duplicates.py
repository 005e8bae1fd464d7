"""Duplicates in disguise: cells with the same profile, labels that differ in spelling only."""

import re

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from perturbdiff.data.cells import Cells

_ROWS = 4096
_KEPT = re.compile(r"(?<=\d)[\W_](?=\d)|\+")
_DROPPED = re.compile(r"[\W_]")

type Hashes = npt.NDArray[np.uint64]


def spelling(label: str) -> str:
    """A label without case, spaces and punctuation, but with what tells labels apart: signs + and numbers' points."""
    label = label.casefold()
    kept = {match.start() for match in _KEPT.finditer(label)}
    return "".join(c for i, c in enumerate(label) if i in kept or not _DROPPED.match(c))


def profile_hashes(cells: Cells) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """A 64-bit hash of every cell's values [n], equal for equal rows, and its number of expressed genes [n].

    The hash is a sum over expressed genes of a mixed (gene, value), so it needs no sorting and one pass in chunks.
    """
    keys = _mixed(np.arange(1, len(cells.genes) + 1, dtype=np.uint64))
    hashes = np.zeros(cells.n_cells, dtype=np.uint64)
    expressed = np.zeros(cells.n_cells, dtype=np.int64)
    for start in range(0, cells.n_cells, _ROWS):
        block = sp.csr_matrix(cells.values[start : start + _ROWS], dtype=np.float64)
        block.eliminate_zeros()
        mixed = _mixed(block.data.view(np.uint64) ^ keys[block.indices])
        filled = np.flatnonzero(np.diff(block.indptr))
        if len(filled):
            hashes[start + filled] = np.add.reduceat(mixed, block.indptr[filled])
        expressed[start : start + _ROWS] = np.diff(block.indptr)
    return hashes, expressed


def _mixed(x: Hashes) -> Hashes:
    """The finalizer of splitmix64, a bijection of 64-bit words in which every bit depends on every other."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Hashes = x ^ (x >> np.uint64(31))
    return mixed
