"""A file says its columns, control label and scale itself, or the caller does; nothing is guessed."""

import anndata
import numpy as np
import pandas as pd
import pytest

from perturbdiff.evaluation.files import IN_MEMORY, open_file, read_file
from perturbdiff.recipes.dataset import Columns, Expression

DECLARED = {
    "columns": {"perturbation": "drug", "cell_type": "type", "assay_batch": None, "total_counts": ""},
    "control": "DMSO",
    "scale": "log1p",
}


def _write(path, drugs=("DMSO", "x", "x"), **uns):
    n_cells = len(drugs)
    adata = anndata.AnnData(
        X=np.full((n_cells, 2), 0.5, dtype=np.float32),
        obs=pd.DataFrame({"drug": list(drugs), "type": ["T"] * n_cells}, index=[f"c{i}" for i in range(n_cells)]),
        var=pd.DataFrame(index=["g0", "g1"]),
        uns=uns,
    )
    adata.write_h5ad(path)
    return path


def test_a_predicted_file_is_read_as_it_declares_itself(tmp_path):
    cells = read_file(_write(tmp_path / "p.h5ad", perturbdiff=DECLARED))
    assert (cells.scale, cells.control, cells.is_control.tolist()) == ("log1p", "DMSO", [True, False, False])
    assert cells.labels["cell_type"].tolist() == ["T"] * 3
    assert cells.labels["assay_batch"].tolist() == [""] * 3


@pytest.mark.parametrize("in_memory", [IN_MEMORY, 0])
def test_a_predicted_file_says_of_which_control_cell_each_of_its_cells_was_made(tmp_path, in_memory):
    declared = {**DECLARED, "own_columns": {"population": "population", "control_cell": "made of"}}
    path = _write(tmp_path / "p.h5ad", drugs=("DMSO", "DMSO", "x", "x", "x"), perturbdiff=declared)
    # a file that lost the column is read without
    assert open_file(path, in_memory=in_memory).origins is None
    adata = anndata.read_h5ad(path)
    adata.obs["made of"] = ["c0", "c1", "c1", "c0", "c1"]
    adata.write_h5ad(path)
    origins = open_file(path, in_memory=in_memory).origins
    assert (origins[:, None] == origins).tolist() == [[a == b for b in "01101"] for a in "01101"]
    # cells of which it is not said are of no other's
    adata.obs["made of"] = ["c0", "c1", None, "c0", None]
    adata.write_h5ad(path)
    assert np.unique(open_file(path, in_memory=in_memory).origins).size == 4


def test_a_file_without_control_cells_is_read_and_has_none(tmp_path):
    cells = read_file(_write(tmp_path / "p.h5ad", drugs=("x", "y"), perturbdiff=DECLARED))
    assert cells.control == "DMSO"
    assert not cells.is_control.any()


def test_a_foreign_file_is_read_as_the_caller_says(tmp_path):
    columns, expression = Columns(perturbation="drug"), Expression(scale="log1p")
    cells = read_file(_write(tmp_path / "f.h5ad"), columns=columns, expression=expression, control="x")
    assert cells.is_control.tolist() == [False, True, True]


@pytest.mark.parametrize("key", ["columns", "control", "scale"])
def test_what_nobody_says_is_refused_by_name(tmp_path, key):
    declared = {name: value for name, value in DECLARED.items() if name != key}
    with pytest.raises(ValueError, match=f"does not declare its {key} in uns"):
        read_file(_write(tmp_path / "p.h5ad", perturbdiff=declared))


OPTIONS = (
    r"name them by --perturbation COLUMN --control LABEL --cell-type COLUMN --assay-batch COLUMN, with --scale counts "
    r"or log1p for the observed file and --predicted-scale for predicted ones, of its columns 'drug', 'type'\.$"
)


@pytest.mark.parametrize("in_memory", [IN_MEMORY, 0])
def test_a_file_that_declares_nothing_is_refused_with_all_options_and_its_columns(tmp_path, in_memory):
    path = _write(tmp_path / "f.h5ad")
    with pytest.raises(ValueError, match=rf"'f\.h5ad' does not declare its columns, control and scale in .*{OPTIONS}"):
        open_file(path, in_memory=in_memory)
    with pytest.raises(ValueError, match=rf"no perturbation column is named for 'f\.h5ad'.*{OPTIONS}"):
        open_file(path, columns=Columns(), expression=Expression(scale="log1p"), control="x", in_memory=in_memory)


def test_of_very_many_columns_the_first_are_listed_and_the_others_counted(tmp_path):
    adata = anndata.AnnData(np.ones((2, 2), dtype=np.float32))
    for i in range(15):
        adata.obs[f"column {i}"] = "a"
    adata.write_h5ad(tmp_path / "f.h5ad")
    with pytest.raises(ValueError, match=r"of its columns 'column 0', .*'column 11' and 3 more\.$"):
        read_file(tmp_path / "f.h5ad")
    anndata.AnnData(np.ones((2, 2), dtype=np.float32)).write_h5ad(tmp_path / "bare.h5ad")
    with pytest.raises(ValueError, match=r"though it has no columns\.$"):
        read_file(tmp_path / "bare.h5ad")


def test_columns_without_a_perturbation_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no perturbation column is named for 'f\.h5ad'"):
        read_file(_write(tmp_path / "f.h5ad", perturbdiff=DECLARED), columns=Columns(cell_type="type"))
