"""Files of features, and of texts that features are made of.

Files are tables (.parquet, .csv) with a column `label` and a column for each feature, or with the columns `label` and
`vector`; or archives (.npz) with the arrays `labels` [n] and `values` [n, width], or with an array for each label.
"""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from perturbdiff.core.choices import COVARIATES
from perturbdiff.features.tables import (
    LABEL,
    FeatureTable,
    checked_labels,
    features_from,
    features_of_frame,
    stacked,
    without_labels,
)
from perturbdiff.io import whole_file
from perturbdiff.spelling import nearest

type Features = pd.DataFrame | str | Path
"""Features of labels: a table whose index is the labels, or a file of one."""

_UNREADABLE = (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile)
"""What pandas, pyarrow and numpy raise for a file that they cannot read."""

_NO_NUMBER = ["", "NA", "N/A", "NaN", "nan", "null", "None"]
"""What stands in a .csv for a number that is missing."""


def tables_of(features: Mapping[str, Features] | None, called: str = "features") -> dict[str, FeatureTable]:
    """Features by covariate, from tables in memory (`called` so in sentences) or from files.

    Raises:
        ValueError: a name is no covariate (the nearest is named), or as in `features.tables`.
        FileNotFoundError: a file is not there.
    """
    found = {}
    for name, given in (features or {}).items():
        if name not in COVARIATES:
            raise ValueError(f"features are given of {name!r}, which is no covariate; {nearest(name, COVARIATES)}.")
        if isinstance(given, pd.DataFrame):
            found[name] = features_of_frame(given, f"the {called} of {name}")
        else:
            found[name] = read_features(Path(given))
    return found


def read_features(path: Path) -> FeatureTable:
    """Read a table of features: .parquet, .csv or .npz, laid out as the module says; its origin is the file's name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none of the three or cannot be read; or as in `features_of_frame`.
    """
    path = existing(path, "features", (".parquet", ".csv", ".npz"))
    if path.suffix == ".npz":
        return _read_npz(path)
    return features_of_frame(_read_csv(path) if path.suffix == ".csv" else read_parquet(path), path.name)


def write_features(table: FeatureTable, path: Path) -> None:
    """Write a .parquet with the columns `label`, `feature_0`, ..., whole or not at all; reads back equal.

    Raises:
        ValueError: the name does not end in .parquet.
    """
    check_target(path)
    frame = pd.DataFrame(table.values, columns=[f"feature_{i}" for i in range(table.width)])
    frame.insert(0, LABEL, list(table.labels))
    with whole_file(Path(path)) as partial:
        frame.to_parquet(partial, index=False)


def check_target(path: Path) -> None:
    """Refuse a name under which features are not written.

    Raises:
        ValueError: it does not end in .parquet.
    """
    if Path(path).suffix != ".parquet":
        raise ValueError(f"{str(path)!r} does not end in .parquet, as which features are written; rename it.")


def labelled_texts(path: Path, columns: Sequence[str]) -> dict[str, str]:
    """Texts to make features of: those of a .csv or .parquet with a column `label` and just one of `columns`.

    Blanks around a text are cut off; other columns are let be.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, a column is not there (the nearest is named) or two are; a label or a text is
            missing, or a label occurs twice.
    """
    path = existing(path, "texts", (".csv", ".parquet"))
    frame = read_parquet(path) if path.suffix == ".parquet" else _table_of(path, dtype=str, keep_default_na=False)
    known = [str(column) for column in frame.columns]
    column = _column_of_texts(known, columns, path.name)
    labels = checked_labels(list(frame[LABEL]), path.name)
    found = dict(zip(labels, frame[column], strict=True))
    for label, text in found.items():
        if not isinstance(text, str) or not text.strip():
            raise ValueError(
                f"label {label!r} of {path.name} has {text!r} in column {column!r}, and every label has a text there; "
                "fill it in, or leave the label out."
            )
    return {label: text.strip() for label, text in found.items()}


def existing(path: Path, what: str, suffixes: Sequence[str]) -> Path:
    """A path of a file of features or texts that is there.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: its name ends otherwise.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of {what} {str(path)!r}; give the path of a {suffixes[0]} file.")
    if path.suffix not in suffixes:
        raise ValueError(
            f"{str(path)!r} ends in {path.suffix!r}, and files of {what} are {', '.join(suffixes)}; write it as one of "
            "these."
        )
    return path


def read_parquet(path: Path) -> pd.DataFrame:
    """The table of a .parquet; an index called `label` becomes a column.

    Raises:
        ValueError: it is not one.
    """
    try:
        frame = pd.read_parquet(path)
    except _UNREADABLE as error:
        raise ValueError(f"{str(path)!r} is not a parquet table ({_reason(error)}); write it again.") from None
    return frame.reset_index() if frame.index.name == LABEL and LABEL not in frame.columns else frame


def _table_of(path: Path, **options: Any) -> pd.DataFrame:  # noqa: ANN401 - options of pandas
    try:
        table: pd.DataFrame = pd.read_csv(path, low_memory=False, **options)
    except _UNREADABLE as error:
        raise ValueError(f"{str(path)!r} is not a CSV table ({_reason(error)}); mend it.") from None
    if not isinstance(table.index, pd.RangeIndex):
        raise ValueError(
            f"{path.name} has more values in a row than names in its first line, and every column has a name; name the "
            f"column of labels {LABEL!r}."
        )
    return table


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).replace(". ", ": ")[:120].rstrip(" .") or type(error).__name__


def _column_of_texts(known: Sequence[str], columns: Sequence[str], origin: str) -> str:
    """Which of `columns` is there, beside the labels."""
    if LABEL not in known:
        raise ValueError(f"{origin} has no column {LABEL!r}, which names each row; {nearest(LABEL, known)}; rename it.")
    found = [column for column in columns if column in known]
    if len(found) > 1:
        raise ValueError(
            f"{origin} has the columns {' and '.join(map(repr, found))}, and one holds the texts; leave the other out."
        )
    if not found:
        others = [column for column in known if column != LABEL]
        raise ValueError(
            f"{origin} has no column {' or '.join(map(repr, columns))}, where its texts are; "
            f"{nearest(columns[0], others)}; rename it."
        )
    return found[0]


def _read_csv(path: Path) -> pd.DataFrame:
    header = _table_of(path, nrows=0).columns
    column = LABEL if LABEL in header else header[0]
    # a gene may be called NA, a number may not
    none = dict.fromkeys(header.drop(column), _NO_NUMBER)
    frame = _table_of(path, dtype={column: str}, keep_default_na=False, na_values=none)
    nameless = [i for i, name in enumerate(header) if name.startswith("Unnamed: ") and name != column]
    if nameless:
        raise ValueError(
            f"column {nameless[0] + 1} of {path.name} has no name, as the numbers of rows that a program writes along; "
            "leave it out, or name it."
        )
    if column != LABEL and len(frame) and pd.to_numeric(frame[column], errors="coerce").notna().all():
        raise without_labels(path.name, header)
    return frame.rename(columns={column: LABEL})


def _read_npz(path: Path) -> FeatureTable:
    try:
        arrays = _arrays_of(path)
    except _UNREADABLE:
        raise ValueError(
            f"{str(path)!r} is not an archive of arrays of numbers and texts, or holds objects, which are not read; "
            "write it again with numpy's savez."
        ) from None
    if not {"labels", "values"} <= arrays.keys():
        return features_from(list(arrays), stacked(list(arrays), list(arrays.values()), path.name), path.name)
    if len(arrays) > 2:
        other = next(name for name in arrays if name not in {"labels", "values"})
        raise ValueError(f"{path.name} holds {other!r} beside 'labels' and 'values'; leave it out.")
    return features_from(arrays["labels"].ravel().tolist(), arrays["values"], path.name)


def _arrays_of(path: Path) -> dict[str, npt.NDArray[Any]]:
    archive = np.load(path, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError("it is a single array")
    with archive:
        return dict(archive.items())
