"""The whole way, as a user goes it: from an .h5ad to the tables of a report."""

import json

import numpy as np
import pandas as pd

from perturbdiff.files.container import read_anndata

RECIPE = """
name = "story"
control = "control"
files = ["screen.h5ad"]
n_genes = 30

[columns]
perturbation = "perturbation"
cell_type = "cell_type"
assay_batch = "assay_batch"

[expression]
scale = "counts"

[[hold_out]]
part = "test"
perturbation = ["stimulus_1", "stimulus_2"]
cell_type = ["type_3"]

[[hold_out]]
part = "validation"
perturbation = ["stimulus_3"]
cell_type = ["type_3"]

[model]
preset = "tiny"
width = 16
depth = 1
heads = 2
times = 20

[training]
max_steps = 8
cells_per_population = 8
validate_every = 4

[sampling]
steps = 3
"""


def test_from_an_h5ad_to_the_tables_of_a_report(cli, adata, tmp_path):
    adata.write_h5ad(tmp_path / "screen.h5ad")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    run, predicted, out = tmp_path / "run", tmp_path / "predicted.h5ad", tmp_path / "eval"

    split = json.loads(cli("split", recipe, "--json").out)
    assert split["leaks"] == []
    assert {row["part"]: row["groups"] for row in split["parts"]} == {"train": 12, "validation": 2, "test": 4}

    assert cli("train", recipe, "--out", run, "--device", "cpu").status == 0
    known = json.loads(cli("inspect", run, "--json").out)
    assert known["split"]["hash"] == split["hash"]
    assert np.isfinite(known["history"]["validation_energy"])

    observed = tmp_path / "screen.h5ad"
    assert cli("predict", run, observed, "--part", "test", "--out", predicted, "--device", "cpu").status == 0
    cells = read_anndata(predicted)
    made = cells[(cells.obs["population"] >= 0).to_numpy()]
    assert cells.shape == (24 + 48, 30)
    assert set(zip(made.obs["perturbation"], made.obs["cell_type"], strict=True)) == {
        ("stimulus_1", "type_3"),
        ("stimulus_2", "type_3"),
    }
    assert np.isfinite(made.X.data).all()
    assert made.X.data.min() > 0
    assert made.X.data.max() < 9.3

    ended = cli("evaluate", predicted, observed, "--run", run, "--out", out)
    assert ended.status == 0, ended.err
    written = ["contexts.csv", "figure.png", "genes.parquet", "metrics.csv", "metrics.json", "overall.csv"]
    assert sorted(path.name for path in out.iterdir()) == ["cache", "cells.parquet", *written]
    table = pd.read_csv(out / "metrics.csv")
    methods = list(dict.fromkeys(table["method"]))
    assert methods[:3] == ["predicted", "control", "control + mean shift"]
    assert "ceiling" in methods
    assert set(table["perturbation"].dropna()) == {"stimulus_1", "stimulus_2"}
    energy = table[table["metric"] == "energy_distance"].set_index(["method", "perturbation"])["value"]
    assert np.isfinite(energy).all()
    assert (energy["ceiling"].abs() < 0.2).all()  # halves of one population
    notes = json.loads((out / "metrics.json").read_text())["notes"]
    assert notes[0] == "14 of 18 observed conditions are not judged: not chosen, or not predicted."
