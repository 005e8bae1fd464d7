"""A file says its columns, control label and scale itself, or the caller does; nothing is guessed."""

import anndata
import numpy as np
import pandas as pd
import pytest

from perturbdiff.data.recipe import Columns, Expression
from perturbdiff.evaluation.files import read_file

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


def test_columns_without_a_perturbation_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no perturbation column is named for 'f\.h5ad'"):
        read_file(_write(tmp_path / "f.h5ad", perturbdiff=DECLARED), columns=Columns(cell_type="type"))
