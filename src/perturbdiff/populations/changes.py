r"""The mean changes of the training groups: what is expected of perturbations is made of them (`cells.contexts`).

A group's change is the mean of its cells less the mean of its control cells, log1p counts per 10^4. Groups of one
perturbation and context are one condition, in which they count by their cells. With n cells, of which a share a_p has
the n_p control cells of pool p beside it, the sampling noise of its change in a gene is

    V = sigma^2 / n + sum_p a_p^2 sigma_p^2 / n_p

sigma^2 the variance of perturbed cells within the conditions of a context, or that of the condition where it is larger,
sigma_p^2 that of the control cells of pool p.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from perturbdiff.cells.contexts import Changes, joined
from perturbdiff.cells.moments import variances
from perturbdiff.cells.order import Integers, Runs, aranges
from perturbdiff.populations.blocks import BLOCK, SLAB
from perturbdiff.populations.epochs import Populations

CELLS_PER_CONDITION = 1 << 12
"""Cells that a change is measured on, at most; of each group the first of its share, which are random ones."""

type Table = npt.NDArray[np.float64]


def measured_changes(populations: Populations, runs: Runs) -> Changes:
    """The changes of all training conditions, with the bandwidth and the share that fit them.

    Args:
        populations: of the training part, control cells beside them.
        runs: of their source, which name the groups.
    """
    groups, scale = populations.groups, populations.scale
    label = populations.conditions[:, 0]
    table = runs.labels.iloc[groups.run]
    names = [
        (int(own), str(one), str(other))
        for own, one, other in zip(label, table["cell_type"], table["assay_batch"], strict=True)
    ]
    named = joined(names)
    contexts = tuple(sorted(set(named)))
    place = {name: i for i, name in enumerate(contexts)}
    context = np.array([place[name] for name in named], dtype=np.int64)
    keys, condition = np.unique(np.stack([label, context]), axis=1, return_inverse=True)
    n_conditions = keys.shape[1]
    n_cells = np.bincount(condition, weights=groups.sizes, minlength=n_conditions)
    taken = np.ceil(groups.sizes * np.minimum(1, CELLS_PER_CONDITION / n_cells[condition])).astype(np.int64)
    perturbed = groups.positions(aranges(groups.offsets[:-1], taken))
    treated, squares = _halved(populations, perturbed, np.repeat(condition, taken), taken, n_conditions)
    # each group's share of the mean of its controls
    pools, pool = np.unique(populations.pools, axis=0, return_inverse=True)
    pool = pool.ravel()
    beside = np.minimum(pools[:, 1] - pools[:, 0], CELLS_PER_CONDITION)
    control = populations.controls.positions(aranges(pools[:, 0], beside))
    controls, control_squares = _halved(
        populations, control, np.repeat(np.arange(len(pools)), beside), beside, len(pools)
    )
    weights = np.bincount(condition, weights=taken, minlength=n_conditions)
    shares = sp.csr_matrix((taken / weights[condition], (condition, pool)), shape=(n_conditions, len(pools)))
    sums, totals, means = treated.sums.sum(axis=0), controls.sums.sum(axis=0), controls.mean
    changes = treated.mean - shares @ means
    halves = treated.halves - shares @ controls.halves
    spread = variances(sums, squares, weights, keys[1])
    of_controls = variances(totals, control_squares, beside.astype(np.float64), np.arange(len(pools)))
    noise = spread / weights[:, None] + shares.power(2) @ (of_controls / beside[:, None])
    return Changes(
        label=keys[0],
        context=keys[1],
        sizes=n_cells,
        changes=(changes * scale).astype(np.float32),
        noise=(noise * scale**2).astype(np.float32),
        contexts=contexts,
        means=(_context_means(context, pool, means, len(contexts)) * scale).astype(np.float32),
        halves=(halves * scale).astype(np.float32),
    ).fitted()


class _Halved(NamedTuple):
    """The sums over two halves of each owner's cells [2, owners, genes], and how many cells these are [2, owners]."""

    sums: Table
    sizes: Table

    @property
    def mean(self) -> Table:
        """Of all cells of each owner [owners, genes]."""
        found: Table = self.sums.sum(axis=0) / self.sizes.sum(axis=0)[:, None]
        return found

    @property
    def halves(self) -> Table:
        """Half the difference of the means of the halves [owners, genes], as noisy as that of all; 0 of one cell."""
        both = self.sizes.min(axis=0) > 0
        one, other = self.sums / np.maximum(self.sizes, 1.0)[..., None]
        # halves of n and n + 1 cells differ by a little more than twice the noise of all
        uneven = 2 * np.sqrt(self.sizes.prod(axis=0)) / np.maximum(self.sizes.sum(axis=0), 1.0)
        found: Table = (one - other) * (both * uneven / 2)[:, None]
        return found


def _halved(
    populations: Populations, rows: Integers, owner: Integers, runs: Integers, n_owners: int
) -> tuple[_Halved, Table]:
    """The sums of two halves of each owner's cells, which are every second one of a run, and of all their squares."""
    half = aranges(np.zeros(len(runs), dtype=np.int64), runs) % 2
    sums, squares = _sums(populations, rows, half * n_owners + owner, 2 * n_owners)
    sizes = np.bincount(half * n_owners + owner, minlength=2 * n_owners).astype(np.float64)
    return (
        _Halved(sums.reshape(2, n_owners, -1), sizes.reshape(2, n_owners)),
        squares.reshape(2, n_owners, -1).sum(axis=0),
    )


def _context_means(context: Integers, pool: Integers, means: Table, n_contexts: int) -> Table:
    """The mean over the pools of control cells that a context's groups have beside them [contexts, genes]."""
    pairs = np.unique(np.stack([context, pool]), axis=1)
    beside = sp.csr_matrix((np.ones(pairs.shape[1]), (pairs[0], pairs[1])), shape=(n_contexts, len(means)))
    found: Table = (beside @ means) / np.asarray(beside.sum(axis=1))
    return found


def _sums(populations: Populations, rows: Integers, owner: Integers, n_owners: int) -> tuple[Table, Table]:
    """The sums of each owner's cells, and of their squares [owners, genes], in units of the scale."""
    sums, squares = np.zeros((2, n_owners, populations.n_genes))
    for first in range(0, len(rows), SLAB * BLOCK):
        some, own = rows[first : first + SLAB * BLOCK], owner[first : first + SLAB * BLOCK]
        cells = populations.reader.load(np.unique(some)).rows(some).astype(np.float64)
        members = sp.csr_matrix((np.ones(len(some)), (own, np.arange(len(some)))), (n_owners, len(some)))
        sums += (members @ cells).toarray()
        squares += (members @ cells.power(2)).toarray()
    return sums, squares
