"""Cells that stay in their file are the cells of the file, read a few rows at a time."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from perturbdiff.cells.on_disk import Disk, rows_can_be_read, size_in_memory
from perturbdiff.evaluation.files import open_file, read_file
from perturbdiff.files.disk import OnDisk
from perturbdiff.recipes.dataset import Columns, Expression

GENES = [f"g{i}" for i in range(7)]
COLUMNS = Columns(perturbation="drug", cell_type="type", total_counts="total")
N_CELLS = 60


def _write(path, kind=sp.csr_matrix, change=None):
    rng = np.random.default_rng(0)
    counts = rng.poisson(1.0, (N_CELLS, 7)).astype(np.float32)
    counts[:, 0] += 1
    if change is not None:
        change(counts)
    obs = {"drug": rng.choice(["DMSO", "x", "y"], N_CELLS), "type": "T", "total": counts.sum(axis=1) + 5.0}
    adata = anndata.AnnData(
        X=kind(counts),
        obs=pd.DataFrame(obs, index=[f"c{i}" for i in range(N_CELLS)]),
        var=pd.DataFrame(index=GENES),
        layers={"double": kind(counts * 2)},
    )
    adata.write_h5ad(path)
    return path


@pytest.mark.parametrize("kind", [sp.csr_matrix, np.asarray])
@pytest.mark.parametrize("layer", [None, "double"])
def test_any_rows_and_genes_are_those_of_the_file_in_memory(tmp_path, kind, layer):
    path = _write(tmp_path / "f.h5ad", kind)
    expression = Expression(scale="counts", layer=layer)
    columns = COLUMNS if layer is None else COLUMNS.model_copy(update={"total_counts": None})
    said = {"columns": columns, "expression": expression, "control": "DMSO"}
    stored, held = open_file(path, **said, in_memory=0), read_file(path, **said)
    assert isinstance(stored, Disk)
    assert list(stored.names) == list(held.names)
    assert stored.labels.equals(held.labels)
    assert (stored.is_control == held.is_control).all()
    for rows in (np.arange(N_CELLS), np.array([59, 0, 31, 30, 2, 0]), np.array([], dtype=np.int64)):
        for genes in (GENES, ["g6", "g1"]):
            found = stored.log_expression(genes, rows).toarray()
            assert found == pytest.approx(held.log_expression(genes, rows).toarray(), rel=1e-6)
        assert stored.totals(rows) == pytest.approx(held.known_totals[rows])


def test_a_file_stays_on_disk_where_its_matrix_is_larger_than_what_is_allowed(tmp_path):
    path = _write(tmp_path / "f.h5ad")
    said = {"columns": COLUMNS, "expression": Expression(scale="counts"), "control": "DMSO"}
    size = size_in_memory(path, said["expression"])
    assert isinstance(open_file(path, **said, in_memory=size - 1), Disk)
    assert not isinstance(open_file(path, **said, in_memory=size), Disk)


def test_a_matrix_that_is_stored_by_genes_is_read_into_memory(tmp_path):
    path = _write(tmp_path / "f.h5ad", sp.csc_matrix)
    assert not rows_can_be_read(path, Expression(scale="counts"))
    said = {"columns": COLUMNS, "expression": Expression(scale="counts"), "control": "DMSO"}
    assert not isinstance(open_file(path, **said, in_memory=0), Disk)
    assert not rows_can_be_read(path, Expression(scale="counts", layer="absent"))


@pytest.mark.parametrize("kind", [sp.csr_matrix, np.asarray])
@pytest.mark.parametrize(("value", "sentence"), [(np.nan, "holds the value nan"), (-1.0, "-1")])
def test_what_cannot_be_expression_is_refused_when_it_is_read(tmp_path, kind, value, sentence):
    def spoil(counts):
        counts[7, 3] = value

    path = _write(tmp_path / "bad.h5ad", kind, spoil)
    said = {"columns": COLUMNS, "expression": Expression(scale="counts"), "control": "DMSO"}
    stored = open_file(path, **said, in_memory=0)
    assert stored.log_expression(GENES, np.array([1, 9])).shape == (2, 7)
    with pytest.raises(ValueError, match=sentence) as error:
        stored.log_expression(GENES, np.array([7]))
    assert "bad.h5ad" in str(error.value)


def test_rows_far_apart_are_not_read_along(tmp_path, monkeypatch):
    path = _write(tmp_path / "f.h5ad")
    stored = open_file(path, columns=COLUMNS, expression=Expression(scale="counts"), control="DMSO", in_memory=0)
    read = []
    original = OnDisk.rows
    monkeypatch.setattr(
        OnDisk, "rows", lambda self, start, stop: read.append(stop - start) or original(self, start, stop)
    )
    stored.log_expression(GENES, np.array([0, 2, 50, 51]))
    assert read == [3, 2]
