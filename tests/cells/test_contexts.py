"""What is expected of a perturbation in a context: closed forms, limits, and the fit in contexts of a known truth."""

import json
from dataclasses import replace

import numpy as np
import pytest

from perturbdiff.cells import contexts as module
from perturbdiff.cells.contexts import BANDWIDTHS, CARRIED, ENOUGH, Carried, Changes, joined
from perturbdiff.cells.moments import trusted


def made(keys, changes, *, means, sizes=None, noise=None, **more):
    """Changes of conditions, given as (label, context); their noise summed over genes, of which each has as much."""
    label, context = np.array(keys, dtype=np.int64).T
    n, n_genes = np.shape(changes)
    noise = np.zeros(n) if noise is None else np.array(noise, dtype=float)
    return Changes(
        label=label,
        context=context,
        sizes=np.full(n, 50.0) if sizes is None else np.array(sizes, dtype=float),
        changes=np.array(changes, dtype=np.float32),
        noise=np.repeat(noise[:, None] / n_genes, n_genes, axis=1),
        contexts=tuple((f"type_{i}", "") for i in range(len(means))),
        means=np.array(means, dtype=np.float32),
        **more,
    )


def carrying(changes, bandwidth=np.inf, share=1.0):
    """The same, carried over in this way within cell types and across them."""
    return replace(changes, within=Carried(bandwidth, share), across=Carried(bandwidth, share))


def without(changes, rows):
    """Without some conditions."""
    kept = np.setdiff1d(np.arange(len(changes.label)), rows)
    own = {name: getattr(changes, name)[kept] for name in ("label", "context", "sizes", "changes", "noise")}
    return replace(changes, **own)


def simulated(rng, *, n_labels=6, n_contexts=12, n_genes=40, n_kinds=3, noise=0.05, alike=True, sizes=None):
    """Contexts of a few kinds; a perturbation does the same in contexts of a kind, or in none."""
    kind = np.arange(n_contexts) % n_kinds
    means = rng.normal(size=(n_kinds, n_genes))[kind] + 0.05 * rng.normal(size=(n_contexts, n_genes))
    own = rng.normal(size=(n_labels, n_kinds, n_genes))
    keys = [(label, context) for label in range(n_labels) for context in range(n_contexts)]
    changes = []
    for label, context in keys:
        response = own[label, kind[context]] if alike else own[label, 0] + rng.normal(size=n_genes)
        changes.append(response + noise * rng.normal(size=n_genes))
    return made(keys, changes, means=means, sizes=sizes, noise=np.full(len(keys), noise**2 * n_genes))


# one change


def test_the_only_condition_is_its_own_change_without_what_may_be_noise():
    changes = made([(1, 0)], [[3.0, -3.0, 0.0]], means=[[1, 2, 3]], noise=[9.0])
    similarity = changes.similarity(changes.means[0])
    expected = (1 - 9 / 18) * np.array([3.0, -3.0, 0.0])
    np.testing.assert_allclose(changes.expected(1, similarity, own=0), expected)
    # there is no other to take its place
    np.testing.assert_allclose(changes.expected(1, similarity, own=0, left_out=True), expected)
    np.testing.assert_allclose(carrying(changes, share=0.3).expected(1, similarity), 0.3 * expected)


@pytest.mark.parametrize("noise", [25.0, 26.0, 1e6])
def test_a_change_that_may_all_be_noise_is_not_expected(noise):
    changes = made([(1, 0), (2, 0)], [[3.0, 4.0], [0.0, 0.0]], means=[[1, 2]], noise=[noise, noise])
    for own in (0, None):
        assert not changes.expected(1, np.ones(1), own).any()
        assert not changes.expected(2, np.ones(1), own).any()


def test_a_label_of_which_there_is_no_condition_is_expected_to_change_nothing():
    changes = made([(1, 0), (3, 0)], [[1.0, 2.0], [3.0, 4.0]], means=[[1, 2]])
    for label in (0, 2, 4):
        assert not changes.expected(label, np.ones(1), 0).any()
    np.testing.assert_allclose(changes.expected(3, np.ones(1), 0), [3.0, 4.0])


# two contexts, by hand


@pytest.fixture
def two():
    """One perturbation in two contexts, with noise, and another one beside it."""
    return made(
        [(1, 0), (1, 1), (2, 1)],
        [[2.0, 0.0], [0.0, 4.0], [9.0, 9.0]],
        means=[[1.0, 0.0], [0.0, 1.0]],
        sizes=[30, 90, 10],
        noise=[0.4, 0.1, 1.0],
        across=Carried(0.5, 0.8),
    )


def by_hand(two, similarity):
    """The weights of both contexts, what they expect together and its noise."""
    w = np.array([30 / 60, 90 / 120]) * np.exp(-(max(similarity) - np.array(similarity)) / 0.5)
    w /= w.sum()
    mean = w[0] * two.changes[0] + w[1] * two.changes[1]
    return w, mean, mean * trusted(mean, w[0] ** 2 * two.noise[0] + w[1] ** 2 * two.noise[1])


@pytest.mark.parametrize("similarity", [(1.0, 1.0), (0.9, 0.4), (-0.2, 0.7)])
def test_an_unseen_context_is_expected_a_share_of_the_weighted_mean(two, similarity):
    np.testing.assert_allclose(two.expected(1, np.array(similarity)), 0.8 * by_hand(two, similarity)[2])


@pytest.mark.parametrize("own", [0, 1])
def test_a_seen_context_is_expected_the_mean_and_what_its_own_change_proves_beyond_it(two, own):
    w, mean, shared = by_hand(two, (0.9, 0.4))
    beyond = two.changes[own] - mean
    left = np.eye(2)[own] - w
    noise = left[0] ** 2 * two.noise[0] + left[1] ** 2 * two.noise[1]
    expected = shared + beyond * trusted(beyond, noise)
    np.testing.assert_allclose(two.expected(1, np.array([0.9, 0.4]), own), expected)


def test_a_seen_context_is_weighed_by_what_carries_over_within_its_type_only_where_another_of_the_type_is_seen(two):
    two = replace(two, within=Carried(0.05, 0.1))
    donors = replace(two, contexts=(("type_0", "donor_0"), ("type_0", "donor_1")))
    similarity = np.array([0.9, 0.4])
    for changes, wanted in ((two, carrying(two, 0.5)), (donors, carrying(donors, 0.05))):
        np.testing.assert_array_equal(changes.expected(1, similarity, 0), wanted.expected(1, similarity, 0))
    assert not np.allclose(two.expected(1, similarity, 0), donors.expected(1, similarity, 0))


def test_without_noise_a_seen_context_is_expected_its_own_change(rng):
    changes = replace(simulated(rng), noise=np.zeros((72, 40)))
    for row in (0, 17, 71):
        found = changes.expected(changes.label[row], rng.normal(size=12), int(changes.context[row]))
        np.testing.assert_allclose(found, changes.changes[row], atol=1e-6)


@pytest.mark.parametrize("bandwidth", [0.05, 0.5, np.inf])
def test_to_leave_a_condition_out_is_to_expect_it_without_it(rng, bandwidth):
    changes = carrying(simulated(rng), bandwidth, 0.7)
    for row in (0, 13, 71):
        label, own = int(changes.label[row]), int(changes.context[row])
        similarity = changes.similarity(changes.means[own])
        left_out = changes.expected(label, similarity, own, left_out=True)
        np.testing.assert_allclose(left_out, without(changes, row).expected(label, similarity, own))
        np.testing.assert_allclose(left_out, without(changes, row).expected(label, similarity))
        assert not np.allclose(left_out, changes.expected(label, similarity, own))


# similarity


def test_an_infinite_bandwidth_weighs_by_the_cells_alone(rng):
    sizes = [10, 30, 270]
    changes = made([(1, 0), (1, 1), (1, 2)], np.eye(3), means=rng.normal(size=(3, 3)), sizes=sizes)
    w = np.array([n / (n + ENOUGH) for n in sizes])
    for similarity in (np.zeros(3), np.array([1.0, -1.0, 0.5])):
        np.testing.assert_allclose(changes.expected(1, similarity), w / w.sum())


def test_the_nearer_a_context_the_more_it_counts_and_the_narrower_the_bandwidth_the_more_so():
    changes = made([(1, 0), (1, 1)], np.eye(2), means=np.eye(2))
    similarity = np.array([0.9, 0.8])
    counts = [carrying(changes, width).expected(1, similarity)[0] for width in BANDWIDTHS]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 0.999
    assert counts[-1] == pytest.approx(0.5)
    np.testing.assert_allclose(carrying(changes, 0.1).expected(1, similarity)[0], 1 / (1 + np.exp(-1)))


def test_similarity_is_the_correlation_of_control_means_and_0_where_one_is_constant(rng):
    means = rng.normal(size=(3, 20))
    means[2] = 1.5
    changes = made([(1, 0)], np.ones((1, 20)), means=means)
    control = rng.normal(size=20).astype(np.float32)
    found = changes.similarity(control)
    np.testing.assert_allclose(found[:2], [np.corrcoef(control, mean)[0, 1] for mean in means[:2]], atol=1e-6)
    assert found[2] == 0
    np.testing.assert_allclose(changes.similarity(3 * control + 2), found, atol=1e-6)
    assert not changes.similarity(np.full(20, 2.0)).any()
    assert changes.similarity(changes.means[1])[1] == pytest.approx(1)


# the fit


def test_where_contexts_that_are_alike_respond_alike_the_fitted_bandwidth_is_narrow(rng):
    fitted = simulated(rng).fitted().across
    assert fitted.bandwidth <= 0.2
    assert fitted.share > 0.9


def test_where_likeness_says_nothing_it_counts_for_nothing_and_what_is_common_is_kept(rng):
    changes = simulated(rng, n_contexts=24, n_kinds=24, alike=False)
    fitted = changes.fitted().across
    assert fitted.bandwidth == np.inf
    assert 0.8 < fitted.share <= 1


def test_a_response_that_does_not_carry_over_is_given_next_to_no_share(rng):
    changes = simulated(rng)
    own = replace(changes, changes=rng.normal(size=changes.changes.shape).astype(np.float32))
    assert own.fitted().across.share < 0.1
    assert (
        replace(own, noise=np.full((72, 40), 1e6)).fitted().across.share == 1
    )  # nothing is expected, so there is nothing to scale


def test_what_is_fitted_predicts_conditions_that_are_left_out_better_than_any_other_bandwidth_and_share(rng):
    changes = simulated(rng, noise=0.3, n_contexts=6, sizes=np.tile([10, 40, 200, 20, 80, 30], 6))
    fitted = changes.fitted().across

    def error(bandwidth, share):
        own, squares = carrying(changes, bandwidth, share), 0.0
        for row, (label, context) in enumerate(zip(changes.label, changes.context, strict=True)):
            found = own.expected(int(label), changes.similarity(changes.means[context]), int(context), left_out=True)
            n = changes.sizes[row]
            squares += n / (n + ENOUGH) * float(np.square(changes.changes[row] - found).sum())
        return squares

    best = error(fitted.bandwidth, fitted.share)
    assert all(best <= error(fitted.bandwidth, share) for share in (fitted.share - 0.02, fitted.share + 0.02))
    whole = error(fitted.bandwidth, 1.0)
    assert all(whole <= error(bandwidth, 1.0) * (1 + 1e-6) for bandwidth in BANDWIDTHS)


def test_without_a_perturbation_in_two_contexts_there_is_nothing_to_fit():
    changes = made([(1, 0), (2, 1)], np.eye(2), means=np.eye(2))
    assert changes.fitted().across == changes.fitted().within == CARRIED


def of_donors(rng, *, n_types=4, n_donors=3, n_genes=40):
    """One perturbation, which does the same in all donors of a cell type, and something else in each type."""
    of_type = rng.normal(size=(n_types, n_genes))
    keys = [(1, i) for i in range(n_types * n_donors)]
    kind = np.repeat(np.arange(n_types), n_donors)
    means = 5 * rng.normal(size=(n_types, n_genes))[kind] + rng.normal(size=(len(keys), n_genes))
    changes = made(keys, of_type[kind], means=means)
    return replace(changes, contexts=tuple((f"type_{k}", f"donor_{i}") for i, k in enumerate(kind)))


def test_to_another_cell_type_what_contexts_of_one_type_did_is_one_answer():
    sizes, r = np.array([30.0, 60.0, 45.0]), np.array([0.9, 0.6, 0.5])
    changes = made([(1, 0), (1, 1), (1, 2)], np.eye(3), means=np.eye(3), sizes=sizes, across=Carried(0.2))
    changes = replace(changes, contexts=(("A", "1"), ("A", "2"), ("B", "1")))
    similar = (30 * 0.9 + 60 * 0.6) / 90
    of_type = np.array([90 / 120, 45 / 75 * np.exp(-(similar - 0.5) / 0.2)])
    of_type /= of_type.sum()
    wanted = [of_type[0] / 3, of_type[0] * 2 / 3, of_type[1]]
    np.testing.assert_allclose(changes.expected(1, r, cell_type="C"), wanted)
    # however many batches a type is cut into
    cut = made([(1, 0), (1, 1), (1, 2), (1, 3)], np.eye(4)[[0, 1, 2, 2]], means=np.eye(4), sizes=[30, 60, 40, 5])
    cut = replace(cut, across=Carried(0.2), contexts=(("A", "1"), ("A", "2"), ("B", "1"), ("B", "2")))
    np.testing.assert_allclose(cut.expected(1, np.array([0.9, 0.6, 0.5, 0.5]), cell_type="C")[:3], wanted)


def test_what_carries_over_within_a_cell_type_and_across_types_is_fitted_apart(rng):
    fitted = of_donors(rng).fitted()
    assert fitted.within.share == pytest.approx(1.0, abs=0.05)
    assert fitted.within.bandwidth <= 0.2
    assert fitted.across.share < 0.5


def test_another_donor_of_a_seen_cell_type_is_expected_what_donors_of_the_type_do_and_a_new_type_little(rng):
    changes = of_donors(rng)
    fitted, own = changes.fitted(), changes.changes[0].astype(float)
    similarity = changes.similarity(changes.means[0])
    known = without(fitted, [0]).expected(1, similarity, cell_type="type_0")
    new = without(fitted, [0, 1, 2]).expected(1, similarity, cell_type="type_0")
    assert np.linalg.norm(known - own) < 0.1 * np.linalg.norm(own)
    assert np.linalg.norm(new) < 0.5 * np.linalg.norm(own)
    # to leave the context out is to leave its cell type out
    np.testing.assert_allclose(fitted.expected(1, similarity, 0, left_out=True), new)


def test_where_contexts_differ_by_noise_alone_each_is_expected_what_all_are(rng):
    one, noise = rng.normal(size=40), 0.5
    noisy = [one + noise * rng.normal(size=40) for _ in range(200)]
    changes = made([(1, i) for i in range(200)], noisy, means=rng.normal(size=(200, 40)), noise=[noise**2 * 40] * 200)
    fitted = changes.fitted()
    assert fitted.apart < 0.05 * noise**2 * 40
    found = [fitted.expected(1, fitted.similarity(fitted.means[i]), i) for i in range(200)]
    apart = np.linalg.norm(np.array(found) - one, axis=1)
    # of noise that stands out there is little
    assert np.median(apart) < 0.1 * noise * np.sqrt(40)
    assert np.sqrt(np.square(apart).mean()) < 0.25 * noise * np.sqrt(40)


def test_a_gene_that_does_not_stand_out_has_at_most_the_share_of_its_departure_by_which_contexts_are_apart(two):
    similarity = np.array([0.9, 0.4])
    w, mean, shared = by_hand(two, similarity)
    beyond, noise = two.changes[0] - mean, (1 - w[0]) ** 2 * two.noise[0] + w[1] ** 2 * two.noise[1]
    for apart, most in ((0.0, 0.0), (1e-3, 1e-3 / (1e-3 + noise.sum())), (np.inf, 1.0)):
        found = replace(two, apart=apart).expected(1, similarity, 0)
        np.testing.assert_allclose(found, shared + beyond * trusted(beyond, noise, most))


# all of them


def test_the_mean_change_of_a_label_is_that_of_its_contexts_by_their_cells(two):
    pooled = two.pooled(3)
    expected = [[0, 0], [2.0 * 30 / 120, 4.0 * 90 / 120], [9, 9], [0, 0]]
    np.testing.assert_allclose(pooled, expected, rtol=1e-6)
    assert pooled.dtype == np.float32


@pytest.mark.parametrize("bandwidth", [0.05, np.inf])
def test_arrays_and_facts_are_the_changes_again(two, bandwidth):
    two = replace(
        two, apart=0.3 if bandwidth < 1 else np.inf, within=Carried(bandwidth, 0.8), contexts=(("B", "d1"), ("T", ""))
    )
    again = Changes.of_arrays(two.arrays(), json.loads(json.dumps(two.facts())))
    assert again.contexts == two.contexts
    assert (again.within, again.across, again.apart) == ((bandwidth, 0.8), (0.5, 0.8), two.apart)
    for name, values in two.arrays().items():
        np.testing.assert_array_equal(again.arrays()[name], values)
    np.testing.assert_array_equal(again.expected(1, np.ones(2), 0), two.expected(1, np.ones(2), 0))


def test_changes_of_labels_are_theirs_in_every_context(rng):
    shifts = rng.normal(size=(4, 5)).astype(np.float32)
    changes = Changes.of_labels(shifts)
    similarity = changes.similarity(rng.normal(size=5))
    for label in range(4):
        for own, left_out in ((0, False), (0, True), (None, False)):
            found = changes.expected(label, similarity, own, left_out=left_out)
            np.testing.assert_allclose(found, shifts[label], rtol=1e-6)


@pytest.mark.parametrize(("most", "expected"), [(8, ["d1", "d2"]), (7, [""]), (4, [""])])
def test_contexts_are_joined_over_assay_batches_where_conditions_are_too_many(monkeypatch, most, expected):
    monkeypatch.setattr(module, "MOST_CONDITIONS", most)
    groups = [(label, kind, batch) for label in (1, 2) for kind in ("B", "T") for batch in ("d1", "d2")]
    found = joined(groups)
    assert [kind for kind, _ in found] == [kind for _, kind, _ in groups]
    assert sorted({batch for _, batch in found}) == expected


def test_contexts_are_one_where_even_those_of_cell_types_are_too_many(monkeypatch):
    monkeypatch.setattr(module, "MOST_CONDITIONS", 3)
    groups = [(label, kind, "d") for label in (1, 2, 3) for kind in ("B", "T")]
    assert joined(groups) == [("", "")] * 6
    # and there is nothing coarser
    monkeypatch.setattr(module, "MOST_CONDITIONS", 1)
    assert joined(groups) == [("", "")] * 6
