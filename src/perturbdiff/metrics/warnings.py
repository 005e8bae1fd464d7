"""What a reader must know before believing a number: warnings, each of a kind and in one sentence.

behind     a prediction is further from the observed cells than unchanged control cells are
step0      the weights that a run kept are those from before its training
spread     the predicted conditions differ far more from each other than the observed ones do
metric     a metric doesn't tell the ceiling from the baseline: the interval of their difference holds 0
collapse   the predicted conditions differ far less from each other than the observed ones do
targets    a gain over the baseline is there only with the genes that a perturbation's label names
scale      predicted cells hold far more or fewer counts than observed ones, so the declared scale may be wrong
few        there are too few of what the intervals draw for them to be trusted

They are read in an order: leaks first, then `FIRST`, then all others as they were found.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from perturbdiff.metrics.intervals import UNITS, paired_difference

COLLAPSED = 0.5
"""Predicted conditions that spread by less than this share of what the ceiling spreads by have collapsed."""

SCATTERED = 2.0
"""Predicted conditions that spread by this many times what the ceiling and the observed ones do differ too much."""

FIRST = ("leak", "behind", "step0")
"""The kinds that come before all others, in this order."""

FEW = 5
"""Below so many perturbations, or other units, a bootstrap is not to be trusted."""

APART = 2.0
"""Predicted counts that are so many times the observed ones, or one over it, are suspicious."""

PER = 1e4
OBSERVED_LIMIT, PREDICTED_LIMIT = 1.5 * PER, 50
"""Observed cells that sum to more cannot be log1p counts per 10^4; predicted ones that sum to so many times the
observed cannot be on their scale, where those of a poor model may be well off (log1p counts per 10^6 sum to 100 times
as much)."""


class Warned(NamedTuple):
    """A warning: its kind, and a sentence."""

    kind: str
    text: str


def check_total(name: str, total: float, observed: float | None = None) -> None:
    """Refuse values that cannot be on the scale that is declared.

    Args:
        name: of the file.
        total: mean over some cells of their counts per 10^4, summed over the judged genes.
        observed: that of the observed cells of the same condition; None where these are they.

    Raises:
        ValueError: the sum is far above 10^4, or far above that of the observed cells.
    """
    if not total <= (OBSERVED_LIMIT if observed is None else PREDICTED_LIMIT * max(observed, 1.0)):
        rule = "log1p counts per 10^4 sum to 10000 at most" if observed is None else f"the observed to {observed:.3g}"
        raise ValueError(
            f"the cells of {name!r} sum to {total:.3g} counts over the judged genes, and {rule}; declare the scale "
            'that they are on ("counts" or "log1p"), or normalise them to 10^4.'
        )


def indistinct(ranges: pd.DataFrame, baseline: str, ceiling: str) -> list[Warned]:
    """A warning for each suite of which metrics do not tell the ceiling from the baseline.

    Args:
        ranges: suite, metric, low, apart: see `intervals`; nothing is said where there is no interval.
        baseline: its name.
        ceiling: its name.
    """
    blind = ranges[~ranges["apart"].astype(bool) & ranges["low"].notna()]
    return [
        Warned(
            "metric",
            f"{', '.join(own['metric'])} ({suite}) {'does' if len(own) == 1 else 'do'} not show {ceiling!r} to be "
            f"better than {baseline!r} beyond the 95 % interval, so these scores say little of a model.",
        )
        for suite, own in blind.groupby("suite", sort=False)
    ]


def collapsed(spreads: Mapping[str, float], ceiling: float, predicted: Sequence[str]) -> list[Warned]:
    """A warning for each predicted file whose conditions are nearly alike.

    Args:
        spreads: of methods, the mean of `spread_between`.
        ceiling: that of the ceiling; nothing is said where it is undefined.
        predicted: the predicted files.
    """
    return [
        Warned(
            "collapse",
            f"the perturbations predicted by {name!r} differ from each other by {spreads[name]:.2f} of what the "
            f"observed ones do (the ceiling: {ceiling:.2f}): it predicts nearly one response for all.",
        )
        for name in predicted
        if name in spreads and spreads[name] < COLLAPSED * ceiling
    ]


def scattered(spreads: Mapping[str, float], ceiling: float, predicted: Sequence[str]) -> list[Warned]:
    """A warning for each predicted file whose conditions differ far more from each other than the observed ones.

    Args:
        spreads: of methods, the mean of `spread_between`, where 1 is the spread of the observed conditions.
        ceiling: that of the ceiling, which counts where it is above 1: halves of few cells may differ by chance.
        predicted: the predicted files.
    """
    most = SCATTERED * max(ceiling if np.isfinite(ceiling) else 1.0, 1.0)
    reached = f" (the ceiling: {ceiling:.2f})" if np.isfinite(ceiling) else ""
    return [
        Warned(
            "spread",
            f"the perturbations predicted by {name!r} differ from each other {spreads[name]:.1f} times as much as the "
            f"observed ones do{reached}: it overstates what is particular to each.",
        )
        for name in predicted
        if name in spreads and spreads[name] >= most
    ]


def behind(
    table: pd.DataFrame,
    predicted: Sequence[str],
    control: str,
    *,
    resamples: int,
    seed: int,
    unit: str = "perturbation",
) -> list[Warned]:
    """A warning for each predicted file that is worse than unchanged control cells, by the energy distance.

    Beyond the interval where there is one; without, by the means, where no interval is spoken of.

    Args:
        table: our metrics; method, perturbation, cell_type, metric, value.
        predicted: the predicted files.
        control: the name of the baseline that predicts control cells; nothing is said where the table lacks it.
        resamples: draws for the interval.
        seed: of the draws.
        unit: what is drawn.
    """
    found = []
    for method in predicted:
        lost, low, high = paired_difference(
            table, "energy_distance", method, control, resamples=resamples, seed=seed, unit=unit
        )
        sure = np.isfinite(low)
        if not (low if sure else lost) > 0:
            continue
        interval = f" (95 % interval {low:.3g} to {high:.3g})" if sure else ", in too few conditions for an interval"
        found.append(
            Warned(
                "behind",
                f"{method!r} is further from the observed cells than unchanged control cells are, {control!r}: its "
                f"energy distance is larger by {lost:.3g}{interval}, so predicting no response would be better.",
            )
        )
    return found


def step_zero(run: Mapping[str, Any] | None) -> list[Warned]:
    """A warning where the weights that a run kept are those of step 0.

    Args:
        run: what is known of it: `kept` with the `step` of the weights, `settings`, and `begun_from` where it began
            from a pretrained model.
    """
    if run is None or (run.get("kept") or {}).get("step") != 0:
        return []
    target = ((run.get("settings") or {}).get("model") or {}).get("target", "residual")
    is_what = {
        "residual": "this is the expected change, the network added nothing",
        "change": "these are the control cells, the network added nothing",
    }.get(target, "this is what an untrained network says")
    if run.get("begun_from"):
        is_what = "this is what the pretrained model begins with, fine-tuning added nothing"
    return [
        Warned(
            "step0",
            f"the weights that the run kept are those of step 0, before any training: {is_what}.",
        )
    ]


def in_order(warnings: Iterable[Warned]) -> tuple[Warned, ...]:
    """Warnings as they are read: those of `FIRST`, then the others as they come."""
    place = {kind: i for i, kind in enumerate(FIRST)}
    return tuple(sorted(warnings, key=lambda one: place.get(one.kind, len(FIRST))))


def carried_by_targets(
    table: pd.DataFrame,
    all_genes: pd.DataFrame,
    predicted: Sequence[str],
    baseline: str,
    *,
    resamples: int,
    seed: int,
    unit: str = "perturbation",
) -> list[Warned]:
    """A warning for each predicted file and metric whose gain over the baseline is gone without the target genes.

    Args:
        table: our metrics, without the genes that labels name; method, perturbation, cell_type, metric, value.
        all_genes: the same of all genes, of the conditions whose label names some.
        predicted: the predicted files.
        baseline: what a gain is over.
        resamples: draws of perturbations.
        seed: of the draws.
        unit: what is drawn.
    """
    from perturbdiff.metrics.ours import METRICS, OF_ALL_GENES  # with tests of ranks, which a warning does not need

    if all_genes.empty:
        return []
    better = {metric.name: metric.better for metric in METRICS}
    keys = ["perturbation", "cell_type"]
    named = pd.MultiIndex.from_frame(all_genes[keys].drop_duplicates())
    table = table[pd.MultiIndex.from_frame(table[keys]).isin(named)]
    found = []
    for method in predicted:
        for metric in OF_ALL_GENES:
            sign = -1.0 if better[metric] == "lower" else 1.0
            gain, with_targets = _sure_gain(all_genes, metric, method, baseline, sign, resamples, seed, unit)
            left, without_targets = _sure_gain(table, metric, method, baseline, sign, resamples, seed, unit)
            if with_targets and not without_targets and np.isfinite(left):
                found.append(
                    Warned(
                        "targets",
                        f"{metric} of {method!r} is better than that of {baseline!r} by {gain:.3g} over all genes, but "
                        f"by {left:.3g} without those that the perturbations' labels name: they alone carry the score, "
                        "in the suites that judge them too.",
                    )
                )
    return found


def off_scale(totals: Mapping[str, float], observed: float) -> list[Warned]:
    """A warning for each predicted file whose cells hold far more or fewer counts than the observed ones.

    Args:
        totals: of predicted files, the mean over conditions of a cell's counts per 10^4, summed over the judged genes.
        observed: that of the observed file.
    """
    return [
        Warned(
            "scale",
            f"the cells of {name!r} sum to {total:.0f} counts per 10^4 over the judged genes and the observed ones to "
            f"{observed:.0f}: check that its values are on the scale that is declared.",
        )
        for name, total in totals.items()
        if not observed / APART <= total <= observed * APART
    ]


def few(labels: Iterable[str], unit: str = "perturbation") -> list[Warned]:
    """A warning where there are few of what the intervals draw: the conditions' labels of a covariate."""
    n = len(set(labels))
    if n >= FEW:
        return []
    judged = f"1 {unit.replace('_', ' ')} is judged" if n == 1 else f"{n} {UNITS[unit]} are judged"
    return [Warned("few", f"only {judged}: intervals are too narrow, or absent, and a mean over them is an anecdote.")]


def _sure_gain(
    table: pd.DataFrame, metric: str, method: str, baseline: str, sign: float, resamples: int, seed: int, unit: str
) -> tuple[float, bool]:
    """By how much a method is better, and whether the interval says so (the value alone, without an interval)."""
    gain, low, high = (
        sign * value
        for value in paired_difference(table, metric, method, baseline, resamples=resamples, seed=seed, unit=unit)
    )
    edge = min(low, high)
    return gain, bool(edge > 0 if np.isfinite(edge) else gain > 0)
