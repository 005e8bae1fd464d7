"""The mean shift against data on which it is exact, and against the weighted mean computed by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from perturbdiff.baselines import pseudobulk
from perturbdiff.baselines.mean import mean_shift
from perturbdiff.cells.memory import Cells

GENES = ("g0", "g1", "g2")


def make_cells(groups, value):
    """Cells of (perturbation, cell type, assay batch, number), `value` of these names and the cell's number each."""
    labels = [(*names, i) for *names, n in groups for i in range(n)]
    return Cells(
        values=np.array([value(*label) for label in labels], dtype=np.float32),
        scale="log1p",
        total_counts=None,
        genes=pd.Index(GENES),
        names=pd.Index([f"cell{i}" for i in range(len(labels))]),
        labels=pd.DataFrame(
            [label[:3] for label in labels], columns=["perturbation", "cell_type", "assay_batch"]
        ).astype("category"),
        control="control",
    )


def values_of(cells):
    return cells.log_expression(cells.genes).toarray()


SHIFT = {"control": np.zeros(3), "a": np.array([1.0, -0.5, 0.0]), "b": np.array([0.0, 2.0, 0.25])}
OFFSET = {"T": 3.0, "B": 5.0, "NK": 4.0, "d1": 0.0, "d2": 1.5}


def additive(perturbation, cell_type, assay_batch, _i):
    return OFFSET[cell_type] + OFFSET[assay_batch] + SHIFT[perturbation]


ADDITIVE = [
    ("control", "T", "d1", 3), ("control", "T", "d2", 4), ("control", "B", "d1", 2),
    ("a", "T", "d1", 5), ("a", "T", "d2", 2), ("a", "B", "d1", 7), ("b", "B", "d1", 3),
]  # fmt: skip


@pytest.mark.parametrize("cells_at_once", [1, 4, 2**15])
def test_the_shift_is_exact_on_additive_data_and_predicts_a_cell_type_it_never_saw(monkeypatch, cells_at_once):
    monkeypatch.setattr(pseudobulk, "_CELLS_AT_ONCE", cells_at_once)
    shift = mean_shift(make_cells(ADDITIVE, additive), GENES)
    assert shift.shifts.loc["a"].to_numpy() == pytest.approx(SHIFT["a"])
    assert shift.shifts.loc["b"].to_numpy() == pytest.approx(SHIFT["b"])
    unseen_type = [("a", "NK", "d1", 2), ("b", "NK", "d2", 1)]
    start = make_cells(unseen_type, lambda _, cell_type, assay_batch, i: additive("control", cell_type, assay_batch, i))
    assert values_of(shift.predict(start)) == pytest.approx(values_of(make_cells(unseen_type, additive)))


def test_groups_weigh_by_their_perturbed_cells_and_an_assay_batch_without_controls_takes_the_cell_types():
    def value(perturbation, cell_type, assay_batch, i):
        base = {("T", "d1"): 1.0, ("T", "d2"): 3.0, ("T", "d3"): 7.0}[cell_type, assay_batch]
        return np.full(3, base if perturbation == "control" else base + {"d1": 1.0, "d2": 2.0, "d3": 0.0}[assay_batch])

    groups = [
        ("control", "T", "d1", 3),
        ("control", "T", "d2", 1),
        ("a", "T", "d1", 2),
        ("a", "T", "d2", 5),
        ("a", "T", "d3", 1),
    ]
    shift = mean_shift(make_cells(groups, value), GENES)
    fallback = 7.0 - (3 * 1.0 + 1 * 3.0) / 4
    assert shift.shifts.loc["a"].to_numpy() == pytest.approx((2 * 1.0 + 5 * 2.0 + 1 * fallback) / 8)
    assert shift.left_out == 0


def test_a_group_without_control_cells_of_its_cell_type_is_left_out_and_counted():
    shift = mean_shift(make_cells([*ADDITIVE, ("a", "NK", "d1", 50)], additive), GENES)
    assert shift.left_out == 1
    assert shift.shifts.loc["a"].to_numpy() == pytest.approx(SHIFT["a"])


def test_a_perturbation_never_seen_takes_the_mean_of_the_trained_shifts():
    shift = mean_shift(make_cells(ADDITIVE, additive), GENES)
    start = make_cells([("new", "T", "d1", 2), ("a", "T", "d1", 1)], lambda *_: np.full(3, 4.0))
    assert shift.unseen(["new", "a", "new"]) == ["new"]
    average = (SHIFT["a"] + SHIFT["b"]) / 2
    assert values_of(shift.predict(start)) == pytest.approx(4.0 + np.array([average, average, SHIFT["a"]]))


def test_a_prediction_is_clipped_at_zero_and_leaves_the_control_cells_untouched():
    shift = mean_shift(make_cells(ADDITIVE, additive), GENES)
    start = make_cells([("a", "T", "d1", 1)], lambda *_: np.array([0.0, 0.2, 0.0]))
    predicted = shift.predict(start)
    assert values_of(predicted) == pytest.approx(np.array([[1.0, 0.0, 0.0]]))
    assert values_of(start) == pytest.approx(np.array([[0.0, 0.2, 0.0]]))


def test_genes_may_be_a_part_of_the_files_in_another_order():
    shift = mean_shift(make_cells(ADDITIVE, additive), ["g2", "g0"])
    assert shift.shifts.loc["b"].to_dict() == pytest.approx({"g2": 0.25, "g0": 0.0})


def test_training_cells_without_perturbed_or_without_control_cells_are_refused():
    only_controls = make_cells([("control", "T", "d1", 3)], additive)
    with pytest.raises(ValueError, match="hold no perturbed cells beside control cells"):
        mean_shift(only_controls, GENES)
    with pytest.raises(ValueError, match="hold no perturbed cells beside control cells"):
        mean_shift(replace(make_cells([("a", "T", "d1", 3)], additive), control="DMSO"), GENES)
