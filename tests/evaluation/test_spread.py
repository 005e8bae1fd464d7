"""Spread within conditions and between them, against closed forms."""

import math

import numpy as np
import pytest

from perturbdiff.evaluation.spread import Between, between_ratio, spread_ratio, variance_ratio, zeros_error


def test_ratios_leave_out_genes_constant_in_the_observed():
    predicted, observed = np.array([2.0, 1.0, 7.0]), np.array([1.0, 2.0, 0.0])
    assert spread_ratio(predicted, observed) == pytest.approx(1.25)
    assert variance_ratio(predicted, observed) == pytest.approx((4.0 + 0.25) / 2)
    for ratio in (spread_ratio, variance_ratio):
        assert math.isnan(ratio(np.array([2.0]), np.array([0.0])))


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
