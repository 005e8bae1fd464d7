r"""How populations of one condition differ by what nobody observed, as the contexts of training tell it.

A trained condition k departs from what the others of its perturbation say of it, ``e_k = S_k - s_-k``, by what its
donor has of its own and by sampling noise. Along the response, and beside it,

    e_k = a_k s_-k + r_k,     a_k = <e_k, s_-k> / |s_-k|^2,     nu_k = D sum_g V_kg s_-kg^2 / |s_-k|^4
    tau^2:                    sum_k a_k^2 / (nu_k + tau^2) = n                              (Paule and Mandel)
    delta_k = a_k (tau^2 / (tau^2 + nu_k))^(1/2) s + c r_k,     c_g^2 = max(0, 1 - sum_k V_kg / sum_k r_kg^2)

so that the delta_k of a perturbation, less their mean, vary as donors do. tau^2 is that of the perturbation, which
counts by its conditions, beside that of all, which counts as `FREEDOM` conditions; where strengths vary less than that,
what they lack is drawn beside them, from a normal law. D, the design effect, is by how much the noise along the
response exceeds that of independent genes: half of what halves of a condition's cells differ by is such noise.

One donor's worth of what is hidden is a draw of the smoothed bootstrap (Silverman and Young 1987),

    delta = (1 - h^2)^(1/2) delta_k* + h sum_k z_k delta_k / n^(1/2),     h = (4 / 3n)^(1/5)

of n conditions, with k* any of them and z normal: the variance is that of the delta_k for every h, and donors that come
in two kinds are drawn in two kinds where there are enough of them. One draw takes the same donor k* and the same z for
every condition of an assay batch. Where training has seen the condition o itself, what it was measured as tells of it:
with t = tau^2 / (tau^2 + nu_o),

    s + delta = (1 + a_o t) s_-o + c^2 r_o + (1 - t)^(1/2) [along] + (1 - c^2)^(1/2) [beside]

and the two parts of a draw as above: the posterior of a normal law, in which donors that are well known hardly differ.
A population of N cells has beside it what its cells, which respond together and are drawn apart, lack of the sampling
noise along the response: (D - 1) nu_k n_k / N, n_k the cells of condition k and nu without D.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from perturbdiff.cells.contexts import Changes, Places, Vector
from perturbdiff.cells.moments import no_noise

FREEDOM = 4.0
"""So many conditions' worth of all perturbations' variance goes into that of one."""

LAWS_HELD = 64
"""Laws of a perturbation in a cell type that need not be made again, at most."""

_HIDDEN = 0x41D
"""In the key of the random numbers of what is hidden."""


class Hidden(NamedTuple):
    """What nobody observed of one drawn population, the same for all its conditions.

    Attributes:
        which: from 0 to 1, the trained donor that it is like.
        normal: z of each context of training, and of a perturbation that no two of them have seen [contexts + 1].
        key: of further random numbers, which perturbations do not share.
    """

    which: float
    normal: Vector
    key: tuple[int, ...]

    @classmethod
    def of(cls, changes: Changes, seed: int, repeat: int, batch: str) -> "Hidden":
        """A function of the seed, of the number of the draw, and of the name of the assay batch."""
        key = (_HIDDEN, seed, repeat, crc32(batch.encode()))
        rng = np.random.default_rng(key)
        return cls(float(rng.random()), rng.standard_normal(len(changes.contexts) + 1), key)


@dataclass(frozen=True, eq=False)
class Departures:
    """How conditions of one perturbation depart from what the others say of them.

    Attributes:
        rows: the conditions that others can predict [n].
        expected: s_-k [n, genes].
        strengths: a; 0 where nothing is expected [n].
        noise: nu without the design effect; infinite where nothing is expected [n].
        of_halves: the strengths of what halves of the cells differ by [n]; None where it is not known.
    """

    rows: Places
    expected: Vector
    strengths: Vector
    noise: Vector
    of_halves: Vector | None

    def of(self, kept: NDArray[np.bool_]) -> "Departures":
        """Some of the conditions."""
        halves = None if self.of_halves is None else self.of_halves[kept]
        return Departures(self.rows[kept], self.expected[kept], self.strengths[kept], self.noise[kept], halves)


class Spread(NamedTuple):
    """How far strengths are apart between donors: tau^2, and the design effect D of their noise."""

    between: float
    effect: float


class _Law(NamedTuple):
    """Of one perturbation in a cell type.

    Attributes:
        contexts: of its conditions [n].
        strengths: of these, without noise [n].
        beside: c r [n, genes].
        lacking: the standard deviation of strength that they lack of tau.
        departures: what they were measured as.
        told: tau^2 / (tau^2 + nu), the share of each strength that is no noise [n].
        share: c^2 [genes].
        sampling: the variance of strength that one cell's worth of sampling has, but for what drawn cells have of it.
    """

    contexts: Places
    strengths: Vector
    beside: Vector
    lacking: float
    departures: Departures
    told: Vector
    share: Vector
    sampling: float


class Families:
    """What is hidden of the perturbations of training; laws are made when they are first asked for."""

    def __init__(self, changes: Changes) -> None:
        self.changes = changes
        self._law = lru_cache(LAWS_HELD)(self._made)
        self._spread = lru_cache(2)(self._of_all)

    def drawn(
        self,
        label: int,
        expected: Vector,
        hidden: Hidden,
        *,
        n_cells: int,
        cell_type: str = "",
        own: int | None = None,
    ) -> Vector:
        """The departure [genes] of a population from what is expected of it.

        Args:
            label: the number of a trained perturbation.
            expected: s [genes].
            hidden: of the population.
            n_cells: of the population.
            cell_type: of its context.
            own: the place of its context, where training has seen it.
        """
        law = self._law(label, cell_type)
        n = len(law.contexts)
        weights = np.zeros(n)
        if n:
            h = (4 / (3 * n)) ** 0.2
            weights = h * hidden.normal[law.contexts] / np.sqrt(n)
            weights[min(int(hidden.which * n), n - 1)] += np.sqrt(max(0.0, 1 - h * h))
            weights -= weights.mean()
        strength, beside = float(weights @ law.strengths) + law.lacking * hidden.normal[-1], weights @ law.beside
        chance = np.random.default_rng((*hidden.key, label)).standard_normal() * np.sqrt(law.sampling / n_cells)
        seen = np.flatnonzero(law.contexts == (-1 if own is None else own))
        if len(seen):
            k = int(seen[0])
            of_others, known = law.departures.expected[k], law.told[k]
            centre = of_others * (1 + law.departures.strengths[k] * known) + np.sqrt(law.share) * law.beside[k]
            spread = (strength * np.sqrt(1 - known) + chance) * of_others + beside * np.sqrt(1 - law.share)
            return np.asarray(centre + spread - expected)
        if own is not None:
            strength *= np.sqrt(1 - self._told_of(label, expected, own, law))
        return np.asarray((strength + chance) * expected + beside)

    def _told_of(self, label: int, expected: Vector, own: int, law: "_Law") -> float:
        """What a context that no other one tells of says of its own strength: 1 less the share of noise in it."""
        rows = self.changes.of_label(label)
        rows, square = rows[self.changes.context[rows] == own], float(expected @ expected)
        if not len(rows) or not square > 0:
            return 0.0
        noise = self._spread(False).effect * float(self.changes.noise[rows[0]] @ np.square(expected)) / square**2  # noqa: FBT003
        return law.lacking**2 / max(law.lacking**2 + noise, np.finfo(np.float64).tiny)

    def _made(self, label: int, cell_type: str) -> "_Law":
        """The law of a perturbation in a cell type."""
        changes = self.changes
        own = self._departures(label, across=False)
        kept = np.array([changes.contexts[c][0] == cell_type for c in changes.context[own.rows]], dtype=np.bool_)
        across = not kept.any()
        if across:
            own = self._departures(label, across=True)
            kept = np.ones(len(own.rows), dtype=np.bool_)
        spread = self._spread(across)
        if not len(own.rows):  # nothing but that others differ is known
            spread = max(spread, self._spread(False))  # noqa: FBT003 - kept by position
        own = own.of(kept)
        n = len(own.rows)
        noise = spread.effect * own.noise
        between = (n * _between(own.strengths, noise) + FREEDOM * spread.between) / (n + FREEDOM)
        told = between / np.maximum(between + noise, np.finfo(np.float64).tiny)
        strengths = own.strengths * np.sqrt(told)
        found = float(np.square(strengths).mean()) if n else 0.0
        strengths *= np.sqrt(min(1.0, between / max(found, np.finfo(np.float64).tiny)))
        lacking = float(np.sqrt(max(0.0, between - found)))
        beside, share = self._beside(own, spread.effect)
        there = np.isfinite(own.noise)
        of_a_cell = own.noise[there] * changes.sizes[own.rows[there]]
        sampling = max(0.0, spread.effect - 1) * float(of_a_cell.mean()) if there.any() else 0.0
        return _Law(changes.context[own.rows], strengths, beside, lacking, own, told, share, sampling)

    def _departures(self, label: int, *, across: bool) -> Departures:
        changes = self.changes
        rows, expected = changes.by_others(changes.of_label(label), across=across)
        squares = np.square(expected).sum(axis=1)
        there = squares > 0
        squares = np.where(there, squares, 1.0)
        apart = changes.changes[rows] - expected
        noise = (changes.noise[rows] * np.square(expected)).sum(axis=1) / squares**2
        halves = None if changes.halves is None else (changes.halves[rows] * expected).sum(axis=1) / squares
        strengths = (apart * expected).sum(axis=1) / squares
        return Departures(rows, expected, strengths, np.where(there, noise, np.inf), halves)

    def _beside(self, own: Departures, effect: float) -> tuple[Vector, Vector]:
        """What of r is no noise, c r [n, genes], and c^2 [genes], of genes that don't stand out the same for all."""
        changes, n = self.changes, len(own.rows)
        if not n:
            return np.zeros((0, changes.n_genes)), np.zeros(changes.n_genes)
        along = np.where(np.isfinite(own.noise), effect * own.noise, 0.0)[:, None] * np.square(own.expected)
        noise = np.maximum(changes.noise[own.rows] - along, 0.0).sum(axis=0)
        beside = changes.changes[own.rows] - own.expected * (1 + own.strengths)[:, None]
        squares = np.square(beside).sum(axis=0)
        # a mean of n squares of noise is above so many times its own with a probability of 1 / G at most
        x = np.log(max(2, changes.n_genes))
        out = squares > (1 + 2 * np.sqrt(x / n) + 2 * x / n) * noise
        rest = no_noise(*(np.where(out, 0.0, table).sum(keepdims=True) for table in (squares, noise)))
        share = np.where(out, no_noise(squares, noise), rest)
        return np.asarray(beside * np.sqrt(share)), share

    def _of_all(self, across: bool) -> Spread:  # noqa: FBT001 - kept by position
        """The spread of the strengths of all perturbations, told from other cell types or not."""
        found = [self._departures(int(label), across=across) for label in np.unique(self.changes.label)]
        strengths, noise = (np.concatenate([getattr(own, name) for own in found]) for name in ("strengths", "noise"))
        effect = 1.0
        if self.changes.halves is not None:
            halves = np.concatenate([own.of_halves for own in found if own.of_halves is not None])
            there = np.isfinite(noise) & (noise > 0)
            # strengths are in units of the response: one that drowns in noise says nothing of the noise along it
            weight = 1 / (1 + noise[there])
            ratios = np.square(halves[there]) / noise[there]
            effect = float((weight @ ratios + FREEDOM) / (weight.sum() + FREEDOM))
        return Spread(_between(strengths, effect * noise), effect)


def _between(strengths: Vector, noise: Vector) -> float:
    """tau^2 of strengths that are 0 on the mean, with noise of these variances; see the module."""
    there = np.isfinite(noise)
    squares, noise = np.square(strengths[there]), noise[there]
    if not squares.any():
        return 0.0
    least = np.finfo(np.float64).eps * squares.max()

    def excess(between: float) -> float:
        return float((squares / np.maximum(noise + between, least)).sum()) - len(squares)

    return 0.0 if excess(0.0) <= 0 else float(brentq(excess, 0.0, float(squares.sum())))
