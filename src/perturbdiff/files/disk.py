"""An AnnData that stays on disk, .h5ad, .zarr or the RNA of an .h5mu, read some cells at a time.

Only the list of its genes is ever held whole. `files.container` reads all of it.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import copy
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import anndata
import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
import zarr
from anndata.io import sparse_dataset
from h5py.h5t import check_string_dtype

from perturbdiff.files.container import UNREADABLE, refuse_hole
from perturbdiff.files.matrices import is_raw, stored_expression
from perturbdiff.recipes.dataset import Expression
from perturbdiff.recipes.files import find_hole, rna_of

type Rows = sp.csr_matrix[Any]
type Texts = npt.NDArray[np.object_]
type Form = Literal["csr", "csc", "dense", "columns"]

type Stored = Any
"""A group or an array of h5py or of zarr, which have the same interface."""

_read_elem: Callable[[Stored], Any] = anndata.io.read_elem

_NULLABLE = {"nullable-integer": pd.arrays.IntegerArray, "nullable-boolean": pd.arrays.BooleanArray}


class Table:
    """A table on disk: obs, or one in obsm.

    Attributes:
        name: where it is in its file.
        columns: their names.
        shape: rows and columns.
    """

    def __init__(self, stored: Stored, held: pd.DataFrame | None = None) -> None:
        """Open a stored table; `held` is what it holds, where only anndata can tell."""
        self.name, self._stored, self._categories = stored.name, stored, dict[str, pd.Index]()
        attrs = stored.attrs
        plain = (attrs.get("encoding-type"), attrs.get("encoding-version")) == ("dataframe", "0.2.0")
        self._held: Any = _read_elem(stored) if held is None and not plain else held
        if self._held is None:
            index = stored[attrs["_index"]]
            codes = index if hasattr(index, "shape") else index["codes" if "codes" in index else "values"]
            self.columns, n_rows = pd.Index(attrs["column-order"], dtype=object), int(codes.shape[0])
        else:
            self.columns, n_rows = self._held.columns, len(self._held)
        self.shape = (n_rows, len(self.columns))

    def whole(self) -> pd.DataFrame:
        """All of it."""
        found: pd.DataFrame = _read_elem(self._stored) if self._held is None else self._held
        return found

    def names(self, start: int, stop: int) -> Texts:
        """The names of the rows start to stop, as text."""
        if self._held is None:
            names = self._read(str(self._stored.attrs["_index"]), start, stop)
        else:
            names = self._held.index[start:stop].to_series()
        as_text = list(map(str, names)) if names.dtype == object else names.astype(str)
        return np.asarray(as_text, dtype=object)

    def column(self, name: str, start: int, stop: int) -> "pd.Series[Any]":
        """The rows start to stop of a column, as pandas would hold them."""
        if self._held is None:
            return self._read(name, start, stop)
        found: pd.Series[Any] = self._held[name].iloc[start:stop].reset_index(drop=True)
        return found

    def _read(self, name: str, start: int, stop: int) -> "pd.Series[Any]":
        stored = self._stored[name]
        kind = str(stored.attrs.get("encoding-type", "array"))
        if kind == "categorical":
            if name not in self._categories:
                self._categories[name] = pd.Index(_read_elem(stored["categories"]))
            return pd.Series(pd.Categorical.from_codes(stored["codes"][start:stop], self._categories[name]))
        if not kind.startswith("nullable-"):
            return pd.Series(_slice_of(stored, start, stop))
        values, mask = _slice_of(stored["values"], start, stop), np.asarray(stored["mask"][start:stop], dtype=bool)
        if kind in _NULLABLE:
            return pd.Series(_NULLABLE[kind](values, mask))
        values[mask] = None
        return pd.Series(values, dtype=object)


class OnDisk:
    """An AnnData that stays on disk, of whose matrices one is read; see `opened`.

    Attributes:
        path: where it is.
        source: opens the sentences of errors; its name.
        obs: the table of its cells.
        matrix: a matrix of anndata's on disk, a table or an array.
        form: how it is stored; "columns" is a table in obsm.
        shape: cells and genes of its matrix.
        genes: unique names, the columns of its matrix that are genes.
        note: a sentence on the columns that are not.
    """

    def __init__(self, root: Stored, expression: Expression, path: Path, source: str | None = None) -> None:
        self.path, self.source, layer = path, source or path.name, expression.layer or ""
        with readable(path):
            if "obs" not in root or "var" not in root:
                raise ValueError("it has no obs or no var")
            obs, var = _old_tables(root, path)
            self.obs = Table(root["obs"], obs)
            raw = root["raw"] if is_raw(layer, root.get("layers", ())) and "raw" in root else None
            stored = SimpleNamespace(
                X=_element(root.get("X")),
                layers=_elements(root.get("layers", {}), layer),
                obsm=_elements(root.get("obsm", {}), layer.removeprefix("obsm:")),
                raw=None if raw is None else SimpleNamespace(X=_element(raw.get("X")), var=_read_elem(raw["var"])),
                var=_read_elem(root["var"]) if var is None else var,
            )
        self.matrix, self.genes, self._kept, self.note = stored_expression(stored, expression, self.source)
        self._width = int(self.matrix.shape[1])
        self._place = getattr(self.matrix, "group", self.matrix).name
        self.form: Form = "columns" if isinstance(self.matrix, Table) else getattr(self.matrix, "format", "dense")
        self.shape = (self.obs.shape[0], len(self.genes))
        self._pointers: Any = self.matrix.group["indptr"] if self.form == "csr" else None

    @contextmanager
    def again(self) -> Iterator["OnDisk"]:
        """Open the file once more, after it was closed, without a look at its genes."""
        with _root(self.path) as root:
            found = copy(self)
            found.matrix = _element(root[self._place])
            yield found

    def hold_pointers(self) -> None:
        """Hold in memory where each row of a CSR matrix begins, for many readings of a few rows."""
        if self.form == "csr":
            self._pointers = np.asarray(self._pointers[:], dtype=np.int64)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the matrix's values."""
        if self.form == "columns":
            return np.result_type(*(self.matrix.column(name, 0, 0).dtype for name in self.matrix.columns))
        kept: np.dtype[Any] = self.matrix.dtype
        return kept

    @property
    def n_stored(self) -> int | None:
        """How many values a sparse matrix stores; None where it is dense."""
        return None if self.form in ("dense", "columns") else int(self.matrix.group["data"].shape[0])

    @property
    def bytes_per_value(self) -> int:
        """What a value of the matrix takes, with its place where it is sparse."""
        place = 0 if self.n_stored is None else self.matrix.group["indices"].dtype.itemsize
        return int(self.dtype.itemsize + place)

    @property
    def n_bytes(self) -> int:
        """What the values of the matrix take in memory."""
        n_values = self.shape[0] * self._width if self.n_stored is None else self.n_stored
        return n_values * self.bytes_per_value

    def check_room(self, room: int) -> None:
        """Refuse a matrix stored by genes that does not fit into a third of the room.

        Raises:
            ValueError: it does not.
        """
        if self.form == "csc" and self.n_bytes > room // 3:
            raise ValueError(
                f"{self.source} stores its {self.n_stored} values by genes (CSC), which takes "
                f"{self.n_bytes / 2**30:.1f} GiB to turn into cells, more than a third of the {room / 2**30:.1f} GiB "
                "of memory there is; write it by cells (CSR) first, or allow more memory."
            )

    def lengths(self, start: int, stop: int) -> npt.NDArray[np.int64] | None:
        """How many values each of the cells start to stop stores; None where only reading them tells."""
        return None if self.form != "csr" else np.diff(self._ends(start, stop))

    def column(self, name: str, start: int, stop: int) -> "pd.Series[Any]":
        """A column of obs, cells start to stop."""
        with readable(self.path):
            return self.obs.column(name, start, stop)

    def names(self, start: int, stop: int) -> Texts:
        """The names of the cells start to stop."""
        with readable(self.path):
            return self.obs.names(start, stop)

    def rows(self, start: int, stop: int) -> Rows:
        """The matrix's rows start to stop, with each gene of a cell once and ascending; explicit zeros stay."""
        with readable(self.path):
            rows = self._rows(start, stop)
        return rows if self._kept is None else sp.csr_matrix(rows[:, self._kept])

    def _rows(self, start: int, stop: int) -> Rows:
        if self.form == "csc":
            return sp.csr_matrix(self._turned[start:stop])
        if self.form == "dense":
            return sp.csr_matrix(np.asarray(self.matrix[start:stop]))
        if self.form == "columns":
            columns = [self.matrix.column(name, start, stop).to_numpy() for name in self.matrix.columns]
            return sp.csr_matrix(np.stack(columns, axis=1))
        # a slice of anndata's would be a copy of the rows
        ends, stored = self._ends(start, stop), self.matrix.group
        first, last = int(ends[0]), int(ends[-1])
        indptr = (ends - first).astype(np.int32 if last - first < 2**31 else np.int64)
        indices = np.asarray(stored["indices"][first:last]).astype(indptr.dtype, copy=False)
        arrays: Any = (np.asarray(stored["data"][first:last]), indices, indptr)
        found: Rows = sp.csr_matrix(arrays, shape=(stop - start, self._width), copy=False)
        if not found.has_canonical_format:
            found.sum_duplicates()
        return found

    def _ends(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        with readable(self.path):
            return np.asarray(self._pointers[start : stop + 1], dtype=np.int64)

    @cached_property
    def _turned(self) -> Rows:
        found: Rows = sp.csr_matrix(_read_elem(self.matrix.group))
        found.sum_duplicates()
        return found


@contextmanager
def opened(path: Path, expression: Expression, source: str | None = None) -> Iterator[OnDisk]:
    """Open a file for reading; `source` opens the sentences of errors in place of its name.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is damaged or not an AnnData; or as in `reading.expression_of`.
    """
    with _root(path) as root:
        yield OnDisk(root, expression, path, source)


def check_whole(path: Path) -> None:
    """Refuse a folder from which files are missing, which would be read as zeros.

    Raises:
        ValueError: naming the array.
    """
    with readable(path):
        hole = find_hole(path)
    refuse_hole(path, hole)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what goes wrong while a file is read into one sentence.

    Raises:
        FileNotFoundError: the file is gone.
        ValueError: it is cut short, damaged, or not an AnnData.
    """
    try:
        yield
    except UNREADABLE as error:
        if not path.exists():
            raise FileNotFoundError(f"file {str(path)!r} is gone; put it back and run this again.") from error
        reason = str(error).replace("\n", " ")
        if "truncated" in reason:
            why = "is cut short"
        elif "signature" in reason:
            why = "is not an HDF5 file, which an .h5ad is"
        elif isinstance(error, OSError):
            why = f"cannot be read and is probably damaged ({reason[:120]})"
        else:
            why = f"is not an AnnData that can be read ({reason[:120]})"
        raise ValueError(f"{str(path)!r} {why}; copy or write it again, then run this again.") from error


@contextmanager
def _root(path: Path) -> Iterator[Stored]:
    """The group of a file that is an AnnData, while it is open."""
    if not path.exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}; put it back, or mend the recipe.")
    library: Any = h5py
    with readable(path):
        file: Any = nullcontext(zarr.open_group(path, mode="r")) if path.is_dir() else library.File(path)
    with file as root:
        yield rna_of(root, path)


def _element(stored: Stored) -> Any:  # noqa: ANN401 - a matrix of anndata's, a table or an array
    """A stored matrix with its shape; None where there is none."""
    kind = "null" if stored is None else stored.attrs.get("encoding-type")
    if kind == "null":
        return None
    if kind == "dataframe":
        return Table(stored)
    return stored if hasattr(stored, "shape") else sparse_dataset(stored, should_cache_indptr=False)


def _elements(group: Stored, wanted: str) -> dict[str, Any]:
    """The matrices of a group, of which only the one that is wanted is opened."""
    return {str(key): _element(group[key]) if key == wanted else None for key in group}


def _old_tables(root: Stored, path: Path) -> tuple[pd.DataFrame | None, pd.DataFrame | None]:
    """The tables of cells and genes of a file whose tables are compound arrays, which anndata alone puts together."""
    if hasattr(root["obs"], "keys"):
        return None, None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole: Any = anndata.read_h5ad(path, backed="r")
    try:
        return whole.obs, whole.var
    finally:
        whole.file.close()


def _slice_of(array: Stored, start: int, stop: int) -> npt.NDArray[Any]:
    """Values of an array; text has dtype object."""
    if hasattr(array, "asstr") and check_string_dtype(array.dtype) is not None:
        return np.asarray(array.asstr()[start:stop], dtype=object)
    values = np.asarray(array[start:stop])
    return values.astype(object) if values.dtype.kind in "TUO" else values
