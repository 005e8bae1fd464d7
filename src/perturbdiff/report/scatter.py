"""Every condition's score by a model against that by another method: one panel a metric, above the line or below it."""

import numpy as np

from perturbdiff.evaluation.result import LAST, Evaluation, Metric
from perturbdiff.report.drawing import Drawing, Drawn, looks, mark_key
from perturbdiff.report.looks import COLOURS, Look
from perturbdiff.report.numbers import condition_name
from perturbdiff.report.standing import Comparer, Differences, directed
from perturbdiff.report.svg import Panel, padded

MOST_PANELS = 6
TITLED = 250
"""With more conditions than this, marks carry no names."""


def scatter_metrics(evaluation: Evaluation) -> list[Metric]:
    """The headline metrics and the paper's AUROC, no more than there are panels."""
    auroc = [metric for metric in evaluation.of_suite("paper") if metric.name == "AUROC"]
    wanted = [*evaluation.headline, *(metric for metric in auroc if metric not in evaluation.headline)]
    return [metric for metric in wanted if directed(metric) and metric.name != LAST][:MOST_PANELS]


def scatter(evaluation: Evaluation, comparer: Comparer, against: str | None) -> Drawing | str:
    """Draw all predicted files against one method, or say why not."""
    if against is None:
        return "There is no method to compare with condition by condition: the evaluation has no baseline."
    shown = looks(method.name for method in evaluation.of_kind("predicted") if method.name != against)
    panels = []
    for number, metric in enumerate(scatter_metrics(evaluation)):
        pairs = {name: comparer.differences(metric, name, against) for name in shown}
        found = {name: one for name, one in pairs.items() if one is not None}
        if found:
            rates = [f"{name} wins {100 * one.win_rate:.0f} % of {one.n}" for name, one in found.items()]
            drawn = _draw(metric, found, shown, against)
            note = "; ".join(rates)
            label = f"{metric.title} of each condition against {against}: {note}."
            panels.append(Drawn(metric.title, drawn.write(f"scatter{number}", label), note))
    if not panels:
        return f"No headline metric has values by condition for both a predicted file and {against}."
    caption = (
        f"A mark is a condition: across, its score by {against}; up, by a predicted file. On the line both are equal; "
        "on the shaded side the predicted file is better.",
    )
    return Drawing(tuple(panels), tuple(mark_key(look, name) for name, look in shown.items()), caption)


def _draw(metric: Metric, found: dict[str, Differences], shown: dict[str, Look], against: str) -> Panel:
    panel = Panel(320, 300, margins=(10, 12, 44, 56))
    values = np.concatenate([np.concatenate([one.model, one.other]) for one in found.values()])
    limits = padded(float(values.min()), float(values.max()))
    panel.view(limits, limits)
    ends = np.array(limits)
    if metric.better in {"higher", "lower"}:
        edge = limits[1] if metric.better == "higher" else limits[0]
        panel.axes.fill_between(ends, ends, edge, color=COLOURS["rule"], alpha=0.35, linewidth=0, zorder=0)
    panel.axes.plot(ends, ends, color=COLOURS["grey"], linewidth=1, zorder=1)
    panel.labels(against, "predicted file" if len(found) > 1 else next(iter(found)))
    n = max(one.n for one in found.values())
    for name, one in found.items():
        titles = [
            f"{condition_name(condition)}: {name} {own:.3g}, {against} {other:.3g}"
            for condition, own, other in zip(one.conditions, one.model, one.other, strict=True)
        ]
        panel.marks(
            one.other,
            one.model,
            shown[name],
            radius=3.6 if n <= 60 else 2.4 if n <= TITLED else 1.6,
            opacity=0.85 if n <= TITLED else 0.6,
            titles=titles if n <= TITLED else (),
        )
    return panel
