"""What the command line cannot do: one clear sentence on standard error, exit status 2, nothing half-written."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from perturbdiff.checkpoint import DESCRIPTION, FORMAT, WEIGHTS

OPTIONS = ["--perturbation", "perturbation", "--control", "control", "--cell-type", "cell_type"]
OPTIONS += ["--assay-batch", "assay_batch", "--scale", "counts"]


def files_under(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def with_counts(change):
    """A change of the dense counts."""

    def apply(adata):
        counts = adata.X.toarray()
        change(counts)
        adata.X = csr_matrix(counts)

    return apply


def without_column(adata):
    del adata.obs["cell_type"]


def twice_a_gene(adata):
    adata.var_names = ["gene_0000", *adata.var_names[:-1]]


def one_cell_each(adata):
    return adata[~adata.obs.duplicated(["perturbation", "cell_type", "assay_batch"]).to_numpy()].copy()


def no_label(adata):
    labels = adata.obs["cell_type"].astype(object)
    labels.iloc[3] = None
    adata.obs["cell_type"] = pd.Categorical(labels)


def no_controls_of_a_type(adata):
    gone = (adata.obs["perturbation"] == "control") & (adata.obs["cell_type"] == "type_2")
    return adata[~gone.to_numpy()].copy()


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without_column, "screen.h5ad has no column 'cell_type', which columns.cell_type names"),
        (with_counts(lambda x: x.__setitem__((3, 4), 0.5)), "holds the value 0.5, and counts are integers; name the"),
        (with_counts(lambda x: x.__setitem__((3, 4), -2)), "holds the value -2, and expression is never negative"),
        (with_counts(lambda x: x.__setitem__((3, 4), np.nan)), "holds the value nan, and expression must be finite"),
        (with_counts(lambda x: x.__setitem__((3, 4), np.inf)), "holds the value inf, and expression must be finite"),
        (with_counts(lambda x: x.__setitem__(3, 0)), "1 cells of screen.h5ad have no counts at all"),
        (twice_a_gene, "1 gene names more than once, such as 'gene_0000'"),
        (one_cell_each, "give no population, which takes at least 2 cells|has . control cells of its cell type"),
        (no_label, "column 'cell_type' of screen.h5ad has no label for 1 cells"),
        (no_controls_of_a_type, r"has 0 control cells of its cell type, fewer than 2; add control cells or exclude"),
    ],
)
def test_data_that_cannot_be_trained_on_are_refused(cli, changed, tmp_path, change, sentence):
    recipe = changed(change)
    ended = cli("train", recipe, "--out", tmp_path / "run", "--quiet", "--device", "cpu")
    assert ended.refused(sentence)
    assert not (tmp_path / "run").exists() or files_under(tmp_path / "run") == []


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('control = "control"', 'control = "contrl"', "no cell has the control label 'contrl' .*nearest is 'control'"),
        ('["stimulus_1"]', '["stimulus_11"]', "names perturbation 'stimulus_11', which no cell has; the nearest is"),
        ('files = ["screen.h5ad"]', 'files = ["scren.h5ad"]', "file 'scren.h5ad' .* matches nothing in .*put the file"),
        ("[training]", "[trainig]", "'trainig' is not a key here; the nearest is 'training'"),
        ("max_steps = 4", "max_step = 4", "'max_step' is not a key here; the nearest is 'max_steps'"),
        ("max_steps = 4", "max_steps = -4", "training.max_steps is -4, which should be greater than or equal to 1"),
        ("n_genes = 30", "n_genes = 0", "n_genes = 0 is below 1"),
        ("[model]", "[model", "is not TOML: .*; mend that line"),
        ('scale = "counts"', 'scale = "raw"', "expression.scale is 'raw', which should be 'counts' or 'log1p'"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(cli, screen, tmp_path, old, new, sentence):
    text = screen.recipe.read_text()
    text = re.sub(r"\[\s+(\"[^\"]*\"),\s+\]", r"[\1]", text)
    assert old in text
    path = tmp_path / "recipe.toml"
    path.write_text(text.replace(old, new, 1))
    (tmp_path / "screen.h5ad").write_bytes(screen.data.read_bytes())
    ended = cli("train", path, "--out", tmp_path / "run", "--quiet", "--device", "cpu")
    assert ended.refused(sentence)
    assert not (tmp_path / "run").exists() or files_under(tmp_path / "run") == []


def test_files_that_are_not_there_or_damaged_are_named(cli, screen, tmp_path):
    train = ["train", "--quiet", "--out", tmp_path / "run"]
    assert cli(*train, tmp_path / "none.toml").refused("there is no recipe file")
    assert cli(*train, tmp_path / "none.h5ad", *OPTIONS).refused("file .*none.h5ad' .* matches nothing")
    cut = tmp_path / "cut.h5ad"
    cut.write_bytes(screen.data.read_bytes()[:5000])
    assert cli(*train, cut, *OPTIONS).refused("cut.h5ad' is cut short; copy or download it again")
    garbage = tmp_path / "garbage.h5ad"
    garbage.write_text("not a file of cells")
    assert cli(*train, garbage, *OPTIONS).refused("garbage.h5ad' is not an HDF5 file")
    out = ["--out", tmp_path / "p.h5ad", "--quiet", "--perturbation", "stimulus_1"]
    assert cli("predict", screen.run, tmp_path / "none.h5ad", *out).refused("there is no file")
    assert cli("predict", screen.run, cut, *out).refused("is cut short")
    conditions = ["predict", screen.run, screen.data, tmp_path / "none.csv", "--out", tmp_path / "p.h5ad", "--quiet"]
    assert cli(*conditions).refused("there is no table of conditions")
    assert cli("evaluate", cut, screen.data, "--run", screen.run, "--out", tmp_path / "e").refused("is cut short")
    assert cli("inspect", tmp_path / "none").refused("there is no model in .*: model.json is missing")
    assert files_under(tmp_path) == ["cut.h5ad", "garbage.h5ad"]


def test_options_that_do_not_fit_are_refused(cli, screen, tmp_path):
    out = ["--out", tmp_path / "run", "--quiet"]
    assert cli("train", screen.recipe, *out, "--control", "control").refused("control were given, but the recipe")
    assert cli("train", screen.data, *out).refused("columns.perturbation is missing|expression is missing|scale")
    assert cli("train", screen.data, *out, *OPTIONS, "--hold-out", "{part=").refused("is not an inline table")
    assert cli("train", screen.data, *out, *OPTIONS, "--preset", "huge").refused("model.preset is 'huge'")
    assert cli("train", screen.recipe, *out, "--device", "abacus").refused("device 'abacus' is not a device")
    assert cli("train", screen.recipe, *out, "--max-steps", "0").refused("training.max_steps is 0")
    assert files_under(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--perturbation", "stimulus1"], "perturbation 'stimulus1' is not one of the 4 .*nearest is 'stimulus_1'"),
        (
            ["--perturbation", "stimulus_1", "--cell-type", "typ_3"],
            "no control cell of cell_type 'typ_3' .*nearest is 'type_3'",
        ),
        (["--perturbation", "stimulus_1", "--steps", "500"], "sampling.steps = 500 of 20 times does not fit"),
        (["--perturbation", "stimulus_1", "--scale", "raw"], "scale is 'raw', which should be 'counts' or 'log1p'"),
        (["--perturbation", "stimulus_1", "--device", "abacus"], "device 'abacus' is not a device"),
    ],
)
def test_a_prediction_that_cannot_be_made_is_refused(cli, screen, tmp_path, options, sentence):
    ended = cli("predict", screen.run, screen.data, "--out", tmp_path / "p.h5ad", "--quiet", *options)
    assert ended.refused(sentence)
    assert files_under(tmp_path) == []


def test_control_cells_that_do_not_fit_the_model_are_refused(cli, screen, adata, tmp_path):
    def predict(change):
        copy = adata.copy()
        copy = change(copy) or copy
        copy.write_h5ad(tmp_path / "controls.h5ad")
        line = [
            "predict",
            screen.run,
            tmp_path / "controls.h5ad",
            "--perturbation",
            "stimulus_1",
            "--cell-type",
            "type_2",
        ]
        return cli(*line, "--out", tmp_path / "p.h5ad", "--quiet", "--device", "cpu")

    def other_genes(copy):
        copy.var_names = [f"ENSG{i}" for i in range(copy.n_vars)]

    def only_perturbed(copy):
        return copy[copy.obs["perturbation"] != "control"].copy()

    assert predict(other_genes).refused("0 of the panel's 30 genes are in the data, fewer than the 90% needed")
    assert predict(no_controls_of_a_type).refused("no control cell of cell_type 'type_2' among the 48 control cells")
    assert predict(only_perturbed).refused("no cell has the control label 'control'")
    assert predict(with_counts(lambda x: x.__setitem__((0, 0), 0.5))).refused("counts are integers")
    assert files_under(tmp_path) == ["controls.h5ad"]


@pytest.mark.parametrize("damage", ["weights", "json", "newer"])
def test_a_damaged_or_newer_model_is_refused_by_every_command(cli, screen, predicted, own_run, tmp_path, damage):
    if damage == "weights":
        (own_run / WEIGHTS).write_bytes((own_run / WEIGHTS).read_bytes()[:-5])
    else:
        description = json.loads((own_run / DESCRIPTION).read_text())
        description["format"] = FORMAT + 1
        (own_run / DESCRIPTION).write_text(json.dumps(description) if damage == "newer" else "{")
    sentence = "install a newer perturbdiff" if damage == "newer" else "is damaged"
    out = tmp_path / "out"
    condition = ["--perturbation", "stimulus_1", "--quiet", "--out", out / "p.h5ad"]
    assert cli("inspect", own_run).refused(sentence)
    assert cli("predict", own_run, screen.data, *condition).refused(sentence)
    assert cli("evaluate", predicted, screen.data, "--run", own_run, "--out", out).refused(sentence)
    assert cli("train", screen.recipe, "--out", own_run, "--quiet", "--device", "cpu").refused(sentence)
    assert not out.exists() or files_under(out) == []


def test_an_output_that_cannot_be_written_is_refused_before_any_work(cli, screen, predicted, tmp_path):
    (tmp_path / "file").write_text("in the way")
    inside = tmp_path / "file" / "out"
    rule = "cannot be written .*; choose a folder that you may write to"
    assert cli("train", screen.recipe, "--out", inside, "--quiet").refused(rule)
    condition = ["--perturbation", "stimulus_1", "--quiet"]
    assert cli("predict", screen.run, screen.data, *condition, "--out", inside / "p.h5ad").refused(rule)
    assert cli("evaluate", predicted, screen.data, "--run", screen.run, "--out", inside).refused(rule)
    assert cli("demo", "--out", inside, "--quiet").refused("Not a directory|cannot be written")
    assert files_under(tmp_path) == ["file"]
