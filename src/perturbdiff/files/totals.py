"""What a cell's expression is relative to: its total count, or what its counts were normalised to before log1p.

Sums over the genes of a file say whether values are what was declared. With counts c, total t and log1p values
``x = log1p(T c / t)``, the sum of expm1(x) is T over all genes of a transcriptome and at most T over a panel. So a sum
above T is no log1p count per T, and sums that agree on another number say what the counts were normalised to.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from perturbdiff.files.matrices import Matrix, Scale, check_values, column_of, row_sums
from perturbdiff.recipes.dataset import PER, Columns, Expression, Recipe

_TOTAL_SLACK = 1.5
"""A panel's counts may exceed the declared total by rounding or another counting, not by half of it."""

_ABOVE = 1.01
"""Sums of expm1 exceed what the counts were normalised to by rounding, not by more than a hundredth."""

_AGREE = 0.005
"""Sums that differ by less than this share are one number, and what the counts were normalised to."""

_CELLS, _GENES = 10, 20
"""Fewer cells or genes may agree by chance."""

_WHOLE = 10_000
"""A file of so many genes holds nearly all of them, so that low sums are worth a sentence."""

_CHUNK = 1 << 20
"""So many values are turned back into counts at a time."""

_HIGHEST = 50.0
"""expm1 of more is not needed to know that it is too much."""


class Checked(NamedTuple):
    """Cells of which no value is refused.

    Attributes:
        rows: [n, genes], as they were, or log1p counts per 10^4.
        totals: total counts [n]; None where the scale is log1p.
        note: a sentence on what the counts were normalised to.
        integers: whether all values are.
        highest: the highest value.
    """

    rows: Matrix
    totals: npt.NDArray[np.float64] | None
    note: str | None
    integers: bool
    highest: float


def checked(
    values: Matrix,
    obs: pd.DataFrame,
    columns: Columns,
    expression: Expression,
    source: str,
    *,
    summed: npt.NDArray[np.bool_] | None = None,
    observed: bool = True,
    whole: bool = True,
) -> Checked:
    """Check the expression of some cells, and give it as it is kept.

    Args:
        values: as the file has them [n, genes].
        obs: the table of the cells, a row a cell; has the column of total counts.
        columns: say which it is.
        expression: the scale of the values.
        source: opens the sentences of errors.
        summed: see `total_counts_of`.
        observed: whether they are measured cells, whose sums tell what they were normalised to.
        whole: whether they are all cells of their file. Of a part that holds only integers on the scale log1p it is
            not known yet whether they are counts, see `reading.check_integers`.

    Raises:
        ValueError: as in `reading.check_values`, `total_counts_of` and `check_normalised`.
    """
    integers, highest = check_values(values, expression.scale, source, whole=whole)
    totals = note = None
    if expression.scale == "counts":
        totals = total_counts_of(obs, values, columns.total_counts, source, summed)
    elif whole or not integers:
        note = check_normalised(values, expression, source) if observed else None
        values = converted(values, expression)
    return Checked(values, totals, note, integers, highest)


def total_counts_of(
    obs: pd.DataFrame,
    values: Matrix,
    column: str | None,
    source: str,
    summed: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.float64]:
    """Each cell's total count [n]: the column of obs where one is declared, else the sum over genes of the file.

    Args:
        obs: has the column.
        values: counts [n, genes].
        column: of obs; None to sum.
        source: opens the sentence of an error.
        summed: which genes are summed; all of them when None.

    Raises:
        ValueError: a total is not positive and finite, or far below the sum over the file's genes.
    """
    if column is None:
        sums = row_sums(values if summed is None or summed.all() else values[:, np.flatnonzero(summed)])
        if (sums <= 0).any():
            raise ValueError(
                f"{int((sums <= 0).sum())} cells of {source} have no counts at all, and expression is per 10^4 of a "
                "cell's total; remove these cells, or declare columns.total_counts where the file holds a panel."
            )
        return sums
    sums = row_sums(values)
    series = column_of(obs, column, "columns.total_counts", source)
    totals = pd.to_numeric(series, errors="coerce").to_numpy(dtype=np.float64)
    bad = ~(np.isfinite(totals) & (totals > 0))
    if bad.any():
        raise ValueError(
            f"column {column!r} of {source} gives {int(bad.sum())} cells a total count such as "
            f"{series.iloc[int(np.argmax(bad))]}, and a total must be above 0; mend it or remove these cells."
        )
    short = sums > _TOTAL_SLACK * totals
    if short.any():
        i = int(np.argmax(short))
        raise ValueError(
            f"column {column!r} of {source} gives {int(short.sum())} cells a total count such as {totals[i]:g} where "
            f"the file's genes alone sum to {sums[i]:g}; name the column with totals over all genes, in counts."
        )
    return totals


def genes_summed(genes: pd.Index, wanted: "tuple[str, ...] | None", source: str) -> "npt.NDArray[np.bool_] | None":
    """Which genes of a file a cell's total is summed over, to be the total that a model was trained with.

    Args:
        genes: of the file.
        wanted: those over which the totals of the training cells ran; None sums all of the file.
        source: opens the sentence of an error.

    Raises:
        ValueError: the file lacks some of them, so that its totals would be of another unit.
    """
    if wanted is None:
        return None
    absent = pd.Index(wanted).difference(genes, sort=False)
    if len(absent):
        raise ValueError(
            f"{source} lacks {len(absent)} of the {len(wanted)} genes over which the training cells' total counts ran, "
            f"such as {str(absent[0])!r}, and counts per 10^4 of fewer genes are another unit; give the whole file, "
            'name a column of total counts in columns.total_counts, or declare scale = "log1p" for log1p counts per '
            "10^4 of all genes."
        )
    return np.asarray(genes.isin(wanted))


def total_genes(genes: pd.Index, recipe: Recipe) -> tuple[str, ...] | None:
    """The genes over which the total counts of a recipe's cells run, by the names that their file gives them.

    None where the values are log1p, a column gives the totals, files of different genes may be joined, or a table
    renames genes.
    """
    read = recipe.expression
    summed = read.scale == "counts" and recipe.columns.total_counts is None
    one_set = recipe.join == "same" and read.gene_table is None
    return tuple(map(str, genes)) if summed and one_set else None


def check_totals_fit(columns: Columns, scale: Scale, source: str) -> None:
    """Refuse total counts beside values that are log1p counts already.

    Raises:
        ValueError: both are declared.
    """
    if scale == "log1p" and columns.total_counts is not None:
        raise ValueError(
            f'columns.total_counts = {columns.total_counts!r} goes with scale = "counts", and the scale of {source} '
            'is "log1p", already per 10^4; leave it out.'
        )


def check_normalised(values: Matrix, expression: Expression, source: str) -> str | None:
    """Refuse log1p values that are not of counts per `expression.target_sum`, as their sums over genes tell.

    Args:
        values: observed cells, finite and not negative; predicted cells keep no sum exactly.
        expression: says what the counts were normalised to.
        source: opens the sentences.

    Returns:
        A sentence on sums that are low for a file of so many genes; None where there is nothing to say.

    Raises:
        ValueError: a sum is above what is declared, or all sums agree on another number.
    """
    target, sums = expression.normalised_to, sums_of_expm1(values)
    sums = sums[sums > 0]
    if not len(sums):
        return None
    middle = float(np.median(sums))
    one = len(sums) >= _CELLS and values.shape[1] >= _GENES and bool(np.ptp(sums) <= _AGREE * middle)
    if (sums > _ABOVE * target).any() or (one and abs(middle - target) > (_ABOVE - 1) * target):
        raise ValueError(_not_per(target, sums, source, agree=one))
    if values.shape[1] >= _WHOLE and middle < target / 2:
        return (
            f"the cells of {source} sum to {middle:.0f} counts per {target:g} (median) over {values.shape[1]} genes, "
            f"less than half of {target:g}: check that they were normalised over genes which the file lacks."
        )
    return None


def converted(values: Matrix, expression: Expression) -> Matrix:
    """Log1p counts per `expression.target_sum` as log1p counts per 10^4; as they are where that is 10^4."""
    if expression.normalised_to == PER:
        return values
    factor = PER / expression.normalised_to
    kind = np.promote_types(values.dtype, np.float32)

    def moved(some: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.log1p(np.expm1(some.astype(np.float64)) * factor).astype(kind)

    if isinstance(values, np.ndarray):
        return moved(values)
    return sp.csr_matrix((moved(values.data), values.indices, values.indptr), shape=values.shape)


def sums_of_expm1(values: Matrix) -> npt.NDArray[np.float64]:
    """What each cell's counts sum to [n], of log1p values, some cells at a time."""
    n_cells, n_genes = values.shape
    if not isinstance(values, np.ndarray):
        n_genes = max(1, values.nnz // max(1, n_cells))
    rows = max(1, _CHUNK // max(1, n_genes))
    sums = np.zeros(n_cells)
    for start in range(0, n_cells, rows):
        some = values[start : start + rows]
        if isinstance(some, np.ndarray):
            sums[start : start + rows] = _counts(some).sum(axis=1)
        else:
            back = sp.csr_matrix((_counts(some.data), some.indices, some.indptr), shape=some.shape)
            sums[start : start + rows] = row_sums(back)
    return sums


def _counts(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    return np.expm1(np.minimum(values.astype(np.float64), _HIGHEST))


def _not_per(target: float, sums: npt.NDArray[np.float64], source: str, *, agree: bool) -> str:
    middle = float(np.median(sums))
    found = f"{middle:.6g} counts each" if agree else f"{middle:.4g} counts (median) and {sums.max():.4g} (highest)"
    rule = f"log1p counts per {target:g} sum to {target:g}, or to less where the file lacks genes"
    other = 'the counts with scale = "counts"'
    remedy = f"declare expression.target_sum = {middle:.6g}, to which they were normalised, or give {other}"
    if not agree:
        remedy = f"declare in expression.target_sum what each cell's counts were normalised to, or give {other}"
    return f'{source} is declared scale = "log1p", its cells sum to {found}, and {rule}; {remedy}.'
