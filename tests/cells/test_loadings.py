from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from perturbdiff.cells.anndata import cells_from_anndata, read_cells
from perturbdiff.cells.loadings import expression_loadings
from perturbdiff.cells.order import Segments
from perturbdiff.recipes.dataset import recipe_from_mapping
from perturbdiff.store.build import build_store
from perturbdiff.store.stored import Store

RECIPE = recipe_from_mapping(
    {
        "name": "x",
        "control": "ctrl",
        "files": ["a.h5ad"],
        "columns": {"perturbation": "guide", "assay_batch": "plate"},
        "expression": {"scale": "counts"},
    },
    "x",
)


def screen(n_cells=90, n_genes=14, seed=0):
    """Counts of genes in programmes: 2k and 2k + 1 go together; gene 4 is absent and gene 5 is in one control cell."""
    rng = np.random.default_rng(seed)
    programmes = np.repeat(rng.gamma(1, 4, (n_cells, -(-n_genes // 2))), 2, axis=1)[:, :n_genes]
    counts = rng.poisson(programmes).astype(np.float32)
    counts[:, 0] += 1
    counts[:, 4:6] = 0
    guide = np.where(np.arange(n_cells) % 3 < 2, "ctrl", "A")
    counts[0, 5] = 3
    obs = pd.DataFrame(
        {"guide": guide, "plate": rng.choice(["p", "q"], n_cells)}, index=[f"cell {i}" for i in range(n_cells)]
    )
    return anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"G{g}" for g in range(n_genes)]))


def cells_of(adata):
    return cells_from_anndata(adata, columns=RECIPE.columns, expression=RECIPE.expression, control=RECIPE.control)


def controls(source):
    return source.runs.whole(source.runs.is_control)


def dense(source, genes, segments=None):
    """z [n, genes] in float64, cell by cell."""
    segments = controls(source) if segments is None else segments
    logs = source.log_expression(genes, source.rows(segments)).toarray().astype(np.float64)
    return (logs - logs.mean(axis=0)) / logs.std(axis=0)


@pytest.fixture(scope="module")
def cells():
    return cells_of(screen())


@pytest.mark.parametrize("components", [1, 3, 12, 32])
@pytest.mark.parametrize("shape", [(90, 14), (18, 40)])
def test_loadings_are_those_of_the_dense_decomposition(components, shape):
    cells = cells_of(screen(*shape))
    found = expression_loadings(cells, controls(cells), components=components)
    z = dense(cells, found.labels)
    _, s, vt = np.linalg.svd(z, full_matrices=False)
    k = min(components, min(z.shape) - 1)
    expected = (vt.T * s / np.sqrt(len(z)))[:, :k]
    expected *= np.sign(expected[np.abs(expected).argmax(axis=0), np.arange(k)])
    assert found.width == k
    np.testing.assert_allclose(found.values, expected, atol=1e-6)


def test_a_row_is_made_of_the_genes_correlations_with_the_scores(cells):
    found = expression_loadings(cells, controls(cells), components=3)
    z = dense(cells, found.labels)
    scores = z @ np.asarray(found.values, dtype=np.float64)  # of component k a multiple of U_k S_k
    correlations = [[np.corrcoef(gene, score)[0, 1] for score in scores.T] for gene in z.T]
    np.testing.assert_allclose(found.values, correlations, atol=1e-6)


def test_with_all_components_products_of_rows_are_correlations_of_genes():
    cells = cells_of(screen(18, 40))  # 12 cells that are centred have 11 components
    found = expression_loadings(cells, controls(cells))
    assert found.width == 11
    rows = found.rows(found.labels).astype(np.float64)
    np.testing.assert_allclose(rows @ rows.T, np.corrcoef(dense(cells, found.labels).T), atol=1e-6)


def test_genes_that_go_together_have_near_rows(cells):
    found = expression_loadings(cells, controls(cells), components=6)
    rows = found.rows(["G8", "G9", "G12"]).astype(np.float64)
    assert np.linalg.norm(rows[0] - rows[1]) < 0.5 * np.linalg.norm(rows[0] - rows[2])


def test_exactly_the_genes_that_vary_in_the_control_cells_have_rows(cells):
    found = expression_loadings(cells, controls(cells))
    assert found.missing([f"G{g}" for g in range(14)]) == ["G4"]
    assert found.origin == "expression loadings over 60 cells"


def test_each_components_largest_loading_is_positive(cells):
    found = expression_loadings(cells, controls(cells))
    largest = np.abs(found.values).argmax(axis=0)
    assert (np.take_along_axis(found.values, largest[None], axis=0) > 0).all()


def test_the_order_of_cells_and_genes_in_the_file_does_not_matter(cells, rng):
    adata = screen()
    shuffled = cells_of(adata[rng.permutation(adata.n_obs), rng.permutation(adata.n_vars)].copy())
    a, b = (expression_loadings(one, controls(one)) for one in (cells, shuffled))
    assert a.labels == b.labels
    assert np.array_equal(a.values, b.values)


def test_dense_cells_and_zeros_that_are_stored_change_nothing(cells):
    stored = sp.csr_matrix(cells.values, copy=True)
    stored.data[:] = np.where(np.arange(stored.nnz) % 5, stored.data, 0)
    plain = stored.copy()
    plain.eliminate_zeros()
    found = [
        expression_loadings(one, controls(one))
        for one in (replace(cells, values=plain), replace(cells, values=stored), replace(cells, values=plain.toarray()))
    ]
    assert all(np.array_equal(one.values, found[0].values) for one in found)


def test_cells_that_are_not_control_cells_are_not_looked_at(cells):
    adata = screen()
    counts = adata.X.toarray()
    counts[adata.obs["guide"] == "A"] = 7
    adata.X = sp.csr_matrix(counts)
    changed = cells_of(adata)
    a, b = (expression_loadings(one, controls(one)) for one in (cells, changed))
    assert np.array_equal(a.values, b.values)


def test_of_more_cells_an_even_share_is_read(cells):
    some = controls(cells).thinned(30)
    found = expression_loadings(cells, controls(cells), at_most=30)
    assert found.origin == f"expression loadings over {some.n_cells} cells"
    assert np.array_equal(found.values, expression_loadings(cells, some).values)
    assert 30 <= some.n_cells <= 32


def test_a_store_gives_the_same_bits_as_memory(tmp_path):
    screen().write_h5ad(tmp_path / "a.h5ad")
    build_store(RECIPE, tmp_path, tmp_path / "x.store")
    cells, store = read_cells(RECIPE, tmp_path), Store.open(tmp_path / "x.store")
    a, b = (expression_loadings(one, controls(one)) for one in (cells, store))
    assert a.labels == b.labels
    assert np.array_equal(a.values, b.values)


def test_components_without_variance_are_left_out():
    """Genes that are copies of three have three components, whatever was asked for."""
    adata = screen(90, 14)
    logs = np.log1p(np.random.default_rng(1).poisson(3, (90, 3)) / 2)
    adata.X = sp.csr_matrix(np.repeat(logs, [5, 5, 4], axis=1).astype(np.float32))
    expression = RECIPE.expression.model_copy(update={"scale": "log1p"})
    cells = cells_from_anndata(adata, columns=RECIPE.columns, expression=expression, control="ctrl")
    found = expression_loadings(cells, controls(cells))
    assert found.width == 3
    np.testing.assert_allclose(np.linalg.norm(found.values, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(found.rows(["G0"]), found.rows(["G1"]), atol=1e-6)


def test_too_little_to_decompose_is_refused(cells):
    first = controls(cells).positions()[:2]
    with pytest.raises(ValueError, match=r"^2 cells have no components, which take at least 3 cells; give more"):
        expression_loadings(cells, Segments.of(cells.runs, first))
    with pytest.raises(ValueError, match=r"^components = 0 is below 1"):
        expression_loadings(cells, controls(cells), components=0)
    adata = screen()
    few = adata[:, ["G0", "G4", "G1"]].copy()
    with pytest.raises(ValueError, match=r"^2 of 3 genes vary in 60 cells, and components take at least 3; give other"):
        expression_loadings(cells_of(few), controls(cells_of(few)))
