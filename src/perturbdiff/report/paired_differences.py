"""The conditions in which a predicted file gains most on another method, and those in which it loses most."""

import numpy as np

from perturbdiff.figures.numbers import decimals, fixed, signed
from perturbdiff.report.drawings import names_of
from perturbdiff.report.ranking import Comparer, directed, strongest
from perturbdiff.report.tables import Cell, Row, Table
from perturbdiff.results.evaluation import Evaluation, Metric

ENDS = 8
"""So many conditions are listed at each end."""

MOST_TABLES = 2


def gain_tables(evaluation: Evaluation, comparer: Comparer, against: str | None) -> list[Table]:
    """The best predicted file against one method, by the first headline metrics that have values of both.

    Rows are conditions, from the greatest gain to the greatest loss: both scores, and the gain.
    """
    model = strongest(evaluation, [name for name in names_of(evaluation, "predicted") if name != against])
    if against is None or model is None:
        return []
    several = len({cell_type for _, cell_type, _ in evaluation.conditions}) > 1
    tables = (_table(comparer, metric, (model, against), several=several) for metric in evaluation.headline)
    return [table for table in tables if table is not None][:MOST_TABLES]


def _table(comparer: Comparer, metric: Metric, methods: tuple[str, str], *, several: bool) -> Table | None:
    pairs = comparer.differences(metric, *methods)
    if pairs is None or pairs.n < 2 or not directed(metric):
        return None
    order = [int(place) for place in np.argsort(-pairs.gain, kind="stable")]
    left_out = max(0, len(order) - 2 * ENDS)
    if left_out:
        order = [*order[:ENDS], *order[-ENDS:]]
    places = decimals([*pairs.model, *pairs.other])
    rows = []
    for row, place in enumerate(order):
        perturbation, cell_type, batch = pairs.conditions[place]
        scores = [fixed(float(values[place]), places) for values in (pairs.model, pairs.other)]
        texts = [*scores, signed(float(pairs.gain[place]), places)]
        # the cell type where there are several, and the assay batch where the condition has one
        where = " | ".join(label for label in (cell_type if several else "", batch) if label)
        rows.append(Row(perturbation, where, tuple(map(Cell, texts)), left_out if row == ENDS else 0))
    direction = f", {metric.better} is better" if metric.better in {"higher", "lower"} else f", best {metric.better}"
    return Table(f"{metric.title}{direction}", methods, tuple(rows))
