import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from perturbdiff.data.cells import cells_from_anndata
from perturbdiff.data.genes import align_genes, check_panel, measured_scale, select_panel
from perturbdiff.data.recipe import Columns, Expression

N_GENES = 40


def made(counts):
    names = [f"c{i}" for i in range(len(counts))]
    adata = anndata.AnnData(
        sp.csr_matrix(counts.astype(np.float32)),
        obs=pd.DataFrame(index=names),
        var=pd.DataFrame(index=[f"G{g}" for g in range(counts.shape[1])]),
    )
    return cells_from_anndata(adata, columns=Columns(), expression=Expression(scale="counts"), control=None)


@pytest.fixture
def counts(rng):
    return rng.poisson(rng.uniform(2, 8, N_GENES), (300, N_GENES)) + 1


@pytest.fixture
def varied(counts, rng):
    """Genes 5, 11 and 30 are on in half of the first 200 cells; gene 20 in the last 100 only."""
    for gene in (5, 11, 30):
        counts[:200, gene] *= 1 + 9 * rng.integers(0, 2, 200)
    counts[200:, 20] *= 1 + 50 * rng.integers(0, 2, 100)
    return made(counts)


def test_the_panel_is_the_most_variable_genes_in_the_files_order(varied):
    assert select_panel(varied, np.arange(200), 3) == ["G5", "G11", "G30"]


def test_the_panel_looks_at_training_cells_only(varied):
    assert "G20" not in select_panel(varied, np.arange(200), 4)
    assert "G20" in select_panel(varied, np.arange(300), 4)


def test_no_number_or_a_large_one_takes_all_genes_in_the_files_order(varied):
    everything = [f"G{g}" for g in range(N_GENES)]
    assert select_panel(varied, np.arange(10), None) == everything
    assert select_panel(varied, np.arange(10), N_GENES) == everything
    assert select_panel(varied, np.arange(10), 10**6) == everything


@pytest.mark.parametrize("n_genes", [1, 7, 39])
def test_the_panel_has_exactly_as_many_genes_as_asked_for(varied, n_genes):
    panel = select_panel(varied, np.arange(300), n_genes)
    assert len(set(panel)) == n_genes
    assert panel == sorted(panel, key=lambda gene: int(gene[1:]))


def test_genes_that_do_not_vary_are_never_chosen_and_too_few_is_an_error(counts):
    counts[:, 10:] = 0
    cells = made(counts)
    assert select_panel(cells, np.arange(300), 10) == [f"G{g}" for g in range(10)]
    with pytest.raises(ValueError, match=r"n_genes=11 is more than the 10 genes that vary in the 300.*lower n_genes"):
        select_panel(cells, np.arange(300), 11)


def test_choosing_without_cells_is_refused(varied):
    with pytest.raises(ValueError, match="n_genes=5 genes cannot be chosen from 0 training cells; choose at least"):
        select_panel(varied, np.arange(0), 5)


def test_a_given_panel_keeps_its_own_order(varied):
    assert check_panel(varied, ("G7", "G2")) == ["G7", "G2"]


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
        check_panel(varied, panel)


def test_the_measured_scale_is_the_standard_deviation_with_zeros(rng):
    dense = rng.poisson(0.5, (50, 20)).astype(np.float32)
    assert measured_scale(sp.csr_matrix(dense)) == pytest.approx(dense.astype(np.float64).std(), rel=1e-12)


def test_the_measured_scale_survives_a_large_mean(rng):
    dense = (1000 + rng.random((50, 20))).astype(np.float32)
    assert measured_scale(sp.csr_matrix(dense)) == pytest.approx(dense.astype(np.float64).std(), rel=1e-9)


def test_equal_values_have_no_scale():
    with pytest.raises(
        ValueError, match=r"all 6 values of the panel's genes are 0 .*must be above 0; choose other genes"
    ):
        measured_scale(sp.csr_matrix((2, 3), dtype=np.float32))
    with pytest.raises(ValueError, match="the scale of 0 cells and 3 genes is not defined"):
        measured_scale(sp.csr_matrix((0, 3), dtype=np.float32))


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
