r"""The change that was observed in the nearest cell type.

    shift(tau, c) = shift(tau, c*),    c* = argmin over c' in which training has tau of |control(c) - control(c')|

control(c) being the mean of the training control cells of c, or of the control cells that are to be moved, where
training has none; distances are Euclidean, over the genes that are predicted. Where training has tau in c itself, that
is the nearest. A perturbation that training has nowhere leaves the condition out.
"""

import numpy as np

from perturbdiff.baselines.predictor import Response, Training
from perturbdiff.baselines.pseudobulk import Vector


class NearestCellType(Response):
    """The shift of the nearest cell type in which training has the perturbation."""

    def __init__(self, training: Training) -> None:
        self._bulks = training.bulks

    def refusal(self, perturbation: str, cell_type: str) -> str:  # noqa: ARG002 - any cell type is a relative
        """Training has the perturbation in no cell type."""
        if perturbation in self._bulks.rows_of:
            return ""
        return f"training has {perturbation!r} in no cell type"

    def shift(self, perturbation: str, cell_type: str, given: Vector) -> Vector:
        """The shift in the nearest cell type [genes]."""
        nearest = self.nearest(perturbation, cell_type, given)
        found: Vector = self._bulks.shifts[self._bulks.place[perturbation, nearest]]
        return found

    def nearest(self, perturbation: str, cell_type: str, given: Vector) -> str:
        """The nearest cell type; of several as near, the first as text."""
        kinds: list[str] = [self._bulks.conditions[i][1] for i in self._bulks.rows_of[perturbation]]
        if cell_type in kinds:
            return cell_type
        known = self._bulks.context(cell_type)
        means = self._bulks.controls[[self._bulks.type_place[kind] for kind in kinds]]
        return kinds[int(np.argmin(np.linalg.norm(means - (given if known is None else known), axis=1)))]
