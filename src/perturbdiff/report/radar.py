"""The radar of the paper's metrics: each on its own axis, scaled so that 0 is the baseline and 1 the ceiling.

A scaled score s is drawn at the radius R (s - CENTRE) / (RIM - CENTRE) on every axis, whatever the scores are, so that
0, 0.5 and 1 are rings that are always there. A score beyond either end is drawn at that end, with a mark of its own.
"""

import math

import numpy as np

from perturbdiff.evaluation.result import Evaluation, Metric
from perturbdiff.report.drawing import Drawing, Drawn, line_key, looks
from perturbdiff.report.looks import CEILING, COLOURS, MUTED, REFERENCE, Look
from perturbdiff.report.numbers import listed
from perturbdiff.report.svg import Panel, tick

CENTRE, RIM = -0.5, 1.25
"""Scaled scores at the centre and at the rim; what lies beyond is drawn there."""

RADIUS = 1.3
"""Of the rim, in units of the drawing."""

_BEYOND = Look("ink", "cross")

RINGS = {0.0: REFERENCE, 0.5: None, 1.0: CEILING}
"""The scaled scores that have a ring, drawn and labelled, and how the ring is drawn."""


def radar(evaluation: Evaluation) -> Drawing | str:
    """Draw the radar, or say why there is none."""
    paper = evaluation.of_suite("paper")
    if not paper:
        return evaluation.missing.get("paper", "The paper's metrics are missing.")
    shown = looks(method.name for method in evaluation.of_kind("predicted"))
    scaled = {name: [_scaled(evaluation, metric, name) for metric in paper] for name in shown}
    known = [i for i in range(len(paper)) if any(math.isfinite(values[i]) for values in scaled.values())]
    if len(known) < 3:
        return (
            f"Only {len(known)} of the paper's {len(paper)} metrics tell the ceiling from the baseline here, which is "
            "too few for a radar."
        )
    metrics = [paper[i] for i in known]
    lines = {name: np.array([values[i] for i in known]) for name, values in scaled.items()}
    left_out = [metric.title for i, metric in enumerate(paper) if i not in known]
    beyond = int(sum(((values < CENTRE) | (values > RIM)).sum() for values in lines.values()))
    caption = [
        f"Each axis is one metric, scaled: the dashed ring (0) is {evaluation.baseline or 'the baseline'}, the dotted "
        f"ring (1) is {evaluation.ceiling or 'the ceiling'}; further out is better. The "
        f"centre is {tick(CENTRE)}, the rim {tick(RIM)}."
    ]
    if beyond:
        said = "1 value lies" if beyond == 1 else f"{beyond} values lie"
        crossed = "is" if beyond == 1 else "are"
        caption.append(f"{said} beyond the centre or the rim and {crossed} crossed there.")
    if left_out:
        caption.append(f"Left out, since they have no scaled score here: {listed(left_out, at_most=14)}.")
    keys = [line_key(look, name) for name, look in shown.items()]
    rings = [
        line_key(REFERENCE, f"0: {evaluation.baseline}", marked=False),
        line_key(CEILING, f"1: {evaluation.ceiling}", marked=False),
    ]
    panel = Drawn("", _draw(metrics, lines, shown).write("radar", _label(metrics, lines)))
    return Drawing((panel,), (*keys, *rings), tuple(caption), size="large")


def _scaled(evaluation: Evaluation, metric: Metric, method: str) -> float:
    score = evaluation.score(metric, method)
    return math.nan if score is None else score.scaled


def _draw(metrics: list[Metric], lines: dict[str, np.ndarray], shown: dict[str, Look]) -> Panel:
    panel = Panel(430, 336, margins=(0, 0, 0, 0))
    axes = panel.axes
    axes.set_axis_off()
    # one unit is as long across as up, and the rim has room for the names
    panel.view((-2.02, 2.02), (-2.02 * 336 / 430, 2.02 * 336 / 430))
    angles = np.pi / 2 - 2 * np.pi * np.arange(len(metrics)) / len(metrics)
    for angle, metric in zip(angles, metrics, strict=True):
        x, y = np.cos(angle), np.sin(angle)
        axes.plot([0, RADIUS * x], [0, RADIUS * y], color=COLOURS["rule"], linewidth=0.8, zorder=1)
        side = "center" if abs(x) < 0.2 else "left" if x > 0 else "right"
        panel.text(1.06 * RADIUS * x, 1.06 * RADIUS * y, metric.title, ha=side, va="center", fontsize=13)
    # between two axes, where no metric's values lie; the rings are polygons, so nearer to the centre there
    between = np.pi / 2 + np.pi / len(metrics)
    for ring, look in RINGS.items():
        x, y = _polygon(angles, np.full(len(metrics), ring))
        style = {"color": COLOURS["grey"]} if look is None else {"color": look.hex, "linestyle": look.dash}
        axes.plot(x, y, linewidth=0.8 if look is None else 1.3, zorder=2, **style)
        at = _radius(np.array([ring])) * np.cos(np.pi / len(metrics))
        place = float(at[0] * np.cos(between)), float(at[0] * np.sin(between))
        panel.text(*place, tick(ring), ha="center", va="center", fontsize=10, color=MUTED, zorder=2.5)
    for name, look in shown.items():
        values = lines[name]
        x, y = _polygon(angles, values)
        axes.fill(x, y, color=look.hex, alpha=0.07, linewidth=0, zorder=3)
        axes.plot(x, y, color=look.hex, linestyle=look.dash, linewidth=2, zorder=4)
        titles = [f"{name}, {metric.title}: {value:.2f}" for metric, value in zip(metrics, values, strict=True)]
        panel.marks(x[:-1], y[:-1], look, radius=4, titles=titles, above=5)
        beyond = (values < CENTRE) | (values > RIM)
        if beyond.any():
            panel.marks(x[:-1][beyond], y[:-1][beyond], _BEYOND, radius=6, above=6)
    return panel


def _radius(values: np.ndarray) -> np.ndarray:
    """How far from the centre scaled scores are drawn; what is beyond an end is at it."""
    return np.asarray(RADIUS * (np.clip(values, CENTRE, RIM) - CENTRE) / (RIM - CENTRE))


def _polygon(angles: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The closed line through scaled scores; an undefined one leaves a gap."""
    x, y = _radius(values) * np.cos(angles), _radius(values) * np.sin(angles)
    return np.append(x, x[0]), np.append(y, y[0])


def _label(metrics: list[Metric], lines: dict[str, np.ndarray]) -> str:
    said = [
        f"{name}: "
        + ", ".join(
            f"{metric.title} {'undefined' if math.isnan(value) else f'{value:.2f}'}"
            for metric, value in zip(metrics, values, strict=True)
        )
        for name, values in lines.items()
    ]
    return f"Radar of scaled scores, where 0 is the baseline and 1 the ceiling. {'. '.join(said)}."
