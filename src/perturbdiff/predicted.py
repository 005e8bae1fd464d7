"""The .h5ad of predicted cells, as models and baselines write it and evaluation reads it: what it holds and declares.

First control cells, then what was predicted from them: log1p counts per 10^4 in ``X`` [cells, genes], or whole numbers
of counts there, the log1p values in the layer ``log1p`` and the cells' totals in a column of ``obs``. ``obs`` has the
labels under the names that the columns of the data have, and `OWN_COLUMNS`. ``uns["perturbdiff"]`` declares

    format, version                of the file, and of the library
    scale, unit                    "log1p" or "counts", and that of ``X``
    columns, own_columns           what the columns of the labels and ours are called
    control                        the label of control cells, where there is one
    conditions                     what was asked: JSON, a record for each
    grammar                        what labels of perturbation are made of: JSON
    split_hash                     of the split that the training cells came from
    populations, missing_genes     how often each condition was drawn, and the genes that counted as 0: JSON

and, besides, what made it: ``checkpoint, sampling, seed, zero_shot`` of a model, ``baseline, way, left_out`` of a
baseline.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from perturbdiff.cells.controls import CONTEXT
from perturbdiff.cells.counts import whole
from perturbdiff.cells.memory import Cells
from perturbdiff.io import free_name
from perturbdiff.labels.members import beside, parts_of
from perturbdiff.recipes.dataset import Columns

if TYPE_CHECKING:
    import anndata

KEY = "perturbdiff"
"""The key of `uns` under which a predicted file describes itself."""

FORMAT = 1
"""Raised with every change that a reader must know of."""

OWN_COLUMNS = ("population", "control_cell")
"""Our columns: which of the draws a cell is of, -1 for control cells, and the control cell that it was made from.

Where the data have a column of that name, ours has another one, which ``own_columns`` says.
"""

LOGS = "log1p"
"""The layer of log1p counts per 10^4 where X holds counts."""

UNSPECIFIED = "unspecified"
"""The label of predicted cells whose condition leaves the perturbation open."""

type Rows = NDArray[np.int64]
type Matrix = sp.csr_matrix[np.float32]


class Predicted(NamedTuple):
    """Predicted cells, as a model or a baseline makes them.

    Attributes:
        expression: log1p counts per 10^4 [cells, genes].
        source: the row of the control cell that each was made from [cells].
        condition: the row of its condition in the table of these [cells].
        repeat: which of the draws of the condition it is of [cells], or of all.
        totals: total counts of the cells [cells], where they are drawn as counts.
    """

    expression: Matrix
    source: Rows
    condition: Rows
    repeat: Rows | int = 0
    totals: NDArray[np.float64] | None = None


def as_file(
    made: Predicted,
    cells: Cells,
    conditions: pd.DataFrame,
    controls: Matrix,
    *,
    genes: Sequence[str],
    columns: Columns,
    control: str | None,
    facts: Mapping[str, Any],
    control_totals: NDArray[np.float64] | None = None,
) -> "anndata.AnnData":
    """The file of predicted cells, behind the control cells that they were made from.

    A predicted cell carries the labels of its condition and, where that leaves one open, those of its control cell
    (but `UNSPECIFIED` for an open perturbation: it is no control cell).

    Args:
        made: the predicted cells.
        cells: those that they were made from, of which only the used ones are in the file.
        conditions: perturbation, cell_type and assay_batch of each, "" where a label is open.
        controls: expression of the used ones, in the order of `cells`: log1p counts per 10^4 [used, genes].
        genes: of the columns of all values.
        columns: of the data, under which the labels are written.
        control: the label of control cells; None where the data have none.
        facts: what is declared beside what this function knows.
        control_totals: total counts of the used control cells, by which X holds counts; None for log1p values.
    """
    import anndata

    used, source = np.unique(made.source), made.source
    repeat = np.broadcast_to(made.repeat, source.shape)
    # a control cell may serve a population more than once
    again = pd.DataFrame([source, made.condition, repeat]).T.groupby([0, 1, 2]).cumcount()
    names = cells.names.to_numpy(dtype=object)
    obs = _labels(made, cells, conditions, columns, control)
    ours = {name: free_name(name, obs) for name in OWN_COLUMNS}
    obs[ours["population"]] = np.concatenate([np.full(len(used), -1), repeat])
    obs[ours["control_cell"]] = np.concatenate([names[used], names[source]])
    predicted = [
        f"{names[row]}-predicted-{number}-{draw}" + (f"-{before}" if before else "")
        for row, number, draw, before in zip(source, made.condition, repeat, again, strict=True)
    ]
    values, layers = sp.vstack([controls, made.expression], format="csr"), {}
    names_of = {name: column for name, column in columns.model_dump(exclude={"total_counts"}).items() if column}
    if control_totals is not None and made.totals is not None:
        totals = np.concatenate([control_totals, made.totals])
        names_of["total_counts"] = free_name("total_counts", obs)
        obs[names_of["total_counts"]] = totals
        layers[LOGS], values = values, _whole(values, totals)
    declared = {
        "format": FORMAT,
        "version": version("perturbdiff"),
        "scale": "counts" if layers else "log1p",
        "unit": "counts" if layers else "log1p counts per 10^4",
        "columns": names_of,
        "own_columns": ours,
        **({} if control is None else {"control": control}),
        "conditions": conditions.to_json(orient="records"),
    }
    return anndata.AnnData(
        X=values,
        layers=layers,
        obs=pd.DataFrame(obs, index=pd.Index([*names[used], *predicted], dtype=str)),
        var=pd.DataFrame(index=pd.Index(genes, dtype=str)),
        uns={KEY: {**facts, **declared}},
    )


def _whole(values: Matrix, totals: NDArray[np.float64]) -> "sp.csr_matrix[np.float32]":
    """The counts of log1p counts per 10^4."""
    counts = whole(values.data, np.repeat(totals, np.diff(values.indptr))).astype(np.float32)
    return sp.csr_matrix((counts, values.indices, values.indptr), shape=values.shape)


def _labels(
    made: Predicted, cells: Cells, conditions: pd.DataFrame, columns: Columns, control: str | None
) -> dict[str, Any]:
    """The columns of the labels: of the used control cells, then of the predicted ones."""
    obs: dict[str, Any] = {}
    used = np.unique(made.source)
    if columns.perturbation is not None:
        controls = np.full(len(used), control, dtype=object)
        asked = [label or UNSPECIFIED for label in conditions["perturbation"]]
        obs |= beside([*controls, *np.array(asked, dtype=object)[made.condition]], columns)
        alone = np.array([parts_of(label, columns)["perturbation"] for label in asked], dtype=object)
        obs[columns.perturbation] = pd.Categorical(np.concatenate([controls, alone[made.condition]]))
    for name in CONTEXT:
        column = getattr(columns, name)
        if column is not None:
            own = cells.labels[name].astype(object).to_numpy()
            given = conditions[name].to_numpy(dtype=object)[made.condition]
            obs[column] = pd.Categorical(np.concatenate([own[used], np.where(given == "", own[made.source], given)]))
    return obs


def drawn(adata: "anndata.AnnData") -> Any:  # noqa: ANN401 - a column of anndata's table
    """Which of the draws each cell of a predicted file is of; -1 for control cells."""
    return adata.obs[str(adata.uns[KEY]["own_columns"]["population"])]


def without_controls(adata: "anndata.AnnData") -> "anndata.AnnData":
    """The predicted cells of a predicted file alone."""
    alone: anndata.AnnData = adata[drawn(adata) >= 0].copy()
    return alone


def declared_columns(declared: Mapping[str, Any]) -> Columns:
    """The columns of labels that a predicted file declares."""
    return Columns(**{str(key): str(value) for key, value in declared["columns"].items() if value})
