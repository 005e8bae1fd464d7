"""The baseline under which nothing changes: control cells, unchanged, are the prediction.

For each predicted (perturbation, cell type, assay batch) as many control cells of the same cell type and assay
batch are drawn, without replacement while they last, then from a fresh permutation; of the cell type in any
assay batch where the label is empty or has fewer than two control cells, as in training.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perturbdiff.cells.controls import ControlRows
from perturbdiff.cells.memory import Cells

GROUP = ("perturbation", "cell_type", "assay_batch")
"""The labels of a population."""

type Rows = NDArray[np.int64]


def groups_of(cells: Cells) -> pd.DataFrame:
    """The populations of cells that are not controls: perturbation, cell_type, assay_batch, cells (how many)."""
    labels = cells.labels[~cells.is_control]
    sizes = labels.groupby(list(GROUP), observed=True, sort=True).size()
    return pd.DataFrame(sizes.rename("cells").reset_index())


def predict_control(
    groups: pd.DataFrame, controls: Cells, *, genes: Sequence[str], control: str, rng: np.random.Generator
) -> Cells:
    """Predict control cells, unchanged.

    Args:
        groups: one row per population to predict, as `groups_of` gives them.
        controls: a file with control cells.
        genes: the genes to predict.
        control: the control label of the result.
        rng: draws the control cells.

    Returns:
        The predicted cells, log1p counts per 10^4, in the order of `groups`; no control cells among them.

    Raises:
        ValueError: a cell type has no control cells.
    """
    return under_labels(groups, controls, drawn_rows(groups, controls, rng), genes=genes, control=control)


def drawn_rows(groups: pd.DataFrame, controls: Cells, rng: np.random.Generator) -> Rows:
    """The row of the control cell that each predicted cell is, group after group.

    Raises:
        ValueError: a cell type has no control cells.
    """
    rows_of = ControlRows.of(controls.labels, controls.is_control)
    rows = [np.zeros(0, dtype=np.int64)]
    for cell_type, assay_batch, n_cells in zip(
        groups["cell_type"], groups["assay_batch"], groups["cells"], strict=True
    ):
        available, _ = rows_of.beside(str(cell_type), str(assay_batch))
        if not available.size:
            raise ValueError(
                f"cell type {cell_type!r} has no control cells to predict from; add them or leave the cell type out."
            )
        rows.append(draw(available, n_cells, rng))
    return np.concatenate(rows)


def under_labels(groups: pd.DataFrame, controls: Cells, drawn: Rows, *, genes: Sequence[str], control: str) -> Cells:
    """Control cells that were drawn for `groups` (`drawn_rows`), under the labels of these; as `predict_control`."""
    names = pd.Index([f"predicted-{index}" for index in range(drawn.size)])
    labels = (
        groups.loc[groups.index.repeat(groups["cells"]), list(GROUP)]
        .astype(str)
        .reset_index(drop=True)
        .astype("category")
    )
    return Cells(
        values=controls.log_expression(genes, drawn),
        scale="log1p",
        total_counts=None,
        genes=pd.Index(genes),
        names=names,
        labels=labels,
        control=control,
        origins=drawn,
    )


def draw(rows: Rows, n_cells: int, rng: np.random.Generator) -> Rows:
    """Draw `n_cells` of `rows`: without replacement while they last, then again from a fresh permutation."""
    rounds = -(-n_cells // rows.size)
    return np.concatenate([rng.permutation(rows) for _ in range(rounds)])[:n_cells]
