"""A baseline's file is one that `perturbdiff predict` could have written, and it is read back as it was predicted."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from perturbdiff.baselines.catalogue import fitted
from perturbdiff.baselines.files import predicted_file, write_prediction
from perturbdiff.cells.anndata import cells_from_anndata
from perturbdiff.evaluation.files import read_file
from perturbdiff.files.container import read_anndata
from perturbdiff.labels.dose import Quantity
from perturbdiff.labels.members import members_of
from perturbdiff.recipes.dataset import Columns, Expression, Grammar
from perturbdiff.simulation.responses import simulate_doses

COLUMNS = Columns(perturbation="perturbation", cell_type="cell_type", assay_batch="assay_batch")
CONDITIONS = pd.DataFrame(
    [("stimulus_1", "type_3", ""), ("stimulus_2", "type_3", "donor_1"), ("stimulus_1", "", "donor_2")],
    columns=["perturbation", "cell_type", "assay_batch"],
)


@pytest.fixture(scope="module")
def cells(adata):
    return cells_from_anndata(adata, columns=COLUMNS, expression=Expression(scale="counts"), control="control")


def fit(name, cells, genes=None):
    labels = cells.labels[~cells.is_control][["perturbation", "cell_type"]].astype(str).drop_duplicates()
    found, _ = fitted((name,), cells, genes or list(cells.genes), conditions=list(map(tuple, labels.to_numpy())))
    return found[name]


@pytest.mark.parametrize("name", ["control", "control + mean shift", "kernel ridge"])
def test_every_control_cell_of_a_condition_is_moved_by_the_conditions_shift_and_named(cells, name):
    one = fit(name, cells)
    made = predicted_file(one, cells, CONDITIONS, columns=COLUMNS, way="log1p")
    control = made[made.obs["population"] == -1]
    assert set(control.obs["perturbation"]) == {"control"}
    expression = cells.log_expression(cells.genes).toarray()
    assert control.X.toarray() == pytest.approx(expression[cells.names.get_indexer(control.obs_names)])
    predicted = made[made.obs["population"] == 0]
    assert made.obs_names.is_unique
    source = cells.names.get_indexer(predicted.obs["control_cell"].astype(str))
    assert cells.is_control[source].all()
    expected = []
    for label in predicted.obs[["perturbation", "cell_type"]].astype(str).drop_duplicates().to_numpy():
        rows = (predicted.obs[["perturbation", "cell_type"]].astype(str) == label).all(axis=1).to_numpy()
        given = expression[source[rows]]
        shift = one.response.shift(*label, given.mean(axis=0))
        expected.append(np.abs(predicted.X.toarray()[rows] - np.maximum(given + shift, 0)).max())
    assert max(expected) < 1e-5


def test_cells_are_drawn_as_counts_where_totals_are_known_and_the_file_says_the_way(cells, said):
    genes = [str(gene) for gene in cells.genes[::3]]
    one = fit("control + mean shift", cells, genes)
    made = predicted_file(one, cells, CONDITIONS, columns=COLUMNS)
    assert made.uns["perturbdiff"]["way"] == "counts"
    source = cells.names.get_indexer(made.obs["control_cell"].astype(str))
    predicted = (made.obs["population"] == 0).to_numpy()
    totals = cells.known_totals[source[predicted]]
    counts = np.expm1(made.X.toarray()[predicted].astype(float)) * totals[:, None] / 1e4
    # the totals are of the drawn cells, a little off those of the control cells
    share = np.where(counts > 0.5, counts / np.maximum(np.rint(counts), 1), 1.0)
    assert np.abs(share - 1).max() < 0.2
    added = predicted_file(one, cells, CONDITIONS, columns=COLUMNS, way="log1p")
    assert added.uns["perturbdiff"]["way"] == "log1p"
    zeros = [(file.X.toarray()[predicted] == 0).mean() for file in (made, added)]
    assert zeros[0] > zeros[1]
    assert not any("total counts" in note for note in said)
    assert "way" not in predicted_file(fit("control", cells), cells, CONDITIONS, columns=COLUMNS).uns["perturbdiff"]


def test_cells_of_unknown_totals_are_moved_on_log1p_values_and_that_is_said_or_refused(cells, said):
    values = cells.log_expression(cells.genes)
    values.data *= np.random.default_rng(0).uniform(0.9, 1.1, values.nnz).astype(np.float32)
    unknown = replace(cells, values=values, scale="log1p", total_counts=None)
    one = fit("control + mean shift", unknown)
    made = predicted_file(one, unknown, CONDITIONS, columns=COLUMNS)
    assert made.uns["perturbdiff"]["way"] == "log1p"
    (note,) = [one for one in said if "total counts" in one]
    assert note.endswith("control cells are not known, so 'control + mean shift' moves cells on log1p values.")
    with pytest.raises(ValueError, match="can't be drawn as counts; give control cells as counts, or leave --as away"):
        predicted_file(one, unknown, CONDITIONS, columns=COLUMNS, way="counts")


def test_conditions_take_the_control_cells_of_their_labels_once_each(cells):
    made = predicted_file(fit("control", cells), cells, CONDITIONS, columns=COLUMNS)
    predicted = made.obs[made.obs["population"] == 0]
    # 12 control cells of every type and donor; 3 types, 2 donors
    assert len(predicted) == 24 + 12 + 36
    assert predicted.index[0].endswith("-predicted-0-0")
    second = predicted[predicted.index.str.endswith("-predicted-1-0")]
    assert set(second["assay_batch"]) == {"donor_1"}
    assert set(second["cell_type"]) == {"type_3"}
    third = predicted[predicted.index.str.endswith("-predicted-2-0")]
    assert third["cell_type"].value_counts().to_dict() == {"type_1": 12, "type_2": 12, "type_3": 12}


def test_the_file_has_the_columns_and_the_description_of_a_models_prediction(cells, predicted, tmp_path):
    model = read_anndata(predicted)
    path = tmp_path / "baseline.h5ad"
    write_prediction(fit("ridge", cells), cells, CONDITIONS, path, columns=COLUMNS, split_hash="abc")
    own = read_anndata(path)
    assert list(own.obs.columns) == list(model.obs.columns)
    facts, described = own.uns["perturbdiff"], model.uns["perturbdiff"]
    assert set(described) - set(facts) == {"checkpoint", "sampling", "seed", "zero_shot"}
    for key in ("format", "version", "scale", "unit", "control", "missing_genes"):
        assert facts[key] == described[key]
    assert dict(facts["columns"]) == dict(described["columns"])
    assert (facts["baseline"], facts["split_hash"], facts["left_out"]) == ("ridge", "abc", "[]")
    assert json.loads(facts["conditions"]) == CONDITIONS.to_dict("records")
    assert own.X.dtype == model.X.dtype


def test_the_file_is_read_back_as_predicted_cells_beside_control_cells(cells, tmp_path):
    path = tmp_path / "baseline.h5ad"
    one = fit("control + mean shift", cells, [str(gene) for gene in cells.genes[:7]])
    write_prediction(one, cells, CONDITIONS, path, columns=COLUMNS)
    back = read_file(path)
    assert back.control == "control"
    assert back.is_control.sum() == 24 + 24  # of type_3, and of donor_2 in the other types
    assert list(back.genes) == list(cells.genes[:7])
    assert back.scale == "log1p"
    assert [path.name for path in tmp_path.iterdir()] == ["baseline.h5ad"]


def test_a_condition_that_cannot_be_predicted_is_left_out_and_named_and_not_all_may_be(cells):
    nearest = fit("nearest cell type", cells)
    asked = pd.concat([CONDITIONS.iloc[:1], CONDITIONS.iloc[:1].assign(perturbation="new")], ignore_index=True)
    made = predicted_file(nearest, cells, asked, columns=COLUMNS)
    assert set(made.obs["perturbation"].astype(str)) == {"control", "stimulus_1"}
    (left,) = json.loads(made.uns["perturbdiff"]["left_out"])
    assert (left["perturbation"], left["reason"]) == ("new", "training has 'new' in no cell type")
    with pytest.raises(ValueError, match="'nearest cell type' can predict none of the 1 conditions, since training"):
        predicted_file(nearest, cells, asked.iloc[1:], columns=COLUMNS)


def test_doses_stand_in_columns_of_their_own_as_numbers():
    adata = simulate_doses(n_drugs=2, doses=(0.1, 1.0), n_genes=60, n_cell_types=1, cells_per_group=5,
                           control_cells_per_group=6, n_features=1)  # fmt: skip
    columns = Columns(perturbation="perturbation", cell_type="cell_type", dose="dose", dose_unit="dose_unit")
    cells = cells_from_anndata(adata, columns=columns, expression=Expression(scale="counts"), control="control")
    grammar = Grammar(doses=True)
    labels = [label for label in cells.labels["perturbation"].cat.categories if label != "control"]
    label = next(one for one in labels if members_of(one, grammar, None)[0].dose == Quantity(1000.0, "nM"))
    found, _ = fitted(("additive",), cells, list(cells.genes), conditions=[(label, "type_1")], grammar=grammar)
    asked = pd.DataFrame([(label, "type_1", "")], columns=["perturbation", "cell_type", "assay_batch"])
    obs = predicted_file(found["additive"], cells, asked, columns=columns).obs
    predicted = obs[obs["population"] == 0]
    assert set(predicted["perturbation"]) == {"drug_1"}
    assert predicted["dose"].tolist() == [1.0] * 6
    assert set(predicted["dose_unit"]) == {"uM"}
    assert obs["dose"][obs["population"] == -1].isna().all()


def test_bad_tables_of_conditions_are_refused(cells):
    one = fit("control", cells)
    bad = {
        "names no perturbation": CONDITIONS.assign(perturbation=""),
        "no column 'assay_batch'": CONDITIONS.drop(columns="assay_batch"),
        "no condition is given": CONDITIONS.iloc[:0],
        "no control cell of cell_type 'type_9' .*the nearest is 'type_": CONDITIONS.assign(cell_type="type_9"),
    }
    for sentence, table in bad.items():
        with pytest.raises(ValueError, match=sentence):
            predicted_file(one, cells, table, columns=COLUMNS)
