r"""What is measured of one condition: predicted cells X against observed cells Y, both log1p counts per 10^4.

The formulas stand where they are computed: `distances` (energy distance, MMD), `changes` (of the mean), `spread`
(within and between conditions), `differential_expression`. C are the control cells of the condition's cell type, the
same for both sides. What is undefined is NaN; nothing is replaced by a number.

The genes that a perturbation's label names are left out, see `scores`: that a knocked-out gene falls is known before
anything is predicted, and must not carry a score.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from perturbdiff.metrics import distances
from perturbdiff.metrics.changes import (
    absolute_error,
    correlation,
    expression_weights,
    weighted_error,
    weighted_r2,
    welch,
)
from perturbdiff.metrics.differential_expression import RankSum, Sorted, agreement, rank_sum
from perturbdiff.metrics.distances import Closeness, Matrix, Vector, energy_distance, mmd
from perturbdiff.metrics.spread import spread_ratio, variance_ratio, zeros_error

type Places = NDArray[np.int64]


@dataclass(frozen=True)
class Metric:
    """One row of the tables' legend: which direction is better, the unit or meaning in words, and the range."""

    name: str
    better: Literal["lower", "higher", "near 1", "near observed", "none"]
    meaning: str
    range: str = ""


METRICS = (
    Metric(
        "energy_distance",
        "lower",
        "E|X-Y| - E|X-X'|/2 - E|Y-Y'|/2 over all shared genes, unbiased (may be negative)",
        "about 0 for a perfect prediction, no upper end; grows with the number of genes",
    ),
    Metric(
        "pearson_from_centroid",
        "higher",
        "correlation over genes of predicted and observed mean, both from the mean of all perturbed conditions",
        "-1 to 1; about 0 for one response for all",
    ),
    Metric(
        "pearson_of_change",
        "higher",
        "correlation over genes of the predicted and the observed change of the mean",
        "-1 to 1; high for the response that perturbations share",
    ),
    Metric("mmd", "lower", "MMD^2 of Gaussian kernels, unbiased (may be negative)", "about 0 to 2"),
    Metric(
        "mae",
        "lower",
        "mean over genes of |mean(predicted) - mean(observed)|, log1p counts per 10^4",
        "0 for a perfect prediction, no upper end",
    ),
    Metric(
        "weighted_mse",
        "lower",
        "squared error of the mean, genes weighted by their observed t statistic",
        "0 for a perfect prediction, no upper end",
    ),
    Metric(
        "weighted_r2",
        "higher",
        "share of the weighted variance over genes of the observed change that is predicted",
        "1 for a perfect prediction, no lower end",
    ),
    Metric(
        "spread_ratio",
        "near 1",
        "mean over genes of sd(predicted), over the mean over genes of sd(observed)",
        "0 (no spread) upwards",
    ),
    Metric(
        "variance_ratio",
        "near 1",
        "median over genes of the predicted over the observed variance, genes constant in both left out",
        "0 (no spread) upwards",
    ),
    Metric("zeros_error", "lower", "mean over genes of the difference of the shares of zeros", "0 to 1"),
    Metric("zeros_predicted", "near observed", "share of zeros among the predicted values", "0 to 1"),
    Metric("zeros_observed", "none", "share of zeros among the observed values", "0 to 1"),
    Metric(
        "de_auroc",
        "higher",
        "AUROC of the predicted -log10 p for the observed differentially expressed genes",
        "0 to 1; 0.5 is chance",
    ),
    Metric(
        "de_overlap",
        "higher",
        "share of the k observed differentially expressed genes in the predicted top k",
        "0 to 1; k over the number of genes is chance",
    ),
    Metric(
        "de_share_predicted",
        "near observed",
        "share of genes differentially expressed in the predicted cells",
        "0 to 1",
    ),
    Metric("de_share_observed", "none", "share of genes differentially expressed in observed cells", "0 to 1"),
)
"""Every metric of a condition, in the order of the tables."""

CONTEXT_METRICS = (
    Metric(
        "spread_between",
        "near 1",
        "spread of the predicted condition means of a cell type over that of the observed ones, without their noise",
        "0 (one response for all) upwards",
    ),
)
"""Metrics of a whole context, the conditions of one cell type."""

OF_ALL_GENES = ("energy_distance", "pearson_from_centroid", "pearson_of_change", "mae")
"""The metrics that are also computed with the genes that a perturbation's label names, to see what these carry."""

_MOMENTS = ("mean", "standard_deviation", "squared_error", "zeros")


@dataclass(frozen=True)
class Population:
    """Cells of one condition, with what comparisons need of them, computed once.

    Attributes:
        cells: log1p counts per 10^4 [n, genes].
        origins: the number of the control cell that each was made of [n]; None where that is not known, or of none.
    """

    cells: Matrix
    origins: Places | None = None

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
    def squared_error(self) -> Vector:
        """The squared standard error of each gene's mean; NaN for fewer than two cells."""
        error: Vector = self.standard_deviation**2 / self.cells.shape[0]
        return error

    @cached_property
    def zeros(self) -> Vector:
        """Each gene's share of values that are exactly zero, in [0, 1]."""
        return np.asarray(1.0 - np.count_nonzero(self.cells, axis=0) / self.cells.shape[0], dtype=np.float64)

    @cached_property
    def total(self) -> float:
        """The mean over cells of the counts per 10^4, summed over genes: 10^4 where no gene of the cells is missing."""
        with np.errstate(over="ignore"):
            return float(np.expm1(self.cells.astype(np.float64)).sum() / self.cells.shape[0])

    @cached_property
    def sorted(self) -> Sorted:
        """The values of each gene in their order, for tests of ranks."""
        return Sorted.of(self.cells)

    def moved(self, change: Vector) -> "Population":
        """The same cells, whose mean is said to be elsewhere by a change [genes]: for cells of another level."""
        elsewhere = Population(self.cells, self.origins)
        vars(elsewhere)["mean"] = self.mean + change
        return elsewhere

    def without(self, genes: Places) -> "Population":
        """The same cells without some genes, given as their places."""
        if not genes.size:
            return self
        left = Population(np.delete(self.cells, genes, axis=1), self.origins)
        for name in _MOMENTS:  # what is known gene by gene is not computed again
            if name in vars(self):
                vars(left)[name] = np.delete(vars(self)[name], genes)
        return left


@dataclass(frozen=True)
class Reference:
    """The observed cells and the control cells of one condition, against which any number of predictions is judged.

    Attributes:
        centroid: the mean [genes] of the observed means of all perturbations of the context; None for fewer than two.
        known_test: the observed cells tested against the control cells, where that was done before.
    """

    observed: Population
    control: Population
    centroid: Vector | None = None
    known_test: RankSum | None = None

    @cached_property
    def test(self) -> RankSum:
        """The observed cells tested against the control cells."""
        return self.known_test or rank_sum(self.observed.sorted, self.control.sorted)

    @cached_property
    def weights(self) -> Vector:
        """How much each gene is differentially expressed; they sum to 1."""
        observed, control = self.observed, self.control
        return expression_weights(welch(observed.mean, observed.squared_error, control.mean, control.squared_error))

    @cached_property
    def bandwidth(self) -> float:
        """The median squared distance of two observed cells."""
        return distances.bandwidth(self.observed.cells)

    @cached_property
    def within(self) -> Closeness:
        """The closeness of the observed cells to each other."""
        return distances.within(self.observed.cells, self.bandwidth)

    def against(self, observed: Population) -> "Reference":
        """The same with other observed cells."""
        return Reference(observed, self.control, self.centroid)

    def without(self, genes: Places) -> "Reference":
        """The same without some genes, given as their places; the test is the one of all genes, cut."""
        if not genes.size:
            return self
        centroid = None if self.centroid is None else np.delete(self.centroid, genes)
        test = self.test.without(genes)
        return Reference(self.observed.without(genes), self.control.without(genes), centroid, test)


def judge(predicted: Population, reference: Reference, *, test: RankSum | None = None) -> dict[str, float]:
    """All of `METRICS` for one prediction of one condition; NaN where a metric is undefined.

    Args:
        predicted: the cells.
        reference: what they are judged against.
        test: the predicted cells tested against the control cells, where that was done before.
    """
    observed, control, weights = reference.observed, reference.control, reference.weights
    values = {
        **_distances(predicted, reference),
        **_changes(predicted, reference),
        "weighted_mse": weighted_error(predicted.mean, observed.mean, weights),
        "weighted_r2": weighted_r2(predicted.mean, observed.mean, control.mean, weights),
        "spread_ratio": spread_ratio(predicted.standard_deviation, observed.standard_deviation),
        "variance_ratio": variance_ratio(predicted.standard_deviation, observed.standard_deviation),
        "zeros_error": zeros_error(predicted.zeros, observed.zeros),
        "zeros_predicted": float(predicted.zeros.mean()),
        "zeros_observed": float(observed.zeros.mean()),
        **agreement(test or rank_sum(predicted.sorted, control.sorted), reference.test),
    }
    return {metric.name: values[metric.name] for metric in METRICS}


def judge_all_genes(predicted: Population, reference: Reference) -> dict[str, float]:
    """`OF_ALL_GENES` of cells and a reference that still have the genes which the perturbation's label names."""
    values = {**_distances(predicted, reference), **_changes(predicted, reference)}
    return {name: values[name] for name in OF_ALL_GENES}


def _distances(predicted: Population, reference: Reference) -> dict[str, float]:
    width = reference.bandwidth
    between = distances.between(predicted.cells, reference.observed.cells, width)
    closeness = between, distances.within(predicted.cells, width, predicted.origins), reference.within
    return {"energy_distance": energy_distance(*closeness), "mmd": mmd(*closeness)}


def _changes(predicted: Population, reference: Reference) -> dict[str, float]:
    observed, control, centroid = reference.observed, reference.control, reference.centroid
    return {
        "pearson_from_centroid": (
            float("nan") if centroid is None else correlation(predicted.mean, observed.mean, centroid)
        ),
        "pearson_of_change": correlation(predicted.mean, observed.mean, control.mean),
        "mae": absolute_error(predicted.mean, observed.mean),
    }
