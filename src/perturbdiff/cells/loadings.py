"""Features of genes from expression alone: their loadings on the principal components of control cells.

With z [n, genes] the log1p expression of n cells, standardised gene by gene over these cells, and z = U S V^T, the row
of gene g is V_g S / sqrt(n). The score of a cell on component k is U_k S_k; it has mean 0 and standard deviation
S_k / sqrt(n) over the cells, so the row is made of the correlations of gene g with the components' scores. Genes of
near rows go up and down together from cell to cell. With as many components as there can be, the products of rows are
the correlations of genes, and every row has length 1.

z is not sparse, but the expression is, and z v = X (v / s) - 1 (m / s)^T v for expression X, means m and standard
deviations s: the largest components follow from such products, and z is never made. Genes are taken in the order of
their names and cells in the canonical order, so the features do not depend on the order of either in the files.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.sparse.linalg import LinearOperator, svds

from perturbdiff.cells.order import Segments
from perturbdiff.cells.source import Source
from perturbdiff.features.tables import FeatureTable, features_from

if TYPE_CHECKING:
    import scipy.sparse as sp

_FEWEST = 3
"""Cells, and genes that vary, that at least one component needs."""

_NOTHING = 1e-6
"""A component this much smaller than the first is rounding."""

_TIED = 1 - 1e-6
"""Loadings that are this near to the largest are as large: the first gene of them settles the sign."""

type Numbers = npt.NDArray[np.float64]


def expression_loadings(
    source: Source, segments: Segments, *, components: int = 32, at_most: int = 4096
) -> FeatureTable:
    """The loadings of the genes that vary in the cells of these segments, between -1 and 1; see the module.

    Args:
        source: of the cells.
        segments: the segments; control cells of the training part, where features are to say nothing of the rest.
        components: so many features; fewer where cells or genes do not suffice.
        at_most: of more cells, about so many are read, an even share of every segment.

    Raises:
        ValueError: there are fewer than 3 cells, or fewer than 3 genes vary in them; `components` is below 1.
    """
    if components < 1:
        raise ValueError(f"components = {components} is below 1, and a gene needs a feature; give at least 1.")
    some = segments.thinned(at_most)
    positions = some.positions()
    if len(positions) < _FEWEST:
        raise ValueError(
            f"{len(positions)} cells have no components, which take at least {_FEWEST} cells; give more control cells."
        )
    genes = sorted(str(gene) for gene in source.genes)
    expression = source.reader(genes, some).load(positions).rows(positions).tocsc()
    expression.eliminate_zeros()
    varying = np.flatnonzero(_varies(expression))
    if len(varying) < _FEWEST:
        raise ValueError(
            f"{len(varying)} of {len(genes)} genes vary in {len(positions)} cells, and components take at least "
            f"{_FEWEST}; give other cells, or more genes."
        )
    loadings = _loadings(expression[:, varying].astype(np.float64), components)
    return features_from([genes[i] for i in varying], loadings, f"expression loadings over {len(positions)} cells")


def _varies(expression: "sp.csc_matrix[np.float32]") -> npt.NDArray[np.bool_]:
    """Which genes' values are not all equal; exact, unlike a variance."""
    lowest, highest = (extreme(axis=0).toarray().ravel() for extreme in (expression.min, expression.max))
    return np.asarray(lowest < highest)


def _loadings(expression: "sp.csc_matrix[np.float64]", components: int) -> Numbers:
    """The loadings [genes, components] of expression [n, genes], of which every gene varies."""
    n_cells, n_genes = expression.shape
    standardised = _standardised(expression)
    smaller = min(n_cells, n_genes)
    # any fixed start but the vector of ones, which centring sends to 0
    start = np.random.default_rng(0).standard_normal(smaller)
    _, s, vt = svds(standardised, k=min(components, smaller - 1), v0=start)
    largest_first = np.argsort(-s, kind="stable")
    s, v = s[largest_first], vt[largest_first].T
    kept = s > _NOTHING * s[0]
    loadings: Numbers = v[:, kept] * s[kept] / np.sqrt(n_cells)
    return loadings * _signs(loadings)


def _signs(loadings: Numbers) -> Numbers:
    """1 or -1 for each component, with which its largest loading is positive."""
    size = np.abs(loadings)
    largest = np.argmax(size >= _TIED * size.max(axis=0), axis=0)
    return np.sign(loadings[largest, np.arange(loadings.shape[1])])


def _standardised(expression: "sp.csc_matrix[np.float64]") -> LinearOperator:
    """Products with z, and with its transpose, for cells by genes in float64."""
    n_cells = expression.shape[0]
    # a gene that varies has values that are not 0, in the order of the cells
    starts, stored = expression.indptr[:-1], np.diff(expression.indptr)
    mean = np.add.reduceat(expression.data, starts) / n_cells
    squares = np.add.reduceat((expression.data - np.repeat(mean, stored)) ** 2, starts)
    # values that are not stored are 0, which is `mean` away from the mean
    scale = np.sqrt((squares + (n_cells - stored) * mean**2) / n_cells)
    rows, columns = expression.tocsr(), expression.T

    def times(v: Any) -> Numbers:  # noqa: ANN401 - [genes] or [genes, k]
        weights = (v.T / scale).T
        return np.asarray(rows @ weights - mean @ weights)

    def transposed(u: Any) -> Numbers:  # noqa: ANN401 - [cells] or [cells, k]
        sums = np.multiply.outer(mean, u.sum(axis=0))
        return np.asarray(((columns @ u - sums).T / scale).T)

    return LinearOperator(
        dtype=np.float64, shape=expression.shape, matvec=times, rmatvec=transposed, matmat=times, rmatmat=transposed
    )
