r"""Differential expression by the Wilcoxon rank-sum test, and how well a prediction finds it.

Per gene, perturbed cells x_1..x_n against control cells y_1..y_m, ties at their mean rank:

    U = #{(i, j): x_i > y_j} + #{(i, j): x_i = y_j} / 2,    effect = U / (n m) - 1/2 in [-1/2, 1/2],

with the two-sided p-value of the normal approximation, corrected for ties and continuity
(scipy.stats.mannwhitneyu), and Benjamini-Hochberg over the genes at 0.05. The test is run on the predicted
cells and on the observed cells, each against the same control cells; a gene is *true* where the observed test
is significant.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import false_discovery_control, mannwhitneyu, rankdata

type Matrix = NDArray[Any]
type Vector = NDArray[np.float64]

LEVEL = 0.05
"""The false discovery rate at which a gene counts as differentially expressed."""

_VALUES_AT_ONCE = 2**22


@dataclass(frozen=True)
class RankSum:
    """The test of every gene: two-sided p-values, and effects in [-1/2, 1/2] (above 0: higher if perturbed)."""

    p_value: Vector
    effect: Vector

    @cached_property
    def significant(self) -> NDArray[np.bool_]:
        """True for the genes that Benjamini-Hochberg keeps at `LEVEL`."""
        kept: NDArray[np.bool_] = false_discovery_control(self.p_value, method="bh") <= LEVEL
        return kept

    @cached_property
    def evidence(self) -> Vector:
        """The ranking of genes: -log10 p; where p underflows to 0, above all others by the size of the effect."""
        with np.errstate(divide="ignore"):
            score = -np.log10(self.p_value) + 0.0
        return np.where(self.p_value > 0, score, 400.0 + np.abs(self.effect))


def rank_sum(perturbed: Matrix, control: Matrix) -> RankSum:
    """Test every gene of `perturbed` [n, genes] against `control` [m, genes]; a gene constant over both has p = 1."""
    n_genes = perturbed.shape[1]
    n_pairs = perturbed.shape[0] * control.shape[0]
    p_value, effect = np.empty(n_genes), np.empty(n_genes)
    step = max(1, _VALUES_AT_ONCE // (perturbed.shape[0] + control.shape[0]))
    for start in range(0, n_genes, step):
        genes = slice(start, start + step)
        test = mannwhitneyu(_by_gene(perturbed[:, genes]), _by_gene(control[:, genes]), axis=1, method="asymptotic")
        p_value[genes] = np.where(np.isnan(test.pvalue), 1.0, test.pvalue)
        effect[genes] = test.statistic / n_pairs - 0.5
    return RankSum(p_value=p_value, effect=effect)


def agreement(predicted: RankSum, observed: RankSum) -> dict[str, float]:
    """Say how well the predicted test finds the observed one.

    `de_auroc`: over genes, the AUROC of the predicted evidence for the true genes (1/2 is chance), NaN where no
    gene or every gene is true. `de_overlap`: with k true genes, the share of them among the predicted top k
    (ties at the border count by their expected share), NaN where k = 0. `de_share_predicted`,
    `de_share_observed`: shares of genes significant.
    """
    return {
        "de_auroc": auroc(predicted.evidence, observed.significant),
        "de_overlap": overlap_at_k(predicted.evidence, observed.significant),
        "de_share_predicted": float(predicted.significant.mean()),
        "de_share_observed": float(observed.significant.mean()),
    }


def auroc(score: Vector, is_true: NDArray[np.bool_]) -> float:
    """The probability that a true item scores above a false one (ties 1/2); NaN where either kind is missing."""
    n_true = int(is_true.sum())
    n_false = is_true.size - n_true
    if n_true == 0 or n_false == 0:
        return float("nan")
    rank_of_true = float(rankdata(score)[is_true].sum())
    return (rank_of_true - n_true * (n_true + 1) / 2) / (n_true * n_false)


def overlap_at_k(score: Vector, is_true: NDArray[np.bool_]) -> float:
    """The share of the k true items among the k highest scores, expected over the order of ties; NaN where k = 0."""
    k = int(is_true.sum())
    if k == 0:
        return float("nan")
    border = np.partition(score, score.size - k)[score.size - k]
    above, tied = score > border, score == border
    share_of_tied = (k - int(above.sum())) / int(tied.sum())
    return float((is_true & above).sum() + share_of_tied * (is_true & tied).sum()) / k


def _by_gene(cells: Matrix) -> Vector:
    return np.ascontiguousarray(cells.T, dtype=np.float64)
