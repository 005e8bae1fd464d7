"""Distances of populations against closed forms, symmetries and independent implementations."""

import itertools
import math

import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist

from perturbdiff.metrics import distances
from perturbdiff.metrics.distances import SCALES, bandwidth, between, energy_distance, mmd, within


def _sample(rng, n_cells, n_genes=6, shift=0.0):
    return (rng.gamma(1.0, 1.0, (n_cells, n_genes)) * (rng.random((n_cells, n_genes)) < 0.6) + shift).astype(np.float32)


def _energy(x, y):
    return energy_distance(between(x, y), within(x), within(y))


def _distance(x, y):
    return between(x, y).distance


def _mmd(x, y, width):
    return mmd(between(x, y, width), within(x, width), within(y, width))


def test_energy_distance_of_two_point_masses_is_their_distance():
    x, y = np.zeros((5, 3)), np.tile([1.0, 2.0, 2.0], (4, 1))
    assert _energy(x, y) == pytest.approx(3.0, abs=1e-12)


def test_energy_distance_of_two_equal_point_masses_is_exactly_zero():
    x = np.full((7, 4), 5.3, dtype=np.float32)
    assert _energy(x, x[:3]) == pytest.approx(0.0, abs=1e-6)
    assert within(x).distance == pytest.approx(0.0, abs=1e-6)


def test_energy_distance_of_one_dimensional_gaussians_has_its_closed_form():
    rng = np.random.default_rng(0)
    n_cells, delta = 4000, 1.5
    x, y = rng.normal(0.0, 1.0, (n_cells, 1)), rng.normal(delta, 1.0, (n_cells, 1))
    spread = math.sqrt(2.0)  # of X - Y
    folded = spread * math.sqrt(2 / math.pi) * math.exp(-(delta**2) / 4) + delta * math.erf(
        delta / (spread * math.sqrt(2))
    )
    assert _energy(x, y) == pytest.approx(folded - 2 / math.sqrt(math.pi), abs=0.03)


def test_energy_distance_agrees_with_cdist_in_blocks_of_any_size(monkeypatch):
    rng = np.random.default_rng(1)
    x, y = _sample(rng, 23), _sample(rng, 17, shift=0.3)
    truth = cdist(x, y).mean() - cdist(x, x).sum() / (23 * 22) / 2 - cdist(y, y).sum() / (17 * 16) / 2
    for rows in (1, 5, 17, 23, 1024):
        monkeypatch.setattr(distances, "_ROWS_AT_ONCE", rows)
        assert _energy(x, y) == pytest.approx(truth, abs=1e-9)


def test_energy_distance_is_unbiased_over_all_samples_of_a_small_law():
    x_law, y_law = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]]), np.array([[0.0, 1.0], [2.0, 2.0]])
    truth = cdist(x_law, y_law).mean() - cdist(x_law, x_law).mean() / 2 - cdist(y_law, y_law).mean() / 2
    estimates = [
        _energy(x_law[list(i)], y_law[list(j)])
        for i in itertools.product(range(3), repeat=2)
        for j in itertools.product(range(2), repeat=3)
    ]
    assert np.mean(estimates) == pytest.approx(truth, abs=1e-12)


def test_energy_distance_keeps_its_precision_far_from_the_origin():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(20, 5)), rng.normal(size=(30, 5))
    assert _distance(x + 1e6, y + 1e6) == pytest.approx(_distance(x, y), abs=1e-8)


def test_energy_distance_needs_two_cells_a_side():
    one, two = np.ones((1, 3)), np.zeros((2, 3))
    assert math.isnan(_energy(one, two))
    assert math.isnan(_energy(two, one))


def test_mmd_of_two_point_masses_has_its_closed_form():
    x, y = np.zeros((3, 2)), np.tile([3.0, 4.0], (5, 1))
    kernel = np.mean([math.exp(-25 / (scale * 10.0)) for scale in SCALES])
    assert _mmd(x, y, 10.0) == pytest.approx(2 - 2 * kernel, abs=1e-12)


def test_mmd_agrees_with_kernels_written_out_in_blocks_of_any_size(monkeypatch):
    rng = np.random.default_rng(3)
    x, y = _sample(rng, 19), _sample(rng, 13, shift=0.4)
    width = bandwidth(y)

    def kernel(a, b):
        squares = cdist(a, b, "sqeuclidean")
        return np.mean([np.exp(-squares / (scale * width)) for scale in SCALES], axis=0)

    own = (kernel(x, x).sum() - 19) / (19 * 18) + (kernel(y, y).sum() - 13) / (13 * 12)
    for rows in (1, 4, 13, 1024):
        monkeypatch.setattr(distances, "_ROWS_AT_ONCE", rows)
        assert _mmd(x, y, width) == pytest.approx(own - 2 * kernel(x, y).mean(), abs=1e-9)


def test_mmd_of_two_samples_of_one_law_is_zero_on_average():
    rng = np.random.default_rng(4)
    found = [_mmd(rng.normal(size=(8, 3)), rng.normal(size=(9, 3)), 6.0) for _ in range(600)]
    assert abs(np.mean(found)) < 4 * np.std(found) / math.sqrt(600)
    assert min(found) < 0


def test_the_bandwidth_is_the_median_squared_distance_and_undefined_where_cells_are_alike(monkeypatch):
    y = _sample(np.random.default_rng(5), 12)
    assert bandwidth(y) == pytest.approx(np.median(pdist(y, "sqeuclidean")), abs=1e-9)
    assert math.isnan(bandwidth(np.ones((4, 2))))
    assert math.isnan(bandwidth(np.ones((1, 2))))
    assert math.isnan(_mmd(y, y, math.nan))
    monkeypatch.setattr(distances, "_CELLS_OF_MEDIAN", 4)
    assert bandwidth(y) == pytest.approx(np.median(pdist(y[[0, 3, 7, 11]], "sqeuclidean")), abs=1e-9)


@pytest.mark.parametrize("rows", [1, 3, 1024])
def test_pairs_of_one_origin_do_not_count(monkeypatch, rows):
    monkeypatch.setattr(distances, "_ROWS_AT_ONCE", rows)
    rng = np.random.default_rng(5)
    x, origins, width = _sample(rng, 15), np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9]), 4.0
    pairs = [(i, j) for i, j in itertools.permutations(range(15), 2) if origins[i] != origins[j]]
    apart = np.array([np.linalg.norm(x[i] - x[j]) for i, j in pairs])
    kernel = np.mean([np.exp(-np.square(apart) / (scale * width)) for scale in SCALES], axis=0)
    found = within(x, width, origins)
    assert found.distance == pytest.approx(apart.mean(), rel=1e-6)
    assert found.kernel == pytest.approx(kernel.mean(), rel=1e-6)


def test_cells_of_different_origins_are_all_pairs_and_of_one_there_is_none():
    x = _sample(np.random.default_rng(6), 20)
    assert within(x, 4.0, np.arange(20)[::-1]) == within(x, 4.0)
    assert all(map(math.isnan, within(x, 4.0, np.zeros(20, dtype=int))))


def test_copies_of_a_sample_are_as_far_from_its_law_as_the_sample_is():
    rng = np.random.default_rng(7)
    found = {"once": [], "copied": [], "taken for new": []}
    for _ in range(300):
        x, y = rng.normal(size=(2, 12, 5))
        copied, origins = np.tile(x, (3, 1)), np.tile(np.arange(12), 3)
        within_y = within(y)
        found["once"].append(energy_distance(between(x, y), within(x), within_y))
        found["copied"].append(energy_distance(between(copied, y), within(copied, origins=origins), within_y))
        found["taken for new"].append(energy_distance(between(copied, y), within(copied), within_y))
    np.testing.assert_allclose(found["copied"], found["once"], atol=1e-9)
    error = np.std(found["once"]) / np.sqrt(300)
    assert abs(np.mean(found["once"])) < 3 * error
    assert np.mean(found["taken for new"]) > 10 * error
