r"""The diffusion: noise schedules, the forward chain, its posterior, and the noise of cells and of populations.

In H the chain is ``mu_t = sqrt(1 - beta_t) mu_{t-1} + sqrt(beta_t) Xi_t`` with ``Xi_t ~ N_H(0, C)``. It is made in cell
space, where with ``abar_t = prod_{s <= t} (1 - beta_s)``

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps                                   q(x_t | x_0)
    x_s | x_t, x_0 ~ N([sqrt(abar_s) b x_0 + sqrt(a) (1 - abar_s) x_t] / (1 - abar_t), b (1 - abar_s) / (1 - abar_t))

for any earlier s < t with ``a = abar_t / abar_s`` and ``b = 1 - a``: for s = t - 1 these are 1 - beta_t and beta_t,
and a respaced chain is the same formula over longer strides. Times are t = 0 .. T - 1; s = -1 is the data, abar_{-1}
= 1. The tables are float64; a result has the type of its cells.

**Population noise.** With independent eps_j the covariance operator of the embedding's noise has a trace of O(1/m):
it vanishes as a population grows. Let the cells of a population share a part, ``eps_j = sqrt(1 - rho) e_j + sqrt(rho)
xi``: each cell's marginal is still N(0, I), the trace becomes O(1). rho = 0 is the paper's cell noise.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

Betas = Float[Tensor, "_"]


def linear_betas(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> Betas:
    """The paper's schedule: beta rises linearly."""
    return torch.linspace(first, last, steps, dtype=torch.float64)


def power_cosine_betas(steps: int = 1000, gamma: float = 1.0, offset: float = 0.008, largest: float = 0.999) -> Betas:
    r"""``abar_t = [f(t + 1) / f(0)]^gamma`` with ``f(t) = cos^2(pi/2 (t/T + s) / (1 + s))``, beta capped at `largest`.

    gamma = 1 is the cosine schedule; smaller powers keep the signal for longer.
    """
    time = torch.arange(steps + 1, dtype=torch.float64) / steps
    f = torch.cos((time + offset) / (1 + offset) * math.pi / 2).square()
    alpha_bar = (f / f[0]) ** gamma
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=largest)


class Process:
    """The forward chain of one schedule, and its algebra.

    Args:
        betas: beta_0 .. beta_{T-1}, each in (0, 1).
        rho: the share of each cell's noise variance that its population has in common, in [0, 1].
    """

    def __init__(self, betas: Betas, *, rho: float = 0.0) -> None:
        if betas.ndim != 1 or not bool(((betas > 0) & (betas < 1)).all()):
            message = "betas must be one row of numbers strictly between 0 and 1."
            raise ValueError(message)
        if not 0 <= rho <= 1:
            message = f"rho={rho} is a share of variance and must lie between 0 and 1."
            raise ValueError(message)
        self.rho = rho
        self.betas = betas.double()
        one = torch.ones(1, dtype=torch.float64)
        # shifted by one, so that index t + 1 serves t = -1 .. T - 1
        self._alpha_bar = torch.cat([one, torch.cumprod(1 - self.betas, dim=0)])

    @property
    def n_times(self) -> int:
        """T, the length of the chain."""
        return len(self.betas)

    def alpha_bar(self, t: Int[Tensor, " batch"] | int) -> Float[Tensor, "..."]:
        """abar_t in float64; abar_{-1} = 1."""
        index = torch.as_tensor(t, device="cpu")
        return self._alpha_bar[index + 1]

    def corrupt(
        self,
        x_0: Float[Tensor, "batch cells genes"],
        t: Int[Tensor, " batch"],
        eps: Float[Tensor, "batch cells genes"],
    ) -> Float[Tensor, "batch cells genes"]:
        """x_t of q(x_t | x_0), with one time a population."""
        alpha_bar_t = self.alpha_bar(t)
        return factor(alpha_bar_t.sqrt(), x_0) * x_0 + factor((1 - alpha_bar_t).sqrt(), x_0) * eps

    def eps_from_x_0(
        self,
        x_t: Float[Tensor, "batch cells genes"],
        t: Int[Tensor, " batch"],
        x_0: Float[Tensor, "batch cells genes"],
    ) -> Float[Tensor, "batch cells genes"]:
        """``(x_t - sqrt(abar_t) x_0) / sqrt(1 - abar_t)``."""
        alpha_bar_t = self.alpha_bar(t)
        return (
            factor((1 - alpha_bar_t).rsqrt(), x_t) * x_t - factor((alpha_bar_t / (1 - alpha_bar_t)).sqrt(), x_t) * x_0
        )

    def x_0_from_eps(
        self,
        x_t: Float[Tensor, "batch cells genes"],
        t: Int[Tensor, " batch"],
        eps: Float[Tensor, "batch cells genes"],
    ) -> Float[Tensor, "batch cells genes"]:
        """``(x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t)``."""
        alpha_bar_t = self.alpha_bar(t)
        return factor(alpha_bar_t.rsqrt(), x_t) * x_t - factor(((1 - alpha_bar_t) / alpha_bar_t).sqrt(), x_t) * eps

    def posterior(
        self,
        x_0: Float[Tensor, "batch cells genes"],
        x_t: Float[Tensor, "batch cells genes"],
        t: Int[Tensor, " batch"],
        s: Int[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "batch cells genes"], Float[Tensor, " batch"]]:
        """Mean and variance of q(x_s | x_t, x_0) at an earlier time s < t (t - 1 when not given)."""
        alpha_bar_t, alpha_bar_s = self.alpha_bar(t), self.alpha_bar(t - 1 if s is None else s)
        a = alpha_bar_t / alpha_bar_s
        of_x_0 = alpha_bar_s.sqrt() * (1 - a) / (1 - alpha_bar_t)
        of_x_t = a.sqrt() * (1 - alpha_bar_s) / (1 - alpha_bar_t)
        variance = (1 - a) * (1 - alpha_bar_s) / (1 - alpha_bar_t)
        return factor(of_x_0, x_0) * x_0 + factor(of_x_t, x_t) * x_t, variance

    def noise(self, own: Float[Tensor, "*batch cells genes"], shared: Float[Tensor, "*batch 1 genes"]) -> Tensor:
        """Eps_j = sqrt(1 - rho) e_j + sqrt(rho) xi from independent standard normal e_j and xi."""
        if self.rho == 0:
            return own
        return math.sqrt(1 - self.rho) * own + math.sqrt(self.rho) * shared


def factor(coefficient: Float[Tensor, " batch"], cells: Float[Tensor, "batch cells genes"]) -> Tensor:
    """One float64 number a population, as a factor of its cells."""
    return coefficient.to(dtype=cells.dtype, device=cells.device)[:, None, None]
