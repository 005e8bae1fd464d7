r"""Kernels, mean embeddings, the maximum mean discrepancy and the energy distance.

A kernel k with Hilbert space H sends a population P to its mean embedding ``mu_P = E_{Z~P} k(Z, .)``, and

    MMD^2_k(P, Q) = |mu_P - mu_Q|_H^2 = E k(X, X') + E k(Y, Y') - 2 E k(X, Y)

with X, X' ~ P and Y, Y' ~ Q independent. Terms of k in x alone or y alone cancel in it, so each kernel has, beside k,
its `interaction`: k without them. The paper's kernel is ``k(x, y) = (|x| + |y| - |x - y|) / 2``, with interaction
``-|x - y| / 2``; its MMD^2 is the energy distance ``E|X-Y| - E|X-X'|/2 - E|Y-Y'|/2`` (half of the statisticians' ``2
E|X-Y| - ...``; no root, no squared norms).

Two estimates. *Biased* takes all pairs, a cell with itself too: it is the squared norm between two empirical
embeddings, never negative and exactly 0 between a population and itself; the loss uses it. *Unbiased* leaves a cell's
pair with itself out: its mean over samples is the distance of the laws, and it may be negative; validation uses it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

Estimate = Literal["biased", "unbiased"]
Cells = Float[Tensor, "*batch cells genes"]
Others = Float[Tensor, "*batch others genes"]
Gram = Float[Tensor, "*batch cells others"]
_TINY = 1e-30  # in the place of a sum of weights that is 0


class _Distance(torch.autograd.Function):
    """|x_i - y_j|, exact and 0 at coinciding points, where its gradient is taken as 0 (the mean of its subgradients).

    Forward takes differences before squares, so equal cells are at distance exactly 0 and no cancellation is rooted.
    Backward is two matrix products, ``d/dx_i = x_i sum_j s_ij - sum_j s_ij y_j`` with ``s = g / |x - y|``.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, y: Tensor) -> Tensor:
        distance = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
        ctx.save_for_backward(x, y, distance)
        return distance

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, y, distance = ctx.saved_tensors  # type: ignore[attr-defined]
        slope = torch.where(distance > 0, grad / distance, 0.0)
        # differences do not move with the origin, but their rounding does: centre before the products, at the mean
        # of the cells that carry gradient, so that padding has no part in it
        share = slope.abs().sum(dim=-2).unsqueeze(-1)
        origin = (share * y).sum(dim=-2, keepdim=True) / share.sum(dim=-2, keepdim=True).clamp(min=_TINY)
        x, y = x - origin, y - origin
        grad_x = grad_y = None
        if ctx.needs_input_grad[0]:  # type: ignore[attr-defined]
            grad_x = x * slope.sum(-1, keepdim=True) - slope @ y
        if ctx.needs_input_grad[1]:  # type: ignore[attr-defined]
            grad_y = y * slope.sum(-2).unsqueeze(-1) - slope.mT @ x
        return grad_x, grad_y


def distance(x: Cells, y: Others) -> Gram:
    """Euclidean distances between the cells of two populations; the gradient is finite where cells coincide."""
    result: Tensor = _Distance.apply(x, y)
    return result


@runtime_checkable
class Kernel(Protocol):
    """A positive definite kernel on cells."""

    def __call__(self, x: Cells, y: Others) -> Gram:
        """The Gram matrix k(x_i, y_j)."""
        ...

    def interaction(self, x: Cells, y: Others) -> Gram:
        """K(x_i, y_j) up to terms in x_i alone or y_j alone, which cancel in MMD^2."""
        ...


@dataclass(frozen=True)
class EnergyKernel:
    """The paper's kernel ``(|x| + |y| - |x - y|) / 2``; its MMD^2 is the energy distance (arXiv:2602.19685v1)."""

    def __call__(self, x: Cells, y: Others) -> Gram:
        norms: Tensor = x.norm(dim=-1).unsqueeze(-1) + y.norm(dim=-1).unsqueeze(-2)
        return norms / 2 + self.interaction(x, y)

    def interaction(self, x: Cells, y: Others) -> Gram:
        return -distance(x, y) / 2


@dataclass(frozen=True)
class GaussianKernel:
    """The mean of ``exp(-|x - y|^2 / (2 b^2))`` over bandwidths b > 0, in the units of the cells."""

    bandwidths: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.bandwidths or min(self.bandwidths) <= 0:
            message = f"bandwidths={self.bandwidths} must be one or more positive numbers; give for example (1.0,)."
            raise ValueError(message)

    def __call__(self, x: Cells, y: Others) -> Gram:
        squared = distance(x, y).square()
        grams = [torch.exp(-squared / (2 * bandwidth**2)) for bandwidth in self.bandwidths]
        return torch.stack(grams).mean(dim=0)

    def interaction(self, x: Cells, y: Others) -> Gram:
        return self(x, y)


def _weights(x: Cells, mask: Bool[Tensor, "*batch cells"] | None) -> Float[Tensor, "*batch cells"]:
    """1/m for each of the m cells that exist, 0 for the others."""
    if mask is None:
        return x.new_full(x.shape[:-1], 1.0 / x.shape[-2])
    kept = mask.to(x.dtype)
    return kept / kept.sum(dim=-1, keepdim=True)


def mean_embedding(
    x: Cells, kernel: Kernel, mask: Bool[Tensor, "*batch cells"] | None = None
) -> Callable[[Others], Float[Tensor, "*batch others"]]:
    """The empirical embedding ``mu_x = (1/m) sum_j k(x_j, .)``: a function of points in cell space.

    Args:
        x: a population.
        kernel: k.
        mask: true for cells that exist; None for all.

    Returns:
        z -> mu_x(z), which by the reproducing property is the inner product of mu_x with k(z, .) in H.
    """
    weights = _weights(x, mask)

    def embedding(z: Others) -> Float[Tensor, "*batch others"]:
        return (weights.unsqueeze(-1) * kernel(x, z)).sum(dim=-2)

    return embedding


def mmd_squared(
    x: Cells,
    y: Others,
    kernel: Kernel,
    *,
    x_mask: Bool[Tensor, "*batch cells"] | None = None,
    y_mask: Bool[Tensor, "*batch others"] | None = None,
    estimate: Estimate = "biased",
) -> Float[Tensor, "*batch"]:
    """MMD^2_k between populations, one number a pair of populations.

    Args:
        x: first populations, any leading axes.
        y: second populations, the same leading axes.
        kernel: k.
        x_mask: true for cells of x that exist; None for all.
        y_mask: the same for y.
        estimate: "biased" (all pairs: >= 0, exactly 0 between a population and itself) or "unbiased" (no cell with
            itself; may be negative).

    Raises:
        ValueError: the unbiased estimate of a population of fewer than two cells.
    """
    w_x, w_y = _weights(x, x_mask), _weights(y, y_mask)
    within_x = _within(kernel.interaction(x, x), w_x, estimate)
    within_y = _within(kernel.interaction(y, y), w_y, estimate)
    between = (w_x.unsqueeze(-1) * w_y.unsqueeze(-2) * kernel.interaction(x, y)).sum(dim=(-2, -1))
    return within_x + within_y - 2 * between


def _within(
    gram: Float[Tensor, "*batch cells cells"], weights: Float[Tensor, "*batch cells"], estimate: Estimate
) -> Float[Tensor, "*batch"]:
    """E k(X, X') over all pairs, or over the m (m - 1) pairs of different cells."""
    pairs = weights.unsqueeze(-1) * weights.unsqueeze(-2) * gram
    if estimate == "biased":
        return pairs.sum(dim=(-2, -1))
    n_cells = (weights > 0).sum(dim=-1)
    if int(n_cells.min()) < 2:
        message = (
            f"the unbiased estimate needs at least 2 cells a population, and one has {int(n_cells.min())}; "
            "leave it out or use estimate='biased'."
        )
        raise ValueError(message)
    off_diagonal = pairs.sum(dim=(-2, -1)) - pairs.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    return off_diagonal * (n_cells.to(gram.dtype) / (n_cells - 1))  # in the cells' precision, not float32


def energy_distance(
    x: Cells,
    y: Others,
    *,
    x_mask: Bool[Tensor, "*batch cells"] | None = None,
    y_mask: Bool[Tensor, "*batch others"] | None = None,
    estimate: Estimate = "unbiased",
) -> Float[Tensor, "*batch"]:
    """``E|X-Y| - E|X-X'|/2 - E|Y-Y'|/2``: MMD^2 under the energy kernel, in the units of the cells."""
    return mmd_squared(x, y, EnergyKernel(), x_mask=x_mask, y_mask=y_mask, estimate=estimate)
