r"""Who is ahead: directions of metrics, the best method, win rates, and paired intervals over what is independent.

With d_pcb = g(model) - g(baseline) in perturbation p, cell type c and batch b, where g grows as a metric improves, the
gain d_pc is the mean over the batches of (p, c), and D the mean over all (p, c). Units u are drawn again with
replacement, n ~ Multinomial(U, 1/U). Where these are perturbations or cell types, all (p, c) of a drawn one come along,

    D* = sum_u n_u sum_{pc in u} d_pc / sum_u n_u |u|;

where they are assay batches, D* is the mean over (p, c) of sum_b n_b d_pcb / sum_b n_b, over those with a drawn batch.
The model is ahead where the 95 % interval of D* lies above 0, behind where it lies below, and not told apart otherwise.
Of fewer than `LEAST` units there is no interval. A metric of whole cell types has these as its units.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from perturbdiff.metrics.conditions import LABELS, Condition
from perturbdiff.metrics.intervals import LEAST, RESAMPLES, Resampling
from perturbdiff.results.evaluation import Evaluation, Metric, Score

AHEAD, BEHIND, LEVEL, UNKNOWN = "ahead", "behind", "not told apart", "no interval"
"""How a model stands to a baseline; the last where there is nothing to draw from."""

NO_SCORE = Score(np.nan, np.nan, np.nan, 0, 0, np.nan, np.nan, np.nan)
"""That of a method without a value."""

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


def score_by(evaluation: Evaluation, metric: Metric, method: str) -> Score:
    """The overall score of a method; `NO_SCORE` where the table has none."""
    return evaluation.score(metric, method) or NO_SCORE


def overall_goodness(evaluation: Evaluation, metric: Metric, method: str) -> float:
    """The goodness of a method's mean; NaN where it has none."""
    return float(goodness(score_by(evaluation, metric, method).value, metric))


def best(evaluation: Evaluation, metric: Metric, methods: Iterable[str]) -> str | None:
    """The best of some methods by their means, the first of equals; None where none has a value."""
    ranked = _ranked(metric, {name: score_by(evaluation, metric, name).value for name in methods})
    return ranked[0] if ranked else None


def _ranked(metric: Metric, values: Mapping[str, float]) -> list[str]:
    """The methods that have a value, the best first, equals in their order; none for a metric without direction."""
    known = {name: float(goodness(value, metric)) for name, value in values.items()}
    return sorted((name for name, value in known.items() if np.isfinite(value)), key=lambda name: -known[name])


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
        conditions: perturbation, cell type and assay batch of each.
        gain: how much better the model is, in the metric's unit.
    """

    model: Values
    other: Values
    conditions: tuple[Condition, ...]
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

    def interval(self, unit: str, *, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float] | None:
        """The 95 % interval of the mean gain, as the tables draw units; None where there are fewer than `LEAST`."""
        if not any(one.perturbation for one in self.conditions):
            unit = "cell_type"
        if len({getattr(one, unit) for one in self.conditions}) < LEAST:
            return None
        order = sorted(range(self.n), key=self.conditions.__getitem__)  # that of the tables, so that draws are theirs
        resampling = _resampling(tuple(self.conditions[place] for place in order), unit, resamples, seed)
        low, high = resampling.interval(resampling.means(self.gain[order, None]))
        return float(low[0]), float(high[0])


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
        keys = list(LABELS)
        self._wide = {
            (str(suite), str(metric)): rows.pivot_table(
                index=keys, columns="method", values="value", sort=False, dropna=False, observed=True
            )
            for (suite, metric), rows in evaluation.scores.groupby(["suite", "metric"], sort=False)
        }

    def differences(self, metric: Metric, model: str, other: str, cell_type: str | None = None) -> Differences | None:
        """A model against another method, in one cell type or in all; None where one has no values by condition."""
        wide = self._wide.get((metric.suite, metric.name))
        if wide is None or not {model, other} <= set(wide.columns):
            return None
        both = wide[[model, other]].dropna()
        if cell_type is not None:
            both = both[both.index.get_level_values("cell_type") == cell_type]
        if both.empty:
            return None
        one, two = both[model].to_numpy(dtype=np.float64), both[other].to_numpy(dtype=np.float64)
        gain = goodness(one, metric) - goodness(two, metric)
        return Differences(one, two, tuple(Condition(str(p), str(c), str(b)) for p, c, b in both.index), gain)

    def outcome(self, metric: Metric, model: str, other: str, cell_type: str | None = None) -> str:
        """Ahead, behind, or not told apart, by the paired interval."""
        pairs = self.differences(metric, model, other, cell_type)
        if pairs is None or not directed(metric):
            return UNKNOWN
        ends = pairs.interval(self._evaluation.unit, resamples=self._evaluation.resamples, seed=self._evaluation.seed)
        if ends is None:
            return UNKNOWN
        return AHEAD if ends[0] > 0 else BEHIND if ends[1] < 0 else LEVEL

    def starred(self, metric: Metric, values: Mapping[str, float], cell_type: str | None = None) -> str | None:
        """The one method that is ahead of all others, beyond the interval of each difference; None among ties.

        Args:
            metric: by which.
            values: of the methods that are compared, their means; those without one don't count.
            cell_type: the one that the means are of; None for all.
        """
        ranked = _ranked(metric, values)
        if len(ranked) < 2:
            return None
        top, *others = ranked
        alone = all(self.outcome(metric, top, name, cell_type) == AHEAD for name in others)
        return top if alone else None

    def standing(self, metric: Metric, model: str) -> Standing:
        """How a model stands to all baselines by one metric."""
        baselines = [method.name for method in self._evaluation.of_kind("baseline")]
        judged = [name for name in baselines if np.isfinite(overall_goodness(self._evaluation, metric, name))]
        outcomes = {self.outcome(metric, model, name) for name in judged}
        if BEHIND in outcomes:
            outcome = BEHIND
        elif outcomes == {AHEAD}:
            outcome = AHEAD
        else:
            outcome = LEVEL if outcomes - {UNKNOWN} else UNKNOWN
        return Standing(metric, best(self._evaluation, metric, judged), outcome)


@lru_cache(maxsize=8)
def _resampling(conditions: tuple[Condition, ...], unit: str, resamples: int, seed: int) -> Resampling:
    """The draws of conditions: made once for all pairs of methods that have the same ones."""
    return Resampling.of(pd.DataFrame(conditions), resamples=resamples, seed=seed, unit=unit)
