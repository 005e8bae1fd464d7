"""A summary says of populations what their cells say, without keeping them."""

import numpy as np
import pandas as pd
import pytest

from perturbdiff.model import PerturbDiff
from perturbdiff.prediction.summary import read_programmes

ONE = {"perturbation": "stimulus_1", "cell_type": "type_3"}


@pytest.fixture(scope="module")
def model(screen):
    return PerturbDiff.load(screen.run)


@pytest.fixture(scope="module")
def programmes(model):
    genes = list(model.trained.genes)
    weights = np.zeros((len(genes), 2))
    weights[:3, 0] = 1.0
    weights[2:6, 1] = [1.0, -1.0, 2.0, 0.0]
    return pd.DataFrame(weights, index=genes, columns=["first", "second"])


@pytest.fixture(scope="module")
def table(model, adata, programmes):
    return model.summarise(adata, **ONE, populations=20, level=0.9, programmes=programmes, device="cpu")


def test_changes_are_those_of_the_cells_that_would_be_predicted(model, adata, table, programmes):
    made = model.predict(adata, **ONE, populations=20, device="cpu")
    values, draw = made.X.toarray().astype(float), made.obs["population"].to_numpy()
    control = values[draw < 0]
    changes = np.array([values[draw == k].mean(axis=0) - control.mean(axis=0) for k in range(20)])
    genes = table[table["kind"] == "gene"]
    np.testing.assert_allclose(genes["mean_change"], changes.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(genes["sd"], changes.std(axis=0, ddof=1), atol=1e-4)
    np.testing.assert_allclose(genes["p_up"], (changes > 0).mean(axis=0), atol=0.051)
    errors = np.mean([values[draw == k].var(axis=0) / 24 for k in range(20)], axis=0) + control.var(axis=0) / 24
    np.testing.assert_allclose(genes["sd_cells"], np.sqrt(errors), atol=1e-4)
    weights = (programmes / programmes.abs().sum()).to_numpy()
    of_programmes = table[table["kind"] == "programme"]
    assert list(of_programmes["feature"]) == ["first", "second"]
    np.testing.assert_allclose(of_programmes["mean_change"], (changes @ weights).mean(axis=0), atol=1e-4)


def test_the_table_names_conditions_draws_and_cells(model, table):
    assert table[["perturbation", "cell_type", "assay_batch"]].drop_duplicates().to_numpy().tolist() == [
        ["stimulus_1", "type_3", ""]
    ]
    assert set(table["populations"]) == {20}
    assert set(table["cells"]) == {24}
    assert list(table["feature"][: len(model.trained.genes)]) == list(model.trained.genes)


def test_a_condition_has_the_same_numbers_whatever_its_minibatches(model, adata, table, monkeypatch):
    monkeypatch.setattr("perturbdiff.prediction.drawing.NUMBERS_AT_ONCE", 1)
    again = model.summarise(adata, **ONE, populations=20, level=0.9, device="cpu")
    genes = table[table["kind"] == "gene"]
    np.testing.assert_allclose(again["mean_change"], genes["mean_change"], atol=1e-4)


def test_what_cannot_be_summarised_is_refused_before_anything_is_drawn(model, adata, programmes):
    with pytest.raises(ValueError, match=r"populations=20 are too few for intervals of level 0\.95, which need 39"):
        model.summarise(adata, **ONE, populations=20, device="cpu")
    strange = programmes.set_axis([f"x{i}" for i in range(len(programmes))])
    with pytest.raises(ValueError, match="programme 'first' has no gene of the model's panel"):
        model.summarise(adata, **ONE, programmes=strange, device="cpu")
    with pytest.raises(ValueError, match="is twice in the programmes; give each gene one row"):
        model.summarise(adata, **ONE, programmes=pd.concat([programmes, programmes[:1]]), device="cpu")


def test_programmes_are_read_from_tables(programmes, tmp_path):
    programmes.to_csv(tmp_path / "p.csv")
    programmes.to_parquet(tmp_path / "p.parquet")
    for name in ("p.csv", "p.parquet"):
        pd.testing.assert_frame_equal(read_programmes(tmp_path / name), programmes, check_names=False)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("words.csv", "gene,p\na,much\n", r"column 'p' holds no numbers in 'words\.csv'"),
        ("holes.csv", "gene,p\na,1\nb,\n", r"a weight in 'holes\.csv' is missing"),
        ("empty.csv", "", r"'empty\.csv' cannot be read as a table"),
        ("p.txt", "x", r"'p\.txt' is no table"),
        ("p.parquet", "x", r"'p\.parquet' cannot be read as a table"),
    ],
)
def test_a_file_that_holds_no_weights_is_refused(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=said):
        read_programmes(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_programmes(tmp_path / "none.csv")


def test_the_command_writes_the_table(cli, screen, programmes, tmp_path, model, adata):
    programmes.to_csv(tmp_path / "p.csv")
    command = ["predict", screen.run, screen.data, "--perturbation", "stimulus_1", "--cell-type", "type_3"]
    out = tmp_path / "s.csv"
    ended = cli(*command, "--summary", "--programmes", tmp_path / "p.csv", "--out", out, "--device", "cpu")
    assert ended.status == 0
    assert "holds mean changes over 100 populations of a condition" in ended.err
    wanted = model.summarise(adata, **ONE, programmes=programmes, device="cpu")
    np.testing.assert_allclose(pd.read_csv(out)["mean_change"], wanted["mean_change"], atol=1e-6)
    refused = cli(*command, "--summary", "--out", tmp_path / "s.h5ad")
    assert (refused.status, "--summary writes a table" in refused.err) == (2, True)
    refused = cli(*command, "--programmes", tmp_path / "p.csv", "--out", tmp_path / "s.h5ad")
    assert (refused.status, "add --summary" in refused.err) == (2, True)
    assert not (tmp_path / "s.h5ad").exists()
