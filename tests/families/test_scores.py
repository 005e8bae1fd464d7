"""Judging families: the energy score finds the right spread, intervals and ranks are what they say."""

import numpy as np
import pytest

from perturbdiff.families.intervals import interval
from perturbdiff.families.scores import (
    FAMILY_METRICS,
    Between,
    Projected,
    apart,
    family_score,
    projected,
    rank,
    scores,
    strength_variance_ratio,
)
from perturbdiff.metrics import distances

CONTROL = np.full(6, 3.0)
RESPONSE = np.array([1.0, 1.0, -0.5, 0.0, 0.0, 0.0])


def population(strength, rng, n_cells=40):
    return (CONTROL + strength * RESPONSE + rng.normal(0, 0.3, (n_cells, 6))).astype(np.float32)


def family(rng, spread, *, n=20, mean=1.0, n_cells=40):
    return [population(mean + spread * rng.normal(), rng, n_cells) for _ in range(n)]


def euclid(points):
    return np.linalg.norm(points[:, None] - points, axis=2)


def test_the_distance_is_the_root_of_the_energy_distance_of_all_pairs(rng):
    x, y = rng.normal(size=(7, 4)), rng.normal(1, 1, size=(7, 4))
    found = apart([x, y, x])
    between = distances.between(x, y).distance
    within = [distances.within(cells).distance * 6 / 7 for cells in (x, y)]
    assert found[0, 1] == pytest.approx(np.sqrt(between - sum(within) / 2))
    np.testing.assert_allclose(found, found.T)
    np.testing.assert_allclose(np.diag(found), 0, atol=1e-6)
    assert found[0, 2] == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(apart([x + 100, y + 100]), found[:2, :2], rtol=1e-6)


def test_of_points_the_score_is_the_fair_energy_score_of_an_ensemble():
    """By scoringrules 0.11: es_ensemble(observed, points, estimator="fair")."""
    points = np.array([[0.0, 1.0], [2.0, -1.0], [0.5, 0.5], [-1.0, 3.0]])
    found = euclid(np.vstack([[0.3, 0.7], points]))
    assert family_score(found[0, 1:], found[1:, 1:]) == pytest.approx(0.12094318545177907, rel=1e-12)


def test_the_score_is_least_for_the_family_that_the_observed_population_is_of():
    found = {}
    for spread in (0.0, 0.2, 0.5, 1.0, 2.0):
        rng, values = np.random.default_rng(0), []
        for _ in range(60):
            observed = population(1 + 0.5 * rng.normal(), rng)
            away = apart([observed, *family(rng, spread)])
            values.append(family_score(away[0, 1:], away[1:, 1:]))
        found[spread] = np.mean(values)
    assert min(found, key=found.get) == 0.5
    assert found[0.0] > 1.1 * found[0.5] < 0.9 * found[2.0]


def test_one_population_many_times_has_the_distance_to_the_observed_one(rng):
    one, observed = population(0.5, rng), population(1.0, rng)
    away = apart([observed, *([one] * 5)])
    assert family_score(away[0, 1:], away[1:, 1:]) == pytest.approx(away[0, 1], rel=1e-6)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
def test_an_interval_covers_its_level_where_observed_and_drawn_are_of_one_law(level):
    values = np.random.default_rng(0).normal(size=(40, 20000))
    low, high = interval(values[1:], level)
    assert ((values[0] >= low) & (values[0] <= high)).mean() == pytest.approx(level, abs=0.01)


def test_of_few_draws_an_interval_is_their_range(rng):
    values = rng.normal(size=(5, 3))
    low, high = interval(values, 0.95)
    np.testing.assert_array_equal(low, values.min(axis=0))
    np.testing.assert_array_equal(high, values.max(axis=0))


def test_ranks_are_uniform_ties_included(rng):
    assert rank(5.0, np.arange(4.0), rng) == 1.0
    assert rank(-1.0, np.arange(4.0), rng) == 0.0
    assert rank(2.5, np.arange(4.0), rng) == 0.75
    tied = [rank(1.0, np.ones(4), rng) for _ in range(2000)]
    assert np.bincount(np.round(np.array(tied) * 4).astype(int)) == pytest.approx([400] * 5, rel=0.2)


def test_a_condition_is_judged_by_every_metric_and_calibrated_families_are_calibrated():
    rng, found = np.random.default_rng(1), []
    significant = RESPONSE != 0
    for _ in range(150):
        drawn = family(rng, 0.4, n=39)
        found.append(scores(drawn, population(1 + 0.4 * rng.normal(), rng), CONTROL, significant, rng,
                            cells_of_distances=20))  # fmt: skip
    assert list(found[0]) == [metric.name for metric in FAMILY_METRICS]
    mean = {name: np.mean([one[name] for one in found]) for name in found[0]}
    for genes in ("", "de_"):
        for level in (50, 80, 95):
            assert mean[f"{genes}coverage_{level}"] == pytest.approx(level / 100, abs=0.06)
    for name in ("rank_of_strength", "rank_of_spread", "expected_coverage"):
        values = np.array([one[name] for one in found])
        assert values.mean() == pytest.approx(0.5, abs=0.08)
        assert values.std() == pytest.approx(np.sqrt(1 / 12), abs=0.04)


def test_a_family_that_is_too_narrow_or_in_the_wrong_place_is_seen():
    rng = np.random.default_rng(2)
    significant = RESPONSE != 0
    narrow, low = [], []
    for _ in range(40):
        observed = population(1 + 0.6 * rng.normal(), rng)
        judged = {"cells_of_distances": 20}
        narrow.append(scores(family(rng, 0.0, n=19), observed, CONTROL, significant, rng, **judged))
        low.append(scores(family(rng, 0.6, n=19, mean=-1.0), observed, CONTROL, significant, rng, **judged))
    assert np.mean([one["de_coverage_80"] for one in narrow]) < 0.5
    assert np.mean([abs(one["rank_of_strength"] - 0.5) for one in narrow]) > 0.35
    assert np.mean([abs(one["rank_of_strength"] - 0.5) for one in low]) > 0.45
    none = scores(family(rng, 0.1, n=3), population(1, rng), CONTROL, significant & False, rng, cells_of_distances=9)
    assert np.isnan(none["de_coverage_95"])


def test_the_variance_between_is_without_that_of_the_sampling_of_cells():
    rng = np.random.default_rng(3)

    def strengths(spread, n):
        return [projected(cells, CONTROL, RESPONSE) for cells in family(rng, spread, n=n, n_cells=12)]

    of = [Between.of([strengths(0.3, 200)], strengths(0.3, 200)) for _ in range(3)]
    assert strength_variance_ratio(of) == pytest.approx(1, abs=0.2)
    assert of[0].observed == pytest.approx(0.09, rel=0.3)
    none = Between.of([strengths(0.0, 200)], strengths(0.3, 200))
    assert none.drawn < 0.1 * none.observed
    few = Between.of([strengths(0.3, 5)], strengths(0.3, 2))
    assert np.isnan(few.observed)
    assert strength_variance_ratio([few, none]) == none.drawn / none.observed
    assert np.isnan(strength_variance_ratio([few]))


def test_a_population_of_one_cell_and_a_direction_of_nothing_are_numbers():
    one = projected(np.ones((1, 6)), CONTROL, RESPONSE)
    assert (one.noise, np.isfinite(one.strength)) == (0.0, True)
    assert projected(np.ones((3, 6)), CONTROL, np.zeros(6)).strength == 0.0
    assert Projected(np.array([1.0, 3.0])).strength == 2.0
