r"""How much cells vary within a condition, and conditions between each other.

    spread ratio      mean over genes of sd(X), over the mean over genes of sd(Y), sd with n - 1
    variance ratio    median over genes of var(X) / var(Y)
    error of zeros    mean over genes of |share of zeros of X - share of zeros of Y|

Both ratios are of the genes that vary on either side: one that is constant in X and in Y says nothing of a spread and
doesn't count. One that varies on one side alone counts on that side: to the first ratio it adds its sd there, to the
second infinity where it varies in X and 0 where it varies in Y. So either ratio turns into its inverse where X and Y
change places, and half of some cells against the other half is at 1, also on a panel of genes that few cells express:
such a gene is in one half or in the other by chance, and a mean of sd(X) / sd(Y) over the genes that vary in Y would
see only those that the first half lost.

Between the perturbations of a context, with x_c the mean of condition c [genes] and v_c the noise of that mean, the
summed variance of its cells over their number,

    B = sum over genes of var_c(x_c) - mean_c(v_c),    spread between = sqrt(max(B(predicted), 0) / B(observed)).

B is unbiased for the spread of the true means. Who predicts one response for all perturbations has 0, whatever the
noise of the cells.
"""

from dataclasses import dataclass

import numpy as np

from perturbdiff.metrics.distances import Vector


def spread_ratio(predicted: Vector, observed: Vector) -> float:
    """Mean sd [genes] over mean sd [genes], from 0; NaN where no gene varies in `observed`."""
    total = float(observed.sum())
    return float(predicted.sum()) / total if total > 0 else float("nan")


def variance_ratio(predicted: Vector, observed: Vector) -> float:
    """Median over genes of the squared ratio of sd [genes], from 0, genes constant on both sides left out.

    NaN where no gene varies, or most of those that do vary in `predicted` alone: the median is infinite then.
    """
    varies = (predicted > 0) | (observed > 0)
    if not varies.any():
        return float("nan")
    with np.errstate(divide="ignore"):
        median = float(np.median((predicted[varies] / observed[varies]) ** 2))
    return median if np.isfinite(median) else float("nan")


def zeros_error(predicted: Vector, observed: Vector) -> float:
    """Mean over genes of the difference of two shares of zeros [genes], in [0, 1]."""
    return float(np.abs(predicted - observed).mean())


@dataclass
class Between:
    """The spread B of condition means, gathered one condition after the other; nothing is kept of the conditions.

    Attributes:
        origin: subtracted from every mean for the sake of precision [genes].
    """

    origin: Vector

    def __post_init__(self) -> None:
        self.total = np.zeros_like(self.origin)
        self.squares, self.noise, self.conditions = 0.0, 0.0, 0

    def add(self, mean: Vector, noise: float) -> None:
        """One more condition: its mean [genes], and the summed squared standard error of that mean."""
        change = mean - self.origin
        self.total += change
        self.squares += float(change @ change)
        self.noise += noise
        self.conditions += 1

    @property
    def spread(self) -> float:
        """B, the summed variance of the true means; NaN for fewer than two conditions."""
        if self.conditions < 2:
            return float("nan")
        about_mean = self.squares - float(self.total @ self.total) / self.conditions
        return about_mean / (self.conditions - 1) - self.noise / self.conditions


def between_ratio(predicted: Between, observed: Between) -> float:
    """sqrt(max(B(predicted), 0) / B(observed)); NaN where the observed conditions do not differ beyond their noise."""
    truth = observed.spread
    return float(np.sqrt(max(predicted.spread, 0.0) / truth)) if truth > 0 else float("nan")
