r"""Differential expression by the Wilcoxon rank-sum test, and how well a prediction finds it.

Per gene, perturbed cells x_1..x_n against control cells y_1..y_m, ties at their mean rank:

    U = #{(i, j): x_i > y_j} + #{(i, j): x_i = y_j} / 2,    effect = U / (n m) - 1/2 in [-1/2, 1/2],

with the two-sided p-value of the normal approximation, corrected for ties and continuity (the numbers of
scipy.stats.mannwhitneyu, here with each side sorted once for any number of tests), and Benjamini-Hochberg over the
genes at 0.05. The test is run on the predicted cells and on the observed cells, each against the same control cells; a
gene is *true* where the observed test is significant.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import false_discovery_control, rankdata

from perturbdiff.metrics.distances import Matrix, Vector

LEVEL = 0.05
"""The false discovery rate at which a gene counts as differentially expressed."""


@dataclass(frozen=True)
class RankSum:
    """The test of every gene: two-sided p-values, and effects in [-1/2, 1/2] (above 0: higher if perturbed)."""

    p_value: Vector
    effect: Vector

    @cached_property
    def significant(self) -> NDArray[np.bool_]:
        """True for the genes that Benjamini-Hochberg keeps at `LEVEL`."""
        kept: NDArray[np.bool_] = self.p_adjusted <= LEVEL
        return kept

    @cached_property
    def p_adjusted(self) -> Vector:
        """The p-values after Benjamini-Hochberg, the smallest false discovery rates that keep each gene."""
        return np.asarray(false_discovery_control(self.p_value, method="bh"), dtype=np.float64)

    @cached_property
    def evidence(self) -> Vector:
        """The ranking of genes: -log10 p; where p underflows to 0, above all others by the size of the effect."""
        with np.errstate(divide="ignore"):
            score = -np.log10(self.p_value) + 0.0
        return np.where(self.p_value > 0, score, 400.0 + np.abs(self.effect))

    def without(self, genes: NDArray[np.int64]) -> "RankSum":
        """The tests of the other genes, `genes` being places; false discoveries are counted among the other genes."""
        return RankSum(np.delete(self.p_value, genes), np.delete(self.effect, genes)) if genes.size else self


@dataclass(frozen=True)
class Sorted:
    """Cells [n, genes] as one ascending list of (gene, value): what a test of ranks needs of either side.

    Attributes:
        keys: [genes * n], gene in the upper 32 bits, the float32 value's place among all float32 in the lower.
        n_cells: n.
        n_genes: the number of genes.
    """

    keys: NDArray[np.uint64]
    n_cells: int
    n_genes: int

    @classmethod
    def of(cls, cells: Matrix) -> "Sorted":
        """Sort each gene's values, in float32."""
        values = np.ascontiguousarray(cells.T, dtype=np.float32) + np.float32(0)  # -0 becomes 0
        values.sort(axis=1)
        bits = values.view(np.uint32)
        # the bits of floats ascend with the value where it is positive and descend where it is negative
        places = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
        genes = np.arange(values.shape[0], dtype=np.uint64) << np.uint64(32)
        return cls((places + genes[:, None]).ravel(), cells.shape[0], cells.shape[1])

    @cached_property
    def values(self) -> NDArray[np.int64]:
        """Where each different value of each gene begins in `keys`."""
        different = np.ones(self.keys.size, dtype=bool)
        np.not_equal(self.keys[1:], self.keys[:-1], out=different[1:])
        return np.flatnonzero(different)

    @cached_property
    def different(self) -> NDArray[np.uint64]:
        """Each different value of each gene, as it is in `keys`."""
        return self.keys[self.values]

    @cached_property
    def repeats(self) -> NDArray[np.int64]:
        """How many cells have each different value."""
        return np.diff(self.values, append=self.keys.size)

    @cached_property
    def ties(self) -> Vector:
        """The sum over a gene's values of t^3 - t, t cells having the value [genes]."""
        return self.sums(_cubic(self.repeats))

    def sums(self, of_values: NDArray[Any]) -> Vector:
        """Sums of something over each gene's different values [genes]."""
        return np.bincount(self.values // self.n_cells, of_values, minlength=self.n_genes)


def rank_sum(perturbed: Matrix | Sorted, control: Matrix | Sorted) -> RankSum:
    """Test every gene of `perturbed` [n, genes] against `control` [m, genes]; a gene constant over both has p = 1."""
    x, y = (cells if isinstance(cells, Sorted) else Sorted.of(cells) for cells in (perturbed, control))
    places = np.searchsorted(y.different, x.different)  # among the different values of the control cells
    below = np.append(y.values, y.keys.size)[places]
    same = np.append(y.different, np.uint64(0))[places] == x.different
    tied = np.where(same, np.append(y.repeats, 0)[places], 0)
    first = x.values // x.n_cells * y.n_cells  # where the gene begins among the control cells
    wins = x.sums(x.repeats * (2 * (below - first) + tied)) / 2
    ties = y.ties + x.sums(_cubic(tied + x.repeats) - _cubic(tied))
    n_pairs, n_cells = x.n_cells * y.n_cells, x.n_cells + y.n_cells
    variance = n_pairs / 12 * (n_cells + 1 - ties / (n_cells * (n_cells - 1)))
    excess = np.maximum(wins, n_pairs - wins) - n_pairs / 2 - 0.5
    varies = variance > 1e-9 * n_pairs
    score = excess / np.sqrt(np.where(varies, variance, 1.0))
    p_value = np.where(varies, np.minimum(2 * ndtr(-score), 1.0), 1.0)
    return RankSum(p_value=p_value, effect=wins / n_pairs - 0.5)


def _cubic(count: NDArray[np.int64]) -> Vector:
    number = count.astype(np.float64)
    return number**3 - number


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
