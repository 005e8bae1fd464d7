r"""How sure a mean over conditions is, and where it stands between a baseline and the ceiling.

The conditions of one perturbation stand or fall together, so perturbations are what is drawn (a cluster bootstrap):
with S_p the sum of a metric over the conditions of perturbation p where it is defined, N_p their number, and W_p how
often p is among as many perturbations drawn with replacement,

    mean of a draw = sum_p W_p S_p / sum_p W_p N_p;    the 95 % interval is from the 2.5th to the 97.5th percentile.

Where there is one perturbation only, cell types are drawn; where there is one of both, there is no interval (NaN).
Intervals are over conditions: they say nothing of another training or another split, and few perturbations make them
too narrow.

    scaled = (value - baseline) / (ceiling - baseline),     0 is the baseline, 1 the ceiling,

over the conditions where all three are defined, by the same draws. It is NaN where the metric does not tell the ceiling
from the baseline: where the interval of their difference holds 0, lies on the wrong side of it, or is not known. A
metric that is best at 1 is scaled by its distance from 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perturbdiff.evaluation.distances import Vector

RESAMPLES = 1000
"""How many draws of perturbations."""

LEVEL = 0.95
"""The share of draws that lie within an interval."""

SCALABLE = ("lower", "higher", "near 1")
"""The kinds of metrics that have a best value, of which a scaled score can be made."""

type Draws = NDArray[np.float64]


@dataclass(frozen=True)
class Resampling:
    """How often each condition is in each draw.

    Attributes:
        weights: [draws, conditions].
        clusters: how many perturbations, or cell types, were drawn from.
    """

    weights: Draws
    clusters: int

    @classmethod
    def of(cls, conditions: pd.DataFrame, *, resamples: int, seed: int) -> "Resampling":
        """Draw the perturbations of conditions (perturbation, cell_type), or their cell types."""
        for column in ("perturbation", "cell_type"):
            codes, labels = pd.factorize(conditions[column])
            if len(labels) > 1:
                break
        n = len(labels)
        drawn = np.random.default_rng([seed, 3]).multinomial(n, np.full(n, 1 / n), size=resamples)
        return cls(drawn[:, codes].astype(np.float64), n)

    def means(self, values: Draws) -> Draws:
        """The mean of each draw [draws, columns] of values [conditions, columns], NaN left out; NaN where all are."""
        defined = np.isfinite(values)
        counts = self.weights @ defined
        sums = self.weights @ np.where(defined, values, 0.0)
        return np.where(counts > 0, sums / np.maximum(counts, 1.0), np.nan)

    def interval(self, draws: Draws) -> tuple[Vector, Vector]:
        """The percentiles of the draws of each column; NaN for one cluster, or where nothing is defined."""
        edges = np.full((2, draws.shape[1]), np.nan)
        if self.clusters > 1:
            for column in range(draws.shape[1]):
                known = draws[np.isfinite(draws[:, column]), column]
                if known.size:
                    edges[:, column] = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return edges[0], edges[1]


@dataclass(frozen=True)
class Scale:
    """What a scaled score refers to.

    Attributes:
        baseline: the method that is 0.
        ceiling: the method that is 1.
        better: of each metric, "lower", "higher", "near 1" or another word.
    """

    baseline: str
    ceiling: str
    better: Mapping[str, str]


def summarise(
    table: pd.DataFrame, scale: Scale, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Means over the conditions of one suite, with their intervals, and what each metric can tell.

    Args:
        table: method, perturbation, cell_type, metric, value.
        scale: what scaled scores refer to.
        resamples: draws of perturbations.
        seed: of the draws.

    Returns:
        method, metric, value, low, high, conditions, undefined, scaled, scaled_low, scaled_high; and for each metric
        its dynamic range: metric, baseline, ceiling, difference, low, high, apart (whether the ceiling is better beyond
        the interval).
    """
    rows: list[tuple[object, ...]] = []
    ranges: list[tuple[object, ...]] = []
    for metric, own in table.groupby("metric", sort=False):
        found, span = _metric(str(metric), own, scale, resamples, seed)
        rows += found
        ranges += span
    names = ["value", "low", "high", "conditions", "undefined", "scaled", "scaled_low", "scaled_high"]
    overall = pd.DataFrame(rows, columns=["method", "metric", *names])
    order = {method: place for place, method in enumerate(dict.fromkeys(table["method"]))}
    overall = overall.sort_values("method", key=lambda column: column.map(order), kind="stable", ignore_index=True)
    return overall, pd.DataFrame(
        ranges, columns=["metric", "baseline", "ceiling", "difference", "low", "high", "apart"]
    )


def _metric(
    metric: str, own: pd.DataFrame, scale: Scale, resamples: int, seed: int
) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
    """The rows of one metric: of every method, and of its dynamic range."""
    conditions, methods, values = _matrix(own)
    resampling = Resampling.of(conditions, resamples=resamples, seed=seed)
    low, high = resampling.interval(resampling.means(values))
    counts = own.groupby("method", sort=False)["value"].agg(["size", "count", "mean"]).loc[methods]
    scaled, span = _scaled(metric, values, methods, scale, resampling)
    rows = [
        (methods[i], metric, mean, low[i], high[i], size, size - count, *scaled[i])
        for i, (size, count, mean) in enumerate(counts.itertuples(index=False, name=None))
    ]
    return rows, [] if span is None else [(metric, *span)]


def _scaled(
    metric: str, values: Draws, methods: Sequence[str], scale: Scale, resampling: Resampling
) -> tuple[Draws, tuple[float | bool, ...] | None]:
    """The scaled score of each method with its interval [methods, 3], and the dynamic range."""
    unknown = np.full((len(methods), 3), np.nan)
    better = scale.better.get(metric, "none")
    if better not in SCALABLE or scale.baseline not in methods or scale.ceiling not in methods:
        return unknown, None
    if better == "near 1":
        values = np.abs(values - 1.0)
    base, top = (values[:, methods.index(name)] for name in (scale.baseline, scale.ceiling))
    known = np.isfinite(base) & np.isfinite(top)
    if not known.any():
        return unknown, None
    ends = np.where(known[:, None], np.stack([base, top], axis=1), np.nan)
    draws = resampling.means(ends)
    low, high = (float(edge[0]) for edge in resampling.interval(draws[:, [1]] - draws[:, [0]]))
    lowest, highest = ends[known].mean(axis=0).tolist()
    apart = low > 0 if better == "higher" else high < 0
    span = (lowest, highest, highest - lowest, low, high, apart)
    if not apart:
        return unknown, span
    for i in range(len(methods)):
        common = known & np.isfinite(values[:, i])
        if common.any():
            three = np.where(common[:, None], np.stack([values[:, i], base, top], axis=1), np.nan)
            of_draws, mean = resampling.means(three), three[common].mean(axis=0)
            with np.errstate(divide="ignore", invalid="ignore"):
                ratios = (of_draws[:, [0]] - of_draws[:, [1]]) / (of_draws[:, [2]] - of_draws[:, [1]])
                unknown[i, 0] = (mean[0] - mean[1]) / (mean[2] - mean[1])
            unknown[i, 1:] = [float(edge[0]) for edge in resampling.interval(ratios)]
    return unknown, span


def gains(
    table: pd.DataFrame, metric: str, method: str, baseline: str, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """How far a method's mean is above a baseline's, where both are defined: the difference and its interval."""
    own = table[(table["metric"] == metric) & table["method"].isin([method, baseline])]
    conditions, methods, values = _matrix(own)
    if not {method, baseline} <= set(methods):
        return (float("nan"),) * 3
    difference = values[:, methods.index(method)] - values[:, methods.index(baseline)]
    known = np.isfinite(difference)
    if not known.any():
        return (float("nan"),) * 3
    resampling = Resampling.of(conditions[known], resamples=resamples, seed=seed)
    low, high = resampling.interval(resampling.means(difference[known, None]))
    return float(difference[known].mean()), float(low[0]), float(high[0])


def _matrix(own: pd.DataFrame) -> tuple[pd.DataFrame, list[str], Draws]:
    """The conditions of one metric, sorted, the methods in their order, and the values [conditions, methods]."""
    keys = ["perturbation", "cell_type"]
    conditions = own[keys].drop_duplicates().sort_values(keys, ignore_index=True)
    methods = list(dict.fromkeys(own["method"]))
    values = np.full((len(conditions), len(methods)), np.nan)
    rows = pd.MultiIndex.from_frame(conditions).get_indexer(pd.MultiIndex.from_frame(own[keys]))
    values[rows, pd.Index(methods).get_indexer(own["method"])] = own["value"]
    return conditions, methods, values
