"""What is trusted of changes, by themselves and in sums: closed forms, limits, and truths that are known."""

import numpy as np
import pytest

from perturbdiff.cells.evidence import STANDS_OUT, Evidence, together, trusted


def test_genes_that_noise_may_explain_keep_the_share_that_all_of_them_prove_and_others_their_own(rng):
    n_genes = 50
    noise = rng.uniform(0.5, 2.0, size=n_genes)
    change = 1.2 * np.sqrt(noise) * np.sign(rng.normal(size=n_genes))
    border = np.sqrt(STANDS_OUT * np.log(n_genes) * noise)
    change[7], change[8] = 1.001 * border[7], -0.999 * border[8]
    found = trusted(change, noise)
    rest = np.delete(np.arange(n_genes), 7)
    np.testing.assert_allclose(found[rest], 1 - noise[rest].sum() / np.square(change[rest]).sum())
    assert found[7] == pytest.approx(1 - 1 / (STANDS_OUT * np.log(n_genes) * 1.001**2))
    capped = trusted(change, noise, 0.1)
    np.testing.assert_array_equal(capped[rest], 0.1)
    assert capped[7] == found[7]


def test_what_stands_out_says_nothing_of_other_genes(rng):
    noise, change = np.ones(100), 0.9 * np.sign(rng.normal(size=100))
    change[0] = 50.0  # a knocked-out gene, by itself far more than all noise
    found = trusted(change, noise)
    assert found[0] == pytest.approx(1 - 1 / 2500)
    assert not found[1:].any()


def test_rows_are_trusted_each_by_itself(rng):
    change, noise = rng.normal(size=(5, 40)) * 3, rng.uniform(size=(5, 40))
    np.testing.assert_allclose(trusted(change, noise), [trusted(*row) for row in zip(change, noise, strict=True)])


def test_without_noise_all_is_trusted_and_a_change_of_nothing_stays_nothing():
    np.testing.assert_array_equal(trusted(np.array([0.0, 1e-9, -3.0]), np.zeros(3))[1:], 1)
    for noise in (np.zeros(3), np.ones(3)):
        assert not (np.zeros(3) * trusted(np.zeros(3), noise)).any()


def test_noise_alone_seldom_stands_out_and_what_is_kept_of_it_is_small(rng):
    change = rng.normal(size=(400, 200))
    found = change * trusted(change, np.ones_like(change))
    assert (np.square(change) > STANDS_OUT * np.log(200)).any(axis=1).mean() < 0.05
    assert np.square(found).sum() < 0.02 * np.square(change).sum()


def test_a_few_strong_genes_and_many_weak_ones_are_both_predicted_better_than_by_one_share(rng):
    true = np.zeros((300, 100))
    true[:, :2] = 8.0
    change = true + rng.normal(size=true.shape)
    one = np.maximum(0, 1 - 100 / np.square(change).sum(axis=1, keepdims=True))
    errors = [np.square(b * change - true).mean() for b in (1.0, one, trusted(change, np.ones_like(change)))]
    assert errors[2] < 0.2 * errors[1] < 0.2 * errors[0]


# sums


def evidence(rng, n_genes=30, apart=np.inf):
    mean, beyond = rng.normal(size=(2, n_genes))
    noise, noise_beyond = rng.uniform(0.1, 1.0, size=(2, n_genes))
    return Evidence(mean, noise, beyond, noise_beyond, apart)


def test_a_weighted_sum_is_trusted_as_a_sum(rng):
    one, other = evidence(rng), evidence(rng)
    found = together(30, [(0.5, one), (-2.0, other)])
    mean, beyond = 0.5 * one.mean - 2 * other.mean, 0.5 * one.beyond - 2 * other.beyond
    noise, noise_beyond = (0.25 * one[i] + 4 * other[i] for i in (1, 3))
    np.testing.assert_allclose(found, mean * trusted(mean, noise) + beyond * trusted(beyond, noise_beyond))
    np.testing.assert_array_equal(together(30, []), np.zeros(30))
    np.testing.assert_array_equal(together(30, [(1.0, Evidence.none(30))]), np.zeros(30))


def test_the_scale_of_a_sum_is_no_part_of_what_is_trusted(rng):
    for apart in (0.0, 2.0, np.inf):
        one = evidence(rng, apart=apart)
        np.testing.assert_allclose(together(30, [(-3.0, one)]), -3 * together(30, [(1.0, one)]))


def test_weak_changes_in_one_direction_prove_more_together_than_each_by_itself(rng):
    true = 0.6 * np.sign(rng.normal(size=200))
    errors = {"each": 0.0, "together": 0.0, "none": 0.0}
    for _ in range(50):
        parts = []
        for _ in range(4):
            mean = true + rng.normal(size=200)
            parts.append((1.0, Evidence.none(200)._replace(mean=mean, noise=np.ones(200))))
        errors["each"] += np.square(sum(together(200, [part]) for part in parts) - 4 * true).sum()
        errors["together"] += np.square(together(200, parts) - 4 * true).sum()
        errors["none"] += np.square(4 * true).sum()
    assert errors["together"] < 0.75 * errors["each"] < 0.75 * errors["none"]
