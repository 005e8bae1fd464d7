import re
import shutil

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from perturbdiff.recipes.dataset import recipe_from_mapping
from perturbdiff.recipes.files import find_hole, is_store, resolve_files


def recipe(files):
    mapping = {"name": "screen", "kind": "rna-seq", "files": files, "expression": {"scale": "counts"}}
    return recipe_from_mapping(mapping, "screen.toml")


def test_files_are_found_by_path_and_by_glob_each_once(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b2.h5ad", "b1.h5ad", "sub/c[1].h5ad"):
        (tmp_path / name).touch()
    made = recipe(files=["b*.h5ad", "b1.h5ad", "sub/c[1].h5ad", str(tmp_path / "sub" / "*.h5ad")])
    assert [path.name for path in resolve_files(made, tmp_path)] == ["b1.h5ad", "b2.h5ad", "c[1].h5ad"]
    assert resolve_files(recipe(files=["../b1.h5ad"]), tmp_path / "sub")[0].is_file()


@pytest.mark.parametrize("entry", ["gone.h5ad", "gone_*.h5ad"])
def test_a_file_that_is_not_there_is_named(tmp_path, entry):
    sentence = f"file {entry!r} of recipe 'screen' matches nothing in {str(tmp_path)!r}; put the file there"
    with pytest.raises(FileNotFoundError, match=re.escape(sentence)):
        resolve_files(recipe(files=[entry]), tmp_path)


def test_a_recipe_without_files_says_so_when_they_are_needed(tmp_path):
    with pytest.raises(ValueError, match="recipe 'screen' names no files; add files"):
        resolve_files(recipe(files=[]), tmp_path)


def names(entries, folder):
    return [path.name for path in resolve_files(recipe(entries), folder)]


def test_a_folder_is_a_file_where_it_is_a_zarr_or_a_store(tmp_path):
    for name, mark in (("a.zarr", "zarr.json"), ("b", ".zgroup"), ("c.store", "manifest.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / mark).touch()
    assert names(["a.zarr", "b", "c.store/"], tmp_path) == ["a.zarr", "b", "c.store"]
    assert names(["*"], tmp_path) == ["a.zarr", "b", "c.store"]
    assert [is_store(tmp_path / name) for name in ("a.zarr", "b", "c.store", "gone")] == [False, False, True, False]


def test_a_folder_of_files_is_refused_with_the_glob_that_was_meant(tmp_path):
    (tmp_path / "plates").mkdir()
    with pytest.raises(
        ValueError, match=r"file 'plates/' .* neither a .zarr nor a store; .* such as 'plates/\*.h5ad'\."
    ):
        resolve_files(recipe(["plates/"]), tmp_path)


def test_a_glob_passes_over_hidden_files_plain_folders_and_the_inside_of_stores(tmp_path):
    (tmp_path / "kang.store" / "parts" / "0.zarr").mkdir(parents=True)
    (tmp_path / "kang.store" / "manifest.json").touch()
    (tmp_path / "plates.h5ad").mkdir()
    for name in (".a.12.partial.h5ad", "a.h5ad"):
        (tmp_path / name).touch()
    assert names(["*.h5ad"], tmp_path) == ["a.h5ad"]
    assert names([".a*"], tmp_path) == [".a.12.partial.h5ad"]
    assert names(["**/*"], tmp_path) == ["a.h5ad", "kang.store"]


def saved(path, matrix):
    n_cells, n_genes = matrix.shape
    obs = pd.DataFrame({"guide": pd.Categorical(["ctrl"] * n_cells)}, index=[f"c{i}" for i in range(n_cells)])
    anndata.AnnData(matrix, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)])).write_zarr(path)
    return path


@pytest.mark.parametrize("kind", [sp.csr_matrix, sp.csc_matrix, np.asarray])
def test_a_whole_zarr_has_no_hole_though_chunks_of_zeros_are_not_written(tmp_path, kind):
    counts = np.random.default_rng(0).poisson(1.0, (30, 5)).astype(np.float32)
    assert find_hole(saved(tmp_path / "a.zarr", kind(counts))) is None
    first_gene_only = counts * (np.arange(5) == 0)
    assert find_hole(saved(tmp_path / "b.zarr", kind(first_gene_only))) is None


@pytest.mark.parametrize("array", ["X/data", "X/indices", "X/indptr", "obs/_index", "var/_index"])
def test_a_missing_chunk_that_would_be_read_as_zeros_is_found(tmp_path, array):
    counts = np.random.default_rng(0).poisson(1.0, (30, 5)).astype(np.float32)
    path = saved(tmp_path / "a.zarr", sp.csr_matrix(counts))
    for chunks in (path / array).rglob("c"):
        shutil.rmtree(chunks)
    assert find_hole(path).startswith(array)


def test_a_dense_matrix_of_which_nothing_is_left_is_found(tmp_path):
    path = saved(tmp_path / "a.zarr", np.ones((3, 2), dtype=np.float32))
    shutil.rmtree(path / "X" / "c")
    assert find_hole(path) == "X"
