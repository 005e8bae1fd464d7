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

from typing import NamedTuple

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


def mean_counts(
    counts: Float[Tensor, "batch cells genes"],
    totals: Float[Tensor, "batch cells"],
    change: Float[Tensor, "batch cells genes"],
) -> Float[Tensor, "batch cells genes"]:
    """The mean ``n p + a N / 10^4`` of the perturbed cells' counts."""
    # a change of 0, which networks begin with, has the gradient of a gain; a clamp would have none there
    loss, none = change < 0, torch.zeros_like(change)
    p, a = torch.where(loss, change, none).exp(), torch.where(loss, none, change).clamp(max=HIGHEST).expm1()
    return counts * p + a * (totals / PER).unsqueeze(-1)


def drawn_counts(
    counts: Float[Tensor, "batch cells genes"],
    totals: Float[Tensor, "batch cells"],
    change: Float[Tensor, "batch cells genes"],
    seeds: Int[Tensor, " batch"],
) -> Float[Tensor, "batch cells genes"]:
    """The perturbed cells' counts, those of each population drawn from a stream of its own; NaN of a change of NaN."""
    known = change.nan_to_num()  # of a network that diverges there is nothing to draw
    p, rates = known.clamp(max=0.0).exp(), mean_counts(torch.zeros_like(counts), totals, known)
    drawn = []
    for own, share, rate, seed in zip(counts, p, rates, seeds.tolist(), strict=True):
        generator = torch.Generator(device=counts.device).manual_seed(seed)
        gained = torch.poisson(rate, generator=generator)
        thinned = ((own > 0) & (share < 1)).nonzero(as_tuple=True)
        kept = own.clone()
        kept[thinned] = torch.binomial(own[thinned], share[thinned], generator=generator)
        drawn.append(kept + gained)
    return torch.stack(drawn).masked_fill(change.isnan(), torch.nan)


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
    with torch.no_grad():
        counts = (torch.expm1(control * scale) * (totals / PER).unsqueeze(-1)).round()
        n = drawn_counts(counts, totals, change, seeds)
        after = (totals + (n - counts).sum(dim=-1)).clamp(min=1.0)
        rate = (PER / after).unsqueeze(-1)
        x = torch.log1p(n * rate)
    if not (torch.is_grad_enabled() and change.requires_grad):
        return Estimate(x / scale, after)
    with torch.no_grad():
        up = torch.log1p((n + 1) * rate) - x
        down = x - torch.log1p((n - 1).clamp(min=0) * rate)
        # of what is kept of n the share n' / n was drawn; what is gained only goes up
        drawn = torch.where(change < 0, n / counts.clamp(min=1.0), torch.zeros_like(n))
        slope = up + drawn * (down - up)
        share = n * rate / (1 + n * rate) / after.unsqueeze(-1)
    mean = mean_counts(counts, totals, change)
    mean = mean - mean.detach()
    return Estimate((x + slope * mean - share * mean.sum(dim=-1, keepdim=True)) / scale, after)
