"""perturbdiff baseline: what a simple baseline predicts, as the file that a model would have written."""

import json

import numpy as np
import pandas as pd
import pytest

from perturbdiff.baselines.catalogue import NAMES
from perturbdiff.files.container import read_anndata
from perturbdiff.model import PerturbDiff
from perturbdiff.recipes.dataset import read_recipe, write_recipe
from perturbdiff.recipes.selection import hold_outs_from
from perturbdiff.training_data import TrainingData

SHIFT = "control + mean shift"


def test_without_a_model_a_recipe_suffices_and_the_held_out_conditions_are_predicted(cli, screen, tmp_path):
    out = tmp_path / "shifted.h5ad"
    assert cli("baseline", SHIFT, screen.data, "--recipe", screen.recipe, "--out", out).status == 0
    made, model = read_anndata(out), PerturbDiff.from_recipe(screen.recipe)
    split = model.split()
    predicted = made.obs[made.obs["population"] >= 0]
    wanted = split.groups("test")[["perturbation", "cell_type", "assay_batch"]].astype(str)
    columns = list(model.recipe.columns.model_dump(include=set(wanted.columns)).values())
    found = predicted[columns].astype(str).drop_duplicates()
    assert {tuple(row) for row in found.to_numpy()} == {tuple(row) for row in wanted.to_numpy()}
    assert made.uns["perturbdiff"]["split_hash"] == split.hash
    assert made.uns["perturbdiff"]["baseline"] == SHIFT


def test_a_run_and_its_recipe_give_the_same_file(cli, screen, tmp_path):
    for name, option in (("run", screen.run), ("recipe", screen.recipe)):
        out = tmp_path / f"{name}.h5ad"
        assert cli("baseline", "ridge", screen.data, f"--{name}", option, "--out", out).status == 0
    one, other = (read_anndata(tmp_path / f"{name}.h5ad") for name in ("run", "recipe"))
    assert np.array_equal(one.X.toarray(), other.X.toarray())
    pd.testing.assert_frame_equal(one.obs, other.obs)


@pytest.mark.parametrize("name", NAMES)
def test_the_file_of_every_baseline_is_judged_as_any_other(cli, screen, tmp_path, name):
    for way in ("log1p", "counts"):
        out = tmp_path / f"{way}.h5ad"
        assert cli("baseline", name, screen.data, "--recipe", screen.recipe, "--as", way, "--out", out).status == 0
    arguments = ["--recipe", screen.recipe, "--suites", "ours", "--baselines", name, "--out", tmp_path / "eval"]
    files = [tmp_path / "log1p.h5ad", tmp_path / "counts.h5ad"]
    ended = cli("evaluate", *files, screen.data, *arguments, "--json", "--quiet")
    assert ended.status == 0
    table = pd.DataFrame(json.loads(ended.out)).set_index("method")[["mae", "energy_distance", "spread_ratio"]]
    notes = json.loads((tmp_path / "eval" / "metrics.json").read_text())["notes"]
    drawn = any(f"{name}: drawn as counts" in note for note in notes)
    assert (name == "control") != any(name in note and "whichever is nearer" in note for note in notes)
    if drawn:  # 12 cells a condition, drawn anew
        assert table.loc["counts"].tolist() == pytest.approx(table.loc[name].tolist(), rel=0.2, abs=0.03)
        assert table.loc[name, "energy_distance"] < table.loc["log1p", "energy_distance"]
    else:
        assert table.loc["log1p"].tolist() == pytest.approx(table.loc[name].tolist(), abs=1e-5)


def test_a_file_says_the_way_and_counts_are_the_way_where_nothing_is_said(cli, screen, tmp_path):
    ways = {"counts": ["--as", "counts"], "log1p": ["--as", "log1p"], "absent": []}
    made = {}
    for name, option in ways.items():
        out = tmp_path / f"{name}.h5ad"
        assert cli("baseline", SHIFT, screen.data, "--recipe", screen.recipe, *option, "--out", out).status == 0
        made[name] = read_anndata(out)
    assert [one.uns["perturbdiff"]["way"] for one in made.values()] == ["counts", "log1p", "counts"]
    assert np.array_equal(made["absent"].X.toarray(), made["counts"].X.toarray())
    refused = cli("baseline", SHIFT, screen.data, "--recipe", screen.recipe, "--as", "cells", "--out", tmp_path / "x")
    assert refused.status != 0


def test_conditions_of_ones_own_may_be_any_perturbation_and_leave_labels_open(cli, screen, tmp_path):
    (tmp_path / "mine.csv").write_text("perturbation,cell_type\nnever seen,type_1\nstimulus_1,\n")
    out = tmp_path / "shifted.h5ad"
    ended = cli("baseline", SHIFT, screen.data, tmp_path / "mine.csv", "--recipe", screen.recipe, "--out", out)
    assert ended.status == 0
    assert "1 of 2 perturbations" in ended.err
    predicted = read_anndata(out).obs.query("population >= 0")
    types = predicted.astype(str).groupby("perturbation")["cell_type"].unique().map(sorted).to_dict()
    assert types == {"never seen": ["type_1"], "stimulus_1": ["type_1", "type_2", "type_3"]}


def test_the_panel_and_the_features_that_a_recipe_names_are_used(screen, adata, tmp_path, make_recipe):
    agents = sorted(set(adata.obs["perturbation"]) - {"control"})
    table = pd.DataFrame({"label": agents, "a": np.arange(len(agents), dtype=float), "b": 1.0})
    table.to_csv(tmp_path / "features.csv", index=False)
    recipe = make_recipe(
        n_genes=12,
        files=[str(screen.data)],
        encoders={"perturbation": {"kind": "table", "file": str(tmp_path / "features.csv")}},
    )
    write_recipe(recipe, tmp_path / "recipe.toml")
    origin = TrainingData.of_recipe(tmp_path / "recipe.toml")
    assert list(origin.features.labels) == agents
    model = PerturbDiff.from_recipe(tmp_path / "recipe.toml")
    model.train(run=tmp_path / "run", max_steps=1, device="cpu", show_progress=False)
    assert origin.panel == model.trained.genes == TrainingData.of_run(tmp_path / "run").panel
    assert len(origin.panel) == 12


def test_what_cannot_be_done_is_one_sentence_before_anything_is_written(cli, screen, changed, tmp_path):
    out = tmp_path / "out.h5ad"
    data, recipe = screen.data, ["--recipe", screen.recipe]
    assert cli("baseline", "rigde", data, *recipe, "--out", out).refused("no baseline 'rigde'; the nearest is 'ridge'")
    assert cli("baseline", "ridge", data, "--out", out).refused("of --run or of --recipe; give one of the two")
    both = [*recipe, "--run", screen.run]
    assert cli("baseline", "ridge", data, *both, "--out", out).refused("of --run or of --recipe; give one of the two")
    asked = ["--part", "tets", "--out", out]
    assert cli("baseline", "ridge", data, *recipe, *asked).refused("'tets' is not a held-out part; choose one of")
    absent = tmp_path / "none.csv"
    assert cli("baseline", "ridge", data, absent, *recipe, "--out", out).refused("there is no table of conditions")
    absent.write_text("perturbation\nstimulus_1\n")
    asked = ["--part", "test", "--out", out]
    assert cli("baseline", "ridge", data, absent, *recipe, *asked).refused("from a CSV file or from --part")
    plain = changed(lambda adata: adata, hold_out=hold_outs_from([]))
    assert read_recipe(plain).hold_out == ()
    assert cli("baseline", "ridge", data, "--recipe", plain, "--out", out).refused(
        "no perturbed cells in its test part"
    )
    assert not out.exists()
    out.write_text("mine")
    assert cli("baseline", "ridge", data, *recipe, "--out", out).refused("exists")
    assert out.read_text() == "mine"
