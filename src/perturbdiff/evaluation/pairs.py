"""Which predicted cells are held against which observed cells.

A condition is a (perturbation, cell type); its cells are pooled over assay batches. Genes are matched by name
and only the shared ones count. Control cells are those of the condition's cell type, from the observed file, or
from the predicted one where the observed has none: the same cells stand on both sides of every change.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perturbdiff.data.cells import Cells
from perturbdiff.data.vocabulary import nearest
from perturbdiff.evaluation.metrics import Population, Reference

type Rows = NDArray[np.int64]


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
    """

    observed: Cells
    controls: Cells
    conditions: tuple[Condition, ...]
    genes: tuple[str, ...]
    notes: tuple[str, ...]

    def references(self) -> Iterator[tuple[Condition, Reference]]:
        """Each condition with its observed and its control cells; one condition is dense in memory at a time."""
        observed = perturbed_rows(self.observed)
        control_rows = rows_by_cell_type(self.controls)
        cell_type, control = None, None
        for condition in self.conditions:
            if control is None or condition.cell_type != cell_type:
                cell_type = condition.cell_type
                control = population(self.controls, self.genes, control_rows[cell_type])
            yield condition, Reference(population(self.observed, self.genes, observed[condition]), control)

    def populations_of(self, predicted: Cells) -> Callable[[Condition], Population]:
        """A function from a condition to the predicted cells of it."""
        rows = perturbed_rows(predicted)
        return lambda condition: population(predicted, self.genes, rows[condition])


def align(
    predicted: Mapping[str, Cells], observed: Cells, *, conditions: Collection[tuple[str, str]] | None = None
) -> Pairs:
    """Match predicted files (by name) and the observed file: conditions, genes and control cells.

    Args:
        predicted: one or several files; the conditions that all of them hold are judged.
        observed: the cells that they are judged against.
        conditions: (perturbation, cell type) pairs to judge, all where None.

    Raises:
        ValueError: nothing is predicted; a predicted condition is not observed; a condition has one cell on a
        side; no
            gene is shared; a cell type has no control cells in either file.
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
    return Pairs(observed, controls, tuple(chosen), tuple(genes), (*notes, *gene_notes))


def population(cells: Cells, genes: Sequence[str], rows: Rows) -> Population:
    """The rows of a file as a dense [cells, genes] float32 population, log1p counts per 10^4."""
    return Population(cells.log_expression(genes, rows).toarray())


def has_controls(cells: Cells) -> bool:
    """Whether a file holds control cells."""
    return bool(cells.is_control.any())


def perturbed_rows(cells: Cells) -> dict[Condition, Rows]:
    """The rows of each condition of the cells that are not control cells, by one grouping."""
    perturbed = np.flatnonzero(~cells.is_control)
    labels = cells.labels.iloc[perturbed]
    groups: Any = labels.groupby(["perturbation", "cell_type"], observed=True).indices
    return {Condition(*key): perturbed[rows] for key, rows in groups.items()}


def rows_by_cell_type(cells: Cells) -> dict[str, Rows]:
    """The rows of the control cells of each cell type."""
    control = np.flatnonzero(cells.is_control)
    groups: Any = cells.labels.iloc[control].groupby("cell_type", observed=True).indices
    return {cell_type: control[rows] for cell_type, rows in groups.items()}


def _agreed(
    predicted: Mapping[str, Cells], observed: Cells, wanted: Sequence[Condition] | None
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


def _shared_genes(predicted: Mapping[str, Cells], observed: Cells) -> tuple[list[str], list[str]]:
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


def _controls(predicted: Mapping[str, Cells], observed: Cells) -> Cells:
    """The file that the control cells come from: the observed one, else the first predicted one that has any."""
    for cells in (observed, *predicted.values()):
        if has_controls(cells):
            return cells
    raise ValueError(
        "neither the predicted nor the observed file holds control cells, and changes are measured from them; "
        "add the control cells to one of the files or name its control label."
    )


def _check_control_cells(controls: Cells, chosen: Sequence[Condition]) -> None:
    rows = rows_by_cell_type(controls)
    for condition in chosen:
        if condition.cell_type not in rows:
            raise ValueError(
                f"cell type {condition.cell_type!r} has no control cells, and changes are measured from its own; "
                "add them or leave the condition out."
            )
