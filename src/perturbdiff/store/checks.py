"""Rows of a file as a store keeps them, checked as those of files in memory are."""

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from perturbdiff.cells.order import Flags
from perturbdiff.cells.reading import Scale, check_values, column_of
from perturbdiff.cells.totals import check_normalised, converted, total_counts_of
from perturbdiff.recipes.dataset import Recipe
from perturbdiff.store.inputs import Input, Rows


class Checked(NamedTuple):
    """Rows of a file.

    Attributes:
        rows: [n, genes of the file], explicit zeros and all.
        totals: total counts [n]; None where the scale is log1p.
        integers: whether all values are.
        highest: the highest value.
    """

    rows: Rows
    totals: npt.NDArray[np.float64] | None
    integers: bool
    highest: float


def checked_rows(found: Input, recipe: Recipe, start: int, stop: int, kept: Flags) -> Checked:
    """Read the cells start to stop that are kept; the others need not be expression, nor have counts.

    Raises:
        ValueError: as in `reading.check_values`, `totals.total_counts_of` and `totals.check_normalised`, but for the
            rule on log1p values that are all integers, which takes the whole file; see `check_integers`.
    """
    rows, scale = found.rows(start, stop), recipe.expression.scale
    if not kept.all():
        rows = rows[kept]
    if scale == "counts":
        check_values(rows, scale, found.source)
        obs: dict[str, Any] = {}
        column = recipe.columns.total_counts
        if column is not None:
            column_of(found.obs.columns, column, "columns.total_counts", found.source)
            obs[column] = found.column(column, start, stop)[kept].reset_index(drop=True)
        table: Any = SimpleNamespace(obs=pd.DataFrame(obs))
        return Checked(rows, total_counts_of(table, rows, column, found.source), integers=True, highest=0.0)
    if rows.dtype.kind not in "fiub":
        check_values(rows, scale, found.source)
    integers, highest = _log1p_facts(rows.data, scale, found.source)
    if not integers:  # or it is said of the whole file that they are counts
        check_normalised(rows, recipe.expression, found.source)
        rows = sp.csr_matrix(converted(rows, recipe.expression))
    return Checked(rows, None, integers, highest)


def check_integers(highest: float, scale: Scale, source: str) -> None:
    """Refuse a file of log1p values that are all integers, of which this is the highest.

    Raises:
        ValueError: it is too high to be a log1p count.
    """
    check_values(np.array([[highest]]), scale, source)


def _log1p_facts(values: npt.NDArray[Any], scale: Scale, source: str) -> tuple[bool, float]:
    integers, highest = True, 0.0
    for start in range(0, len(values), 1 << 20):
        chunk = values[start : start + (1 << 20)]
        bad = ~np.isfinite(chunk) | (chunk < 0)
        if bad.any():
            check_values(chunk[bad][:1, None], scale, source)
        integers = integers and bool((chunk == np.rint(chunk)).all())
        highest = max(highest, float(chunk.max(initial=0)))
    return integers, highest
