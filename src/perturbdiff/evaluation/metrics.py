r"""What is measured of one condition: predicted cells X against observed cells Y, both log1p counts per 10^4.

    energy distance      E||X - Y|| - E||X - X'|| / 2 - E||Y - Y'|| / 2   over all shared genes; X', Y' other cells
    Pearson of change    corr over genes of mean(X) - mean(C) and mean(Y) - mean(C), C = the cell type's control cells
    MAE of means         mean over genes of |mean(X) - mean(Y)|
    spread ratio         mean over genes of sd(X) / sd(Y), sd with n - 1; genes with sd(Y) = 0 are left out
    share of zeros       of all values, each side by itself
    differential expression   see `differential_expression`

The energy distance is MMD^2 for the kernel (||x|| + ||y|| - ||x - y||) / 2: half of the statisticians' 2E||X -
Y|| - ..., with no root and no squared norms. It is the unbiased estimate: zero on average between two samples
of one law, so it may be negative, and it needs two cells a side. What is undefined is NaN; nothing is replaced
by a number.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from perturbdiff.evaluation.differential_expression import Matrix, RankSum, Vector, agreement, rank_sum

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Metric:
    """One row of the tables' legend: which direction is better, and the unit or meaning in words."""

    name: str
    better: Literal["lower", "higher", "near 1", "near observed", "none"]
    meaning: str


METRICS = (
    Metric(
        "energy_distance", "lower", "E|X-Y| - E|X-X'|/2 - E|Y-Y'|/2 over all shared genes, unbiased (may be negative)"
    ),
    Metric(
        "pearson_of_change", "higher", "correlation over genes of the predicted and the observed change of the mean"
    ),
    Metric("mae", "lower", "mean over genes of |mean(predicted) - mean(observed)|, log1p counts per 10^4"),
    Metric(
        "spread_ratio", "near 1", "mean over genes of sd(predicted) / sd(observed), genes that vary in the observed"
    ),
    Metric("zeros_predicted", "near observed", "share of zeros among the predicted values"),
    Metric("zeros_observed", "none", "share of zeros among the observed values"),
    Metric("de_auroc", "higher", "AUROC of the predicted -log10 p for the observed differentially expressed genes"),
    Metric("de_overlap", "higher", "share of the k observed differentially expressed genes in the predicted top k"),
    Metric("de_share_predicted", "near observed", "share of genes differentially expressed in the predicted cells"),
    Metric("de_share_observed", "none", "share of genes differentially expressed in the observed cells"),
)
"""Every metric, in the order of the tables."""


@dataclass(frozen=True)
class Population:
    """Cells [n, genes] of one condition, log1p counts per 10^4, with what comparisons need of them, computed once."""

    cells: Matrix

    @cached_property
    def mean(self) -> Vector:
        """Mean of each gene, in float64."""
        return np.asarray(self.cells.mean(axis=0, dtype=np.float64), dtype=np.float64)

    @cached_property
    def standard_deviation(self) -> Vector:
        """Standard deviation (n - 1) of each gene; NaN for fewer than two cells."""
        if self.cells.shape[0] < 2:
            return np.full(self.cells.shape[1], np.nan)
        return np.asarray(self.cells.std(axis=0, ddof=1, dtype=np.float64), dtype=np.float64)

    @cached_property
    def distance_within(self) -> float:
        """E||X - X'|| over pairs of two different cells; NaN for fewer than two cells."""
        return mean_distance_within(self.cells)

    @cached_property
    def share_of_zeros(self) -> float:
        """Share of values that are exactly zero, in [0, 1]."""
        return 1.0 - np.count_nonzero(self.cells) / self.cells.size


@dataclass(frozen=True)
class Reference:
    """The observed cells and the control cells of one condition, against which any number of predictions is judged."""

    observed: Population
    control: Population

    @cached_property
    def test(self) -> RankSum:
        """The observed cells tested against the control cells."""
        return rank_sum(self.observed.cells, self.control.cells)


def judge(predicted: Population, reference: Reference) -> dict[str, float]:
    """All of `METRICS` for one prediction of one condition; NaN where a metric is undefined."""
    observed, control = reference.observed, reference.control
    values = {
        "energy_distance": energy_distance(predicted, observed),
        "pearson_of_change": pearson_of_change(predicted.mean, observed.mean, control.mean),
        "mae": float(np.abs(predicted.mean - observed.mean).mean()),
        "spread_ratio": spread_ratio(predicted.standard_deviation, observed.standard_deviation),
        "zeros_predicted": predicted.share_of_zeros,
        "zeros_observed": observed.share_of_zeros,
        **agreement(rank_sum(predicted.cells, control.cells), reference.test),
    }
    return {metric.name: values[metric.name] for metric in METRICS}


def energy_distance(predicted: Population, observed: Population) -> float:
    """E||X - Y|| - E||X - X'||/2 - E||Y - Y'||/2, unbiased; NaN where either side has fewer than two cells."""
    between = mean_distance_between(predicted.cells, observed.cells)
    return float(between - predicted.distance_within / 2 - observed.distance_within / 2)


def pearson_of_change(predicted: Vector, observed: Vector, control: Vector) -> float:
    """Correlation over genes of two means' changes [genes] from the control's; NaN where either change is constant."""
    change, truth = predicted - control, observed - control
    change, truth = change - change.mean(), truth - truth.mean()
    length = float(np.linalg.norm(change) * np.linalg.norm(truth))
    return float(change @ truth) / length if length > 0 else float("nan")


def spread_ratio(predicted: Vector, observed: Vector) -> float:
    """Mean over genes of sd / sd [genes], genes constant in `observed` left out; NaN where none is left."""
    varies = observed > 0
    return float((predicted[varies] / observed[varies]).mean()) if varies.any() else float("nan")


def mean_distance_between(x: Matrix, y: Matrix) -> float:
    """E||X - Y|| over all pairs of a row of x [n, genes] and a row of y [m, genes]; memory bounded, in float64."""
    centre = (x.mean(axis=0, dtype=np.float64) + y.mean(axis=0, dtype=np.float64)) / 2
    total = 0.0
    for rows in _blocks(x.shape[0]):
        left = x[rows] - centre
        total += sum(float(_distances(left, y[columns] - centre).sum()) for columns in _blocks(y.shape[0]))
    return float(total / (x.shape[0] * y.shape[0]))


def mean_distance_within(x: Matrix) -> float:
    """E||X - X'|| over all pairs of two different rows of x [n, genes]; NaN for fewer than two rows."""
    n_cells = x.shape[0]
    if n_cells < 2:
        return float("nan")
    centre = x.mean(axis=0, dtype=np.float64)
    total = 0.0
    for rows in _blocks(n_cells):
        left = x[rows] - centre
        for columns in _blocks(n_cells):
            if columns.start < rows.start:
                continue
            if columns.start == rows.start:
                block = _distances(left, left)
                np.fill_diagonal(block, 0.0)  # a cell is at distance 0 of itself, whatever the rounding
                total += float(block.sum())
            else:
                total += 2 * float(_distances(left, x[columns] - centre).sum())
    return float(total / (n_cells * (n_cells - 1)))


def _distances(x: Vector, y: Vector) -> Vector:
    """||x_i - y_j|| [n, m] of centred rows, from ||x||^2 + ||y||^2 - 2 x.y, clamped at 0 against rounding."""
    square = x @ y.T
    square *= -2.0
    square += np.einsum("ij,ij->i", x, x)[:, None]
    square += np.einsum("ij,ij->i", y, y)[None, :]
    np.maximum(square, 0.0, out=square)
    distances: Vector = np.sqrt(square, out=square)
    return distances


def _blocks(n_rows: int) -> list[slice]:
    return [slice(start, min(start + _ROWS_AT_ONCE, n_rows)) for start in range(0, n_rows, _ROWS_AT_ONCE)]
