"""What is judged: a condition, the context that it stands in, and the rows of either in a file.

A condition is what was predicted: a (perturbation, cell type, assay batch), or a (perturbation, cell type) over all
assay batches where the prediction leaves these open (*pooled*). Its context is its cell type and assay batch; the
context's control cells are those of the assay batch, or of the cell type in any batch where the batch has fewer than
two of them, by the rule that training pairs them by.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perturbdiff.cells.controls import FEWEST, ControlRows

if TYPE_CHECKING:
    from collections.abc import Sequence

    import scipy.sparse as sp

type Rows = NDArray[np.int64]

__all__ = ["APART", "FEWEST", "LABELS", "TOGETHER", "Condition", "Context", "File", "Pooling", "Rows"]

LABELS = ("perturbation", "cell_type", "assay_batch")
"""The labels of a condition, in the order of every table."""


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

    def log_expression(self, genes: "Sequence[str]", rows: Rows | None = None) -> "sp.csr_matrix[np.float32]":
        """Log1p counts per 10^4 of some genes and rows, in their order."""


class Context(NamedTuple):
    """The kind of cells of a condition, and their assay batch; an empty label: no such column, or any batch."""

    cell_type: str
    assay_batch: str = ""

    def __str__(self) -> str:
        """The labels that there are, as sentences show them."""
        kind = f"cell type {self.cell_type!r}" if self.cell_type else "the only cell type"
        return f"{kind} of assay batch {self.assay_batch!r}" if self.assay_batch else kind


class Condition(NamedTuple):
    """What a population was given, what kind of cells it holds, and of which assay batch (a donor, a plate).

    An empty label: no such column; an empty assay batch also: the cells of all batches together.
    """

    perturbation: str
    cell_type: str
    assay_batch: str = ""

    def __str__(self) -> str:
        """The labels that there are, as error messages show them."""
        where = f"{self.perturbation} in {self.cell_type}" if self.cell_type else self.perturbation
        return f"{where} of {self.assay_batch}" if self.assay_batch else where

    @property
    def context(self) -> Context:
        """Its cell type and assay batch."""
        return Context(self.cell_type, self.assay_batch)

    @property
    def pair(self) -> tuple[str, str]:
        """Its perturbation and cell type."""
        return self.perturbation, self.cell_type

    @property
    def place(self) -> tuple[str, str, str]:
        """What conditions are sorted by: the context, then the perturbation."""
        return self.cell_type, self.assay_batch, self.perturbation


@dataclass(frozen=True)
class Pooling:
    """Which (perturbation, cell type) are judged over all assay batches: everything, or those named.

    An empty cell type names the perturbation in every cell type.
    """

    everything: bool = False
    pairs: frozenset[tuple[str, str]] = frozenset()

    def of(self, perturbation: str, cell_type: str, assay_batch: str) -> Condition:
        """The condition that cells of these labels belong to."""
        pooled = self.everything or not self.pairs.isdisjoint({(perturbation, cell_type), (perturbation, "")})
        return Condition(perturbation, cell_type, "" if pooled else assay_batch)


APART = Pooling()
"""Every assay batch by itself."""

TOGETHER = Pooling(everything=True)
"""All assay batches together."""


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
