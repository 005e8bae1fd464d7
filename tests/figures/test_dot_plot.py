"""The figure shows every method and condition, and is written whole or not at all."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from perturbdiff.figures.dot_plot import MAX_ROWS, PANELS, figure, save_figure

METHODS = ["model", "control", "control + mean shift", "ceiling"]


def _table(n_perturbations=2, cell_types=("T", "B"), methods=METHODS):
    rng = np.random.default_rng(0)
    rows = [
        (method, f"p{i}", cell_type, panel.metric, rng.random())
        for method in methods
        for i in range(n_perturbations)
        for cell_type in cell_types
        for panel in PANELS
    ]
    return pd.DataFrame(rows, columns=["method", "perturbation", "cell_type", "metric", "value"])


def _labels(axis):
    return [label.get_text() for label in axis.get_yticklabels()]


def test_a_panel_per_metric_names_its_direction_and_every_condition_has_a_row():
    drawn = figure(_table(), title="held out")
    assert [axis.get_title(loc="left") for axis in drawn.axes] == [panel.title for panel in PANELS]
    assert ["lower is better" in axis.get_xlabel() for axis in drawn.axes] == [True, False, False, False]
    assert _labels(drawn.axes[0]) == ["mean of 4", "p0 · T", "p0 · B", "p1 · T", "p1 · B"]
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == METHODS


def test_a_row_is_named_by_what_varies():
    assert _labels(figure(_table(1)).axes[0]) == ["mean of 2", "T", "B"]
    assert _labels(figure(_table(2, ("T",))).axes[0]) == ["mean of 2", "p0", "p1"]


def test_many_conditions_are_strips_with_a_row_per_method():
    drawn = figure(_table(MAX_ROWS, ("T", "B")))
    assert _labels(drawn.axes[0]) == METHODS


def test_undefined_values_are_counted_in_the_panel():
    table = _table()
    table.loc[(table["metric"] == "de_auroc") & (table["method"] == "model"), "value"] = np.nan
    texts = [[text.get_text() for text in axis.texts] for axis in figure(table).axes]
    assert texts == [[], [], ["4 of 16 undefined"], []]


def test_methods_are_told_apart_by_colour_and_by_shape_and_more_files_get_their_own():
    drawn = figure(_table(methods=["one", "two", "three", *METHODS[1:]]))
    marks = [(handle.get_color(), handle.get_marker()) for handle in drawn.legends[0].legend_handles]
    assert len({color for color, _ in marks}) == len({marker for _, marker in marks}) == 6


def test_a_saved_figure_is_an_image_and_no_partial_file_is_left(tmp_path):
    save_figure(figure(_table()), tmp_path / "comparison.png")
    assert [path.name for path in tmp_path.iterdir()] == ["comparison.png"]
    assert imread(tmp_path / "comparison.png").std() > 0.05


def test_drawing_leaves_the_backend_and_open_figures_alone():
    before = mpl.rcParams["backend"]
    figure(_table())
    assert mpl.rcParams["backend"] == before


def test_what_cannot_be_drawn_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"the table lacks the columns \['metric'\]"):
        figure(_table().drop(columns="metric"))
    with pytest.raises(ValueError, match="the table holds none of the metrics that the figure shows"):
        figure(_table().assign(metric="mae"))
    with pytest.raises(ValueError, match="has no suffix"):
        save_figure(figure(_table()), tmp_path / "comparison")
