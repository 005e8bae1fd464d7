"""Cells are read from any of the files that hold an AnnData, and written so that older readers open them."""

import warnings

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from anndata.io import write_elem

from perturbdiff.files.container import read_anndata
from perturbdiff.io import free_name, write_h5ad
from perturbdiff.store.build import build_store
from perturbdiff.store.stored import Store


def write_h5mu(path, modalities, obs=None):
    first = next(iter(modalities.values()))
    with h5py.File(path, "w") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        group = file.create_group("mod")
        for name, adata in modalities.items():
            write_elem(group, name, adata)
        write_elem(file, "obs", pd.DataFrame(index=first.obs_names) if obs is None else obs)


def antibodies(adata):
    return anndata.AnnData(np.ones((adata.n_obs, 2), np.float32), obs=pd.DataFrame(index=adata.obs_names))


@pytest.mark.parametrize("name", ["rna", "RNA", "gex"])
def test_the_rna_of_an_h5mu_is_read_with_the_columns_of_the_whole(tmp_path, adata, name):
    whole = pd.DataFrame({"plate": np.arange(adata.n_obs)}, index=adata.obs_names)
    write_h5mu(tmp_path / "a.h5mu", {"prot": antibodies(adata), name: adata}, whole)
    found = read_anndata(tmp_path / "a.h5mu")
    np.testing.assert_array_equal(found.X.toarray(), adata.X.toarray())
    assert list(found.obs["plate"]) == list(range(adata.n_obs))
    assert list(found.obs["perturbation"].astype(str)) == list(adata.obs["perturbation"].astype(str))


def test_an_h5mu_without_a_modality_of_rna_is_refused_and_its_modalities_are_named(tmp_path, adata):
    write_h5mu(tmp_path / "a.h5mu", {"atac": adata, "prot": antibodies(adata)})
    with pytest.raises(ValueError, match="has the modalities 'atac', 'prot', and that of RNA is read"):
        read_anndata(tmp_path / "a.h5mu")


def test_predict_evaluate_and_prepare_read_an_h5mu_as_the_h5ad(cli, screen, adata, predicted, make_recipe, tmp_path):
    write_h5mu(tmp_path / "a.h5mu", {"rna": adata, "prot": antibodies(adata)})
    line = ["--perturbation", "stimulus_1", "--cell-type", "type_3", "--device", "cpu", "--quiet"]
    assert cli("predict", screen.run, tmp_path / "a.h5mu", *line, "--out", tmp_path / "p.h5ad").status == 0
    found, wanted = read_anndata(tmp_path / "p.h5ad"), read_anndata(predicted)
    np.testing.assert_array_equal(found.X.toarray(), wanted.X.toarray())
    columns = ["--perturbation", "perturbation", "--cell-type", "cell_type", "--control", "control"]
    judged = ["evaluate", predicted, tmp_path / "a.h5mu", *columns, "--scale", "counts", "--suites", "ours", "--quiet"]
    assert cli(*judged, "--bootstrap", 2, "--out", tmp_path / "report").status == 0
    build_store(make_recipe(files=["a.h5mu"]), tmp_path, tmp_path / "a.store")
    assert Store.open(tmp_path / "a.store").n_cells == adata.n_obs


def test_an_ending_that_is_not_known_is_answered_with_those_that_are(cli, screen, tmp_path):
    (tmp_path / "cells.csv").write_text("a,b\n")
    for command in ("train", "split", "prepare"):
        ended = cli(command, tmp_path / "cells.csv", *(["--out", tmp_path / "x"] if command != "split" else []))
        assert ended.refused(r"has the ending '.csv', and a recipe ends in .toml and cells in .h5ad, .h5mu or .zarr")
    line = ["predict", screen.run, tmp_path / "cells.csv", "--perturbation", "stimulus_1", "--out", tmp_path / "p.h5ad"]
    assert cli(*line).refused(r"has the ending '.csv' and is not HDF5, and cells are read from .h5ad, .h5mu or .zarr")


def encodings(path):
    found = set()

    def visit(_, element):
        found.add(str(element.attrs.get("encoding-type", "")))

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


def test_written_files_hold_plain_strings_alone(tmp_path, adata, predicted):
    assert "nullable-string-array" not in encodings(predicted)
    assert "string-array" in encodings(predicted)
    copy = adata.copy()
    copy.obs["note"] = pd.array(["x"] * (copy.n_obs - 1) + [None], dtype="string")
    copy.obs["batch"] = pd.Categorical(pd.array(["p", "q"] * (copy.n_obs // 2), dtype="string"))
    write_h5ad(copy, tmp_path / "a.h5ad")
    assert "nullable-string-array" not in encodings(tmp_path / "a.h5ad")
    found = read_anndata(tmp_path / "a.h5ad")
    assert list(found.obs_names) == list(adata.obs_names)
    assert list(found.obs["batch"].astype(str)) == list(copy.obs["batch"].astype(str))
    assert isinstance(copy.obs["note"].dtype, pd.StringDtype), "what is written is left as it was"


def test_anndatas_own_warnings_do_not_come_before_our_sentence(tmp_path, adata):
    copy = adata.copy()
    copy.obs_names = ["same"] * copy.n_obs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        copy.write_h5ad(tmp_path / "a.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_anndata(tmp_path / "a.h5ad").n_obs == adata.n_obs


def test_a_taken_name_is_not_taken_again():
    assert free_name("population", ["x", None]) == "population"
    assert free_name("population", ["population", "perturbdiff_population"]) == "perturbdiff_perturbdiff_population"


def old_layout(adata, path):
    """The layout of anndata 0.6: tables are compound arrays, and categories stand in uns."""
    with h5py.File(path, "w") as file:
        matrix = file.create_group("X")
        for name in ("data", "indices", "indptr"):
            matrix[name] = getattr(adata.X, name)
        matrix.attrs["h5sparse_format"], matrix.attrs["h5sparse_shape"] = "csr", adata.shape
        for name, table in (("obs", adata.obs), ("var", adata.var)):
            columns = {"index": np.array([str(one).encode() for one in table.index])}
            for column in table.columns:
                labels = table[column].astype("category")
                columns[column] = labels.cat.codes.to_numpy()
                texts = np.array([str(one) for one in labels.cat.categories], dtype=object)
                file.create_dataset(f"uns/{column}_categories", data=texts, dtype=h5py.string_dtype())
            records = np.zeros(len(table), dtype=[(key, one.dtype) for key, one in columns.items()])
            for key, one in columns.items():
                records[key] = one
            file.create_dataset(name, data=records)


@pytest.mark.parametrize("layout", ["old.h5ad", "two.zarr", "three.zarr"])
def test_every_command_reads_every_layout(cli, screen, adata, predicted, make_recipe, tmp_path, layout):
    path = tmp_path / layout
    if layout == "old.h5ad":
        old_layout(adata, path)
    else:
        group = zarr.open_group(path, mode="w", zarr_format=2 if layout == "two.zarr" else 3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            write_elem(group, "/", adata)
    line = ["--perturbation", "stimulus_1", "--cell-type", "type_3", "--device", "cpu", "--quiet"]
    assert cli("predict", screen.run, path, *line, "--out", tmp_path / "p.h5ad").status == 0
    np.testing.assert_array_equal(read_anndata(tmp_path / "p.h5ad").X.toarray(), read_anndata(predicted).X.toarray())
    judged = ["evaluate", predicted, path, "--run", screen.run, "--suites", "ours", "--bootstrap", 2, "--quiet"]
    assert cli(*judged, "--out", tmp_path / "report").status == 0
    for number, files in enumerate(([layout], [str(screen.data)])):
        build_store(make_recipe(files=files), tmp_path, tmp_path / f"{number}.store")
    one, other = (Store.open(tmp_path / f"{number}.store") for number in range(2))
    np.testing.assert_array_equal(one.digests, other.digests)
    assert one.n_values == other.n_values
