r"""How sure a mean over conditions is, and where it stands between a baseline and the ceiling.

A mean is over the assay batches of a (perturbation, cell type) first, then over these:

    value = mean over (p, c) of v_pc,    v_pc = mean over batches b of the metric, where it is defined.

What is drawn with replacement is the unit that is independent (a cluster bootstrap): perturbations, whose conditions
stand or fall together, or assay batches where these are what was held out. With W_u how often unit u is drawn,

    of perturbations  mean of a draw = sum_pc W_p v_pc / sum_pc W_p
    of batches        v_pc of a draw = sum_b W_b v_pcb / sum_b W_b, and their mean over the (p, c) that have one;

the 95 % interval is from the 2.5th to the 97.5th percentile. Where there is one of that unit only, the next of
perturbation, assay batch and cell type is drawn; of fewer than three there is no interval (NaN). Intervals are over
conditions: they say nothing of another training or another split, and few units make them too narrow.

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

from perturbdiff.metrics.conditions import LABELS
from perturbdiff.metrics.distances import Vector

RESAMPLES = 1000
"""How many draws."""

LEAST = 3
"""Fewer units than these have no interval: two of them say nothing of a third."""

LEVEL = 0.95
"""The share of draws that lie within an interval."""

SCALABLE = ("lower", "higher", "near 1")
"""The kinds of metrics that have a best value, of which a scaled score can be made."""

type Draws = NDArray[np.float64]
type Places = NDArray[np.int64]

UNITS = {"perturbation": "perturbations", "assay_batch": "assay batches", "cell_type": "cell types"}
"""What may be drawn, and in words: that which is independent."""


def unit_of(conditions: pd.DataFrame, preferred: str = "perturbation") -> str:
    """What is drawn of some conditions: the preferred unit, or the first of `UNITS` of which there are several."""
    several = (name for name in (preferred, *UNITS) if len(conditions[name].unique()) > 1)
    return next(several, preferred)


@dataclass(frozen=True)
class Resampling:
    """How often each unit is in each draw, and where the conditions belong.

    Attributes:
        weights: of each unit [draws, units].
        unit: of each condition, its place among the units [conditions].
        pair: of each condition, its place among the (perturbation, cell type) [conditions].
        within: whether the units are assay batches, which are drawn within each (perturbation, cell type).
    """

    weights: Draws
    unit: Places
    pair: Places
    within: bool

    @classmethod
    def of(cls, conditions: pd.DataFrame, *, resamples: int, seed: int, unit: str = "perturbation") -> "Resampling":
        """Draw the units of conditions (perturbation, cell_type, assay_batch); see `unit_of`."""
        unit = unit_of(conditions, unit)
        codes, labels = pd.factorize(conditions[unit])
        n = len(labels)
        drawn = np.random.default_rng([seed, 3]).multinomial(n, np.full(n, 1 / n), size=resamples)
        pair = conditions.groupby(list(LABELS[:2]), sort=False).ngroup().to_numpy()
        return cls(drawn.astype(np.float64), codes.astype(np.int64), pair.astype(np.int64), unit == "assay_batch")

    def means(self, values: Draws) -> Draws:
        """The mean of each draw [draws, columns] of values [conditions, columns], NaN left out; NaN where all are."""
        if not self.within:
            weights = np.zeros((len(self.weights), self._n_pairs))
            weights[:, self.pair] = self.weights[:, self.unit]
            return _weighted(weights, self._of_pairs(values))
        return np.stack([self._drawn_within(column) for column in values.T], axis=1)

    def mean(self, values: Draws) -> Vector:
        """The mean of values [conditions, columns] as they are [columns]; NaN where none is defined."""
        found: Vector = _weighted(np.ones((1, self._n_pairs)), self._of_pairs(values))[0]
        return found

    @property
    def clusters(self) -> int:
        """How many units are drawn from."""
        return int(self.weights.shape[1])

    @property
    def _n_pairs(self) -> int:
        return len(np.unique(self.pair))

    def _of_pairs(self, values: Draws) -> Draws:
        """The mean over the assay batches of each (perturbation, cell type) [pairs, columns]."""
        member = np.zeros((self._n_pairs, len(self.pair)))
        member[self.pair, np.arange(len(self.pair))] = 1.0
        return _weighted(member, values)

    def _drawn_within(self, column: Vector) -> Vector:
        """The mean of each draw [draws] of one column, whose assay batches are drawn."""
        table = np.full((self._n_pairs, self.clusters), np.nan)
        table[self.pair, self.unit] = column
        of_pairs = _weighted(self.weights, table.T)
        found: Vector = _weighted(np.ones((1, self._n_pairs)), of_pairs.T)[0]
        return found

    def interval(self, draws: Draws) -> tuple[Vector, Vector]:
        """The percentiles of the draws of each column; NaN for fewer than `LEAST` units, or where none is defined."""
        edges = np.full((2, draws.shape[1]), np.nan)
        if self.clusters >= LEAST:
            for column in range(draws.shape[1]):
                known = draws[np.isfinite(draws[:, column]), column]
                if known.size:
                    edges[:, column] = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return edges[0], edges[1]


def _weighted(weights: Draws, values: Draws) -> Draws:
    """Weighted means [rows, columns] of values [n, columns] by weights [rows, n], NaN left out; NaN where all are."""
    defined = np.isfinite(values)
    counts = weights @ defined
    sums = weights @ np.where(defined, values, 0.0)
    found: Draws = np.where(counts > 0, sums / np.where(counts > 0, counts, 1.0), np.nan)
    return found


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
    table: pd.DataFrame, scale: Scale, *, resamples: int = RESAMPLES, seed: int = 0, unit: str = "perturbation"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Means over the conditions of one suite, with their intervals, and what each metric can tell.

    Args:
        table: method, perturbation, cell_type, assay_batch, metric, value.
        scale: what scaled scores refer to.
        resamples: how many draws.
        seed: of the draws.
        unit: what is drawn, see `unit_of`.

    Returns:
        method, metric, value, low, high, conditions, undefined, scaled, scaled_low, scaled_high; and for each metric
        its dynamic range: metric, baseline, ceiling, difference, low, high, apart (whether the ceiling is better beyond
        the interval).
    """
    rows: list[tuple[object, ...]] = []
    ranges: list[tuple[object, ...]] = []
    for metric, own in table.groupby("metric", sort=False):
        found, span = _metric(str(metric), own, scale, unit, resamples, seed)
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
    metric: str, own: pd.DataFrame, scale: Scale, unit: str, resamples: int, seed: int
) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
    """The rows of one metric: of every method, and of its dynamic range."""
    conditions, methods, values = _matrix(own)
    resampling = Resampling.of(conditions, resamples=resamples, seed=seed, unit=unit)
    low, high = resampling.interval(resampling.means(values))
    means = resampling.mean(values)
    counts = own.groupby("method", sort=False)["value"].agg(["size", "count"]).loc[methods]
    scaled, span = _scaled(metric, values, methods, scale, resampling)
    rows = [
        (methods[i], metric, means[i], low[i], high[i], size, size - count, *scaled[i])
        for i, (size, count) in enumerate(counts.itertuples(index=False, name=None))
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
    lowest, highest = resampling.mean(ends).tolist()
    apart = low > 0 if better == "higher" else high < 0
    span = (lowest, highest, highest - lowest, low, high, apart)
    if not apart:
        return unknown, span
    for i in range(len(methods)):
        common = known & np.isfinite(values[:, i])
        if common.any():
            three = np.where(common[:, None], np.stack([values[:, i], base, top], axis=1), np.nan)
            of_draws, mean = resampling.means(three), resampling.mean(three)
            with np.errstate(divide="ignore", invalid="ignore"):
                ratios = (of_draws[:, [0]] - of_draws[:, [1]]) / (of_draws[:, [2]] - of_draws[:, [1]])
                unknown[i, 0] = (mean[0] - mean[1]) / (mean[2] - mean[1])
            unknown[i, 1:] = [float(edge[0]) for edge in resampling.interval(ratios)]
    return unknown, span


def paired_difference(
    table: pd.DataFrame,
    metric: str,
    method: str,
    baseline: str,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    unit: str = "perturbation",
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
    resampling = Resampling.of(conditions[known], resamples=resamples, seed=seed, unit=unit)
    low, high = resampling.interval(resampling.means(difference[known, None]))
    return float(resampling.mean(difference[known, None])[0]), float(low[0]), float(high[0])


def _matrix(own: pd.DataFrame) -> tuple[pd.DataFrame, list[str], Draws]:
    """The conditions of one metric, sorted, the methods in their order, and the values [conditions, methods]."""
    keys = list(LABELS)
    conditions = own[keys].drop_duplicates().sort_values(keys, ignore_index=True)
    methods = list(dict.fromkeys(own["method"]))
    values = np.full((len(conditions), len(methods)), np.nan)
    rows = pd.MultiIndex.from_frame(conditions).get_indexer(pd.MultiIndex.from_frame(own[keys]))
    values[rows, pd.Index(methods).get_indexer(own["method"])] = own["value"]
    return conditions, methods, values
