"""The conditions to predict: a table of perturbation, cell_type and assay_batch, "" where a label is not given.

It comes from arguments, from a CSV file, or from the test part of the split that a checkpoint remembers. A dose, its
unit and a modality may stand beside the perturbation; they become a part of its label, as in `labels.members`.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from perturbdiff.checkpoint import Checkpoint
from perturbdiff.labels.conditions import PERTURBATION, Conditions
from perturbdiff.labels.members import MODALITY, composed, is_unit
from perturbdiff.labels.vocabulary import Vocabulary
from perturbdiff.recipes.dataset import Columns
from perturbdiff.spelling import nearest
from perturbdiff.split.rules import HELD_OUT

_LOG = logging.getLogger(__name__)

COLUMNS = ["perturbation", "cell_type", "assay_batch"]
BESIDE = ["dose", "dose_unit", "modality"]
"""What may stand beside a perturbation."""


def conditions_of(
    rows: Sequence[Mapping[Any, Any]],
    known: Conditions,
    columns: Columns = Columns(),  # noqa: B008 - frozen
) -> pd.DataFrame:
    """A checked table of conditions, each once.

    Args:
        rows: of labels, and of what stands beside a perturbation.
        known: what the model can be asked.
        columns: of the data that the model was trained on, which may say the unit of all doses.

    Raises:
        ValueError: there is none, or a perturbation can neither be looked up nor be made of what is known.
    """
    table = labelled(rows, known, columns)
    for label in table[PERTURBATION].unique():
        known.check(label)
    return table


def labelled(rows: Sequence[Mapping[Any, Any]], known: Conditions, columns: Columns) -> pd.DataFrame:
    """As `conditions_of`, for a method that can say something of any perturbation.

    Raises:
        ValueError: there is no condition.
    """
    trained = known.trained
    filled = [
        {PERTURBATION: _perturbation(row, known, columns)}
        | {name: _label(row.get(name), trained[name]) for name in COLUMNS[1:]}
        for row in rows
    ]
    table = pd.DataFrame(filled, columns=COLUMNS).drop_duplicates(ignore_index=True)
    if table.empty:
        raise ValueError("no condition is given; name a perturbation, or give a table with at least one row.")
    return table


def _perturbation(row: Mapping[Any, Any], known: Conditions, columns: Columns) -> str:
    """The label of a row, with what stands beside it."""
    label = _label(row.get(PERTURBATION), known.trained[PERTURBATION])
    dose, unit, modality = (_text(row.get(key)) for key in BESIDE)
    if not dose and not modality:
        if unit:
            raise ValueError(f"perturbation {label!r} has the unit {unit!r} and no dose; add a dose, or leave it out.")
        return label
    if columns.dose_unit is not None and is_unit(columns.dose_unit):
        unit = unit or columns.dose_unit
    declared = Columns(
        perturbation=PERTURBATION,
        dose="dose" if dose else None,
        dose_unit="dose_unit" if dose else None,
        modality="modality" if modality else None,
    )
    separator = known.grammar.modality_separator or MODALITY
    return composed(label, declared, modality, dose, unit, separator)


def _text(value: Any) -> str:  # noqa: ANN401 - a cell of any table
    return "" if value is None or pd.isna(value) else str(value).strip()


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
    possible = [*COLUMNS, *BESIDE]
    for column in columns:
        if column not in possible:
            raise ValueError(
                f"{source} has a column {column!r}, and conditions are {', '.join(possible)}; "
                f"{nearest(str(column), possible)}."
            )
    if "perturbation" not in columns:
        raise ValueError(f"{source} has no column 'perturbation'; add it.")


def asked_conditions(
    checkpoint: Checkpoint,
    one: Mapping[str, Any],
    *,
    table: pd.DataFrame | Path | None = None,
    part: str | None = None,
) -> pd.DataFrame:
    """What a model is asked: the conditions of a table, of its file or of a part of the split, or else one.

    Args:
        checkpoint: the model.
        one: the condition where nothing else is given; its labels, and what stands beside a perturbation.
        table: of conditions; a number of cells may stand beside them, as in the groups of a split.
        part: of the split that the model was trained with.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as `read_rows`, `conditions_of` and `held_out_conditions`.
    """
    if part is not None:
        return held_out_conditions(checkpoint, part)
    if isinstance(table, Path):
        return read_conditions(table, checkpoint.conditions, checkpoint.recipe.columns)
    rows: Sequence[Mapping[Any, Any]] = [one]
    if table is not None:
        check_columns([column for column in table.columns if column != "cells"], "the table of conditions")
        rows = table.to_dict("records")
    return conditions_of(rows, checkpoint.conditions, checkpoint.recipe.columns)


def read_conditions(
    path: Path,
    known: Conditions,
    columns: Columns = Columns(),  # noqa: B008 - frozen
) -> pd.DataFrame:
    """The conditions of a CSV file with the column perturbation and, where wanted, those of `conditions_of`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a table, has another column, or names an unknown label.
    """
    return conditions_of(read_rows(path), known, columns)


def read_rows(path: Path) -> list[dict[Any, Any]]:
    """The rows of a CSV file of conditions; a row without any label is skipped, which is logged.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a table, or has another column.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no table of conditions {str(path)!r}; give the path of a .csv file.")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} is not a CSV table ({error}); mend it.") from None
    check_columns(list(table.columns), repr(str(path)))
    empty = (table.apply(lambda column: column.str.strip()) == "").all(axis=1)
    if empty.any():
        lines = ", ".join(str(i + 2) for i in table.index[empty][:5])
        _LOG.info(f"{str(path)!r} has {int(empty.sum())} rows without any label (line {lines}), which are skipped.")
    rows: list[dict[Any, Any]] = table[~empty].to_dict("records")
    return rows


def held_out_conditions(checkpoint: Checkpoint, part: str = "test") -> pd.DataFrame:
    """The conditions of a part of the split that the model was trained with, those that it can be asked.

    A cell type or an assay batch that was held out altogether keeps its name, by which its control cells are found.

    Args:
        checkpoint: the model.
        part: of the split.

    Raises:
        ValueError: there is no such part, or it is empty; the model can be asked none of it.
    """
    check_part(part)
    rows = checkpoint.split["conditions"][part]
    if not rows:
        raise ValueError(
            f"the split of this model has no cells in its {part} part; name the conditions to predict instead."
        )
    known, reasons = checkpoint.conditions, {}
    for label in dict.fromkeys(str(row[PERTURBATION]) for row in rows):
        try:
            known.check(label)
        except ValueError as error:
            reasons[label] = str(error)
    asked = [row for row in rows if str(row[PERTURBATION]) not in reasons]
    if reasons and not asked:
        raise ValueError(next(iter(reasons.values())))
    if reasons:
        named = ", ".join(map(repr, list(reasons)[:5])) + (", ..." if len(reasons) > 5 else "")
        _LOG.info(
            f"{len(rows) - len(asked)} of the {len(rows)} conditions of the {part} part are left out, since the model "
            f"cannot be asked {named}: training has no cell of them, and no features stand for them."
        )
    return conditions_of(asked, known)


def check_part(part: str) -> None:
    """Refuse what is no held-out part.

    Raises:
        ValueError: it is none.
    """
    if part not in HELD_OUT:
        raise ValueError(f"{part!r} is not a held-out part; choose one of {', '.join(HELD_OUT)}.")
