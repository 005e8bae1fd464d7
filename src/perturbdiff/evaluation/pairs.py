"""Predicted cells beside observed cells: the judged conditions, their cells and the control cells of their contexts.

Cells that belong to no judged condition take no part. A context's control cells are those of the assay batch, or of the
cell type in any batch where the batch has fewer than two of them, by the rule that training pairs them by. Of more
control cells than are held in memory at once, so many are drawn.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perturbdiff.cells.controls import FEWEST, ControlRows
from perturbdiff.cells.counts import Totals
from perturbdiff.cells.memory import Cells
from perturbdiff.cells.on_disk import Disk
from perturbdiff.metrics.conditions import APART, LABELS, Condition, Context, Pooling, target_places
from perturbdiff.metrics.ours import Population

if TYPE_CHECKING:
    import scipy.sparse as sp

type Rows = NDArray[np.int64]

CONTROL_CELLS = 10_000
"""So many control cells of a context stand beside a condition, at most."""

CONTROL_VALUES = 1 << 25
"""So many values of control cells are in memory, at most."""


class File(Protocol):
    """Cells of a file, in memory or on disk: what of `cells.memory.Cells` an evaluation needs."""

    @property
    def genes(self) -> pd.Index:
        """Unique names."""

    @property
    def names(self) -> pd.Index:
        """Names of the cells."""

    @property
    def labels(self) -> pd.DataFrame:
        """Categories of text: perturbation, cell_type, assay_batch."""

    @property
    def control(self) -> str | None:
        """The control cells' label of perturbation."""

    @property
    def is_control(self) -> NDArray[np.bool_]:
        """Which cells are control cells."""

    @property
    def origins(self) -> Rows | None:
        """The number of the control cell that each was made of; None where that is not known."""

    @property
    def draws(self) -> Rows | None:
        """Which of several drawn populations each is of; None where that is not known."""

    def log_expression(self, genes: Sequence[str], rows: Rows | None = None) -> "sp.csr_matrix[np.float32]":
        """Log1p counts per 10^4 of some genes and rows, in their order."""


@dataclass(frozen=True)
class Pairs:
    """The conditions and genes on which one or several predicted files and an observed file are compared.

    Attributes:
        conditions: those that are judged, sorted by cell type, assay batch and perturbation.
        genes: the shared genes, in the observed file's order.
        controls: the file that the control cells come from.
        notes: what was left out, as sentences.
        seed: draws the control cells where there are more than `CONTROL_CELLS`.
        pooling: which conditions are over all assay batches.
        apart: observed cells that take no part [n]; None where all may.
    """

    observed: File
    controls: File
    conditions: tuple[Condition, ...]
    genes: tuple[str, ...]
    notes: tuple[str, ...]
    seed: int = 0
    pooling: Pooling = APART
    apart: NDArray[np.bool_] | None = None

    @cached_property
    def contexts(self) -> dict[Context, tuple[Condition, ...]]:
        """The judged conditions of each context."""
        found: dict[Context, list[Condition]] = {}
        for condition in self.conditions:
            found.setdefault(condition.context, []).append(condition)
        return {context: tuple(own) for context, own in found.items()}

    @cached_property
    def observed_rows(self) -> dict[Condition, Rows]:
        """The rows of the observed cells of every judged condition."""
        return self._judged(perturbed_rows(self.observed, self.pooling, self.apart))

    def observed_cells(self, condition: Condition) -> Population:
        """The observed cells of a condition."""
        return population(self.observed, self.genes, self.observed_rows[condition])

    def control_rows(self, context: Context) -> Rows:
        """The rows of a context's control cells in `controls`; those that were drawn, where they are too many."""
        rows = self._control_rows[0][context]
        most = min(CONTROL_CELLS, max(FEWEST, CONTROL_VALUES // len(self.genes)))
        if rows.size <= most:
            return rows
        rng = np.random.default_rng([self.seed, 2, list(self.contexts).index(context)])
        return np.sort(rng.permutation(rows)[:most])

    def control_cells(self, context: Context) -> Cells:
        """The control cells of a context, over the judged genes."""
        rows = self.control_rows(context)
        labels = self.controls.labels.iloc[rows].reset_index(drop=True)
        return Cells(
            values=self.controls.log_expression(self.genes, rows),
            scale="log1p",
            total_counts=None,
            genes=pd.Index(self.genes),
            names=self.controls.names[rows],
            labels=pd.DataFrame({name: labels[name].cat.remove_unused_categories() for name in labels}),
            control=self.controls.control,
        )

    def control_totals(self, context: Context) -> Totals:
        """The total counts of the control cells of a context, over all genes of their file; NaN where unknown."""
        return self._control_totals[context]

    def control(self, context: Context) -> Population:
        """The control cells of a context, as `control_cells`, dense."""
        return population(self.controls, self.genes, self.control_rows(context))

    def n_controls(self, context: Context) -> int:
        """How many control cells of a context stand beside its conditions."""
        return int(self.control_rows(context).size)

    def control_batches(self, context: Context) -> NDArray[Any]:
        """The assay batch of each control cell of a context."""
        return self.controls.labels["assay_batch"].iloc[self.control_rows(context)].astype(str).to_numpy()

    def siblings(self, condition: Condition) -> tuple[Condition, ...]:
        """The judged conditions of the same perturbation and cell type in other assay batches."""
        return tuple(one for one in self._of_pair[condition.pair] if one != condition)

    def rows_of(self, predicted: File) -> dict[Condition, Rows]:
        """The rows of a predicted file of every judged condition."""
        return self._judged(perturbed_rows(predicted, self.pooling))

    def populations_of(self, predicted: File) -> Callable[[Condition], Population]:
        """A function from a condition to the predicted cells of it."""
        rows = self.rows_of(predicted)
        return lambda condition: population(predicted, self.genes, rows[condition])

    def targets(self, condition: Condition) -> Rows:
        """The places of the genes that the perturbation's label names; none where fewer than two others are left."""
        return target_places(condition.perturbation, self._places)

    def control_notes(self) -> list[str]:
        """A sentence where control cells were drawn, and where they are those of other assay batches."""
        notes, (rows, borrowed) = [], self._control_rows
        for context in self.contexts:
            found, kept = rows[context].size, self.control_rows(context).size
            if kept < found:
                of = f" of {context}" if any(context) else ""
                notes.append(f"{kept} of the {found} control cells{of} were drawn, and changes are measured from them.")
        if borrowed:
            of = "1 context" if len(borrowed) == 1 else f"{len(borrowed)} contexts"
            notes.append(
                f"{of} with fewer than {FEWEST} control cells of their assay batch, such as {borrowed[0]}, "
                f"{'is' if len(borrowed) == 1 else 'are'} held against the control cells of the cell type in any batch."
            )
        return notes

    def _judged(self, rows: Mapping[Condition, Rows]) -> dict[Condition, Rows]:
        return {condition: rows[condition] for condition in self.conditions}

    @cached_property
    def _control_rows(self) -> tuple[dict[Context, Rows], list[Context]]:
        return control_rows(self.controls, tuple(self.contexts))

    @cached_property
    def _control_totals(self) -> dict[Context, Totals]:
        rows = {context: self.control_rows(context) for context in self.contexts}
        together = np.unique(np.concatenate(list(rows.values())))
        found = known_totals(self.controls, together)
        return {context: found[np.searchsorted(together, own)] for context, own in rows.items()}

    @cached_property
    def _of_pair(self) -> dict[tuple[str, str], list[Condition]]:
        found: dict[tuple[str, str], list[Condition]] = {}
        for condition in self.conditions:
            found.setdefault(condition.pair, []).append(condition)
        return found

    @cached_property
    def _places(self) -> dict[str, int]:
        return {gene: place for place, gene in enumerate(self.genes)}


def population(cells: File, genes: Sequence[str], rows: Rows) -> Population:
    """The rows of a file as a dense [cells, genes] float32 population, log1p counts per 10^4."""
    origins = None if cells.origins is None else cells.origins[rows]
    return Population(cells.log_expression(genes, rows).toarray(), origins)


def known_totals(cells: File, rows: Rows) -> Totals:
    """The total counts of some rows of a file; NaN where unknown, see `cells.memory.Cells.known_totals`."""
    return cells.totals(rows) if isinstance(cells, Disk) else cast("Cells", cells).known_totals[rows]


def names_batches(cells: File) -> bool:
    """Whether a file says which assay batch its cells are of."""
    return list(cells.labels["assay_batch"].cat.categories) != [""]


def perturbed_rows(cells: File, pooling: Pooling, apart: NDArray[np.bool_] | None = None) -> dict[Condition, Rows]:
    """The ascending rows of each condition of the cells that are not control cells, by one grouping.

    Args:
        cells: of a file.
        pooling: which conditions are over all assay batches.
        apart: cells that take no part [n].
    """
    chosen = ~cells.is_control if apart is None else ~(cells.is_control | apart)
    found: dict[Condition, list[Rows]] = {}
    rows = np.flatnonzero(chosen)
    groups: Any = cells.labels.iloc[rows].groupby(list(LABELS), observed=True).indices
    for key, inside in groups.items():
        found.setdefault(pooling.of(*map(str, key)), []).append(rows[inside])
    return {one: parts[0] if len(parts) == 1 else np.sort(np.concatenate(parts)) for one, parts in found.items()}


def control_rows(cells: File, contexts: Collection[Context]) -> tuple[dict[Context, Rows], list[Context]]:
    """The rows of the control cells of each context, ascending, and the contexts that borrow those of other batches.

    A context whose cell type has fewer than two control cells has those that there are.
    """
    controls = ControlRows.of(cells.labels, cells.is_control)
    found = {one: controls.beside(*one) for one in contexts}
    return {one: rows for one, (rows, _) in found.items()}, [one for one, (_, borrowed) in found.items() if borrowed]
