"""What several drawn populations say of each condition, and where the observed one lies: a row a condition."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from perturbdiff.figures.drawing import Drawn
from perturbdiff.figures.looks import CEILING, Look
from perturbdiff.figures.svg import Panel, limits

_ROW = 30
MOST_ROWS = 24
"""So many conditions have a row."""


class Fan(NamedTuple):
    """A row: the name of a condition, the ends of its intervals and its median, and what was observed."""

    name: str
    low: float
    lower: float
    median: float
    upper: float
    high: float
    observed: float


def fans(title: str, rows: Sequence[Fan], look: Look, *, note: str, prefix: str) -> Drawn:
    """Draw the rows of one file, 0 and 1 in view; the panel's ids begin with `prefix`, unique in the page."""
    panel = Panel(400, 40 + _ROW * len(rows), margins=(4, 16, 36, 12))
    low, high = limits(np.array([[row.low, row.high, row.observed] for row in rows] + [[0.0, 1.0, 0.5]]).ravel())
    panel.view((low, high), (len(rows) - 0.35, -0.75))
    panel.axes.set_yticks([])
    panel.axes.spines["left"].set_visible(False)
    panel.axes.set_xlabel("strength of the response")
    panel.grid("x")
    for place, row in enumerate(rows):
        panel.text(low, place - 0.38, row.name, va="center", fontsize=10)
        panel.line([row.low, row.high], [place, place], look, width=1.4)
        panel.line([row.lower, row.upper], [place, place], look, width=5)
    places = np.arange(len(rows))
    panel.marks([row.median for row in rows], places, look, radius=3.4, above=4)
    panel.marks([row.observed for row in rows], places, CEILING, radius=5.0, above=5)
    inside = sum(row.low <= row.observed <= row.high for row in rows)
    return Drawn(title, panel.write(prefix, f"{title}: {inside} of {len(rows)} observed within the interval."), note)
