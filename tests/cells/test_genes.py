from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy
import scipy.sparse as sp

from perturbdiff.cells import genes as genes_module
from perturbdiff.cells.genes import align_genes, check_panel, measured_scale, select_panel
from perturbdiff.cells.moments import Moments
from perturbdiff.files.container import read_anndata

N_GENES = 40


def moments_of(logs, genes=None):
    """Moments of log1p counts per 10^4 [cells, genes], dense or sparse."""
    logs = sp.csc_matrix(logs, dtype=np.float32)
    y = logs.astype(np.float64)
    x = y.expm1()
    sums = [np.asarray(one.sum(axis=0)).ravel() for one in (x, x.multiply(x), y, y.multiply(y))]
    empty = logs.shape[0] == 0
    extremes = [np.zeros(logs.shape[1]) if empty else one(axis=0).toarray().ravel() for one in (logs.min, logs.max)]
    genes = pd.Index([f"G{g}" for g in range(logs.shape[1])] if genes is None else genes)
    return Moments(genes, logs.shape[0], *sums, *(one.astype(np.float32) for one in extremes))


def normalised(counts, totals=None):
    """log1p counts per 10^4."""
    totals = np.asarray(counts.sum(axis=1)).ravel() if totals is None else totals
    return (sp.diags(1e4 / totals) @ sp.csr_matrix(counts, dtype=np.float64)).log1p().tocsr().astype(np.float32)


@pytest.fixture
def counts(rng):
    return rng.poisson(rng.uniform(2, 8, N_GENES), (300, N_GENES)) + 1


@pytest.fixture
def varied(counts, rng):
    """Genes 5, 11 and 30 are on in half of the cells."""
    for gene in (5, 11, 30):
        counts[:, gene] *= 1 + 9 * rng.integers(0, 2, 300)
    return moments_of(normalised(counts))


def test_the_panel_is_the_most_variable_genes_in_the_files_order(varied):
    assert select_panel(varied, 3) == ["G5", "G11", "G30"]


def test_no_number_or_a_large_one_takes_all_genes_in_the_files_order(varied):
    everything = [f"G{g}" for g in range(N_GENES)]
    assert select_panel(varied, None) == everything
    assert select_panel(varied, N_GENES) == everything
    assert select_panel(varied, 10**6) == everything


@pytest.mark.parametrize("n_genes", [1, 7, 39])
def test_the_panel_has_exactly_as_many_genes_as_asked_for(varied, n_genes):
    panel = select_panel(varied, n_genes)
    assert len(set(panel)) == n_genes
    assert panel == sorted(panel, key=lambda gene: int(gene[1:]))


def test_genes_that_do_not_vary_are_never_chosen_and_too_few_is_an_error(counts):
    counts = counts.astype(np.float64)
    counts[:, 10:] = 0
    logs = normalised(counts).toarray()
    logs[:, 20:30] = 0.1
    moments = moments_of(logs)
    assert select_panel(moments, 10) == [f"G{g}" for g in range(10)]
    with pytest.raises(ValueError, match=r"n_genes=11 is more than the 10 genes that vary in the 300.*lower n_genes"):
        select_panel(moments, 11)


@pytest.mark.parametrize("n_cells", [0, 1])
def test_choosing_without_cells_is_refused(n_cells):
    with pytest.raises(ValueError, match=f"n_genes=5 genes cannot be chosen from {n_cells} training cells; choose at"):
        select_panel(moments_of(np.ones((n_cells, 9))), 5)


def laid_out(means, dispersions, n=100):
    """Moments with given means and variance-to-mean ratios of counts per 10^4; logarithms do not matter."""
    means, variances = np.asarray(means), np.asarray(means) * dispersions
    squares = variances * (n - 1) + n * means**2
    none, ones = np.zeros(len(means)), np.ones(len(means), dtype=np.float32)
    genes = pd.Index([f"G{g}" for g in range(len(means))])
    return Moments(genes, n, n * means, squares, none, none, 0 * ones, ones)


def test_in_one_bin_genes_are_ranked_by_their_variance_over_their_mean():
    """Dispersions 3, 1, 9, 2, 5: the ranking knows nothing of the means."""
    moments = laid_out([1, 800, 30, 2, 100], [3, 1, 9, 2, 5])
    assert select_panel(moments, 1) == ["G2"]
    assert select_panel(moments, 2) == ["G2", "G4"]
    assert select_panel(moments, 3) == ["G0", "G2", "G4"]
    assert select_panel(moments, 4) == ["G0", "G2", "G3", "G4"]


def test_with_bins_a_gene_is_held_against_genes_of_its_own_mean(monkeypatch):
    """Two bins of three genes with log dispersions (0, 1, 5) and (6, 7, 8), and one gene alone.

    Scores are (-0.76, -0.38, 1.13), (-1, 0, 1) and, alone, 1.
    """
    monkeypatch.setattr(genes_module, "_GENES_FOR_BINS", 7)
    moments = laid_out(np.expm1([0.1, 0.11, 0.12, 9.8, 9.9, 10, 5]), np.exp([0, 1, 5, 6, 7, 8, -4]))
    chosen = [select_panel(moments, n) for n in range(1, 6)]
    assert chosen[0] == ["G2"]
    assert chosen[2] == ["G2", "G5", "G6"]
    assert chosen[3] == ["G2", "G4", "G5", "G6"]
    assert chosen[4] == ["G1", "G2", "G4", "G5", "G6"]
    monkeypatch.setattr(genes_module, "_GENES_FOR_BINS", 8)
    assert select_panel(moments, 3) == ["G3", "G4", "G5"]


def test_ties_go_to_the_gene_that_comes_first():
    moments = laid_out([1] * 5, [2, 4, 3, 4, 3])
    assert select_panel(moments, 1) == ["G1"]
    assert select_panel(moments, 3) == ["G1", "G2", "G3"]
    many = laid_out([1] * 1000, [2, 4] * 500)
    assert select_panel(many, 300) == [f"G{2 * g + 1}" for g in range(300)]


def test_a_variance_below_rounding_is_ranked_last():
    moments = laid_out([1, 800, 30, 2, 100], [3, -1e-17, 9, 2, 5])
    assert select_panel(moments, 4) == ["G0", "G2", "G3", "G4"]


def ranked_by_scanpy(logs, genes, n_genes, n_bins):
    """scanpy's choice among the genes that vary; ties at the end are all chosen, as scanpy does."""
    varying = np.flatnonzero((logs.max(axis=0) != logs.min(axis=0)).toarray().ravel())
    adata = anndata.AnnData(logs[:, varying].copy())
    table = scanpy.pp.highly_variable_genes(adata, n_top_genes=n_genes, n_bins=n_bins, flavor="seurat", inplace=False)
    return [genes[i] for i in varying[table["highly_variable"].to_numpy()]]


REAL = {
    "kang_ifnb_1kgenes": (None, [50, 200, 500, 900]),
    "papalexi_eccite_thp1_303genes": ("total_umi", [20, 100, 250]),
    "zheng_pbmc_facs": (None, [100, 1000, 2000, 5000]),
}


@pytest.mark.real
@pytest.mark.parametrize("n_bins", [1, 20])
@pytest.mark.parametrize("file", REAL)
def test_the_panel_of_real_cells_is_that_of_scanpy(real_data, file, n_bins, monkeypatch):
    monkeypatch.setattr(genes_module, "_GENES_FOR_BINS", 0 if n_bins == 20 else 10**9)
    adata = read_anndata(real_data / f"{file}.h5ad")
    totals, sizes = REAL[file]
    logs = normalised(adata.X, None if totals is None else adata.obs[totals].to_numpy(dtype=np.float64))
    genes = [str(gene) for gene in adata.var_names]
    moments = moments_of(logs, genes)
    for n_genes in sizes:
        assert select_panel(moments, n_genes) == ranked_by_scanpy(logs, genes, n_genes, n_bins)


@pytest.mark.real
def test_real_cells_are_ranked_in_bins_where_2000_genes_vary(real_data):
    adata = read_anndata(real_data / "zheng_pbmc_facs.h5ad")
    logs, genes = normalised(adata.X), [str(gene) for gene in adata.var_names]
    panel = select_panel(moments_of(logs, genes), 1000)
    assert panel == ranked_by_scanpy(logs, genes, 1000, 20)
    assert panel != ranked_by_scanpy(logs, genes, 1000, 1)


def test_a_given_panel_keeps_its_own_order(varied):
    assert check_panel(varied.genes, ("G7", "G2")) == ["G7", "G2"]


@pytest.mark.parametrize(
    ("panel", "sentence"),
    [
        ([], r"the panel names no genes.*list genes"),
        (["G1", "G2", "G1"], r"the panel names gene 'G1' twice.*name each gene once"),
        (
            ["G1", "g2"],
            r"1 of the panel's 2 genes are not in the data, such as 'g2'; the nearest is 'G2'; mend the names",
        ),
    ],
)
def test_a_bad_panel_is_refused(varied, panel, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_panel(varied.genes, panel)


def test_the_measured_scale_is_the_standard_deviation_with_zeros(rng):
    dense = np.log1p(rng.poisson(0.5, (50, 20)) * 7.0).astype(np.float32)
    moments = moments_of(dense)
    direct = dense.astype(np.float64)
    assert measured_scale(moments, moments.genes) == pytest.approx(direct.std(), rel=1e-12)
    assert measured_scale(moments, ["G7", "G3"]) == pytest.approx(direct[:, [7, 3]].std(), rel=1e-12)


def test_the_measured_scale_of_two_constant_genes_is_half_their_difference():
    assert measured_scale(moments_of([[1, 4]] * 9), ["G0", "G1"]) == pytest.approx(1.5, rel=1e-15)


def test_the_measured_scale_survives_a_large_mean(rng):
    """Near the largest log1p count per 10^4, with a spread of a hundredth."""
    dense = (9 + 0.01 * rng.random((5000, 20))).astype(np.float32)
    moments = moments_of(dense)
    assert measured_scale(moments, moments.genes) == pytest.approx(dense.astype(np.float64).std(), rel=1e-9)


@pytest.mark.real
def test_the_measured_scale_of_real_cells_is_their_standard_deviation(real_data):
    adata = read_anndata(real_data / "kang_ifnb_1kgenes.h5ad")
    logs = normalised(adata.X)
    moments = moments_of(logs)
    assert measured_scale(moments, moments.genes) == pytest.approx(logs.toarray().std(dtype=np.float64), rel=1e-9)


def test_equal_values_have_no_scale():
    with pytest.raises(
        ValueError, match=r"all 6 values of the panel's genes are 0 .*must be above 0; choose other genes"
    ):
        measured_scale(moments_of(np.zeros((2, 3))), ["G0", "G1", "G2"])
    with pytest.raises(ValueError, match=r"all 14 values of the panel's genes are 0\.1 in the training cells"):
        measured_scale(moments_of(np.full((7, 3), 0.1)), ["G0", "G2"])
    with pytest.raises(ValueError, match="the scale of 0 cells and 3 genes is not defined"):
        measured_scale(moments_of(np.zeros((0, 3))), ["G0", "G1", "G2"])
    with pytest.raises(ValueError, match="the scale of 5 cells and 0 genes is not defined"):
        measured_scale(moments_of(np.zeros((5, 3))), [])


def test_values_that_differ_by_less_than_rounding_have_no_scale():
    known = moments_of(np.full((4, 1), 9.0))
    almost = replace(known, highest=np.nextafter(known.highest, np.float32(10)))
    with pytest.raises(ValueError, match=r"all 4 values of the panel's genes are 9 in the training cells"):
        measured_scale(almost, ["G0"])


def test_the_scale_of_a_gene_that_was_not_measured_is_refused(varied):
    with pytest.raises(ValueError, match=r"^gene 'g3' was not measured, .*the nearest is 'G3'; measure the panel's"):
        measured_scale(varied, ["G1", "g3"])


def test_missing_genes_are_listed_in_the_panels_order():
    assert align_genes(["d", "a", "c", "b"], ["a", "b", "z"], min_overlap=0.5) == ["d", "c"]
    assert align_genes(["a"], ["b", "a"], min_overlap=1.0) == []


def test_too_small_an_overlap_is_an_error_with_both_counts():
    with pytest.raises(
        ValueError, match=r"2 of the panel's 4 genes are in the data, fewer than the 75% needed .*'d', 'c'"
    ):
        align_genes(["d", "a", "c", "b"], ["a", "b"], min_overlap=0.75)
    with pytest.raises(ValueError, match="min_overlap=75 is not between 0 and 1"):
        align_genes(["a"], ["a"], min_overlap=75)
