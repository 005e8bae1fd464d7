"""The metrics against closed forms, symmetries and an independent implementation."""

import itertools
import math

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from perturbdiff.evaluation import metrics
from perturbdiff.evaluation.metrics import (
    METRICS,
    Population,
    Reference,
    energy_distance,
    judge,
    mean_distance_between,
    mean_distance_within,
    pearson_of_change,
    spread_ratio,
)


def _sample(rng, n_cells, n_genes=6, shift=0.0):
    return (rng.gamma(1.0, 1.0, (n_cells, n_genes)) * (rng.random((n_cells, n_genes)) < 0.6) + shift).astype(np.float32)


def test_energy_distance_of_two_point_masses_is_their_distance():
    x, y = np.zeros((5, 3)), np.tile([1.0, 2.0, 2.0], (4, 1))
    assert energy_distance(Population(x), Population(y)) == pytest.approx(3.0, abs=1e-12)


def test_energy_distance_of_two_equal_point_masses_is_exactly_zero():
    x = np.full((7, 4), 5.3, dtype=np.float32)
    assert energy_distance(Population(x), Population(x[:3])) == pytest.approx(0.0, abs=1e-6)
    assert mean_distance_within(x) == pytest.approx(0.0, abs=1e-6)


def test_energy_distance_of_one_dimensional_gaussians_has_its_closed_form():
    rng = np.random.default_rng(0)
    n_cells, delta = 4000, 1.5
    x, y = rng.normal(0.0, 1.0, (n_cells, 1)), rng.normal(delta, 1.0, (n_cells, 1))
    spread = math.sqrt(2.0)  # of X - Y
    folded = spread * math.sqrt(2 / math.pi) * math.exp(-(delta**2) / 4) + delta * math.erf(
        delta / (spread * math.sqrt(2))
    )
    assert energy_distance(Population(x), Population(y)) == pytest.approx(folded - 2 / math.sqrt(math.pi), abs=0.03)


def test_energy_distance_agrees_with_cdist_in_blocks_of_any_size(monkeypatch):
    rng = np.random.default_rng(1)
    x, y = _sample(rng, 23), _sample(rng, 17, shift=0.3)
    truth = cdist(x, y).mean() - cdist(x, x).sum() / (23 * 22) / 2 - cdist(y, y).sum() / (17 * 16) / 2
    for rows in (1, 5, 17, 23, 1024):
        monkeypatch.setattr(metrics, "_ROWS_AT_ONCE", rows)
        assert energy_distance(Population(x), Population(y)) == pytest.approx(truth, abs=1e-9)


def test_energy_distance_is_unbiased_over_all_samples_of_a_small_law():
    x_law, y_law = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]]), np.array([[0.0, 1.0], [2.0, 2.0]])
    truth = cdist(x_law, y_law).mean() - cdist(x_law, x_law).mean() / 2 - cdist(y_law, y_law).mean() / 2
    estimates = [
        energy_distance(Population(x_law[list(i)]), Population(y_law[list(j)]))
        for i in itertools.product(range(3), repeat=2)
        for j in itertools.product(range(2), repeat=3)
    ]
    assert np.mean(estimates) == pytest.approx(truth, abs=1e-12)


def test_energy_distance_keeps_its_precision_far_from_the_origin():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(20, 5)), rng.normal(size=(30, 5))
    assert mean_distance_between(x + 1e6, y + 1e6) == pytest.approx(mean_distance_between(x, y), abs=1e-8)


def test_energy_distance_needs_two_cells_a_side():
    one, two = Population(np.ones((1, 3))), Population(np.zeros((2, 3)))
    assert math.isnan(energy_distance(one, two))
    assert math.isnan(energy_distance(two, one))


def test_pearson_of_change_is_one_for_any_positive_multiple_of_the_change_and_blind_to_a_constant():
    control, change = np.array([1.0, 2.0, 0.5, 3.0]), np.array([1.0, -1.0, 2.0, 0.0])
    assert pearson_of_change(control + 0.3 * change, control + change, control) == pytest.approx(1.0)
    assert pearson_of_change(control - change + 5.0, control + change, control) == pytest.approx(-1.0)
    expected = np.corrcoef([1.0, 0.0, 0.0, 2.0], change)[0, 1]
    assert pearson_of_change(control + np.array([1.0, 0.0, 0.0, 2.0]), control + change, control) == pytest.approx(
        expected
    )


def test_pearson_of_change_is_undefined_where_nothing_changes():
    control = np.array([1.0, 2.0, 0.5])
    assert math.isnan(pearson_of_change(control, control + np.array([1.0, 0.0, 0.0]), control))


def test_spread_ratio_leaves_out_genes_constant_in_the_observed():
    assert spread_ratio(np.array([2.0, 1.0, 7.0]), np.array([1.0, 2.0, 0.0])) == pytest.approx(1.25)
    assert math.isnan(spread_ratio(np.array([2.0]), np.array([0.0])))


def test_a_prediction_of_the_observed_cells_themselves_is_perfect_in_every_mean():
    rng = np.random.default_rng(3)
    control, observed = _sample(rng, 60), _sample(rng, 40, shift=0.5)
    observed[:, 0] += 3.0
    values = judge(Population(observed), Reference(Population(observed), Population(control)))
    assert list(values) == [metric.name for metric in METRICS]
    assert values["pearson_of_change"] == pytest.approx(1.0)
    assert values["mae"] == 0.0
    assert values["spread_ratio"] == pytest.approx(1.0)
    assert values["zeros_predicted"] == values["zeros_observed"]
    assert values["de_share_predicted"] == values["de_share_observed"]
    assert values["energy_distance"] <= 0.0


def test_means_zeros_and_spread_of_a_small_case_are_those_computed_by_hand():
    observed, predicted = np.array([[0.0, 2.0], [2.0, 2.0]]), np.array([[0.0, 0.0], [4.0, 1.0], [2.0, 2.0]])
    values = judge(Population(predicted), Reference(Population(observed), Population(np.zeros((3, 2)))))
    assert values["mae"] == pytest.approx((1.0 + 1.0) / 2)
    assert values["zeros_predicted"] == pytest.approx(2 / 6)
    assert values["zeros_observed"] == pytest.approx(1 / 4)
    assert values["spread_ratio"] == pytest.approx(2.0 / math.sqrt(2.0))


def test_no_metric_depends_on_the_order_of_cells():
    rng = np.random.default_rng(4)
    control, observed, predicted = _sample(rng, 50), _sample(rng, 40), _sample(rng, 30)
    observed[:, :2] += 1.0
    predicted[:, 1:4] += 0.5
    values = judge(Population(predicted), Reference(Population(observed), Population(control)))
    again = judge(
        Population(predicted[::-1]),
        Reference(Population(rng.permutation(observed)), Population(rng.permutation(control))),
    )
    assert again == pytest.approx(values, abs=1e-9)
