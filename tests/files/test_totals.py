"""Log1p values are of counts per what is declared, and totals run over the genes that they ran over in training."""

import re

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from perturbdiff.cells.anndata import cells_from_anndata
from perturbdiff.files.totals import check_normalised, sums_of_expm1
from perturbdiff.recipes.dataset import Columns, Expression, recipe_from_mapping
from perturbdiff.store.build import build_store
from perturbdiff.store.stored import Store

N_CELLS, N_GENES = 40, 60


def counted(seed=0):
    rng = np.random.default_rng(seed)
    depth = rng.uniform(2, 9, (N_CELLS, 1))
    counts = rng.poisson(depth, (N_CELLS, N_GENES)).astype(np.float32)
    obs = pd.DataFrame({"guide": np.resize(["ctrl", "A"], N_CELLS)}, index=[f"c{i}" for i in range(N_CELLS)])
    return AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)]))


def logged(target, genes=N_GENES, *, dense=False):
    adata = counted()
    counts = adata.X.toarray()
    values = np.log1p(target * counts / counts.sum(axis=1, keepdims=True)).astype(np.float32)
    adata.X = values if dense else sp.csr_matrix(values)
    return adata[:, :genes].copy()


def read(adata, **expression):
    return cells_from_anndata(
        adata, columns=Columns(perturbation="guide"), expression=Expression(**expression), control="ctrl"
    )


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("target", [1e6, 1e5, 412.0])
def test_counts_normalised_to_another_total_are_refused_and_the_total_is_named(target, dense):
    with pytest.raises(ValueError, match=re.escape(f"declare expression.target_sum = {target:.6g}, to wh")):
        read(logged(target, dense=dense), scale="log1p")


def test_a_panel_whose_sums_exceed_what_is_declared_is_refused_with_what_was_found():
    adata = logged(1e6, genes=30)
    highest = sums_of_expm1(adata.X).max()
    with pytest.raises(ValueError, match=re.escape(f"and {highest:.4g} (highest)") + ".*declare in expression"):
        read(adata.copy(), scale="log1p")


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("target", [1e6, 412.0])
def test_values_of_a_declared_total_become_log1p_counts_per_ten_thousand(target, dense):
    found = read(logged(target, dense=dense), scale="log1p", target_sum=target).log_expression(["g3", "g1"])
    wanted = read(counted(), scale="counts").log_expression(["g3", "g1"])
    np.testing.assert_allclose(found.toarray(), wanted.toarray(), rtol=1e-5)


def test_log1p_counts_per_ten_thousand_pass_whole_and_as_a_panel_and_are_not_changed():
    for genes in (N_GENES, 25):
        adata = logged(1e4, genes=genes)
        cells = read(adata, scale="log1p")
        assert cells.values is adata.X  # noqa: PD011 - of cells, not of a table
        assert cells.notes == ()


def test_sums_agree_whatever_the_number_of_cells_looked_at_together(monkeypatch):
    adata = logged(1e4, genes=20)
    wanted = np.expm1(adata.X.toarray().astype(np.float64)).sum(axis=1)
    for chunk in (1, 100, 1 << 20):
        monkeypatch.setattr("perturbdiff.files.totals._CHUNK", chunk)
        np.testing.assert_allclose(sums_of_expm1(adata.X), wanted)
        np.testing.assert_allclose(sums_of_expm1(adata.X.toarray()), wanted)


def test_low_sums_over_very_many_genes_are_said():
    values = sp.random(20, 12_000, density=0.05, format="csr", random_state=0, data_rvs=lambda n: np.full(n, 0.7))
    assert "were normalised over genes which the file lacks" in str(
        check_normalised(values, Expression(scale="log1p"), "'a.h5ad'")
    )


def test_a_target_sum_beside_counts_or_not_above_zero_is_refused():
    for table in ({"scale": "counts", "target_sum": 1e6}, {"scale": "log1p", "target_sum": 0.0}):
        with pytest.raises(ValueError, match="target_sum"):
            recipe_from_mapping({"name": "s", "kind": "rna-seq", "expression": table}, "s.toml")


def recipe(**expression):
    table = {
        "name": "s",
        "files": ["a.h5ad"],
        "control": "ctrl",
        "columns": {"perturbation": "guide"},
        "expression": expression,
    }
    return recipe_from_mapping(table, "s.toml")


def test_a_store_refuses_and_converts_as_memory_does(tmp_path):
    logged(1e6).write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match=r"declare expression\.target_sum = 1e\+06"):
        build_store(recipe(scale="log1p"), tmp_path, tmp_path / "x.store")
    build_store(recipe(scale="log1p", target_sum=1e6), tmp_path, tmp_path / "y.store")
    store = Store.open(tmp_path / "y.store")
    cells = store.in_memory(store.runs.whole())
    wanted = read(counted(), scale="counts")
    rows = wanted.names.get_indexer(cells.names)
    np.testing.assert_allclose(
        cells.log_expression(["g5"]).toarray(), wanted.log_expression(["g5"], rows).toarray(), rtol=1e-5
    )


def with_antibodies(column="feature_types"):
    adata = counted()
    kinds = ["Gene Expression"] * 50 + ["Antibody Capture"] * 8 + ["CRISPR Guide Capture"] * 2
    adata.var[column] = pd.Categorical(kinds)
    return adata


@pytest.mark.parametrize("column", ["feature_types", "feature_type"])
def test_only_genes_are_counted_and_the_others_are_named_once(column):
    cells = read(with_antibodies(column), scale="counts")
    alone = read(counted()[:, :50].copy(), scale="counts")
    assert list(cells.genes) == list(alone.genes)
    np.testing.assert_array_equal(cells.total_counts, alone.total_counts)
    (note,) = cells.notes
    assert "10 of 60 features are no genes and are left out: 8 'Antibody Capture', 2 'CRISPR Guide Capture'" in note


def test_a_column_that_says_of_what_kind_genes_are_leaves_all_of_them():
    adata = counted()
    adata.var["feature_type"] = np.resize(["protein_coding", "lncRNA"], N_GENES)
    assert len(read(adata, scale="counts").genes) == N_GENES


def test_antibodies_alone_are_refused():
    adata = counted()
    adata.var["feature_types"] = "Antibody Capture"
    with pytest.raises(ValueError, match="of the kind 'Antibody Capture' alone"):
        read(adata, scale="counts")


def test_a_store_holds_genes_alone_and_says_what_it_left_out(tmp_path):
    with_antibodies().write_h5ad(tmp_path / "a.h5ad")
    build_store(recipe(scale="counts"), tmp_path, tmp_path / "x.store")
    store = Store.open(tmp_path / "x.store")
    assert len(store.genes) == 50
    assert any("8 'Antibody Capture'" in note for note in store.notes)
    cells, alone = store.in_memory(store.runs.whole()), read(counted()[:, :50].copy(), scale="counts")
    np.testing.assert_array_equal(cells.total_counts, alone.total_counts[alone.names.get_indexer(cells.names)])


def test_raw_can_be_named_unless_a_layer_is_called_so(tmp_path):
    adata = counted()
    adata.raw = adata.copy()
    adata = adata[:, :10].copy()
    cells = read(adata, scale="counts", layer="raw")
    assert len(cells.genes) == N_GENES
    adata.write_h5ad(tmp_path / "a.h5ad")
    build_store(recipe(scale="counts", layer="raw"), tmp_path, tmp_path / "x.store")
    assert list(Store.open(tmp_path / "x.store").genes) == list(cells.genes)
    adata.layers["raw"] = adata.X.copy()
    assert len(read(adata, scale="counts", layer="raw").genes) == 10
