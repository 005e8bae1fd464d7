"""Values of all methods: a row a method, its conditions as a strip of marks, their mean with its interval."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from perturbdiff.figures.drawing import Drawn
from perturbdiff.figures.looks import Look
from perturbdiff.figures.numbers import short
from perturbdiff.figures.sampling import evenly
from perturbdiff.figures.svg import Panel, limits

_ROW = 40
MOST = 400
"""A strip shows no more conditions than this, evenly taken from all in the order of their values."""


class Strip(NamedTuple):
    """A row: the name of a method, how it is drawn, its values by condition, their mean and its 95 % interval."""

    name: str
    look: Look
    values: NDArray[np.float64]
    mean: float
    low: float
    high: float


def strip_plot(title: str, rows: Sequence[Strip], *, note: str, prefix: str) -> Drawn:
    """Draw the values of one metric, zero in view; the panel's ids begin with `prefix`, which is unique in the page."""
    strips = [np.sort(row.values[np.isfinite(row.values)]) for row in rows]
    strips = [strip[evenly(len(strip), MOST)] for strip in strips]
    ends = np.array([[row.mean, row.low, row.high] for row in rows])
    panel = Panel(400, 36 + _ROW * len(rows), margins=(4, 16, 32, 12))
    low, high = limits(np.concatenate([*strips, ends.ravel(), [0.0]]))
    panel.view((low, high), (len(rows) - 0.35, -0.65))
    panel.axes.set_yticks([])
    panel.axes.spines["left"].set_visible(False)
    panel.grid("x")
    for place, (row, strip) in enumerate(zip(rows, strips, strict=True)):
        panel.text(low, place - 0.36, row.name, va="center", fontsize=12)
        panel.marks(strip, place + 0.07 * apart(len(strip)), row.look, radius=1.8, opacity=0.35, above=2)
        if np.isfinite(ends[place]).all():
            panel.line([row.low, row.high], [place, place], replace(row.look, dash="-"))
        panel.marks([row.mean], [place], row.look, radius=4.6, above=4)
    said = ", ".join(f"{row.name} {short(row.mean)}" for row in rows)
    return Drawn(title, panel.write(prefix, f"{title}, means: {said}."), note)


def apart(n: int) -> NDArray[np.float64]:
    """Offsets between -1 and 1 that keep n marks of a strip apart, without chance, so that figures repeat."""
    return np.asarray(np.sin(2.4 * np.arange(n)))
