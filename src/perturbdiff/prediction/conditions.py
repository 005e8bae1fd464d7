"""The conditions to predict: a table of perturbation, cell_type and assay_batch, "" where a label is not given.

It comes from arguments, from a CSV file, or from the test part of the split that a checkpoint remembers.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from perturbdiff.checkpoint import Checkpoint
from perturbdiff.data.split import HELD_OUT
from perturbdiff.data.vocabulary import Vocabulary, nearest

COLUMNS = ["perturbation", "cell_type", "assay_batch"]


def conditions_of(rows: Sequence[Mapping[Any, Any]], vocabularies: Mapping[str, Vocabulary]) -> pd.DataFrame:
    """A checked table of conditions, each once.

    Raises:
        ValueError: there is none, or a label is unknown to the model (the nearest is named).
    """
    filled = [{name: _label(row.get(name), vocabularies[name]) for name in COLUMNS} for row in rows]
    table = pd.DataFrame(filled, columns=COLUMNS).drop_duplicates(ignore_index=True)
    if table.empty:
        raise ValueError("no condition is given; name a perturbation, or give a table with at least one row.")
    for name in COLUMNS:
        for label in table[name].unique():
            vocabularies[name].index(label)
    return table


def _label(value: Any, known: Vocabulary) -> str:  # noqa: ANN401 - a cell of any table
    """A label as text: "" where there is none, without blanks around it unless the model knows it with them."""
    if value is None or pd.isna(value):
        return ""
    text = str(value)
    return text if text in known.labels else text.strip()


def check_columns(columns: Sequence[Any], source: str) -> None:
    """Refuse a table that is not one of conditions.

    Raises:
        ValueError: it has another column (the nearest is named), or none of perturbations.
    """
    for column in columns:
        if column not in COLUMNS:
            raise ValueError(
                f"{source} has a column {column!r}, and conditions are {', '.join(COLUMNS)}; "
                f"{nearest(str(column), COLUMNS)}."
            )
    if "perturbation" not in columns:
        raise ValueError(f"{source} has no column 'perturbation'; add it.")


def read_conditions(path: Path, vocabularies: Mapping[str, Vocabulary]) -> pd.DataFrame:
    """The conditions of a CSV file with the column perturbation and, where wanted, cell_type and assay_batch.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a table, has another column, or names an unknown label.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no table of conditions {str(path)!r}; give the path of a .csv file.")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} is not a CSV table ({error}); mend it.") from None
    check_columns(list(table.columns), repr(str(path)))
    return conditions_of(table.to_dict("records"), vocabularies)


def held_out_conditions(checkpoint: Checkpoint, part: str = "test") -> pd.DataFrame:
    """The conditions of a part of the split that the model was trained with.

    A cell type or an assay batch that was held out altogether has no label of its own: it is left open, and predicted
    with the trained null.

    Raises:
        ValueError: there is no such part, or it is empty.
    """
    if part not in HELD_OUT:
        raise ValueError(f"{part!r} is not a held-out part; choose one of {', '.join(HELD_OUT)}.")
    rows = checkpoint.split["conditions"][part]
    if not rows:
        raise ValueError(
            f"the split of this model has no cells in its {part} part; name the conditions to predict instead."
        )
    known = {name: {*vocabulary.labels} for name, vocabulary in checkpoint.vocabularies.items()}
    open_ = [
        {name: label for name, label in row.items() if name == "perturbation" or label in known.get(name, ())}
        for row in rows
    ]
    return conditions_of(open_, checkpoint.vocabularies)
