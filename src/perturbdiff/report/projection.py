"""Cells on a plane, principal components or UMAP: one panel a side, the real ones pale behind it."""

import numpy as np
import pandas as pd

from perturbdiff.evaluation.parts import OBSERVED, Plane, Projection
from perturbdiff.evaluation.result import Evaluation
from perturbdiff.metrics.conditions import Condition
from perturbdiff.report.drawing import Drawing, Drawn, looks, mark_key
from perturbdiff.report.looks import CONTROL, FILES, Look
from perturbdiff.report.numbers import condition_name
from perturbdiff.report.sampling import sampled
from perturbdiff.report.svg import Panel
from perturbdiff.report.volcano import FILES_SHOWN

CONTROLS = "control"
MOST, MOST_BEHIND, MOST_OF_CONDITION = 1_500, 1_500, 120
"""So many cells are drawn of a side, behind it, and of a side of one condition."""

_CONTROL, _OBSERVED = Look("muted", "plus"), Look("ink", "circle")
_RING = Look("ink", "circle", hollow=True)
_BEHIND = Look("rule", "circle")


_CAPTION = (
    "Components fitted on observed and control cells, which lie pale behind each panel; predicted cells were put on "
    "them afterwards. Two components show where the bulk of the cells lies, not whether a prediction is right.",
)
_CAPTION_OF_UMAP = (
    "Observed, control and predicted cells, placed together by their neighbours. What lies apart has other neighbours; "
    "how far apart, and how large or dense a group is drawn, says nothing.",
)


def projection(evaluation: Evaluation) -> Drawing | str:
    """Draw cells on their components, a panel for control, observed and each file's cells; or say why not."""
    cells = evaluation.projection
    if cells is None:
        return evaluation.missing.get("cells", "There are no projected cells.")
    return _projection(evaluation, cells, cells.components, "projection", _CAPTION)


def umap(evaluation: Evaluation) -> Drawing | str:
    """The same by UMAP; or why not."""
    cells = evaluation.projection
    if cells is None or cells.umap is None:
        return "No cells were placed by UMAP; evaluate --umap places some."
    return _projection(evaluation, cells, cells.umap, "umap", _CAPTION_OF_UMAP)


def _projection(
    evaluation: Evaluation, cells: Projection, plane: Plane, prefix: str, caption: tuple[str, ...]
) -> Drawing:
    table = cells.on(plane)
    files = looks(method.name for method in evaluation.of_kind("predicted"))
    sides = {CONTROLS: _CONTROL, OBSERVED: _OBSERVED, **files}
    groups = {side: table[table["side"] == side] for side in sides}
    groups = {side: group for side, group in groups.items() if len(group)}
    x, y = _limits(table)
    behind = _drawn(table[table["side"].isin([CONTROLS, OBSERVED])], MOST_BEHIND)
    panels = []
    for number, (side, group) in enumerate(groups.items()):
        panel = Panel(320, 300)
        panel.view(x, y)
        panel.labels(*plane.axes)
        panel.marks(behind["x"], behind["y"], _BEHIND, radius=1.6, above=2)
        kept = _drawn(group, MOST)
        panel.marks(kept["x"], kept["y"], sides[side], radius=1.9, opacity=0.7)
        note = f"{len(kept):,} of {len(group):,} cells" if len(kept) < len(group) else f"{len(group):,} cells"
        label = f"Cells of {side} on {plane.axes[0]} and {plane.axes[1]}."
        panels.append(Drawn(side, panel.write(f"{prefix}{number}", label), note))
    return Drawing(tuple(panels), (), caption)


def condition_projection(cells: Projection, condition: Condition, files: list[str], prefix: str) -> Drawing | None:
    """Draw one condition: the control cells of its type, the observed cells, and each predicted file over them.

    Control cells of its assay batch, where it has one that there are control cells of.
    """
    table, plane = cells.on(cells.components), cells.components
    perturbation, cell_type, batch = condition
    own = table[(table["perturbation"] == perturbation) & (table["cell_type"] == cell_type)]
    own = own[own["assay_batch"] == batch] if batch else own
    controls = table[(table["side"] == CONTROLS) & (table["cell_type"] == cell_type)]
    near = controls[controls["assay_batch"] == batch]
    controls = near if batch and len(near) else controls
    observed = own[own["side"] == OBSERVED]
    shown = [name for name in files[:FILES_SHOWN] if (own["side"] == name).any()]
    if observed.empty or not shown:
        return None
    x, y = _limits(pd.concat([own, controls]))
    panels = []
    for number, (name, look) in enumerate(zip(shown, FILES, strict=False)):
        panel = Panel(320, 260)
        panel.view(x, y)
        panel.labels(*plane.axes)
        for group, drawn in ((controls, CONTROL), (observed, _RING), (own[own["side"] == name], look)):
            kept = _drawn(group, MOST_OF_CONDITION)
            panel.marks(kept["x"], kept["y"], drawn, radius=2.2, opacity=0.75)
        of = condition_name(condition)
        label = f"Control, observed and predicted cells ({name}) of {of} on two components."
        panels.append(Drawn(name, panel.write(f"{prefix}-cells{number}", label)))
    keys = [mark_key(CONTROL, "control"), mark_key(_RING, "observed")]
    keys += [mark_key(look, name) for name, look in zip(shown, FILES, strict=False)]
    return Drawing(tuple(panels), tuple(keys), ())


def _drawn(group: pd.DataFrame, most: int) -> pd.DataFrame:
    return group.iloc[sampled(np.arange(len(group)), most)]


def _limits(table: pd.DataFrame) -> tuple[tuple[float, float], tuple[float, float]]:
    """From the smallest to the largest place on either axis, with some room."""
    found = []
    for name in ("x", "y"):
        values = table[name].to_numpy(dtype=np.float64)
        values = values[np.isfinite(values)]
        low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
        pad = 0.04 * (high - low) or 0.5
        found.append((low - pad, high + pad))
    return found[0], found[1]
