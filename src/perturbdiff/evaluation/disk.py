"""Cells that stay in their file: labels and names are in memory, expression is read for some rows at a time.

An .h5ad is read so where its matrix has rows (CSR or dense). Neighbouring rows are read in one go; a file whose
conditions are scattered over it is read a row at a time, and fastest where it is sorted by condition. What is read is
checked as a file in memory is, when it is read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from anndata.io import read_elem
from numpy.typing import NDArray

from perturbdiff.cells.anndata import cells_from_anndata
from perturbdiff.cells.memory import Cells
from perturbdiff.cells.reading import check_values, expression_of, is_raw
from perturbdiff.cells.totals import check_normalised, check_totals_fit, converted, genes_summed, total_counts_of
from perturbdiff.recipes.dataset import PLAIN, Columns, Expression, Grammar
from perturbdiff.recipes.files import MUDATA

type Rows = NDArray[np.int64]

type Stored = Any
"""A group or an array of h5py, which has no types."""

_LIBRARY: Any = h5py
_ROWS_AT_ONCE = 4096
_PLAIN_TABLES = ("0.2.0", "0.2.0")
_GAP = 8
"""So many rows that nobody asked for are read along rather than skipped."""

_READING = Lock()
"""HDF5 reads one thing at a time; said here, so that no two threads move one file's position."""


@dataclass(frozen=True, eq=False)
class Disk:
    """The cells of an .h5ad, of which `head` has everything but the expression; see `pairs.File`.

    Attributes:
        path: the file.
        head: its labels, names and genes, and no expression.
        columns: of the file.
        expression: its layer and scale.
        observed: whether the cells are measured ones.
    """

    path: Path
    head: Cells
    columns: Columns
    expression: Expression
    _obs: pd.DataFrame = field(repr=False)
    _kept: NDArray[np.intp] | None = field(repr=False)
    _width: int
    _summed: NDArray[np.bool_] | None = field(repr=False)
    observed: bool = True

    @classmethod
    def opened(
        cls,
        path: Path,
        columns: Columns,
        expression: Expression,
        control: str,
        *,
        controls: Sequence[str] = (),
        grammar: Grammar = PLAIN,
        summed: tuple[str, ...] | None = None,
        observed: bool = True,
    ) -> "Disk":
        """Open a file that `rows_can_be_read` of; labels are read as in `cells.anndata`, control cells may be absent.

        Raises:
            ValueError: its labels are refused (see `cells.anndata`), or it lacks genes that are to be summed.
        """
        with _LIBRARY.File(path) as file:
            obs: Any = read_elem(file["obs"])
            var: Any = read_elem(file["var"])
        check_totals_fit(columns, expression.scale, repr(path.name))
        shape: Any = (len(obs), len(var))
        empty: Any = sp.csr_matrix(shape, dtype=np.float32)
        bare = AnnData(X=empty, obs=obs, var=var)
        if expression.layer is not None:
            bare.layers[expression.layer] = empty
        labels = columns.model_copy(update={"total_counts": None})
        unscaled = expression.model_copy(update={"scale": "log1p"})
        source = repr(path.name)
        head = cells_from_anndata(
            bare,
            columns=labels,
            expression=unscaled,
            control=control,
            controls=controls,
            grammar=grammar,
            source=source,
            require="none",
        )
        kept = expression_of(bare, unscaled, source).kept
        own = expression.scale == "counts" and columns.total_counts is None
        over = genes_summed(head.genes, summed, source) if own else None
        columns_kept = None if kept is None else np.flatnonzero(kept)
        return cls(path, head, columns, expression, obs, columns_kept, len(var), over, observed)

    @property
    def genes(self) -> pd.Index:
        """See `File`."""
        return self.head.genes

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on what was done to the data."""
        return self.head.notes

    @property
    def names(self) -> pd.Index:
        """See `File`."""
        return self.head.names

    @property
    def labels(self) -> pd.DataFrame:
        """See `File`."""
        return self.head.labels

    @property
    def control(self) -> str | None:
        """See `File`."""
        return self.head.control

    @property
    def is_control(self) -> NDArray[np.bool_]:
        """See `File`."""
        return self.head.is_control

    def log_expression(self, genes: Sequence[str], rows: Rows | None = None) -> "sp.csr_matrix[np.float32]":
        """Log1p counts per 10^4 of some genes and rows, read now.

        Raises:
            ValueError: a value cannot be expression, or a cell's total count is impossible.
        """
        rows = np.arange(len(self.names)) if rows is None else np.asarray(rows)
        if not rows.size:
            return sp.csr_matrix((0, len(genes)), dtype=np.float32)
        parts = [self._some(genes, rows[at : at + _ROWS_AT_ONCE]) for at in range(0, len(rows), _ROWS_AT_ONCE)]
        found: sp.csr_matrix[np.float32] = sp.vstack(parts, format="csr") if len(parts) != 1 else parts[0]
        return found

    def _some(self, genes: Sequence[str], rows: Rows) -> "sp.csr_matrix[np.float32]":
        order = np.argsort(rows, kind="stable")
        values = self._read(rows[order])[np.argsort(order, kind="stable")]
        source = repr(self.path.name)
        check_values(values, self.expression.scale, source)
        totals = None
        if self.expression.scale == "counts":
            some = AnnData(obs=self._obs.iloc[rows].set_axis([str(i) for i in range(len(rows))]))
            totals = total_counts_of(some, values, self.columns.total_counts, source, self._summed)
        else:
            if self.observed:
                check_normalised(values, self.expression, source)
            values = sp.csr_matrix(converted(values, self.expression))
        labels = self.labels.iloc[rows]
        cells = Cells(values, self.expression.scale, totals, self.genes, self.names[rows], labels, control=None)
        return cells.log_expression(genes)

    def _read(self, rows: Rows) -> "sp.csr_matrix[Any]":
        """Ascending rows as they are stored."""
        with _READING, _LIBRARY.File(self.path) as file:
            stored = file[_place(self.expression)]
            if isinstance(stored, _LIBRARY.Dataset):
                parts = [sp.csr_matrix(stored[start:stop][own]) for start, stop, own in _stretches(rows)]
            else:
                parts = [self._sparse(stored, start, stop)[own] for start, stop, own in _stretches(rows)]
        together: sp.csr_matrix[Any] = sp.vstack(parts, format="csr")
        return together if self._kept is None else sp.csr_matrix(together[:, self._kept])

    def _sparse(self, stored: Stored, start: int, stop: int) -> "sp.csr_matrix[Any]":
        pointers = self._pointers[start : stop + 1]
        inside = slice(int(pointers[0]), int(pointers[-1]))
        shape = (stop - start, self._width)
        found = sp.csr_matrix((stored["data"][inside], stored["indices"][inside], pointers - pointers[0]), shape=shape)
        found.sum_duplicates()
        return found

    @cached_property
    def _pointers(self) -> NDArray[np.int64]:
        with _LIBRARY.File(self.path) as file:
            return np.asarray(file[_place(self.expression)]["indptr"][:], dtype=np.int64)


def rows_can_be_read(path: Path, expression: Expression) -> bool:
    """Whether a file's matrix can be read by rows: an .h5ad with a CSR or dense matrix."""
    if (
        path.is_dir()
        or path.suffix == MUDATA
        or (expression.layer or "").startswith("obsm:")
        or expression.gene_names is not None
    ):
        return False
    try:
        with _LIBRARY.File(path) as file:
            place = _place(expression)
            if is_raw(expression.layer, file.get("layers", ())) or _version(file) != _PLAIN_TABLES:
                return False
            return place in file and bool(
                isinstance(file[place], _LIBRARY.Dataset) or _encoding(file[place]) == "csr_matrix"
            )
    except OSError:
        return False


def size_in_memory(path: Path, expression: Expression) -> int:
    """How many bytes the values of such a file's matrix take in memory."""
    with _LIBRARY.File(path) as file:
        stored = file[_place(expression)]
        if isinstance(stored, _LIBRARY.Dataset):
            return int(stored.size * stored.dtype.itemsize)
        return int(stored["data"].size * (stored["data"].dtype.itemsize + stored["indices"].dtype.itemsize))


def declaration(path: Path, key: str) -> dict[str, Any]:
    """What a file says of itself in `uns`; nothing where it does not."""
    if not path.is_file() or not _LIBRARY.is_hdf5(path):
        return {}
    with _LIBRARY.File(path) as file:
        place = f"uns/{key}"
        found: Any = read_elem(file[place]) if place in file else {}
        return dict(found)


def _place(expression: Expression) -> str:
    return "X" if expression.layer is None else f"layers/{expression.layer}"


def _version(file: Stored) -> tuple[str, str]:
    """How the tables of a file are written; those of older files are read by anndata as a whole."""
    obs, var = (file.get(name) for name in ("obs", "var"))
    versions = [str(table.attrs.get("encoding-version", "")) if table is not None else "" for table in (obs, var)]
    return versions[0], versions[1]


def _encoding(group: Stored) -> str:
    return str(group.attrs.get("encoding-type", ""))


def _stretches(rows: Rows) -> Iterator[tuple[int, int, Rows]]:
    """Ascending rows as stretches to read: start, stop, and which rows of the stretch were asked for."""
    for some in np.split(rows, np.flatnonzero(np.diff(rows) > _GAP) + 1):
        if some.size:
            start = int(some[0])
            yield start, int(some[-1]) + 1, some - start
