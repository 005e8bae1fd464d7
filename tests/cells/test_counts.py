"""Cells as counts: out of log1p values wherever they can be known, and with a change of which the mean is as wanted."""

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from perturbdiff.cells import counts as counting
from perturbdiff.cells.counts import Curves, added, changed, kept, logs, recovered, recovered_of, whole


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


# changes and their means


def shallow(n_cells=50, n_genes=30, *, seed=0, beyond=2000):
    """Counts of cells, most of them few, and totals that are over other genes too."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(0.5, 4.0, n_genes), (n_cells, n_genes)).astype(np.float64)
    return counts, counts.sum(axis=1) + rng.integers(beyond, 3 * beyond, n_cells)


def exact(counts, totals, change):
    """The mean over cells of log1p counts per 10^4 with one change, summed over all that may be drawn [genes]."""
    found = np.zeros_like(counts)
    for (cell, gene), n in np.ndenumerate(counts):
        if change < 0:
            drawn = np.arange(int(n) + 1)
            mass = scipy.stats.binom.pmf(drawn, int(n), kept(np.array(change)))
        else:
            rate = added(np.array(change)) * totals[cell] / 1e4
            most = int(rate + 12 * np.sqrt(rate) + 30)
            drawn, mass = n + np.arange(most), scipy.stats.poisson.pmf(np.arange(most), rate)
        found[cell, gene] = mass @ np.log1p(1e4 * drawn / totals[cell])
    return found.mean(axis=0)


@pytest.mark.parametrize("knot", [0, 3, 9, 10, 11, 14, 20, 30])
def test_the_means_of_a_curve_are_those_of_all_that_may_be_drawn(knot):
    counts, totals = shallow(6, 5, beyond=500)
    curves = Curves.of(counts, totals)
    np.testing.assert_allclose(curves.means[knot], exact(counts, totals, curves.changes[knot]), atol=2e-3, rtol=1e-3)


def test_a_change_of_0_is_none_and_the_mean_without_one_is_that_of_the_cells():
    counts, totals = shallow()
    curves = Curves.of(counts, totals)
    assert curves.changes[10] == 0
    np.testing.assert_allclose(curves.unchanged, logs(counts, totals).mean(axis=0), atol=2e-3)
    assert not curves.realised(np.zeros(30)).any()


def test_the_higher_the_change_the_higher_the_mean_and_the_higher_the_shift_the_higher_the_change():
    curves = Curves.of(*shallow())
    assert (np.diff(curves.means, axis=0) >= 0).all()
    assert (np.diff(curves.means[10:], axis=0) > 0).all()
    shifts = np.linspace(-2.0, 3.0, 41)
    # each alone, so that the totals are moved by no other
    one = np.eye(30)[int(curves.unchanged.argmax())]
    alone = np.array([curves.realised(shift * one) @ one for shift in shifts])
    assert (np.diff(alone) > 0).all()
    assert np.array_equal(np.sign(alone.round(6)), np.sign(shifts))


def test_the_cells_drawn_with_a_realised_shift_have_the_mean_of_the_control_cells_and_the_shift(rng):
    counts, totals = shallow()
    curves, before = Curves.of(counts, totals), logs(counts, totals).mean(axis=0)
    shift = np.maximum(rng.normal(0.0, 0.6, 30), 0.1 - before)
    shift[::3] = 0.0
    change, draws = curves.realised(shift), []
    for _ in range(600):
        drawn, after = changed(counts, totals, change, rng)
        np.testing.assert_allclose(after - totals, (drawn - counts).sum(axis=1))
        draws.append(logs(drawn, after).mean(axis=0))
    error = np.std(draws, axis=0, ddof=1) / np.sqrt(len(draws))
    # the change is interpolated between knots, within a hundredth of log1p counts per 10^4 of the mean
    assert (np.abs(np.mean(draws, axis=0) - before - shift) < 4 * error + 0.015).all()


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("share", [0.2, 0.5])
@pytest.mark.parametrize("seed", [0, 2])
def test_where_a_panel_holds_much_of_the_totals_the_mean_is_the_one_asked_for_though_these_move(share, up, seed):
    rng = np.random.default_rng(seed)
    counts, _ = shallow(50, 60, seed=seed)
    totals = np.rint(counts.sum(axis=1) / share)
    curves, before = Curves.of(counts, totals), logs(counts, totals).mean(axis=0)
    shift = rng.normal(0.0, 0.6, 60)
    shift = np.maximum(np.abs(shift) if up else shift, 0.1 - before)
    change = curves.realised(shift)
    drawn = [changed(counts, totals, change, rng) for _ in range(300)]
    moved = np.mean([after.sum() for _, after in drawn]) / totals.sum()
    assert abs(moved - 1) > (share / 4 if up else 0.01)
    means = np.array([logs(*one).mean(axis=0) for one in drawn])
    error = means.std(axis=0, ddof=1) / np.sqrt(len(means))
    off = means.mean(axis=0) - before - shift
    # beyond chance what interpolation between knots leaves
    assert (np.abs(off) < 4 * error + 0.015).all()
    assert abs(off.mean()) < 0.01


def test_a_large_gain_takes_the_others_share_of_the_total_and_they_keep_their_means(rng):
    counts, totals = shallow(beyond=200)
    curves, before = Curves.of(counts, totals), logs(counts, totals).mean(axis=0)
    shift = np.zeros(30)
    shift[0] = 7.5 - before[0]
    change = curves.realised(shift)
    # a fifth of all counts are of the one gene, so those of the others must be more for their share to stay
    assert change[0] > 7.5
    assert (change[1:] > 0).any()
    found = np.mean([logs(*changed(counts, totals, change, rng)).mean(axis=0) for _ in range(400)], axis=0)
    np.testing.assert_allclose(found[0], 7.5, atol=0.05)
    left = np.mean([logs(*changed(counts, totals, np.eye(30)[0] * change[0], rng)).mean(axis=0) for _ in range(20)], 0)
    assert np.abs(found - before)[1:].mean() < 0.2 * np.abs(left - before)[1:].mean()


def test_a_gene_without_counts_stays_without_under_a_negative_shift():
    counts, totals = shallow()
    counts[:, 4] = 0
    curves = Curves.of(counts, totals)
    shift = np.full(30, -0.2)
    change = curves.realised(shift)
    assert change[4] <= 0
    drawn, _ = changed(counts, totals, change, np.random.default_rng(0))
    assert not drawn[:, 4].any()
    # and is expressed where it is to be
    assert curves.realised(np.eye(30)[4] * 0.5)[4] > 0


def test_a_mean_below_0_is_taken_for_0_and_loses_all_but_few_counts():
    counts, totals = shallow()
    change = Curves.of(counts, totals).realised(np.full(30, -100.0))
    np.testing.assert_allclose(change[counts.any(axis=0)], counting.LOWEST)
    drawn, after = changed(counts, totals, change, np.random.default_rng(0))
    assert drawn.sum() < 0.02 * counts.sum()
    np.testing.assert_allclose(after, totals + (drawn - counts).sum(axis=1))


def test_changed_cells_are_whole_numbers_and_genes_without_a_change_are_as_they_were(rng):
    counts, totals = shallow()
    before = counts.copy()
    change = np.where(np.arange(30) % 3, rng.normal(0, 1, 30), 0.0)
    drawn, _ = changed(counts, totals, change, rng)
    np.testing.assert_array_equal(counts, before)
    np.testing.assert_array_equal(drawn, np.rint(drawn))
    np.testing.assert_array_equal(drawn[:, ::3], counts[:, ::3])
    assert (drawn[:, change < 0] <= counts[:, change < 0]).all()
    assert (drawn[:, change > 0] >= counts[:, change > 0]).all()
    again = changed(counts, totals, np.zeros(30), rng)
    np.testing.assert_array_equal(again[0], counts)
    np.testing.assert_array_equal(again[1], totals)
