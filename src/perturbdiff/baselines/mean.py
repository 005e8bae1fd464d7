r"""The baseline to beat: control cells moved by the mean change that training saw.

    predicted = max(control cell + shift(tau), 0)

with shift(tau) the mean over training groups, weighted by their perturbed cells, see `baselines.pseudobulk`. A
perturbation never seen takes the mean of all trained shifts. On additive data, where every group moves by the same
vector and no value reaches zero, the shift is exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from perturbdiff.baselines.predictor import Response, Training, unseen_remark
from perturbdiff.baselines.pseudobulk import Pseudobulks, Vector, pseudobulks
from perturbdiff.cells.memory import Cells


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

    @classmethod
    def of(cls, bulks: Pseudobulks) -> "MeanShift":
        """The shifts of measured training cells."""
        shifts = pd.DataFrame(bulks.mean_shifts, index=pd.Index(bulks.perturbations), columns=pd.Index(bulks.genes))
        return cls(bulks.genes, shifts, bulks.left_out)

    def unseen(self, perturbations: Sequence[str]) -> list[str]:
        """Those of `perturbations` that training did not hold, which take the mean over all trained shifts."""
        return [label for label in dict.fromkeys(perturbations) if label not in self.shifts.index]

    def predict(self, control: Cells) -> Cells:
        """Move each cell of a control prediction by the shift of its perturbation, clipped at 0; float32, dense."""
        average = self.shifts.mean(axis=0).to_numpy()
        labels = control.labels["perturbation"].cat
        known = self.shifts.index.get_indexer(labels.categories)
        # index -1, unseen, is the last row
        table = np.vstack([self.shifts.to_numpy(), average]).astype(np.float32)[known]
        values = control.log_expression(self.genes).toarray()
        values += table[labels.codes]
        np.maximum(values, 0.0, out=values)
        return replace(control, values=values, scale="log1p", total_counts=None, genes=pd.Index(self.genes))


def mean_shift(training: Cells, genes: Sequence[str]) -> MeanShift:
    """Measure the shift of every perturbation among the training cells, in one pass over them.

    Raises:
        ValueError: the training cells hold no perturbed cells, or no control cells of any cell type of theirs.
    """
    return MeanShift.of(pseudobulks(training, genes))


class Shifted(Response):
    """The mean shift, as a `Response`."""

    def __init__(self, training: Training) -> None:
        self._bulks = training.bulks
        self._place = {label: i for i, label in enumerate(training.bulks.perturbations)}
        self._average = training.bulks.mean_shifts.mean(axis=0)

    def shift(self, perturbation: str, cell_type: str, given: Vector) -> Vector:  # noqa: ARG002 - the same everywhere
        """The mean change of the perturbation [genes], or of all perturbations where training has not seen it."""
        place = self._place.get(perturbation)
        found: Vector = self._average if place is None else self._bulks.mean_shifts[place]
        return found

    def remarks(self, perturbations: Sequence[str]) -> list[str]:
        """The perturbations that training has not seen."""
        unseen = [label for label in perturbations if label not in self._place]
        instead = f"the mean shift over all {len(self._place)} trained perturbations"
        return unseen_remark(unseen, perturbations, "were not in training", instead)
