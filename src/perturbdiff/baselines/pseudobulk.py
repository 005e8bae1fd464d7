r"""Means of the training cells, from one pass over them: what all trained baselines are made of.

With g over the groups (cell type c, assay batch) of a perturbation tau, and n_g its perturbed cells in g,

    shift(tau, c) = sum_{g in c} n_g [mean(perturbed in g) - mean(control in g)] / sum_{g in c} n_g
    shift(tau)    = the same over all groups

control in g being the control cells of that cell type and assay batch, or of the cell type where the assay batch has
none; a group of a cell type without control cells is left out. What the mean change of a condition owes to the draw
of its cells has, gene by gene, the variance

    noise(tau, c) = sigma^2 / n + sigma_0^2 sum_{g in c} (n_g / n)^2 / n_control,g,    n = sum_{g in c} n_g

with sigma_0^2 that within the groups of control cells and the conditions, sigma^2 the same or, where it is larger, that
within the condition. Only the sums of controls by group and of perturbed cells by (tau, c), and of their squares, are
kept: how many assay batches there are costs no memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from perturbdiff.baselines.control import GROUP
from perturbdiff.cells.memory import Cells
from perturbdiff.cells.moments import variances

_CELLS_AT_ONCE = 2**15

type Vector = NDArray[np.float64]
type Matrix = NDArray[np.float64]
type Places = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Pseudobulks:
    """The measured conditions of the training cells, log1p counts per 10^4.

    Attributes:
        genes: the columns of all means.
        conditions: (perturbation, cell type) with perturbed cells beside control cells, sorted as text.
        sizes: perturbed cells of each condition [conditions].
        shifts: shift(tau, c) [conditions, genes].
        noise: noise(tau, c) [conditions, genes].
        cell_types: those with control cells, sorted as text.
        controls: the mean of the control cells of each [cell types, genes].
        left_out: training groups without control cells of their cell type.
    """

    genes: tuple[str, ...]
    conditions: tuple[tuple[str, str], ...]
    sizes: Vector
    shifts: Matrix
    noise: Matrix
    cell_types: tuple[str, ...]
    controls: Matrix
    left_out: int

    @cached_property
    def place(self) -> dict[tuple[str, str], int]:
        """The row of each condition."""
        return {condition: i for i, condition in enumerate(self.conditions)}

    @cached_property
    def perturbations(self) -> tuple[str, ...]:
        """The measured perturbations, sorted as text."""
        return tuple(sorted({perturbation for perturbation, _ in self.conditions}))

    @cached_property
    def rows_of(self) -> dict[str, Places]:
        """The rows of each perturbation's conditions."""
        rows: dict[str, list[int]] = {}
        for i, (perturbation, _) in enumerate(self.conditions):
            rows.setdefault(perturbation, []).append(i)
        return {label: np.array(own, dtype=np.int64) for label, own in rows.items()}

    @cached_property
    def mean_shifts(self) -> Matrix:
        """shift(tau) of each perturbation [perturbations, genes]."""
        return np.stack([self.average(self.rows_of[label]) for label in self.perturbations])

    def average(self, rows: Places) -> Vector:
        """The mean shift of some conditions [genes], weighted by their cells."""
        mean: Vector = self.sizes[rows] @ self.shifts[rows] / self.sizes[rows].sum()
        return mean

    def context(self, cell_type: str) -> Vector | None:
        """The mean of a cell type's control cells [genes]; None where training has none."""
        return self.controls[self.type_place[cell_type]] if cell_type in self.type_place else None

    @cached_property
    def type_place(self) -> dict[str, int]:
        """The row of each cell type."""
        return {cell_type: i for i, cell_type in enumerate(self.cell_types)}


_HELD: "WeakKeyDictionary[Cells, Pseudobulks]" = WeakKeyDictionary()


def pseudobulks(training: Cells, genes: Sequence[str]) -> Pseudobulks:
    """Measure the training cells; the baselines that are fitted to the same cells and genes share one pass over them.

    Raises:
        ValueError: the training cells hold no perturbed cells beside control cells of their cell type, or lack a gene.
    """
    held = _HELD.get(training)
    if held is None or held.genes != tuple(genes):
        held = _measured(training, genes)
        _HELD[training] = held
    return held


def _measured(training: Cells, genes: Sequence[str]) -> Pseudobulks:
    grouped = training.labels.groupby(list(GROUP), observed=True, sort=True)
    group_of = grouped.ngroup().to_numpy()
    groups = grouped.size().rename("cells").reset_index().astype(dict.fromkeys(GROUP, str))
    is_control = np.ones(len(groups), dtype=np.bool_)
    if training.control is not None:
        is_control = (groups["perturbation"] == training.control).to_numpy()
    context, contexts = _numbered(groups[["cell_type", "assay_batch"]])
    condition, conditions = _numbered(groups.loc[~is_control, ["perturbation", "cell_type"]])
    row = context.copy()
    row[~is_control] = len(contexts) + condition
    n_rows = len(contexts) + len(conditions)
    sums, squares = sums_of(training, genes, row[group_of], n_rows)
    sizes = np.bincount(row, groups["cells"].to_numpy(), minlength=n_rows)
    first = len(contexts)
    cell_types = sorted({cell_type for cell_type, _ in contexts})
    type_of = np.array([cell_types.index(cell_type) for cell_type, _ in contexts], dtype=np.int64)
    types, type_sizes, baseline, beside_sizes = _control_means(sums[:first], sizes[:first], type_of, len(cell_types))
    has_controls = type_sizes > 0
    known = np.array([bool(has_controls[cell_types.index(cell_type)]) for _, cell_type in conditions], dtype=np.bool_)
    if not known.any():
        raise ValueError(
            "the training cells hold no perturbed cells beside control cells of their cell type, so no change can be "
            "measured; give the training cells of the run, control cells included."
        )
    beside = csr_matrix(
        (groups["cells"].to_numpy(dtype=np.float64)[~is_control], (condition, context[~is_control])),
        shape=(len(conditions), first),
    )
    # of a context whose cell type has no control cells there is no change, so no noise either
    of_controls = beside.power(2) @ (1 / np.maximum(beside_sizes, 1)) / np.maximum(sizes[first:], 1) ** 2
    spread = variances(sums, squares, sizes.astype(np.float64), np.zeros(n_rows, dtype=np.int64))
    common = spread.min(axis=0)  # no group is given less than what all have in common
    noise = spread[first:] / np.maximum(sizes[first:], 1)[:, None] + of_controls[:, None] * common
    shifts = (sums[first:] - beside @ baseline)[known] / sizes[first:][known, None]
    return Pseudobulks(
        genes=tuple(genes),
        conditions=tuple(one for one, kept in zip(conditions, known, strict=True) if kept),
        sizes=sizes[first:][known],
        shifts=shifts,
        noise=noise[known],
        cell_types=tuple(one for one, kept in zip(cell_types, has_controls, strict=True) if kept),
        controls=types[has_controls],
        left_out=int((~known[condition]).sum()),
    )


def _numbered(pairs: pd.DataFrame) -> tuple[Places, list[tuple[str, str]]]:
    """The number of each row's pair of labels, and the pairs, sorted as text."""
    rows: list[tuple[str, str]] = [(str(one), str(other)) for one, other in pairs.itertuples(index=False)]
    unique = sorted(set(rows))
    place = {pair: i for i, pair in enumerate(unique)}
    return np.array([place[pair] for pair in rows], dtype=np.int64), unique


def _control_means(sums: Matrix, sizes: Vector, type_of: Places, n_types: int) -> tuple[Matrix, Vector, Matrix, Vector]:
    """Control means by cell type [types, genes], their cells, and what each context is compared with [contexts, genes].

    And of how many cells that is the mean [contexts]. A context without control cells takes its cell type's.
    """
    type_sizes = np.bincount(type_of, sizes, minlength=n_types)
    types = np.zeros((n_types, sums.shape[1]))
    np.add.at(types, type_of, sums)
    types /= np.maximum(type_sizes, 1)[:, None]
    own = sums / np.maximum(sizes, 1)[:, None]
    beside = np.where((sizes > 0)[:, None], own, types[type_of])
    return types, type_sizes, beside, np.where(sizes > 0, sizes, type_sizes[type_of])


def sums_of(cells: Cells, genes: Sequence[str], row_of: Places, n_rows: int) -> tuple[Matrix, Matrix]:
    """The summed expression of the cells of each row, and that of its squares [rows, genes]."""
    sums, squares = np.zeros((2, n_rows, len(genes)))
    for start in range(0, cells.n_cells, _CELLS_AT_ONCE):
        rows = np.arange(start, min(start + _CELLS_AT_ONCE, cells.n_cells))
        place, inside = np.unique(row_of[rows], return_inverse=True)
        member = csr_matrix((np.ones(rows.size), (inside, np.arange(rows.size))), shape=(place.size, rows.size))
        expression = cells.log_expression(genes, rows)
        sums[place] += (member @ expression).toarray()
        squares[place] += (member @ expression.power(2)).toarray()
    return sums, squares
