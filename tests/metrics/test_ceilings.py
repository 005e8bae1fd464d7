"""The ceiling is one half of the observed cells against the disjoint other half."""

import math

import numpy as np
import pytest

from perturbdiff.metrics.ceilings import HALVINGS, apart, averaged, halved, halves, replicated
from perturbdiff.metrics.differential_expression import rank_sum
from perturbdiff.metrics.ours import METRICS, Population, Reference, judge


@pytest.mark.parametrize("n_cells", [2, 7, 100])
def test_halves_are_disjoint_and_together_all_cells(n_cells):
    first, second = halves(n_cells, np.random.default_rng(0))
    assert sorted([*first, *second]) == list(range(n_cells))
    assert second.size - first.size == n_cells % 2


def _reference(rng, n_cells, shift=2.0):
    observed = rng.gamma(2.0, 0.5, (n_cells, 30)).astype(np.float32)
    observed[:, :8] += shift
    return Reference(Population(observed), Population(rng.gamma(2.0, 0.5, (200, 30)).astype(np.float32)))


def ceiling(reference, rng, halvings=HALVINGS):
    return averaged([judge(*pair) for pair in halved(reference, rng, halvings=halvings)])


def test_a_ceiling_is_near_perfect_and_its_energy_distance_is_near_zero():
    found = ceiling(_reference(np.random.default_rng(1), 400), np.random.default_rng(2))
    assert list(found) == [metric.name for metric in METRICS]
    assert abs(found["energy_distance"]) < 0.02
    assert found["pearson_of_change"] > 0.99
    assert found["spread_ratio"] == pytest.approx(1.0, abs=0.05)
    assert found["de_auroc"] > 0.95


def test_a_ceiling_is_the_mean_of_its_halvings_and_repeats_with_its_seed():
    reference = _reference(np.random.default_rng(3), 40)
    rng = np.random.default_rng(4)
    single = [ceiling(reference, rng, halvings=1)["mae"] for _ in range(3)]
    assert ceiling(reference, np.random.default_rng(4), halvings=3)["mae"] == pytest.approx(np.mean(single))
    assert len(set(single)) == 3


def test_the_ceiling_judges_halves_that_share_no_cell():
    cells = np.arange(22.0).reshape(11, 2)
    pairs = halved(Reference(Population(cells), Population(cells)), np.random.default_rng(0), halvings=4)
    seen = [(predicted.cells, reference.observed.cells) for predicted, reference in pairs]
    assert len(seen) == 4
    for first, second in seen:
        assert sorted([*first[:, 0], *second[:, 0]]) == cells[:, 0].tolist()


def _batches(rng, levels, n_cells=60):
    """Observed and control cells of assay batches of different levels, with one response; and their batches."""
    response = np.repeat([1.0, 0.0], [5, 25])
    observed = [level + response + rng.gamma(2.0, 0.5, (n_cells, 30)) for level in levels.values()]
    control = [level + rng.gamma(2.0, 0.5, (n_cells, 30)) for level in levels.values()]
    reference = Reference(*(Population(np.concatenate(part).astype(np.float32)) for part in (observed, control)))
    return reference, np.repeat(list(levels), n_cells)


def test_replicates_agree_on_the_change_whatever_the_levels_of_their_batches():
    rng = np.random.default_rng(6)
    levels = {name: rng.normal(3.0, 1.0, 30) for name in "xyz"}
    reference, batches = _batches(rng, levels)
    controls = apart(reference.control, batches)
    found = [judge(one, other) for one, other, _ in replicated(reference, batches, controls)]
    assert len(found) == 3
    for values in found:
        assert values["pearson_of_change"] > 0.8
        assert values["mae"] < 0.25
        assert values["energy_distance"] > 1.0  # of the cells as they are
    tested = [rank_sum(one.sorted, own.sorted) for one, _, own in replicated(reference, batches, controls)]
    assert all(test.significant[:5].all() and test.significant[5:].sum() <= 3 for test in tested)


def test_one_batch_or_batches_of_few_cells_or_without_control_cells_are_no_replicates():
    rng = np.random.default_rng(7)
    levels = {name: np.full(30, 3.0) for name in "xy"}
    reference, batches = _batches(rng, levels)
    for wrong in (np.full(120, "x"), np.where(np.arange(120) < 110, "x", "y")):
        assert list(replicated(reference, wrong, apart(reference.control, batches))) == []
        assert list(replicated(reference, batches, apart(reference.control, wrong))) == []


def test_a_ceiling_of_three_cells_has_no_energy_distance_and_of_one_cell_nothing():
    reference = _reference(np.random.default_rng(5), 3)
    assert math.isnan(ceiling(reference, np.random.default_rng(0))["energy_distance"])
    one = Reference(Population(reference.observed.cells[:1]), reference.control)
    assert all(math.isnan(value) for value in ceiling(one, np.random.default_rng(0)).values())
