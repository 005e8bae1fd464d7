"""The command line: results on standard output, one clear sentence and exit status 2 for what cannot be done."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib import import_module

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

import perturbdiff
from perturbdiff.checkpoint import DESCRIPTION, WEIGHTS, load_checkpoint
from perturbdiff.files.container import read_anndata
from perturbdiff.recipes.dataset import read_recipe
from perturbdiff.training.callbacks import RESUME

OPTIONS = ["--perturbation", "perturbation", "--control", "control", "--cell-type", "cell_type"]
OPTIONS += ["--assay-batch", "assay_batch", "--scale", "counts"]
RULE = '{part="test", perturbation=["stimulus_1"], cell_type=["type_3"]}'


def files_under(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_version_is_printed(cli):
    assert cli("--version") == (0, f"perturbdiff {perturbdiff.__version__}\n", "")


def test_no_command_prints_help_and_an_unknown_one_is_an_error(cli):
    assert "Predict how a population of single cells" in cli("--help").out
    assert cli("fly").status == 2


@pytest.mark.parametrize("command", ["split", "train", "inspect", "predict", "evaluate", "demo"])
def test_every_command_explains_itself(cli, command):
    ended = cli(command, "--help")
    assert ended.status == 0
    assert "Usage" in ended.out


def test_the_program_is_a_module_too():
    ended = subprocess.run(
        [sys.executable, "-m", "perturbdiff", "--version"], capture_output=True, text=True, check=True
    )
    assert ended.stdout == f"perturbdiff {perturbdiff.__version__}\n"


# split


def test_split_prints_what_is_held_out(cli, screen):
    ended = cli("split", screen.recipe)
    assert ended.status == 0
    for text in ("held out for test:", "stimulus_1", "type_3", "hash "):
        assert text in ended.out
    assert ended.err.startswith("no leak found; looked for repeated cell names, ")
    assert cli("split", screen.recipe, "--quiet").err == ""


def test_split_prints_json(cli, screen):
    found = json.loads(cli("split", screen.recipe, "--json", "--seed", "1").out)
    assert found["leaks"] == []
    assert {row["perturbation"] for row in found["held_out"]["test"]} == {"stimulus_1"}
    assert [row["part"] for row in found["parts"]] == ["train", "validation", "test"]
    assert len(found["hash"]) == 64


def test_split_exits_1_on_a_leak(cli, changed):
    def copy_a_training_cell(adata):
        counts = adata.X.toarray()
        test = np.flatnonzero((adata.obs["perturbation"] == "stimulus_1") & (adata.obs["cell_type"] == "type_3"))
        train = np.flatnonzero((adata.obs["perturbation"] == "stimulus_1") & (adata.obs["cell_type"] == "type_1"))
        counts[test[0]] = counts[train[0]]
        adata.X = csr_matrix(counts)

    ended = cli("split", changed(copy_a_training_cell))
    assert ended.status == 1
    assert "leak: 1 test cells" in ended.out
    assert ended.err.startswith("1 leak found; looked for ")


# train and inspect


def test_train_writes_a_model_and_a_recipe_that_gives_the_same_run(cli, screen, tmp_path):
    ended = cli("train", screen.recipe, "--out", tmp_path / "run", "--seed", "3", "--max-steps", "5", "--device", "cpu")
    assert ended.status == 0, ended.err
    assert ended.out == ""
    assert "parameters, about" in ended.err
    assert re.search(r"done; '.*run' holds the weights of step \d \(validation energy \d+\.\d{3}\)\.", ended.err)
    assert {WEIGHTS, DESCRIPTION, RESUME, "recipe.toml", "logs/metrics.csv"} <= set(files_under(tmp_path / "run"))
    training = load_checkpoint(tmp_path / "run").settings.training
    assert (training.seed, training.max_steps) == (3, 5)
    again = cli("train", tmp_path / "run" / "recipe.toml", "--out", tmp_path / "again", "--device", "cpu", "--quiet")
    assert again == (0, "", "")
    for name in (WEIGHTS,):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_train_needs_no_recipe(cli, screen, tmp_path):
    out = tmp_path / "run"
    arguments = [*OPTIONS, "--hold-out", RULE, "--n-genes", "20", "--preset", "tiny", "--max-steps", "1"]
    ended = cli("train", screen.data, "--out", out, *arguments, "--device", "cpu", "--quiet")
    assert ended == (0, "", "")
    recipe = read_recipe(out / "recipe.toml")
    assert recipe.files == (str(screen.data),)
    assert recipe.hold_out[0].perturbation == ("stimulus_1",)
    assert recipe.model == {"preset": "tiny"}
    assert cli("split", out / "recipe.toml", "--quiet").status == 0


def test_the_same_line_resumes_and_overwrite_begins_anew(cli, screen, own_run):
    line = ["train", screen.recipe, "--out", own_run, "--device", "cpu"]
    ended = cli(*line, "--max-steps", "6")
    assert ended.status == 0
    assert "resuming from" in ended.err
    assert cli(*line, "--seed", "5", "--quiet").refused("holds another run .it differs in settings, split|in settings")
    ended = cli(*line, "--seed", "5", "--overwrite")
    assert ended.status == 0
    assert "resuming" not in ended.err
    assert load_checkpoint(own_run).settings.training.seed == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_train_exits_130_and_leaves_a_usable_run(cli, screen, tmp_path, signal_at, monkeypatch, number):
    line = ["train", screen.recipe, "--out", tmp_path / "run", "--device", "cpu"]
    signal_at(1, number)
    ended = cli(*line, "--max-steps", "50")
    assert ended.status == 130
    assert "interrupted: the same command resumes; " in ended.err
    assert cli("inspect", tmp_path / "run").status == 0
    monkeypatch.undo()


def test_an_interrupted_train_resumes_with_the_same_line(cli, screen, tmp_path, signal_at):
    line = ["train", screen.recipe, "--out", tmp_path / "run", "--device", "cpu", "--max-steps", "5"]
    signal_at(1, signal.SIGINT)
    assert cli(*line).status == 130
    ended = cli(*line)
    assert ended.status == 0
    assert "for 3 steps" in ended.err


@pytest.mark.slow
def test_ctrl_c_ends_the_program_in_good_order(screen, tmp_path):
    command = [sys.executable, "-m", "perturbdiff", "train", screen.recipe, "--out", tmp_path / "run", "--quiet"]
    command = [*map(str, command), "--max-steps", "1000000", "--device", "cpu"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        while process.poll() is None and not (tmp_path / "run" / RESUME).exists():
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert load_checkpoint(tmp_path / "run").history["step"] > 0


def test_inspect_prints_what_a_model_knows(cli, screen):
    ended = cli("inspect", screen.run)
    assert ended.status == 0
    for text in ("stimulus_1, stimulus_2, stimulus_3", "type_1, type_2, type_3", "30 genes", "split "):
        assert text in ended.out
    found = json.loads(cli("inspect", screen.run, "--json").out)
    assert found["labels"]["cell_type"] == ["type_1", "type_2", "type_3"]
    assert len(found["genes"]) == 30
    assert found["split"]["hash"] == load_checkpoint(screen.run).split["hash"]
    assert set(found["settings"]) == {"encoders", "model", "training", "sampling", "finetuning"}


# predict


def test_predict_writes_the_conditions_of_a_table(cli, screen, tmp_path):
    table = tmp_path / "conditions.csv"
    table.write_text("perturbation,cell_type\nstimulus_1,type_3\nstimulus_2,type_1\n")
    out = tmp_path / "new" / "predicted.h5ad"
    line = ["predict", screen.run, screen.data, table, "--out", out, "--populations", "2", "--device", "cpu"]
    ended = cli(*line)
    assert ended.status == 0
    assert ended.out == ""
    assert "holds 96 predicted cells of 2 conditions" in ended.err
    assert (read_anndata(out).obs["population"] >= 0).sum() == 96
    assert files_under(out.parent) == ["predicted.h5ad"]
    assert cli(*line, "--quiet").refused("exists already; choose another name, or give --overwrite")
    assert cli(*line, "--quiet", "--overwrite") == (0, "", "")


def test_predict_takes_one_condition_or_a_part_of_the_split(cli, screen, tmp_path):
    base = ["predict", screen.run, screen.data, "--device", "cpu", "--quiet", "--out"]
    one = cli(*base, tmp_path / "one.h5ad", "--perturbation", "stimulus_1", "--cell-type", "type_3", "--steps", "3")
    assert one == (0, "", "")
    assert json.loads(read_anndata(tmp_path / "one.h5ad").uns["perturbdiff"]["sampling"])["steps"] == 3
    assert cli(*base, tmp_path / "test.h5ad", "--part", "test") == (0, "", "")
    assert set(read_anndata(tmp_path / "test.h5ad").obs["perturbation"]) == {"control", "stimulus_1"}
    assert cli(*base, tmp_path / "none.h5ad").refused("conditions come from a CSV file, from --perturbation or from")
    assert cli(*base, tmp_path / "x.h5ad", "--part", "tset").refused("'tset' is not a held-out part")
    assert files_under(tmp_path) == ["one.h5ad", "test.h5ad"]


def test_predict_reads_columns_of_other_names(cli, screen, adata, tmp_path):
    controls = adata[adata.obs["perturbation"] == "control"].copy()
    controls.obs = controls.obs.rename(columns={"cell_type": "kind", "perturbation": "drug"})
    controls.write_h5ad(tmp_path / "controls.h5ad")
    line = ["predict", screen.run, tmp_path / "controls.h5ad", "--perturbation", "stimulus_1", "--cell-type", "type_3"]
    line += ["--device", "cpu", "--cell-type-column", "kind", "--out"]
    assert cli(*line, tmp_path / "p.h5ad", "--perturbation-column", "drug", "--quiet") == (0, "", "")
    ended = cli(*line, tmp_path / "q.h5ad")
    assert "there is no column 'perturbation', so all 72 cells are taken as control cells." in ended.err
    p, q = (read_anndata(tmp_path / f"{name}.h5ad") for name in "pq")
    assert np.array_equal(p.X.toarray(), q.X.toarray())
    assert cli(*line, tmp_path / "r.h5ad", "--perturbation-column", "drg", "--quiet").refused(
        "no column 'drg'.*nearest is 'drug'"
    )


# evaluate


def test_evaluate_writes_tables_and_a_figure_and_prints_the_summary(cli, screen, predicted, tmp_path):
    out = tmp_path / "eval"
    line = ["evaluate", predicted, screen.data, "--run", screen.run, "--out", out]
    ended = cli(*line)
    assert ended.status == 0, ended.err
    for text in ("predicted", "control + mean shift", "ceiling", "energy"):
        assert text in ended.out
    tables = ["contexts.csv", "genes.parquet", "metrics.csv", "metrics.json", "overall.csv"]
    written = [name for name in files_under(out) if not name.startswith("cache")]
    assert written == sorted(["cells.parquet", "figure.png", *tables])
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert cli(*line, "--quiet").refused("exists already; choose another name, or give --overwrite")
    again = cli(*line, "--overwrite", "--json", "--quiet")
    assert again.err == ""
    assert [row["method"] for row in json.loads(again.out)][:2] == ["predicted", "control"]


@pytest.mark.slow
def test_evaluate_places_cells_by_umap_too_where_it_is_asked(cli, screen, predicted, tmp_path):
    out = tmp_path / "eval"
    ended = cli("evaluate", predicted, screen.data, "--run", screen.run, "--suites", "ours", "--umap", "--out", out)
    assert ended.status == 0, ended.err
    assert {"pc1", "pc2", "umap1", "umap2"} <= set(pd.read_parquet(out / "cells.parquet").columns)
    assert cli("report", out, "--out", tmp_path / "report.html").status == 0
    assert "Cells of predicted on UMAP 1 and UMAP 2." in (tmp_path / "report.html").read_text()


def test_evaluate_takes_a_recipe_or_columns_in_place_of_a_run(cli, screen, predicted, tmp_path):
    line = ["evaluate", predicted, predicted, screen.data, "--quiet", "--json", "--out"]
    assert cli(*line, tmp_path / "a", "--recipe", screen.recipe).status == 0
    named = ["--perturbation", "perturbation", "--control", "control", "--cell-type", "cell_type", "--scale", "counts"]
    assert cli(*line, tmp_path / "b", *named).status == 0
    both = ["--recipe", screen.recipe, "--run", screen.run]
    assert cli(*line, tmp_path / "c", *both).refused("--run and --recipe both bring the training cells")
    some = ["--cell-type", "cell_type", "--scale", "counts"]
    assert cli(*line, tmp_path / "c", *some).refused("cell_type were given without --perturbation")
    alone = ["evaluate", predicted, "--out", tmp_path / "c"]
    assert cli(*alone).refused("one file is given .*; give one or more predicted files, then the observed")
    assert files_under(tmp_path / "c") == [] if (tmp_path / "c").exists() else True


# demo


def test_the_demo_runs_both_settings_from_nothing(cli, tmp_path, monkeypatch, tiny):
    small = functools.partial(perturbdiff.simulate, n_genes=60, cells_per_group=8, control_cells_per_group=10)
    monkeypatch.setattr("perturbdiff.simulation.screen.simulate", small)
    monkeypatch.setattr(import_module("perturbdiff.cli.demo"), "TRAINING", tiny()["training"])
    ended = cli("demo", "--out", tmp_path / "demo", "--device", "cpu", "--quiet")
    assert ended.status == 0, ended.err
    for setting in ("interaction", "additive"):
        assert f"{setting}:" in ended.out
        folder = tmp_path / "demo" / setting
        assert {"observed.h5ad", "predicted.h5ad", "recipe.toml", "metrics.csv", "figure.png"} <= set(
            files_under(folder)
        )


def test_an_interrupted_demo_stops_exits_130_and_resumes(cli, tmp_path, monkeypatch, tiny, signal_at):
    small = functools.partial(perturbdiff.simulate, n_genes=60, cells_per_group=8, control_cells_per_group=10)
    monkeypatch.setattr("perturbdiff.simulation.screen.simulate", small)
    monkeypatch.setattr(import_module("perturbdiff.cli.demo"), "TRAINING", tiny()["training"])
    signal_at(1, signal.SIGINT)
    ended = cli("demo", "--out", tmp_path / "demo", "--device", "cpu")
    assert ended.status == 130
    assert ended.err.strip().endswith("interrupted: the same call resumes.")
    assert not (tmp_path / "demo" / "interaction" / "predicted.h5ad").exists()
    assert not (tmp_path / "demo" / "additive").exists()


def test_a_group_of_one_cell_is_left_out_and_said(cli, changed, tmp_path):
    def one_cell_of_a_group(adata):
        group = (adata.obs["perturbation"] == "stimulus_3") & (adata.obs["cell_type"] == "type_1")
        group &= adata.obs["assay_batch"] == "donor_1"
        gone = np.flatnonzero(group)[1:]
        return adata[np.setdiff1d(np.arange(adata.n_obs), gone)].copy()

    ended = cli("train", changed(one_cell_of_a_group), "--out", tmp_path / "run", "--device", "cpu")
    assert ended.status == 0
    assert "1 groups of a single cell are left out" in ended.err
