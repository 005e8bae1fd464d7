"""Columns of an AnnData on disk, read some cells at a time."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import anndata
import numpy as np
import numpy.typing as npt
import pandas as pd
from h5py.h5t import check_string_dtype

type Stored = Any
"""A group or an array of h5py or of zarr, which have the same interface."""

type Texts = npt.NDArray[np.object_]

_NULLABLE = {"nullable-integer": pd.arrays.IntegerArray, "nullable-boolean": pd.arrays.BooleanArray}


class Column:
    """One column of obs; `read` gives what pandas would hold."""

    def __init__(self, stored: Stored) -> None:
        self.kind = str(stored.attrs.get("encoding-type", "array"))
        self._stored = stored
        if self.kind == "categorical":
            categories: Any = anndata.io.read_elem(stored["categories"])
            self._categories: Any = pd.Index(categories)

    def read(self, start: int, stop: int) -> "pd.Series[Any]":
        """The values of the cells start to stop."""
        if self.kind == "categorical":
            codes = self._stored["codes"][start:stop]
            return pd.Series(pd.Categorical.from_codes(codes, self._categories))
        if self.kind in _NULLABLE:
            values, mask = self._stored["values"][start:stop], self._stored["mask"][start:stop]
            return pd.Series(_NULLABLE[self.kind](np.asarray(values), np.asarray(mask, dtype=bool)))
        if self.kind == "nullable-string-array":
            texts = slice_of(self._stored["values"], start, stop)
            texts[np.asarray(self._stored["mask"][start:stop], dtype=bool)] = None
            return pd.Series(texts, dtype=object)
        return pd.Series(slice_of(self._stored, start, stop))


class Held:
    """A column of a table that is in memory, as older files need it."""

    def __init__(self, values: "pd.Series[Any]") -> None:
        self._values = values

    def read(self, start: int, stop: int) -> "pd.Series[Any]":
        """The values of the cells start to stop."""
        return self._values.iloc[start:stop].reset_index(drop=True)


class Obs:
    """The table of the cells: its column names, and a column at a time.

    Attributes:
        n_cells: the rows of the table.
        columns: a table without rows, to look column names up in.
    """

    def __init__(self, stored: Stored, table: pd.DataFrame | None = None) -> None:
        """Hold a stored table; `table` is what it holds, where only anndata can tell."""
        self._stored = stored
        self._table: Any = table
        self._columns: dict[str, Column | Held] = {}
        plain = stored.attrs.get("encoding-type") == "dataframe" and stored.attrs.get("encoding-version") == "0.2.0"
        if table is not None or not plain:
            self._table = anndata.io.read_elem(stored) if table is None else table
            names = list(self._table.columns)
            self.n_cells = len(self._table)
        else:
            names = [str(name) for name in stored.attrs["column-order"]]
            index = stored[stored.attrs["_index"]]
            keys = {"categorical": "codes", "nullable-string-array": "values"}
            self.n_cells = int(_inner(index, keys).shape[0])
        self.columns = pd.DataFrame(columns=pd.Index(names, dtype=object))

    def column(self, name: str) -> Column | Held:
        """A column that is there; what it needs whole, its categories, is read once."""
        if name not in self._columns:
            self._columns[name] = Column(self._stored[name]) if self._table is None else Held(self._table[name])
        return self._columns[name]

    @cached_property
    def names(self) -> Column | Held:
        """The names of the cells."""
        if self._table is None:
            return Column(self._stored[self._stored.attrs["_index"]])
        return Held(self._table.index.to_series())


def texts_of(values: "pd.Series[Any]") -> Texts:
    """Values as text."""
    if values.dtype == object:
        return np.array([str(value) for value in values], dtype=object)
    return np.asarray(values.astype(str), dtype=object)


def slice_of(array: Stored, start: int, stop: int) -> npt.NDArray[Any]:
    """Values of an array; text has dtype object."""
    if hasattr(array, "asstr") and check_string_dtype(array.dtype) is not None:
        return np.asarray(array.asstr()[start:stop], dtype=object)
    values = np.asarray(array[start:stop])
    return values.astype(object) if values.dtype.kind in "TUO" else values


def _inner(stored: Stored, keys: Mapping[str, str]) -> Stored:
    key = keys.get(str(stored.attrs.get("encoding-type", "array")))
    return stored if key is None else stored[key]
