"""Trained weights are proven where their energies are lower than at step 0 by more than chance: closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perturbdiff.training.proof import mean_energy, proven

FINITE = st.floats(-10, 10)


def groups(*energies):
    """Energies of conditions, each in one assay batch."""
    return {(i, 1, 1): energy for i, energy in enumerate(energies)}


def test_the_mean_is_over_the_assay_batches_of_a_condition_first():
    energies = {(1, 1, 1): 1.0, (1, 1, 2): 3.0, (1, 1, 3): 5.0, (1, 2, 1): 7.0, (2, 1, 1): 0.5}
    assert mean_energy(energies) == pytest.approx((3.0 + 7.0 + 0.5) / 3)


def test_the_mean_of_one_batch_each_is_that_of_all():
    assert mean_energy(groups(1.0, 2.0, 6.0)) == 3.0
    assert mean_energy(groups(-0.25)) == -0.25


@pytest.mark.parametrize(("after", "found"), [(0.999, True), (1.0, False), (1.001, False)])
def test_one_group_decides_by_its_mean(after, found):
    assert proven(groups(after), groups(1.0)) == found


@pytest.mark.parametrize("energies", [(1.0,), (1.0, 2.0), (0.1, 0.2, 0.3, -4.0)])
def test_equal_energies_are_not_proven(energies):
    assert not proven(groups(*energies), groups(*energies))


def test_groups_that_all_fall_alike_are_proven_however_little():
    start = groups(1.0, 2.0, 3.0)
    assert proven({group: energy - 0.125 for group, energy in start.items()}, start)
    assert not proven({group: energy + 0.125 for group, energy in start.items()}, start)


@pytest.mark.parametrize(("spread", "found"), [(0.5, True), (0.99, True), (1.01, False), (5.0, False)])
def test_two_groups_are_proven_where_they_fall_by_more_than_half_of_what_lies_between_them(spread, found):
    # the standard error of two numbers is half of their difference
    assert proven(groups(-1 - spread, -1 + spread), groups(0.0, 0.0)) == found


def test_a_mean_below_0_within_its_standard_error_is_not_proven_and_one_beyond_it_is():
    apart = np.array([-4.0, 1.0, 1.0, 0.0, 1.0])
    error = apart.std(ddof=1) / math.sqrt(5)
    assert -error < apart.mean() < 0
    assert not proven(groups(*apart), groups(*[0.0] * 5))
    for beyond, found in ((0.01, True), (-0.01, False)):
        moved = apart - apart.mean() - error - beyond
        assert proven(groups(*moved), groups(*[0.0] * 5)) == found


def test_groups_that_were_not_judged_at_the_start_are_ignored():
    start = groups(1.0, 1.0)
    assert proven(groups(0.5, 0.6, 99.0), start)
    assert not proven(groups(1.5, 1.6, -99.0), start)
    # nor does it count what is judged no more
    assert proven(groups(0.5), start)


def test_where_no_group_was_judged_at_the_start_there_is_nothing_to_prove():
    assert proven(groups(5.0), {})
    assert proven({(9, 9, 9): 5.0}, groups(1.0))


@given(st.lists(st.tuples(FINITE, FINITE), min_size=1, max_size=8), st.floats(0.5, 4))
def test_neither_the_order_of_groups_nor_the_unit_of_energies_counts(pairs, unit):
    after, start = (groups(*energies) for energies in zip(*pairs, strict=True))
    apart = np.array([a - b for a, b in pairs])
    edge = apart.mean() + (apart.std(ddof=1) / math.sqrt(len(apart)) if len(apart) > 1 else 0.0)
    if abs(edge) > 1e-6:
        assert proven(after, start) == (edge < 0)
        assert proven(dict(reversed(after.items())), start) == (edge < 0)
        scaled = ({group: unit * energy for group, energy in own.items()} for own in (after, start))
        assert proven(*scaled) == (edge < 0)
