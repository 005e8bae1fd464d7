import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from perturbdiff.cells.anndata import cells_from_anndata, read_cells
from perturbdiff.cells.memory import matches, profile_hashes
from perturbdiff.recipes.dataset import Columns, Expression, recipe_from_mapping
from perturbdiff.recipes.selection import Match

COLUMNS = Columns(perturbation="guide", cell_type="line", assay_batch="plate")
COUNTS = Expression(scale="counts")


def made(n_cells=12, n_genes=5, *, matrix=None, seed=0):
    counts = np.random.default_rng(seed).poisson(1.0, (n_cells, n_genes)).astype(np.float32)
    counts[:, 0] += 1
    obs = pd.DataFrame(
        {
            "guide": pd.Categorical(np.resize(["ctrl", "A", "B"], n_cells)),
            "line": np.resize(["K562", "RPE1"], n_cells),
            "plate": np.resize([1, 2, 3, 4], n_cells),
            "umi": counts.sum(1) * 10.0,
        },
        index=[f"cell{i}" for i in range(n_cells)],
    )
    var = pd.DataFrame({"symbol": [f"S{g}" for g in range(n_genes)]}, index=[f"G{g}" for g in range(n_genes)])
    return anndata.AnnData(sp.csr_matrix(counts) if matrix is None else matrix(counts), obs=obs, var=var)


def cells_of(adata, *, columns=COLUMNS, expression=COUNTS, control="ctrl", exclude=()):
    return cells_from_anndata(adata, columns=columns, expression=expression, control=control, exclude=exclude)


def dense(adata):
    return adata.X.toarray() if sp.issparse(adata.X) else np.asarray(adata.X)


def test_labels_are_categories_of_text_whatever_the_column_held():
    cells = cells_of(made())
    assert list(cells.labels) == ["perturbation", "cell_type", "assay_batch"]
    assert cells.labels["assay_batch"].cat.categories.tolist() == ["1", "2", "3", "4"]
    assert cells.labels["perturbation"].astype(str).tolist()[:3] == ["ctrl", "A", "B"]
    assert cells.n_cells == 12
    assert cells.is_control.sum() == 4


def test_a_covariate_that_the_data_lack_holds_the_empty_label():
    cells = cells_of(made(), columns=Columns(), control=None)
    assert (cells.labels == "").all().all()
    assert cells.is_control.all()


@pytest.mark.parametrize("matrix", [sp.csr_matrix, sp.csr_array, sp.csc_matrix, np.asarray, lambda x: x.astype(int)])
def test_expression_is_log1p_of_counts_per_ten_thousand_for_every_storage(matrix):
    adata = made(matrix=matrix)
    counts = dense(made())
    expected = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))
    found = cells_of(adata).log_expression(["G3", "G0"], np.array([7, 2]))
    assert sp.isspmatrix_csr(found)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.toarray(), expected[[7, 2]][:, [3, 0]], rtol=1e-6)


def test_expression_of_all_genes_and_rows_leaves_the_cells_as_they_were():
    adata = made()
    before = adata.X.copy()
    cells = cells_of(adata)
    assert cells.values is adata.X  # noqa: PD011
    found = cells.log_expression(list(cells.genes))
    found.data[:] = 0
    found.eliminate_zeros()
    assert (before != adata.X).nnz == 0


def test_float64_counts_give_float32_expression():
    cells = cells_of(made(matrix=lambda x: sp.csr_matrix(x.astype(np.float64))))
    assert cells.values.dtype == np.float64  # noqa: PD011
    assert cells.log_expression(list(cells.genes)).dtype == np.float32


def test_log1p_values_pass_through():
    adata = made(matrix=lambda x: sp.csr_matrix(np.log1p(x)))
    cells = cells_of(adata, expression=Expression(scale="log1p"))
    assert cells.total_counts is None
    np.testing.assert_array_equal(cells.log_expression(list(cells.genes)).toarray(), adata.X.toarray())


def test_a_declared_total_replaces_the_sum_over_the_files_genes():
    adata = made()
    declared = cells_of(adata, columns=COLUMNS.model_copy(update={"total_counts": "umi"}))
    np.testing.assert_allclose(declared.total_counts, 10 * cells_of(adata).total_counts)
    one = declared.log_expression(["G0"]).toarray()[:, 0]
    np.testing.assert_allclose(one, np.log1p(1e4 * dense(adata)[:, 0] / adata.obs["umi"]), rtol=1e-6)


def test_totals_are_over_all_genes_of_the_file_even_for_few():
    adata = made()
    np.testing.assert_allclose(
        cells_of(adata).log_expression(["G1"]).toarray(),
        cells_of(adata).log_expression(list(adata.var_names))[:, [1]].toarray(),
    )


def test_the_layer_the_gene_column_and_obsm_are_read_where_they_are_named():
    adata = made()
    adata.layers["raw"] = adata.X * 2
    adata.obsm["few"] = pd.DataFrame(dense(adata)[:, :2], index=adata.obs_names, columns=["x", "y"])
    adata.obsm["chosen"] = dense(adata)[:, [1, 3]] + 1
    adata.var["chosen"] = [False, True, False, True, False]
    layer = cells_of(adata, expression=Expression(scale="counts", layer="raw", gene_names="symbol"))
    assert list(layer.genes) == ["S0", "S1", "S2", "S3", "S4"]
    assert layer.total_counts.sum() == 2 * adata.X.sum()
    assert list(cells_of(adata, expression=Expression(scale="counts", layer="obsm:few")).genes) == ["x", "y"]
    chosen = cells_of(adata, expression=Expression(scale="counts", layer="obsm:chosen", gene_names="chosen"))
    assert list(chosen.genes) == ["G1", "G3"]
    with pytest.raises(ValueError, match=r"5 gene names for the 2 columns of 'obsm:chosen'.*must be as many; store"):
        cells_of(adata, expression=Expression(scale="counts", layer="obsm:chosen"))


def test_taking_rows_keeps_everything_in_line():
    cells = cells_of(made())
    for rows in (np.array([4, 1]), np.isin(np.arange(12), [1, 4])):
        some = cells.take(rows)
        order = rows if rows.dtype != bool else np.flatnonzero(rows)
        assert list(some.names) == [f"cell{i}" for i in order]
        np.testing.assert_array_equal(some.total_counts, cells.total_counts[order])
        assert some.labels["perturbation"].cat.categories.tolist() == ["A"]
        np.testing.assert_array_equal(some.values.toarray(), cells.values.toarray()[order])  # noqa: PD011
        assert not some.is_control.any()


def test_excluded_cells_are_left_out_altogether():
    cells = cells_of(made(), exclude=[Match(perturbation=("A",), assay_batch=("2",)), Match(perturbation=("B",))])
    assert "B" not in cells.labels["perturbation"].cat.categories
    assert cells.n_cells == 7
    with pytest.raises(ValueError, match=r"exclude\[0\] names perturbation 'a', which no cell has; the nearest is 'A'"):
        cells_of(made(), exclude=[Match(perturbation=("a",))])
    with pytest.raises(ValueError, match=r"exclude leaves none of 12 cells.*take a rule out"):
        cells_of(made(), exclude=[Match(cell_type=("K562", "RPE1"))])


def test_a_rule_that_names_a_drug_without_its_dose_means_every_dose_of_it():
    adata = made()
    adata.obs["dose"] = np.float32([0, 0.1, 1, 0, 1, 1, 0, 0.1, 0.1, 0, 1, 0.1])
    columns = COLUMNS.model_copy(update={"dose": "dose", "dose_unit": "uM"})
    cells = cells_of(adata, columns=columns)
    known = ["[('A', 0.1, 'uM')]", "[('A', 1, 'uM')]", "[('B', 0.1, 'uM')]", "[('B', 1, 'uM')]", "ctrl"]
    assert cells.labels["perturbation"].cat.categories.tolist() == known
    assert cells.is_control.sum() == 4
    drug, dose = (Match(perturbation=(label,)) for label in ("A", known[1]))
    np.testing.assert_array_equal(matches(cells.labels, drug, "x"), adata.obs["guide"] == "A")
    assert matches(cells.labels, dose, "x").sum() == 2
    left = cells_of(adata, columns=columns, exclude=[drug]).labels["perturbation"].cat.categories
    assert left.tolist() == known[2:]
    with pytest.raises(ValueError, match=r"exclude\[0\] names perturbation 'C', which no cell has"):
        cells_of(adata, columns=columns, exclude=[Match(perturbation=("C",))])


@pytest.mark.parametrize("covariate", ["perturbation", "cell_type", "assay_batch"])
def test_a_rule_that_names_the_empty_label_matches_no_cell_and_is_refused(covariate):
    with pytest.raises(ValueError, match=rf"exclude\[0\] names {covariate} '', which no cell has; there are"):
        cells_of(made(), exclude=[Match(**{covariate: ("",)})])


def test_a_missing_gene_is_named_with_the_nearest():
    with pytest.raises(ValueError, match="1 of 2 genes are not in the data, such as 'g3'; the nearest is 'G3'"):
        cells_of(made()).log_expression(["G1", "g3"])


def recipe_of(*files, **changes):
    table = {
        "name": "many",
        "control": "ctrl",
        "files": list(files),
        "columns": {"perturbation": "guide", "cell_type": "line"},
        "expression": {"scale": "counts"},
    }
    return recipe_from_mapping(table | changes, "many.toml")


def test_several_files_are_put_one_below_the_other(tmp_path):
    first, second = made(6, seed=1), made(9, seed=2)
    second.obs_names = [f"other{i}" for i in range(9)]
    first.write_h5ad(tmp_path / "p1.h5ad")
    second[:, ["G4", "G0", "G1", "G2", "G3"]].copy().write_h5ad(tmp_path / "p2.h5ad")
    cells = read_cells(recipe_of("p*.h5ad"), tmp_path)
    assert cells.n_cells == 15
    assert cells.notes == ()
    np.testing.assert_array_equal(cells.values.toarray(), np.vstack([dense(first), dense(second)]))  # noqa: PD011
    np.testing.assert_array_equal(cells.total_counts, np.concatenate([dense(first).sum(1), dense(second).sum(1)]))
    assert cells.labels["cell_type"].cat.categories.tolist() == ["K562", "RPE1"]
    assert cells.is_control.sum() == 5


def test_dense_files_stay_dense_and_mixed_ones_become_sparse(tmp_path):
    made(6, matrix=np.asarray).write_h5ad(tmp_path / "d1.h5ad")
    made(6, matrix=np.asarray, seed=1).write_h5ad(tmp_path / "d2.h5ad")
    made(6, seed=2).write_h5ad(tmp_path / "s.h5ad")
    assert isinstance(read_cells(recipe_of("d*.h5ad", cell_names="with_file"), tmp_path).values, np.ndarray)
    assert sp.issparse(read_cells(recipe_of("*.h5ad", cell_names="with_file"), tmp_path).values)


def test_names_that_several_files_share_are_refused_or_carry_their_file(tmp_path):
    first, second = made(3), made(3, seed=1)
    second.obs_names = ["cell0", "x", "y"]
    first.write_h5ad(tmp_path / "p1.h5ad")
    second.write_h5ad(tmp_path / "p2.h5ad")
    with pytest.raises(ValueError, match=r"1 cell names occur in several files, such as 'cell0' in 'p1.h5ad' and 'p2"):
        read_cells(recipe_of("p*.h5ad"), tmp_path)
    cells = read_cells(recipe_of("p*.h5ad", cell_names="with_file"), tmp_path)
    assert list(cells.names) == ["cell0-p1", "cell1-p1", "cell2-p1", "cell0-p2", "x-p2", "y-p2"]
    assert cells.notes == ("The name of its file was added to the name of every cell, such as 'cell0-p1'.",)
    alone = read_cells(recipe_of("p1.h5ad", cell_names="with_file"), tmp_path)
    assert list(alone.names) == ["cell0-p1", "cell1-p1", "cell2-p1"]


def test_files_of_different_genes_are_refused(tmp_path):
    made(3).write_h5ad(tmp_path / "p1.h5ad")
    made(3)[:, :4].copy().write_h5ad(tmp_path / "p2.h5ad")
    sentence = (
        "'p2.h5ad' has 4 genes and 'p1.h5ad' 5, of which they share 4, and files of one recipe must have the same"
    )
    with pytest.raises(ValueError, match=sentence):
        read_cells(recipe_of("p*.h5ad"), tmp_path)


def test_a_label_of_one_file_only_can_be_the_control_or_be_excluded(tmp_path):
    first, second = made(6), made(6, seed=1)
    second.obs_names = [f"other{i}" for i in range(6)]
    second.obs["guide"] = "Z"
    first.write_h5ad(tmp_path / "p1.h5ad")
    second.write_h5ad(tmp_path / "p2.h5ad")
    cells = read_cells(recipe_of("p*.h5ad", exclude=[{"perturbation": ["B"]}]), tmp_path)
    assert cells.labels["perturbation"].cat.categories.tolist() == ["A", "Z", "ctrl"]


FACTS = [
    (
        "kang_ifnb_1kgenes",
        None,
        "IFN-beta",
        {"ISG15": (0.59, 4.95), "IFI6": (0.29, 3.41), "ISG20": (1.05, 4.21), "ACTB": (3.29, 2.93)},
    ),
    ("papalexi_eccite_thp1_303genes", "total_umi", "STAT1", {"STAT1": (2.27, 0.69)}),
    ("papalexi_eccite_thp1_303genes", "total_umi", "JAK2", {"JAK2": (1.00, 0.28)}),
    ("tapseq_diffex_k562_74genes", None, "FAM83A", {"FAM83A": (3.5, 0.5)}),
    ("tapseq_diffex_k562_74genes", None, "RIPK2", {"RIPK2": (3.9, 0.9)}),
]


@pytest.mark.real
@pytest.mark.parametrize(("file", "total", "perturbation", "means"), FACTS)
def test_the_recorded_means_of_real_data_hold(real_data, file, total, perturbation, means):
    columns = {"perturbation": "perturbation", "cell_type": "cell_type", "assay_batch": "batch"}
    columns |= {"total_counts": total} if total else {}
    cells = read_cells(recipe_of(f"{file}.h5ad", columns=columns, control="control"), real_data)
    perturbed = np.asarray(cells.labels["perturbation"] == perturbation)
    for gene, (control_mean, perturbed_mean) in means.items():
        values = cells.log_expression([gene]).toarray()[:, 0]
        assert values[cells.is_control].mean() == pytest.approx(
            control_mean, abs=0.055 if control_mean > 3.4 else 0.006
        )
        assert values[perturbed].mean() == pytest.approx(perturbed_mean, abs=0.055 if control_mean > 3.4 else 0.006)


@pytest.mark.real
@pytest.mark.parametrize(
    ("file", "shape", "n_control"),
    [
        ("kang_ifnb_1kgenes", (14432, 940), 12315),
        ("papalexi_eccite_thp1_303genes", (18826, 303), 2205),
        ("norman_mcfaline_perturbench_devel", (5961, 381), 400),
        ("tapseq_diffex_k562_74genes", (9525, 71), 3890),
        ("zheng_pbmc_facs", (3874, 11730), 3874),
    ],
)
def test_real_files_have_the_recorded_cells_genes_and_controls(real_data, file, shape, n_control):
    columns = {"perturbation": "perturbation", "cell_type": "cell_type", "assay_batch": "batch"}
    cells = read_cells(recipe_of(f"{file}.h5ad", columns=columns, control="control"), real_data)
    assert cells.values.shape == shape  # noqa: PD011
    assert cells.is_control.sum() == n_control


def test_profiles_hash_alike_exactly_where_rows_are_equal(rng):
    values = rng.poisson(0.7, (96, 30)).astype(np.float32)
    values[40:60] = values[20:40]
    values[70] = values[5][::-1]
    values[80], values[81] = 0, 0
    hashes, expressed = profile_hashes(sp.csr_matrix(values))
    np.testing.assert_array_equal(expressed, (values > 0).sum(1))
    equal = (values[:, None] == values[None]).all(-1)
    np.testing.assert_array_equal(hashes[:, None] == hashes[None], equal)
    np.testing.assert_array_equal(profile_hashes(values)[0], hashes)


def test_an_explicit_zero_does_not_change_a_profile():
    plain = sp.csr_matrix(np.array([[1.0, 0.0, 2.0]]))
    stored = sp.csr_matrix((np.array([1.0, 0.0, 2.0]), np.arange(3), np.array([0, 3])), shape=(1, 3))
    for one, other in zip(profile_hashes(plain), profile_hashes(stored), strict=True):
        np.testing.assert_array_equal(one, other)
