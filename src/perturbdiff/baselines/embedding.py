r"""Perturbations as vectors, for regressions; a combination is the sum of its members.

A vector is the first of these that there is:

    features       given ones of the agents (doses and modalities play no part)
    loadings       of the gene that an agent names on the principal components of the trained shifts, where a
                   perturbation is asked that training has not seen: V diag(s) / sqrt(n), shifts - mean = U diag(s) V^T
    members        a unit vector for every trained member

A perturbation of which a member has no vector has none; one without members is 0.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh

from perturbdiff.baselines.predictor import Training
from perturbdiff.baselines.pseudobulk import Matrix, Vector
from perturbdiff.labels.members import Member

COMPONENTS = 10
"""Principal components of genes, as published."""

_FEWEST = 3
"""Trained perturbations that must have loadings."""

_NOTHING = 1e-10
"""An eigenvalue this much smaller than the first is rounding."""


class Components(NamedTuple):
    """Principal components of shifts.

    Attributes:
        axes: V [genes, components], orthonormal.
        spread: s / sqrt(n) [components].
    """

    axes: Matrix
    spread: Vector

    @classmethod
    def of(cls, shifts: Matrix, most: int = COMPONENTS) -> "Components":
        """The first components of shifts [n, genes], centred; fewer where shifts do not suffice."""
        centred = shifts - shifts.mean(axis=0)
        n, n_genes = centred.shape
        wide = n_genes > n
        gram = centred @ centred.T if wide else centred.T @ centred
        most = min(most, n - 1, n_genes)
        if most < 1:
            return cls(np.zeros((n_genes, 0)), np.zeros(0))
        size = len(gram)
        e, u = eigh(gram, subset_by_index=[size - most, size - 1])
        e, u = e[::-1], u[:, ::-1]
        kept = e > _NOTHING * max(float(np.trace(gram)), np.finfo(float).tiny)
        e, u = e[kept], u[:, kept]
        axes = centred.T @ u / np.sqrt(e) if wide else u
        return cls(axes, np.sqrt(e / n))


class Embedding:
    """Vectors of perturbations.

    Attributes:
        kind: "features", "loadings" or "members".
        width: of every vector.
    """

    def __init__(self, kind: str, table: Mapping[Member | str, Vector], width: int, training: Training) -> None:
        self.kind, self.width = kind, width
        self._table, self._training = table, training

    @classmethod
    def of(cls, training: Training) -> "Embedding":
        """The embedding that there is for some training cells and the perturbations that are asked."""
        labels = training.bulks.perturbations
        if training.features is not None:
            table = training.features
            given = cls("features", _rows(table.labels, table.values), table.width, training)
            if given.embedded(labels):
                return given
        known = {member for label in labels for member in training.members(label)}
        new = [label for label in training.asked if not known.issuperset(training.members(label))]
        if new:
            axes, spread = Components.of(training.bulks.mean_shifts)
            loadings = cls("loadings", _rows(training.bulks.genes, axes * spread), len(spread), training)
            if len(spread) and loadings.embedded(new) and len(loadings.embedded(labels)) >= _FEWEST:
                return loadings
        members = sorted(known, key=str)
        return cls("members", dict(zip(members, np.eye(len(members)), strict=True)), len(members), training)

    def vector(self, label: str) -> Vector | None:
        """The vector of a label [width]; None where it has none."""
        rows = [
            self._table.get(member if self.kind == "members" else member.agent)
            for member in self._training.members(label)
        ]
        there = [row for row in rows if row is not None]
        if len(there) < len(rows):
            return None
        total: Vector = np.sum([np.zeros(self.width), *there], axis=0)
        return total

    def embedded(self, labels: Sequence[str]) -> list[str]:
        """The labels that have a vector."""
        return [label for label in labels if self.vector(label) is not None]

    def without(self, labels: Sequence[str]) -> list[str]:
        """The labels that have none."""
        return [label for label in labels if self.vector(label) is None]

    @property
    def about(self) -> str:
        """What a label without a vector lacks, as the middle of a sentence."""
        return {
            "features": "have no features",
            "loadings": "name no gene of the panel",
            "members": "have members that training has not seen",
        }[self.kind]


def _rows(labels: Sequence[str], values: "Matrix | np.ndarray") -> dict[Member | str, Vector]:
    return dict(zip(labels, np.asarray(values, dtype=np.float64), strict=True))
