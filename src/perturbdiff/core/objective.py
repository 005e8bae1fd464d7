r"""The training loss: how far the denoised populations are from the observed ones.

    loss = w_mmd MMD^2(x_0, x_0^theta) + w_mse (1/(m G)) sum_j |x_0j - x_0j^theta|^2

at x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps with t uniform; w_mmd = w_mse = 1 is the paper's release (its
lambda), and either may be 0. MMD^2 is the biased estimate over the cells that exist; each population counts once. Genes
that a population's source did not measure have no part in either, nor in G.

Per population, from a stream that is a function of (seed, step, index of the population), in this order: t; one coin
for each covariate (its label is replaced by the null), one for the control cells (replaced by zeros), one for
self-conditioning (the network's own estimate of x_0 from a first pass without gradient, else zeros); then the noise;
then one coin for each covariate on whether its label is taken as new, half of them as a label of new agents; one on
whether the change that is expected of it is that of a context which training has not seen; and the seed of its counts.
With ``dropout_per="minibatch"`` the first population's coins serve all, its condition coin all covariates at once: the
release's way.

What is expected of a population comes in six ways: of a label that is known, a new set, or of new agents (`Novelty`),
first in its own context, then by other contexts. A batch with one way has the first alone.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from perturbdiff.core.choices import DropoutPer
from perturbdiff.core.conditioning import Novelty
from perturbdiff.core.denoiser import DenoiserContract
from perturbdiff.core.kernel import EnergyKernel, Kernel, mmd_squared
from perturbdiff.core.population import Noised, PopulationBatch, measured
from perturbdiff.core.process import Process
from perturbdiff.core.randomness import PopulationNoise, seeds, stream


class Loss(NamedTuple):
    """One number a population for each part; `total` is the weighted mean to be minimised."""

    total: Float[Tensor, ""]
    mmd: Float[Tensor, " batch"]
    mse: Float[Tensor, " batch"]


class Draw(NamedTuple):
    """The randomness of one step, a row a population."""

    t: Int[Tensor, " batch"]
    dropped: Bool[Tensor, "batch 3"]
    control_dropped: Bool[Tensor, " batch"]
    self_conditioned: Bool[Tensor, " batch"]
    eps: Float[Tensor, "batch cells genes"]
    novel: Int[Tensor, "batch 3"]
    elsewhere: Bool[Tensor, " batch"]
    seed: Int[Tensor, " batch"]


@dataclass(frozen=True)
class Objective:
    """The loss and its weights.

    Attributes:
        process: the forward chain.
        kernel: of the MMD.
        mmd_weight: w_mmd; 0 leaves the term out.
        mse_weight: w_mse; 0 leaves the term out.
        condition_dropout: probability that a covariate is replaced by its null.
        control_dropout: probability that the control cells are replaced by zeros.
        self_conditioning: probability that the network sees its own first estimate.
        dropout_per: whether there is a set of coins for each population, or one for a minibatch.
        novelty: probability that a covariate's label is taken as if training had not seen it, see `core.conditioning`.
        context_dropout: probability that what is expected of a population is taken from other contexts than its own.
    """

    process: Process
    kernel: Kernel = field(default_factory=EnergyKernel)
    mmd_weight: float = 1.0
    mse_weight: float = 1.0
    condition_dropout: float = 0.1
    control_dropout: float = 0.0
    self_conditioning: float = 0.5
    dropout_per: DropoutPer = "population"
    novelty: float = 0.0
    context_dropout: float = 0.0

    def __post_init__(self) -> None:
        if min(self.mmd_weight, self.mse_weight) < 0 or self.mmd_weight + self.mse_weight == 0:
            message = (
                f"mmd_weight={self.mmd_weight} and mse_weight={self.mse_weight} must not be negative, and one of "
                "them must be positive."
            )
            raise ValueError(message)

    def draw(self, batch: PopulationBatch, *, seed: int, step: int) -> Draw:
        """The randomness of one step: a function of (seed, step, index of each population)."""
        device = batch.perturbed.device
        streams = [stream(seed, step, int(key), device=device) for key in batch.key.tolist()]
        t = torch.cat([torch.randint(self.process.n_times, (1,), generator=own, device=device) for own in streams])
        coins = torch.stack([torch.rand(5, generator=own, device=device) for own in streams])
        if self.dropout_per == "minibatch":
            coins = coins[:1, [0, 0, 0, 3, 4]].expand(len(streams), -1)
        eps = PopulationNoise(self.process, streams)(batch.perturbed)
        return Draw(
            t=t,
            dropped=coins[:, :3] < self.condition_dropout,
            control_dropped=coins[:, 3] < self.control_dropout,
            self_conditioned=coins[:, 4] < self.self_conditioning,
            eps=eps,
            novel=self._novel(streams, device),
            elsewhere=self._elsewhere(streams, device),
            seed=seeds(streams),
        )

    def _novel(self, streams: list[torch.Generator], device: torch.device) -> Int[Tensor, "batch 3"]:
        coins = torch.stack([torch.rand(3, generator=own, device=device) for own in streams])
        if self.dropout_per == "minibatch":
            coins = coins[:1].expand(len(streams), -1)
        as_set, as_agents = coins < self.novelty, coins < self.novelty / 2
        return torch.where(as_agents, int(Novelty.NEW_AGENT), torch.where(as_set, int(Novelty.NEW_SET), 0))

    def _elsewhere(self, streams: list[torch.Generator], device: torch.device) -> Bool[Tensor, " batch"]:
        coins = torch.cat([torch.rand(1, generator=own, device=device) for own in streams])
        if self.dropout_per == "minibatch":
            coins = coins[:1].expand(len(streams))
        return coins < self.context_dropout

    def __call__(self, denoiser: DenoiserContract, batch: PopulationBatch, draw: Draw) -> Loss:
        """The loss of a minibatch of observed populations."""
        control = batch.control.masked_fill(draw.control_dropped[:, None, None], 0.0)
        noised = Noised(
            x_t=self.process.corrupt(batch.perturbed, draw.t, draw.eps),
            t=draw.t,
            control=control,
            condition=batch.condition,
            mask=batch.mask,
            dropped=draw.dropped,
            novel=draw.novel,
            genes=batch.genes,
            totals=batch.totals,
            expected=None if batch.expected is None else _taken(batch.expected, draw),
            seed=draw.seed,
        )
        hint = self._first_estimate(denoiser, noised, draw.self_conditioned)
        return self.compare(batch, denoiser(noised._replace(self_conditioning=hint)))

    def compare(self, batch: PopulationBatch, x_0: Float[Tensor, "batch cells genes"]) -> Loss:
        """The loss of given estimates of x_0."""
        observed, x_0, mask = measured(batch.perturbed, batch.genes), measured(x_0, batch.genes), batch.mask
        mmd = mse = observed.new_zeros(len(observed))
        if self.mmd_weight > 0:
            mmd = mmd_squared(observed, x_0, self.kernel, x_mask=mask, y_mask=mask)
        if self.mse_weight > 0:
            squares = (observed - x_0).square().mean(dim=-1)
            if batch.genes is not None:
                squares = squares / batch.genes.to(squares.dtype).mean(dim=-1, keepdim=True)
            weights = torch.ones_like(squares) if mask is None else mask.to(squares.dtype)
            mse = (squares * weights).sum(dim=-1) / weights.sum(dim=-1)
        total = (self.mmd_weight * mmd + self.mse_weight * mse).mean()
        return Loss(total, mmd, mse)

    @staticmethod
    def _first_estimate(
        denoiser: DenoiserContract, noised: Noised, chosen: Bool[Tensor, " batch"]
    ) -> Float[Tensor, "batch cells genes"]:
        """The network's estimate for the chosen populations, zeros for the others."""
        hint = torch.zeros_like(noised.x_t)
        rows = chosen.nonzero().squeeze(-1)
        if len(rows) == 0:
            return hint
        with torch.no_grad():
            hint[rows] = denoiser(noised.rows(rows))
        return hint


def _taken(expected: Float[Tensor, "batch ways genes"], draw: Draw) -> Float[Tensor, "batch genes"]:
    """What is expected of each population in the way that it is taken."""
    way = draw.novel[:, 0] + len(Novelty) * draw.elsewhere.long()
    return expected[torch.arange(len(expected), device=expected.device), way.clamp(max=expected.shape[1] - 1)]
