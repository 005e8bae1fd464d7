r"""Some cells of every side on two principal components of observed and control cells, and by UMAP where asked.

The components v_1, v_2 are the first right singular vectors of the centred matrix of the drawn observed and control
cells [cells, genes]; a predicted cell x is placed at (x - mean) v by the same mean and vectors. The share of variance
is s_i^2 / sum over genes of the centred squares. Signs are fixed: the largest entry of a component is positive.

UMAP (McInnes et al. 2018, arXiv:1802.03426) places fewer cells, all sides together, by their neighbours on the first
principal components of them all: cells that were placed afterwards among real ones would lie among them, however wrong
they are.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, svds

from perturbdiff.evaluation.pairs import File, Pairs, Rows
from perturbdiff.metrics.conditions import LABELS, Condition
from perturbdiff.metrics.distances import Vector
from perturbdiff.results.parts import Projection

CELLS_OF_CONDITION, CELLS = 300, 20_000
"""So many cells of a condition, and in all, at most."""

_NOTHING = 1e-12
"""Variance that is this share of the squares is rounding."""

COLUMNS = ("side", *LABELS, "pc1", "pc2")
UMAP_COLUMNS = ("umap1", "umap2")

UMAP_CELLS, UMAP_COMPONENTS = 1_000, 50
"""So many cells of a side are placed by UMAP, on so many components, at most."""

_NEIGHBOURS = 30
"""More than one control cell's predictions under several conditions, which are alike and would else be a group of their
own. Fewer cells than twice as many are not placed."""


def project(pairs: Pairs, predicted: Mapping[str, File], *, seed: int, umap: bool = False) -> Projection:
    """Draw cells of every judged condition and side, and place them."""
    sides = _sides(pairs, predicted)
    places = sum(len(rows) for _, rows in sides.values())
    most = min(CELLS_OF_CONDITION, max(1, CELLS // places))
    drawn = {}
    for i, (side, (file, rows_of)) in enumerate(sides.items()):
        rng = np.random.default_rng([seed, 4, i])
        rows = {condition: np.sort(rng.permutation(rows)[:most]) for condition, rows in rows_of.items()}
        labels = pd.DataFrame([condition for condition, own in rows.items() for _ in own], columns=list(LABELS))
        drawn[side] = (labels, file.log_expression(pairs.genes, np.concatenate(list(rows.values()))))
    fitted = [drawn[side][1] for side in ("observed", "control")]
    mean, components, shares = _components(_below(fitted), 2)
    tables = []
    for side, (labels, cells) in drawn.items():
        placed = cells @ components.T - mean @ components.T
        tables.append(labels.assign(side=side, pc1=placed[:, 0], pc2=placed[:, 1])[list(COLUMNS)])
    if umap:
        tables = _with_umap(tables, [cells for _, cells in drawn.values()], seed)
    return Projection(pd.concat(tables, ignore_index=True), (float(shares[0]), float(shares[1])))


def _with_umap(tables: list[pd.DataFrame], cells: list["sp.csr_matrix[np.float32]"], seed: int) -> list[pd.DataFrame]:
    """The table of each side with `UMAP_COLUMNS`."""
    # at random: every n-th cell might be the same few control cells' predictions under all conditions
    rng = np.random.default_rng([seed, 5])
    shown = [np.sort(rng.permutation(len(table))[:UMAP_CELLS]) for table in tables]
    placed = _by_umap(_below([own[rows] for own, rows in zip(cells, shown, strict=True)]), seed)
    of_side = np.split(placed, np.cumsum([len(rows) for rows in shown])[:-1])
    return [
        table.join(pd.DataFrame(places, index=rows, columns=list(UMAP_COLUMNS)))
        for table, rows, places in zip(tables, shown, of_side, strict=True)
    ]


def _by_umap(cells: "sp.csr_matrix[np.float32]", seed: int) -> NDArray[Any]:
    """The places of cells [cells, 2]; NaN where they are too few."""
    if cells.shape[0] < 2 * _NEIGHBOURS:
        return np.full((cells.shape[0], 2), np.nan)
    from umap import UMAP  # compiles itself, which takes longer than all else here

    mean, components, _ = _components(cells, min(UMAP_COMPONENTS, *(size - 1 for size in cells.shape)))
    scores = np.asarray(cells @ components.T - mean @ components.T, dtype=np.float32)
    # a seed needs one job; a start from the components always exists, a spectral one fails where groups lie apart
    made: Any = UMAP(n_neighbors=_NEIGHBOURS, init="pca", random_state=seed, n_jobs=1).fit_transform(scores)
    return np.asarray(made, dtype=np.float64)


def _sides(pairs: Pairs, predicted: Mapping[str, File]) -> dict[str, tuple[File, dict[Condition, Rows]]]:
    """The file of each side, and its rows of each condition."""
    control = {Condition(str(pairs.controls.control), *one): pairs.control_rows(one) for one in pairs.contexts}
    return {
        "observed": (pairs.observed, pairs.observed_rows),
        "control": (pairs.controls, control),
        **{name: (file, pairs.rows_of(file)) for name, file in predicted.items()},
    }


def _below(parts: list["sp.csr_matrix[np.float32]"]) -> "sp.csr_matrix[np.float32]":
    together: sp.csr_matrix[np.float32] = sp.vstack(parts, format="csr")
    return together


def _components(cells: "sp.csr_matrix[np.float32]", k: int) -> tuple[Vector, Vector, Vector]:
    """The mean [genes], k components [k, genes] and their shares of variance [k]; 0 for one that is not there."""
    matrix: Any = cells.astype(np.float64)
    mean = np.asarray(matrix.mean(axis=0)).ravel()
    n_cells, n_genes = matrix.shape
    squares = float(matrix.multiply(matrix).sum())
    total = squares - n_cells * float(mean @ mean)
    components, shares = np.zeros((k, n_genes)), np.zeros(k)
    if total <= _NOTHING * squares:
        return mean, components, shares
    if min(n_cells, n_genes) <= k + 1:
        _, singular, vectors = np.linalg.svd(matrix.toarray() - mean, full_matrices=False)
    else:
        _, singular, vectors = svds(
            _centred(matrix, mean), k=k, v0=np.random.default_rng(0).normal(size=min(n_cells, n_genes))
        )
    for i, place in enumerate(np.argsort(-singular)[:k]):
        vector = vectors[place]
        components[i] = vector * np.sign(vector[np.argmax(np.abs(vector))])
        shares[i] = singular[place] ** 2 / total
    return mean, components, shares


def _centred(matrix: Any, mean: Vector) -> Any:  # noqa: ANN401 - scipy's sparse matrices and operators
    """The centred matrix as an operator: nothing dense is made."""

    def forth(v: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(matrix @ v - mean @ v)

    def back(u: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(matrix.T @ u - mean * u.sum())

    return LinearOperator(matrix.shape, matvec=forth, rmatvec=back, dtype=np.float64)
