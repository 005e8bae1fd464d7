"""Distances of all methods: a row a method, its conditions as a strip of marks, their mean with its interval."""

import numpy as np

from perturbdiff.evaluation.result import Evaluation, Metric, Score
from perturbdiff.report.drawing import Drawing, Drawn, Key, look_of, mark_key
from perturbdiff.report.looks import CEILING, REFERENCE, Look
from perturbdiff.report.numbers import short
from perturbdiff.report.sampling import evenly
from perturbdiff.report.svg import Panel

_ROW = 40
MOST = 400
"""A strip shows no more conditions than this, evenly taken from all in the order of their values."""


def strips(evaluation: Evaluation) -> Drawing | str:
    """Draw energy distances and MMD, or say that there are none."""
    metrics = [one for one in evaluation.of_suite("ours") if "energy" in one.name or "mmd" in one.name.lower()]
    drawn = [_panel(evaluation, metric, number) for number, metric in enumerate(metrics[:2])]
    panels = [panel for panel in drawn if panel is not None]
    if not panels:
        return "No distance between populations has a value in this evaluation."
    caption = [
        "A faint mark is a condition, the large one their mean with its 95 % interval. The ceiling is what half of the "
        "observed cells reach against the other half."
    ]
    if len(evaluation.conditions) > MOST:
        caption.append(f"Strips show {MOST} of {len(evaluation.conditions)} conditions, evenly taken by value.")
    return Drawing(tuple(panels), _keys(evaluation), tuple(caption), size="medium")


def _keys(evaluation: Evaluation) -> tuple[Key, ...]:
    files = [method.name for method in evaluation.of_kind("predicted")]
    keys = [mark_key(look_of(name, "predicted", files), name) for name in files[:5]]
    kinds = {method.kind for method in evaluation.methods}
    keys += [mark_key(REFERENCE, "baselines")] if "baseline" in kinds else []
    return (*keys, *([mark_key(CEILING, "ceilings")] if "ceiling" in kinds else []))


def _panel(evaluation: Evaluation, metric: Metric, number: int) -> Drawn | None:
    files = [method.name for method in evaluation.of_kind("predicted")]
    every = [(method, evaluation.score(metric, method.name)) for method in evaluation.methods]
    rows = [(method, score) for method, score in every if score is not None and np.isfinite(score.value)]
    if not rows:
        return None
    table = evaluation.scores
    table = table[(table["suite"] == metric.suite) & (table["metric"] == metric.name)]
    values = {
        method.name: _thinned(table.loc[table["method"] == method.name, "value"].to_numpy()) for method, _ in rows
    }
    panel = Panel(400, 36 + _ROW * len(rows), margins=(4, 16, 32, 12))
    low, high = _limits(values, [score for _, score in rows])
    panel.view((low, high), (len(rows) - 0.35, -0.65))
    panel.axes.set_yticks([])
    panel.axes.spines["left"].set_visible(False)
    panel.grid("x")
    for place, (method, score) in enumerate(rows):
        _row(panel, place, method.name, values[method.name], score, look_of(method.name, method.kind, files))
    said = ", ".join(f"{method.name} {short(score.value)}" for method, score in rows)
    return Drawn(metric.title, panel.write(f"strips{number}", f"{metric.title}, means: {said}."), metric.meaning)


def _row(panel: Panel, place: int, name: str, values: np.ndarray, score: Score, look: Look) -> None:
    low = panel.axes.get_xlim()[0]
    panel.text(low, place - 0.36, name, va="center", fontsize=12)
    offsets = 0.07 * np.sin(2.4 * np.arange(len(values)))  # apart without chance, so that figures repeat
    panel.marks(values, np.full(len(values), float(place)) + offsets, look, radius=1.8, opacity=0.35, above=2)
    if np.isfinite(score.low) and np.isfinite(score.high):
        panel.axes.plot([score.low, score.high], [place, place], color=look.hex, linewidth=2, zorder=3)
    panel.marks([score.value], [place], look, radius=4.6, above=4)


def _thinned(values: np.ndarray) -> np.ndarray:
    known = np.sort(values[np.isfinite(values)])
    return np.asarray(known[evenly(len(known), MOST)])


def _limits(values: dict[str, np.ndarray], scores: list[Score]) -> tuple[float, float]:
    """From the smallest to the largest of what is shown, zero in view."""
    edges = [edge for score in scores for edge in (score.value, score.low, score.high) if np.isfinite(edge)]
    every = np.concatenate([*values.values(), np.array([*edges, 0.0])])
    low, high = float(every.min()), float(every.max())
    pad = 0.04 * (high - low) or 0.1
    return low - pad, high + pad
