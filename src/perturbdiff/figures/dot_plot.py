"""The figure of an evaluation as a picture: one panel per metric, every method on every condition and on their mean.

A row is a condition, with the mean over conditions above them; a mark is a method, told apart by colour and by
shape. Where there are too many conditions to name, a row is a method and its conditions are a strip around their mean.

It is drawn by matplotlib alone: panels share the names of their rows, which need as much room as they need, where a
panel of the page (`svg`) has fixed margins and marks and colours that are the page's. Both have the same looks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from perturbdiff.figures.looks import CEILING, COLOURS, CONTROL, FILES, MUTED, RULE, STYLE, Look
from perturbdiff.figures.strip_plot import apart
from perturbdiff.io import whole_file

MAX_ROWS = 30
"""More conditions than this are drawn as strips."""


@dataclass(frozen=True)
class Panel:
    """One metric: its title, what is better, the value that a line marks, and the range that is always in view."""

    metric: str
    title: str
    better: str
    line: float
    view: tuple[float, float]


PANELS = (
    Panel("energy_distance", "Energy distance", "log1p counts per 10⁴, lower is better", 0.0, (0.0, 0.1)),
    Panel("pearson_of_change", "Pearson of change", "over genes, higher is better", 0.0, (0.0, 1.0)),
    Panel("de_auroc", "AUROC of DE genes", "higher is better, 0.5 is chance", 0.5, (0.4, 1.0)),
    Panel("spread_ratio", "Spread ratio", "sd predicted / observed, 1 is best", 1.0, (0.6, 1.4)),
)
"""What the figure shows, in its order."""

_KNOWN = {"control": CONTROL, "control + mean shift": Look("sky", "cross"), "ceiling": CEILING}
_LABELS = ("perturbation", "cell_type", "assay_batch")


def figure(table: pd.DataFrame, *, title: str = "", panels: Sequence[Panel] = PANELS) -> Figure:
    """Draw the long table of a comparison (method, perturbation, cell_type, metric, value).

    A mean is over the conditions where the metric is defined, first over the batches of a perturbation in a cell type;
    the number where it is not is written in the panel.

    Raises:
        ValueError: the table lacks a column, or holds none of the panels' metrics.
    """
    missing = {"method", "perturbation", "cell_type", "metric", "value"} - set(table.columns)
    if missing:
        raise ValueError(f"the table lacks the columns {sorted(missing)}; give the long table of a comparison.")
    panels = [panel for panel in panels if (table["metric"] == panel.metric).any()]
    if not panels:
        raise ValueError(
            f"the table holds none of the metrics that the figure shows, only {sorted(set(table['metric']))}; "
            "give the long table of a comparison."
        )
    table = table.assign(condition=_names(table))
    pairs = table.drop_duplicates("condition").set_index("condition")[["perturbation", "cell_type"]].astype(str)
    looks = _looks(table["method"])
    named = len(pairs) <= MAX_ROWS
    size = (2.9 * len(panels) + 1.8, 2.1 + 0.38 * (len(pairs) + 1 if named else len(looks)))
    with mpl.rc_context(STYLE):
        drawn = Figure(figsize=size, dpi=150, layout="constrained")
        FigureCanvasAgg(drawn)
        axes = drawn.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, panel in zip(axes, panels, strict=True):
            rows = table[table["metric"] == panel.metric]
            wide = rows.pivot_table(index="condition", columns="method", values="value", sort=False, dropna=False)
            wide = wide.reindex(index=pairs.index, columns=list(looks))
            means = wide.groupby([pairs["perturbation"], pairs["cell_type"]]).mean().mean()
            (_dots if named else _strips)(axis, wide, means, looks)
            _dress(axis, panel, wide)
        handles = [_key(look, name) for name, look in looks.items()]
        drawn.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), frameon=False)
        if title:
            drawn.suptitle(title, fontsize=12, fontweight="bold")
    return drawn


def save_figure(drawn: Figure, path: Path) -> None:
    """Write a figure (the suffix names the format), whole or not at all.

    Raises:
        ValueError: the path has no suffix.
    """
    if not path.suffix:
        raise ValueError(f"{str(path)!r} has no suffix, which names the format of a figure; end it in .png.")
    with whole_file(path) as partial:
        drawn.savefig(partial)


def _names(table: pd.DataFrame) -> list[str]:
    """The name of each row's condition: what varies of perturbation, cell type and assay batch."""
    labels = table[[name for name in _LABELS if name in table]].astype(str)
    varying = [name for name in labels if len(set(labels[name])) > 1] or ["perturbation"]
    return [" · ".join(filter(None, row)) for row in labels[varying].itertuples(index=False)]


def _looks(methods: "pd.Series[str]") -> dict[str, Look]:
    """Those of files as in the page, over again where there are more files than looks."""
    names = list(dict.fromkeys(methods))
    files = [name for name in names if name not in _KNOWN]
    return {name: _KNOWN.get(name) or FILES[files.index(name) % len(FILES)] for name in names}


def _dots(axis: Axes, values: pd.DataFrame, means: "pd.Series[float]", looks: dict[str, Look]) -> None:
    """A row per condition under the row of their means."""
    rows = np.arange(1, len(values) + 1)
    axis.hlines(rows[:-1] + 0.5, 0, 1, transform=axis.get_yaxis_transform(), color=RULE, linewidth=0.8, zorder=0)
    axis.axhspan(-0.5, 0.5, color=RULE, alpha=0.35, zorder=-1, linewidth=0)
    offsets = np.linspace(-0.26, 0.26, len(looks)) if len(looks) > 1 else np.zeros(1)
    # one above the other, so that none is hidden
    for offset, (name, look) in zip(offsets, looks.items(), strict=True):
        _marks(axis, values[name], rows + offset, look, size=34)
        _marks(axis, [means[name]], [offset], look, size=70)
    axis.set_yticks([0, *rows], [f"mean of {len(values)}", *values.index])
    for label in axis.get_yticklabels()[:1]:  # the first panel alone has labels
        label.set_fontweight("bold")
    axis.set_ylim(len(values) + 0.5, -0.5)


def _strips(axis: Axes, values: pd.DataFrame, means: "pd.Series[float]", looks: dict[str, Look]) -> None:
    """A row per method: its conditions as a strip of points, their mean as a large mark."""
    for row, (name, look) in enumerate(looks.items()):
        places = row + 0.28 * apart(len(values))
        strip = axis.scatter(values[name], places, s=8, color=look.hex, alpha=0.3, linewidths=0, zorder=2)
        strip.set_rasterized(True)
        _marks(axis, [means[name]], [row], look, size=110)
    axis.set_yticks(range(len(looks)), list(looks))
    axis.set_ylim(len(looks) - 0.5, -0.5)


def _marks(axis: Axes, x: ArrayLike, y: ArrayLike, look: Look, *, size: float) -> None:
    face, edge, width = ("none", look.hex, 1.4) if look.hollow else (look.hex, "white", 0.7)
    axis.scatter(x, y, s=size, marker=look.marker, facecolors=face, edgecolors=edge, linewidths=width, zorder=3)


def _key(look: Look, name: str) -> Line2D:
    face = "none" if look.hollow else look.hex
    key = Line2D([], [], linestyle="none", marker=look.marker, markersize=8, color=look.hex, label=name)
    key.set_markerfacecolor(face)
    return key


def _dress(axis: Axes, panel: Panel, values: pd.DataFrame) -> None:
    axis.axvline(panel.line, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    axis.set_title(panel.title, fontsize=11, fontweight="bold", loc="left")
    axis.set_xlabel(panel.better, fontsize=8.5)
    axis.tick_params(labelsize=8.5, labelcolor=COLOURS["ink"])
    axis.margins(x=0.08)
    axis.update_datalim([(edge, 0.0) for edge in panel.view], updatey=False)
    axis.autoscale_view(scaley=False)
    axis.spines["left"].set_visible(False)
    undefined = int(values.isna().sum().sum())
    if undefined:
        said = f"{undefined} of {values.size} undefined"
        axis.text(1.0, 1.01, said, transform=axis.transAxes, ha="right", fontsize=7)
