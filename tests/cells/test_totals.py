"""Which control cells have a known total count, and readings that carry them."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from perturbdiff.cells import totals
from perturbdiff.cells.anndata import cells_from_anndata
from perturbdiff.cells.order import Loaded, totals_of
from perturbdiff.cells.totals import uncounted
from perturbdiff.populations.mixture import Aligned
from perturbdiff.recipes.dataset import Columns, Expression

UNKNOWN = (3, 8, 11, 40)


def made(scale, n_cells=60, n_genes=30):
    """Cells of which every fourth is a control cell; a few have no gene with one count."""
    counts = np.random.default_rng(0).poisson(1.5, (n_cells, n_genes)).astype(np.float64)
    counts[:, 0] = 1
    for cell in UNKNOWN:
        counts[cell] = np.where(counts[cell] > 0, counts[cell] + 1, 0)
        counts[cell, :3] = (2, 3, 5)
    values = counts if scale == "counts" else np.log1p(1e4 * counts / counts.sum(1, keepdims=True))
    obs = pd.DataFrame({"guide": np.resize(["ctrl", "A", "B", "C"], n_cells)}, index=[f"c{i}" for i in range(n_cells)])
    adata = anndata.AnnData(sp.csr_matrix(values.astype(np.float32)), obs=obs)
    adata.var_names = [f"G{g}" for g in range(n_genes)]
    found = cells_from_anndata(
        adata, columns=Columns(perturbation="guide"), expression=Expression(scale=scale), control="ctrl"
    )
    return found, counts.sum(axis=1)


@pytest.fixture(params=["counts", "log1p"])
def both(request):
    """Cells, and the totals that they are to have."""
    cells, wanted = made(request.param)
    if request.param == "log1p":
        wanted[list(UNKNOWN)] = np.nan
    return cells, wanted


def test_the_known_totals_of_cells_are_those_of_their_counts(both):
    cells, wanted = both
    np.testing.assert_array_equal(cells.known_totals, wanted)
    rows = np.array([40, 2, 3, 59])
    np.testing.assert_array_equal(cells.take(rows).known_totals, wanted[rows])


def test_cells_in_memory_of_a_part_keep_their_totals(both):
    cells, wanted = both
    some = cells.segments(np.arange(5, 45))
    np.testing.assert_array_equal(cells.in_memory(some).known_totals, wanted[5:45])


def test_a_reading_has_the_totals_over_all_genes_whatever_its_panel_and_scale(both):
    cells, wanted = both
    some = cells.segments(np.array([3, 9, 11, 50]))
    loaded = cells.reader(["G7", "G2"], some, scale=3.0).load(some.positions())
    np.testing.assert_array_equal(loaded.totals, wanted[cells.order[loaded.positions]])
    assert len(loaded.totals) == 4


@pytest.mark.parametrize("size", [1, 4, 1 << 13])
def test_control_cells_without_a_known_total_are_counted(monkeypatch, size):
    monkeypatch.setattr(totals, "_CELLS", size)
    cells, _ = made("log1p")
    # rows 8 and 40 are control cells, 3 and 11 are not
    assert uncounted(cells, cells.runs.whole()) == 2
    assert uncounted(cells, cells.segments(np.array([3, 8, 9, 11, 12]))) == 1
    assert uncounted(cells, cells.segments(np.array([0, 4, 3]))) == 0
    assert uncounted(cells, cells.segments(np.zeros(0, dtype=np.int64))) == 0


def test_all_control_cells_with_counts_have_a_total():
    cells, _ = made("counts")
    assert uncounted(cells, cells.runs.whole()) == 0


def test_a_panel_with_genes_that_a_source_lacks_leaves_its_totals_as_they_are(both):
    cells, wanted = both
    aligned = Aligned.to(cells, ["X1", "G4", "X2", "G3"])
    loaded = aligned.reader(["X1", "G4", "X2", "G3"], cells.runs.whole()).load(np.arange(60))
    np.testing.assert_array_equal(loaded.totals, wanted[cells.order])
    assert uncounted(aligned, cells.runs.whole()) == uncounted(cells, cells.runs.whole())


def test_totals_are_looked_up_in_whichever_reading_has_them():
    def part(positions, known):
        matrix = sp.csr_matrix((len(positions), 1), dtype=np.float32)
        return Loaded(np.array(positions, dtype=np.int64), matrix, known if known is None else np.array(known))

    parts = [part([2, 5], [20.0, np.nan]), part([], []), part([3, 4], None), part([3, 5, 9], [30.0, 50.0, 90.0])]
    found = totals_of(parts, np.array([9, 4, 2, 3, 5, 7, 9]))
    np.testing.assert_array_equal(found, [90, np.nan, 20, 30, 50, np.nan, 90])
    assert totals_of([], np.array([1])).tolist() != [1]
    assert totals_of(parts, np.zeros(0, dtype=np.int64)).shape == (0,)
