"""The commands that make features, as a user calls them: smiles, loadings, language."""

import numpy as np
import pandas as pd
import pytest
import torch

from perturbdiff.cells.anndata import read_cells
from perturbdiff.cells.loadings import expression_loadings
from perturbdiff.cells.memory import Cells
from perturbdiff.features.files import read_features
from perturbdiff.features.molecules import fingerprints
from perturbdiff.recipes.dataset import write_recipe
from perturbdiff.store.build import build_store

COUNTS = ["--scale", "counts"]
CONTROLS = ["--perturbation", "perturbation", "--control", "control"]


@pytest.fixture
def folder(adata, make_recipe, tmp_path):
    """The cells of the tiny screen and a recipe that holds perturbed cells out."""
    adata.write_h5ad(tmp_path / "screen.h5ad")
    write_recipe(make_recipe(), tmp_path / "recipe.toml")
    return tmp_path


@pytest.fixture
def cells(folder, make_recipe):
    return read_cells(make_recipe(), folder)


def loadings_of(cells: Cells, chosen, **options):
    return expression_loadings(cells, cells.runs.whole(chosen), **options)


def equal(a, b):
    return a.labels == b.labels and np.array_equal(a.values, b.values)


def test_smiles_makes_the_fingerprints_of_a_table(cli, tmp_path):
    drugs = {"ethanol": "CCO", "benzene": "c1ccccc1"}
    pd.DataFrame(drugs.items(), columns=["label", "smiles"]).to_csv(tmp_path / "drugs.csv", index=False)
    out = tmp_path / "made" / "drugs.parquet"
    ended = cli("features", "smiles", tmp_path / "drugs.csv", "--out", out)
    assert (ended.status, ended.out) == (0, "")
    assert ended.err == f"'{out}' holds 2 labels x 1024 features: Morgan count fingerprints of drugs.csv.\n"
    assert equal(read_features(out), fingerprints(drugs, "x"))
    command = ["features", "smiles", tmp_path / "drugs.csv", "--out", out, "--radius", 1, "--size", 64, "--quiet"]
    assert cli(*command).refused("drugs.parquet' exists already; choose another name, or give --overwrite")
    assert cli(*command, "--overwrite") == (0, "", "")
    assert equal(read_features(out), fingerprints(drugs, "x", radius=1, size=64))


def test_what_smiles_cannot_do_is_one_sentence_and_leaves_nothing(cli, tmp_path):
    (tmp_path / "drugs.csv").write_text("label,smiles\nx,CCO\ny,C1CC\n")
    out = ["--out", tmp_path / "x.parquet", "--quiet"]
    bad = cli("features", "smiles", tmp_path / "drugs.csv", *out)
    assert bad.refused("the SMILES 'C1CC' of label 'y' in drugs.csv is none that RDKit reads")
    assert cli("features", "smiles", tmp_path / "none.csv", *out).refused("there is no file of texts '.*none.csv'")
    assert cli("features", "smiles", tmp_path / "drugs.csv", "--out", tmp_path / "x.csv").refused(
        "x.csv' does not end in .parquet"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["drugs.csv"]


def test_loadings_are_of_the_control_cells_where_they_are_known(cli, folder, cells):
    out = folder / "genes.parquet"
    ended = cli("features", "loadings", folder / "screen.h5ad", "--out", out, *COUNTS, *CONTROLS, "--components", 5)
    assert ended.status == 0
    note, last = ended.err.splitlines()
    assert note == "1 of 40 genes do not vary in these cells and have no row."
    assert last == f"'{out}' holds 39 labels x 5 features: expression loadings over 72 cells."
    assert equal(read_features(out), loadings_of(cells, cells.runs.is_control, components=5))


def test_loadings_are_of_all_cells_where_no_control_cells_are_known(cli, folder, cells):
    out = folder / "genes.parquet"
    assert cli("features", "loadings", folder / "screen.h5ad", "--out", out, *COUNTS, "--quiet") == (0, "", "")
    found = read_features(out)
    assert found.width == 32
    np.testing.assert_allclose(
        np.linalg.norm(found.values, axis=1), np.linalg.norm(loadings_of(cells, None).values, axis=1), rtol=1e-5
    )


def test_a_recipe_and_its_store_give_the_same_loadings_as_the_options(cli, folder, cells, make_recipe):
    build_store(make_recipe(), folder, folder / "screen.store")
    expected = loadings_of(cells, cells.runs.is_control)
    for name in ("recipe.toml", "screen.store"):
        out = folder / f"{name}.parquet"
        assert cli("features", "loadings", folder / name, "--out", out, "--quiet") == (0, "", "")
        assert equal(read_features(out), expected)


def test_control_cells_that_a_recipe_holds_out_are_not_looked_at(cli, folder, cells, make_recipe):
    rule = {"part": "test", "cell_type": ["type_3"], "hold_out_controls": True}
    write_recipe(make_recipe(hold_out=[rule]), folder / "recipe.toml")
    assert cli("features", "loadings", folder / "recipe.toml", "--out", folder / "x.parquet").status == 0
    kept = cells.runs.is_control & (cells.runs.labels["cell_type"] != "type_3").to_numpy()
    assert equal(read_features(folder / "x.parquet"), loadings_of(cells, kept))


def test_what_loadings_cannot_do_is_one_sentence_and_leaves_nothing(cli, folder):
    command = ["features", "loadings", folder / "screen.h5ad", "--out", folder / "x.parquet", "--quiet"]
    assert cli(*command).refused("the scale of '.*screen.h5ad' is not given; add --scale counts or --scale log1p")
    assert cli(*command, "--scale", "raw").refused("expression.scale is 'raw', which should be 'counts' or 'log1p'")
    assert cli(*command, *COUNTS, *CONTROLS[:2]).refused("--perturbation is given alone, .*; give both")
    assert cli(*command, *COUNTS, *CONTROLS[2:]).refused("--control is given alone, .*; give both")
    assert cli(*command, *COUNTS, *CONTROLS[:3], "ctrl").refused("no cell has the control label 'ctrl'")
    assert cli(*command, *COUNTS, "--layer", "logs").refused("has no 'logs' in layers, which --layer names")
    assert cli(*command, *COUNTS, "--gene-names", "symbol").refused("no column 'symbol', which --gene-names names")
    recipe = ["features", "loadings", folder / "recipe.toml", "--out", folder / "x.parquet"]
    assert cli(*recipe, *COUNTS).refused("expression were given, but the recipe .* says that")
    assert cli("features", "loadings", folder / "none.toml", *recipe[3:]).refused("there is no recipe file")
    assert cli("features", "loadings", folder / "none.h5ad", *recipe[3:], *COUNTS).refused(
        "none.h5ad' .*matches nothing"
    )
    assert not (folder / "x.parquet").exists()


def test_language_embeds_texts_by_the_model_of_a_folder(cli, tmp_path):
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"ab"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "model")
    BertModel(
        BertConfig(
            vocab_size=len(words), hidden_size=6, num_hidden_layers=1, num_attention_heads=2, intermediate_size=4
        )
    ).save_pretrained(tmp_path / "model")
    (tmp_path / "x.fasta").write_text(">one of them\na b\n>two\nb\n>three\na b\n")
    out, model = tmp_path / "x.parquet", ["--model", tmp_path / "model"]
    command = ["features", "language", tmp_path / "x.fasta", "--out", out, "--device", "cpu", "--batch-size", 2]
    ended = cli(*command, *model)
    assert (ended.status, ended.out) == (0, "")
    assert ended.err.endswith(f"'{out}' holds 3 labels x 6 features: embeddings by {tmp_path / 'model'}.\n")
    found = read_features(out)
    assert found.labels == ("one", "three", "two")
    np.testing.assert_allclose(found.rows(["one"]), found.rows(["three"]), atol=1e-5)
    assert cli(*command, *model).refused("exists already")
    again = [*command, "--overwrite", "--quiet"]
    assert cli(*again, *model) == (0, "", "")
    assert cli(*again, "--model", tmp_path / "none").refused("the model '.*none' cannot be loaded")
    assert cli(*again, *model, "--device", "abacus").refused(
        "device 'abacus' is not a device; choose auto, cpu or cuda"
    )
    if not torch.cuda.is_available():
        assert cli(*again, *model, "--device", "cuda").refused("torch sees no CUDA device")
