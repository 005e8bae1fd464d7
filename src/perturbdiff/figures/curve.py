"""The training curve: what a run recorded, step by step, a panel for each quantity."""

import numpy as np
import pandas as pd

from perturbdiff.figures.drawing import Drawing, Drawn
from perturbdiff.figures.looks import FILES
from perturbdiff.figures.numbers import short
from perturbdiff.figures.sampling import evenly
from perturbdiff.figures.svg import Panel, limits

MOST_PANELS = 6
MOST_STEPS = 1_000
_UNSHOWN = {"step", "epoch"}


def curves(history: pd.DataFrame) -> Drawing | str:
    """Draw the history of a training run (step, and a column for each quantity), or say why not."""
    names = [str(name) for name in history.columns if name not in _UNSHOWN]
    recorded = {name: _known(history, name) for name in names}
    names = [name for name in names if len(recorded[name]) > 1]
    names.sort(key=lambda name: (not name.startswith("validation"), "loss" not in name))
    if not names:
        return "The history of the training run has fewer than two steps of anything."
    panels = tuple(_panel(recorded[name], name, number) for number, name in enumerate(names[:MOST_PANELS]))
    caption = ["The run of the model that evaluate was given by --run."]
    if len(names) > MOST_PANELS:
        caption.append(f"{len(names) - MOST_PANELS} more quantities are in the JSON file beside this page.")
    return Drawing(panels, (), tuple(caption))


def _known(history: pd.DataFrame, name: str) -> pd.DataFrame:
    """The steps at which a quantity was recorded, evenly thinned where there are very many."""
    rows = pd.DataFrame({key: pd.to_numeric(history[key], errors="coerce") for key in ("step", name)})
    rows = rows[np.isfinite(rows).all(axis=1)].sort_values("step", kind="stable")
    return rows.iloc[evenly(len(rows), MOST_STEPS)]


def _panel(rows: pd.DataFrame, name: str, number: int) -> Drawn:
    steps, values = rows["step"].to_numpy(dtype=np.float64), rows[name].to_numpy(dtype=np.float64)
    panel = Panel(320, 220, margins=(10, 14, 40, 56))
    panel.view((float(steps.min()), float(steps.max())), limits(values, share=0.06))
    panel.grid("y")
    panel.labels("step", "")
    panel.line(steps, values, FILES[0], width=1.6, above=3)
    if len(rows) <= 60:
        panel.marks(steps, values, FILES[0], radius=2.4)
    note = f"from {short(values[0])} to {short(values[-1])}, lowest {short(float(values.min()))}"
    title = name.replace("_", " ")
    return Drawn(title, panel.write(f"curve{number}", f"{title} by step, {note}."), note)
