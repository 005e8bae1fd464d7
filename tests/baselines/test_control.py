"""The control baseline draws the right control cells and changes nothing."""

import numpy as np
import pandas as pd
import pytest

from perturbdiff.baselines.control import draw, groups_of, predict_control
from perturbdiff.cells.memory import Cells

GENES = ["g0", "g1"]


def make_cells(groups):
    """Cells of (perturbation, cell type, assay batch, number); gene g0 is the cell's number, counted over all."""
    labels = [tuple(labels) for *labels, n in groups for _ in range(n)]
    values = np.array([[i, 1.0] for i in range(len(labels))], dtype=np.float32)
    return Cells(
        values=values,
        scale="log1p",
        total_counts=None,
        genes=pd.Index(GENES),
        names=pd.Index([f"cell{i}" for i in range(len(labels))]),
        labels=pd.DataFrame(labels, columns=["perturbation", "cell_type", "assay_batch"]).astype("category"),
        control="control",
    )


CONTROLS = make_cells(
    [("control", "T", "d1", 4), ("control", "T", "d2", 3), ("control", "B", "d1", 2), ("a", "T", "d1", 5)]
)


def _predict(*groups):
    groups = pd.DataFrame(groups, columns=["perturbation", "cell_type", "assay_batch", "cells"])
    return predict_control(groups, CONTROLS, genes=GENES, control="control", rng=np.random.default_rng(0))


def _drawn(cells):
    return cells.log_expression(["g0"]).toarray()[:, 0].astype(int).tolist()


def test_control_cells_come_from_the_cell_type_and_assay_batch():
    predicted = _predict(("a", "T", "d2", 3), ("b", "B", "d1", 2))
    assert sorted(_drawn(predicted)[:3]) == [4, 5, 6]
    assert sorted(_drawn(predicted)[3:]) == [7, 8]
    assert predicted.labels["perturbation"].tolist() == ["a"] * 3 + ["b"] * 2
    assert not predicted.is_control.any()
    assert predicted.names.is_unique


@pytest.mark.parametrize("assay_batch", ["", "unseen"])
def test_an_empty_or_unseen_assay_batch_means_all_of_the_cell_type(assay_batch):
    assert sorted(_drawn(_predict(("a", "T", assay_batch, 7)))) == list(range(7))


def test_a_short_supply_is_cycled_and_every_cell_serves_equally_often():
    drawn = _drawn(_predict(("a", "B", "d1", 5)))
    assert sorted(drawn[:2]) == sorted(drawn[2:4]) == [7, 8]


def test_a_draw_is_without_replacement_while_the_cells_last():
    rows = np.arange(10, 20)
    drawn = draw(rows, 25, np.random.default_rng(1))
    assert drawn.size == 25
    assert sorted(drawn[:10]) == sorted(drawn[10:20]) == rows.tolist()
    assert len(set(drawn[20:])) == 5


def test_a_cell_type_without_control_cells_is_refused_by_name():
    with pytest.raises(ValueError, match="cell type 'NK' has no control cells to predict from"):
        _predict(("a", "NK", "d1", 2))


def test_the_groups_of_a_file_are_its_perturbed_populations():
    groups = groups_of(make_cells([("a", "T", "d2", 2), ("control", "T", "d1", 3), ("a", "T", "d1", 4)]))
    assert groups.to_numpy().tolist() == [["a", "T", "d1", 4], ["a", "T", "d2", 2]]
