"""How changes of the mean are held against each other, against closed forms."""

import math

import numpy as np
import pytest
from scipy.stats import ttest_ind

from perturbdiff.metrics.changes import (
    absolute_error,
    correlation,
    expression_weights,
    weighted_error,
    weighted_r2,
    welch,
)


def test_the_correlation_is_one_for_any_positive_multiple_of_the_change_and_blind_to_a_constant():
    control, change = np.array([1.0, 2.0, 0.5, 3.0]), np.array([1.0, -1.0, 2.0, 0.0])
    assert correlation(control + 0.3 * change, control + change, control) == pytest.approx(1.0)
    assert correlation(control - change + 5.0, control + change, control) == pytest.approx(-1.0)
    other = np.array([1.0, 0.0, 0.0, 2.0])
    assert correlation(control + other, control + change, control) == pytest.approx(np.corrcoef(other, change)[0, 1])


def test_the_correlation_is_undefined_where_nothing_changes():
    control = np.array([1.0, 2.0, 0.5])
    assert math.isnan(correlation(control, control + np.array([1.0, 0.0, 0.0]), control))


def test_the_centroid_as_a_prediction_for_all_has_no_correlation_from_it_but_one_from_control():
    control, shared = np.zeros(4), np.array([3.0, 0.0, 1.0, 0.0])
    own = np.array([0.0, 0.2, 0.0, -0.2])
    centroid = control + shared
    assert math.isnan(correlation(centroid, centroid + own, centroid))
    assert correlation(centroid, centroid + own, control) > 0.99


def test_errors_have_their_closed_forms():
    predicted, observed = np.array([1.0, 2.0, 4.0]), np.array([1.0, 0.0, 1.0])
    assert absolute_error(predicted, observed) == pytest.approx(5 / 3)
    weights = np.array([0.5, 0.25, 0.25])
    assert weighted_error(predicted, observed, weights) == pytest.approx((4 + 9) / 4)


def test_the_weighted_r2_is_one_for_the_truth_and_zero_for_the_weighted_mean_change():
    control, observed = np.array([1.0, 1.0, 1.0]), np.array([2.0, 4.0, 1.0])
    weights = np.array([0.5, 0.25, 0.25])
    change = observed - control
    assert weighted_r2(observed, observed, control, weights) == 1.0
    assert weighted_r2(control + weights @ change, observed, control, weights) == pytest.approx(0.0)
    variance = weights @ (change - weights @ change) ** 2
    assert weighted_r2(control, observed, control, weights) == pytest.approx(1 - weights @ change**2 / variance)
    assert math.isnan(weighted_r2(observed, control + 1.0, control, weights))


def test_weights_are_squared_absolute_statistics_between_the_smallest_and_the_largest():
    assert expression_weights(np.array([0.0, -1.0, 2.0])) == pytest.approx([0.0, 0.2, 0.8])
    assert expression_weights(np.array([3.0, 1.0])).sum() == pytest.approx(1.0)
    assert np.isnan(expression_weights(np.array([2.0, -2.0]))).all()
    assert np.isnan(expression_weights(np.array([1.0, np.nan]))).all()


def test_the_statistic_is_welchs():
    rng = np.random.default_rng(0)
    x, y = rng.normal(0.5, 2.0, (12, 4)), rng.normal(0.0, 1.0, (30, 4))
    found = welch(x.mean(0), x.var(0, ddof=1) / 12, y.mean(0), y.var(0, ddof=1) / 30)
    assert found == pytest.approx(ttest_ind(x, y, equal_var=False).statistic)
    assert welch(np.ones(1), np.zeros(1), np.zeros(1), np.zeros(1)).tolist() == [0.0]
