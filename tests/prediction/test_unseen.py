"""What training has not seen is predicted from what it has, or refused; from simulated screens with a known truth."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from perturbdiff import PerturbDiff
from perturbdiff.simulation.responses import simulate_combinations, simulate_doses, simulate_modalities

SIZES = {"n_genes": 120, "cells_per_group": 8, "control_cells_per_group": 16}
COLUMNS = {"perturbation": "perturbation", "control": "control", "cell_type": "cell_type", "n_genes": None}


def train(adata, tiny, hold_out, **options):
    settings = tiny(training={"novelty": 0.5})
    model = PerturbDiff.from_anndata(adata, **COLUMNS, **settings, **options)
    return model.train(hold_out=hold_out, device="cpu", show_progress=False)


def test_rule(*labels, **more):
    return [{"part": "test", "perturbation": list(labels), **more}]


test_rule.__test__ = False


def cells(model, adata, **asked):
    """The predicted cells, without the controls."""
    made = model.predict(adata, device="cpu", **asked)
    return made[made.obs["population"] >= 0].X.toarray()


@pytest.fixture(scope="module")
def combined(tiny):
    """Doubles of four genes, one of them held out, and a model by features."""
    adata = simulate_combinations(n_agents=4, **SIZES)
    options = {"grammar": {"separator": "+"}, "features": {"perturbation": adata.uns["features"]}}
    return adata, train(adata, tiny, test_rule("gene_1+gene_2"), **options), options


@pytest.fixture(scope="module")
def dosed(tiny):
    """Two drugs at four doses, one dose of each held out."""
    adata = simulate_doses(n_drugs=2, doses=(0.01, 0.1, 1.0, 10.0), **SIZES)
    return adata, train(adata, tiny, test_rule("[('drug_1', 1, 'uM')]"), dose="dose", dose_unit="dose_unit")


def test_an_unseen_combination_is_predicted_whatever_the_order_of_its_members(combined):
    adata, model, _ = combined
    assert "gene_1+gene_2" not in model.trained.vocabularies["perturbation"].labels
    first = cells(model, adata, perturbation="gene_1+gene_2")
    assert np.array_equal(first, cells(model, adata, perturbation="gene_2+gene_1"))
    assert not np.array_equal(first, cells(model, adata, perturbation="gene_1+gene_3"))
    triple = [cells(model, adata, perturbation=label) for label in ("gene_1+gene_2+gene_4", "gene_4+gene_1+gene_2")]
    assert np.array_equal(*triple)


def test_a_trained_combination_is_itself_whatever_the_order_of_its_members(combined):
    adata, model, _ = combined
    known = cells(model, adata, perturbation="gene_1+gene_3")
    assert np.array_equal(known, cells(model, adata, perturbation="gene_3+gene_1"))


def test_the_rows_of_a_feature_table_may_stand_in_any_order(combined, tiny):
    adata, model, options = combined
    table = adata.uns["features"]
    shuffled = table.iloc[np.random.default_rng(0).permutation(len(table))]
    again = train(adata, tiny, test_rule("gene_1+gene_2"), **options | {"features": {"perturbation": shuffled}})
    assert all(torch.equal(value, again.trained.weights[name]) for name, value in model.trained.weights.items())
    one, other = (cells(m, adata, perturbation="gene_1+gene_2") for m in (model, again))
    assert np.array_equal(one, other)


def test_an_unseen_agent_is_predicted_by_its_features_and_refused_without(tiny):
    adata = simulate_modalities(n_genes_perturbed=5, modalities=("knockout",), **SIZES)
    adata.obs["perturbation"] = adata.obs["perturbation"].astype(str).str.removesuffix("|knockout")
    features = adata.uns["features"]
    rule = test_rule("gene_5")
    model = train(adata, tiny, rule, features={"perturbation": features})
    assert "gene_5" not in model.trained.vocabularies["perturbation"].labels
    assert cells(model, adata, perturbation="gene_5").any()
    plain = train(adata[adata.obs["perturbation"] != "gene_5"].copy(), tiny, [])
    with pytest.raises(
        ValueError, match=r"'gene_5' is not one of the 5 labels known here; the nearest is 'gene_[1-4]'"
    ):
        plain.predict(adata, perturbation="gene_5")
    with pytest.raises(ValueError, match=r"'gene_9' is not .*, and no features stand for it; the nearest is 'gene_"):
        model.predict(adata, perturbation="gene_9")


def test_features_of_another_agent_can_be_handed_in_with_the_question(tiny):
    adata = simulate_modalities(n_genes_perturbed=5, modalities=("knockout",), **SIZES)
    adata.obs["perturbation"] = adata.obs["perturbation"].astype(str).str.removesuffix("|knockout")
    features, rule = adata.uns["features"], test_rule("gene_5")
    all_of_them = train(adata, tiny, rule, features={"perturbation": features})
    model = train(adata, tiny, rule, features={"perturbation": features.drop(index="gene_5")})
    more = {"perturbation": features.loc[["gene_5"]]}
    assert np.array_equal(
        cells(model, adata, perturbation="gene_5", features=more), cells(all_of_them, adata, perturbation="gene_5")
    )
    narrow = {"perturbation": features.loc[["gene_5"]].iloc[:, :2]}
    with pytest.raises(ValueError, match=r"has 4 features and .* has 2, and tables that are joined have the same"):
        model.predict(adata, perturbation="gene_5", features=narrow)
    with pytest.raises(ValueError, match="trained without features of cell_type"):
        model.predict(adata, perturbation="gene_1", features={"cell_type": more["perturbation"]})


def test_a_training_label_without_features_is_an_error_before_training_or_learned(tiny):
    adata = simulate_combinations(n_agents=4, **SIZES)
    few = {"perturbation": adata.uns["features"].drop(index=["gene_2"])}
    grammar = {"separator": "+"}
    with pytest.raises(ValueError, match=r"1 of 4 trained perturbations have no row in .* \('gene_2'\)"):
        train(adata, tiny, test_rule("gene_1+gene_3"), grammar=grammar, features=few)
    encoders = {"perturbation": {"missing": "learned"}}
    model = train(adata, tiny, test_rule("gene_1+gene_3"), grammar=grammar, features=few, encoders=encoders)
    assert cells(model, adata, perturbation="gene_2").any()


def test_one_gene_under_a_modality_that_it_was_not_trained_in_is_predicted(tiny):
    adata = simulate_modalities(n_genes_perturbed=4, **SIZES | {"n_genes": 160})
    rule = test_rule("gene_1|CRISPRa")
    model = train(adata, tiny, rule, grammar={"modality_separator": "|"})
    assert cells(model, adata, perturbation="gene_1|CRISPRa").any()
    assert np.array_equal(
        cells(model, adata, perturbation="gene_1", modality="CRISPRa"),
        cells(model, adata, perturbation="gene_1|CRISPRa"),
    )
    with pytest.raises(ValueError, match=r"has the modality 'CRISPRo', which training has not seen; .* is 'CRISPR"):
        model.predict(adata, perturbation="gene_1|CRISPRo")
    with pytest.raises(ValueError, match="has no modality, which training has not seen"):
        model.predict(adata, perturbation="gene_1")


def test_a_dose_is_a_number_whatever_its_unit(dosed):
    adata, model = dosed
    asked = cells(model, adata, perturbation="drug_1", dose=1.0, dose_unit="uM")
    assert np.array_equal(asked, cells(model, adata, perturbation="drug_1", dose=1000, dose_unit="nM"))
    assert np.array_equal(asked, cells(model, adata, perturbation="[('drug_1', 0.001, 'mM')]"))
    assert not np.array_equal(asked, cells(model, adata, perturbation="drug_1", dose=2.0, dose_unit="uM"))


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"dose": 1.0}, r"'drug_1' has the dose 1(\.0)? without a unit; add one of pM, nM, uM, mM"),
        ({"dose": 1.0, "dose_unit": "uMol"}, "has a dose in the unknown unit 'uMol'; the nearest is 'uM'"),
        ({"dose": 0.0, "dose_unit": "uM"}, "a dose is a number above 0"),
        ({"dose": 1.0, "dose_unit": "mg/mL"}, "doses in nM only, which are not converted into each other"),
        ({"dose_unit": "uM"}, "has the unit 'uM' and no dose"),
    ],
)
def test_a_dose_that_means_nothing_is_refused(dosed, asked, sentence):
    adata, model = dosed
    with pytest.raises(ValueError, match=sentence):
        model.predict(adata, perturbation="drug_1", **asked)


def test_predicted_cells_have_the_columns_of_the_data_and_can_be_judged_by_them(dosed, tmp_path):
    from perturbdiff.evaluation.files import read_file

    adata, model = dosed
    made = model.predict(adata, perturbation="drug_1", dose=3.0, dose_unit="uM", device="cpu")
    predicted = made.obs[made.obs["population"] >= 0]
    assert set(predicted["perturbation"]) == {"drug_1"}
    assert set(predicted["dose"]) == {3.0}
    assert set(predicted["dose_unit"]) == {"uM"}
    assert made.obs.loc[made.obs["population"] < 0, "dose"].isna().all()
    made.write_h5ad(tmp_path / "made.h5ad")
    labels = read_file(tmp_path / "made.h5ad").labels["perturbation"]
    assert set(labels.cat.categories) == {"control", "[('drug_1', 3, 'uM')]"}


def test_a_series_over_doses_grows_to_one_and_says_where_it_falls(dosed):
    adata, model = dosed
    table = model.dose_response(adata, "drug_2", [10.0, 0.01, 1.0], unit="uM", device="cpu")
    assert list(table["dose"]) == [0.01, 1.0, 10.0]
    assert table["along"].iloc[-1] == pytest.approx(1.0)
    assert table["size"].iloc[-1] > table["size"].iloc[0]
    for doses, sentence in (([1.0], "two doses or more"), ([1.0, 0.0], "not above 0"), ([1.0, 1.0], "given twice")):
        with pytest.raises(ValueError, match=sentence):
            model.dose_response(adata, "drug_2", doses, unit="uM")


def test_an_unseen_cell_type_or_assay_batch_is_the_trained_null_and_said_once(screen, adata, said):
    model = PerturbDiff.load(screen.run)
    other = adata.copy()
    other.obs["assay_batch"] = other.obs["assay_batch"].astype(str).replace({"donor_2": "donor_9"})
    made = model.predict(other, perturbation="stimulus_1", cell_type="type_3", assay_batch="donor_9", device="cpu")
    assert len([line for line in said if "donor_9" in line]) == 1
    assert "predicted with the trained null" in said[0]
    assert set(made.obs["assay_batch"]) == {"donor_9"}
    opened = other[other.obs["assay_batch"] == "donor_9"].copy()
    null = model.predict(opened, perturbation="stimulus_1", cell_type="type_3", device="cpu")
    kept = made.obs["population"] >= 0
    assert np.array_equal(made[kept].X.toarray(), null[null.obs["population"] >= 0].X.toarray())


def test_a_model_without_trained_nulls_refuses_what_would_need_one(make_model, adata):
    model = make_model(training={"condition_dropout": 0.0}).train(device="cpu", show_progress=False)
    other = adata.copy()
    other.obs["assay_batch"] = "donor_9"
    with pytest.raises(ValueError, match=r"assay batch 'donor_9' asks for a trained null, and this model has none"):
        model.predict(other, perturbation="stimulus_1", cell_type="type_3", assay_batch="donor_9")


def test_data_without_cell_types_and_assay_batches_train_and_predict(adata, tiny, said):
    alone = adata.copy()
    alone.obs = alone.obs[["perturbation"]]
    model = PerturbDiff.from_anndata(alone, perturbation="perturbation", control="control", n_genes=20, **tiny())
    rules = [{"part": "test", "perturbation": ["stimulus_1"], "keep_cells": 10}]
    model.train(hold_out=rules, device="cpu", show_progress=False)
    said.clear()
    made = model.predict(alone, perturbation="stimulus_1", device="cpu")
    assert (made.obs["population"] >= 0).sum() == (alone.obs["perturbation"] == "control").sum()
    assert said == []


def test_features_and_fit_survive_saving_and_loading(combined, tmp_path):
    adata, model, _ = combined
    model.save(tmp_path / "model")
    loaded = PerturbDiff.load(tmp_path / "model")
    assert loaded.trained.fit == model.trained.fit
    one, other = (cells(m, adata, perturbation="gene_1+gene_2") for m in (model, loaded))
    assert np.array_equal(one, other)
    pd.testing.assert_frame_equal(loaded.conditions(), model.conditions())


def test_a_model_of_the_format_before_is_read(screen, own_run, adata):
    description = json.loads((own_run / "model.json").read_text())
    for key in ("features", "fit"):
        del description[key]
    del description["settings"]["encoders"], description["recipe"]["encoders"], description["recipe"]["perturbation"]
    (own_run / "model.json").write_text(json.dumps(description | {"format": 1}))
    asked = {"perturbation": "stimulus_1", "cell_type": "type_3"}
    one, other = (cells(PerturbDiff.load(run), adata, **asked) for run in (screen.run, own_run))
    assert np.array_equal(one, other)


def test_what_can_be_asked_is_listed_with_what_stands_for_it(combined, dosed):
    _, model, _ = combined
    table = model.conditions().set_index(["covariate", "label"])
    assert table.loc[("perturbation", "gene_1"), "encoder"] == "learned + features"
    assert table.loc[("perturbation", "control"), "encoder"] == "learned"
    assert table.loc[("perturbation", "gene_1+gene_3"), "encoder"] == "by its members"
    assert table["trained"].all()
    doses = dosed[1].conditions().set_index(["covariate", "label"])["doses"]
    assert doses["perturbation", "drug_1"] == "10, 100, 10000 nM"
