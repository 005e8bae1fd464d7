"""All baselines in one place: what they say, what they leave out, and that they see no test cell."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from perturbdiff.baselines import pseudobulk
from perturbdiff.baselines.catalogue import BASELINES, NAMES, fitted
from perturbdiff.baselines.control import groups_of, predict_control
from perturbdiff.baselines.mean import mean_shift
from perturbdiff.cells.anndata import cells_from_anndata
from perturbdiff.cells.memory import Cells
from perturbdiff.files.container import read_anndata
from perturbdiff.recipes.dataset import Columns, Expression, Grammar
from perturbdiff.recipes.selection import Match, hold_outs_from
from perturbdiff.simulation.screen import simulate
from perturbdiff.split.rules import split_cells

PLUS = Grammar(separator="+")
CONTEXTS = {"A": [1.0, 1.0, 0.5], "B": [4.0, 1.0, 0.5], "C": [4.0, 6.0, 0.5]}
SHIFTS = {
    ("p", "A"): [1.0, 0.0, -2.0],
    ("q", "A"): [0.0, 1.0, 0.0],
    ("p", "B"): [2.0, 0.0, 0.0],
    ("p+r", "B"): [2.0, 1.0, 1.0],
}
ASKED = [("p+q", "C"), ("p", "C"), ("p+r", "C"), ("s", "C")]


@pytest.fixture
def training(make_shifted):
    return make_shifted(SHIFTS, CONTEXTS)


@pytest.fixture
def start(make_cells):
    """Two control cells of C under every label that is asked."""
    groups = [(tau, kind, "", 2) for tau, kind in ASKED]
    return make_cells(groups, lambda *labels: [4.0 + labels[3], 6.0, 0.5], ["g0", "g1", "g2"])


def fit_all(training, genes=("g0", "g1", "g2"), conditions=ASKED, **more):
    return fitted(NAMES, training, genes, conditions=conditions, grammar=PLUS, **more)


def test_the_baselines_are_those_of_the_contract():
    assert NAMES == (
        "control",
        "control + mean shift",
        "perturbed mean",
        "context mean",
        "additive",
        "ridge",
        "kernel ridge",
        "nearest cell type",
        "similar contexts",
    )
    assert [one.needs_training for one in BASELINES] == [False] + [True] * 8
    assert all(one.about.startswith("control cells") for one in BASELINES)


def test_every_baseline_predicts_the_given_cells_moved_by_one_shift_a_condition_and_clipped(training, start):
    found, _ = fit_all(training)
    before = start.log_expression(start.genes).toarray()
    for name, one in found.items():
        moved = one.predict(start)
        assert list(moved.genes) == ["g0", "g1", "g2"]
        values = moved.log_expression(moved.genes).toarray()
        assert (values >= 0).all()
        kept = np.isin(start.names, moved.names)
        assert moved.labels.astype(str).equals(start.labels[kept].astype(str).reset_index(drop=True)), name
        for condition, rows in moved.labels.groupby(["perturbation", "cell_type"], observed=True).indices.items():
            given = before[kept][rows]
            shift = one.response.shift(*condition, given.mean(axis=0))
            assert values[rows] == pytest.approx(np.maximum(given + shift, 0), abs=1e-6)
    assert start.log_expression(start.genes).toarray().tolist() == before.tolist()


def test_what_cannot_be_predicted_is_left_out_with_the_reason_and_the_rest_is_there(training, start):
    found, notes = fit_all(training)
    assert found["additive"].left_out == {
        ("p+r", "C"): "training has no cells of 'r' alone",
        ("s", "C"): "training has no cells of 's' alone",
    }
    assert set(found["additive"].predict(start).labels["perturbation"]) == {"p+q", "p"}
    for name in ("nearest cell type", "similar contexts"):
        assert found[name].left_out == {
            ("p+q", "C"): "training has 'p+q' in no cell type",
            ("s", "C"): "training has 's' in no cell type",
        }
    for name in NAMES:
        if name not in {"additive", "nearest cell type", "similar contexts"}:
            assert not found[name].left_out
            assert found[name].predict(start).n_cells == start.n_cells
    assert (
        "'additive' leaves out 2 of 4 conditions: training has no cells of 'r' alone; training has no cells of 's' "
        "alone." in notes
    )


def test_the_notes_name_perturbations_that_are_predicted_by_something_more_general(training):
    _, notes = fit_all(training)
    assert (
        "'control + mean shift': 2 of 4 perturbations were not in training ('p+q', 's') and take the mean shift over "
        "all 3 trained perturbations." in notes
    )
    assert any(note.startswith("'context mean': 2 of 4 perturbations were not in training") for note in notes)
    assert any(note.startswith("'ridge': 1 of 4 perturbations have members that training") for note in notes)
    assert not any(note.startswith(("'control':", "'perturbed mean'")) for note in notes)


def test_many_reasons_are_counted_and_two_are_given(training):
    conditions = [(f"new{i}", "A") for i in range(5)]
    _, notes = fitted(("nearest cell type",), training, ("g0",), conditions=conditions)
    (note,) = notes
    assert note.startswith("'nearest cell type' leaves out 5 of 5 conditions: training has 'new0' in no cell type; ")
    assert note.endswith("; and 3 more reasons.")


def test_the_mean_shift_is_the_one_of_its_own_module(training, start):
    found, _ = fit_all(training)
    expected = mean_shift(training, ["g0", "g1", "g2"]).predict(start)
    moved = found["control + mean shift"].predict(start)
    genes = list(moved.genes)
    assert moved.log_expression(genes).toarray() == pytest.approx(expected.log_expression(genes).toarray(), abs=1e-6)


def test_a_condition_is_predicted_alike_alone_and_among_others(training, start):
    found, _ = fit_all(training, conditions=[*ASKED, ("p", "unknown")])
    both = replace(start, labels=start.labels.assign(cell_type=pd.Categorical(["C", "C"] + ["unknown"] * 6)))
    for one in found.values():
        together = one.predict(both)
        for condition in set(map(tuple, together.labels[["perturbation", "cell_type"]].astype(str).to_numpy())):
            labels = both.labels[["perturbation", "cell_type"]].astype(str)
            alone = one.predict(both.take((labels == list(condition)).all(axis=1).to_numpy()))
            rows = (together.labels[["perturbation", "cell_type"]].astype(str) == list(condition)).all(axis=1)
            assert alone.log_expression(alone.genes).toarray().tolist() == (
                together.log_expression(together.genes).toarray()[rows.to_numpy()].tolist()
            )


def test_the_training_cells_are_read_once_for_all_baselines(training, monkeypatch):
    fresh, passes = replace(training), []
    measured = pseudobulk._measured
    monkeypatch.setattr(pseudobulk, "_measured", lambda *given: passes.append(given) or measured(*given))
    fit_all(fresh)
    assert len(passes) == 1


def test_without_training_cells_control_alone_is_left_and_the_others_are_named():
    found, notes = fitted(("ridge", "control", "additive"), None, ("g0",), conditions=ASKED)
    assert list(found) == ["control"]
    (note,) = notes
    assert note.startswith("'additive', 'ridge' are missing: they need the training cells")
    (one,) = (baseline for baseline in BASELINES if baseline.name == "ridge")
    with pytest.raises(ValueError, match="'ridge' is fitted to training cells, and none are given"):
        one.fit(None, ("g0",), conditions=ASKED)


def test_a_misspelt_baseline_is_refused_and_the_nearest_named(training):
    with pytest.raises(ValueError, match=r"there is no baseline 'kernel_ridge'; the nearest is 'kernel ridge'"):
        fitted(("kernel_ridge",), training, ("g0",), conditions=ASKED)


def test_baselines_bring_no_torch():
    code = "import sys, perturbdiff.baselines.catalogue, perturbdiff.baselines.files; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


COLUMNS = Columns(perturbation="perturbation", cell_type="cell_type", assay_batch="assay_batch")


@pytest.fixture(scope="module")
def simulated():
    adata = simulate(
        "interaction",
        n_genes=40,
        n_cell_types=4,
        n_assay_batches=2,
        n_perturbations=4,
        cells_per_group=8,
        control_cells_per_group=10,
        seed=0,
    )
    return cells_from_anndata(adata, columns=COLUMNS, expression=Expression(scale="counts"), control="control")


def test_test_cells_are_of_no_consequence_to_any_baseline(simulated):
    """Other expression in all held-out cells, and no other prediction."""
    rules = hold_outs_from([{"part": "test", "perturbation": ["stimulus_1", "stimulus_2"], "cell_type": ["type_4"]}])
    split = split_cells(simulated, rules, seed=0)
    counts = simulated.log_expression(simulated.genes).toarray()
    rows = split.rows("test")
    spoilt = counts.copy()
    spoilt[rows] = 7.0 * np.random.default_rng(0).random((len(rows), counts.shape[1]))
    conditions = [("stimulus_1", "type_4"), ("stimulus_2", "type_4")]
    values = []
    for matrix in (counts, spoilt):
        cells = replace(simulated, values=matrix.astype(np.float32), scale="log1p", total_counts=None)
        train = cells.take(split.rows("train"))
        groups = groups_of(cells.take(rows))
        start = predict_control(groups, cells, genes=cells.genes, control="control", rng=np.random.default_rng(1))
        found, _ = fitted(NAMES, train, list(cells.genes), conditions=conditions)
        assert len(found) == len(NAMES)
        values.append({name: one.predict(start).log_expression(cells.genes).toarray() for name, one in found.items()})
    for name in NAMES:
        assert values[0][name].tolist() == values[1][name].tolist(), name


def _errors(found, start, held):
    """The mean absolute error of the mean of each baseline, over conditions and genes."""
    truth = held.log_expression(held.genes).toarray()
    rows = held.labels.groupby(["perturbation", "cell_type"], observed=True).indices
    errors = {}
    for name, one in found.items():
        moved = one.predict(start)
        values = moved.log_expression(moved.genes).toarray()
        own = moved.labels.groupby(["perturbation", "cell_type"], observed=True).indices
        if own:
            errors[name] = np.mean([np.abs(values[own[key]].mean(0) - truth[rows[key]].mean(0)).mean() for key in own])
    return errors


def _real(path, **more):
    if not path.is_file():
        pytest.skip(f"{path.name} is missing: this test reads files that are not part of the project")
    columns = Columns(perturbation="perturbation", cell_type="cell_type", assay_batch="batch", **more)
    cells = cells_from_anndata(
        read_anndata(path),
        columns=columns,
        expression=Expression(scale="counts"),
        control="control",
        exclude=(Match(assay_batch=("unknown",)),) if "kang" in path.name else (),
    )
    return replace(cells, values=cells.log_expression(cells.genes), scale="log1p", total_counts=None)


def _judged(cells: Cells, rows, conditions=None, **more):
    held, train = cells.take(rows), cells.take(~rows)
    groups = groups_of(held)
    controls = cells.take(cells.is_control)
    start = predict_control(groups, controls, genes=cells.genes, control="control", rng=np.random.default_rng(0))
    asked = list(map(tuple, groups[["perturbation", "cell_type"]].astype(str).drop_duplicates().to_numpy()))
    found, notes = fitted(NAMES, train, list(cells.genes), conditions=asked, **more)
    return _errors(found, start, held), notes, found


@pytest.mark.real
def test_on_real_data_every_trained_baseline_is_nearer_to_unseen_cell_types_than_control_cells(real_data):
    cells = _real(real_data / "kang_ifnb_1kgenes.h5ad")
    rows = cells.labels["cell_type"].isin(["B cells", "CD14+ Monocytes"]).to_numpy() & ~cells.is_control
    errors, _, _ = _judged(cells, rows)
    assert all(error < 0.95 * errors["control"] for name, error in errors.items() if name != "control"), errors


DOUBLES = ["KLF1+MAP2K6", "KLF1+TGFBR2", "MAP2K3+MAP2K6", "MAP2K3+SLC38A2", "MAPK1+TGFBR2"]


@pytest.mark.real
def test_on_real_data_unseen_doubles_are_better_told_from_their_members_than_from_the_mean(real_data):
    cells = _real(real_data / "norman_mcfaline_perturbench_devel.h5ad")
    grammar = Grammar(separator="+", modality_separator="|")
    found = []
    for double in DOUBLES:
        rows = (cells.labels["perturbation"] == f"{double}|CRISPRa").to_numpy()
        errors, _, fits = _judged(cells, rows, grammar=grammar)
        found.append(errors)
        assert list(fits["nearest cell type"].left_out) == [(f"{double}|CRISPRa", "k562")]
    errors = pd.DataFrame(found).mean()
    simple = min(errors["control"], errors["control + mean shift"], errors["perturbed mean"])
    assert (errors[["additive", "ridge", "kernel ridge"]] < simple).all(), errors
