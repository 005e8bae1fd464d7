"""Which control cells stand beside a condition, by one rule for prediction, baselines and evaluation.

They are those of the condition's cell type and assay batch; where the batch has fewer than two of the type, those of
the type in any batch. A label that a condition leaves open, or that the cells do not have as a column, is any. Training
pairs by the same rule, group by group of a source (`populations.pairing`).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from perturbdiff.cells.memory import Cells
from perturbdiff.labels.text import known_as
from perturbdiff.spelling import nearest

type Rows = npt.NDArray[np.int64]

CONTEXT = ("cell_type", "assay_batch")
"""The labels by which control cells are found."""

FEWEST = 2
"""An assay batch with fewer control cells of a cell type borrows those of other batches."""


_NONE: Rows = np.zeros(0, dtype=np.int64)


class ControlRows:
    """The ascending rows of control cells by (cell type, assay batch), "" for any, from one grouping."""

    def __init__(self, rows: Mapping[tuple[str, str], Rows], named: tuple[bool, bool]) -> None:
        self._rows = rows
        self._named = named

    @classmethod
    def of(cls, labels: pd.DataFrame, is_control: npt.NDArray[np.bool_]) -> Self:
        """Group the control cells among some cells; `labels` are categories, a single "" where there is no column."""
        control = np.flatnonzero(is_control).astype(np.int64)
        some = labels.iloc[control]
        rows = {("", ""): control}
        for names in (CONTEXT[:1], CONTEXT[1:], CONTEXT):
            groups: Any = some.groupby(list(names), observed=True).indices
            for key, inside in groups.items():
                label = dict(zip(names, key if isinstance(key, tuple) else (key,), strict=True))
                rows[str(label.get(CONTEXT[0], "")), str(label.get(CONTEXT[1], ""))] = control[inside]
        kinds, batches = (list(labels[name].cat.categories) != [""] for name in CONTEXT)
        return cls(rows, (kinds, batches))

    def exactly(self, cell_type: str, assay_batch: str) -> Rows:
        """The control cells of these labels alone."""
        kinds, batches = self._named
        key = cell_type if kinds else "", assay_batch if batches else ""
        return self._rows.get(key, _NONE)

    def beside(self, cell_type: str, assay_batch: str) -> tuple[Rows, bool]:
        """The control cells that stand beside a condition, and whether they are borrowed from other batches.

        None stand beside an empty cell type where the cells have a column of them: a change is of one type.
        """
        if not cell_type and self._named[0]:
            return _NONE, False
        own, of_kind = self.exactly(cell_type, assay_batch), self.exactly(cell_type, "")
        borrowed = bool(assay_batch) and own.size < FEWEST
        return of_kind if borrowed else own, borrowed


def controls_of(cells: Cells, conditions: Sequence[Mapping[str, str]]) -> tuple[list[Rows], list[int]]:
    """The rows of the control cells of each condition, ascending, and the conditions that borrow them.

    Args:
        cells: a file's cells, of which only control cells are used.
        conditions: cell_type and assay_batch of each, "" for any.

    Raises:
        ValueError: a label is of no cell; a cell type, or an assay batch that alone is named, has no control cell.
    """
    controls = ControlRows.of(cells.labels, cells.is_control)
    matched, borrowing = [], []
    for number, condition in enumerate(_as_known(cells, one) for one in conditions):
        kind, batch = condition["cell_type"], condition["assay_batch"]
        rows, borrows = controls.beside(kind, batch)
        # who asks for any cell type, or for a batch that no cell is of, means no other cells
        known = kind and batch in cells.labels["assay_batch"].cat.categories
        if not borrows or not known or rows.size < FEWEST:
            rows, borrows = controls.exactly(kind, batch), False
        if not rows.size:
            raise _none(cells, condition)
        matched.append(rows)
        borrowing += [number] if borrows else []
    return matched, borrowing


def _as_known(cells: Cells, condition: Mapping[str, str]) -> dict[str, str]:
    """A condition whose numbers are written as the cells have them: a model that learned ``1.0`` finds ``1``."""
    return {name: known_as(condition[name], cells.labels[name].cat.categories) for name in CONTEXT}


def borrowing_note(conditions: Sequence[Mapping[str, str]], borrowing: Sequence[int]) -> list[str]:
    """The sentence on conditions whose control cells are of other assay batches."""
    if not borrowing:
        return []
    first = conditions[borrowing[0]]
    of = "1 condition" if len(borrowing) == 1 else f"{len(borrowing)} conditions"
    such = f"{first['cell_type']!r} of assay batch {first['assay_batch']!r}"
    return [
        f"{of}, such as {such}, with fewer than {FEWEST} control cells in the batch begin at those of the cell type in "
        "any batch, as in training."
    ]


def _none(cells: Cells, condition: Mapping[str, str]) -> ValueError:
    control = np.flatnonzero(cells.is_control)
    given = [name for name in CONTEXT if condition[name]]
    named = ", ".join(f"{name} {condition[name]!r}" for name in given)
    there = {name: list(cells.labels[name].iloc[control].unique()) for name in given}
    near = "".join(
        f" (of {condition[name]!r} {nearest(condition[name], there[name])})"
        for name in given
        if condition[name] not in there[name]
    )
    return ValueError(
        f"there is no control cell of {named or 'any kind'} among the {len(control)} control cells given{near}; "
        "give control cells of that condition, or leave the label empty."
    )
