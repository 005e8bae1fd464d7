"""Ridge regression as weights: against the normal equations with an intercept, and against leaving out for real."""

import math

import numpy as np
import pytest
import torch

from perturbdiff.core.choices import PENALTIES
from perturbdiff.core.ridge import Ridge

# more observations than features, as many, and fewer
shapes = pytest.mark.parametrize("shape", [(9, 3), (6, 6), (5, 12)], ids=str)
finite = pytest.mark.parametrize("penalty", [1e-3, 0.3, 1.0, 30.0])


def unit_of(features):
    """t: the sum of squares around the mean, per observation."""
    return np.square(features - features.mean(axis=0)).sum() / len(features)


def solved(features, y, at, ridge):
    """The normal equations of |y - a - F b|^2 + ridge |b|^2 with the intercept a as a column of its own; a + at b."""
    n, width = features.shape
    design = np.hstack([np.ones((n, 1)), features])
    penalised = np.diag([0.0] + [ridge] * width)
    return np.append(1.0, at) @ np.linalg.solve(design.T @ design + penalised, design.T @ y)


@pytest.fixture
def drawn(rng):
    """Features that are far from centred, of columns of unequal spread, and what was observed, of two numbers each."""

    def draw(shape):
        features = 5.0 + rng.normal(size=shape) * np.linspace(0.5, 2.0, shape[1])
        return features, rng.normal(size=(shape[0], 2)), 5.0 + rng.normal(size=shape[1])

    return draw


@shapes
@finite
def test_the_weights_predict_as_the_normal_equations_with_an_intercept(drawn, shape, penalty):
    features, y, at = drawn(shape)
    weights = Ridge(torch.from_numpy(features)).weights(torch.from_numpy(at), penalty).numpy()
    np.testing.assert_allclose(weights @ y, solved(features, y, at, penalty * unit_of(features)), rtol=1e-6, atol=1e-8)


@shapes
@finite
def test_left_out_is_leaving_out_and_fitting_the_others_with_a_centre_of_their_own_and_the_penalty_of_all(
    drawn, shape, penalty
):
    features, y, _ = drawn(shape)
    predicted = Ridge(torch.from_numpy(features)).left_out(penalty).numpy() @ y
    for k in range(len(features)):
        others = np.arange(len(features)) != k
        wanted = solved(features[others], y[others], features[k], penalty * unit_of(features))
        np.testing.assert_allclose(predicted[k], wanted, rtol=1e-6, atol=1e-8)


@shapes
@pytest.mark.parametrize("penalty", PENALTIES)
def test_weights_sum_to_one_and_what_is_left_out_has_none(drawn, shape, penalty):
    features, _, at = drawn(shape)
    ridge = Ridge(torch.from_numpy(features))
    left_out = ridge.left_out(penalty)
    assert float(ridge.weights(torch.from_numpy(at), penalty).sum()) == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close(left_out.sum(dim=1), torch.ones(shape[0], dtype=torch.float64), rtol=0, atol=1e-9)
    assert not left_out.diagonal().any()


def test_a_shift_that_is_linear_in_features_is_predicted_exactly_as_the_penalty_goes_to_0(drawn, rng):
    features, _, at = drawn((9, 3))
    slope = rng.normal(size=3)
    ridge, y = Ridge(torch.from_numpy(features)), torch.from_numpy(2.0 + features @ slope)
    assert float(ridge.weights(torch.from_numpy(at), 1e-8) @ y) == pytest.approx(2.0 + at @ slope, abs=1e-6)
    torch.testing.assert_close(ridge.left_out(1e-8) @ y, y, rtol=0, atol=1e-5)


def test_with_more_features_than_observations_no_penalty_is_interpolation(drawn):
    features, y, _ = drawn((5, 12))
    ridge = Ridge(torch.from_numpy(features))
    for row, wanted in zip(features, y, strict=True):
        np.testing.assert_allclose(ridge.weights(torch.from_numpy(row), 1e-8).numpy() @ y, wanted, atol=1e-6)


@shapes
def test_a_large_penalty_tends_to_the_mean_and_infinity_is_the_mean(drawn, shape):
    features, _, at = drawn(shape)
    n, ridge, at = shape[0], Ridge(torch.from_numpy(features)), torch.from_numpy(at)
    mean = torch.full((n,), 1 / n, dtype=torch.float64)
    others = (1 - torch.eye(n, dtype=torch.float64)) / (n - 1)
    assert torch.equal(ridge.weights(at, math.inf), mean)
    torch.testing.assert_close(ridge.left_out(math.inf), others)
    torch.testing.assert_close(ridge.weights(at, 1e9), mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(ridge.left_out(1e9), others, rtol=0, atol=1e-6)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_features_that_are_all_equal_leave_the_mean(penalty):
    ridge = Ridge(torch.full((4, 3), 7.0, dtype=torch.float64))
    at = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(ridge.weights(at, penalty), torch.full((4,), 0.25, dtype=torch.float64))
    torch.testing.assert_close(ridge.left_out(penalty), (1 - torch.eye(4, dtype=torch.float64)) / 3)


@shapes
def test_the_penalty_has_a_unit_so_that_moved_scaled_or_turned_features_weigh_the_same(drawn, shape):
    features, _, at = drawn(shape)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(shape[1], shape[1])))[0]
    one, other = (Ridge(torch.from_numpy(f)) for f in (features, 40.0 * features @ turn - 3.0))
    torch.testing.assert_close(
        one.weights(torch.from_numpy(at), 0.3), other.weights(torch.from_numpy(40.0 * at @ turn - 3.0), 0.3)
    )
    torch.testing.assert_close(one.left_out(0.3), other.left_out(0.3))
