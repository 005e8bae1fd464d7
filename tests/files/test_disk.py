import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from perturbdiff.cells.anndata import cells_from_anndata, read_cells
from perturbdiff.files.disk import opened
from perturbdiff.recipes.dataset import recipe_from_mapping
from perturbdiff.recipes.selection import Match
from perturbdiff.store import scan
from perturbdiff.store.build import build_store
from perturbdiff.store.stored import Store
from perturbdiff.store.workdir import stat_of

COLUMNS = {"perturbation": "guide", "cell_type": "line", "assay_batch": "plate"}


def made(n_cells=40, n_genes=6):
    rng = np.random.default_rng(0)
    counts = rng.poisson(1.0, (n_cells, n_genes)).astype(np.float32)
    counts[:, 0] += 1
    obs = pd.DataFrame(
        {
            "guide": pd.Categorical(np.resize(["ctrl", "A", "B"], n_cells)),
            "line": np.resize(["K562", "RPE1"], n_cells),
            "plate": np.resize([1, 2, 3, 4], n_cells),
            "umi": counts.sum(1) * 2.0,
        },
        index=[f"cell{i}" for i in range(n_cells)],
    )
    return anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"G{g}" for g in range(n_genes)]))


def recipe(columns=COLUMNS, control="ctrl", scale="counts", layer=None, gene_names=None, **more):
    expression = {"scale": scale, "layer": layer, "gene_names": gene_names}
    mapping = {"name": "x", "control": control, "files": ["a.h5ad"], "columns": columns, "expression": expression}
    return recipe_from_mapping({**mapping, **more}, "x")


def refusal(folder, adata, chosen):
    adata.write_h5ad(folder / "a.h5ad")
    with pytest.raises(ValueError, match=r"[.]$") as caught:
        build_store(chosen, folder, folder / "x.store")
    assert [path.name for path in folder.iterdir()] == ["a.h5ad"]
    return str(caught.value)


def of_memory(adata, chosen):
    with pytest.raises(ValueError, match=r"[.]$") as caught:
        cells_from_anndata(adata, columns=chosen.columns, expression=chosen.expression, control=chosen.control)
    return str(caught.value).replace("the data", "a.h5ad")


def with_value(value):
    adata = made()
    adata.X.data[3] = value
    return adata


def without_label():
    adata = made()
    adata.obs["line"] = ["K562", None, *["RPE1"] * 38]
    return adata


def without_counts():
    adata = made()
    adata.X.data[adata.X.indptr[3] : adata.X.indptr[4]] = 0
    return adata


@pytest.mark.parametrize(
    ("adata", "chosen"),
    [
        (made(), recipe({**COLUMNS, "perturbation": "guides"})),
        (made(), recipe({**COLUMNS, "total_counts": "umis"})),
        (made(), recipe({**COLUMNS, "total_counts": "line"})),
        (made(), recipe(control="control")),
        (made(), recipe(layer="counts")),
        (made(), recipe(layer="obsm:counts")),
        (made(), recipe(gene_names="symbol")),
        (made(), recipe({**COLUMNS, "total_counts": "umi"}, scale="log1p")),
        (with_value(np.nan), recipe()),
        (with_value(-1), recipe()),
        (with_value(0.5), recipe()),
        (with_value(np.inf), recipe(scale="log1p")),
        (with_value(20), recipe(scale="log1p")),
        (without_counts(), recipe()),
    ],
)
def test_bad_input_is_refused_by_the_sentence_that_memory_gives(tmp_path, adata, chosen):
    assert refusal(tmp_path, adata, chosen) == of_memory(adata, chosen)


def test_bad_values_are_found_in_every_cell_after_a_sample_was_sound(tmp_path, monkeypatch):
    adata = made(400)
    monkeypatch.setattr(scan, "_PLACES", 2)
    monkeypatch.setattr(scan, "_SAMPLED", 2)
    adata.X.data[adata.X.indptr[100]] = -3
    adata.write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match="holds the value -3, and expression is never negative"):
        build_store(recipe(), tmp_path, tmp_path / "x.store")
    adata.X.data[:] = 1
    adata.X.data[adata.X.indptr[100]] = 30
    adata.write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match='is declared scale = "log1p" and holds only integers, up to 30'):
        build_store(recipe(scale="log1p"), tmp_path, tmp_path / "y.store")


def test_cells_without_a_label_are_refused_unless_they_are_excluded_by_it(tmp_path):
    adata = without_label()
    assert "column 'line' of the files has no label for 1 cells, and every cell needs one" in refusal(
        tmp_path, adata, recipe()
    )
    excluding = recipe().model_copy(update={"exclude": (Match(cell_type=("",)),)})
    build_store(excluding, tmp_path, tmp_path / "some.store")
    assert Store.open(tmp_path / "some.store").n_cells == read_cells(excluding, tmp_path).n_cells == 39


@pytest.mark.parametrize("label", ["a\nb", "a\tb", "a\x07"])
def test_a_label_with_a_control_character_is_refused_by_name(tmp_path, label):
    adata = made()
    adata.obs["guide"] = pd.Categorical(["ctrl", label] * 20)
    assert repr(label) in refusal(tmp_path, adata, recipe())
    assert refusal(tmp_path, adata, recipe()) == of_memory(adata, recipe())


def test_no_path_is_made_of_a_label(tmp_path):
    adata = made()
    adata.obs["guide"] = pd.Categorical(["ctrl", "../../up", "/etc", "a/b"] * 10)
    adata.write_h5ad(tmp_path / "a.h5ad")
    build_store(recipe(), tmp_path, tmp_path / "x.store")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5ad", "x.store"]
    assert not [path for path in (tmp_path / "x.store").rglob("*") if "up" in path.name or "etc" in path.name]
    assert {"../../up", "/etc"} < set(pd.read_parquet(tmp_path / "x.store" / "runs.parquet")["perturbation"])


def test_a_file_that_is_no_anndata_is_named(tmp_path):
    path = tmp_path / "a.h5ad"
    for write, why in (
        (lambda: path.write_bytes(b"nothing"), "is not an HDF5 file, which an .h5ad is; copy or write it again"),
        (lambda: h5py.File(path, "w").close(), r"is not an AnnData that can be read \(.*it has no obs or no var"),
        (lambda: (made().write_h5ad(path), path.write_bytes(path.read_bytes()[:4000])), "is cut short; copy or"),
    ):
        write()
        with pytest.raises(ValueError, match=rf"a.h5ad' {why}"):
            build_store(recipe(), tmp_path, tmp_path / "x.store")
    path.unlink()
    with pytest.raises(FileNotFoundError, match="matches nothing"):
        build_store(recipe(), tmp_path, tmp_path / "x.store")


def test_a_matrix_by_genes_that_does_not_fit_is_refused_before_it_is_read(tmp_path):
    adata = made()
    adata.X = sp.csc_matrix(adata.X)
    adata.write_h5ad(tmp_path / "a.h5ad")
    with opened(tmp_path / "a.h5ad", recipe().expression) as found:
        assert found.form == "csc"
        found.check_room(1 << 20)
        with pytest.raises(
            ValueError, match=r"stores its \d+ values by genes \(CSC\).*write it by cells \(CSR\) first"
        ):
            found.check_room(100)


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
@pytest.mark.parametrize("matrix", [sp.csr_matrix, sp.csc_matrix, np.asarray])
def test_rows_and_columns_read_in_slices_are_those_of_the_file(tmp_path, kind, matrix):
    adata = made()
    adata.X = matrix(adata.X.toarray())
    adata.obs["some"] = pd.array([1, None] * 20, dtype="Int64")
    adata.obs["flag"] = pd.array([True, None] * 20, dtype="boolean")
    adata.obs["text"] = pd.array(["a", None] * 20, dtype="string")
    path = tmp_path / f"a.{kind}"
    getattr(adata, f"write_{kind}")(path)
    assert stat_of(path)[0] > 0
    with opened(path, recipe().expression) as found:
        assert found.shape == (40, 6)
        for start, stop in ((0, 40), (7, 19), (39, 40)):
            np.testing.assert_array_equal(
                found.rows(start, stop).toarray(),
                adata[start:stop].to_memory().X.toarray() if sp.issparse(adata.X) else adata.X[start:stop],
            )
            assert found.names(start, stop).tolist() == adata.obs_names[start:stop].tolist()
            for name in adata.obs:
                given = found.column(name, start, stop).astype(object)
                expected = adata.obs[name].iloc[start:stop].astype(object)
                assert given.isna().tolist() == expected.isna().tolist()
                assert given.dropna().tolist() == expected.dropna().tolist()
        lengths = found.lengths(3, 9)
        assert (lengths is None) == (found.form != "csr")


@pytest.mark.real
@pytest.mark.parametrize(
    "name", ["papalexi_eccite_thp1_303genes", "norman_mcfaline_perturbench_devel", "zheng_pbmc_facs"]
)
def test_real_files_read_in_slices_as_anndata_reads_them(real_data, name):
    adata = anndata.read_h5ad(real_data / f"{name}.h5ad")
    with opened(real_data / f"{name}.h5ad", recipe().expression) as found:
        assert found.shape == adata.shape
        assert list(found.genes) == list(adata.var_names)
        some = adata.X[100:150]
        np.testing.assert_array_equal(found.rows(100, 150).toarray(), some.toarray() if sp.issparse(some) else some)
        assert found.names(100, 150).tolist() == adata.obs_names[100:150].tolist()
