"""Files and their matrices, looked at once before anything is computed from them.

Every check passes over the stored values in chunks, so that a matrix is never copied to be checked. What a check
refuses, it names: the value, the rule and the remedy.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import anndata
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from perturbdiff.data.files import find_hole, is_store
from perturbdiff.data.recipe import Columns, Expression, control_character
from perturbdiff.data.vocabulary import nearest

type Matrix = sp.csr_matrix[Any] | sp.csr_array[Any, Any] | npt.NDArray[Any]
"""Cells by genes, in rows."""

type Scale = Literal["counts", "log1p"]

_UNREADABLE = (OSError, KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError)
"""What anndata, h5py and zarr raise for a file that they cannot read."""

_CHUNK = 1 << 20
"""So many values are checked at a time."""

_LOG1P_LIMIT = 9.3
"""No log1p count per 10^4 exceeds log1p(10^4) = 9.21."""

_TOTAL_SLACK = 1.5
"""A panel's counts may exceed the declared total by rounding or another counting, not by half of it."""


def read_anndata(path: Path) -> anndata.AnnData:
    """Read one .h5ad, or one folder in the zarr format, into memory.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, damaged, or not an AnnData; parts of the folder are missing; it is a store.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}; give the path of an .h5ad file or a .zarr folder.")
    if is_store(path):
        raise ValueError(f"{str(path)!r} is a store and not an AnnData; name it as the only file of a recipe.")
    return _read_zarr(path) if path.is_dir() else _read_h5ad(path)


read_h5ad = read_anndata
"""The name for those who expect an .h5ad."""


def _read_h5ad(path: Path) -> anndata.AnnData:
    try:
        return anndata.read_h5ad(path)
    except _UNREADABLE as error:
        reason = str(error).replace("\n", " ")
        if "truncated" in reason:
            why = "is cut short; copy or download it again"
        elif "signature" in reason:
            why = "is not an HDF5 file, which an .h5ad is; write it with anndata's write_h5ad"
        elif isinstance(error, OSError):
            why = f"cannot be read and is probably damaged ({reason[:120]}); copy or download it again"
        else:
            why = f"is HDF5 but not an AnnData ({reason[:120]}); write it with anndata's write_h5ad"
        raise ValueError(f"{str(path)!r} {why}.") from error


def _read_zarr(path: Path) -> anndata.AnnData:
    try:
        hole = find_hole(path)
    except _UNREADABLE as error:
        raise ValueError(
            f"{str(path)!r} is a folder but not an AnnData in the zarr format ({_reason(error)}); write it with "
            "anndata's write_zarr, or copy it again."
        ) from error
    if hole is not None:
        raise ValueError(
            f"{str(path)!r} is not whole: parts of its array {hole!r} are missing, which would be read as zeros; copy "
            "or download it again."
        )
    try:
        return anndata.read_zarr(path)
    except _UNREADABLE as error:
        raise ValueError(
            f"{str(path)!r} cannot be read and is probably damaged ({_reason(error)}); copy or download it again."
        ) from error


def _reason(error: Exception) -> str:
    return str(error).replace("\n", " ")[:120].rstrip(" .") or type(error).__name__


def check_label_texts(labels: Iterable[str], column: str, source: str) -> None:
    """Refuse a label with a newline, a tab or another control character: a label is one line of text.

    Raises:
        ValueError: naming the first such label.
    """
    for label in labels:
        sign = control_character(label)
        if sign is not None:
            raise ValueError(
                f"column {column!r} of {source} has the label {label!r} with the control character {sign!r}, and a "
                "label is one line of text; rename it."
            )


def expression_of(adata: anndata.AnnData, expression: Expression, source: str) -> tuple[Matrix, pd.Index]:
    """The matrix and its genes; CSR and dense matrices are taken as they are, others become CSR once.

    Raises:
        ValueError: the layer, the obsm key or the column of gene names is not there, gene names are missing or
            repeated, there are no cells or no genes, or the matrix is not in memory.
    """
    raw = _stored(adata, expression, source)
    width = int(raw.shape[1])
    genes = _gene_names(adata, raw, expression, width, source)
    if raw.shape[0] == 0 or width == 0:
        raise ValueError(
            f"{source} holds {raw.shape[0]} cells and {width} genes, and there must be some of both; give another file."
        )
    repeated = genes[genes.duplicated()]
    if len(repeated):
        raise ValueError(
            f"{source} has {repeated.nunique()} gene names more than once, such as {repeated[0]!r}, and names must "
            "be unique; call adata.var_names_make_unique() or name another column of var in expression.gene_names."
        )
    return _in_rows(raw, source), genes


def check_values(values: Matrix, scale: Scale, source: str) -> None:
    """Refuse what cannot be expression: not finite, negative, not an integer where counts are declared.

    Raises:
        ValueError: naming the first such value.
    """
    if values.dtype.kind not in "fiub":
        raise ValueError(
            f"{source} holds values of type {values.dtype}, and expression must be numbers; store numbers."
        )
    integers, highest = True, 0.0
    for chunk in chunks(values):
        _refuse(chunk, ~np.isfinite(chunk), f"{source} holds", "expression must be finite; fill or remove it")
        _refuse(chunk, chunk < 0, f"{source} holds", "expression is never negative; give counts, or log1p values")
        whole = chunk == np.rint(chunk) if chunk.dtype.kind == "f" else np.ones_like(chunk, dtype=bool)
        if scale == "counts":
            _refuse(
                chunk,
                ~whole,
                f'{source} is declared scale = "counts" and holds',
                'counts are integers; name the layer with the counts, or declare scale = "log1p"',
            )
        integers = integers and bool(whole.all())
        highest = max(highest, float(chunk.max(initial=0)))
    if scale == "log1p" and integers and highest > _LOG1P_LIMIT:
        raise ValueError(
            f'{source} is declared scale = "log1p" and holds only integers, up to {highest:g}, and log1p counts '
            'per 10^4 end at 9.21; declare scale = "counts".'
        )


def total_counts_of(adata: anndata.AnnData, values: Matrix, column: str | None, source: str) -> npt.NDArray[np.float64]:
    """Each cell's total count [n]: the column of obs where one is declared, else the sum over all genes of the file.

    Raises:
        ValueError: a total is not positive and finite, or far below the sum over the file's genes.
    """
    sums = row_sums(values)
    if column is None:
        if (sums <= 0).any():
            raise ValueError(
                f"{int((sums <= 0).sum())} cells of {source} have no counts at all, and expression is per 10^4 of a "
                "cell's total; remove these cells, or declare columns.total_counts where the file holds a panel."
            )
        return sums
    obs: Any = adata.obs
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


def check_control_label(control: str | None, known: pd.Index, column: str | None) -> None:
    """Refuse a label of control cells that no cell has; None is no label.

    Raises:
        ValueError: naming the nearest label.
    """
    if control is not None and control not in known:
        raise ValueError(
            f"no cell has the control label {control!r} in column {column!r}; "
            f"{nearest(control, known)}; set control to the label of the control cells."
        )


def check_control_labels(controls: Iterable[str], known: Sequence[str], column: str | None) -> None:
    """Refuse a further label of control cells that no cell has.

    Raises:
        ValueError: naming the nearest label.
    """
    for label in controls:
        check_control_label(label, pd.Index(known, dtype=str), column)


def check_totals_fit(columns: Columns, scale: Scale, source: str) -> None:
    """Refuse total counts beside values that are log1p counts per 10^4 already.

    Raises:
        ValueError: both are declared.
    """
    if scale == "log1p" and columns.total_counts is not None:
        raise ValueError(
            f'columns.total_counts = {columns.total_counts!r} goes with scale = "counts", and the scale of {source} '
            'is "log1p", already per 10^4; leave it out.'
        )


def missing_labels(column: str, source: str, n_cells: int, example: str | None) -> ValueError:
    """The error of a column that has no label for some cells, one of which is named where it is known."""
    such = "" if example is None else f", such as {example!r}"
    return ValueError(
        f"column {column!r} of {source} has no label for {n_cells} cells{such}, and every cell needs one; fill in the "
        'labels, remove these cells, or exclude them in a recipe by the label "".'
    )


def column_of(table: pd.DataFrame, column: str, key: str, source: str) -> "pd.Series[Any]":
    """A column that a recipe's key names.

    Raises:
        ValueError: it is not there; the nearest is named.
    """
    if column not in table.columns:
        raise ValueError(
            f"{source} has no column {column!r}, which {key} names; {nearest(column, map(str, table.columns))}."
        )
    found: pd.Series[Any] = table[column]
    return found


def row_sums(values: Matrix) -> npt.NDArray[np.float64]:
    """Sums over genes [n] in float64, without a copy of the matrix."""
    if isinstance(values, np.ndarray):
        return np.asarray(values.sum(axis=1, dtype=np.float64))
    sums = np.zeros(values.shape[0])
    start = values.indptr[:-1]
    filled = start < values.indptr[1:]
    if filled.any():
        sums[filled] = np.add.reduceat(values.data, start[filled], dtype=np.float64)
    return sums


def chunks(values: Matrix) -> Iterator[npt.NDArray[Any]]:
    """The stored values, some at a time; views, never copies."""
    if isinstance(values, np.ndarray):
        rows = max(1, _CHUNK // max(1, values.shape[1]))
        yield from (values[i : i + rows] for i in range(0, values.shape[0], rows))
    else:
        yield from (values.data[i : i + _CHUNK] for i in range(0, values.nnz, _CHUNK))


def _refuse(chunk: npt.NDArray[Any], bad: npt.NDArray[np.bool_], opening: str, rule: str) -> None:
    if bad.any():
        raise ValueError(f"{opening} the value {chunk[bad][0]:g}, and {rule}.")


def _stored(adata: anndata.AnnData, expression: Expression, source: str) -> Any:  # noqa: ANN401 - any array
    layer = expression.layer
    if layer is None:
        if adata.X is None:
            raise ValueError(
                f"{source} has no X, where expression is read; name a layer in expression.layer; "
                f"{nearest('counts', _keys(adata.layers))}."
            )
        return adata.X
    where, key = ("obsm", layer.removeprefix("obsm:")) if layer.startswith("obsm:") else ("layers", layer)
    known = _keys(getattr(adata, where))
    if key not in known:
        raise ValueError(f"{source} has no {key!r} in {where}, which expression.layer names; {nearest(key, known)}.")
    return getattr(adata, where)[key]


def _keys(mapping: Any) -> list[str]:  # noqa: ANN401 - anndata's own mappings
    return [key for key in mapping if key is not None]


def _gene_names(
    adata: anndata.AnnData,
    raw: Any,  # noqa: ANN401 - any array
    expression: Expression,
    width: int,
    source: str,
) -> pd.Index:
    if isinstance(raw, pd.DataFrame):
        return pd.Index([str(gene) for gene in raw.columns], dtype=str)
    names: Any = adata.var_names
    if expression.gene_names is not None:
        var: Any = adata.var
        names = column_of(var, expression.gene_names, "expression.gene_names", source)
        if names.isna().any():
            raise ValueError(
                f"column {expression.gene_names!r} of {source} lacks the names of {int(names.isna().sum())} genes, "
                "and every gene needs one; name another column of var in expression.gene_names."
            )
        if names.dtype == bool:
            names = adata.var_names[names.to_numpy()]
    if len(names) != width:
        raise ValueError(
            f"{source} has {len(names)} gene names for the {width} columns of {expression.layer or 'X'!r}, and there "
            "must be as many; store it as a DataFrame whose columns are its genes, or name in expression.gene_names "
            "the column of var that is true for its genes."
        )
    return pd.Index([str(name) for name in names], dtype=str)


def _in_rows(raw: Any, source: str) -> Matrix:  # noqa: ANN401 - any array
    if isinstance(raw, pd.DataFrame):
        return raw.to_numpy()
    if isinstance(raw, np.ndarray):
        return raw
    if not sp.issparse(raw):
        raise ValueError(
            f"{source} holds its expression as {type(raw).__name__}, and it must be in memory; "
            "call adata.to_memory() first."
        )
    rows: Any = raw
    if rows.format != "csr":
        rows = rows.tocsr()
    if not rows.has_canonical_format:
        rows = rows.copy()
        rows.sum_duplicates()
    matrix: Matrix = rows
    return matrix
