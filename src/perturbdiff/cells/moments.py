"""Sums over cells, gene by gene: all that the panel and the scale need to know of expression; see `cells.measure`.

What sums make of noise is here too: the variance of the cells of groups, and the share of a change that is no noise.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

_FACTS = ("counts", "counts_squared", "logs", "logs_squared", "lowest", "highest")

STANDS_OUT = 3.0
"""Times log G, the squared change of a gene over its noise that noise does not explain."""

type Sums = npt.NDArray[np.float64]
type Logs = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Moments:
    """What is known of each gene's expression in some cells; all arrays are [genes].

    Attributes:
        genes: their names.
        n_cells: over so many cells.
        counts: sum of counts per 10^4, x = expm1(y).
        counts_squared: sum of x^2.
        logs: sum of log1p counts per 10^4, y.
        logs_squared: sum of y^2.
        lowest: smallest y; 0 where there are no cells.
        highest: largest y.
    """

    genes: pd.Index
    n_cells: int
    counts: Sums
    counts_squared: Sums
    logs: Sums
    logs_squared: Sums
    lowest: Logs
    highest: Logs

    @property
    def varies(self) -> npt.NDArray[np.bool_]:
        """Which genes' values are not all equal; exact, unlike a variance."""
        return self.lowest < self.highest

    def to_table(self) -> pd.DataFrame:
        """A row a gene, named by the index, and a column of each fact; `cells` is the same in all rows."""
        columns = {"cells": np.full(len(self.genes), self.n_cells, dtype=np.int64)}
        return pd.DataFrame(columns | {name: getattr(self, name) for name in _FACTS}, index=self.genes)

    @classmethod
    def from_table(cls, table: pd.DataFrame) -> "Moments":
        """The moments that `to_table` wrote; columns of other names are let be.

        Raises:
            ValueError: a column is not there, or the table has no rows.
        """
        absent = [name for name in ("cells", *_FACTS) if name not in table.columns]
        if absent or not len(table):
            what = f"no column {absent[0]!r}" if absent else "no rows"
            raise ValueError(f"the table of genes has {what}, and moments are kept there; measure them again.")
        facts = {name: table[name].to_numpy() for name in _FACTS}
        return cls(genes=pd.Index(table.index), n_cells=int(table["cells"].iloc[0]), **facts)


def variances(sums: Sums, squares: Sums, sizes: Sums, owner: npt.NDArray[np.int64]) -> Sums:
    """The variance of the cells of groups: that within all groups of an owner, or a group's own where larger.

    Of a gene that few cells express, a group of few cells may have more than its share: its own variance knows.

    Args:
        sums: of the cells of each group [groups, genes].
        squares: of their squares [groups, genes].
        sizes: cells of each group [groups].
        owner: of each group [groups]; where none of an owner's has two cells, that within all groups is taken.

    Returns:
        [groups, genes].
    """
    within = np.maximum(squares - np.square(sums) / np.maximum(sizes, 1.0)[:, None], 0.0)
    free = np.maximum(sizes - 1.0, 0.0)
    members = sp.csr_matrix((np.ones(len(owner)), (owner, np.arange(len(owner)))))
    of_owner = members @ free
    common = within.sum(axis=0) / max(free.sum(), 1.0)
    pooled = np.where(of_owner[:, None] > 0, (members @ within) / np.maximum(of_owner, 1.0)[:, None], common)
    found: Sums = np.maximum(pooled[owner], within / np.maximum(free, 1.0)[:, None])
    return found


def trusted(change: Sums, noise: Sums, most: float = 1.0) -> Sums:
    """The share b of each gene of a change that is kept, see `cells.contexts` [.., genes].

    Args:
        change: d [.., genes].
        noise: V [.., genes].
        most: of a gene that does not stand out, at most.
    """
    squares = np.square(change)
    out = squares > STANDS_OUT * np.log(max(2, change.shape[-1])) * noise
    rest, noise_of_rest = (np.where(out, 0.0, table).sum(axis=-1, keepdims=True) for table in (squares, noise))
    found: Sums = np.where(out, no_noise(squares, noise), np.minimum(no_noise(rest, noise_of_rest), most))
    return found


def no_noise(squares: Sums, noise: Sums) -> Sums:
    """The share of squares that is above their noise; 0 where none is."""
    found: Sums = 1 - np.divide(noise, squares, out=np.ones_like(squares), where=squares > noise)
    return found
