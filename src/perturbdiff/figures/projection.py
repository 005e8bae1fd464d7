"""Cells on a plane, principal components or UMAP: one panel a side, the real ones pale behind it."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from perturbdiff.figures.drawing import Drawing, Drawn, mark_key
from perturbdiff.figures.looks import CONTROL, Look, looks
from perturbdiff.figures.sampling import sampled
from perturbdiff.figures.svg import Panel, limits

MOST, MOST_BEHIND, MOST_OF_CONDITION = 1_500, 1_500, 120
"""So many cells are drawn of a side, behind it, and of a side of one condition."""

COMPONENTS = (
    "Components fitted on observed and control cells, which lie pale behind each panel; predicted cells were put on "
    "them afterwards. Two components show where the bulk of the cells lies, not whether a prediction is right."
)
UMAP = (
    "Observed, control and predicted cells, placed together by their neighbours. What lies apart has other neighbours; "
    "how far apart, and how large or dense a group is drawn, says nothing."
)
"""How to read a projection, on components and by UMAP."""

_CONTROL, _OBSERVED = Look("muted", "plus"), Look("ink", "circle")
_RING = Look("ink", "circle", hollow=True)
_BEHIND = Look("rule", "circle")


class _Layer(NamedTuple):
    """Cells that are drawn alike: a table with their places x and y, of which so many are drawn at most."""

    cells: pd.DataFrame
    look: Look
    most: int
    radius: float
    opacity: float = 1.0
    above: float = 3.0


def projection(
    cells: pd.DataFrame, files: Iterable[str], axes: tuple[str, str], *, caption: str, prefix: str
) -> Drawing:
    """Draw cells, a panel for control, observed and each file's cells.

    Args:
        cells: side ("control", "observed" or a predicted file's name), x, y.
        files: the predicted files.
        axes: the names of both axes.
        caption: `COMPONENTS` or `UMAP`.
        prefix: of the panels' ids; unique in the page.
    """
    behind = _Layer(_of(cells, "control", "observed"), _BEHIND, MOST_BEHIND, 1.6, above=2)
    panels: list[Drawn] = []
    for side, look in {"control": _CONTROL, "observed": _OBSERVED, **looks(files)}.items():
        own = _of(cells, side)
        if len(own):
            panel = _panel([behind, _Layer(own, look, MOST, 1.9, 0.7)], cells, axes, height=300)
            note = f"{MOST:,} of {len(own):,} cells" if len(own) > MOST else f"{len(own):,} cells"
            label = f"Cells of {side} on {axes[0]} and {axes[1]}."
            panels.append(Drawn(side, panel.write(f"{prefix}{len(panels)}", label), note))
    return Drawing(tuple(panels), (), (caption,))


def condition_projection(
    cells: pd.DataFrame, files: Iterable[str], axes: tuple[str, str], *, condition: str, prefix: str
) -> Drawing:
    """Draw one condition: its control cells, the observed cells, and each predicted file over them; as `projection`."""
    shown = looks(files)
    real = {"control": CONTROL, "observed": _RING}
    panels = []
    for number, (name, look) in enumerate(shown.items()):
        sides = {**real, name: look}
        layers = [_Layer(_of(cells, side), own, MOST_OF_CONDITION, 2.2, 0.75) for side, own in sides.items()]
        label = f"Control, observed and predicted cells ({name}) of {condition} on two components."
        panel = _panel(layers, cells, axes, height=260)
        panels.append(Drawn(name, panel.write(f"{prefix}-cells{number}", label)))
    return Drawing(tuple(panels), tuple(mark_key(look, name) for name, look in {**real, **shown}.items()), ())


def _of(cells: pd.DataFrame, *sides: str) -> pd.DataFrame:
    return cells[cells["side"].isin(sides)]


def _panel(layers: Iterable[_Layer], cells: pd.DataFrame, axes: tuple[str, str], *, height: int) -> Panel:
    panel = Panel(320, height)
    panel.view(limits(cells["x"]), limits(cells["y"]))
    panel.labels(*axes)
    for layer in layers:
        kept = layer.cells.iloc[sampled(np.arange(len(layer.cells)), layer.most)]
        panel.marks(kept["x"], kept["y"], layer.look, radius=layer.radius, opacity=layer.opacity, above=layer.above)
    return panel
