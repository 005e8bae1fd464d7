r"""Ridge regression as weights over what was observed, and what each would be predicted as without itself.

With F~ = F - mean F the centred features of n observations, and K = F~ F~^T = U diag(e) U^T, the prediction at features
f is ``sum_j w_j y_j``,

    w = 1/n + g - mean(g),    g = (f - mean F) F~^T U diag(1 / (e + lambda t)) U^T,    t = tr(K) / n

an intercept that is not penalised, and lambda in units of the mean eigenvalue: 0 is least squares, infinity the mean.
The predictions at the observations are H y, ``H = 1/n + U diag(e / (e + lambda t)) U^T``; of observation k without it

    sum_{j != k} H_kj y_j / (1 - H_kk)
"""

import math
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor


class Ridge:
    """The regression on some observations' features [n, width], float64."""

    def __init__(self, features: Float[Tensor, "n _"]) -> None:
        self.centre = features.mean(dim=0)
        self.centred = features - self.centre
        e, self.u = torch.linalg.eigh(self.centred @ self.centred.T)
        self.e = e.clamp(min=0)

    @cached_property
    def unit(self) -> float:
        """The mean eigenvalue t; 1 where all features are equal, which leaves the mean."""
        return float(self.e.mean()) or 1.0

    def weights(self, features: Float[Tensor, " _"], penalty: float) -> Float[Tensor, " n"]:
        """The weights w of a prediction at given features."""
        n = len(self.e)
        if math.isinf(penalty):
            return torch.full_like(self.e, 1 / n)
        g: Tensor = self.u @ ((self.u.T @ (self.centred @ (features - self.centre))) / (self.e + penalty * self.unit))
        return 1 / n + g - g.mean()

    def left_out(self, penalty: float) -> Float[Tensor, "n n"]:
        """The weights of each observation's prediction without itself: a row each, 0 on the diagonal."""
        n = len(self.e)
        shrunk = torch.zeros_like(self.e) if math.isinf(penalty) else self.e / (self.e + penalty * self.unit)
        hat: Tensor = 1 / n + (self.u * shrunk) @ self.u.T
        own = hat.diagonal().clone()
        return hat.fill_diagonal_(0.0) / (1 - own).clamp(min=1e-9)[:, None]
