"""Which control cells stand beside a condition, by one rule for training, prediction, baselines and evaluation.

They are those of the condition's cell type and assay batch; where the batch has fewer than two of the type, those of
the type in any batch. A label that a condition leaves open, or that the cells do not have as a column, is any.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from perturbdiff.data.cells import Cells
from perturbdiff.data.labels import known_as
from perturbdiff.data.vocabulary import nearest

type Rows = npt.NDArray[np.int64]

FEWEST = 2
"""An assay batch with fewer control cells of a cell type borrows those of other batches."""


def controls_of(cells: Cells, conditions: Sequence[Mapping[str, str]]) -> tuple[list[Rows], list[int]]:
    """The rows of the control cells of each condition, ascending, and the conditions that borrow them.

    Args:
        cells: a file's cells, of which only control cells are used.
        conditions: cell_type and assay_batch of each, "" for any.

    Raises:
        ValueError: a label is of no cell; a cell type, or an assay batch that alone is named, has no control cell.
    """
    control = np.flatnonzero(cells.is_control).astype(np.int64)
    matched, borrowing = [], []
    for number, condition in enumerate(_as_known(cells, one) for one in conditions):
        of_kind = _matching(cells, control, "cell_type", condition["cell_type"])
        rows = _matching(cells, of_kind, "assay_batch", condition["assay_batch"])
        known = condition["assay_batch"] in cells.labels["assay_batch"].cat.categories
        if known and condition["cell_type"] and rows.size < FEWEST <= of_kind.size:
            borrowing.append(number)
            rows = of_kind
        if not rows.size:
            raise _none(cells, control, condition)
        matched.append(rows)
    return matched, borrowing


def _as_known(cells: Cells, condition: Mapping[str, str]) -> dict[str, str]:
    """A condition whose numbers are written as the cells have them: a model that learned ``1.0`` finds ``1``."""
    return {name: known_as(condition[name], cells.labels[name].cat.categories) for name in ("cell_type", "assay_batch")}


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


def _matching(cells: Cells, rows: Rows, name: str, wanted: str) -> Rows:
    labels = cells.labels[name]
    if not wanted or list(labels.cat.categories) == [""]:
        return rows
    return rows[(labels.iloc[rows] == wanted).to_numpy()]


def _none(cells: Cells, control: Rows, condition: Mapping[str, str]) -> ValueError:
    given = [name for name in ("cell_type", "assay_batch") if condition[name]]
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
