"""Trained weights are proven where their energies are lower than at step 0 by more than chance: closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perturbdiff.training import patience
from perturbdiff.training.patience import Energies

FINITE = st.floats(-10, 10)


def proven(populations, start, keys=()):
    """Whether energies of populations, of these groups, are below those of the start."""
    return patience.proven(Energies({}, populations, keys), start)


def test_the_mean_is_over_the_assay_batches_of_a_condition_first():
    energies = Energies({(1, 1, 1): 1.0, (1, 1, 2): 3.0, (1, 1, 3): 5.0, (1, 2, 1): 7.0, (2, 1, 1): 0.5}, [])
    assert energies.mean == pytest.approx((3.0 + 7.0 + 0.5) / 3)


@pytest.mark.parametrize("energies", [[1.0, 2.0, 6.0], [-0.25]])
def test_the_mean_of_one_batch_each_is_that_of_all(energies):
    found = Energies({(i, 1, 1): energy for i, energy in enumerate(energies)}, energies)
    assert found.mean == pytest.approx(np.mean(energies))


@pytest.mark.parametrize("n", [0, 1, 2])
def test_fewer_than_three_populations_prove_nothing(n):
    assert not proven([-5.0] * n, [1.0] * n)
    assert proven([-5.0] * 3, [1.0] * 3)


@pytest.mark.parametrize("energies", [(1.0, 2.0, 3.0), (0.1, 0.2, 0.3, -4.0)])
def test_equal_energies_are_not_proven(energies):
    assert not proven(energies, energies)


def test_populations_that_all_fall_alike_are_proven_however_little():
    start = [1.0, 2.0, 3.0]
    assert proven([energy - 0.125 for energy in start], start)
    assert not proven([energy + 0.125 for energy in start], start)


def test_a_mean_below_0_within_its_standard_error_is_not_proven_and_one_beyond_it_is():
    apart, start = np.array([-4.0, 1.0, 1.0, 0.0, 1.0]), [0.0] * 5
    error = apart.std(ddof=1) / math.sqrt(5)
    assert -error < apart.mean() < 0
    assert not proven(apart.tolist(), start)
    for beyond, found in ((0.01, True), (-0.01, False)):
        assert proven((apart - apart.mean() - error - beyond).tolist(), start) == found


def test_populations_are_held_against_themselves_so_that_there_are_as_many():
    with pytest.raises(ValueError, match="longer than arguments 1-2"):
        proven([1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0])


@given(st.lists(st.tuples(FINITE, FINITE), min_size=3, max_size=8), st.floats(0.5, 4))
def test_neither_the_order_of_populations_nor_the_unit_of_energies_counts(pairs, unit):
    after, start = zip(*pairs, strict=True)
    apart = np.subtract(after, start)
    edge = apart.mean() + apart.std(ddof=1) / math.sqrt(len(apart))
    if abs(edge) > 1e-6:
        assert proven(after, start) == (edge < 0)
        assert proven(after[::-1], start[::-1]) == (edge < 0)
        assert proven([unit * energy for energy in after], [unit * energy for energy in start]) == (edge < 0)


def test_what_helps_one_perturbation_alone_is_not_proven_by_its_many_populations():
    # one of five perturbations falls by far, in ten populations; the others rise
    keys = [(1, 1, 1)] * 10 + [(i, 1, 1) for i in (2, 3, 4, 5)]
    apart = [-1.0] * 10 + [0.1] * 4
    assert proven(apart, [0.0] * 14)
    assert not proven(apart, [0.0] * 14, keys)
    assert proven([-1.0] * 10 + [-0.5, -0.8, -0.4, -0.9], [0.0] * 14, keys)


@pytest.mark.parametrize(
    ("keys", "units"),
    [
        ([(1, 1, 1), (2, 1, 1), (3, 1, 2), (3, 2, 3)], 3),
        ([(1, 1, 1), (2, 2, 1), (1, 3, 2), (2, 3, 3)], 3),
        ([(1, 1, 1), (1, 1, 2), (2, 2, 3), (2, 2, 3)], 3),
        ([(1, 1, 1), (1, 1, 2), (2, 2, 2), (2, 2, 1)], 4),
        ([], 4),
    ],
)
def test_units_are_perturbations_or_cell_types_or_assay_batches_or_populations(keys, units):
    assert len(set(patience._units(Energies({}, [0.0] * 4, keys)))) == units
