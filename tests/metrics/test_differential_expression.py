"""The rank-sum test against scipy's, one gene at a time, and the agreement of two tests against closed forms."""

import math

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from perturbdiff.metrics.differential_expression import RankSum, Sorted, agreement, auroc, overlap_at_k, rank_sum


def _tied(rng, n_cells, n_genes, rate):
    return np.log1p(rng.poisson(rate, (n_cells, n_genes))).astype(np.float32)


@pytest.mark.parametrize("cells", [(31, 44), (2, 2), (1, 5), (60, 3)])
def test_rank_sum_is_scipys_for_every_gene_with_ties(cells):
    rng = np.random.default_rng(0)
    perturbed, control = _tied(rng, cells[0], 8, 0.9), _tied(rng, cells[1], 8, 0.5)
    test = rank_sum(perturbed, control)
    for gene in range(8):
        truth = mannwhitneyu(perturbed[:, gene].astype(float), control[:, gene].astype(float), method="asymptotic")
        assert test.p_value[gene] == pytest.approx(1.0 if np.isnan(truth.pvalue) else truth.pvalue, rel=1e-10)
        assert test.effect[gene] == pytest.approx(truth.statistic / (cells[0] * cells[1]) - 0.5, abs=1e-12)


def test_rank_sum_knows_signs_and_takes_minus_zero_for_zero():
    rng = np.random.default_rng(4)
    perturbed, control = rng.normal(size=(20, 6)).astype(np.float32), rng.normal(size=(25, 6)).astype(np.float32)
    perturbed[:5, 0], control[:9, 0] = -0.0, 0.0
    truth = mannwhitneyu(perturbed.astype(float), control.astype(float), axis=0, method="asymptotic")
    test = rank_sum(Sorted.of(perturbed), Sorted.of(control))
    assert test.p_value == pytest.approx(truth.pvalue, rel=1e-9)
    assert test.effect == pytest.approx(truth.statistic / 500 - 0.5, abs=1e-12)


def test_rank_sum_does_not_depend_on_the_order_of_cells():
    rng = np.random.default_rng(5)
    perturbed, control = _tied(rng, 20, 5, 0.8), _tied(rng, 30, 5, 0.5)
    again = rank_sum(rng.permutation(perturbed), rng.permutation(control))
    assert again.p_value.tolist() == rank_sum(perturbed, control).p_value.tolist()


def test_the_normal_approximation_is_close_to_the_exact_test_without_ties():
    rng = np.random.default_rng(1)
    perturbed, control = rng.normal(0.5, 1.0, (12, 5)), rng.normal(0.0, 1.0, (15, 5))
    exact = mannwhitneyu(perturbed, control, axis=0, method="exact").pvalue
    assert rank_sum(perturbed, control).p_value == pytest.approx(exact, abs=0.01)


def test_a_gene_that_is_constant_everywhere_has_p_one_and_no_effect():
    test = rank_sum(np.zeros((4, 2), dtype=np.float32), np.zeros((5, 2), dtype=np.float32))
    assert test.p_value.tolist() == [1.0, 1.0]
    assert test.effect.tolist() == [0.0, 0.0]
    assert test.evidence.tolist() == [0.0, 0.0]


def test_identical_cells_on_both_sides_give_no_differential_expression():
    cells = _tied(np.random.default_rng(2), 50, 6, 1.0)
    assert not rank_sum(cells, cells).significant.any()


def test_benjamini_hochberg_keeps_the_genes_of_its_step_up_rule():
    p_value = np.array(
        [0.001, 0.012, 0.03, 0.04, 0.5]
    )  # thresholds 0.01, 0.02, 0.03, 0.04, 0.05: the fourth is the last kept
    assert RankSum(p_value, np.zeros(5)).significant.tolist() == [True, True, True, True, False]


def test_adjusted_p_values_are_those_of_benjamini_and_hochberg():
    p_value = np.array([0.01, 0.02, 0.03, 0.5])
    assert RankSum(p_value, np.zeros(4)).p_adjusted == pytest.approx([0.04, 0.04, 0.04, 0.5])


def test_genes_whose_p_underflows_are_ranked_by_the_size_of_their_effect():
    test = RankSum(np.array([1e-300, 0.0, 0.0, 0.5]), np.array([0.3, 0.4, -0.5, 0.0]))
    assert np.argsort(test.evidence).tolist() == [3, 0, 1, 2]


def test_auroc_has_its_closed_form_and_counts_a_tie_as_half():
    is_true = np.array([True, True, False, False])
    assert auroc(np.array([4.0, 3.0, 2.0, 1.0]), is_true) == 1.0
    assert auroc(np.array([1.0, 2.0, 3.0, 4.0]), is_true) == 0.0
    assert auroc(np.array([4.0, 2.0, 3.0, 1.0]), is_true) == 0.75
    assert auroc(np.ones(4), is_true) == 0.5


def test_auroc_and_overlap_are_undefined_without_true_genes():
    assert math.isnan(auroc(np.arange(3.0), np.zeros(3, dtype=bool)))
    assert math.isnan(auroc(np.arange(3.0), np.ones(3, dtype=bool)))
    assert math.isnan(overlap_at_k(np.arange(3.0), np.zeros(3, dtype=bool)))


def test_overlap_at_k_is_the_share_of_true_genes_in_the_top_and_its_expectation_under_ties():
    is_true = np.array([True, True, False, False])
    assert overlap_at_k(np.array([4.0, 1.0, 3.0, 2.0]), is_true) == 0.5
    assert overlap_at_k(np.array([4.0, 3.0, 1.0, 2.0]), is_true) == 1.0
    assert overlap_at_k(np.ones(4), is_true) == 0.5
    assert overlap_at_k(np.array([2.0, 1.0, 1.0, 1.0]), is_true) == pytest.approx((1 + 1 / 3) / 2)


def test_a_test_agrees_perfectly_with_itself():
    rng = np.random.default_rng(3)
    perturbed, control = _tied(rng, 80, 40, 1.0), _tied(rng, 90, 40, 1.0)
    perturbed[:, :10] += 1.0
    test = rank_sum(perturbed, control)
    found = agreement(test, test)
    assert found["de_auroc"] == found["de_overlap"] == 1.0
    assert found["de_share_predicted"] == found["de_share_observed"] == pytest.approx(0.25, abs=0.06)
