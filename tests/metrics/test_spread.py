"""Spread within conditions and between them, against closed forms."""

import math

import numpy as np
import pytest

from perturbdiff.metrics.spread import Between, between_ratio, spread_ratio, variance_ratio, zeros_error


def test_genes_constant_on_both_sides_do_not_count_in_the_ratios():
    predicted, observed = np.array([2.0, 1.0, 6.0]), np.array([1.0, 2.0, 3.0])
    rare = np.zeros(7)
    for ratio, value in ((spread_ratio, 1.5), (variance_ratio, 4.0)):
        assert ratio(predicted, observed) == pytest.approx(value)
        assert ratio(np.append(predicted, rare), np.append(observed, rare)) == pytest.approx(value)
        assert math.isnan(ratio(rare, rare))


def test_a_gene_that_varies_on_one_side_alone_counts_on_that_side():
    both = np.array([1.0, 1.0, 1.0])
    assert spread_ratio(np.append(both, 1.0), np.append(both, 0.0)) == pytest.approx(4 / 3)
    assert spread_ratio(np.append(both, 0.0), np.append(both, 1.0)) == pytest.approx(3 / 4)
    few = np.array([2.0, 1.0, 0.5])
    assert variance_ratio(np.append(few, [1.0, 1.0]), np.append(np.ones(3), [0.0, 0.0])) == 4.0
    assert variance_ratio(np.append(few, [0.0, 0.0]), np.append(np.ones(3), [1.0, 1.0])) == 0.25


def test_the_ratios_of_cells_without_any_spread_are_0_and_undefined_where_the_observed_have_none():
    for ratio in (spread_ratio, variance_ratio):
        assert ratio(np.zeros(3), np.ones(3)) == 0.0
        assert math.isnan(ratio(np.ones(3), np.zeros(3)))


def test_the_ratios_turn_into_their_inverse_where_the_sides_change_places():
    rng = np.random.default_rng(3)
    one, other = rng.exponential(size=(2, 31)) * np.array([[1.0] * 29 + [0.0, 1.0], [1.0] * 29 + [1.0, 0.0]])
    for ratio in (spread_ratio, variance_ratio):
        assert ratio(one, other) == pytest.approx(1 / ratio(other, one))


@pytest.mark.parametrize("expressed", [0.01, 0.05, 1.0])
def test_half_of_the_cells_of_a_sparse_panel_against_the_other_half_is_at_1(expressed):
    rng = np.random.default_rng(4)
    rates = rng.gamma(0.3, 1.0, 500) * expressed / 0.3
    found, lost = [], []
    for _ in range(40):
        cells = np.log1p(5 * rng.poisson(rates * rng.gamma(2.0, 0.5, (60, 1))))
        one, other = (half.std(axis=0, ddof=1) for half in (cells[:30], cells[30:]))
        found.append([spread_ratio(one, other), variance_ratio(one, other)])
        lost.append(np.mean(one[other > 0] / other[other > 0]))
    assert np.mean(found, axis=0) == pytest.approx([1.0, 1.0], abs=0.13)
    if expressed < 1:
        assert np.mean(lost) < 0.87


def test_the_error_of_zeros_is_per_gene_and_does_not_cancel_between_genes():
    assert zeros_error(np.array([0.0, 1.0]), np.array([1.0, 0.0])) == 1.0
    assert zeros_error(np.array([0.3, 0.4]), np.array([0.3, 0.1])) == pytest.approx(0.15)


def _between(means, noise=0.0):
    found = Between(np.full(means.shape[1], 7.0))
    for mean in means:
        found.add(mean, noise)
    return found


def test_the_spread_between_conditions_is_the_summed_variance_of_their_means_less_their_noise():
    means = np.random.default_rng(0).normal(size=(5, 3))
    assert _between(means).spread == pytest.approx(means.var(axis=0, ddof=1).sum())
    assert _between(means, noise=0.3).spread == pytest.approx(means.var(axis=0, ddof=1).sum() - 0.3)
    assert math.isnan(_between(means[:1]).spread)


def test_one_response_for_all_has_no_spread_between_and_half_the_response_half_of_it():
    means = np.random.default_rng(1).normal(size=(6, 4))
    observed = _between(means)
    assert between_ratio(_between(np.tile(means[0], (6, 1))), observed) == pytest.approx(0.0, abs=1e-6)
    assert between_ratio(_between(means / 2), observed) == pytest.approx(0.5)
    assert between_ratio(observed, observed) == pytest.approx(1.0)
    assert math.isnan(between_ratio(observed, _between(np.ones((6, 4)))))


def test_the_noise_of_small_samples_is_no_spread_between_conditions():
    rng = np.random.default_rng(2)
    spreads = []
    for _ in range(200):
        found = Between(np.zeros(8))
        for _ in range(6):
            cells = rng.normal(size=(10, 8))
            found.add(cells.mean(axis=0), float(cells.var(axis=0, ddof=1).sum() / 10))
        spreads.append(found.spread)
    assert abs(np.mean(spreads)) < 4 * np.std(spreads) / math.sqrt(200)
