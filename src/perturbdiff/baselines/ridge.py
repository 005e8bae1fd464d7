r"""Ridge regression from embeddings of perturbations to the principal components of genes.

With Y [perturbations, genes] the trained shifts, G [genes, 10] the first principal components of Y, and P
[perturbations, width] the embeddings, both centred,

    W = argmin |Y - 1 b^T - P W G^T|^2 + lambda t |W|^2 = (P^T P + lambda t)^-1 P^T (Y - 1 b^T) G,    b = mean of Y
    shift(tau) = b + G W^T p_tau

G being orthonormal, and t the mean eigenvalue of P P^T. lambda is the one that predicts left-out perturbations best;
where every perturbation is a vector of its own, which says nothing of others, it is 0.1. Trained perturbations without
an embedding count in b alone, and others without one take b. See `baselines.embedding`.
"""

from collections.abc import Sequence

import numpy as np

from perturbdiff.baselines.embedding import Components, Embedding
from perturbdiff.baselines.predictor import Response, Training, unseen_remark
from perturbdiff.baselines.pseudobulk import Vector
from perturbdiff.baselines.regression import Regression


class Ridge(Response):
    """The regression of shifts on embeddings, through the principal components of genes."""

    def __init__(self, training: Training) -> None:
        bulks = training.bulks
        self.embedding = Embedding.of(training)
        self._mean: Vector = bulks.mean_shifts.mean(axis=0)
        self._axes = Components.of(bulks.mean_shifts).axes
        vectors = [self.embedding.vector(label) for label in bulks.perturbations]
        known = [i for i, vector in enumerate(vectors) if vector is not None]
        self._vectors = np.stack([vector for vector in vectors if vector is not None])
        shifts = bulks.mean_shifts[known]
        self._scores = (shifts - shifts.mean(axis=0)) @ self._axes
        kernel = self._vectors @ self._vectors.T
        if self.embedding.kind == "members":
            self._regression = Regression(kernel)
        else:
            self._regression = Regression.chosen(kernel, self._scores)

    @property
    def penalty(self) -> float:
        """Lambda, in units of the mean eigenvalue."""
        return self._regression.penalty

    def shift(self, perturbation: str, cell_type: str, given: Vector) -> Vector:  # noqa: ARG002 - the same everywhere
        """The regression at the perturbation's embedding [genes]; the mean where it has none."""
        vector = self.embedding.vector(perturbation)
        if vector is None:
            return self._mean
        found: Vector = self._mean + self._axes @ (self._regression.weights(self._vectors @ vector) @ self._scores)
        return found

    def remarks(self, perturbations: Sequence[str]) -> list[str]:
        """The perturbations that have no embedding."""
        bare = self.embedding.without(perturbations)
        return unseen_remark(bare, perturbations, self.embedding.about, "the mean shift over all trained perturbations")
