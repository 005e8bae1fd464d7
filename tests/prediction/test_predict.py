"""One predicted cell for each control cell: a function of checkpoint, control cells, conditions and seed."""

import json
import re

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from perturbdiff.io import write_h5ad
from perturbdiff.model import PerturbDiff
from perturbdiff.prediction import drawing
from perturbdiff.prediction.inputs import control_cells

ONE = {"perturbation": "stimulus_1", "cell_type": "type_3"}


@pytest.fixture(scope="module")
def model(screen):
    return PerturbDiff.load(screen.run)


@pytest.fixture(scope="module")
def controls(adata):
    return adata[adata.obs["perturbation"] == "control"].copy()


def predict(model, controls, **options):
    return model.predict(controls, **({"device": "cpu"} | ONE | options))


def made(adata):
    return adata[(adata.obs["population"] >= 0).to_numpy()]


def dense(adata):
    return adata.X.toarray()


def logs(adata):
    """Log1p counts per 10^4 of counts."""
    counts = adata.X.toarray().astype(float)
    return np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))


def close(found, expected):
    """Equal but for the last digits: a product of matrices may sum in another order for another number of rows."""
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_there_is_one_predicted_cell_for_each_control_cell_of_the_condition(model, controls):
    found = predict(model, controls)
    wanted = controls.obs_names[controls.obs["cell_type"] == "type_3"]
    assert sorted(made(found).obs["control_cell"]) == sorted(wanted)
    assert list(found.obs_names[found.obs["population"] == -1]) == sorted(wanted)
    assert found.n_obs == 2 * len(wanted)
    one_donor = predict(model, controls, assay_batch="donor_1")
    assert len(made(one_donor)) == 12
    assert set(one_donor.obs["assay_batch"]) == {"donor_1"}


def test_every_population_has_control_cells_of_its_own_drawn_with_replacement(model, controls):
    found = made(predict(model, controls, populations=40))
    assert list(found.obs["population"].value_counts().sort_index()) == [24] * 40
    assert found.obs_names.is_unique
    here = controls[controls.obs["cell_type"] == "type_3"]
    times = pd.crosstab(found.obs["population"], found.obs["control_cell"].astype(str))
    assert set(times.columns) == set(here.obs_names)
    # drawn twice with replacement: a mean of n cells varies by s^2 / n twice
    values = logs(here)
    means = times.to_numpy() @ values[here.obs_names.get_indexer(times.columns)] / 24
    ratio = means.var(axis=0, ddof=1).sum() / (values.var(axis=0).sum() / 24)
    assert 1.6 < ratio < 2.4


def test_the_chunks_of_a_population_share_what_is_shared_and_nothing_else(make_model, controls):
    """All noise shared, and no change that is expected: two chunks of equal cells are equal."""
    model = make_model(model={"target": "cell", "shared_noise": 1.0}).train(device="cpu", show_progress=False)
    one = controls[np.flatnonzero(controls.obs["cell_type"] == "type_3")[:1]]
    cells = anndata.concat([one] * 24, index_unique="-", keys=map(str, range(24)))
    found = predict(model, cells, populations=2)
    one, other = (dense(made(found)[made(found).obs["population"] == k]) for k in (0, 1))
    assert len(one) == 24 > model.trained.settings.training.cells_per_population
    close(one, np.repeat(one[:1], 24, axis=0))
    assert not np.allclose(one[0], other[0], atol=1e-3)


def test_the_same_seed_gives_equal_bytes_and_another_seed_other_cells(model, controls, tmp_path):
    for name in ("one", "two"):
        write_h5ad(predict(model, controls, seed=3), tmp_path / f"{name}.h5ad")
    one, two = (anndata.read_h5ad(tmp_path / f"{name}.h5ad") for name in ("one", "two"))
    for part in ("data", "indices", "indptr"):
        assert getattr(one.X, part).tobytes() == getattr(two.X, part).tobytes()
    pd.testing.assert_frame_equal(one.obs, two.obs)
    assert not np.array_equal(dense(one), dense(predict(model, controls, seed=4)))


@pytest.mark.parametrize("numbers", [1, 6 * 30 * 3])
def test_predictions_do_not_depend_on_how_they_are_batched(model, controls, monkeypatch, numbers):
    conditions = pd.DataFrame({"perturbation": ["stimulus_1", "stimulus_2"], "cell_type": ["type_3", "type_1"]})
    options = {"conditions": conditions, "perturbation": None, "cell_type": None, "populations": 2}
    odd = controls[:-3].copy()
    at_once = predict(model, odd, **options)
    monkeypatch.setattr(drawing, "NUMBERS_AT_ONCE", numbers)
    in_parts = predict(model, odd, **options)
    pd.testing.assert_frame_equal(at_once.obs, in_parts.obs)
    np.testing.assert_allclose(dense(at_once), dense(in_parts), atol=1e-4)


def test_a_condition_is_predicted_alike_alone_and_as_the_first_of_many(model, controls):
    conditions = pd.DataFrame({"perturbation": ["stimulus_1", "stimulus_2"], "cell_type": ["type_3", "type_3"]})
    both = made(predict(model, controls, conditions=conditions, perturbation=None, cell_type=None))
    alone = made(predict(model, controls))
    first = both[(both.obs["perturbation"] == "stimulus_1").to_numpy()]
    np.testing.assert_allclose(dense(first), dense(alone), atol=1e-4)


def test_genes_are_matched_by_name_whatever_their_order_and_whatever_else_there_is(model, controls):
    expected = predict(model, controls)
    shuffled = controls[:, np.random.default_rng(0).permutation(controls.n_vars)].copy()
    found = predict(model, shuffled)
    assert list(found.var_names) == list(expected.var_names) == list(model.trained.genes)
    assert np.array_equal(dense(found), dense(expected))


def test_missing_genes_count_as_zero_and_are_said_and_recorded(model, controls, said):
    gone, *kept = model.trained.genes
    panel = model.trained.genes[:10] + model.trained.genes[10:]
    fewer = controls[:, [gene != gone for gene in controls.var_names]].copy()
    fewer.obs["umi"] = np.asarray(controls.X.sum(axis=1)).ravel()
    found = predict(model, fewer, columns={"total_counts": "umi"})
    assert f"1 of the panel's {len(panel)} genes are not in the control cells and count as 0: {gone}." in said
    assert json.loads(found.uns["perturbdiff"]["missing_genes"]) == [gone]
    controls_alone = found[(found.obs["population"] == -1).to_numpy()]
    assert not dense(controls_alone[:, gone]).any()
    assert dense(controls_alone[:, kept]).any()


def test_too_few_of_the_panels_genes_are_refused(model, controls):
    with pytest.raises(ValueError, match=r"\d+ of the panel's 30 genes are in the data, fewer than the 90% needed"):
        predict(model, controls[:, :30].copy())
    renamed = controls.copy()
    renamed.var_names = [f"ENSG{i}" for i in range(renamed.n_vars)]
    with pytest.raises(ValueError, match="0 of the panel's 30 genes are in the data"):
        predict(model, renamed)


def test_an_empty_label_is_the_trained_null_and_said_once(model, controls, said):
    conditions = pd.DataFrame({"perturbation": ["stimulus_1", "stimulus_2"]})
    found = predict(model, controls, conditions=conditions, perturbation=None, cell_type=None)
    assert said == [
        "conditions without cell type are predicted with its trained null.",
        "conditions without assay batch are predicted with its trained null.",
    ]
    # the labels that a condition leaves open are those of the control cells
    by_name = dict(zip(controls.obs_names, controls.obs["cell_type"], strict=True))
    assert [by_name[name] for name in made(found).obs["control_cell"]] == list(made(found).obs["cell_type"])
    assert len(made(found)) == 2 * len(controls)


def test_a_cell_of_an_unspecified_perturbation_is_not_labelled_as_control(model, controls):
    found = predict(model, controls, perturbation=None)
    assert set(made(found).obs["perturbation"]) == {"unspecified"}
    assert set(found[(found.obs["population"] == -1).to_numpy()].obs["perturbation"]) == {"control"}


def test_an_unknown_label_names_the_nearest_one(model, controls):
    with pytest.raises(ValueError, match=r"perturbation 'stimulus1' is not one of the 4 .*the nearest is 'stimulus_1'"):
        predict(model, controls, perturbation="stimulus1")
    with pytest.raises(ValueError, match=r"no control cell of cell_type 'Type_3' .*the nearest is 'type_3'"):
        predict(model, controls, cell_type="Type_3")


def test_without_a_matching_control_cell_nothing_stands_in(model, controls):
    others = controls[controls.obs["cell_type"] != "type_3"].copy()
    with pytest.raises(ValueError, match=r"no control cell of cell_type 'type_3' among the 48 control cells given"):
        predict(model, others)
    with pytest.raises(ValueError, match=r"no control cell of cell_type 'type_3', assay_batch 'donor_1'"):
        predict(model, controls[controls.obs["assay_batch"] == "donor_2"].copy(), assay_batch="donor_1")


def test_only_control_rows_are_used_and_observed_perturbed_cells_are_not_needed(model, adata, controls):
    expected, changed = predict(model, controls), adata.copy()
    assert np.array_equal(dense(predict(model, adata)), dense(expected))
    counts = changed.X.toarray()
    counts[(adata.obs["perturbation"] != "control").to_numpy()] = 7
    changed.X = csr_matrix(counts)
    assert np.array_equal(dense(predict(model, changed)), dense(expected))


def test_without_a_column_of_perturbations_all_cells_are_controls_and_that_is_said(model, controls, said):
    bare = controls.copy()
    del bare.obs["perturbation"]
    found = predict(model, bare)
    assert np.array_equal(dense(found), dense(predict(model, controls)))
    assert "there is no column 'perturbation', so all 72 cells are taken as control cells." in said


def test_without_a_column_of_cell_types_all_control_cells_serve_and_that_is_said(model, controls, said):
    bare = controls.copy()
    del bare.obs["cell_type"]
    found = predict(model, bare)
    assert len(made(found)) == 72
    assert set(made(found).obs["cell_type"]) == {"type_3"}
    assert "the control cells have no column 'cell_type', so all of them serve every cell type." in said


def test_the_output_says_what_it_is(model, controls, tmp_path):
    write_h5ad(predict(model, controls, populations=2, seed=5), tmp_path / "predicted.h5ad")
    found = anndata.read_h5ad(tmp_path / "predicted.h5ad")
    facts, checkpoint = found.uns["perturbdiff"], model.trained
    assert facts["scale"] == "log1p"
    assert facts["unit"] == "log1p counts per 10^4"
    assert facts["control"] == "control"
    assert facts["columns"] == {name: name for name in ("perturbation", "cell_type", "assay_batch")}
    assert facts["split_hash"] == checkpoint.split["hash"]
    assert json.loads(facts["checkpoint"]) == checkpoint.history
    assert json.loads(facts["conditions"]) == [ONE | {"assay_batch": ""}]
    assert json.loads(facts["sampling"]) == checkpoint.settings.sampling.model_dump()
    assert (facts["seed"], facts["populations"], facts["format"]) == (5, 2, 1)
    assert list(found.obs.columns) == ["perturbation", "cell_type", "assay_batch", "population", "control_cell"]
    assert found.obs_names.is_unique
    assert found.X.dtype == np.float32


def test_values_are_log1p_counts_per_ten_thousand_and_controls_are_the_given_cells(model, controls):
    found = predict(model, controls)
    kept = found[(found.obs["population"] == -1).to_numpy()]
    counts = controls[kept.obs_names].X.toarray()
    expected = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    place = controls.var_names.get_indexer(kept.var_names)
    np.testing.assert_allclose(dense(kept), expected[:, place], rtol=1e-5)
    values = dense(made(found))
    assert np.isfinite(values).all()
    assert values.min() >= 0
    assert 0.3 < values.mean() / dense(kept).mean() < 3


def logged(cells):
    totals = np.asarray(cells.X.sum(axis=1))
    cells = cells.copy()
    cells.X = csr_matrix(np.log1p(1e4 * cells.X.toarray() / totals))
    return cells


def predicted_from_logs(model, cells):
    conditions = pd.DataFrame([ONE | {"assay_batch": ""}])
    given = control_cells(logged(cells), model.trained.recipe, expression={"scale": "log1p"})
    return model.predict_cells(given, conditions, device="cpu")


def test_log1p_control_cells_predict_as_counts_do_where_they_tell_them(model, controls):
    shallow = controls.copy()
    counts = controls.X.toarray() // 50
    counts[:, 0] = 1
    shallow.X = csr_matrix(counts)
    found = predicted_from_logs(model, shallow)
    np.testing.assert_allclose(dense(found), dense(predict(model, shallow)), atol=1e-4)


def test_log1p_control_cells_that_do_not_tell_their_counts_are_refused_with_the_remedy(model, controls):
    deep = controls.copy()
    # no gene has a single count
    deep.X = csr_matrix(controls.X.toarray() + 5)
    sentence = (
        "24 of 24 control cells hold log1p values that do not tell their counts, which this model changes; give the "
        "file with counts, or name the layer that holds them."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        predicted_from_logs(model, deep)


def test_other_steps_and_guidance_change_the_prediction_and_are_recorded(model, controls):
    found = predict(model, controls, sampling={"steps": 5, "guidance": None})
    assert json.loads(found.uns["perturbdiff"]["sampling"])["steps"] == 5
    assert not np.array_equal(dense(found), dense(predict(model, controls)))
    with pytest.raises(ValueError, match="'step' is not a key here; the nearest is 'steps'"):
        predict(model, controls, sampling={"step": 5})


def test_populations_must_be_positive_and_prediction_needs_a_trained_model(model, controls, make_model):
    with pytest.raises(ValueError, match="populations=0 must be at least 1"):
        predict(model, controls, populations=0)
    with pytest.raises(ValueError, match="this model is not trained; call train"):
        predict(make_model(), controls)


def test_a_single_control_cell_is_enough(model, controls):
    alone = controls[controls.obs["cell_type"] == "type_3"][:1].copy()
    assert len(made(predict(model, alone))) == 1


def test_predicting_leaves_the_given_cells_and_the_global_generator_alone(model, controls):
    import torch

    given, state = controls.copy(), torch.get_rng_state()
    predict(model, controls)
    assert np.array_equal(given.X.toarray(), controls.X.toarray())
    assert torch.equal(state, torch.get_rng_state())


def test_total_counts_that_the_model_was_trained_with_must_be_there(make_model, adata, controls):
    with_totals = adata.copy()
    with_totals.obs["total"] = np.asarray(adata.X.sum(axis=1)).ravel() * 1.2
    columns = {name: name for name in ("perturbation", "cell_type", "assay_batch")} | {"total_counts": "total"}
    model = make_model(of=with_totals, columns=columns).train(device="cpu", show_progress=False)
    assert made(predict(model, with_totals)).n_obs == 24
    with pytest.raises(ValueError, match="the control cells have no column 'total', where the model's data keep each"):
        predict(model, controls)


def test_so_many_cells_of_each_condition_are_predicted_each_control_cell_once_a_chunk(model, controls):
    few = made(predict(model, controls, n_cells=10))
    assert few.n_obs == few.obs["control_cell"].nunique() == 10
    many = made(predict(model, controls, n_cells=60))
    assert many.n_obs == 60
    assert many.obs_names.is_unique
    times = many.obs["control_cell"].value_counts()
    assert (len(times), set(times)) == (24, {2, 3})
    every = predict(model, controls)
    close(dense(made(predict(model, controls, n_cells=24))), dense(made(every)))
    close(dense(many[:24]), dense(made(every)))
    with pytest.raises(ValueError, match="n_cells=0 must be at least 1"):
        predict(model, controls, n_cells=0)


def test_a_batch_with_fewer_than_two_control_cells_borrows_those_of_its_cell_type_as_in_training(model, controls, said):
    own = (controls.obs["assay_batch"] == "donor_1") & (controls.obs["cell_type"] == "type_3")
    fewer = controls[~own | (own.cumsum() == 1)].copy()
    found = made(predict(model, fewer, assay_batch="donor_1"))
    assert found.n_obs == 12 + 1
    assert set(found.obs["assay_batch"]) == {"donor_1"}
    assert any("with fewer than 2 control cells in the batch begin at those of the cell type" in one for one in said)
