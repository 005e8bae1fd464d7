"""Predicted cells as whole numbers of counts: what the file holds, that it is judged, and when it is refused."""

import json
import re

import numpy as np
import pytest

from perturbdiff.evaluation.from_files import evaluate_files
from perturbdiff.files.container import read_anndata
from perturbdiff.io import write_h5ad
from perturbdiff.model import PerturbDiff
from perturbdiff.training_data import TrainingData

ONE = {"perturbation": "stimulus_1", "cell_type": "type_3"}
LABELS = ("control", "stimulus_2", "stimulus_3")


@pytest.fixture(scope="module")
def model(screen):
    return PerturbDiff.load(screen.run)


@pytest.fixture(scope="module")
def both(model, adata):
    """The same prediction as counts and as log1p values."""
    options = ONE | {"device": "cpu", "seed": 4, "populations": 2}
    return model.predict(adata, counts=True, **options), model.predict(adata, **options)


def test_expression_is_whole_numbers_of_counts_and_the_layer_is_what_is_predicted_else(both):
    counts, logs = both
    values = counts.X.toarray()
    np.testing.assert_array_equal(values, np.rint(values))
    assert values.min() == 0
    assert counts.X.dtype == np.float32
    np.testing.assert_array_equal(counts.layers["log1p"].toarray(), logs.X.toarray())
    assert counts.obs.drop(columns="total_counts").equals(logs.obs)
    assert list(counts.var_names) == list(logs.var_names)
    assert "log1p" not in logs.layers


def test_totals_are_those_by_which_counts_become_log1p_values(both):
    counts, _ = both
    totals = counts.obs["total_counts"].to_numpy()
    made_of = np.log1p(1e4 * counts.X.toarray() / totals[:, None])
    np.testing.assert_allclose(counts.layers["log1p"].toarray(), made_of, rtol=1e-4, atol=1e-5)
    assert (counts.X.toarray().sum(axis=1) <= totals).all()


def test_control_cells_are_as_they_were_given_and_totals_are_moved_by_what_the_panel_is(both, adata):
    counts, _ = both
    controls, made = counts[counts.obs["population"] < 0], counts[counts.obs["population"] >= 0]
    given = adata[controls.obs_names]
    np.testing.assert_array_equal(controls.X.toarray(), given[:, controls.var_names].X.toarray())
    np.testing.assert_array_equal(controls.obs["total_counts"], np.asarray(given.X.sum(axis=1)).ravel())
    before = controls[made.obs["control_cell"].to_numpy()]
    moved = made.X.toarray().sum(axis=1) - before.X.toarray().sum(axis=1)
    assert (moved != 0).any()
    np.testing.assert_allclose(made.obs["total_counts"], before.obs["total_counts"].to_numpy() + moved)


def test_the_file_declares_its_scale_and_its_totals(both, tmp_path):
    declared = []
    for name, adata in zip(("counts", "logs"), both, strict=True):
        write_h5ad(adata, tmp_path / f"{name}.h5ad")
        declared.append(read_anndata(tmp_path / f"{name}.h5ad").uns["perturbdiff"])
    counts, logs = declared
    assert (counts["scale"], counts["unit"]) == ("counts", "counts")
    assert (logs["scale"], logs["unit"]) == ("log1p", "log1p counts per 10^4")
    assert counts["columns"]["total_counts"] == "total_counts"
    assert "total_counts" not in logs["columns"]
    assert json.loads(counts["conditions"]) == json.loads(logs["conditions"])


def test_totals_leave_a_column_of_that_name_to_the_data(make_model, adata):
    cells = adata.copy()
    cells.obs["total_counts"] = cells.obs["assay_batch"].astype(str).to_numpy()
    columns = {"perturbation": "perturbation", "cell_type": "cell_type", "assay_batch": "total_counts"}
    model = make_model(of=cells, columns=columns).train(device="cpu", show_progress=False)
    found = model.predict(cells, counts=True, device="cpu", **ONE)
    assert set(found.obs["total_counts"]) == {"donor_1", "donor_2"}
    name = found.uns["perturbdiff"]["columns"]["total_counts"]
    assert name != "total_counts"
    assert (found.obs[name].to_numpy() >= found.X.toarray().sum(axis=1)).all()


def test_counts_are_judged_as_their_log1p_values_are(both, screen, tmp_path):
    tables = []
    for name, adata in zip(("counts", "logs"), both, strict=True):
        path = tmp_path / f"{name}.h5ad"
        write_h5ad(adata, path)
        tables.append(evaluate_files({"model": path}, screen.data, source=TrainingData.of_run(screen.run)).summary())
    one, other = tables
    assert list(one.index) == list(other.index)
    np.testing.assert_allclose(one.to_numpy(dtype=float), other.to_numpy(dtype=float), rtol=1e-3, atol=1e-5)


def test_the_command_writes_what_python_gives(cli, screen, both, tmp_path):
    out = tmp_path / "predicted.h5ad"
    line = ["predict", screen.run, screen.data, "--out", out, "--perturbation", "stimulus_1", "--cell-type", "type_3"]
    ended = cli(*line, "--counts", "--seed", 4, "--populations", 2, "--device", "cpu")
    assert ended.status == 0
    found = read_anndata(out)
    np.testing.assert_array_equal(found.X.toarray(), both[0].X.toarray())
    np.testing.assert_array_equal(found.layers["log1p"].toarray(), both[0].layers["log1p"].toarray())
    np.testing.assert_array_equal(found.obs["total_counts"], both[0].obs["total_counts"])


@pytest.mark.parametrize("target", ["residual", "cell"])
def test_a_model_that_makes_no_counts_says_so_in_one_sentence(make_model, adata, target):
    model = make_model(model={"target": target}).train(device="cpu", show_progress=False)
    sentence = (
        f"this model changes log1p values (target = '{target}'), so its cells are no whole numbers of counts; train "
        'one with target = "counts", or predict log1p values.'
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        model.predict(adata, counts=True, device="cpu", **ONE)
    found = model.predict(adata, device="cpu", **ONE)
    assert "total_counts" not in found.obs


def test_guidance_of_cells_gives_no_counts_and_guidance_of_changes_does(model, adata):
    options = ONE | {"device": "cpu"}
    guided = {"guidance": 1.0, "guidance_of": "x_0"}
    sentence = (
        "guidance of x_0 itself (guidance_of = 'x_0') gives no whole numbers of counts; set guidance_of = \"change\", "
        "or leave the guidance out."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        model.predict(adata, counts=True, sampling=guided, **options)
    assert model.predict(adata, sampling=guided, **options).n_obs
    found = model.predict(adata, counts=True, sampling=guided | {"guidance_of": "change"}, **options).X.toarray()
    np.testing.assert_array_equal(found, np.rint(found))


def test_at_step_0_predicted_counts_have_the_mean_that_is_expected_of_them(make_model, adata):
    # the network adds nothing then: what is drawn is the change of the condition in its context
    # (of a panel of few genes, since what all the genes of a cell share out is fixed; of those that respond most)
    counts = adata.X.toarray()
    shares = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    responding = np.square(np.diff([shares[adata.obs["perturbation"] == one].mean(axis=0) for one in LABELS], axis=0))
    genes = [str(adata.var_names[i]) for i in np.argsort(responding.sum(axis=0))[-12:]]
    options = {"training": {"max_steps": 1, "learning_rate": 1e-30}, "genes": genes}
    model = make_model(**options).train(device="cpu", show_progress=False)
    changes, known = model.trained.changes, model.trained.vocabularies["perturbation"]
    largest = int(np.square(changes.changes).sum(axis=1).argmax())
    label, own = int(changes.label[largest]), int(changes.context[largest])
    cell_type, assay_batch = changes.contexts[own]
    asked = {"perturbation": known.labels[label - 1], "cell_type": cell_type, "assay_batch": assay_batch}
    found = model.predict(adata, device="cpu", n_cells=4800, **asked)
    control, made = (found[kept].X.toarray() for kept in (found.obs["population"] < 0, found.obs["population"] >= 0))
    shift = changes.expected(label, changes.similarity(changes.means[own]), own)
    wanted = np.maximum(control.mean(axis=0) + shift, 0)
    assert np.abs(shift).max() > 0.8
    # the genes that are moved most are moved within a tenth, and all together within a fiftieth
    assert np.abs(made.mean(axis=0) - wanted).max() < 0.1
    assert np.abs(made.mean(axis=0) - wanted).mean() < 0.02
    # and control cells that are asked for stay as they are
    found = model.predict(adata, device="cpu", **(asked | {"perturbation": "control"}))
    made = found[found.obs["population"] >= 0]
    np.testing.assert_allclose(made.X.toarray(), found[made.obs["control_cell"].to_numpy()].X.toarray(), atol=1e-5)
