"""What is hidden of a population: strengths apart from sampling noise, and draws that vary as trained donors do."""

from dataclasses import replace

import numpy as np
import pytest

from perturbdiff.cells.contexts import Changes
from perturbdiff.populations.departures import FREEDOM, Families, Hidden, _between

N_GENES = 30
RESPONSE = np.repeat([2.0, -1.0, 0.0], 10)


def family(strengths, *, noise=0.0, effect=1.0, rng=None, beside=None, halves=True, types=1):
    """Changes (1 + a) RESPONSE of donors, a row of strengths a perturbation; noise of `effect` as much along it."""
    n_labels, n_donors = np.shape(strengths)
    rng = rng or np.random.default_rng(0)
    unit = RESPONSE / np.linalg.norm(RESPONSE)

    def sampled():
        own = np.sqrt(noise) * rng.normal(size=(n_labels * n_donors, N_GENES))
        return own + (np.sqrt(effect) - 1) * (own @ unit)[:, None] * unit

    changes = (1 + np.reshape(strengths, -1))[:, None] * RESPONSE + sampled()
    if beside is not None:
        changes = changes + np.tile(beside, (n_labels, 1))
    names = [(f"type_{i % types}", f"donor_{i:02d}") for i in range(n_donors)]
    order = sorted(range(n_donors), key=lambda i: names[i])
    place = np.argsort(order)
    key = np.lexsort((np.tile(place, n_labels), np.repeat(np.arange(n_labels), n_donors)))
    return Changes(
        label=np.repeat(np.arange(n_labels), n_donors),
        context=np.tile(np.arange(n_donors), n_labels),
        sizes=np.full(n_labels * n_donors, 50.0),
        changes=changes[key].astype(np.float32),
        noise=np.full(changes.shape, noise, dtype=np.float32),
        contexts=tuple(names[i] for i in order),
        means=np.tile(np.linspace(0, 1, N_GENES, dtype=np.float32), (n_donors, 1)),
        halves=sampled().astype(np.float32) if halves else None,
    ).fitted()


def drawn(changes, label=0, n=600, *, seed=0, own=None, cell_type="type_0", batch="new", n_cells=10**9):
    """Departures of many populations [n, genes], and their strengths [n]."""
    families = Families(changes)
    hidden = [Hidden.of(changes, seed, repeat, batch) for repeat in range(n)]
    told = {"cell_type": cell_type, "own": own, "n_cells": n_cells}
    found = np.array([families.drawn(label, RESPONSE, one, **told) for one in hidden])
    return found, found @ RESPONSE / (RESPONSE @ RESPONSE)


def test_draws_vary_as_donors_do_about_what_is_expected(rng):
    strengths = 0.4 * rng.normal(size=(2, 24))
    strengths -= strengths.mean(axis=1, keepdims=True)
    for label in (0, 1):
        found, along = drawn(family(strengths), label, n=2000)
        assert along.std() == pytest.approx(strengths[label].std(), rel=0.12)
        assert abs(along.mean()) < 0.04
        np.testing.assert_allclose(found, np.outer(along, RESPONSE), atol=1e-3)


def test_sampling_noise_is_no_spread_between_donors_even_where_it_goes_along_the_response(rng):
    """Noise of genes that goes together is told by the halves; without these it would be taken for the donors' own."""
    strengths, noise = np.zeros((3, 30)), 0.3
    apart = drawn(family(strengths, noise=noise, effect=9.0, rng=rng))[1].std()
    untold = drawn(family(strengths, noise=noise, effect=9.0, rng=rng, halves=False))[1].std()
    total = np.sqrt(9 * noise) / np.linalg.norm(RESPONSE)
    assert untold > 0.7 * total
    assert apart < 0.45 * total
    both = drawn(family(0.5 * rng.normal(size=(3, 30)), noise=noise, effect=9.0, rng=rng))[1].std()
    assert both == pytest.approx(0.5, abs=0.12)


def test_populations_of_few_cells_vary_by_what_cells_that_are_drawn_apart_lack(rng):
    noise, effect = 0.3, 9.0
    changes = family(np.zeros((3, 30)), noise=noise, effect=effect, rng=rng)
    few, many = (drawn(changes, n_cells=n_cells)[1].var() - drawn(changes)[1].var() for n_cells in (50, 200))
    lacks = (effect - 1) * noise / (RESPONSE @ RESPONSE)  # of 50 cells, as the conditions have
    assert (few, many) == pytest.approx((lacks, lacks / 4), rel=0.5)


def test_the_variance_between_is_what_noise_does_not_explain(rng):
    noise = rng.uniform(0.1, 1.0, size=4000)
    strengths = np.sqrt(noise + 0.25) * rng.normal(size=4000)
    assert _between(strengths, noise) == pytest.approx(0.25, rel=0.15)
    assert _between(np.sqrt(0.9 * noise), noise) == 0.0
    assert _between(strengths[:0], noise[:0]) == 0.0
    strengths[0], noise[0] = 50.0, np.inf  # of a perturbation without a response
    assert _between(strengths, noise) == pytest.approx(0.25, rel=0.15)
    assert _between(np.array([1.0, -1.0]), np.zeros(2)) == pytest.approx(1.0)


def test_a_perturbation_of_few_donors_takes_the_spread_of_all(rng):
    strengths = 0.5 * rng.normal(size=(40, 3))
    strengths[0] = [0.001, -0.001, 0.0]
    few = drawn(family(strengths))[1].std()
    pooled = Families(family(strengths))._spread(False).between
    assert few == pytest.approx(np.sqrt(FREEDOM * pooled / (3 + FREEDOM)), rel=0.15)
    # where nobody has seen it twice, that of all is all there is
    alone = family(strengths)
    kept = np.flatnonzero((alone.label > 0) | (alone.context == 0))
    own = {name: getattr(alone, name)[kept] for name in ("label", "context", "sizes", "changes", "noise", "halves")}
    assert drawn(replace(alone, **own))[1].std() == pytest.approx(np.sqrt(pooled), rel=0.1)


def test_what_donors_have_beside_the_response_is_drawn_where_it_is_no_noise(rng):
    beside = np.zeros((20, N_GENES))
    beside[:, 25] = rng.normal(size=20)
    found, along = drawn(family(np.zeros((2, 20)), noise=0.01, rng=rng, beside=beside))
    assert found[:, 25].std() == pytest.approx(beside[:, 25].std(), rel=0.15)
    # noise of 0.1 a gene is not drawn again: cells will have it
    assert np.delete(found, 25, axis=1).std(axis=0).max() < 0.09
    assert along.std() < 0.05


def test_donors_of_two_kinds_are_drawn_in_two_kinds():
    strengths = np.tile(np.repeat([-0.5, 0.5], 30), (1, 1)) + 0.02 * np.sin(np.arange(60))
    along = drawn(family(strengths), n=3000)[1]
    assert along.std() == pytest.approx(0.5, rel=0.1)
    assert np.mean((along / along.std()) ** 4) < 2.3  # 3 of a normal law, 1 of two points
    assert (np.abs(along) < 0.1).mean() < 0.1


def test_one_draw_is_one_donor_for_all_perturbations_and_another_batch_another_one(rng):
    common = 0.4 * rng.normal(size=24)
    changes = family(np.stack([common, common]))
    one, other = drawn(changes, 0)[1], drawn(changes, 1)[1]
    assert np.corrcoef(one, other)[0, 1] > 0.98
    assert abs(np.corrcoef(one, drawn(changes, 0, batch="another")[1])[0, 1]) < 0.15
    assert abs(np.corrcoef(one, drawn(changes, 0, seed=1)[1])[0, 1]) < 0.15
    np.testing.assert_array_equal(one, drawn(changes, 0)[1])


def test_independent_responses_of_one_donor_are_drawn_independently(rng):
    changes = family(0.4 * rng.normal(size=(2, 60)))
    assert abs(np.corrcoef(drawn(changes, 0)[1], drawn(changes, 1)[1])[0, 1]) < 0.35


def test_a_donor_that_training_has_seen_is_where_it_was_measured_and_hardly_differs(rng):
    strengths = 0.5 * rng.normal(size=(2, 20))
    noise = 0.2
    changes = family(strengths, noise=noise, rng=rng)
    new = drawn(changes)[1]
    sampling = np.sqrt(noise) / np.linalg.norm(RESPONSE)
    for own in (0, 7):
        along = drawn(changes, own=own)[1]
        assert along.std() < 1.2 * sampling < 0.5 * new.std()
        assert along.mean() == pytest.approx(strengths[0, own], abs=3 * sampling)
    known_exactly = drawn(family(strengths), own=3)[0]
    np.testing.assert_allclose(known_exactly, np.tile(strengths[0, 3] * RESPONSE, (600, 1)), atol=0.02)


def test_the_less_is_known_the_more_draws_differ(rng):
    """Of a donor that was measured on fewer and fewer cells, up to one that was not."""
    spreads = [drawn(family(0.5 * rng.normal(size=(3, 24)), noise=noise), own=4)[1].std() for noise in (0.1, 1.0, 10.0)]
    assert spreads[0] < spreads[1] < spreads[2] < drawn(family(0.5 * rng.normal(size=(3, 24))))[1].std()


def test_where_nobody_else_has_seen_a_perturbation_its_own_measurement_still_tells(rng):
    whole = family(0.5 * rng.normal(size=(30, 4)), noise=0.1, rng=rng)
    kept = np.flatnonzero((whole.label > 0) | (whole.context == 1))
    own = {name: getattr(whole, name)[kept] for name in ("label", "context", "sizes", "changes", "noise", "halves")}
    alone = replace(whole, **own)
    assert drawn(alone, own=1)[1].std() < 0.4 * drawn(alone, own=None)[1].std()


def test_another_cell_type_departs_as_cell_types_do(rng):
    """Donors of a type are alike, types are not: to an unseen type each type is one answer, of which one is drawn."""
    strengths = np.tile([0.5, -0.5, 0.2, -0.2], 5)[None]
    changes = family(strengths, types=4)
    assert drawn(changes, cell_type="type_0")[1].std() < 0.05
    assert drawn(changes, cell_type="type_9")[1].std() > 0.3


def test_a_placebo_has_no_strength(rng):
    changes = family(-np.ones((1, 12)), noise=0.05, rng=rng)
    found, _ = drawn(changes)
    assert np.isfinite(found).all()
    assert found.std() < 0.1
