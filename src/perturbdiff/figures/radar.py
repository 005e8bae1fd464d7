"""The radar of the paper's metrics: each on its own axis, scaled so that 0 is the baseline and 1 the ceiling.

A scaled score s is drawn at the radius R (s - CENTRE) / (RIM - CENTRE) on every axis, whatever the scores are, so that
0, 0.5 and 1 are rings that are always there. A score beyond either end is drawn at that end, with a mark of its own.
"""

import math

import numpy as np
import pandas as pd

from perturbdiff.figures.drawing import Drawing, Drawn, line_key
from perturbdiff.figures.looks import CEILING, MUTED, REFERENCE, Look, looks
from perturbdiff.figures.numbers import listed
from perturbdiff.figures.svg import Panel, tick

CENTRE, RIM = -0.5, 1.25
"""Scaled scores at the centre and at the rim; what lies beyond is drawn there."""

RADIUS = 1.3
"""Of the rim, in units of the drawing."""

_BEYOND, _AXIS = Look("ink", "cross"), Look("rule")

RINGS = {0.0: REFERENCE, 0.5: Look("grey"), 1.0: CEILING}
"""The scaled scores that have a ring, drawn and labelled, and how the ring is drawn."""


def radar(scaled: pd.DataFrame, baseline: str, ceiling: str) -> Drawing | str:
    """Draw the radar, or say why there is none.

    Args:
        scaled: scaled scores, a row a metric and a column a predicted file; NaN where undefined.
        baseline: what is 0; empty where none is named.
        ceiling: what is 1.
    """
    scaled = scaled[list(looks(scaled.columns))]
    has_values = np.isfinite(scaled).any(axis=1)
    known, left_out = scaled[has_values], scaled.index[~has_values]
    if len(known) < 3:
        return (
            f"Only {len(known)} of the paper's {len(scaled)} metrics tell the ceiling from the baseline here, which is "
            "too few for a radar."
        )
    caption = [
        f"Each axis is one metric, scaled: the dashed ring (0) is {baseline or 'the baseline'}, the dotted "
        f"ring (1) is {ceiling or 'the ceiling'}; further out is better. The "
        f"centre is {tick(CENTRE)}, the rim {tick(RIM)}."
    ]
    beyond = int(_beyond(known.to_numpy()).sum())
    if beyond:
        said = "1 value lies" if beyond == 1 else f"{beyond} values lie"
        crossed = "is" if beyond == 1 else "are"
        caption.append(f"{said} beyond the centre or the rim and {crossed} crossed there.")
    if len(left_out):
        caption.append(f"Left out, since they have no scaled score here: {listed(left_out, at_most=14)}.")
    keys = [line_key(look, name) for name, look in looks(known.columns).items()]
    keys += [line_key(REFERENCE, f"0: {baseline}", marked=False), line_key(CEILING, f"1: {ceiling}", marked=False)]
    panel = Drawn("", _draw(known).write("radar", _label(known)))
    return Drawing((panel,), tuple(keys), tuple(caption), size="large")


def _draw(scaled: pd.DataFrame) -> Panel:
    panel = Panel(430, 336, margins=(0, 0, 0, 0))
    panel.axes.set_axis_off()
    # one unit is as long across as up, and the rim has room for the names
    panel.view((-2.02, 2.02), (-2.02 * 336 / 430, 2.02 * 336 / 430))
    n = len(scaled)
    angles = np.pi / 2 - 2 * np.pi * np.arange(n) / n
    for angle, title in zip(angles, scaled.index, strict=True):
        x, y = np.cos(angle), np.sin(angle)
        panel.line([0, RADIUS * x], [0, RADIUS * y], _AXIS, width=0.8, above=1)
        side = "center" if abs(x) < 0.2 else "left" if x > 0 else "right"
        panel.text(1.06 * RADIUS * x, 1.06 * RADIUS * y, title, ha=side, va="center", fontsize=13)
    # between two axes, where no metric's values lie; the rings are polygons, so nearer to the centre there
    between = np.pi / 2 + np.pi / n
    for ring, look in RINGS.items():
        panel.line(*_polygon(angles, np.full(n, ring)), look, width=0.8 if look.dash == "-" else 1.3, above=2)
        at = float(_radius(np.array(ring)) * np.cos(np.pi / n))
        place = at * float(np.cos(between)), at * float(np.sin(between))
        panel.text(*place, tick(ring), ha="center", va="center", fontsize=10, color=MUTED, zorder=2.5)
    for name, look in looks(scaled.columns).items():
        values = scaled[name].to_numpy()
        x, y = _polygon(angles, values)
        panel.axes.fill(x, y, color=look.hex, alpha=0.07, linewidth=0, zorder=3)
        panel.line(x, y, look, above=4)
        titles = [f"{name}, {title}: {value:.2f}" for title, value in zip(scaled.index, values, strict=True)]
        panel.marks(x[:-1], y[:-1], look, radius=4, titles=titles, above=5)
        beyond = _beyond(values)
        if beyond.any():
            panel.marks(x[:-1][beyond], y[:-1][beyond], _BEYOND, radius=6, above=6)
    return panel


def _beyond(values: np.ndarray) -> np.ndarray:
    """Which scaled scores lie beyond the centre or the rim."""
    return np.asarray((values < CENTRE) | (values > RIM))


def _radius(values: np.ndarray) -> np.ndarray:
    """How far from the centre scaled scores are drawn; what is beyond an end is at it."""
    return np.asarray(RADIUS * (np.clip(values, CENTRE, RIM) - CENTRE) / (RIM - CENTRE))


def _polygon(angles: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The closed line through scaled scores; an undefined one leaves a gap."""
    x, y = _radius(values) * np.cos(angles), _radius(values) * np.sin(angles)
    return np.append(x, x[0]), np.append(y, y[0])


def _label(scaled: pd.DataFrame) -> str:
    said = [
        f"{name}: "
        + ", ".join(f"{title} {'undefined' if math.isnan(value) else f'{value:.2f}'}" for title, value in own.items())
        for name, own in scaled.items()
    ]
    return f"Radar of scaled scores, where 0 is the baseline and 1 the ceiling. {'. '.join(said)}."
