import re
import shutil

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from perturbdiff.cells.anndata import cells_from_anndata
from perturbdiff.files.container import read_anndata
from perturbdiff.files.matrices import row_sums
from perturbdiff.labels.text import check_label_texts
from perturbdiff.recipes.dataset import Columns, Expression

COLUMNS = Columns(perturbation="guide", cell_type="line")
COUNTS = Expression(scale="counts")


def made():
    counts = np.random.default_rng(0).poisson(1.0, (12, 5)).astype(np.float32)
    counts[:, 0] += 1
    obs = pd.DataFrame(
        {
            "guide": pd.Categorical(np.resize(["ctrl", "A", "B"], 12)),
            "line": np.resize(["K562", "RPE1"], 12),
            "umi": counts.sum(1) * 10.0,
        },
        index=[f"cell{i}" for i in range(12)],
    )
    var = pd.DataFrame({"symbol": [f"S{g}" for g in range(5)]}, index=[f"G{g}" for g in range(5)])
    return anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=var)


def test_row_sums_count_empty_rows_as_zero():
    matrix = sp.csr_matrix(np.array([[0, 0], [1, 2], [0, 0], [3, 0], [0, 0]], dtype=np.float32))
    assert row_sums(matrix).tolist() == [0, 3, 0, 3, 0]
    assert row_sums(matrix.toarray()).tolist() == [0, 3, 0, 3, 0]
    assert row_sums(sp.csr_matrix((2, 3), dtype=np.float32)).tolist() == [0, 0]


def put(adata, value, at=3):
    adata.X.data[at] = value
    return adata


def without_label(adata, value):
    adata.obs["line"] = adata.obs["line"].astype(object)
    adata.obs.iloc[5, adata.obs.columns.get_loc("line")] = value
    return adata


def with_totals(adata, value):
    adata.obs.loc["cell4", "umi"] = value
    return adata


def empty_row(adata):
    counts = adata.X.toarray()
    counts[2] = 0
    adata.X = sp.csr_matrix(counts)
    return adata


def repeated_gene(adata):
    adata.var_names = ["G0", "G1", "G1", "G3", "G4"]
    return adata


def without_symbol(adata):
    adata.var["symbol"] = ["S0", None, "S2", "S3", "S4"]
    return adata


WITH_UMI = Columns(perturbation="guide", total_counts="umi")
LOG1P = Expression(scale="log1p")
BAD = {
    "missing column": (
        made,
        {"columns": Columns(perturbation="guides")},
        "has no column 'guides', which columns.perturbation names; the nearest is 'guide'",
    ),
    "control absent": (
        made,
        {"control": "CTRL"},
        "no cell has the control label 'CTRL' in column 'guide'; the nearest is 'ctrl'; set control",
    ),
    "no control given": (
        made,
        {"control": None},
        "control = None and columns.perturbation = 'guide' belong together; give both",
    ),
    "not integer": (
        lambda: put(made(), 0.5),
        {},
        'declared scale = "counts" and holds the value 0.5, and counts are integers',
    ),
    "negative": (lambda: put(made(), -1), {}, "holds the value -1, and expression is never negative"),
    "negative log1p": (
        lambda: put(made(), -0.5),
        {"expression": LOG1P},
        "holds the value -0.5, and expression is never negative",
    ),
    "nan": (lambda: put(made(), np.nan), {}, "holds the value nan, and expression must be finite; fill or remove it"),
    "infinite": (
        lambda: put(made(), np.inf),
        {"expression": LOG1P},
        "holds the value inf, and expression must be finite",
    ),
    "counts as log1p": (
        lambda: put(made(), 40),
        {"expression": LOG1P},
        'declared scale = "log1p" and holds only integers, up to 40, and log1p counts per 10^4 end at 9.21; declare '
        'scale = "counts"',
    ),
    "text": (
        lambda: anndata.AnnData(obs=made().obs, obsm={"t": pd.DataFrame({"G": ["x"] * 12}, index=made().obs_names)}),
        {"expression": Expression(scale="counts", layer="obsm:t")},
        "and expression must be numbers; store numbers",
    ),
    "repeated gene": (
        lambda: repeated_gene(made()),
        {},
        "has 1 gene names more than once, such as 'G1', and names must be unique; call",
    ),
    "gene without name": (
        lambda: without_symbol(made()),
        {"expression": Expression(scale="counts", gene_names="symbol")},
        "lacks the names of 1 genes, and every gene needs one",
    ),
    "no such gene column": (
        made,
        {"expression": Expression(scale="counts", gene_names="symbols")},
        "no column 'symbols', which expression.gene_names names; the nearest is 'symbol'",
    ),
    "no cells": (lambda: made()[:0].copy(), {}, "holds 0 cells and 5 genes, and there must be some of both"),
    "no genes": (lambda: made()[:, :0].copy(), {}, "holds 12 cells and 0 genes"),
    "label missing": (
        lambda: without_label(made(), np.nan),
        {},
        "column 'line' of the data has no label for 1 cells, such as 'cell5', and every cell needs one; fill in",
    ),
    "label empty": (
        lambda: without_label(made(), " "),
        {},
        "column 'line' of the data has no label for 1 cells, such as 'cell5'",
    ),
    "label of two lines": (
        lambda: without_label(made(), "RPE1\n"),
        {},
        r"column 'line' of the data has the label 'RPE1\n' with the control character '\n', and a label is one line",
    ),
    "label with a tab": (
        lambda: without_label(made(), "a\tb"),
        {},
        r"the label 'a\tb' with the control character '\t'",
    ),
    "no layer": (
        made,
        {"expression": Expression(scale="counts", layer="raw")},
        "has no 'raw' in layers, which expression.layer names; there are none",
    ),
    "no obsm": (
        made,
        {"expression": Expression(scale="counts", layer="obsm:X_hvg")},
        "has no 'X_hvg' in obsm, which expression.layer names",
    ),
    "no X": (
        lambda: anndata.AnnData(obs=made().obs, var=made().var),
        {},
        "has no X, where expression is read; name a layer",
    ),
    "empty cell": (
        lambda: empty_row(made()),
        {},
        "1 cells of the data have no counts at all, and expression is per 10^4",
    ),
    "total not positive": (
        lambda: with_totals(made(), 0.0),
        {"columns": WITH_UMI},
        "gives 1 cells a total count such as 0.0, and a total must be above 0",
    ),
    "total missing": (
        lambda: with_totals(made(), np.nan),
        {"columns": WITH_UMI},
        "such as nan, and a total must be above 0; mend it",
    ),
    "total far below": (
        lambda: with_totals(made(), 1.0),
        {"columns": WITH_UMI},
        "gives 1 cells a total count such as 1 where the file's genes alone sum to 5; name the column with totals over "
        "all genes",
    ),
    "total with log1p": (
        lambda: put(made(), 0.5),
        {"columns": WITH_UMI, "expression": LOG1P},
        'columns.total_counts = \'umi\' goes with scale = "counts", and the scale of the data is "log1p"',
    ),
}


@pytest.mark.parametrize(("make", "arguments", "sentence"), BAD.values(), ids=BAD.keys())
def test_bad_data_are_refused_in_one_sentence(make, arguments, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        cells_from_anndata(make(), **({"columns": COLUMNS, "expression": COUNTS, "control": "ctrl"} | arguments))
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_a_file_that_cannot_be_read_says_why(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none.h5ad.*give the path"):
        read_anndata(tmp_path / "none.h5ad")
    made().write_h5ad(tmp_path / "whole.h5ad")
    whole = (tmp_path / "whole.h5ad").read_bytes()
    (tmp_path / "half.h5ad").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"half.h5ad' is cut short; copy or download it again"):
        read_anndata(tmp_path / "half.h5ad")
    (tmp_path / "text.h5ad").write_text("gene,cell\n" * 100)
    with pytest.raises(ValueError, match=r"text.h5ad' is not an HDF5 file.*write it with"):
        read_anndata(tmp_path / "text.h5ad")
    with h5py.File(tmp_path / "other.h5ad", "w") as file:
        anndata.io.write_elem(file, "a", np.array([1]))
    with pytest.raises(ValueError, match=r"other.h5ad' is HDF5 but not an AnnData.*write it with"):
        read_anndata(tmp_path / "other.h5ad")


def test_a_label_may_hold_any_sign_but_control_characters():
    check_label_texts(["TNF/IFN-γ", "a|b, c", "[('x', 0.5, 'µM')]", "B\u00a0cells"], "guide", "the data")
    with pytest.raises(
        ValueError, match=r"column 'guide' of a.h5ad has the label 'x.u2028y' with the control character"
    ):
        check_label_texts(["fine", "x\u2028y"], "guide", "a.h5ad")


@pytest.mark.parametrize("kind", [sp.csr_matrix, sp.csc_matrix, lambda matrix: matrix.toarray()])
def test_a_zarr_folder_is_read_as_the_same_cells_as_an_h5ad(tmp_path, kind):
    adata = made()
    adata.X = kind(adata.X)
    adata.write_h5ad(tmp_path / "a.h5ad")
    adata.write_zarr(tmp_path / "a.zarr")
    one, other = (
        cells_from_anndata(read_anndata(tmp_path / name), columns=COLUMNS, expression=COUNTS, control="ctrl")
        for name in ("a.h5ad", "a.zarr")
    )
    np.testing.assert_array_equal(one.names, other.names)
    pd.testing.assert_frame_equal(one.labels, other.labels)
    genes = list(one.genes)
    np.testing.assert_array_equal(one.log_expression(genes).toarray(), other.log_expression(genes).toarray())


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def remove_chunks(path):
    shutil.rmtree(path / "X" / "data" / "c")


DAMAGED = {
    "root cut short": (lambda path: cut(path / "zarr.json"), r"is a folder but not an AnnData in the zarr format"),
    "root missing": (lambda path: (path / "zarr.json").unlink(), r"is a folder but not an AnnData in the zarr format"),
    "chunk cut short": (
        lambda path: cut(path / "X" / "data" / "c" / "0"),
        r"cannot be read and is probably damaged \(.*\); copy or download it again",
    ),
    "chunk missing": (
        remove_chunks,
        r"is not whole: parts of its array 'X/data' are missing, which would be read as zeros; copy or download",
    ),
    "labels missing": (
        lambda path: shutil.rmtree(path / "obs"),
        r"is not whole: parts of its array 'obs/_index",
    ),
}


@pytest.mark.parametrize(("damage", "sentence"), DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_zarr_folder_says_what_is_wrong(tmp_path, damage, sentence):
    path = tmp_path / "a.zarr"
    made().write_zarr(path)
    damage(path)
    with pytest.raises(ValueError, match=rf"a.zarr' {sentence}") as caught:
        read_anndata(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_a_folder_that_is_no_anndata_says_so(tmp_path):
    (tmp_path / "empty.zarr").mkdir()
    group = zarr.open_group(tmp_path / "other.zarr", mode="w")
    group.create_array("x", data=np.arange(3))
    zarr.create_array(str(tmp_path / "array.zarr"), data=np.arange(3))
    for name in ("empty", "other", "array"):
        with pytest.raises(ValueError, match=rf"{name}.zarr' is a folder but not an AnnData in the zarr format.*write"):
            read_anndata(tmp_path / f"{name}.zarr")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none.zarr'; give the path of an .h5ad file or a"):
        read_anndata(tmp_path / "none.zarr")


def test_a_store_is_not_read_as_an_anndata(tmp_path):
    (tmp_path / "a.store").mkdir()
    (tmp_path / "a.store" / "manifest.json").touch()
    with pytest.raises(ValueError, match=r"a.store' is a store and not an AnnData; name it as the only file"):
        read_anndata(tmp_path / "a.store")
