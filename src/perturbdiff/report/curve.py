"""The training curve: what a run recorded, step by step, a panel for each quantity."""

import numpy as np
import pandas as pd

from perturbdiff.evaluation.result import Evaluation
from perturbdiff.report.drawing import Drawing, Drawn
from perturbdiff.report.looks import FILES
from perturbdiff.report.numbers import short
from perturbdiff.report.sampling import evenly
from perturbdiff.report.svg import Panel, padded

MOST_PANELS = 6
MOST_STEPS = 1_000
_UNSHOWN = {"step", "epoch"}


def curves(evaluation: Evaluation) -> Drawing | str:
    """Draw the history of the training run, or say why there is none."""
    history = evaluation.history
    if history is None or "step" not in history.columns:
        return evaluation.missing.get("history", "The history of the training run names no steps.")
    names = [str(name) for name in history.columns if name not in _UNSHOWN]
    names = [name for name in names if len(_known(history, name)) > 1]
    names.sort(key=lambda name: (not name.startswith("validation"), "loss" not in name))
    if not names:
        return "The history of the training run has fewer than two steps of anything."
    panels = tuple(_panel(history, name, number) for number, name in enumerate(names[:MOST_PANELS]))
    caption = ["The run of the model that evaluate was given by --run."]
    if len(names) > MOST_PANELS:
        caption.append(f"{len(names) - MOST_PANELS} more quantities are in the JSON file beside this page.")
    return Drawing(panels, (), tuple(caption))


def _known(history: pd.DataFrame, name: str) -> pd.DataFrame:
    """The steps at which a quantity was recorded, evenly thinned where there are very many."""
    rows = pd.DataFrame({key: pd.to_numeric(history[key], errors="coerce") for key in ("step", name)})
    rows = rows[np.isfinite(rows).all(axis=1)].sort_values("step", kind="stable")
    return rows.iloc[evenly(len(rows), MOST_STEPS)]


def _panel(history: pd.DataFrame, name: str, number: int) -> Drawn:
    rows = _known(history, name)
    steps, values = rows["step"].to_numpy(dtype=np.float64), rows[name].to_numpy(dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    panel = Panel(320, 220, margins=(10, 14, 40, 56))
    panel.view((float(steps.min()), float(steps.max())), padded(low, high))
    panel.grid("y")
    panel.labels("step", "")
    panel.axes.plot(steps, values, color=FILES[0].hex, linewidth=1.6, zorder=3)
    if len(rows) <= 60:
        panel.marks(steps, values, FILES[0], radius=2.4)
    note = f"from {short(values[0])} to {short(values[-1])}, lowest {short(low)}"
    title = name.replace("_", " ")
    return Drawn(title, panel.write(f"curve{number}", f"{title} by step, {note}."), note)
