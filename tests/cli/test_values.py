"""Values of the files that commands are given: what they say of them, and the remedies that they open."""

import re

import numpy as np
import pytest
import scipy.sparse as sp

from perturbdiff.checkpoint import load_checkpoint
from perturbdiff.cli.options import REMEDIES
from perturbdiff.files.container import read_anndata
from perturbdiff.io import write_h5ad
from perturbdiff.recipes.dataset import read_recipe

ONE = ["--perturbation", "stimulus_1", "--cell-type", "type_3", "--quiet", "--device", "cpu"]


@pytest.fixture
def predicting(cli, screen, tmp_path):
    def run(adata, *options):
        adata.write_h5ad(tmp_path / "c.h5ad")
        out = tmp_path / "p.h5ad"
        ended = cli("predict", screen.run, tmp_path / "c.h5ad", *ONE, "--out", out, "--overwrite", *options)
        return read_anndata(out) if ended.status == 0 else ended

    return run


def values(found):
    return found.X.toarray()


def counted(adata):
    """A copy in which each cell has a gene of one count, so that its log1p values tell its counts."""
    copy = adata.copy()
    counts = copy.X.toarray()
    counts[:, 0] = 1
    copy.X = sp.csr_matrix(counts)
    return copy


def test_a_model_remembers_over_which_genes_its_totals_ran(screen, adata):
    assert load_checkpoint(screen.run).total_genes == tuple(adata.var_names)


def test_control_cells_with_more_genes_give_the_same_prediction(predicting, predicted, adata):
    import anndata

    more = anndata.AnnData(
        sp.hstack([adata.X, sp.csr_matrix(np.full((adata.n_obs, 3), 50.0, np.float32))], format="csr"), obs=adata.obs
    )
    more.var_names = [*adata.var_names, "extra_1", "extra_2", "extra_3"]
    np.testing.assert_array_equal(values(predicting(more)), values(read_anndata(predicted)))


def test_control_cells_that_lack_genes_are_refused_and_a_column_of_totals_is_the_remedy(
    predicting, predicted, screen, adata
):
    panel = adata[:, list(load_checkpoint(screen.run).genes)].copy()
    panel.obs["umi"] = np.asarray(adata.X.sum(axis=1)).ravel()
    assert predicting(panel).refused("lacks 10 of the 40 genes over which the training cells.*--total-counts")
    found = predicting(panel, "--total-counts", "umi")
    np.testing.assert_allclose(values(found), values(read_anndata(predicted)), rtol=1e-6)


def test_layer_gene_names_and_target_sum_are_options_of_predict(predicting, adata):
    copy = counted(adata)
    wanted = values(predicting(copy))
    for name, own in (("log", copy), ("untold", adata)):
        counts = own.X.toarray()
        copy.layers[name] = sp.csr_matrix(np.log1p(1e6 * counts / counts.sum(axis=1, keepdims=True)))
    copy.var["symbol"] = copy.var_names.to_numpy(dtype=object)
    copy.var_names = [f"ENSG{i}" for i in range(copy.n_vars)]
    assert predicting(copy).refused("0 of the panel's 30 genes are in the data.*--min-overlap")
    options = ["--gene-names", "symbol", "--scale", "log1p", "--layer", "log"]
    untold = predicting(copy, *options[:-1], "untold", "--target-sum", 1e6)
    assert untold.refused("24 of 24 control cells hold log1p values that do not tell their counts")
    assert predicting(copy, *options).refused(r"give --target-sum|declare --target-sum = 1e\+06")
    found = predicting(copy, *options, "--target-sum", 1e6)
    np.testing.assert_allclose(values(found), wanted, atol=1e-3)


def test_every_option_that_stands_for_a_key_is_one_of_predict_and_evaluate(cli):
    shown = {
        command: re.sub(r"\s+", " ", cli(command, "--help").out) for command in ("predict", "evaluate", "baseline")
    }
    for command, text in shown.items():
        for option in REMEDIES.values():
            name = option.split()[-2] if '"' in option else option
            if name == "--min-overlap" and command != "predict":
                continue  # the panel of the others is that of the files
            assert name in text, (command, name)


def test_repeated_cell_names_are_refused_by_train_before_any_work(cli, changed, tmp_path):
    recipe = changed(lambda copy: setattr(copy, "obs_names", ["same", "same", *copy.obs_names[2:]]))
    ended = cli("train", recipe, "--out", tmp_path / "run", "--quiet", "--device", "cpu")
    assert ended.refused(r"2 cells share their name with another cell, such as 'same'.*obs_names_make_unique")
    assert not (tmp_path / "run" / "model.json").exists()


def test_an_empty_line_of_conditions_is_said_and_skipped(cli, screen, tmp_path):
    (tmp_path / "c.csv").write_text("perturbation,cell_type\nstimulus_1,type_3\n,\n")
    line = ["predict", screen.run, screen.data, tmp_path / "c.csv", "--device", "cpu", "--out", tmp_path / "p.h5ad"]
    ended = cli(*line)
    assert ended.status == 0
    assert "has 1 rows without any label (line 3), which are skipped" in re.sub(r"\s+", " ", ended.err)
    assert set(read_anndata(tmp_path / "p.h5ad").obs["perturbation"]) == {"control", "stimulus_1"}


def test_values_below_zero_of_a_predicted_file_are_judged_where_clip_is_given(cli, screen, predicted, tmp_path):
    found = read_anndata(predicted)
    dense = found.X.toarray()
    dense[-1, :3] = -0.25
    found.X = dense
    write_h5ad(found, tmp_path / "p.h5ad")
    line = ["evaluate", tmp_path / "p.h5ad", screen.data, "--run", screen.run, "--suites", "ours", "--bootstrap", 2]
    assert cli(*line, "--out", tmp_path / "a", "--quiet").refused("the value -0.25.*--clip")
    ended = cli(*line, "--out", tmp_path / "b", "--clip")
    assert ended.status == 0
    assert "3 values are below 0, the lowest -0.25, and are judged as 0" in re.sub(r"\s+", " ", ended.err)


def test_a_column_of_the_users_keeps_its_name_and_ours_has_another(make_model, adata):
    copy = adata.copy()
    copy.obs = copy.obs.rename(columns={"assay_batch": "population"})
    columns = {"perturbation": "perturbation", "cell_type": "cell_type", "assay_batch": "population"}
    model = make_model(of=copy, columns=columns)
    model.train(device="cpu", show_progress=False)
    found = model.predict(copy, perturbation="stimulus_1", cell_type="type_3", device="cpu")
    assert set(found.obs["population"]) == {"donor_1", "donor_2"}
    assert set(found.obs["perturbdiff_population"]) == {-1, 0}
    assert found.uns["perturbdiff"]["own_columns"]["population"] == "perturbdiff_population"


def per_million(adata, path):
    copy = counted(adata)
    counts = copy.X.toarray()
    copy.X = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e6).astype(np.float32)
    copy.write_h5ad(path)


def test_target_sum_and_cells_to_leave_out_are_options_of_train(cli, adata, tmp_path):
    per_million(adata, tmp_path / "a.h5ad")
    columns = ["--perturbation", "perturbation", "--control", "control", "--cell-type", "cell_type"]
    words = ["train", tmp_path / "a.h5ad", "--out", tmp_path / "run", *columns, "--scale", "log1p"]
    words += ["--preset", "tiny", "--max-steps", 1, "--device", "cpu", "--hold-out"]
    unseen = ['{part = "test", perturbation = ["stimulus_1"]}']
    assert cli(*words, *unseen).refused(r"declare --target-sum = 1e\+06")
    words += [*unseen, "--target-sum", 1e6]
    assert cli(*words).refused(r"\(keep_cells\), give --features, or leave the cells out \(--exclude\)")
    words[words.index("--hold-out")] = "--exclude"
    words[words.index(unseen[0])] = '{perturbation = ["stimulus_1"]}'
    assert cli(*words).status == 0
    recipe = read_recipe(tmp_path / "run" / "recipe.toml")
    assert (recipe.expression.target_sum, recipe.exclude[0].perturbation) == (1e6, ("stimulus_1",))


def test_target_sum_is_an_option_of_features(cli, adata, tmp_path):
    per_million(adata, tmp_path / "a.h5ad")
    words = ["features", "loadings", tmp_path / "a.h5ad", "--scale", "log1p", "--components", 2]
    assert cli(*words, "--out", tmp_path / "f.parquet").refused(r"declare --target-sum = 1e\+06")
    assert cli(*words, "--out", tmp_path / "f.parquet", "--target-sum", 1e6).status == 0
