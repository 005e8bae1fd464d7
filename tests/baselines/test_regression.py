"""The regression against numpy's solutions, with an intercept, and against refits without each observation."""

import math

import numpy as np
import pytest

from perturbdiff.baselines.regression import Regression
from perturbdiff.core.choices import PENALTIES


def data(seed=0, n=9, width=4, outputs=3):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, width))
    return features, features @ rng.normal(size=(width, outputs)) + 0.3 * rng.normal(size=(n, outputs)) + 2.0, rng


def unit(features):
    centred = features - features.mean(axis=0)
    return float(np.square(centred).sum() / len(centred))


def least_squares(features, y, absolute):
    """Ridge with an intercept that isn't penalised, by numpy's least squares on augmented rows."""
    n, width = features.shape
    penalty = np.column_stack([np.eye(width) * absolute**0.5, np.zeros(width)])
    rows = np.vstack([np.column_stack([features, np.ones(n)]), penalty])
    solution, *_ = np.linalg.lstsq(rows, np.vstack([y, np.zeros((width, y.shape[1]))]), rcond=None)
    return lambda point: np.append(point, 1.0) @ solution


@pytest.mark.parametrize("penalty", [0.01, 0.3, 10.0])
def test_with_a_linear_kernel_it_is_ridge_regression_as_numpy_solves_it(penalty):
    features, y, rng = data()
    regression = Regression(features @ features.T, penalty)
    expected = least_squares(features, y, penalty * unit(features))
    for point in (*features, rng.normal(size=4)):
        weights = regression.weights(features @ point)
        assert weights.sum() == pytest.approx(1.0)
        assert weights @ y == pytest.approx(expected(point))


@pytest.mark.parametrize("penalty", [0.03, 1.0])
def test_with_any_kernel_it_solves_the_system_with_an_intercept(penalty):
    features, y, rng = data(1)
    point = rng.normal(size=4)
    kernel = np.exp(-np.square(features[:, None] - features).sum(axis=2) / 8)
    own = np.exp(-np.square(features - point).sum(axis=1) / 8)
    n = len(y)
    centring = np.eye(n) - 1 / n
    absolute = penalty * np.trace(centring @ kernel @ centring) / n
    system = np.block([[kernel + absolute * np.eye(n), np.ones((n, 1))], [np.ones((1, n)), np.zeros((1, 1))]])
    solution = np.linalg.solve(system, np.vstack([y, np.zeros((1, 3))]))
    assert Regression(kernel, penalty).weights(own) @ y == pytest.approx(np.append(own, 1.0) @ solution)


@pytest.mark.parametrize("penalty", [0.03, 1.0])
def test_what_the_others_predict_of_each_is_what_refits_without_it_predict(penalty):
    features, y, _ = data(2)
    found = Regression(features @ features.T, 1.0).left_out(y, penalty)
    for i in range(len(y)):
        rest = np.arange(len(y)) != i
        assert found[i] == pytest.approx(least_squares(features[rest], y[rest], penalty * unit(features))(features[i]))


def test_an_infinite_penalty_is_the_mean_and_so_are_equal_observations():
    features, y, _ = data(3)
    assert Regression(features @ features.T, math.inf).weights(features @ features[0]) == pytest.approx(
        np.full(9, 1 / 9)
    )
    alone = Regression(features @ features.T, math.inf).left_out(y, math.inf)
    assert alone[0] == pytest.approx(y[1:].mean(axis=0))
    assert Regression(np.ones((4, 4)), 0.1).weights(np.ones(4)) == pytest.approx(np.full(4, 0.25))


def test_the_penalty_is_the_one_that_predicts_left_out_observations_best():
    features, y, rng = data(4, n=40)
    assert Regression.chosen(features @ features.T, y, 7.0).penalty < 1
    noise = rng.normal(size=y.shape)
    assert Regression.chosen(features @ features.T, noise, 7.0).penalty >= 10
    found = Regression.chosen(features @ features.T, y, 7.0)
    errors = [found.error_left_out(y, penalty) for penalty in PENALTIES]
    assert found.penalty == PENALTIES[int(np.argmin(errors))]


def test_too_few_observations_and_penalties_that_do_not_differ_leave_the_choice_to_the_caller():
    y = np.array([[1.0], [2.0]])
    assert Regression.chosen(np.eye(2), y, 7.0).penalty == 7.0
    assert Regression.chosen(np.eye(4), np.arange(4.0)[:, None], 7.0).penalty == 7.0
    assert Regression.chosen(np.eye(4), np.ones((4, 2)), 7.0).penalty == 7.0
