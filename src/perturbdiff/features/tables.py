"""Features of labels: a vector for each gene, molecule or cell type, of any origin.

A table of features sends labels to vectors of one width. Whoever made it (a language model, a fingerprint, loadings of
expression, a laboratory) is named in its `origin`, for sentences, and is of no consequence otherwise. Rows are sorted
by label, so a table does not depend on the order of the rows that it was made of. A label is compared to the letter,
blanks and case included, as everywhere in the package.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from perturbdiff.spelling import nearest

LABEL = "label"
"""The column of labels."""

VECTOR = "vector"
"""The column of lists of numbers, in place of a column for each number."""

_SHOWN = 5
"""So many labels are named where some lack."""

type Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False, repr=False)
class FeatureTable:
    """Labels and their vectors; made by `features_from` and the functions that end in it, which check.

    Attributes:
        labels: sorted as text, unique, none blank; at least one.
        values: [labels, width], finite; width at least 1.
        origin: a short text for sentences ("esm2.parquet").
    """

    labels: tuple[str, ...]
    values: Vectors
    origin: str

    def __repr__(self) -> str:
        """One line: how many labels, how wide, and from where."""
        return f"FeatureTable({len(self)} labels x {self.width} features, {self.origin})"

    def __len__(self) -> int:
        """The number of labels."""
        return len(self.labels)

    @property
    def width(self) -> int:
        """The length of every vector."""
        return int(self.values.shape[1])

    def missing(self, labels: Iterable[str]) -> list[str]:
        """The labels that have no row, each once, in the order given."""
        return [label for label in dict.fromkeys(labels) if label not in self._place]

    def require(self, labels: Iterable[str], what: str) -> None:
        """Refuse labels that have no row; `what` they are stands in the sentence, in the plural ("perturbations").

        Raises:
            ValueError: some have none; up to five are named, and the nearest label of the table to the first.
        """
        wanted = list(dict.fromkeys(labels))
        absent = self.missing(wanted)
        if absent:
            named = ", ".join(map(repr, absent[:_SHOWN])) + (", ..." if len(absent) > _SHOWN else "")
            raise ValueError(
                f"{len(absent)} of {len(wanted)} {what} have no row in {self.origin} ({named}); "
                f"for {absent[0]!r} {nearest(absent[0], self.labels)}; add rows, or set missing = "
                '"learned" so that these labels have learned vectors only.'
            )

    def rows(self, labels: Sequence[str]) -> Vectors:
        """The vectors of labels, in their order [len(labels), width]; a copy.

        Raises:
            ValueError: as `require`.
        """
        self.require(labels, "labels")
        return self.values[np.array([self._place[label] for label in labels], dtype=np.intp)]

    def joined(self, other: "FeatureTable") -> "FeatureTable":
        """The rows of both tables; a label in both is one row.

        Raises:
            ValueError: the widths differ, or a label has another vector in the other table.
        """
        if self.width != other.width:
            raise ValueError(
                f"{self.origin} has {self.width} features and {other.origin} has {other.width}, and tables that are "
                "joined have the same features; make both in the same way."
            )
        shared = [label for label in self.labels if label in other._place]  # noqa: SLF001 - another of its own kind
        differing = (self.rows(shared) != other.rows(shared)).any(axis=1)
        if differing.any():
            raise ValueError(
                f"{int(differing.sum())} labels, such as {shared[int(np.argmax(differing))]!r}, have other features in "
                f"{self.origin} than in {other.origin}, and a label has one vector; take them out of one of them."
            )
        more = self.missing(other.labels)
        if not more:
            return self
        values = np.concatenate([self.values, other.rows(more)])
        return features_from([*self.labels, *more], values, f"{self.origin} and {other.origin}")

    @cached_property
    def _place(self) -> dict[str, int]:
        return {label: i for i, label in enumerate(self.labels)}


def features_from(labels: Sequence[str], values: npt.ArrayLike, origin: str) -> FeatureTable:
    """A checked table of labels and the rows of `values` [labels, width], in any order; kept as float32.

    Raises:
        ValueError: a label is blank, is not text or occurs twice; a value is not a finite number (as float32); there
            are no rows or no columns, or not as many rows as labels.
    """
    texts, given = checked_labels(labels, origin), _numbers(values, origin)
    if len(texts) != len(given):
        raise ValueError(f"{origin} has {len(texts)} labels and {len(given)} rows of features; give a row a label.")
    if not given.size:
        raise ValueError(
            f"{origin} has {given.shape[0]} labels and {given.shape[1]} features, and a table has some of both; "
            "give another."
        )
    with np.errstate(over="ignore"):  # becomes infinite, and is refused below
        rounded = given.astype(np.float32)
    finite = np.isfinite(rounded)
    if not finite.all():
        row, column = (int(i) for i in np.argwhere(~finite)[0])
        raise ValueError(
            f"{origin} gives label {texts[row]!r} the value {given[row, column]:g}, and features are finite numbers "
            "(as float32); fill it in, or leave the label out."
        )
    order = sorted(range(len(texts)), key=texts.__getitem__)
    return FeatureTable(tuple(texts[i] for i in order), rounded[order], origin)


def features_of_frame(frame: pd.DataFrame, origin: str) -> FeatureTable:
    """The table of a DataFrame: labels in the column `label`, else in the index; all other columns are features.

    A single other column `vector` may hold lists of numbers instead.

    Raises:
        ValueError: there are no labels of text, a column is not of numbers or stands twice, vectors differ in width; or
            as in `features_from`.
    """
    repeated = frame.columns[frame.columns.duplicated()]
    if len(repeated):
        raise ValueError(f"{origin} has the column {str(repeated[0])!r} twice, and names are unique; rename one.")
    labels, rest = _parted(frame, origin)
    if not labels:
        return features_from(labels, np.empty(rest.shape), origin)
    if [str(column) for column in rest.columns] == [VECTOR] and not pd.api.types.is_numeric_dtype(rest.dtypes.iloc[0]):
        return features_from(labels, stacked(labels, list(rest.iloc[:, 0]), origin), origin)
    for column in rest.columns:
        kind = rest[column].dtype
        if not pd.api.types.is_numeric_dtype(kind) or pd.api.types.is_complex_dtype(kind):
            raise ValueError(
                f"column {str(column)!r} of {origin} is of type {kind}, and every column but {LABEL!r} holds numbers; "
                "leave the column out, or mend what is not a number."
            )
    return features_from(labels, rest.to_numpy(dtype=np.float64, na_value=np.nan), origin)


def stacked(labels: Sequence[str], vectors: Sequence[Any], origin: str) -> npt.NDArray[Any]:
    """One vector a label as one array [labels, width].

    Raises:
        ValueError: one is not a list of numbers, or has another width than the most; naming its label.
    """
    arrays = [_vector(label, one, origin) for label, one in zip(labels, vectors, strict=True)]
    widths = Counter(len(array) for array in arrays)
    if len(widths) > 1:
        width = widths.most_common(1)[0][0]
        label, other = next((one, len(array)) for one, array in zip(labels, arrays, strict=True) if len(array) != width)
        raise ValueError(
            f"the vector of label {label!r} in {origin} has width {other} where others have {width}, and all vectors "
            "of a table have one width; mend it, or leave the label out."
        )
    return np.stack(arrays) if arrays else np.empty((0, 0))


def _parted(frame: pd.DataFrame, origin: str) -> tuple[list[str], pd.DataFrame]:
    """The labels of a frame, and its columns of features."""
    if LABEL in frame.columns:
        return checked_labels(list(frame[LABEL]), origin), frame.drop(columns=LABEL)
    if not isinstance(frame.index, pd.MultiIndex) and all(isinstance(label, str) for label in frame.index):
        return list(frame.index), frame
    raise without_labels(origin, frame.columns)


def without_labels(origin: str, columns: pd.Index) -> ValueError:
    return ValueError(
        f"{origin} has no column {LABEL!r}, and its rows are numbered and not named; "
        f"{nearest(LABEL, map(str, columns))}; rename the column of labels."
    )


def checked_labels(labels: Sequence[Any], origin: str) -> list[str]:
    """Labels as text, none blank, each once."""
    for i, label in enumerate(labels):
        nan = isinstance(label, float) and np.isnan(label)
        if label is None or label is pd.NA or nan or (isinstance(label, str) and not label.strip()):
            raise ValueError(f"{origin} has no label in row {i + 1}, and every row needs one; fill it in.")
        if not isinstance(label, str):
            raise ValueError(
                f"{origin} has the label {label!r} in row {i + 1}, of type {type(label).__name__}, and labels are "
                "text; write it as text."
            )
    texts = [str(label) for label in labels]
    counted = Counter(texts)
    if len(counted) < len(texts):
        label, rows = counted.most_common(1)[0]
        raise ValueError(f"{origin} has {rows} rows of label {label!r}, and a label has one; leave the others out.")
    return texts


def _numbers(values: npt.ArrayLike, origin: str) -> npt.NDArray[Any]:
    """An array of numbers [n, width]."""
    try:
        array = np.asarray(values)
    except ValueError:
        raise ValueError(f"the features of {origin} have rows of several widths; give rows of one width.") from None
    if array.dtype.kind not in "fiub":
        raise ValueError(f"the features of {origin} are of type {array.dtype}, and features are numbers; give numbers.")
    if array.ndim != 2:
        raise ValueError(f"the features of {origin} have the shape {array.shape}, and a table has rows and columns.")
    return array


def _vector(label: str, vector: Any, origin: str) -> npt.NDArray[Any]:  # noqa: ANN401 - whatever the file holds
    try:
        array = np.asarray(vector)
    except ValueError:  # lists of several lengths
        array = np.empty((0, 0))
    if array.ndim != 1 or array.dtype.kind not in "fiub":
        raise ValueError(
            f"the vector of label {label!r} in {origin} is {array.ndim}-dimensional of type {array.dtype}, and a "
            "vector is a list of numbers; mend it, or leave the label out."
        )
    return array
