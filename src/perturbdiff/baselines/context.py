r"""Responses that know of the context: one response for all perturbations, and that with each perturbation's own part.

With C(tau) the cell types in which training has perturbation tau, and T(c) the perturbations that it has in c,

    perturbed mean   s_c = mean_{tau in T(c)} shift(tau, c), for every tau
    context mean     s_c + d_tau,  d_tau = sum_{c in C(tau)} n_tau,c [shift(tau, c) - s_c] / sum_{c in C(tau)} n_tau,c

In a cell type that training has not perturbed, s_c is the mean of shift(tau) over all perturbations; of a perturbation
that it has not seen, d_tau is 0. The context mean is exact where perturbations and contexts add up and training has
either in full; in a cell type that was never perturbed it is the mean shift, where training has all perturbations in
the same cell types with as many cells.
"""

from collections.abc import Sequence

import numpy as np

from perturbdiff.baselines.predictor import Response, Training, unseen_remark
from perturbdiff.baselines.pseudobulk import Pseudobulks, Vector


class PerturbedMean(Response):
    """One response for all perturbations of a cell type."""

    def __init__(self, training: Training) -> None:
        self._means = _means(training.bulks)
        self._overall: Vector = training.bulks.mean_shifts.mean(axis=0)

    def shift(self, perturbation: str, cell_type: str, given: Vector) -> Vector:  # noqa: ARG002 - one for all
        """The mean change of all perturbations in the cell type [genes], else in all cell types."""
        return self._means.get(cell_type, self._overall)


class ContextMean(PerturbedMean):
    """The mean response of the cell type, and the departure of the perturbation from it."""

    def __init__(self, training: Training) -> None:
        super().__init__(training)
        bulks = training.bulks
        own = np.stack([self._means[cell_type] for _, cell_type in bulks.conditions])
        departures = bulks.shifts - own
        self._departures: dict[str, Vector] = {
            label: bulks.sizes[rows] @ departures[rows] / bulks.sizes[rows].sum()
            for label, rows in bulks.rows_of.items()
        }

    def shift(self, perturbation: str, cell_type: str, given: Vector) -> Vector:
        """The mean change of the cell type and the departure of the perturbation [genes]."""
        mean = super().shift(perturbation, cell_type, given)
        departure = self._departures.get(perturbation)
        return mean if departure is None else mean + departure

    def remarks(self, perturbations: Sequence[str]) -> list[str]:
        """The perturbations that training has not seen."""
        unseen = [label for label in perturbations if label not in self._departures]
        return unseen_remark(unseen, perturbations, "were not in training", "the mean response of the cell type")


def _means(bulks: Pseudobulks) -> dict[str, Vector]:
    """s_c [genes] of the cell types that training has perturbed."""
    rows: dict[str, list[int]] = {}
    for i, (_, cell_type) in enumerate(bulks.conditions):
        rows.setdefault(cell_type, []).append(i)
    return {cell_type: bulks.shifts[own].mean(axis=0) for cell_type, own in rows.items()}
