"""The figure of a comparison: one panel per metric, every method on every condition and on their mean.

A row is a condition, with the mean over conditions above them; a mark is a method, told apart by colour and by
shape. Where there are too many conditions to name, a row is a method and its conditions are a strip around their mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from perturbdiff.io import whole_file

type Values = NDArray[Any]

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


@dataclass(frozen=True)
class Style:
    """How a method is drawn."""

    color: str
    marker: str
    hollow: bool = False


_KNOWN = {
    "control": Style("#777777", "s"),
    "control + mean shift": Style("#E69F00", "^"),
    "ceiling": Style("#000000", "D", hollow=True),
}
_MODELS = tuple(
    Style(color, marker)
    for color, marker in zip(("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"), "oPXvp", strict=True)
)


def figure(table: pd.DataFrame, *, title: str = "", panels: Sequence[Panel] = PANELS) -> Figure:
    """Draw the long table of a comparison (method, perturbation, cell_type, metric, value).

    A mean is over the conditions where the metric is defined; the number where it is not is written in the panel.

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
    table = table.assign(condition=_names(table), pair=_pairs(table))
    styles = _styles(table["method"])
    n_conditions = table["condition"].nunique()
    n_rows = n_conditions + 1 if n_conditions <= MAX_ROWS else len(styles)
    drawn = Figure(figsize=(2.9 * len(panels) + 1.8, 2.1 + 0.38 * n_rows), dpi=150, layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        values = _values(table, panel.metric, list(styles))
        means = _means(table, panel.metric, list(styles))
        if n_conditions <= MAX_ROWS:
            _dots(axis, values, means, styles)
        else:
            _strips(axis, values, means, styles)
        _dress(axis, panel, values)
    handles = [_mark(style, name) for name, style in styles.items()]
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
    columns = [table[name].astype(str) for name in ("perturbation", "cell_type", "assay_batch") if name in table]
    varying = [column for column in columns if len(set(column)) > 1] or columns[:1]
    return [" · ".join(label for label in labels if label) for labels in zip(*varying, strict=True)]


def _pairs(table: pd.DataFrame) -> "pd.Series[Any]":
    """The perturbation and cell type of each row: a mean is first over the batches of such a pair."""
    pairs: pd.Series[Any] = table["perturbation"].astype(str) + "\0" + table["cell_type"].astype(str)
    return pairs


def _means(table: pd.DataFrame, metric: str, methods: list[str]) -> "pd.Series[float]":
    """The mean of each method over pairs, of the means over the batches of each."""
    rows = table[table["metric"] == metric]
    return rows.groupby(["method", "pair"])["value"].mean().groupby("method").mean().reindex(methods)


def _styles(methods: "pd.Series[str]") -> dict[str, Style]:
    names = list(dict.fromkeys(methods))
    models = [name for name in names if name not in _KNOWN]
    return {name: _KNOWN.get(name) or _MODELS[models.index(name) % len(_MODELS)] for name in names}


def _values(table: pd.DataFrame, metric: str, methods: list[str]) -> pd.DataFrame:
    """One metric as conditions x methods, conditions in the order of the table."""
    rows = table[table["metric"] == metric]
    wide = rows.pivot_table(index="condition", columns="method", values="value", sort=False, dropna=False)
    return wide.reindex(index=list(dict.fromkeys(table["condition"])), columns=methods)


def _dots(axis: Axes, values: pd.DataFrame, means: "pd.Series[float]", styles: dict[str, Style]) -> None:
    """A row per condition under the row of their means."""
    rows = np.arange(1, len(values) + 1)
    borders = rows[:-1] + 0.5
    axis.hlines(borders, 0, 1, transform=axis.get_yaxis_transform(), color="#E4E4E4", linewidth=0.8, zorder=0)
    axis.axhspan(-0.5, 0.5, color="#F4F4F4", zorder=-1, linewidth=0)
    offsets = np.linspace(-0.26, 0.26, len(styles)) if len(styles) > 1 else np.zeros(1)
    for offset, (name, style) in zip(
        offsets, styles.items(), strict=True
    ):  # one above the other, so that none is hidden
        _scatter(axis, values[name].to_numpy(), rows + offset, style, size=34)
        _scatter(axis, np.array([means[name]]), np.array([offset]), style, size=70)
    axis.set_yticks([0, *rows], [f"mean of {len(values)}", *values.index])
    for label in axis.get_yticklabels()[:1]:  # the first panel alone has labels
        label.set_fontweight("bold")
    axis.set_ylim(len(values) + 0.5, -0.5)


def _strips(axis: Axes, values: pd.DataFrame, means: "pd.Series[float]", styles: dict[str, Style]) -> None:
    """A row per method: its conditions as a strip of points, their mean as a large mark."""
    offsets = 0.28 * np.sin(2.4 * np.arange(len(values)))  # spread the points without chance, so that figures repeat
    for row, (name, style) in enumerate(styles.items()):
        strip = axis.scatter(values[name], row + offsets, s=8, color=style.color, alpha=0.3, linewidths=0, zorder=2)
        strip.set_rasterized(True)
        _scatter(axis, np.array([means[name]]), np.array([row]), style, size=110)
    axis.set_yticks(range(len(styles)), list(styles))
    axis.set_ylim(len(styles) - 0.5, -0.5)


def _scatter(axis: Axes, x: Values, y: Values, style: Style, *, size: float) -> None:
    face, edge = ("none", style.color) if style.hollow else (style.color, "white")
    width = 1.4 if style.hollow else 0.7
    axis.scatter(x, y, s=size, marker=style.marker, facecolors=face, edgecolors=edge, linewidths=width, zorder=3)


def _dress(axis: Axes, panel: Panel, values: pd.DataFrame) -> None:
    axis.axvline(panel.line, color="#555555", linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    axis.set_title(panel.title, fontsize=11, fontweight="bold", loc="left")
    axis.set_xlabel(panel.better, fontsize=8.5)
    axis.tick_params(axis="both", labelsize=8.5, length=0)
    axis.margins(x=0.08)
    axis.update_datalim([(edge, 0.0) for edge in panel.view], updatey=False)
    axis.autoscale_view(scaley=False)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    undefined = int(values.isna().sum().sum())
    if undefined:
        axis.text(
            1.0, 1.01, f"{undefined} of {values.size} undefined", transform=axis.transAxes, ha="right", fontsize=7
        )


def _mark(style: Style, name: str) -> Line2D:
    face = "none" if style.hollow else style.color
    return Line2D(
        [], [], linestyle="none", marker=style.marker, color=style.color, markerfacecolor=face, markersize=8, label=name
    )
