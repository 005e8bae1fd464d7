"""The control cells that a prediction starts from: their panel, their totals, and what is expected of them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from perturbdiff.cells.memory import Cells
from perturbdiff.checkpoint import Checkpoint
from perturbdiff.core.choices import COVARIATES
from perturbdiff.labels.conditions import Conditions
from perturbdiff.recipes.settings import Guidance, Settings

if TYPE_CHECKING:
    from perturbdiff.populations.expected import Surroundings

type Rows = npt.NDArray[np.int64]


class Controls(NamedTuple):
    """The control cells of a prediction.

    Attributes:
        rows: those that are used, ascending.
        expression: log1p counts per 10^4 [rows, panel].
        totals: their total counts [rows]; None where the model has no use for them.
    """

    rows: Rows
    expression: "sp.csr_matrix[np.float32]"
    totals: npt.NDArray[np.float64] | None

    def of(self, rows: Rows) -> tuple["sp.csr_matrix[np.float32]", npt.NDArray[np.float64] | None]:
        """The expression and the totals of some of them."""
        place = np.searchsorted(self.rows, rows)
        return self.expression[place], None if self.totals is None else self.totals[place]


def panel_of(cells: Cells, genes: list[str], missing: list[str], rows: Rows) -> "sp.csr_matrix[np.float32]":
    """log1p counts per 10^4 of the panel, missing genes as columns of zeros."""
    if not missing:
        return cells.log_expression(genes, rows)
    absent = set(missing)
    present = [i for i, gene in enumerate(genes) if gene not in absent]
    found = cells.log_expression([genes[i] for i in present], rows).tocoo()
    columns = np.asarray(present)[found.col]
    return sp.csr_matrix((found.data, (found.row, columns)), shape=(len(rows), len(genes)), dtype=np.float32)


def check_whole_numbers(checkpoint: Checkpoint, settings: Settings) -> None:
    """Refuse whole numbers of counts of a model, or of a sampling, that makes none.

    Raises:
        ValueError: the model changes log1p values, or the guidance those of x_0 itself.
    """
    target, sampling = checkpoint.settings.model.target, settings.sampling
    if target != "counts":
        raise ValueError(
            f"this model changes log1p values (target = {target!r}), so its cells are no "
            'whole numbers of counts; train one with target = "counts", or predict log1p values.'
        )
    given = sampling.guidance
    if sampling.guidance_of == "x_0" and any(given.strengths if isinstance(given, Guidance) else [given]):
        raise ValueError(
            f"guidance of x_0 itself (guidance_of = {sampling.guidance_of!r}) gives no whole numbers of "
            'counts; set guidance_of = "change", or leave the guidance out.'
        )


def totals_of(cells: Cells, rows: Rows, checkpoint: Checkpoint) -> npt.NDArray[np.float64] | None:
    """The total counts of control cells [rows], where the model changes counts.

    Raises:
        ValueError: they are not known.
    """
    if checkpoint.settings.model.target != "counts":
        return None
    totals: npt.NDArray[np.float64] = cells.known_totals[rows]
    unknown = int(np.isnan(totals).sum())
    if unknown:
        raise ValueError(
            f"{unknown} of {len(rows)} control cells hold log1p values that do not tell their counts, which this model "
            "changes; give the file with counts, or name the layer that holds them."
        )
    return totals


def expected_of(
    checkpoint: Checkpoint,
    known: Conditions,
    conditions: pd.DataFrame,
    control: Controls,
    rows: Mapping[int, Sequence[Rows]],
) -> npt.NDArray[np.float32] | None:
    """What is expected of each condition [conditions, panel] by its control cells' rows, before the network speaks."""
    expectation = checkpoint.expectation(known)
    if expectation is None:
        return None
    found = np.zeros((len(conditions), len(checkpoint.genes)), dtype=np.float32)
    labels = known.vocabularies[COVARIATES[0]].encode(conditions[COVARIATES[0]])
    around: dict[tuple[tuple[str, str], bytes], Surroundings] = {}
    for number, own in rows.items():
        there = np.unique(np.concatenate(own))
        context = (str(conditions["cell_type"].iloc[number]), str(conditions["assay_batch"].iloc[number]))
        key = (context, there.tobytes())
        if key not in around:
            expression, totals = control.of(there)
            around[key] = expectation.surroundings(context, expression.toarray(), totals)
        found[number] = expectation.of(int(labels[number]), around[key])
    return found
