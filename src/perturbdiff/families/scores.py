r"""How well several drawn populations P_1 .. P_K stand for an observed one, Q: a family of distributions is judged.

With d(P, Q) = |mu_P - mu_Q|, the distance of two mean embeddings in the Hilbert space of the energy kernel (the root of
the energy distance of all pairs of cells),

    family score    mean_i d(P_i, Q) - mean_{i != j} d(P_i, P_j) / 2

is the energy score of the K points: on average over Q it is least for the family that Q is drawn from (squared
distances would see its mean alone). One population K times over has the score d(P, Q).

    coverage        the share of genes whose observed mean lies within the central interval of the K drawn means
    ranks           of a number of Q among those of the K, from 0 to 1; uniform where Q might be one of them
    expected        the rank of d(Q, r) among the d(P_i, r) for a random point r (TARP: Lemos and others 2023)
    variance ratio  of the strengths of the drawn populations of all donors over that of the observed donors, the
                    sampling of cells taken out of both

Intervals are those of `intervals`. The strength of a population is its mean change along a direction s,
<mean(P) - c, s> / |s|^2; its spread the mean over genes of the standard deviation of its cells; its responders are the
cells of which that is above a half. All populations have as many cells as the observed one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from perturbdiff.families.intervals import interval
from perturbdiff.metrics.distances import Matrix, Vector
from perturbdiff.metrics.ours import Metric

LEVELS = (0.5, 0.8, 0.95)
"""Of the intervals."""

RANKS = ("strength", "spread", "responders")
"""The numbers of a population whose ranks are told."""

FEWEST_DONORS = 3
"""Of so many observed donors the variance says something."""


def _named(level: float) -> str:
    return f"{100 * level:.0f}"


FAMILY_METRICS = (
    Metric(
        "family_score",
        "lower",
        "mean distance of the drawn populations to the observed one, less half of that among them (an energy score)",
        "no lower end; least for the family that the observed population is drawn from",
    ),
    *(
        Metric(f"{of}coverage_{_named(level)}", "none", f"share of {genes} whose mean is in the {level:.0%} interval")
        for of, genes in (("", "genes"), ("de_", "differentially expressed genes"))
        for level in LEVELS
    ),
    Metric("interval_width", "none", "mean width over genes of the 95% interval of means, log1p counts per 10^4"),
    *(Metric(f"rank_of_{name}", "none", f"rank of the observed {name} among those drawn", "0 to 1") for name in RANKS),
    Metric("expected_coverage", "none", "rank of the observed distance to a random point (TARP)", "0 to 1"),
)

STRENGTHS = {
    "strength_low": "low end of the 95% interval",
    "strength_lower": "lower quartile",
    "strength_median": "median",
    "strength_upper": "upper quartile",
    "strength_high": "high end of the 95% interval",
}
"""Quantiles of the drawn strengths."""

STRENGTH_METRICS = (
    Metric("strength_observed", "none", "strength of the observed response, 1 being that of the trained donors' mean"),
    *(Metric(name, "none", f"{what} of the drawn strengths") for name, what in STRENGTHS.items()),
)
"""Of one condition, along the mean change of the donors that trained, or of the judged ones."""

TYPE_METRICS = (
    Metric(
        "strength_variance_ratio",
        "near 1",
        "variance of the strength of drawn populations over that of observed donors, sampling of cells taken out",
        "0 (all alike) upwards",
    ),
)
"""Of all donors and perturbations of a cell type together."""

ALL_METRICS = (*FAMILY_METRICS, *STRENGTH_METRICS, *TYPE_METRICS)


def apart(populations: Sequence[Matrix]) -> Matrix:
    """d(P, Q) of all pairs of populations [K, K], each of cells [n, genes] with the same n."""
    stacked = np.stack(populations).astype(np.float64)
    k, n, n_genes = stacked.shape
    stacked -= stacked.mean(axis=(0, 1))
    flat = stacked.reshape(-1, n_genes)
    squares = np.square(flat).sum(axis=1)
    means = np.empty((k, k))
    for i, own in enumerate(stacked):
        between = np.maximum(squares[i * n : (i + 1) * n, None] + squares - 2 * (own @ flat.T), 0.0)
        means[i] = np.sqrt(between).reshape(n, k, n).mean(axis=(0, 2))
    within = np.diag(means)
    return np.sqrt(np.maximum(means - (within[:, None] + within) / 2, 0.0))


def family_score(to_observed: Vector, among: Matrix) -> float:
    """The energy score of K drawn points.

    Args:
        to_observed: d(P_i, Q) [K].
        among: d(P_i, P_j) [K, K], 0 on the diagonal; all 0 of one population.
    """
    k = len(to_observed)
    between = among.sum() / (k * (k - 1)) if k > 1 else 0.0
    return float(to_observed.mean() - between / 2)


def rank(observed: float, drawn: Vector, rng: np.random.Generator) -> float:
    """The share of drawn numbers below the observed one; where they are equal chance decides."""
    return float(((drawn < observed).sum() + rng.integers((drawn == observed).sum() + 1)) / len(drawn))


class Projected(NamedTuple):
    """The cells of a population along a direction s: of each, <x - c, s> / |s|^2."""

    cells: Vector

    @property
    def strength(self) -> float:
        """The mean."""
        return float(self.cells.mean())

    @property
    def noise(self) -> float:
        """The variance that the mean has because cells are drawn."""
        n = len(self.cells)
        return float(self.cells.var(ddof=1) / n) if n > 1 else 0.0


def projected(cells: Matrix, control: Vector, direction: Vector) -> Projected:
    """Cells along a direction."""
    square = float(direction @ direction)
    scaled = direction / square if square > 0 else direction
    return Projected(np.asarray((cells - control) @ scaled, dtype=np.float64))


def scores(
    drawn: Sequence[Matrix],
    observed: Matrix,
    control: Vector,
    significant: NDArray[np.bool_],
    rng: np.random.Generator,
    *,
    cells_of_distances: int,
) -> dict[str, float]:
    """`FAMILY_METRICS` of one condition.

    Args:
        drawn: K populations, each with as many cells as the observed one [n, genes].
        observed: the observed population [n, genes].
        control: the mean of its control cells [genes].
        significant: which genes are differentially expressed [genes].
        rng: breaks ties, and draws the random point.
        cells_of_distances: so many cells of each population, at most, enter distances.
    """
    every = [observed, *drawn]
    means = np.stack([cells.mean(axis=0, dtype=np.float64) for cells in every])
    away = apart([cells[:cells_of_distances] for cells in every])
    found = {"family_score": family_score(away[0, 1:], away[1:, 1:])}
    for name, genes in (("", np.ones(len(control), dtype=np.bool_)), ("de_", significant)):
        for level in LEVELS:
            low, high = interval(means[1:, genes], level)
            inside = (means[0, genes] >= low) & (means[0, genes] <= high)
            found[f"{name}coverage_{_named(level)}"] = float(inside.mean()) if inside.size else float("nan")
    low, high = interval(means[1:], LEVELS[-1])
    found["interval_width"] = float((high - low).mean())
    # a direction that is the same whichever of the populations is the observed one
    direction = (means - control).mean(axis=0)
    along = [projected(cells, control, direction) for cells in every]
    numbers = {
        "strength": np.array([one.strength for one in along]),
        "spread": np.array([cells.std(axis=0, dtype=np.float64).mean() for cells in every]),
        "responders": np.array([(one.cells > 0.5).mean() for one in along]),
    }
    found |= {f"rank_of_{name}": rank(own[0], own[1:], rng) for name, own in numbers.items()}
    point = rng.uniform(means.min(axis=0), means.max(axis=0))
    from_point = np.linalg.norm(means - point, axis=1)
    return found | {"expected_coverage": rank(from_point[0], from_point[1:], rng)}


def strengths(drawn: Sequence[Projected], observed: Projected) -> dict[str, float]:
    """`STRENGTH_METRICS` of one condition."""
    values = np.array([one.strength for one in drawn])
    (low, high), (lower, upper) = (interval(values, level) for level in (0.95, 0.5))
    numbers = (float(low), float(lower), float(np.median(values)), float(upper), float(high))
    return {"strength_observed": observed.strength, **dict(zip(STRENGTHS, numbers, strict=True))}


class Between(NamedTuple):
    """The variances of strengths of one perturbation between populations, the sampling of cells taken out of both.

    Attributes:
        drawn: of the drawn populations of all donors.
        observed: of the observed donors.
    """

    drawn: float
    observed: float

    @classmethod
    def of(cls, drawn: Sequence[Sequence[Projected]], observed: Sequence[Projected]) -> "Between":
        """Of the drawn populations of each donor, and of the donors; NaN of fewer than `FEWEST_DONORS`."""
        if len(observed) < FEWEST_DONORS:
            return cls(float("nan"), float("nan"))
        return cls(max(_variance([one for own in drawn for one in own]), 0.0), _variance(observed))


def strength_variance_ratio(perturbations: Sequence[Between]) -> float:
    """The variances of strengths of some perturbations together, drawn over observed; NaN where none is observed."""
    drawn, observed = (np.array(column) for column in zip(*perturbations, strict=True))
    there = np.isfinite(observed)
    above, below = float(drawn[there].sum()), float(observed[there].sum())
    return above / below if below > 0 else float("nan")


def _variance(populations: Sequence[Projected]) -> float:
    strengths = np.array([one.strength for one in populations])
    return float(strengths.var(ddof=1) - np.mean([one.noise for one in populations]))
