r"""What several drawn populations of a condition say together: of each gene its change, how sure that is, and why not.

A population k has the mean change ``d_kg = mean_j x_kjg - c_g`` from the control cells' mean c. Over the K populations

    mean_change           the mean of d_kg
    low, high             its central interval, see `intervals`: of another donor's change, as it is measured
    sd                    the standard deviation of d_kg, which has two parts:
    sd_cells              what the sampling of cells explains: the root of mean_k s_kg^2 / n_k
    sd_donors             what is left, (sd^2 - sd_cells^2)^(1/2), 0 where nothing is
    p_up                  the share of populations with d_kg > 0
    p_changed             the share with |d_kg| > threshold
    p_top                 the share in which g is among the `top` genes of the largest |d_kg|

A programme is a weighted mean of genes, ``sum_g w_g x_g / sum_g |w_g|``, cell by cell; it has all of these but p_top.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perturbdiff.families.intervals import interval

type Matrix = NDArray[np.float64]

COLUMNS = ("mean_change", "low", "high", "sd", "sd_donors", "sd_cells", "p_up", "p_changed", "p_top")
"""Of a summary, after the names of genes and programmes."""


class Reading(NamedTuple):
    """How a summary is read off the draws.

    Attributes:
        level: of the intervals.
        threshold: of p_changed, log1p counts per 10^4.
        top: of p_top, so many genes.
    """

    level: float = 0.95
    threshold: float = 0.5
    top: int = 50

    def check(self) -> "Reading":
        """Itself.

        Raises:
            ValueError: a level is not between 0 and 1, a threshold below 0, or `top` below 1.
        """
        if not 0 < self.level < 1:
            raise ValueError(f"level={self.level} is a share of populations and must lie between 0 and 1; give 0.95.")
        if not self.threshold >= 0:
            raise ValueError(f"threshold={self.threshold} is a size of change and must be at least 0; give 0.5.")
        if self.top < 1:
            raise ValueError(f"top={self.top} must be at least 1; give how many genes count as the top.")
        return self


class Drawn(NamedTuple):
    """The drawn populations of a condition.

    Attributes:
        changes: d of every population [K, features], genes first, then programmes.
        errors: the squared standard error of each that the sampling of cells makes [K, features].
        n_genes: how many of the features are genes.
    """

    changes: Matrix
    errors: Matrix
    n_genes: int


def summarised(drawn: Drawn, names: list[str], reading: Reading) -> pd.DataFrame:
    """A row for each gene and programme: feature, kind ("gene" or "programme"), and `COLUMNS`."""
    changes = drawn.changes
    low, high = interval(changes, reading.level)
    cells = drawn.errors.mean(axis=0)
    variance = changes.var(axis=0, ddof=1)
    size = np.abs(changes[:, : drawn.n_genes])
    top = min(reading.top, drawn.n_genes)
    border = np.partition(size, drawn.n_genes - top, axis=1)[:, [drawn.n_genes - top]]
    p_top = np.full(changes.shape[1], np.nan)
    p_top[: drawn.n_genes] = ((size >= border) & (size > 0)).mean(axis=0)
    kinds = np.where(np.arange(len(names)) < drawn.n_genes, "gene", "programme")
    found = {
        "mean_change": changes.mean(axis=0),
        "low": low,
        "high": high,
        "sd": np.sqrt(variance),
        "sd_donors": np.sqrt(np.maximum(variance - cells, 0.0)),
        "sd_cells": np.sqrt(cells),
        "p_up": (changes > 0).mean(axis=0),
        "p_changed": (np.abs(changes) > reading.threshold).mean(axis=0),
        "p_top": p_top,
    }
    return pd.DataFrame({"feature": names, "kind": kinds, **found})
