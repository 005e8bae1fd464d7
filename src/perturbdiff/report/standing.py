r"""Who is ahead: directions of metrics, the best method, win rates, and paired intervals over perturbations.

With d_pc = g(model) - g(baseline) in perturbation p and cell type c, where g grows as a metric improves, perturbations
are drawn again with replacement, and all conditions of a drawn one come along:

    D* = sum_p n_p sum_c d_pc / sum_p n_p |c|,    n ~ Multinomial(P, 1/P)

The model is ahead where the 95 % interval of D* lies above 0, behind where it lies below, and not told apart otherwise.
Where there is one perturbation only, cell types are drawn instead; where there is one of both, there is no interval.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from perturbdiff.report.reading import Evaluation, Metric

DRAWS = 2_000
"""So often are perturbations drawn again."""

AHEAD, BEHIND, LEVEL, UNKNOWN = "ahead", "behind", "not told apart", "no interval"
"""How a model stands to a baseline; the last where there is nothing to draw from."""

_NEAR = re.compile(r"near (-?\d+(?:\.\d+)?)$")

type Values = NDArray[np.float64]


def directed(metric: Metric) -> bool:
    """Whether it can be said of two values which is better."""
    return metric.better in {"higher", "lower"} or bool(_NEAR.match(metric.better))


def goodness(values: ArrayLike, metric: Metric) -> Values:
    """Values turned so that more is better: v, -v or -|v - target|; NaN for a metric without direction."""
    known = np.asarray(values, dtype=np.float64)
    near = _NEAR.match(metric.better)
    if near:
        return np.asarray(-np.abs(known - float(near[1])))
    sign = {"higher": 1.0, "lower": -1.0}.get(metric.better, np.nan)
    return np.asarray(sign * known)


def overall_goodness(evaluation: Evaluation, metric: Metric, method: str) -> float:
    """The goodness of a method's mean; NaN where it has none."""
    score = evaluation.score(metric, method)
    return float("nan") if score is None else float(goodness(score.value, metric))


def best(evaluation: Evaluation, metric: Metric, methods: Iterable[str]) -> str | None:
    """The best of some methods by their means, the first of equals; None where none has a value."""
    values = {name: overall_goodness(evaluation, metric, name) for name in methods}
    known = {name: value for name, value in values.items() if np.isfinite(value)}
    return max(known, key=lambda name: known[name]) if known else None


def strongest(evaluation: Evaluation, names: Sequence[str]) -> str | None:
    """The method with the best mean rank over the headline metrics, the first of equals; None where none has values."""
    ranks: dict[str, list[float]] = {name: [] for name in names}
    for metric in evaluation.headline:
        values = pd.Series({name: overall_goodness(evaluation, metric, name) for name in names}, dtype=float)
        if values.notna().any():
            # a method without a value stands behind all that have one
            for name, rank in values.rank(ascending=False, na_option="bottom").items():
                ranks[str(name)].append(float(rank))
    ranked = {name: float(np.mean(found)) for name, found in ranks.items() if found}
    return min(ranked, key=lambda name: ranked[name]) if ranked else None


@dataclass(frozen=True)
class Differences:
    """A model against another method in every condition where both have a value.

    Attributes:
        model, other: the values of the metric, a condition each.
        perturbation, cell_type: what the conditions are.
        gain: how much better the model is, in the metric's unit.
    """

    model: Values
    other: Values
    perturbation: tuple[str, ...]
    cell_type: tuple[str, ...]
    gain: Values

    @property
    def n(self) -> int:
        """The number of conditions."""
        return len(self.gain)

    @property
    def wins(self) -> float:
        """In so many conditions the model is better; a tie is half a win."""
        return float((self.gain > 0).sum() + 0.5 * (self.gain == 0).sum())

    @property
    def win_rate(self) -> float:
        """The share of conditions in which it is better; NaN where there are none."""
        return self.wins / self.n if self.n else float("nan")


@dataclass(frozen=True)
class Standing:
    """How a model stands by one metric.

    Attributes:
        baseline: the best baseline by its mean; None where no baseline has a value.
        outcome: `AHEAD` of every baseline, `BEHIND` at least one, `LEVEL` or `UNKNOWN`.
    """

    metric: Metric
    baseline: str | None
    outcome: str


class Comparer:
    """Pairs the methods of an evaluation, condition by condition."""

    def __init__(self, evaluation: Evaluation) -> None:
        self._evaluation = evaluation
        keys = ["perturbation", "cell_type"]
        self._wide = {
            (str(suite), str(metric)): rows.pivot_table(
                index=keys, columns="method", values="value", sort=False, dropna=False, observed=True
            )
            for (suite, metric), rows in evaluation.table.groupby(["suite", "metric"], sort=False)
        }

    def differences(self, metric: Metric, model: str, other: str) -> Differences | None:
        """A model against another method; None where one of them has no values by condition."""
        wide = self._wide.get((metric.suite, metric.name))
        if wide is None or not {model, other} <= set(wide.columns):
            return None
        both = wide[[model, other]].dropna()
        if both.empty:
            return None
        one, two = both[model].to_numpy(dtype=np.float64), both[other].to_numpy(dtype=np.float64)
        gain = goodness(one, metric) - goodness(two, metric)
        labels = [tuple(map(str, both.index.get_level_values(level))) for level in (0, 1)]
        return Differences(one, two, labels[0], labels[1], gain)

    def outcome(self, metric: Metric, model: str, other: str) -> str:
        """Ahead, behind, or not told apart, by the paired interval."""
        pairs = self.differences(metric, model, other)
        if pairs is None or not directed(metric):
            return UNKNOWN
        for labels in (pairs.perturbation, pairs.cell_type):
            known, place = np.unique(np.array(labels), return_inverse=True)
            if len(known) > 1:
                break
        else:
            return UNKNOWN
        low, high = interval(pairs.gain, place, len(known))
        return AHEAD if low > 0 else BEHIND if high < 0 else LEVEL

    def standing(self, metric: Metric, model: str) -> Standing:
        """How a model stands to all baselines by one metric."""
        baselines = [method.name for method in self._evaluation.of_kind("baseline")]
        judged = [name for name in baselines if np.isfinite(overall_goodness(self._evaluation, metric, name))]
        outcomes = {self.outcome(metric, model, name) for name in judged}
        known = outcomes - {UNKNOWN}
        if BEHIND in known:
            outcome = BEHIND
        elif known == {AHEAD} and UNKNOWN not in outcomes:
            outcome = AHEAD
        else:
            outcome = LEVEL if known else UNKNOWN
        return Standing(metric, best(self._evaluation, metric, judged), outcome)


@lru_cache(maxsize=2)
def _draws(n_clusters: int) -> Values:
    """How often each cluster is drawn [draws, clusters]: the same for every pair, so that a report repeats."""
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), size=DRAWS)
    return np.asarray(drawn, dtype=np.float64)


def interval(gain: Values, cluster: NDArray[Any], n_clusters: int) -> tuple[float, float]:
    """The 95 % percentile interval of the mean gain [conditions], drawing clusters again with a fixed seed."""
    sums = np.bincount(cluster, weights=gain, minlength=n_clusters)
    counts = np.bincount(cluster, minlength=n_clusters)
    drawn = _draws(n_clusters)
    low, high = np.percentile((drawn @ sums) / (drawn @ counts), [2.5, 97.5])
    return float(low), float(high)
