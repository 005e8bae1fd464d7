"""Cells that stay in their file: labels and names are in memory, expression is read for some rows at a time.

A file is read so where its matrix has rows (CSR or dense). Neighbouring rows are read in one go; a file whose
conditions are scattered over it is read a row at a time, and fastest where it is sorted by condition. What is read is
checked as a file in memory is, when it is read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
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

from perturbdiff.cells.anndata import MEASURED, Made, cells_from_anndata
from perturbdiff.cells.memory import Cells
from perturbdiff.files.disk import OnDisk, opened
from perturbdiff.files.totals import check_totals_fit, checked, genes_summed
from perturbdiff.recipes.dataset import PLAIN, Columns, Expression, Grammar
from perturbdiff.recipes.files import MUDATA

type Rows = NDArray[np.int64]

_LIBRARY: Any = h5py
_ROWS_AT_ONCE = 4096
_GAP = 8
"""So many rows that nobody asked for are read along rather than skipped."""

_READING = Lock()
"""HDF5 reads one thing at a time; said here, so that no two threads move one file's position."""


@dataclass(frozen=True, eq=False)
class Disk:
    """The cells of an .h5ad, of which `head` has everything but the expression; see `pairs.File`.

    Attributes:
        file: of which rows are read; it is open only then.
        head: its labels, names and genes, and no expression.
        columns: of the file.
        expression: its layer and scale.
        observed: whether the cells are measured ones.
    """

    file: OnDisk
    head: Cells
    columns: Columns
    expression: Expression
    _obs: pd.DataFrame = field(repr=False)
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
        made: Made = MEASURED,
    ) -> "Disk":
        """Open a file that `rows_can_be_read` of; labels are read as in `cells.anndata`, control cells may be absent.

        Raises:
            ValueError: its labels are refused (see `cells.anndata`), or it lacks genes that are to be summed.
        """
        source = repr(path.name)
        check_totals_fit(columns, expression.scale, source)
        with opened(path, expression, source) as file:
            file.hold_pointers()
            obs = file.obs.whole()
        empty: Any = sp.csr_matrix(file.shape, dtype=np.float32)
        head = cells_from_anndata(
            AnnData(X=empty, obs=obs, var=pd.DataFrame(index=file.genes)),
            columns=columns.model_copy(update={"total_counts": None}),
            expression=Expression(scale="log1p"),
            control=control,
            controls=controls,
            grammar=grammar,
            source=source,
            require="none",
            made=made,
        )
        if file.note is not None:
            head = replace(head, notes=(file.note, *head.notes))
        own = expression.scale == "counts" and columns.total_counts is None
        over = genes_summed(head.genes, summed, source) if own else None
        return cls(file, head, columns, expression, obs, over, observed)

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

    @property
    def origins(self) -> NDArray[np.int64] | None:
        """See `File`."""
        return self.head.origins

    @property
    def draws(self) -> NDArray[np.int64] | None:
        """See `File`."""
        return self.head.draws

    def log_expression(self, genes: Sequence[str], rows: Rows | None = None) -> "sp.csr_matrix[np.float32]":
        """Log1p counts per 10^4 of some genes and rows, read now.

        Raises:
            ValueError: a value cannot be expression, or a cell's total count is impossible.
        """
        rows = np.arange(len(self.names)) if rows is None else np.asarray(rows)
        if not rows.size:
            return sp.csr_matrix((0, len(genes)), dtype=np.float32)
        parts = [self._some(own).log_expression(genes) for own in _in_parts(rows)]
        found: sp.csr_matrix[np.float32] = sp.vstack(parts, format="csr") if len(parts) != 1 else parts[0]
        return found

    def totals(self, rows: Rows) -> NDArray[np.float64]:
        """The total counts of some rows, read now; NaN where they are not known, see `Cells.known_totals`.

        Raises:
            ValueError: as `log_expression`.
        """
        return np.concatenate([np.zeros(0), *(self._some(own).known_totals for own in _in_parts(rows))])

    def _some(self, rows: Rows) -> Cells:
        """Some rows of the file, with all genes."""
        order = np.argsort(rows, kind="stable")
        values = self._read(rows[order])[np.argsort(order, kind="stable")]
        obs, source = self._obs.iloc[rows], self.file.source
        found = checked(values, obs, self.columns, self.expression, source, summed=self._summed, observed=self.observed)
        labels, scale = self.labels.iloc[rows], self.expression.scale
        return Cells(found.rows, scale, found.totals, self.genes, self.names[rows], labels, control=None)

    def _read(self, rows: Rows) -> "sp.csr_matrix[Any]":
        """Ascending rows as they are stored."""
        with _READING, self.file.again() as file:
            parts = [file.rows(start, stop)[own] for start, stop, own in _ranges(rows)]
        together: sp.csr_matrix[Any] = sp.vstack(parts, format="csr")
        return together


def rows_can_be_read(path: Path, expression: Expression) -> bool:
    """Whether a file's matrix can be read by rows: an .h5ad with a CSR or dense matrix."""
    if path.is_dir() or path.suffix == MUDATA:
        return False
    try:
        with opened(path, expression) as file:
            return file.form in ("csr", "dense")
    except (OSError, ValueError):  # which reading all of it will say
        return False


def size_in_memory(path: Path, expression: Expression) -> int:
    """How many bytes the values of such a file's matrix take in memory."""
    with opened(path, expression) as file:
        return file.n_bytes


def declaration(path: Path, key: str) -> dict[str, Any]:
    """What a file says of itself in `uns`; nothing where it does not."""
    if not path.is_file() or not _LIBRARY.is_hdf5(path):
        return {}
    with _LIBRARY.File(path) as file:
        place = f"uns/{key}"
        found: Any = read_elem(file[place]) if place in file else {}
        return dict(found)


def _in_parts(rows: Rows) -> Iterator[Rows]:
    """Rows, as many as are read at once."""
    yield from (rows[at : at + _ROWS_AT_ONCE] for at in range(0, len(rows), _ROWS_AT_ONCE))


def _ranges(rows: Rows) -> Iterator[tuple[int, int, Rows]]:
    """Ascending rows as ranges to read: start, stop, and which rows of the range were asked for."""
    for some in np.split(rows, np.flatnonzero(np.diff(rows) > _GAP) + 1):
        if some.size:
            start = int(some[0])
            yield start, int(some[-1]) + 1, some - start
