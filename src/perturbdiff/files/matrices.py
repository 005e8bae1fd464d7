"""Matrices and their genes, looked at once before anything is computed from them.

Every check passes over the stored values in chunks, so that a matrix is never copied to be checked. What a check
refuses, it names: the value, the rule and the remedy.
"""

from collections.abc import Container, Iterator
from typing import Any, Literal, NamedTuple

import anndata
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from perturbdiff.recipes.dataset import Expression
from perturbdiff.spelling import nearest

type Matrix = sp.csr_matrix[Any] | sp.csr_array[Any, Any] | npt.NDArray[Any]
"""Cells by genes, in rows."""

type Scale = Literal["counts", "log1p"]

_NEGATIVE = "expression is never negative; give counts or log1p values, or clip predicted ones"
"""Whose last remedy is an option of the command that judges them."""

_CHUNK = 1 << 20
"""So many values are checked at a time."""

_KIND_COLUMNS = ("featuretypes", "featuretype")
_GENE_KINDS = ("gene expression", "gene", "genes", "rna", "gex")
_OTHER_KINDS = (
    "antibody capture",
    "crispr guide capture",
    "multiplexing capture",
    "antigen capture",
    "peaks",
    "custom",
    "vdj",
    "vdj-t",
    "vdj-b",
)
"""Kinds of features, as 10x calls them, in small letters; an underscore in the column's name is not looked at."""

_LOG1P_LIMIT = 9.3
"""No log1p count per 10^4 exceeds log1p(10^4) = 9.21."""


class Read(NamedTuple):
    """The expression of an AnnData.

    Attributes:
        values: [cells, genes], CSR or dense; of `stored_expression` as it is stored, with columns that are no genes.
        genes: unique names.
        kept: the columns of the stored matrix that are genes; None where all of them are.
        note: a sentence on those that are not.
    """

    values: Any
    genes: pd.Index
    kept: npt.NDArray[np.intp] | None
    note: str | None


def expression_of(adata: anndata.AnnData, expression: Expression, source: str) -> Read:
    """The matrix and its genes; CSR and dense matrices are taken as they are, others become CSR once.

    Raises:
        ValueError: the layer, the obsm key or the column of gene names is not there, gene names are missing or
            repeated, there are no cells or no genes, or the matrix is not in memory.
    """
    found = stored_expression(adata, expression, source)
    values = _in_rows(found.values, source)
    return found._replace(values=values if found.kept is None else values[:, found.kept])


def stored_expression(adata: Any, expression: Expression, source: str) -> Read:  # noqa: ANN401 - in memory or on disk
    """The same of a matrix that may be anywhere, which is not read; errors as in `expression_of`.

    Args:
        adata: an AnnData, or what has its X, layers, obsm, raw and var.
        expression: where the matrix is, and the names of its genes.
        source: opens the sentences of errors.
    """
    raw, table = _stored(adata, expression, source)
    width = int(raw.shape[1])
    genes = _gene_names(table, raw, expression, width, source)
    in_obsm = (expression.layer or "").startswith("obsm:")
    kept, note = (None, None) if in_obsm else _kinds(table, source)
    if kept is not None:
        genes = genes[kept]
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
    return Read(raw, genes, None if kept is None else np.flatnonzero(kept), note)


def _kinds(var: pd.DataFrame, source: str) -> tuple[npt.NDArray[np.bool_] | None, str | None]:
    """Which features are genes, where antibodies, guides and the like stand beside them, and a sentence on the others.

    Raises:
        ValueError: none are.
    """
    column = next((one for one in var.columns if str(one).lower().replace("_", "") in _KIND_COLUMNS), None)
    if column is None:
        return None, None
    kinds = var[column].astype(str)
    plain = kinds.str.strip().str.lower()
    genes = plain.isin(_GENE_KINDS).to_numpy()
    if not genes.any() and plain.isin(_OTHER_KINDS).all() and len(plain):
        raise ValueError(
            f"{source} has features of the kind {kinds.iloc[0]!r} alone, by column {column!r} of var, and expression "
            "is of genes; give the matrix or the file that holds genes."
        )
    # where nothing is called a gene, the column says what the genes are
    if genes.all() or not genes.any():
        return None, None
    others = kinds[~genes].value_counts()
    named = ", ".join(f"{count} {kind!r}" for kind, count in others.items())
    return genes, f"{source}: {int((~genes).sum())} of {len(genes)} features are no genes and are left out: {named}."


def check_values(values: Matrix, scale: Scale, source: str, *, whole: bool = True) -> tuple[bool, float]:
    """Refuse what cannot be expression: not finite, negative, not an integer where counts are declared.

    Args:
        values: of some cells.
        scale: as is declared.
        source: opens the sentence of an error.
        whole: whether they are all that is to be judged; of a part, see `check_integers`.

    Returns:
        Whether all of them are integers, and the highest.

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
        _refuse(
            chunk,
            chunk < 0,
            f"{source} holds",
            _NEGATIVE,
        )
        is_integer = chunk == np.rint(chunk) if chunk.dtype.kind == "f" else np.ones_like(chunk, dtype=bool)
        if scale == "counts":
            _refuse(
                chunk,
                ~is_integer,
                f'{source} is declared scale = "counts" and holds',
                'counts are integers; name the layer with the counts, or declare scale = "log1p"',
            )
        integers = integers and bool(is_integer.all())
        highest = max(highest, float(chunk.max(initial=0)))
    if whole and integers:
        check_integers(highest, scale, source)
    return integers, highest


def check_integers(highest: float, scale: Scale, source: str) -> None:
    """Refuse a file of log1p values that are all integers, of which this is the highest.

    Raises:
        ValueError: it is too high to be a log1p count.
    """
    if scale == "log1p" and highest > _LOG1P_LIMIT:
        raise ValueError(
            f'{source} is declared scale = "log1p" and holds only integers, up to {highest:g}, and log1p counts '
            'per 10^4 end at 9.21; declare scale = "counts".'
        )


def clipped(values: Matrix, source: str) -> tuple[Matrix, str | None]:
    """The values with those below 0 as 0, and a sentence that says how many there were; a copy where there are some."""
    below = [chunk[chunk < 0] for chunk in chunks(values)]
    number = sum(len(some) for some in below)
    if not number:
        return values, None
    note = f"{source}: {number} values are below 0, the lowest {min(some.min() for some in below if some.size):g}, "
    if isinstance(values, np.ndarray):
        return np.maximum(values, 0), note + "and are judged as 0."
    kept: Any = values.copy()
    kept.data = np.maximum(kept.data, 0)
    return kept, note + "and are judged as 0."


def column_of(table: pd.DataFrame, column: str, key: str, source: str) -> "pd.Series[Any]":
    """A column that a recipe's key names.

    Raises:
        ValueError: it is not there; the nearest is named.
    """
    check_column(table.columns, column, key, source)
    found: pd.Series[Any] = table[column]
    return found


def check_column(known: pd.Index, column: str, key: str, source: str) -> None:
    """Refuse a column that is not there; errors as in `column_of`."""
    if column not in known:
        raise ValueError(f"{source} has no column {column!r}, which {key} names; {nearest(column, map(str, known))}.")


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


def _stored(adata: Any, expression: Expression, source: str) -> tuple[Any, pd.DataFrame]:  # noqa: ANN401
    """The matrix that is named, and the table of its genes."""
    layer, var = expression.layer, adata.var
    if layer is None:
        if adata.X is None:
            raise ValueError(
                f"{source} has no X, where expression is read; name a layer in expression.layer; "
                f"{nearest('counts', _keys(adata.layers))}."
            )
        return adata.X, var
    if is_raw(layer, adata.layers) and adata.raw is not None:
        return adata.raw.X, adata.raw.var
    where, key = ("obsm", layer.removeprefix("obsm:")) if layer.startswith("obsm:") else ("layers", layer)
    known = _keys(getattr(adata, where))
    if key not in known:
        raise ValueError(f"{source} has no {key!r} in {where}, which expression.layer names; {nearest(key, known)}.")
    return getattr(adata, where)[key], var


def is_raw(layer: str | None, layers: Container[Any]) -> bool:
    """Whether a layer's name means `raw.X`: where no layer is called so."""
    return layer == "raw" and layer not in layers


def _keys(mapping: Any) -> list[str]:  # noqa: ANN401 - anndata's own mappings
    return [key for key in mapping if key is not None]


def _gene_names(
    var: pd.DataFrame,
    raw: Any,  # noqa: ANN401 - any array
    expression: Expression,
    width: int,
    source: str,
) -> pd.Index:
    if hasattr(raw, "columns"):
        return pd.Index([str(gene) for gene in raw.columns], dtype=str)
    names: Any = var.index
    if expression.gene_names is not None:
        names = column_of(var, expression.gene_names, "expression.gene_names", source)
        if names.isna().any():
            raise ValueError(
                f"column {expression.gene_names!r} of {source} lacks the names of {int(names.isna().sum())} genes, "
                "and every gene needs one; name another column of var in expression.gene_names."
            )
        if names.dtype == bool:
            names = var.index[names.to_numpy()]
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
