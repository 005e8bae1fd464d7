r"""The denoiser x_0^theta(x_t, t, control, condition) of a population, as a two-stream MM-DiT over cells.

A denoiser is anything with the signature of `DenoiserContract`: it takes a minibatch of noised populations and returns
estimates of x_0, in units of the training scale, never negative. What the network gives is read in one of four ways:

    target "cell":      x_0 = ReLU(network_j)
    target "change":    x_0 = ReLU(control_j + network_j)
    target "residual":  x_0 = ReLU(control_j + s + network_j), s what is expected of the population
    target "counts":    x_0 = the control cell's counts with the change s + network_j (`core.observation`)

`unclamped` is what stands inside the ReLU, or the change of counts; both in units of the training scale. The network
sees [x_t, self-conditioning], or x_t alone, and control, each token of a stream by one linear map, and the condition
vector c = time + covariates, once a population (or, with ``modulate_by="cell"``, once a cell: the same numbers at the
release's cost). Genes that were not measured are 0 where the network reads and where it writes: what stands at them
changes nothing, and nothing is learned from them.

The two maps that read cells are shared, or each source of a mixture has its own.
"""

import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from perturbdiff.core.block import Block, Modulation, modulate
from perturbdiff.core.choices import Joint, ModulateBy, Target
from perturbdiff.core.conditioning import Conditioning
from perturbdiff.core.observation import Estimate, observed
from perturbdiff.core.population import Noised, measured

Expression = Float[Tensor, "batch cells genes"]


@runtime_checkable
class DenoiserContract(Protocol):
    """What objective, guidance and samplers ask of a denoiser."""

    def __call__(self, noised: Noised) -> Expression:
        """x_0, non-negative."""
        ...

    def unclamped(self, noised: Noised) -> Expression:
        """What x_0 is made of: x_0 before its ReLU, or the change of counts."""
        ...

    def made_of(self, unclamped: Expression, noised: Noised) -> Estimate:
        """The estimate of x_0 that is made of it."""
        ...

    def estimate(self, noised: Noised) -> Estimate:
        """x_0, with the cells' totals where they are drawn as counts."""
        ...


class TimeEmbedding(nn.Module):
    """t -> [cos(t f_i), sin(t f_i)], f_i = 1e4^(-i/128), i = 0 .. 127 -> linear, SiLU, linear."""

    def __init__(self, width: int, waves: int = 128) -> None:
        super().__init__()
        self.frequencies: Tensor
        self.register_buffer("frequencies", torch.exp(-math.log(1e4) * torch.arange(waves) / waves), persistent=False)
        self.up = nn.Linear(2 * waves, width)
        self.down = nn.Linear(width, width)

    def forward(self, t: Int[Tensor, " batch"]) -> Float[Tensor, "batch width"]:
        angle = t[:, None].float() * self.frequencies
        waves = torch.cat([angle.cos(), angle.sin()], dim=-1).to(self.up.weight.dtype)
        result: Tensor = self.down(functional.silu(self.up(waves)))
        return result


class Head(nn.Module):
    """Modulated LayerNorm, then one linear map to genes, whose weights begin with standard deviation `std`."""

    def __init__(self, width: int, n_genes: int, *, std: float) -> None:
        super().__init__()
        self.modulation = Modulation(width, 2)
        self.linear = nn.Linear(width, n_genes)
        nn.init.normal_(self.linear.weight, std=std)
        nn.init.zeros_(self.linear.bias)

    def forward(
        self, h: Float[Tensor, "batch cells width"], c: Float[Tensor, "batch _ width"]
    ) -> Float[Tensor, "batch cells genes"]:
        result: Tensor = self.linear(modulate(h, *self.modulation(c)))
        return result


class SourceLinear(nn.Module):
    """A linear map for each source of the data; cells of no known source (0) are read by the mean of the maps."""

    def __init__(self, n_sources: int, n_inputs: int, width: int) -> None:
        super().__init__()
        maps = [nn.Linear(n_inputs, width) for _ in range(n_sources)]
        self.weight = nn.Parameter(torch.stack([one.weight.detach() for one in maps]))
        self.bias = nn.Parameter(torch.stack([one.bias.detach() for one in maps]))

    def forward(
        self, x: Float[Tensor, "batch cells _"], source: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch cells width"]:
        weight, bias = (torch.cat([own.mean(dim=0, keepdim=True), own])[source] for own in (self.weight, self.bias))
        return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)


class Denoiser(nn.Module):
    """The two-stream MM-DiT.

    Args:
        conditioning: condition -> vector of `width`.
        n_genes: of the panel.
        width: of each stream; a multiple of `heads`.
        depth: number of blocks.
        heads: of each attention.
        joint: how the streams meet, see `block`.
        target: what the network gives, see above.
        modulate_by: one condition vector a population, or one a cell.
        self_conditioning: whether the network looks at an earlier estimate of x_0; without, it has no weights for it.
        control_head: whether the control stream is read too (the release has such a head; its loss does not use it).
        scale: what log1p counts per 10^4 were divided by, which counts have to know.
        sources: the source, 1 and up, of each label of assay batch [labels + 1], 0 for none; with it each source has
            input projections of its own. None where they are shared.
    """

    def __init__(
        self,
        conditioning: Conditioning,
        *,
        n_genes: int,
        width: int,
        depth: int,
        heads: int,
        joint: Joint = "tokens",
        target: Target = "change",
        modulate_by: ModulateBy = "population",
        self_conditioning: bool = True,
        control_head: bool = False,
        scale: float = 1.0,
        sources: Int[Tensor, " labels"] | None = None,
    ) -> None:
        super().__init__()
        if width % heads:
            message = f"width={width} must be a multiple of heads={heads}; change one of them."
            raise ValueError(message)
        self.target = target
        self.scale = scale
        self.modulate_by = modulate_by
        self.conditioning = conditioning
        self.time = TimeEmbedding(width)
        self.self_conditioning = self_conditioning
        self.sources: Tensor | None
        self.register_buffer("sources", sources, persistent=False)
        self.embed = self._reading((1 + self_conditioning) * n_genes, width)
        self.embed_control = self._reading(n_genes, width)
        self.blocks = nn.ModuleList(
            Block(width, heads, joint=joint, reads_control=control_head or i < depth - 1) for i in range(depth)
        )
        # a change begins at none; a cell cannot begin at 0, where its ReLU would pass no gradient
        std = 0.02 if target == "cell" else 0.0
        self.head = Head(width, n_genes, std=std)
        self.control_head = Head(width, n_genes, std=std) if control_head else None

    def _reading(self, n_inputs: int, width: int) -> nn.Module:
        if self.sources is None:
            return nn.Linear(n_inputs, width)
        return SourceLinear(int(self.sources.max()), n_inputs, width)

    def _read(self, projection: nn.Module, cells: Tensor, noised: Noised) -> Float[Tensor, "batch cells width"]:
        own = () if self.sources is None else (self.sources[noised.condition.assay_batch],)
        tokens: Tensor = projection(cells, *own)
        return tokens

    def streams(
        self, noised: Noised
    ) -> tuple[Float[Tensor, "batch cells genes"], Float[Tensor, "batch cells genes"] | None]:
        """What the network gives for the perturbed cells and, where it has a head for them, the control cells."""
        c = (self.time(noised.t) + self.conditioning(noised.condition, noised.dropped, noised.novel)).unsqueeze(1)
        h = measured(noised.x_t, noised.genes)
        if self.modulate_by == "cell":
            c = c.expand(-1, h.shape[1], -1)
        if self.self_conditioning:
            hint = noised.self_conditioning
            h = torch.cat([h, torch.zeros_like(h) if hint is None else measured(hint, noised.genes)], dim=-1)
        h = self._read(self.embed, h, noised)
        h_control = self._read(self.embed_control, measured(noised.control, noised.genes), noised)
        for block in self.blocks:
            h, h_control = block(h, h_control, c, noised.mask)
        return self.head(h, c), None if self.control_head is None else self.control_head(h_control, c)

    def unclamped(self, noised: Noised) -> Float[Tensor, "batch cells genes"]:
        """What x_0 is made of: the network, beside it what is expected, and the control cells where they are added."""
        control = noised.control
        # the sum is float32 under mixed precision too: a small change of a large value must survive
        out = self.streams(noised)[0].to(control.dtype)
        if self.target == "cell":
            return measured(out, noised.genes)
        if noised.expected is not None:
            expected = noised.expected
            if noised.dropped is not None:
                expected = expected.masked_fill(noised.dropped[:, :1], 0.0)
            out = out + expected.unsqueeze(1)
        return measured(out if self.target == "counts" else control + out, noised.genes)

    def made_of(self, unclamped: Float[Tensor, "batch cells genes"], noised: Noised) -> Estimate:
        """Clamp x_0 at 0, or draw the cells that a change of counts makes.

        Raises:
            ValueError: counts are to be drawn, and the control cells' totals or the seeds are not there.
        """
        if self.target != "counts":
            return Estimate(functional.relu(unclamped))
        if noised.totals is None or noised.seed is None:
            message = 'target "counts" draws from the control cells\' counts: give their totals, and seeds.'
            raise ValueError(message)
        change = unclamped * self.scale
        if noised.mask is not None:
            # what stands in the padding takes no random numbers from the cells
            change = change.masked_fill(~noised.mask.unsqueeze(-1), 0.0)
        return observed(measured(noised.control, noised.genes), noised.totals, change, noised.seed, scale=self.scale)

    def estimate(self, noised: Noised) -> Estimate:
        """Estimate x_0, with the cells' totals where they are drawn as counts."""
        return self.made_of(self.unclamped(noised), noised)

    def forward(self, noised: Noised) -> Float[Tensor, "batch cells genes"]:
        """x_0^theta, non-negative, in units of the training scale (Eq. 7, arXiv:2602.19685v1)."""
        return self.estimate(noised).x_0
