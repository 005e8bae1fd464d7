"""A file of cells on disk, .h5ad or .zarr, read some cells at a time; only its list of genes is ever held whole."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import anndata
import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
import zarr

from perturbdiff.cells.reading import expression_of, is_raw
from perturbdiff.recipes.dataset import Expression
from perturbdiff.recipes.files import find_hole, rna_of
from perturbdiff.store.columns import Obs, Stored, Texts, slice_of, texts_of

type Rows = sp.csr_matrix[Any]
type Form = Literal["csr", "csc", "dense", "columns"]

_SPARSE: dict[str, Form] = {"csr_matrix": "csr", "csc_matrix": "csc", "csr": "csr", "csc": "csc"}
_PER_ENTRY = 12
"""Bytes that making rows of a dense matrix sparse takes for each entry, besides the entry."""

_SEARCHED = 1 << 24
"""A .zarr of more cells is not searched for missing files, since that takes the ends of all rows at once."""


class Input:
    """An open file.

    Attributes:
        path: where it is; `source` is its name.
        obs: the table of its cells.
        form: how its matrix is stored; "columns" is a table in obsm.
        shape: cells and genes of its matrix.
        genes: unique names, the columns of its matrix that are genes.
        note: a sentence on the columns that are not.
    """

    def __init__(self, root: Stored, expression: Expression, path: Path) -> None:
        self.path = path
        self.source = path.name
        with readable(path):
            obs, var = _old_tables(root, path)
            self.obs = Obs(root["obs"], obs)
            self._matrix = _matrix(root, expression.layer)
            table = _stand_in(root, self._matrix, expression.layer, min(1, self.obs.n_cells), var)
        read = expression_of(table, expression, self.source)
        self.genes, self.note = read.genes, read.note
        self._kept = None if read.kept is None else np.flatnonzero(read.kept)
        self._width = len(self.genes) if read.kept is None else len(read.kept)
        kind = str(self._matrix.attrs.get("encoding-type", self._matrix.attrs.get("h5sparse_format", "array")))
        self.form: Form = _SPARSE.get(kind, "columns" if kind == "dataframe" else "dense")
        self.shape = (self.obs.n_cells, len(self.genes))

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the matrix's values."""
        if self.form == "columns":
            return np.result_type(*(column.dtype for column in self._columns))
        kept: np.dtype[Any] = (self._matrix if self.form == "dense" else self._matrix["data"]).dtype
        return kept

    @property
    def n_stored(self) -> int | None:
        """How many values a sparse matrix stores; None where it is dense."""
        return None if self.form in ("dense", "columns") else int(self._matrix["data"].shape[0])

    @property
    def bytes_per_value(self) -> int:
        """What a value of a sparse matrix takes."""
        return int(np.dtype(self._matrix["data"].dtype).itemsize + np.dtype(self._matrix["indices"].dtype).itemsize)

    def lengths(self, start: int, stop: int) -> npt.NDArray[np.int64] | None:
        """How many values each of the cells start to stop stores; None where only reading them tells."""
        if self.form != "csr":
            return None
        with readable(self.path):
            return np.diff(np.asarray(self._matrix["indptr"][start : stop + 1], dtype=np.int64))

    def cost(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Bytes of memory that reading each of the cells start to stop takes."""
        lengths = self.lengths(start, stop)
        if lengths is not None:
            return lengths * self.bytes_per_value
        if self.form == "csc":
            per_cell = self.bytes_per_value * (self.n_stored or 0) // max(1, self.shape[0])
        else:
            per_cell = self._width * (self.dtype.itemsize + _PER_ENTRY)
        return np.full(stop - start, per_cell, dtype=np.int64)

    def check_room(self, room: int) -> None:
        """Refuse a matrix stored by genes that does not fit into a third of the room.

        Raises:
            ValueError: it does not.
        """
        needed = self.bytes_per_value * (self.n_stored or 0) if self.form == "csc" else 0
        if needed > room // 3:
            raise ValueError(
                f"{self.source} stores its {self.n_stored} values by genes (CSC), which takes {needed / 2**30:.1f} GiB "
                f"to turn into cells, more than a third of the {room / 2**30:.1f} GiB of memory there is; write it by "
                "cells (CSR) first, or allow more memory."
            )

    def check_whole(self) -> None:
        """Refuse a folder from which files are missing, which would be read as zeros.

        Raises:
            ValueError: naming the array.
        """
        if not self.path.is_dir() or self.shape[0] > _SEARCHED:
            return
        with readable(self.path):
            hole = find_hole(self.path)
        if hole is not None:
            raise ValueError(
                f"{str(self.path)!r} is not whole: parts of its array {hole!r} are missing, which would be read as "
                "zeros; copy or download it again."
            )

    def column(self, name: str, start: int, stop: int) -> "pd.Series[Any]":
        """A column of obs, cells start to stop."""
        with readable(self.path):
            return self.obs.column(name).read(start, stop)

    def names(self, start: int, stop: int) -> Texts:
        """The names of the cells start to stop."""
        with readable(self.path):
            return texts_of(self.obs.names.read(start, stop))

    def rows(self, start: int, stop: int) -> Rows:
        """The matrix's rows start to stop, with each gene of a cell once and ascending; explicit zeros stay."""
        with readable(self.path):
            rows = self._rows(start, stop)
        return rows if self._kept is None else sp.csr_matrix(rows[:, self._kept])

    def _rows(self, start: int, stop: int) -> Rows:
        if self.form == "csc":
            return sp.csr_matrix(self._turned[start:stop])
        if self.form == "dense":
            return sp.csr_matrix(np.asarray(self._matrix[start:stop]))
        if self.form == "columns":
            return sp.csr_matrix(np.stack([slice_of(column, start, stop) for column in self._columns], axis=1))
        ends = np.asarray(self._matrix["indptr"][start : stop + 1], dtype=np.int64)
        first, last = int(ends[0]), int(ends[-1])
        data, indices = self._matrix["data"][first:last], self._matrix["indices"][first:last]
        indptr = (ends - first).astype(np.int32 if last - first < 2**31 else np.int64)
        arrays: Any = (np.asarray(data), np.asarray(indices).astype(indptr.dtype, copy=False), indptr)
        found: Rows = sp.csr_matrix(arrays, shape=(stop - start, self._width), copy=False)
        if not found.has_canonical_format:
            found.sum_duplicates()
        return found

    @cached_property
    def _turned(self) -> Rows:
        by_genes: Any = anndata.io.read_elem(self._matrix)
        found: Rows = sp.csr_matrix(by_genes)
        found.sum_duplicates()
        return found

    @cached_property
    def _columns(self) -> list[Stored]:
        return [self._matrix[str(name)] for name in self._matrix.attrs["column-order"]]


@contextmanager
def opened(path: Path, expression: Expression) -> Iterator[Input]:
    """Open a file for reading.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is damaged or not an AnnData; or as in `reading.expression_of`.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}; put it back, or mend the recipe.")
    if path.is_dir():
        with readable(path):
            root = zarr.open_group(path, mode="r")
            _check_root(root)
        yield Input(root, expression, path)
        return
    with readable(path):
        library: Any = h5py
        file = library.File(path, mode="r")
    with file:
        root = rna_of(file, path)
        with readable(path):
            _check_root(root)
        yield Input(root, expression, path)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what goes wrong while a file is read into one sentence.

    Raises:
        FileNotFoundError: the file is gone.
        ValueError: it is cut short, damaged, or not an AnnData.
    """
    try:
        yield
    except (OSError, KeyError, TypeError, RuntimeError, IndexError, ValueError, zarr.errors.BaseZarrError) as error:
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


def stat_of(path: Path) -> tuple[int, int]:
    """Size in bytes and time of the last change in nanoseconds; of a folder, of all that is in it.

    Raises:
        FileNotFoundError: it is not there.
    """
    try:
        if not path.is_dir():
            return path.stat().st_size, path.stat().st_mtime_ns
        stats = [one.stat() for one in path.rglob("*") if one.is_file()]
    except FileNotFoundError:
        raise FileNotFoundError(f"file {str(path)!r} is gone; put it back and run this again.") from None
    return sum(one.st_size for one in stats), max((one.st_mtime_ns for one in stats), default=0)


def _check_root(root: Stored) -> None:
    if "obs" not in root or "var" not in root:
        raise ValueError("it has no obs or no var")


def _matrix(root: Stored, layer: str | None) -> Stored:
    if layer is None:
        return root.get("X")
    if is_raw(layer, root.get("layers", ())) and "raw" in root:
        return root["raw"].get("X")
    where, key = ("obsm", layer.removeprefix("obsm:")) if layer.startswith("obsm:") else ("layers", layer)
    return root[where].get(key) if where in root else None


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


def _stand_in(
    root: Stored, matrix: Stored, layer: str | None, n_rows: int, table: pd.DataFrame | None = None
) -> anndata.AnnData:
    """An AnnData of a row at most, with the genes and the names of layers and obsm of the file, all values 0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        var: Any = anndata.io.read_elem(root["var"]) if table is None else table
        adata = anndata.AnnData(obs=pd.DataFrame(index=["cell"][:n_rows]), var=var)
        for where, width in (("layers", len(var)), ("obsm", 1)):
            for key in root.get(where, ()):
                getattr(adata, where)[key] = sp.csr_matrix((n_rows, width), dtype=np.float32)
        if matrix is None:
            return adata
        zeros = _zeros(matrix, n_rows)
        if layer is None:
            adata.X = zeros
        elif is_raw(layer, adata.layers):
            genes: Any = anndata.io.read_elem(root["raw"]["var"])
            adata.raw = anndata.AnnData(zeros, obs=pd.DataFrame(index=["cell"][:n_rows]), var=genes)
        elif layer.startswith("obsm:"):
            adata.obsm[layer.removeprefix("obsm:")] = (
                zeros.set_axis(adata.obs_names) if isinstance(zeros, pd.DataFrame) else zeros
            )
        else:
            adata.layers[layer] = zeros
    return adata


def _zeros(matrix: Stored, n_rows: int) -> Any:  # noqa: ANN401 - a table, a sparse matrix or an array
    if matrix.attrs.get("encoding-type") == "dataframe":
        columns = [str(name) for name in matrix.attrs["column-order"]]
        return pd.DataFrame(0.0, index=pd.RangeIndex(n_rows), columns=columns)
    shape = matrix.attrs.get("shape", matrix.attrs.get("h5sparse_shape"))
    width = int((matrix.shape if shape is None else shape)[1])
    return sp.csr_matrix((n_rows, width), dtype=np.float32)
