"""A baseline's prediction as a file: the .h5ad that `perturbdiff predict` writes, one predicted cell per control cell.

First the control cells, then those of every condition: the control cells of its cell type and assay batch (of any,
where its label is empty), each moved, in the order of the file. Columns, `population`, `control_cell` and
``uns["perturbdiff"]`` are as of a model's prediction (`predicted`), ``baseline``, ``left_out`` and, of a baseline that
moves cells, its ``way`` besides.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from perturbdiff.baselines.control import GROUP
from perturbdiff.baselines.predictor import Predictor, Way
from perturbdiff.baselines.pseudobulk import Places
from perturbdiff.cells.controls import borrowing_note, controls_of
from perturbdiff.cells.memory import Cells
from perturbdiff.io import write_h5ad
from perturbdiff.predicted import Predicted, as_file
from perturbdiff.recipes.dataset import Columns

_LOG = logging.getLogger(__name__)


def write_prediction(
    predictor: Predictor,
    cells: Cells,
    conditions: pd.DataFrame,
    path: Path,
    *,
    columns: Columns,
    split_hash: str | None = None,
    way: Way | None = None,
) -> None:
    """Write `predicted_file`, whole or not at all; its arguments and errors."""
    write_h5ad(predicted_file(predictor, cells, conditions, columns=columns, split_hash=split_hash, way=way), path)


def predicted_file(
    predictor: Predictor,
    cells: Cells,
    conditions: pd.DataFrame,
    *,
    columns: Columns,
    split_hash: str | None = None,
    way: Way | None = None,
) -> anndata.AnnData:
    """Predict conditions from control cells.

    Args:
        predictor: a fitted baseline.
        cells: a file's cells, of which only control cells are used.
        conditions: a row for each (perturbation, cell_type, assay_batch), "" for any cell type or assay batch.
        columns: of the data, under which the labels are written.
        split_hash: of the split that the training cells came from.
        way: how cells are moved; None for counts where the totals of all control cells are known, else log1p values.

    Returns:
        The control cells and the predicted cells [cells, genes], log1p counts per 10^4. Conditions that the baseline
        cannot predict are left out, and named in ``uns["perturbdiff"]["left_out"]``.

    Raises:
        ValueError: there is no condition, or one names no perturbation or has no control cells; all are left out; cells
            are to be drawn as counts and a total is not known.
    """
    _check(conditions)
    given = [_labels(row) for row in conditions[list(GROUP)].to_dict("records")]
    matched, borrowing = controls_of(cells, given)
    for note in borrowing_note(given, borrowing):
        _LOG.info(note)
    predictor = replace(predictor, way=_way(predictor, cells, np.unique(np.concatenate(matched)), way))
    parts: list[tuple[int, Places, sp.csr_matrix[np.float32]]] = []
    left_out = []
    for number, (labels, rows) in enumerate(zip(given, matched, strict=True)):
        moved = [_moved(predictor, cells, some, labels) for some in _by_cell_type(cells, rows)]
        reasons = [reason for _, _, reason in moved if reason]
        left_out += [{**labels, "reason": reason} for reason in reasons]
        parts += [(number, some, values) for some, values, reason in moved if not reason]
    if not parts:
        raise ValueError(
            f"the baseline {predictor.name!r} can predict none of the {len(given)} conditions, since "
            f"{left_out[0]['reason']}; name others, or give more training cells."
        )
    if left_out:
        _LOG.info(
            f"{len(left_out)} of {len(given)} conditions are left out, such as {left_out[0]['perturbation']!r}: "
            f"{left_out[0]['reason']}."
        )
    sizes = [len(rows) for _, rows, _ in parts]
    made = Predicted(
        sp.vstack([values for _, _, values in parts], format="csr"),
        source=np.concatenate([rows for _, rows, _ in parts]),
        condition=np.repeat([number for number, _, _ in parts], sizes),
    )
    facts = {
        **({} if split_hash is None else {"split_hash": split_hash}),
        "baseline": predictor.name,
        **({"way": predictor.way} if predictor.moves else {}),
        "left_out": json.dumps(left_out),
        "populations": 1,
        "missing_genes": "[]",
        "grammar": cells.grammar.model_dump_json(),
    }
    return as_file(
        made,
        cells,
        pd.DataFrame(given),
        cells.log_expression(predictor.genes, np.unique(made.source)),
        genes=predictor.genes,
        columns=columns,
        control=str(cells.control),
        facts=facts,
    )


def _check(conditions: pd.DataFrame) -> None:
    absent = [name for name in GROUP if name not in conditions.columns]
    if absent:
        raise ValueError(f"the table of conditions has no column {absent[0]!r}; add it, with '' for any label.")
    if conditions.empty:
        raise ValueError("no condition is given; give a table with at least one row.")
    if (conditions["perturbation"].astype(str) == "").any():
        raise ValueError("a condition names no perturbation, and a baseline predicts named ones only; name it.")


def _way(predictor: Predictor, cells: Cells, rows: Places, way: Way | None) -> Way:
    """The way that was asked for, or the one that these control cells allow; nothing is read where none matters."""
    if not predictor.moves or way == "log1p":
        return "log1p"
    unknown = int(np.isnan(cells.known_totals[rows]).sum())
    if not unknown:
        return "counts"
    which = f"the total counts of {unknown} of {len(rows)} control cells are not known"
    if way == "counts":
        raise ValueError(
            f"{which}, so that cells can't be drawn as counts; give control cells as counts, or leave --as away."
        )
    _LOG.info(f"{which}, so {predictor.name!r} moves cells on log1p values.")
    return "log1p"


def _labels(row: Mapping[Any, Any]) -> dict[str, str]:
    return {name: str(row[name]) for name in GROUP}


def _by_cell_type(cells: Cells, rows: Places) -> Iterator[Places]:
    """The rows of each cell type among some rows: a shift belongs to a cell type."""
    codes = cells.labels["cell_type"].cat.codes.to_numpy()[rows]
    for code in np.unique(codes):
        yield rows[codes == code]


def _moved(
    predictor: Predictor, cells: Cells, rows: Places, labels: Mapping[str, str]
) -> "tuple[Places, sp.csr_matrix[np.float32], str]":
    """The rows of one cell type, moved; and why they are not, where they are not."""
    kind = labels["cell_type"] or str(cells.labels["cell_type"].iloc[int(rows[0])])
    reason = predictor.response.refusal(labels["perturbation"], kind)
    if reason:
        return rows, sp.csr_matrix((0, len(predictor.genes)), dtype=np.float32), reason
    table = {"perturbation": labels["perturbation"], "cell_type": kind, "assay_batch": labels["assay_batch"]}
    start = Cells(
        values=cells.log_expression(predictor.genes, rows),
        scale="log1p",
        total_counts=None,
        genes=pd.Index(predictor.genes),
        names=cells.names[rows],
        labels=pd.DataFrame({name: pd.Categorical([label] * len(rows)) for name, label in table.items()}),
        control=cells.control,
    )
    totals = cells.known_totals[rows] if predictor.way == "counts" else None
    return rows, predictor.predict(start, totals).log_expression(predictor.genes), ""
