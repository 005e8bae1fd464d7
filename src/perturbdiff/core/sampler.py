r"""From noise to populations: the reverse chain, as pure steps and a sampler that takes them.

At time t a denoiser estimates x_0; with ``eps = (x_t - sqrt(abar_t) x_0) / sqrt(1 - abar_t)`` a step to an earlier
time s is

    DDIM(eta):  x_s = sqrt(abar_s) x_0 + sqrt(1 - abar_s - sigma^2) eps + sigma z,  sigma^2 = eta^2 Var[x_s | x_t, x_0]
    DDPM:       x_s = E[x_s | x_t, x_0] + sigma z,  sigma^2 = Var[..] ("small") or 1 - abar_t/abar_s ("large")

eta = 0 is deterministic, eta = 1 is DDPM with the small variance. The step to s = -1 gives x_0 itself. Initial and
fresh noise z have the covariance of the process (a part shared by the population where rho > 0).

`respaced` spreads the steps over the whole chain, t = T - 1 and t = 0 among them. ``truncate=100`` keeps to t < 100:
the release's way, which starts from N(0, I) where the chain's marginal is not yet that.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from perturbdiff.core.choices import Variance
from perturbdiff.core.denoiser import DenoiserContract
from perturbdiff.core.observation import Estimate
from perturbdiff.core.population import Condition, Noised
from perturbdiff.core.process import Process, factor
from perturbdiff.core.randomness import PopulationNoise

NoiseSource = Callable[[Float[Tensor, "batch cells genes"]], Float[Tensor, "batch cells genes"]]


class State(NamedTuple):
    """One step of the reverse chain: x at time t, and the estimate of x_0 that led there; t = -1 is the end.

    Where cells are drawn as counts, `totals` are those of the cells of x_0.
    """

    t: int
    x_t: Float[Tensor, "batch cells genes"]
    x_0: Float[Tensor, "batch cells genes"]
    totals: Float[Tensor, "batch cells"] | None = None


def respaced(n_times: int, steps: int, *, truncate: int | None = None) -> list[int]:
    """Descending times for `steps` network evaluations, from the last time to 0.

    Args:
        n_times: T.
        steps: number of times, at least 1 and at most as many as there are.
        truncate: keep to t < truncate.
    """
    end = n_times if truncate is None else truncate
    if not 1 <= end <= n_times:
        message = f"truncate={truncate} must lie between 1 and the {n_times} times of the chain."
        raise ValueError(message)
    if not 1 <= steps <= end:
        message = f"steps={steps} must lie between 1 and the {end} times there are; choose fewer."
        raise ValueError(message)
    times = torch.linspace(end - 1, 0, steps, dtype=torch.float64).round().long()
    return [int(t) for t in times]


@runtime_checkable
class Step(Protocol):
    """One step of the reverse chain."""

    def __call__(
        self,
        process: Process,
        x_t: Float[Tensor, "batch cells genes"],
        x_0: Float[Tensor, "batch cells genes"],
        t: Int[Tensor, " batch"],
        s: Int[Tensor, " batch"],
        noise: NoiseSource,
    ) -> Float[Tensor, "batch cells genes"]:
        """x_s from x_t and the estimate of x_0."""
        ...


class DDIM:
    """Implicit steps; eta in [0, 1] is the share of the posterior's standard deviation that is drawn afresh."""

    def __init__(self, eta: float = 0.0) -> None:
        if not 0 <= eta <= 1:
            message = f"eta={eta} must lie between 0 (deterministic) and 1 (DDPM)."
            raise ValueError(message)
        self.eta = eta

    def __call__(
        self,
        process: Process,
        x_t: Float[Tensor, "batch cells genes"],
        x_0: Float[Tensor, "batch cells genes"],
        t: Int[Tensor, " batch"],
        s: Int[Tensor, " batch"],
        noise: NoiseSource,
    ) -> Float[Tensor, "batch cells genes"]:
        """x_s from x_t and the estimate of x_0."""
        alpha_bar_t, alpha_bar_s = process.alpha_bar(t), process.alpha_bar(s)
        variance = self.eta**2 * (1 - alpha_bar_t / alpha_bar_s) * (1 - alpha_bar_s) / (1 - alpha_bar_t)
        eps = process.eps_from_x_0(x_t, t, x_0)
        x_s = (
            factor(alpha_bar_s.sqrt(), x_0) * x_0 + factor((1 - alpha_bar_s - variance).clamp(min=0).sqrt(), x_0) * eps
        )
        return x_s + factor(variance.sqrt(), x_0) * noise(x_t) if self.eta > 0 else x_s


class DDPM:
    """Ancestral steps with one of the two fixed variances."""

    def __init__(self, variance: Variance = "small") -> None:
        self.variance = variance

    def __call__(
        self,
        process: Process,
        x_t: Float[Tensor, "batch cells genes"],
        x_0: Float[Tensor, "batch cells genes"],
        t: Int[Tensor, " batch"],
        s: Int[Tensor, " batch"],
        noise: NoiseSource,
    ) -> Float[Tensor, "batch cells genes"]:
        """x_s from x_t and the estimate of x_0; no noise is added at s = -1."""
        mean, variance = process.posterior(x_0, x_t, t, s)
        if self.variance == "large":
            large = 1 - process.alpha_bar(t) / process.alpha_bar(s)
            variance = torch.where(s.to(large.device) < 0, 0.0, large)
        return mean + factor(variance.sqrt(), x_0) * noise(x_t)


@dataclass(frozen=True)
class Sampler:
    """Populations out of noise, by whichever denoiser.

    Attributes:
        process: the forward chain.
        times: descending, see `respaced`.
        step: DDIM or DDPM.
        cutoff: estimates of x_0 below it are set to 0, in units of the training scale.
        self_conditioning: whether the previous estimate of x_0 is shown to the network (zeros at first).
    """

    process: Process
    times: Sequence[int]
    step: Step
    cutoff: float = 0.0
    self_conditioning: bool = True

    def reverse(
        self,
        denoiser: DenoiserContract,
        start: Noised,
        noise: NoiseSource,
        seeds: Callable[[], Int[Tensor, " batch"] | None] = lambda: None,
    ) -> Iterator[State]:
        """The reverse chain from start.x_t at times[0], one state a network evaluation, the last at t = -1.

        Args:
            denoiser: x_0^theta, guided or not.
            start: initial noise as x_t, with control cells, condition and mask; its t is not read.
            noise: fresh noise of the covariance of the process.
            seeds: fresh ones for draws of counts.
        """
        x_t, hint = start.x_t, None
        for t, s in zip(self.times, [*self.times[1:], -1], strict=True):
            at, to = (torch.full((len(x_t),), time, device=x_t.device, dtype=torch.long) for time in (t, s))
            x_0, totals = denoiser.estimate(start._replace(x_t=x_t, t=at, self_conditioning=hint, seed=seeds()))
            if self.cutoff > 0:
                x_0 = torch.where(x_0 < self.cutoff, 0.0, x_0)
            hint = x_0 if self.self_conditioning else None
            x_t = self.step(self.process, x_t, x_0, at, to, noise)
            yield State(s, x_t, x_0, totals)

    @torch.no_grad()
    def __call__(
        self,
        denoiser: DenoiserContract,
        *,
        control: Float[Tensor, "batch cells genes"],
        condition: Condition,
        streams: Sequence[torch.Generator],
        shared: Sequence[torch.Generator] | None = None,
        mask: Bool[Tensor, "batch cells"] | None = None,
        genes: Bool[Tensor, "batch genes"] | None = None,
        totals: Float[Tensor, "batch cells"] | None = None,
        expected: Float[Tensor, "batch genes"] | None = None,
    ) -> Estimate:
        """One population for each row of `control`, all its noise from the row's stream; units of the training scale.

        Rows may be parts of larger populations: what the cells of one have in common comes from `shared` then. Genes
        that are not among `genes` (None: all are) are 0 in it. Cells have totals where they are drawn as counts, which
        the control cells' `totals` are needed for.
        """
        noise = PopulationNoise(self.process, streams, shared)
        start = Noised(
            noise(control),
            torch.zeros_like(condition.perturbation),
            control,
            condition,
            mask,
            genes=genes,
            totals=totals,
            expected=expected,
        )
        *_, last = self.reverse(denoiser, start, noise, noise.seeds if totals is not None else lambda: None)
        return Estimate(last.x_0, last.totals)
