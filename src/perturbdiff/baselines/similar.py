r"""What is expected of a perturbation by all cell types in which training has it: the more similar, the more it counts.

    shift(tau, c) = E(tau, c), shrunk by what may be noise: `cells.contexts`

with the conditions of the pseudobulks, their contexts being cell types, and the context to predict known by the mean of
the control cells that are to be moved. Where training has tau in c itself, its own change is a part of it. How much
similarity is worth is fitted to the training cells. A perturbation that training has nowhere leaves the condition out.
"""

import numpy as np

from perturbdiff.baselines.predictor import Response, Training
from perturbdiff.baselines.pseudobulk import Vector
from perturbdiff.cells.contexts import Changes


class SimilarContexts(Response):
    """The changes of all trained cell types, weighted by similarity and without their noise.

    Attributes:
        changes: of the trained conditions, fitted.
    """

    def __init__(self, training: Training) -> None:
        bulks = training.bulks
        self._label = {label: i for i, label in enumerate(bulks.perturbations)}
        self._type_place = bulks.type_place
        # conditions are sorted by perturbation, as perturbations are, so labels ascend
        self.changes = Changes(
            label=np.array([self._label[label] for label, _ in bulks.conditions], dtype=np.int64),
            context=np.array([self._type_place[kind] for _, kind in bulks.conditions], dtype=np.int64),
            sizes=bulks.sizes.astype(np.float64),
            changes=bulks.shifts.astype(np.float32),
            noise=bulks.noise.astype(np.float32),
            contexts=tuple((kind, "") for kind in bulks.cell_types),
            means=bulks.controls.astype(np.float32),
        ).fitted()

    def refusal(self, perturbation: str, cell_type: str) -> str:  # noqa: ARG002 - any cell type is similar to some
        """Training has the perturbation in no cell type."""
        return "" if perturbation in self._label else f"training has {perturbation!r} in no cell type"

    def shift(self, perturbation: str, cell_type: str, given: Vector) -> Vector:
        """What is expected of the perturbation in the cell type with these control cells [genes]."""
        own = self._type_place.get(cell_type)
        return self.changes.expected(self._label[perturbation], self.changes.similarity(given), own)
