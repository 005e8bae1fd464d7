"""The conditions in which a predicted file gains most on another method, and those in which it loses most."""

from dataclasses import dataclass

import numpy as np

from perturbdiff.evaluation.result import Evaluation, Metric
from perturbdiff.report.numbers import decimals, fixed, signed
from perturbdiff.report.standing import Comparer, directed, strongest

ENDS = 8
"""So many conditions are listed at each end."""

MOST_TABLES = 2


@dataclass(frozen=True)
class Gain:
    """A condition: both scores and the gain as texts, and how many conditions are left out before it.

    `place` is the cell type, where there are several, and the assay batch, where the condition has one.
    """

    perturbation: str
    place: str
    model: str
    other: str
    gain: str
    between: int


@dataclass(frozen=True)
class Gains:
    """Conditions by one metric, from the greatest gain of a predicted file over another method to the greatest loss."""

    title: str
    model: str
    against: str
    rows: tuple[Gain, ...]


def gain_tables(evaluation: Evaluation, comparer: Comparer, against: str | None) -> list[Gains]:
    """Tables of the best predicted file against one method, by the first headline metrics that have values of both."""
    files = [method.name for method in evaluation.of_kind("predicted") if method.name != against]
    model = strongest(evaluation, files)
    if against is None or model is None:
        return []
    several = len({cell_type for _, cell_type, _ in evaluation.conditions}) > 1
    tables = [
        _table(comparer, metric, model, against, several=several) for metric in evaluation.headline if directed(metric)
    ]
    return [table for table in tables if table is not None][:MOST_TABLES]


def _table(comparer: Comparer, metric: Metric, model: str, against: str, *, several: bool) -> Gains | None:
    pairs = comparer.differences(metric, model, against)
    if pairs is None or pairs.n < 2:
        return None
    order = [int(place) for place in np.argsort(-pairs.gain, kind="stable")]
    left_out = max(0, len(order) - 2 * ENDS)
    if left_out:
        order = [*order[:ENDS], *order[-ENDS:]]
    places = decimals([*pairs.model, *pairs.other])
    rows = []
    for row, place in enumerate(order):
        perturbation, cell_type, batch = pairs.conditions[place]
        rows.append(
            Gain(
                perturbation,
                " | ".join(label for label in (cell_type if several else "", batch) if label),
                fixed(float(pairs.model[place]), places),
                fixed(float(pairs.other[place]), places),
                signed(float(pairs.gain[place]), places),
                left_out if row == ENDS else 0,
            )
        )
    direction = f", {metric.better} is better" if metric.better in {"higher", "lower"} else f", best {metric.better}"
    return Gains(f"{metric.title}{direction}", model, against, tuple(rows))
