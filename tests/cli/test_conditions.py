"""Doses, combinations and features from the command line: from an .h5ad to a judged prediction."""

import json

import pytest

from perturbdiff.files.container import read_anndata
from perturbdiff.recipes.dataset import read_recipe
from perturbdiff.simulation.responses import simulate_combinations, simulate_doses

SIZES = {"n_genes": 120, "cells_per_group": 8, "control_cells_per_group": 16}
TINY = ["--preset", "tiny", "--max-steps", "2", "--scale", "counts", "--device", "cpu", "--quiet"]
LABELS = ["--perturbation", "perturbation", "--control", "control", "--cell-type", "cell_type"]


@pytest.fixture(scope="module")
def dosed(tmp_path_factory):
    path = tmp_path_factory.mktemp("doses") / "doses.h5ad"
    simulate_doses(n_drugs=2, doses=(0.01, 0.1, 1.0, 10.0), **SIZES).write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def combined(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    adata = simulate_combinations(n_agents=4, **SIZES)
    adata.uns["features"].rename_axis("label").reset_index().to_csv(folder / "genes.csv", index=False)
    adata.write_h5ad(folder / "sets.h5ad")
    return folder


def test_a_screen_of_doses_trains_predicts_and_is_judged(cli, dosed, tmp_path):
    run, held = tmp_path / "run", "{part=\"test\", perturbation=[\"[('drug_1', 1, 'uM')]\"]}"
    options = [*LABELS, "--dose", "dose", "--dose-unit", "dose_unit", "--hold-out", held, *TINY]
    assert cli("train", dosed, "--out", run, *options).status == 0
    assert read_recipe(run / "recipe.toml").columns.dose == "dose"
    shown = cli("inspect", run)
    assert "doses: any, in nM" in shown.out
    assert cli("predict", run, dosed, "--part", "test", "--out", tmp_path / "test.h5ad", "--quiet").status == 0
    asked = ["--perturbation", "drug_2", "--dose", "300", "--dose-unit", "nM", "--cell-type", "type_1"]
    assert cli("predict", run, dosed, *asked, "--out", tmp_path / "one.h5ad", "--quiet").status == 0
    made = read_anndata(tmp_path / "one.h5ad").obs
    assert set(made.loc[made["population"] >= 0, "dose"]) == {300.0}
    judged = cli("evaluate", tmp_path / "test.h5ad", dosed, "--run", run, "--out", tmp_path / "eval", "--json")
    assert judged.status == 0, judged.err
    assert {row["method"] for row in json.loads(judged.out)} >= {"test", "control", "ceiling"}


def test_a_table_of_conditions_may_give_doses_and_units(cli, dosed, tmp_path):
    run, table = tmp_path / "run", tmp_path / "conditions.csv"
    options = [*LABELS, "--dose", "dose", "--dose-unit", "uM", *TINY]
    assert cli("train", dosed, "--out", run, *options).status == 0
    table.write_text("perturbation,cell_type,dose,dose_unit\ndrug_1,type_1,0.5,\ndrug_1,type_1,500,nM\n")
    assert cli("predict", run, dosed, table, "--out", tmp_path / "made.h5ad", "--quiet").status == 0
    table.write_text("perturbation,cell_type,dose,dose_unit\ndrug_1,type_1,0.5,ug\n")
    assert cli("predict", run, dosed, table, "--out", tmp_path / "other.h5ad").refused("unknown unit 'ug'")


def test_a_screen_of_combinations_trains_on_features_and_predicts_any_set(cli, combined, tmp_path):
    run, held = tmp_path / "run", '{part="test", perturbation=["gene_1+gene_2", "gene_4"]}'
    options = [*LABELS, "--separator", "+", "--features", combined / "genes.csv", "--hold-out", held, *TINY]
    assert cli("train", combined / "sets.h5ad", "--out", run, *options).status == 0
    shown = cli("inspect", run, "--labels")
    assert "learned vectors and features (genes.csv, 4 wide" in shown.out
    assert "can be asked: any set of the" in shown.out
    found = json.loads(cli("inspect", run, "--json").out)
    assert found["encoders"][0]["features"] == "genes.csv"
    for i, label in enumerate(("gene_4", "gene_1+gene_2+gene_3")):
        out = tmp_path / f"{i}.h5ad"
        assert cli("predict", run, combined / "sets.h5ad", "--perturbation", label, "--out", out, "--quiet").status == 0
    asked = ["--perturbation", "gene_1+gen_2", "--out", tmp_path / "none.h5ad"]
    assert cli("predict", run, combined / "sets.h5ad", *asked).refused("has the agent 'gen_2', .*nearest is 'gene_")


def test_a_dose_column_without_a_unit_is_refused_before_the_file_is_read(cli, tmp_path):
    line = ["train", tmp_path / "none.h5ad", "--out", tmp_path / "run", *LABELS, "--dose", "dose", *TINY]
    assert cli(*line).refused("dose = 'dose' has no unit, and a number alone is no dose")


def test_a_file_of_features_that_is_not_there_is_named_before_training(cli, combined, tmp_path):
    line = ["train", combined / "sets.h5ad", "--out", tmp_path / "run", *LABELS, "--features", tmp_path / "no.csv"]
    assert cli(*line, *TINY).refused("no file of features .*no.csv")
