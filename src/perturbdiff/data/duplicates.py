"""Duplicates in disguise: cells with the same profile, labels that differ in spelling only."""

import re
import unicodedata

import numpy as np
import scipy.sparse as sp

from perturbdiff.data.reading import Matrix
from perturbdiff.data.source import Hashes, Integers, mixed

_ROWS = 4096
_KEPT = re.compile(r"(?<=\d)[\W_](?=\d)|\+")
_DROPPED = re.compile(r"[\W_]")


def spelling(label: str) -> str:
    """A label without case, spaces and punctuation, but with what tells labels apart: signs + and numbers' points."""
    label = unicodedata.normalize("NFC", label).casefold()
    kept = {match.start() for match in _KEPT.finditer(label)}
    return "".join(c for i, c in enumerate(label) if i in kept or not _DROPPED.match(c))


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
