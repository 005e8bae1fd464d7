"""All metrics of one condition: their values where a prediction is perfect, and what they do not depend on."""

import math

import numpy as np
import pytest

from perturbdiff.metrics.ours import (
    CONTEXT_METRICS,
    METRICS,
    OF_ALL_GENES,
    Population,
    Reference,
    judge,
    judge_all_genes,
)


def _sample(rng, n_cells, n_genes=6, shift=0.0):
    return (rng.gamma(1.0, 1.0, (n_cells, n_genes)) * (rng.random((n_cells, n_genes)) < 0.6) + shift).astype(np.float32)


def test_a_prediction_of_the_observed_cells_themselves_is_perfect_in_every_mean():
    rng = np.random.default_rng(3)
    control, observed = _sample(rng, 60), _sample(rng, 40, shift=0.5)
    observed[:, 0] += 3.0
    values = judge(Population(observed), Reference(Population(observed), Population(control)))
    assert list(values) == [metric.name for metric in METRICS]
    assert values["pearson_of_change"] == pytest.approx(1.0)
    assert values["mae"] == values["weighted_mse"] == values["zeros_error"] == 0.0
    assert values["spread_ratio"] == pytest.approx(1.0)
    assert values["variance_ratio"] == values["weighted_r2"] == 1.0
    assert values["mmd"] <= 0.0
    assert values["zeros_predicted"] == values["zeros_observed"]
    assert values["de_share_predicted"] == values["de_share_observed"]
    assert values["energy_distance"] <= 0.0


def test_means_zeros_and_spread_of_a_small_case_are_those_computed_by_hand():
    observed, predicted = np.array([[0.0, 2.0], [2.0, 2.0]]), np.array([[0.0, 0.0], [4.0, 1.0], [2.0, 2.0]])
    values = judge(Population(predicted), Reference(Population(observed), Population(np.zeros((3, 2)))))
    assert values["mae"] == pytest.approx((1.0 + 1.0) / 2)
    assert values["zeros_predicted"] == pytest.approx(2 / 6)
    assert values["zeros_observed"] == pytest.approx(1 / 4)
    assert values["spread_ratio"] == pytest.approx((2.0 + 1.0) / math.sqrt(2.0))
    assert math.isnan(values["variance_ratio"])  # of 2 and infinity: one of the genes varies in the prediction alone
    assert values["zeros_error"] == pytest.approx((abs(1 / 3 - 1 / 2) + 1 / 3) / 2)


def test_no_metric_depends_on_the_order_of_cells():
    rng = np.random.default_rng(4)
    control, observed, predicted = _sample(rng, 50), _sample(rng, 40), _sample(rng, 30)
    observed[:, :2] += 1.0
    predicted[:, 1:4] += 0.5
    centroid = rng.random(6)
    values = judge(Population(predicted), Reference(Population(observed), Population(control), centroid))
    again = judge(
        Population(predicted[::-1]),
        Reference(Population(rng.permutation(observed)), Population(rng.permutation(control)), centroid),
    )
    assert again == pytest.approx(values, abs=1e-9)


def test_every_metric_says_what_is_better_what_it_means_and_where_it_lies():
    for metric in (*METRICS, *CONTEXT_METRICS):
        assert metric.meaning
        assert metric.range


def test_the_correlation_from_the_centroid_is_undefined_without_one():
    rng = np.random.default_rng(5)
    control, observed = Population(_sample(rng, 20)), Population(_sample(rng, 20, shift=0.5))
    assert math.isnan(judge(observed, Reference(observed, control))["pearson_from_centroid"])
    with_centroid = Reference(observed, control, centroid=control.mean)
    assert judge(observed, with_centroid)["pearson_from_centroid"] == pytest.approx(1.0)


def test_metrics_without_targets_are_those_of_the_genes_that_remain():
    rng = np.random.default_rng(6)
    control, observed, predicted = _sample(rng, 30), _sample(rng, 25, shift=0.2), _sample(rng, 20, shift=0.3)
    predicted[:, 2] += 9.0
    gone, left = np.array([2]), [0, 1, 3, 4, 5]
    reference = Reference(Population(observed), Population(control), centroid=control.mean(axis=0))
    kept = Reference(Population(observed[:, left]), Population(control[:, left]), control.mean(axis=0)[left])
    expected = judge(Population(predicted[:, left]), kept)
    cells = Population(predicted)
    for known in (False, True):
        if known:  # what is known gene by gene is cut, not computed again
            _ = cells.standard_deviation, cells.zeros, cells.mean, reference.control.squared_error
        assert judge(cells.without(gone), reference.without(gone)) == pytest.approx(expected, nan_ok=True)
    every = judge_all_genes(cells, reference)
    assert tuple(every) == OF_ALL_GENES
    assert every["mae"] > 5 * expected["mae"]
    assert every == pytest.approx({name: judge(cells, reference)[name] for name in OF_ALL_GENES})


def test_without_no_genes_everything_is_itself():
    none, rng = np.array([], dtype=np.int64), np.random.default_rng(7)
    cells = Population(_sample(rng, 9))
    reference = Reference(cells, Population(_sample(rng, 9)))
    assert cells.without(none) is cells
    assert reference.without(none) is reference
    assert reference.test.without(none) is reference.test
