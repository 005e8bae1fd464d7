"""Total counts out of log1p values: right wherever they are given, and not given where they cannot be known."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from perturbdiff.cells import counts as counting
from perturbdiff.cells.counts import logs, recovered, recovered_of, whole


def drawn(n_cells=60, n_genes=80, *, depth=1.0, seed=0):
    """Counts of cells, each of which has a gene with one count."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(0.4, 2.0, n_genes) * depth, (n_cells, n_genes)).astype(np.float64)
    counts[np.arange(n_cells), rng.integers(0, n_genes, n_cells)] = 1
    return counts


def logs_of(counts, kind=np.float64, per=1e4):
    """Log1p counts per `per`, every step in floating point numbers of one kind."""
    counts = counts.astype(kind)
    return np.log1p(counts / counts.sum(axis=1, keepdims=True) * kind(per)).astype(kind)


def unknown(values):
    return np.isnan(recovered(np.asarray(values, dtype=np.float32)))


@pytest.mark.parametrize("matrix", [np.asarray, np.asfortranarray, sp.csr_matrix, sp.csr_array, sp.csc_matrix])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("depth", [0.3, 1.0, 3000.0])
def test_totals_are_exact_whatever_holds_the_logarithms(matrix, kind, depth):
    counts = drawn(depth=depth)
    np.testing.assert_array_equal(recovered(matrix(logs_of(counts, kind))), counts.sum(axis=1))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), depth=st.floats(0.05, 300))
def test_counts_come_back_from_their_logarithms(seed, depth):
    counts = drawn(20, 30, depth=depth, seed=seed)
    values = logs_of(counts, np.float32)
    totals = recovered(values)
    np.testing.assert_array_equal(whole(values, totals), counts)
    np.testing.assert_allclose(logs(counts, totals), values, rtol=1e-5)


def test_totals_are_over_genes_that_are_not_among_the_values_too():
    counts = drawn()
    counts[:, 0] = 1
    np.testing.assert_array_equal(recovered(logs_of(counts)[:, :40]), counts.sum(axis=1))


def test_a_total_that_is_no_whole_number_is_left_as_it_is():
    counts, totals = drawn(), np.linspace(1000.4, 1010.4, 60)
    np.testing.assert_allclose(recovered(logs(counts, totals)), totals, rtol=1e-6)
    assert (recovered(logs(counts, totals)) != np.rint(totals)).all()


def test_a_cell_without_a_gene_of_one_count_is_unknown_where_others_are_no_multiples():
    counts = np.array([[2, 3, 0, 7], [2, 5, 2, 0], [3, 4, 0, 0], [1, 5, 2, 0]])
    np.testing.assert_array_equal(recovered(logs_of(counts)), [np.nan, np.nan, np.nan, 8])


def test_a_cell_without_counts_has_no_known_total():
    values = np.zeros((3, 4))
    values[1] = logs_of(np.array([[1, 0, 2, 4]]))
    stored = sp.csr_matrix((np.append(values[1], [0.0]), [0, 1, 2, 3, 0], [0, 0, 4, 5]), shape=(3, 4))
    for given_as in (values, sp.csr_matrix(values), stored):
        np.testing.assert_array_equal(recovered(given_as), [np.nan, 7, np.nan])
    assert np.isnan(recovered(sp.csr_matrix((2, 5)))).all()
    assert recovered(np.zeros((0, 5))).shape == (0,)


@pytest.mark.parametrize("per", [1.1e4, 1e5, 1e6])
def test_counts_normalised_to_more_are_no_counts_per_ten_thousand(per):
    assert np.isnan(recovered(logs_of(drawn(), np.float64, per))).all()


def test_values_that_are_no_counts_have_no_total(rng):
    smooth = np.log1p(rng.gamma(1.0, 20.0, (50, 30)))
    assert unknown(smooth).all()
    assert unknown(logs_of(drawn()) + 0.1).all()
    # beyond what floating point numbers hold, and next to nothing
    assert unknown([[1.0, 900.0], [1e-42, 1.0], [900.0, 900.0], [3e38, 0.0]]).all()


@pytest.mark.parametrize("matrix", [np.asarray, sp.csr_matrix])
@pytest.mark.parametrize("size", [1, 37, 100, 1 << 20])
def test_totals_do_not_depend_on_how_many_cells_are_looked_at_together(monkeypatch, matrix, size):
    counts = drawn() * (np.arange(60) % 4 > 0)[:, None]
    counts[7::8] *= 3
    counts[7::8, 3] = 2
    values = logs_of(np.where(counts.sum(axis=1, keepdims=True), counts, 1), np.float32)
    values[counts.sum(axis=1) == 0] = 0
    wanted = np.array([recovered(values[i : i + 1])[0] for i in range(60)])
    monkeypatch.setattr(counting, "_CHUNK", size)
    np.testing.assert_array_equal(recovered(matrix(values)), wanted)
    assert 0 < np.isnan(wanted).sum() < 60


def test_cells_one_after_the_other_have_the_totals_of_their_matrix():
    rows = sp.csr_matrix(logs_of(drawn()).astype(np.float32))
    np.testing.assert_array_equal(recovered_of(rows.data, np.diff(rows.indptr)), recovered(rows))
