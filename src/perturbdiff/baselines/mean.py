r"""The baseline to beat: control cells moved by the mean change that training saw.

With g over the training groups (cell type, assay batch) of a perturbation tau, n_g its perturbed cells in g,

    shift(tau) = sum_g n_g [mean(perturbed in g) - mean(control in g)] / sum_g n_g,
    predicted = max(control cell + shift, 0),

control in g being the control cells of that cell type and assay batch, or of the cell type where the assay
batch has none; a group of a cell type without control cells is left out. A perturbation never seen takes the
mean of all trained shifts. On additive data, where every group moves by the same vector and no value reaches
zero, the shift is exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from perturbdiff.data.cells import Cells

_CELLS_AT_ONCE = 2**15

type Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class MeanShift:
    """The shifts [genes] of the trained perturbations, log1p counts per 10^4.

    Attributes:
        genes: the genes of the shifts.
        shifts: one row per trained perturbation (the index).
        left_out: training groups without control cells of their cell type.
    """

    genes: tuple[str, ...]
    shifts: pd.DataFrame
    left_out: int

    def unseen(self, perturbations: Sequence[str]) -> list[str]:
        """Those of `perturbations` that training did not hold, which take the mean over all trained shifts."""
        return [label for label in dict.fromkeys(perturbations) if label not in self.shifts.index]

    def predict(self, control: Cells) -> Cells:
        """Move each cell of a control prediction by the shift of its perturbation, clipped at 0; float32, dense."""
        average = self.shifts.mean(axis=0).to_numpy()
        labels = control.labels["perturbation"].cat
        known = self.shifts.index.get_indexer(labels.categories)
        table = np.vstack([self.shifts.to_numpy(), average]).astype(np.float32)[
            known
        ]  # index -1, unseen, is the last row
        values = control.log_expression(self.genes).toarray()
        values += table[labels.codes]
        np.maximum(values, 0.0, out=values)
        return replace(control, values=values, genes=pd.Index(self.genes))


def mean_shift(training: Cells, genes: Sequence[str]) -> MeanShift:
    """Measure the shift of every perturbation among the training cells, in one pass over them.

    Raises:
        ValueError: the training cells hold no perturbed cells, or no control cells of any cell type of theirs.
    """
    groups, sizes, sums = _sums(training, genes)
    is_control = (groups["perturbation"] == training.control).to_numpy()
    baseline, is_known = _control_means(groups, sizes, sums, is_control)
    used = ~is_control & is_known
    if not used.any():
        raise ValueError(
            "the training cells hold no perturbed cells beside control cells of their cell type, so no mean shift can "
            "be measured; give the training cells of the run, control cells included."
        )
    changes = pd.DataFrame((sums - sizes[:, None] * baseline)[used], columns=pd.Index(genes))
    label = groups["perturbation"].astype(str).to_numpy()[used]
    weights = pd.Series(sizes[used]).groupby(label).sum()
    shifts = changes.groupby(label).sum().div(weights, axis=0)
    return MeanShift(genes=tuple(genes), shifts=shifts, left_out=int((~is_control & ~is_known).sum()))


def _control_means(
    groups: pd.DataFrame, sizes: Matrix, sums: Matrix, is_control: NDArray[np.bool_]
) -> tuple[Matrix, NDArray[np.bool_]]:
    """The control mean [groups, genes] that each group is compared with, and whether its cell type has any."""
    keys = pd.MultiIndex.from_frame(groups[["cell_type", "assay_batch"]])
    cell_type = groups["cell_type"].astype("category").cat.codes.to_numpy()
    type_sizes = np.bincount(cell_type[is_control], sizes[is_control], minlength=cell_type.max() + 1)
    type_sums = np.zeros((type_sizes.size, sums.shape[1]))
    np.add.at(type_sums, cell_type[is_control], sums[is_control])
    own = keys[is_control].get_indexer(keys)
    means = np.vstack([sums[is_control] / sizes[is_control, None], type_sums / np.maximum(type_sizes, 1)[:, None]])
    return means[np.where(own >= 0, own, is_control.sum() + cell_type)], type_sizes[cell_type] > 0


def _sums(cells: Cells, genes: Sequence[str]) -> tuple[pd.DataFrame, Matrix, Matrix]:
    """Each (perturbation, cell type, assay batch) its number of cells and their summed expression [groups, genes]."""
    grouped = cells.labels.groupby(["perturbation", "cell_type", "assay_batch"], observed=True, sort=True)
    group_of = grouped.ngroup().to_numpy()
    groups = grouped.size().rename("cells").reset_index()
    sums = np.zeros((len(groups), len(genes)))
    for start in range(0, cells.n_cells, _CELLS_AT_ONCE):
        rows = np.arange(start, min(start + _CELLS_AT_ONCE, cells.n_cells))
        member = csr_matrix(
            (np.ones(rows.size), (group_of[rows], np.arange(rows.size))), shape=(len(groups), rows.size)
        )
        sums += (member @ cells.log_expression(genes, rows)).toarray()
    return groups, groups["cells"].to_numpy(dtype=np.float64), sums
