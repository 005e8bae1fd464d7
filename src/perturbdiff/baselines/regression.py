r"""Ridge regression on any kernel, as weights over what was observed, and what the others predict of each.

With K the kernel of n observations, k that of a new point with them, and K~ = J K J = U diag(e) U^T centred by
J = 1 - 11^T / n, the prediction at the point is ``sum_j w_j y_j``,

    w = 1/n + g - mean(g),    g = U diag(1 / (e + lambda t)) U^T J (k - K 1/n),    t = tr(K~) / n

an intercept that is not penalised, and lambda in units of the mean eigenvalue: 0 is least squares, infinity the mean.
The predictions at the observations are H y, ``H = 11^T / n + U diag(e / (e + lambda t)) U^T``; without itself that of
observation i is off by ``(y_i - (H y)_i) / (1 - H_ii)``. The linear kernel gives ridge regression on features.
"""

import math

import numpy as np

from perturbdiff.baselines.pseudobulk import Matrix, Vector
from perturbdiff.core.choices import PENALTIES

PENALTY = 0.1
"""Where none can be chosen."""

FEWEST = 3
"""Observations that a choice by leaving one out takes."""

_NOTHING = 1e-9
"""A difference this small beside what differs is rounding."""


class Regression:
    """The regression on observations with a kernel [n, n], symmetric and not negative, at a penalty."""

    def __init__(self, kernel: Matrix, penalty: float = PENALTY) -> None:
        self._columns = kernel.mean(axis=0)
        centred = kernel - self._columns - self._columns[:, None] + kernel.mean()
        e, self._u = np.linalg.eigh((centred + centred.T) / 2)
        self._e = np.maximum(e, 0.0)
        self._unit = float(self._e.mean()) or 1.0
        self.penalty = penalty

    @classmethod
    def chosen(cls, kernel: Matrix, y: Matrix, otherwise: float = PENALTY) -> "Regression":
        """At the penalty that predicts left-out observations y [n, outputs] best, in squares.

        `otherwise` is taken for fewer than three observations, for equal ones, and where all penalties are as good.
        """
        found = cls(kernel, otherwise)
        if len(y) >= FEWEST and np.ptp(y, axis=0).max(initial=0.0) > _NOTHING * np.abs(y).max(initial=0.0):
            errors = [found.error_left_out(y, penalty) for penalty in PENALTIES]
            if max(errors) - min(errors) > _NOTHING * max(errors):
                found.penalty = PENALTIES[int(np.argmin(errors))]
        return found

    def weights(self, kernel: Vector) -> Vector:
        """The weights w [n] at a point with this kernel to the observations [n]."""
        n = len(self._e)
        if math.isinf(self.penalty):
            return np.full(n, 1 / n)
        point = kernel - self._columns
        g = self._u @ ((self._u.T @ (point - point.mean())) / (self._e + self.penalty * self._unit))
        w: Vector = 1 / n + g - g.mean()
        return w

    def left_out(self, y: Matrix, penalty: float) -> Matrix:
        """What each observation is predicted as by the others [n, outputs]."""
        n = len(self._e)
        shrunk = np.zeros(n) if math.isinf(penalty) else self._e / (self._e + penalty * self._unit)
        fitted = y.mean(axis=0) + self._u @ (shrunk[:, None] * (self._u.T @ y))
        own = 1 / n + self._u**2 @ shrunk
        found: Matrix = y - (y - fitted) / np.maximum(1 - own, 1e-9)[:, None]
        return found

    def error_left_out(self, y: Matrix, penalty: float) -> float:
        """The summed squared error of `left_out`."""
        return float(np.square(y - self.left_out(y, penalty)).sum())
