r"""Kernel ridge regression over pseudobulks: from a context's control cells and a perturbation to the change.

An observation is a trained condition (tau, c): its input the mean of the control cells of c and the embedding of tau
(see `baselines.embedding`), its output shift(tau, c). With D_c and D_tau the squared distances in either part, each
divided by its mean squared distance from the centre of the observations (a part that does not vary is left out),

    k(i, j) = exp(-(D_c + D_tau)_ij / (2 h^2)),    h^2 = median of (D_c + D_tau)_ij over i < j that differ

and the regression of `baselines.regression` on k, at the penalty that predicts left-out conditions best. The context of
a cell type of which training has no control cells is the mean of the control cells that are to be moved. A perturbation
without an embedding stands at the centre of the others.
"""

from collections.abc import Sequence

import numpy as np

from perturbdiff.baselines.embedding import Embedding
from perturbdiff.baselines.predictor import Response, Training, unseen_remark
from perturbdiff.baselines.pseudobulk import Matrix, Vector
from perturbdiff.baselines.regression import Regression

CONDITIONS = 2048
"""So many trained conditions at most are regressed on: an even share of them."""


class Part:
    """One part of the inputs: points [n, width], and distances in units of their own spread."""

    def __init__(self, points: Matrix, of: "np.ndarray") -> None:
        self._points, self._of = points, of
        self.centre: Vector = points[of].mean(axis=0)
        spread = float(np.square(points[of] - self.centre).sum(axis=1).mean())
        self._factor = 1 / spread if spread > 1e-12 else 0.0

    def to(self, point: Vector) -> Vector:
        """The squared distances of every observation from a point [observations]."""
        distances: Vector = self._factor * np.square(self._points - point).sum(axis=1)[self._of]
        return distances

    def within(self) -> Matrix:
        """The squared distances between observations."""
        centred = self._points - self.centre
        squares = np.square(centred).sum(axis=1)
        distances = np.maximum(squares + squares[:, None] - 2 * centred @ centred.T, 0.0)
        np.fill_diagonal(distances, 0.0)
        found: Matrix = self._factor * distances[np.ix_(self._of, self._of)]
        return found


class KernelRidge(Response):
    """The regression of conditions' shifts on their contexts and perturbations."""

    def __init__(self, training: Training) -> None:
        bulks = training.bulks
        rows = np.arange(len(bulks.conditions))
        if len(rows) > CONDITIONS:
            rows = np.unique(np.linspace(0, len(rows) - 1, CONDITIONS).astype(np.int64))
        self._all, self._bulks = len(bulks.conditions), bulks
        conditions = [bulks.conditions[i] for i in rows]
        self._shifts = bulks.shifts[rows]
        self.embedding = Embedding.of(training)
        self._contexts = Part(
            bulks.controls, np.array([bulks.type_place[cell_type] for _, cell_type in conditions], dtype=np.int64)
        )
        self._perturbations = _embedded(self.embedding, [label for label, _ in conditions])
        distances = self._contexts.within() + self._perturbations.within()
        apart = distances[np.triu_indices(len(rows), k=1)]
        apart = apart[apart > 0]
        self.bandwidth = float(np.sqrt(np.median(apart))) if apart.size else 1.0
        self._regression = Regression.chosen(self._kernel(distances), self._shifts)

    @property
    def penalty(self) -> float:
        """Lambda, in units of the mean eigenvalue."""
        return self._regression.penalty

    def shift(self, perturbation: str, cell_type: str, given: Vector) -> Vector:
        """The regression at the condition [genes]."""
        context, vector = self._bulks.context(cell_type), self.embedding.vector(perturbation)
        distances = self._contexts.to(given if context is None else context)
        distances = distances + self._perturbations.to(self._perturbations.centre if vector is None else vector)
        found: Vector = self._regression.weights(self._kernel(distances)) @ self._shifts
        return found

    def remarks(self, perturbations: Sequence[str]) -> list[str]:
        """The perturbations that have no embedding, and how many conditions were regressed on."""
        bare = self.embedding.without(perturbations)
        found = unseen_remark(bare, perturbations, self.embedding.about, "what the context alone says")
        if len(self._shifts) < self._all:
            found.append(f"{len(self._shifts)} of {self._all} trained conditions are regressed on, an even share.")
        return found

    def _kernel[Shape: (Matrix, Vector)](self, distances: Shape) -> Shape:
        """The kernel at squared distances."""
        return np.exp(distances / (-2 * self.bandwidth**2))


def _embedded(embedding: Embedding, labels: Sequence[str]) -> Part:
    """The embeddings of the observations' perturbations; those that have none at the centre of the others."""
    unique = list(dict.fromkeys(labels))
    vectors = [embedding.vector(label) for label in unique]
    place = {label: i for i, label in enumerate(unique)}
    of = np.array([place[label] for label in labels], dtype=np.int64)
    there = [vector for label in labels if (vector := vectors[place[label]]) is not None]
    centre = np.mean(there, axis=0) if there else np.zeros(embedding.width)
    return Part(np.stack([centre if vector is None else vector for vector in vectors]), of)
