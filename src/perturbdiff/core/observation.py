r"""Perturbed cells as counts: what a change makes of a control cell's counts, as draws that have a gradient.

Control cell j has counts n_jg and a total N_j. With a change o_jg the perturbed cell is

    n'_jg ~ Binomial(n_jg, p) + Poisson(a N_j / 10^4),    p = exp(-relu(-o)),    a = expm1(relu(o))
    x_jg = log1p(10^4 n'_jg / N'_j),    N'_j = N_j + sum_g (n'_jg - n_jg)

o = 0 is the identity, the mean of n' is ``n p + a N / 10^4``, and counts that are Poisson stay so: thinning and
superposition. `cells.counts` is the same law without gradients.

A draw has no derivative, but the mean of a function f of it has. For rates lambda and probabilities p

    d E f(Poisson(lambda)) / d lambda = E[f(n' + 1) - f(n')]
    d E f(Binomial(n, p)) / d p = n E[(n'/n) (f(n') - f(n' - 1)) + (1 - n'/n) (f(n' + 1) - f(n'))]

so the gradient of x is its difference quotient at the draw, times that of the mean of n': without bias for every linear
function of x, but for what one gene does to another's share of N', of which the derivative is taken.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

PER = 1e4
"""Expression is counts per so many."""

HIGHEST = 9.0
"""Changes above it are taken for it: 8,100 counts in 10^4 are added."""


class Estimate(NamedTuple):
    """An estimate of x_0, in units of the training scale, and the cells' totals where cells are drawn as counts."""

    x_0: Float[Tensor, "batch cells genes"]
    totals: Float[Tensor, "batch cells"] | None = None


def drawn_counts(
    counts: Float[Tensor, "batch cells genes"],
    totals: Float[Tensor, "batch cells"],
    change: Float[Tensor, "batch cells genes"],
    seeds: Int[Tensor, " batch"],
) -> Float[Tensor, "batch cells genes"]:
    """The perturbed cells' counts, those of each population drawn from a stream of its own; NaN where a change is."""
    if bool(change.isnan().any()):  # of a network that diverges there is nothing to draw
        return torch.full_like(counts, torch.nan)
    drawn = []
    for own, total, changes, seed in zip(counts, totals, change, seeds.tolist(), strict=True):
        generator = torch.Generator(device=counts.device).manual_seed(seed)
        rates = changes.clamp(min=0.0, max=HIGHEST).expm1_().mul_((total / PER).unsqueeze(-1))
        n = torch.poisson(rates, generator=generator).add_(own).view(-1)
        # where counts are lost none is gained
        lost = ((own > 0) & (changes < 0)).view(-1).nonzero().squeeze(-1)
        n[lost] = torch.binomial(own.reshape(-1)[lost], changes.reshape(-1)[lost].exp(), generator=generator)
        drawn.append(n.view_as(own))
    return torch.stack(drawn)


def observed(
    control: Float[Tensor, "batch cells genes"],
    totals: Float[Tensor, "batch cells"],
    change: Float[Tensor, "batch cells genes"],
    seeds: Int[Tensor, " batch"],
    *,
    scale: float,
) -> Estimate:
    """Perturbed cells as they would be observed.

    Args:
        control: the control cells, in units of the training scale.
        totals: their total counts N, over these genes and others perhaps.
        change: o, a natural logarithm.
        seeds: of the draws of each population.
        scale: the training scale.
    """
    x, after = _Observed.apply(control * scale, totals, change, seeds)
    return Estimate(x / scale, after)


class _Observed(torch.autograd.Function):
    """Log1p counts per 10^4 of control cells -> those of drawn cells, and totals; with a gradient in the change."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own
        control: Tensor,
        totals: Tensor,
        change: Tensor,
        seeds: Tensor,
    ) -> tuple[Tensor, Tensor]:
        counts = control.expm1().mul_((totals / PER).unsqueeze(-1)).round_()
        n = drawn_counts(counts, totals, change, seeds)
        after = (totals + (n - counts).sum(dim=-1)).clamp(min=1.0)
        x = (n * (PER / after).unsqueeze(-1)).log1p_()
        ctx.save_for_backward(counts, totals, change, n, after, x)
        ctx.mark_non_differentiable(after)
        return x, after

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401 - torch's own
        of_x: Tensor,
        of_after: Tensor,  # noqa: ARG004 - totals have no gradient
    ) -> tuple[None, None, Tensor, None]:
        counts, totals, change, n, after, x = ctx.saved_tensors
        rate = (PER / after).unsqueeze(-1)
        slope = ((n + 1) * rate).log1p_().sub_(x)
        # of what may be lost of n the share n' / n was kept; what is gained only goes up
        lost = ((n > 0) & (change < 0)).nonzero(as_tuple=True)
        down = x[lost] - ((n[lost] - 1) * rate.expand_as(n)[lost]).log1p()
        slope[lost] += n[lost] / counts[lost] * (down - slope[lost])
        # 1 - exp(-x) is c n' / (1 + c n')
        others = (of_x * torch.expm1(-x)).sum(dim=-1, keepdim=True) / after.unsqueeze(-1)
        of_mean = (slope * of_x).add_(others)
        raised = change.clamp(max=HIGHEST).exp()
        gained = raised * (totals / PER).unsqueeze(-1) * (change <= HIGHEST)
        return None, None, of_mean.mul_(torch.where(change < 0, counts * raised, gained)), None
