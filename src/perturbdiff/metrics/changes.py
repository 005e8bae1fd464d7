r"""How well a predicted change of the mean is the observed one; all vectors are over genes, log1p counts per 10^4.

With x, y, c the means of predicted, observed and control cells, and M the mean of the observed means of all
perturbations of the context (their centroid),

    Pearson of change          corr(x - c, y - c): high for the response that all perturbations share
    Pearson from the centroid  corr(x - M, y - M): what is particular to this perturbation; 0 for "the mean for all"
    MAE                        mean |x - y|
    weighted MSE               sum_g w_g (x_g - y_g)^2
    weighted R^2 of the change 1 - sum_g w_g (x_g - y_g)^2 / sum_g w_g (d_g - sum_h w_h d_h)^2, d = y - c

The weights say how much a gene is differentially expressed (Mejia et al., Diversity by Design, 2025, arXiv 2506.22641):
the absolute t statistics of the observed cells, moved and scaled to [0, 1], squared, and divided by their sum. Theirs
compare a perturbation with all others; ours (Welch's) with the control cells, and the change is from control too, so
that one perturbation is enough; what all perturbations share is the centroid's affair.
"""

import numpy as np

from perturbdiff.metrics.distances import Vector


def correlation(predicted: Vector, observed: Vector, origin: Vector) -> float:
    """The correlation over genes of two means' changes from `origin`; NaN where either change is constant."""
    change, truth = predicted - origin, observed - origin
    change, truth = change - change.mean(), truth - truth.mean()
    length = float(np.linalg.norm(change) * np.linalg.norm(truth))
    return float(change @ truth) / length if length > 0 else float("nan")


def absolute_error(predicted: Vector, observed: Vector) -> float:
    """The mean over genes of |x - y|."""
    return float(np.abs(predicted - observed).mean())


def weighted_error(predicted: Vector, observed: Vector, weights: Vector) -> float:
    """The weighted mean of squared errors; NaN without weights."""
    return float(weights @ (predicted - observed) ** 2)


def weighted_r2(predicted: Vector, observed: Vector, control: Vector, weights: Vector) -> float:
    """1 - weighted error / weighted variance of the observed change, at most 1; NaN where the change is constant."""
    change = observed - control
    variance = float(weights @ (change - weights @ change) ** 2)
    return 1.0 - weighted_error(predicted, observed, weights) / variance if variance > 0 else float("nan")


def expression_weights(statistic: Vector) -> Vector:
    """Weights that sum to 1 from the t statistics of genes; NaN for all where they are not finite or all alike."""
    size = np.abs(statistic)
    span = size.max() - size.min()
    if not span > 0:
        return np.full(size.shape, np.nan)
    scaled: Vector = ((size - size.min()) / span) ** 2
    return scaled / scaled.sum()


def welch(mean: Vector, error: Vector, other_mean: Vector, other_error: Vector) -> Vector:
    """Welch's t of each gene from two means and their squared standard errors; 0 where neither side varies."""
    error = error + other_error
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(error == 0, 0.0, (mean - other_mean) / np.sqrt(error))
