r"""Cells as counts, and what a change makes of them: some counts are lost, others are added.

A control cell has counts n_g and a total N. A change o_g makes of it

    n'_g ~ Binomial(n_g, p_g) + Poisson(a_g N / 10^4),    p = exp(-relu(-o)),    a = expm1(relu(o))
    x'_g = log1p(10^4 n'_g / N'),    N' = N + sum_g (n'_g - n_g)

so that o = 0 changes nothing, o < 0 keeps a share of the counts, o > 0 adds a per 10^4, and counts that are Poisson
stay so. `core.observation` is the same law for networks, with a gradient.

A change s that was measured between means of x is realised by the o of which the cells drawn have the mean
``mean(x) + s`` (`Curves`). No draws are needed for it: ``log1p(y) = int_0^inf (1 - exp(-y z)) exp(-z) / z dz``, so with
the moment generating function M(z) = E exp(-z n') and c = 10^4 / N'

    E log1p(c n') = int_0^inf (1 - M(c z)) exp(-z) / z dz,
    M(z) = (1 - p (1 - e^-z))^n exp(-(a N / 10^4) (1 - e^-z)),

a smooth integral in log z. That N' departs from N by a share rho - 1 moves it by ``-log(rho) E[c n' / (1 + c n')]``,
which is the same integral without its 1 / z.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from perturbdiff.files.matrices import Matrix
from perturbdiff.recipes.dataset import PER

type Counts = NDArray[np.float64]
type Totals = NDArray[np.float64]
type Vector = NDArray[np.float64]

LOWEST, HIGHEST = -5.0, 8.0
"""Changes are sought between: all but 1 in 150 counts lost, and 3,000 in 10^4 added."""

_NODES = np.exp(np.arange(-12.0, 4.5))
"""Of the integral over log z, whose steps of 1 leave less than 10^-4 of it out."""

_LOSSES = np.linspace(LOWEST, 0.0, 11)[:-1]
_GAINS = np.linspace(0.0, HIGHEST, 33)

_ROUNDS, _MOST = 8, 1.5
"""Of finding the changes and what they make of the logarithm of the cells' totals, in turn, and the most of that."""

_KEEPS = 0.25
"""Other totals than the control cells' are assumed where they explain at least so much of themselves."""

_OFF, _SHARE_OFF = 0.02, 1e-4
"""What float32 may leave of a whole number of counts: so much, and so much for each count."""

_ABOVE = 1.01
"""A cell's counts exceed its total by rounding, not by more than a hundredth."""

_UNTOLD = 2e-6
"""Numbers that differ by less than this share have the same logarithms in float32, give or take the last bits."""

_CHUNK = 1 << 20
"""About so many values are turned back into counts at a time."""


def kept(change: NDArray[Any]) -> NDArray[Any]:
    """The share p of counts that a change keeps."""
    found: NDArray[Any] = np.exp(np.minimum(change, 0.0))
    return found


def added(change: NDArray[Any]) -> NDArray[Any]:
    """The counts a per 10^4 that a change adds."""
    found: NDArray[Any] = np.expm1(np.maximum(change, 0.0))
    return found


def changed(counts: Counts, totals: Totals, change: NDArray[Any], rng: np.random.Generator) -> tuple[Counts, Totals]:
    """Cells with a change: counts [cells, genes] and totals [cells] of control cells -> those drawn.

    Args:
        counts: whole numbers.
        totals: positive; over these genes and others perhaps.
        change: o of each gene [genes].
        rng: of the draws.
    """
    drawn = counts.copy()
    lost, gained = np.flatnonzero(change < 0), np.flatnonzero(change > 0)
    drawn[:, lost] = rng.binomial(counts[:, lost].astype(np.int64), kept(change[lost]))
    drawn[:, gained] += rng.poisson(added(change[gained]) * (totals / PER)[:, None])
    return drawn, totals + (drawn - counts).sum(axis=1)


def logs(counts: NDArray[Any], totals: Totals) -> NDArray[Any]:
    """Log1p counts per 10^4 of counts [cells, genes]."""
    found: NDArray[Any] = np.log1p(counts * (PER / totals)[:, None])
    return found


def whole(expression: NDArray[Any], totals: Totals) -> Counts:
    """The counts of log1p counts per 10^4, rounded to whole numbers.

    Args:
        expression: [cells, genes], or single values [values].
        totals: of the cells [cells], or of the cell of each value [values].
    """
    per = totals / PER
    found: Counts = np.rint(np.expm1(expression.astype(np.float64)) * (per if expression.ndim == 1 else per[:, None]))
    return found


def recovered(values: Matrix) -> Totals:
    """The total counts of cells by their log1p counts per 10^4 of all genes of a file [cells]; see `recovered_of`."""
    n_cells, n_genes = values.shape
    dense = isinstance(values, np.ndarray)
    rows: Any = values if dense else sp.csr_matrix(values)
    ends: NDArray[Any] = np.arange(n_cells + 1) * n_genes if dense else rows.indptr
    totals = np.full(n_cells, np.nan)
    start = 0
    while start < n_cells:
        stop = max(start + 1, int(np.searchsorted(ends, ends[start] + _CHUNK, side="right")) - 1)
        data = rows[start:stop].ravel() if dense else rows.data[ends[start] : ends[stop]]
        totals[start:stop] = recovered_of(data, np.diff(ends[start : stop + 1]))
        start = stop
    return totals


def recovered_of(logs: NDArray[Any], lengths: NDArray[Any]) -> Totals:
    """The total counts of cells [cells] by their log1p counts per 10^4, one cell after the other; NaN where unknown.

    They are known where a cell's smallest value above 0 is taken for one count and all its values are whole numbers of
    it, which together are no more than the total. That is looked for in float32, whatever holds the values, so that
    cells have the same totals wherever they are kept. A total as near to a whole number as float32 can tell is one.

    Args:
        logs: of all genes of a file; those that are 0 may be left out.
        lengths: how many of them are of each cell [cells].
    """
    totals = np.full(len(lengths), np.nan)
    filled = np.flatnonzero(lengths)
    if not len(filled):
        return totals
    sizes = lengths[filled]
    starts = np.cumsum(sizes) - sizes
    values = logs.astype(np.float32, copy=False)
    lowest = np.minimum.reduceat(np.where(values > 0, values, np.float32(np.inf)), starts).astype(np.float64)
    # values that are no log1p counts may be beyond all bounds
    with np.errstate(over="ignore", invalid="ignore"):
        found = PER / np.expm1(lowest)
        numbers = np.expm1(values)
        numbers *= np.repeat((found / PER).astype(np.float32), sizes)
        fits = np.abs(numbers - np.rint(numbers)) <= _OFF + _SHARE_OFF * numbers
        sums = np.add.reduceat(numbers, starts, dtype=np.float64)
        known = np.logical_and.reduceat(fits, starts) & np.isfinite(lowest) & (sums <= _ABOVE * found)
    found = found[known]
    whole_number = np.rint(found)
    totals[filled[known]] = np.where(np.abs(found - whole_number) <= _UNTOLD * found, whole_number, found)
    return totals


@dataclass(frozen=True, eq=False)
class Curves:
    """The mean of x' over some control cells as a function of the change, gene by gene.

    Attributes:
        changes: ascending values of o [knots].
        means: of x' with these changes, totals left as they are [knots, genes].
        slopes: what log(rho) takes of them [knots, genes].
        shares: the mean of n / N [genes].
    """

    changes: Vector
    means: NDArray[np.float32]
    slopes: NDArray[np.float32]
    shares: Vector

    @classmethod
    def of(cls, counts: Counts, totals: Totals) -> "Curves":
        """Of control cells, whole numbers [cells, genes] and [cells]."""
        n_cells = len(totals)
        sparse = sp.csc_matrix(counts)
        cell, numbers = sparse.indices, sparse.data
        filled = np.flatnonzero(np.diff(sparse.indptr))
        starts = sparse.indptr[filled]
        means, slopes = (np.zeros((len(_LOSSES) + len(_GAINS), counts.shape[1])) for _ in range(2))
        shares = (counts / totals[:, None]).mean(axis=0)
        p, rates = kept(_LOSSES), np.outer(added(_GAINS), totals / PER)
        for z in _NODES:
            gone = -np.expm1(-(PER / totals) * z)  # 1 - e^-cz of each cell
            lacking = np.zeros_like(means)  # 1 - M, the mean over cells
            if len(filled):
                thinned = -np.expm1(numbers * np.log1p(-np.outer(p, gone)[:, cell].clip(max=1 - 1e-15)))
                lacking[: len(p), filled] = np.add.reduceat(thinned, starts, axis=1) / n_cells
            alone = np.exp(-(PER / totals * z)[:, None] * counts)
            lacking[len(p) :] = 1 - np.exp(-rates * gone) @ alone / n_cells
            means += np.exp(-z) * lacking
            slopes += z * np.exp(-z) * lacking
        # below the first node the integrand is c E[n'] z
        expected = np.concatenate([np.outer(p, shares), shares + added(_GAINS)[:, None] / PER]) * PER
        means += expected * float(_NODES[0]) * np.exp(-0.5)
        knots = np.concatenate([_LOSSES, _GAINS])
        return cls(knots, means.astype(np.float32), slopes.astype(np.float32), shares)

    @classmethod
    def of_some(cls, counts: Counts, totals: Totals, most: int) -> "Curves":
        """Of so many of the control cells, evenly taken, at most."""
        rows = np.linspace(0, len(totals) - 1, min(most, len(totals))).round().astype(np.int64)
        return cls.of(counts[rows], totals[rows])

    @property
    def unchanged(self) -> Vector:
        """The mean of x [genes]."""
        found: Vector = self.means[len(_LOSSES)].astype(np.float64)
        return found

    def realised(self, shift: NDArray[Any]) -> Vector:
        """The change o [genes] of which the drawn cells have the mean ``mean(x) + shift`` [genes], as near as can be.

        Where shift is 0 everywhere so is o; a mean below 0 is taken for 0.
        """
        wanted = np.maximum(self.unchanged + shift, 0.0)
        change, best = np.zeros(len(wanted)), (np.inf, np.zeros(len(wanted)))
        assumed, before = 0.0, (0.0, 0.0)
        for i in range(_ROUNDS):
            change = self._at(wanted + assumed * self._between(self.slopes, change))
            rho = 1 + float(((kept(change) - 1) * self.shares + added(change) / PER).sum())
            off = float(np.log(max(rho, 1e-3))) - assumed
            # where the panel holds nearly all of the totals, to scale all counts alike changes next to nothing
            best = min(best, (abs(off) + _KEEPS * abs(assumed), change), key=lambda found: found[0])
            # a secant, for the more a panel holds of the totals the slower do rounds alone end
            step = off if i == 0 or off == before[1] else off * (assumed - before[0]) / (before[1] - off)
            before, assumed = (assumed, off), float(np.clip(assumed + step, -_MOST, _MOST))
        return best[1]

    def _at(self, wanted: Vector) -> Vector:
        """The change of each gene where its curve has a value."""
        upper = np.clip((self.means <= wanted).sum(axis=0), 1, len(self.changes) - 1)
        genes = np.arange(len(wanted))
        low, high = self.means[upper - 1, genes], self.means[upper, genes]
        share = np.divide(wanted - low, high - low, out=np.zeros_like(wanted), where=high > low)
        found: Vector = self.changes[upper - 1] + np.clip(share, 0.0, 1.0) * (
            self.changes[upper] - self.changes[upper - 1]
        )
        return found

    def _between(self, table: NDArray[np.float32], change: Vector) -> Vector:
        """The values of a table at the change of each gene."""
        upper = np.clip(np.searchsorted(self.changes, change, side="right"), 1, len(self.changes) - 1)
        genes = np.arange(len(change))
        share = (change - self.changes[upper - 1]) / (self.changes[upper] - self.changes[upper - 1])
        low, high = table[upper - 1, genes], table[upper, genes]
        found: Vector = np.asarray(low + share * (high - low), dtype=np.float64)
        return found
