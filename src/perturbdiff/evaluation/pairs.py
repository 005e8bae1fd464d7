"""Which predicted cells are held against which observed cells.

A condition is a (perturbation, cell type); its cells are pooled over assay batches. Genes are matched by name
and only the shared ones count. Control cells are those of the condition's cell type, from the observed file, or
from the predicted one where the observed has none: the same cells stand on both sides of every change. Of more control
cells than are held in memory at once, so many are drawn.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perturbdiff.data.cells import Cells
from perturbdiff.data.vocabulary import nearest
from perturbdiff.evaluation.metrics import Population
from perturbdiff.evaluation.targets import target_notes, target_places

if TYPE_CHECKING:
    import scipy.sparse as sp

type Rows = NDArray[np.int64]

CONTROL_CELLS = 10_000
"""So many control cells of a cell type stand beside a condition, at most."""

CONTROL_VALUES = 1 << 25
"""So many values of control cells are in memory, at most."""


class File(Protocol):
    """Cells of a file, in memory or on disk: what of `data.cells.Cells` an evaluation needs."""

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

    def log_expression(self, genes: Sequence[str], rows: Rows | None = None) -> "sp.csr_matrix[np.float32]":
        """Log1p counts per 10^4 of some genes and rows, in their order."""


class Condition(NamedTuple):
    """What a population was given and what kind of cells it holds; an empty label: no such column."""

    perturbation: str
    cell_type: str

    def __str__(self) -> str:
        """Both labels, as error messages show them."""
        return f"{self.perturbation} in {self.cell_type}" if self.cell_type else self.perturbation


@dataclass(frozen=True)
class Pairs:
    """The conditions and genes on which one or several predicted files and an observed file are compared.

    Attributes:
        conditions: those that are judged, sorted by cell type and perturbation.
        genes: the shared genes, in the observed file's order.
        controls: the file that the control cells come from.
        notes: what was left out, as sentences.
        seed: draws the control cells where there are more than `CONTROL_CELLS`.
    """

    observed: File
    controls: File
    conditions: tuple[Condition, ...]
    genes: tuple[str, ...]
    notes: tuple[str, ...]
    seed: int = 0

    @cached_property
    def contexts(self) -> dict[str, tuple[Condition, ...]]:
        """The judged conditions of each cell type."""
        cell_types = dict.fromkeys(condition.cell_type for condition in self.conditions)
        return {kind: tuple(one for one in self.conditions if one.cell_type == kind) for kind in cell_types}

    @cached_property
    def observed_rows(self) -> dict[Condition, Rows]:
        """The rows of the observed cells of every condition, judged or not."""
        return perturbed_rows(self.observed)

    def observed_cells(self, condition: Condition) -> Population:
        """The observed cells of a condition."""
        return population(self.observed, self.genes, self.observed_rows[condition])

    def control_cells(self, cell_type: str) -> Cells:
        """The control cells of a cell type, over the judged genes."""
        rows = self._drawn(cell_type)
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

    def control(self, cell_type: str) -> Population:
        """The control cells of a cell type, as `control_cells`, dense."""
        return population(self.controls, self.genes, self._drawn(cell_type))

    def n_controls(self, cell_type: str) -> int:
        """How many control cells of a cell type stand beside its conditions."""
        return int(self._drawn(cell_type).size)

    def control_batches(self, cell_type: str) -> NDArray[Any]:
        """The assay batch of each control cell of a cell type."""
        return self.controls.labels["assay_batch"].iloc[self._drawn(cell_type)].astype(str).to_numpy()

    def populations_of(self, predicted: File) -> Callable[[Condition], Population]:
        """A function from a condition to the predicted cells of it."""
        rows = perturbed_rows(predicted)
        return lambda condition: population(predicted, self.genes, rows[condition])

    def targets(self, condition: Condition) -> Rows:
        """The places of the genes that the perturbation's label names; none where fewer than two others are left."""
        return target_places(condition.perturbation, self._places)

    def control_notes(self) -> list[str]:
        """A sentence where control cells were drawn."""
        notes = []
        for cell_type in self.contexts:
            found, kept = self._control_rows[cell_type].size, self._drawn(cell_type).size
            if kept < found:
                of = f" of {cell_type!r}" if cell_type else ""
                notes.append(f"{kept} of the {found} control cells{of} were drawn, and changes are measured from them.")
        return notes

    @cached_property
    def _control_rows(self) -> dict[str, Rows]:
        return rows_by_cell_type(self.controls)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {gene: place for place, gene in enumerate(self.genes)}

    def _drawn(self, cell_type: str) -> Rows:
        rows = self._control_rows[cell_type]
        most = min(CONTROL_CELLS, max(2, CONTROL_VALUES // len(self.genes)))
        if rows.size <= most:
            return rows
        rng = np.random.default_rng([self.seed, 2, list(self.contexts).index(cell_type)])
        return np.sort(rng.permutation(rows)[:most])


def align(
    predicted: Mapping[str, File],
    observed: File,
    *,
    conditions: Collection[tuple[str, str]] | None = None,
    seed: int = 0,
) -> Pairs:
    """Match predicted files (by name) and the observed file: conditions, genes and control cells.

    Args:
        predicted: one or several files; the conditions that all of them hold are judged.
        observed: the cells that they are judged against.
        conditions: (perturbation, cell type) pairs to judge, all where None.
        seed: draws control cells where there are too many.

    Raises:
        ValueError: nothing is predicted; a predicted condition is not observed; a condition has one cell on a side; no
            gene is shared; a cell type has fewer than two control cells.
    """
    if not predicted:
        raise ValueError("no predicted file is given; name at least one.")
    for name, cells in (*predicted.items(), ("observed", observed)):
        if cells.control is None:
            raise ValueError(
                f"{name!r} names no perturbation column and control label, so no cell of it is perturbed; name both."
            )
    wanted = None if conditions is None else [Condition(*condition) for condition in dict.fromkeys(conditions)]
    chosen, notes = _agreed(predicted, observed, wanted)
    genes, gene_notes = _shared_genes(predicted, observed)
    controls = _controls(predicted, observed)
    _check_control_cells(controls, chosen)
    pairs = Pairs(observed, controls, tuple(chosen), tuple(genes), (), seed)
    named = sum(pairs.targets(condition).size > 0 for condition in chosen)
    more = (*pairs.control_notes(), *target_notes(named, len(chosen)))
    return replace(pairs, notes=(*notes, *gene_notes, *more))


def population(cells: File, genes: Sequence[str], rows: Rows) -> Population:
    """The rows of a file as a dense [cells, genes] float32 population, log1p counts per 10^4."""
    return Population(cells.log_expression(genes, rows).toarray())


def has_controls(cells: File) -> bool:
    """Whether a file holds control cells."""
    return bool(cells.is_control.any())


def perturbed_rows(cells: File) -> dict[Condition, Rows]:
    """The rows of each condition of the cells that are not control cells, by one grouping."""
    perturbed = np.flatnonzero(~cells.is_control)
    labels = cells.labels.iloc[perturbed]
    groups: Any = labels.groupby(["perturbation", "cell_type"], observed=True).indices
    return {Condition(*key): perturbed[rows] for key, rows in groups.items()}


def rows_by_cell_type(cells: File) -> dict[str, Rows]:
    """The rows of the control cells of each cell type."""
    control = np.flatnonzero(cells.is_control)
    groups: Any = cells.labels.iloc[control].groupby("cell_type", observed=True).indices
    return {cell_type: control[rows] for cell_type, rows in groups.items()}


def _agreed(
    predicted: Mapping[str, File], observed: File, wanted: Sequence[Condition] | None
) -> tuple[list[Condition], list[str]]:
    """The conditions to judge, sorted by cell type, and what was left out."""
    truth = perturbed_rows(observed)
    rows = {name: perturbed_rows(cells) for name, cells in predicted.items()}
    for name, groups in rows.items():
        if not groups:
            raise ValueError(
                f"predicted file {name!r} holds no predicted cells, only control cells; give one that does."
            )
        _require(groups if wanted is None else wanted, truth, "the observed file")
        _require(wanted or (), groups, f"the predicted file {name!r}")
    common = set.intersection(*(set(groups) for groups in rows.values()))
    chosen = sorted(common if wanted is None else wanted, key=lambda condition: condition[::-1])
    if not chosen:
        raise ValueError(
            "no condition is left to judge: the predicted files have none in common; judge them one by one."
        )
    for name, groups in (*rows.items(), ("observed", truth)):
        _require_two_cells(name, groups, chosen)
    return chosen, _left_out(rows, truth, chosen)


def _left_out(
    rows: Mapping[str, Mapping[Condition, Rows]], truth: Mapping[Condition, Rows], chosen: Sequence[Condition]
) -> list[str]:
    """Sentences on the conditions that are not judged."""
    notes = []
    predicted = set.union(*(set(groups) for groups in rows.values()))
    if len(predicted) > len(chosen):
        left = len(predicted) - len(chosen)
        notes.append(
            f"{left} of {len(predicted)} predicted conditions are not judged: not chosen, or not in every file."
        )
    if len(truth) > len(chosen):
        left = len(truth) - len(chosen)
        notes.append(f"{left} of {len(truth)} observed conditions are not judged: not chosen, or not predicted.")
    return notes


def _require(wanted: Iterable[Condition], held: Mapping[Condition, Rows], where: str) -> None:
    """Each wanted condition must be held; the error names up to five that are not, and the nearest held one."""
    missing = [condition for condition in wanted if condition not in held]
    if not missing:
        return
    named = ", ".join(repr(str(condition)) for condition in missing[:5])
    named += f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    advice = nearest(str(missing[0]), map(str, held))
    raise ValueError(f"{where} has no cells of {named}; {advice}; correct the label or leave the condition out.")


def _require_two_cells(name: str, groups: Mapping[Condition, Rows], chosen: Sequence[Condition]) -> None:
    for condition in chosen:
        if groups[condition].size < 2:
            raise ValueError(
                f"{str(condition)!r} has one cell in {name!r}, and a distribution is judged on two at least; "
                "leave the condition out."
            )


def _shared_genes(predicted: Mapping[str, File], observed: File) -> tuple[list[str], list[str]]:
    """The genes of all files in the observed file's order, and a sentence where a file has others."""
    shared = pd.Index(observed.genes)
    for name, cells in predicted.items():
        shared = shared[shared.isin(cells.genes)]
        if shared.empty:
            raise ValueError(
                f"{name!r} and the observed file share no gene name (such as {cells.genes[0]!r} and "
                f"{observed.genes[0]!r}); give both the same kind of names."
            )
    sizes = {name: len(cells.genes) for name, cells in (*predicted.items(), ("observed", observed))}
    if all(size == len(shared) for size in sizes.values()):
        return list(shared), []
    counts = ", ".join(f"{size} in {name!r}" for name, size in sizes.items())
    return list(shared), [f"{len(shared)} genes are shared and judged ({counts})."]


def _controls(predicted: Mapping[str, File], observed: File) -> File:
    """The file that the control cells come from: the observed one, else the first predicted one that has any."""
    for cells in (observed, *predicted.values()):
        if has_controls(cells):
            return cells
    raise ValueError(
        "neither the predicted nor the observed file holds control cells, and changes are measured from them; "
        "add the control cells to one of the files or name its control label."
    )


def _check_control_cells(controls: File, chosen: Sequence[Condition]) -> None:
    rows = rows_by_cell_type(controls)
    for condition in chosen:
        if condition.cell_type not in rows:
            raise ValueError(
                f"cell type {condition.cell_type!r} has no control cells, and changes are measured from its own; "
                "add them or leave the condition out."
            )
        if rows[condition.cell_type].size < 2:
            raise ValueError(
                f"cell type {condition.cell_type!r} has one control cell, and two are needed at least; "
                "add others or leave the condition out."
            )
