"""Cells on two principal components of observed and control cells: one panel a side, the others pale behind it."""

import numpy as np
import pandas as pd

from perturbdiff.report.cells import Cells
from perturbdiff.report.drawing import Drawing, Drawn, looks, mark_key
from perturbdiff.report.genes import OBSERVED
from perturbdiff.report.looks import CONTROL, FILES, Look
from perturbdiff.report.reading import Evaluation
from perturbdiff.report.svg import Panel
from perturbdiff.report.volcano import FILES_SHOWN, sampled

CONTROLS = "control"
MOST, MOST_BEHIND, MOST_OF_CONDITION = 1_500, 1_500, 120
"""So many cells are drawn of a side, behind it, and of a side of one condition."""

_CONTROL, _OBSERVED = Look("muted", "plus"), Look("ink", "circle")
_RING = Look("ink", "circle", hollow=True)
_BEHIND = Look("rule", "circle")


def projection(evaluation: Evaluation) -> Drawing | str:
    """Draw all cells, a panel for the control cells, the observed ones and each predicted file; or say why not."""
    cells = evaluation.cells
    if cells is None:
        return evaluation.missing.get("cells", "There are no projected cells.")
    files = looks(method.name for method in evaluation.of_kind("predicted"))
    sides = {CONTROLS: _CONTROL, OBSERVED: _OBSERVED, **files}
    groups = {side: cells.table[cells.table["side"] == side] for side in sides}
    groups = {side: group for side, group in groups.items() if len(group)}
    x, y = _limits(cells.table)
    real = cells.table[cells.table["side"].isin([CONTROLS, OBSERVED])]
    behind = _drawn(real, MOST_BEHIND)
    panels = []
    for number, (side, group) in enumerate(groups.items()):
        panel = Panel(320, 300)
        panel.view(x, y)
        panel.labels(cells.axis(1), cells.axis(2))
        panel.marks(behind["pc1"], behind["pc2"], _BEHIND, radius=1.6, above=2)
        kept = _drawn(group, MOST)
        panel.marks(kept["pc1"], kept["pc2"], sides[side], radius=1.9, opacity=0.7)
        note = f"{len(kept):,} of {len(group):,} cells" if len(kept) < len(group) else f"{len(group):,} cells"
        panels.append(Drawn(side, panel.write(f"projection{number}", f"Cells of {side} on two components."), note))
    caption = (
        "Components fitted on observed and control cells, which lie pale behind each panel; predicted cells were put "
        "on them afterwards. Two components show where the bulk of the cells lies, not whether a prediction is right.",
    )
    return Drawing(tuple(panels), (), caption)


def condition_projection(cells: Cells, condition: tuple[str, str], files: list[str], prefix: str) -> Drawing | None:
    """Draw one condition: the control cells of its type, the observed cells, and each predicted file over them."""
    table = cells.table
    own = table[(table["perturbation"] == condition[0]) & (table["cell_type"] == condition[1])]
    controls = table[(table["side"] == CONTROLS) & (table["cell_type"] == condition[1])]
    observed = own[own["side"] == OBSERVED]
    shown = [name for name in files[:FILES_SHOWN] if (own["side"] == name).any()]
    if observed.empty or not shown:
        return None
    x, y = _limits(pd.concat([own, controls]))
    panels = []
    for number, (name, look) in enumerate(zip(shown, FILES, strict=False)):
        panel = Panel(320, 260)
        panel.view(x, y)
        panel.labels(cells.axis(1), cells.axis(2))
        for group, drawn in ((controls, CONTROL), (observed, _RING), (own[own["side"] == name], look)):
            kept = _drawn(group, MOST_OF_CONDITION)
            panel.marks(kept["pc1"], kept["pc2"], drawn, radius=2.2, opacity=0.75)
        label = f"Control, observed and predicted cells ({name}) of {condition[0]} in {condition[1]} on two components."
        panels.append(Drawn(name, panel.write(f"{prefix}-cells{number}", label)))
    keys = [mark_key(CONTROL, "control"), mark_key(_RING, "observed")]
    keys += [mark_key(look, name) for name, look in zip(shown, FILES, strict=False)]
    return Drawing(tuple(panels), tuple(keys), ())


def _drawn(group: pd.DataFrame, most: int) -> pd.DataFrame:
    return group.iloc[sampled(np.arange(len(group)), most)]


def _limits(table: pd.DataFrame) -> tuple[tuple[float, float], tuple[float, float]]:
    """From the smallest to the largest of each component, with some room."""
    found = []
    for name in ("pc1", "pc2"):
        values = table[name].to_numpy(dtype=np.float64)
        values = values[np.isfinite(values)]
        low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
        pad = 0.04 * (high - low) or 0.5
        found.append((low - pad, high + pad))
    return found[0], found[1]
