"""Kernels, mean embeddings and MMD^2, against Gram matrices, closed forms, quadrature and exact enumeration."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from perturbdiff.core.kernel import (
    EnergyKernel,
    GaussianKernel,
    Kernel,
    distance,
    energy_distance,
    mean_embedding,
    mmd_squared,
)

KERNELS = [
    pytest.param(EnergyKernel(), id="energy"),
    pytest.param(GaussianKernel((1.3,)), id="gaussian"),
    pytest.param(GaussianKernel((0.5, 2.0, 7.0)), id="gaussians"),
]
every_kernel = pytest.mark.parametrize("kernel", KERNELS)
every_estimate = pytest.mark.parametrize("estimate", ["biased", "unbiased"])


def same(actual: Tensor, wanted: Tensor | float, atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(wanted, dtype=actual.dtype), rtol=1e-10, atol=atol)


@pytest.fixture(scope="module")
def x(normal) -> Tensor:
    return normal(6, 3, seed=0)


@pytest.fixture(scope="module")
def y(normal) -> Tensor:
    return normal(4, 3, seed=1) * 1.5 + 0.5


# the kernels


def test_the_energy_kernel_is_the_papers_formula(x, y):
    for i, j in itertools.product(range(6), range(4)):
        wanted = (math.hypot(*x[i]) + math.hypot(*y[j]) - math.dist(x[i], y[j])) / 2
        same(EnergyKernel()(x, y)[i, j], wanted)


def test_the_gaussian_kernel_is_the_mean_of_its_bandwidths(x, y):
    for i, j in itertools.product(range(6), range(4)):
        wanted = np.mean([math.exp(-(math.dist(x[i], y[j]) ** 2) / (2 * b * b)) for b in (0.5, 2.0, 7.0)])
        same(GaussianKernel((0.5, 2.0, 7.0))(x, y)[i, j], float(wanted))


@every_kernel
def test_kernels_are_positive_definite(kernel, x):
    assert float(torch.linalg.eigvalsh(kernel(x, x)).min()) > 1e-6


@pytest.mark.parametrize("bandwidths", [(), (1.0, 0.0), (-1.0,)])
def test_a_bandwidth_that_is_not_positive_is_refused(bandwidths):
    with pytest.raises(ValueError, match="positive"):
        GaussianKernel(bandwidths)


# mean embeddings


@every_kernel
def test_the_embedding_reproduces_the_mean_of_a_function_of_h_over_the_population(kernel, x, y, normal):
    weights = normal(4, seed=2)  # f = sum_i weights_i k(y_i, .), an element of H
    mean_of_f = sum(kernel(x, y)[j] @ weights for j in range(len(x))) / len(x)
    same(mean_embedding(x, kernel)(y) @ weights, mean_of_f)


@every_kernel
def test_mmd_squared_is_the_squared_distance_of_the_two_embeddings(kernel, x, y):
    mu_x, mu_y = mean_embedding(x, kernel), mean_embedding(y, kernel)
    difference_at_x, difference_at_y = mu_x(x) - mu_y(x), mu_x(y) - mu_y(y)
    same(mmd_squared(x, y, kernel), difference_at_x.mean() - difference_at_y.mean())


@every_kernel
def test_masked_cells_have_no_part_in_the_embedding(kernel, x, y, make_mask):
    same(mean_embedding(x, kernel, make_mask([4], 6)[0])(y), mean_embedding(x[:4], kernel)(y))


# MMD^2 as a Hilbert norm


@every_kernel
def test_the_biased_estimate_is_the_hilbert_norm_by_the_gram_matrix(kernel, x, y):
    pooled = torch.cat([x, y])
    weights = torch.tensor([1 / 6] * 6 + [-1 / 4] * 4, dtype=torch.float64)
    same(mmd_squared(x, y, kernel), weights @ kernel(pooled, pooled) @ weights)


@every_kernel
def test_the_unbiased_estimate_leaves_out_each_cells_pair_with_itself(kernel, x, y):
    def between_different(z: Tensor) -> Tensor:
        return torch.stack([kernel(z, z)[i, j] for i, j in itertools.permutations(range(len(z)), 2)]).mean()

    wanted = between_different(x) + between_different(y) - 2 * kernel(x, y).mean()
    same(mmd_squared(x, y, kernel, estimate="unbiased"), wanted)


@every_kernel
@every_estimate
def test_populations_of_a_minibatch_are_compared_one_by_one(kernel, estimate, normal):
    x, y = normal(2, 3, 6, 4, seed=0), normal(2, 3, 5, 4, seed=1)
    together = mmd_squared(x, y, kernel, estimate=estimate)
    for i, j in itertools.product(range(2), range(3)):
        same(together[i, j], mmd_squared(x[i, j], y[i, j], kernel, estimate=estimate))


@every_kernel
@every_estimate
def test_a_masked_population_is_the_shorter_population(kernel, estimate, normal, make_mask):
    x, y = normal(3, 6, 4, seed=0), normal(3, 5, 4, seed=1)
    lengths_x, lengths_y = (6, 2, 4), (3, 5, 2)
    x_mask, y_mask = make_mask(lengths_x, 6), make_mask(lengths_y, 5)
    masked = mmd_squared(x, y, kernel, x_mask=x_mask, y_mask=y_mask, estimate=estimate)
    for i, (m, n) in enumerate(zip(lengths_x, lengths_y, strict=True)):
        same(masked[i], mmd_squared(x[i, :m], y[i, :n], kernel, estimate=estimate))


@every_kernel
@every_estimate
def test_the_distance_is_symmetric_and_blind_to_the_order_of_cells(kernel, estimate, x, y):
    value = mmd_squared(x, y, kernel, estimate=estimate)
    same(mmd_squared(y, x, kernel, estimate=estimate), value)
    same(mmd_squared(x.flip(0), y.roll(1, 0), kernel, estimate=estimate), value)


@every_kernel
@pytest.mark.parametrize("masked", [False, True])
def test_the_biased_estimate_is_exactly_zero_between_equal_populations_in_float32(kernel, masked, normal, make_mask):
    x = normal(40, 37, 19, seed=3, dtype=torch.float32).relu() * 3 + 100
    mask = make_mask([2 + i % 36 for i in range(40)], 37) if masked else None
    assert (mmd_squared(x, x.clone(), kernel, x_mask=mask, y_mask=mask) == 0.0).all()


@every_kernel
def test_only_equal_populations_are_at_distance_zero(kernel, x):
    moved = x.clone()
    moved[0, 0] += 1e-3
    assert float(mmd_squared(x, moved, kernel)) > 1e-10
    # a mean and a covariance in common are not enough
    same_moments = (
        torch.tensor([[-1.0], [1.0]]).double(),
        torch.tensor([[-(2**0.5)], [0.0], [0.0], [2**0.5]]).double(),
    )
    assert float(mmd_squared(*same_moments, kernel)) > 1e-3


def test_the_unbiased_estimate_of_a_single_cell_is_refused(x, y, make_mask):
    with pytest.raises(ValueError, match="at least 2 cells"):
        mmd_squared(x[:1], y, EnergyKernel(), estimate="unbiased")
    with pytest.raises(ValueError, match="one has 1"):
        energy_distance(x, y, x_mask=make_mask([1], 6)[0])


# expectations, by exact enumeration of all samples with replacement


@every_kernel
def test_the_unbiased_estimate_has_the_laws_distance_as_its_mean_and_the_biased_one_more(kernel, normal):
    p, q = normal(3, 2, seed=4)[[0, 0, 1, 2]], normal(2, 2, seed=5)  # p gives its first point probability 1/2
    m, n = 3, 2
    samples_p = p[torch.tensor(list(itertools.product(range(4), repeat=m)))]
    samples_q = q[torch.tensor(list(itertools.product(range(2), repeat=n)))]
    every_p = samples_p.repeat_interleave(len(samples_q), dim=0)
    every_q = samples_q.repeat(len(samples_p), 1, 1)
    law = (kernel(p, p).mean() + kernel(q, q).mean() - 2 * kernel(p, q).mean()).item()
    same(mmd_squared(every_p, every_q, kernel, estimate="unbiased").mean(), law)
    excess = sum((kernel(z, z).diagonal().mean() - kernel(z, z).mean()).item() / size for z, size in ((p, m), (q, n)))
    same(mmd_squared(every_p, every_q, kernel).mean(), law + excess)
    assert excess > 0.01


# the energy distance in closed form


def test_the_energy_distance_of_two_point_masses_is_how_far_they_are_apart(x):
    a, b = x[:1], x[1:2]
    same(energy_distance(a, b, estimate="biased"), math.dist(a[0], b[0]))
    same(energy_distance(a.expand(5, -1), b.expand(3, -1)), math.dist(a[0], b[0]))


def test_the_energy_distance_on_the_line_is_the_integral_of_the_squared_difference_of_distribution_functions(normal):
    x, y = normal(7, seed=6), normal(5, seed=7) + 0.5
    edges = torch.cat([x, y]).sort().values
    middles = (edges[1:] + edges[:-1]) / 2
    f, g = ((z[:, None] <= middles).double().mean(dim=0) for z in (x, y))
    wanted = ((f - g).square() * edges.diff()).sum()
    same(energy_distance(x[:, None], y[:, None], estimate="biased"), wanted)


def _gaussian_energy_distance(mean: float, s: float, r: float) -> float:
    """Of N(0, s^2) and N(mean, r^2): E|N(u, v^2)| = v sqrt(2/pi) exp(-u^2 / 2v^2) + u erf(u / v sqrt 2)."""

    def absolute(u: float, v: float) -> float:
        return v * math.sqrt(2 / math.pi) * math.exp(-(u**2) / (2 * v**2)) + u * math.erf(u / (v * math.sqrt(2)))

    return absolute(mean, math.hypot(s, r)) - (absolute(0, s * 2**0.5) + absolute(0, r * 2**0.5)) / 2


@pytest.mark.parametrize(("mean", "s", "r"), [(0.0, 1.0, 2.0), (1.5, 1.0, 1.0), (-0.7, 0.3, 1.1)])
def test_the_energy_distance_of_gaussian_quantiles_is_that_of_the_gaussians(mean, s, r):
    wanted = _gaussian_energy_distance(mean, s, r)
    quadrature, _ = integrate.quad(
        lambda u: (stats.norm.cdf(u, 0, s) - stats.norm.cdf(u, mean, r)) ** 2, -20, 20, points=[0, mean]
    )
    assert quadrature == pytest.approx(wanted, abs=1e-8)
    quantiles = torch.tensor(stats.norm.ppf((np.arange(1000) + 0.5) / 1000))[:, None]
    same(energy_distance(s * quantiles, mean + r * quantiles, estimate="biased"), wanted, atol=2e-3)


def test_the_energy_distance_follows_rotations_shifts_and_units(x, y):
    rotation = torch.linalg.qr(x[:3].T @ x[:3]).Q
    value = energy_distance(x, y)
    same(energy_distance(x @ rotation + 3, y @ rotation + 3), value)
    same(energy_distance(2.5 * x, 2.5 * y), 2.5 * value)


# rounding and gradients


def test_distances_far_from_the_origin_keep_their_digits_in_float32():
    steps = torch.tensor([0.0, 0.25, 0.75, 2.0])[:, None]
    cells = torch.cat([steps, torch.zeros(4, 2)], dim=1) + 4096
    assert torch.equal(distance(cells, cells), (steps - steps.T).abs())


def test_gradients_far_from_the_origin_keep_their_digits_in_float32(normal):
    # a grid of 1/64 is exact in float32 beside 2^14, so that only rounding in the formulas is seen
    near = (normal(5, 3, seed=8) * 64).round() / 64
    grads = []
    for origin in (0.0, 2.0**14):
        x = (near + origin).float().requires_grad_()
        mmd_squared(x, (near.flip(1) + origin).float(), EnergyKernel()).backward()
        grads.append(x.grad)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-6)


def _gradcheck(kernel: Kernel, estimate: str, x: Tensor, y: Tensor, mask: Tensor | None) -> bool:
    def value(x: Tensor, y: Tensor) -> Tensor:
        return mmd_squared(x, y, kernel, x_mask=mask, y_mask=mask, estimate=estimate)

    return torch.autograd.gradcheck(value, (x.requires_grad_(), y.requires_grad_()))


@every_kernel
@every_estimate
@pytest.mark.parametrize("lengths", [None, (4, 3)])
def test_the_gradient_is_the_slope_where_no_cells_coincide(kernel, estimate, lengths, normal, make_mask):
    mask = None if lengths is None else make_mask(lengths, 4)
    assert _gradcheck(kernel, estimate, normal(2, 4, 3, seed=9), normal(2, 4, 3, seed=10), mask)


@every_kernel
def test_the_gradient_is_zero_between_equal_populations_and_finite_where_cells_coincide_in_float32(kernel, normal):
    x = normal(5, 3, seed=11, dtype=torch.float32)
    x = torch.cat([x, x[:2], torch.zeros(2, 3)]).requires_grad_()
    mmd_squared(x, x.detach().clone(), kernel).backward()
    torch.testing.assert_close(x.grad, torch.zeros_like(x), rtol=0, atol=1e-6)
    y = x.detach().clone()
    y[0] += 1
    x.grad = None
    mmd_squared(x, y, kernel, estimate="unbiased").backward()
    assert x.grad.isfinite().all()
    assert float(x.grad.norm()) > 1e-3


@every_kernel
def test_masked_cells_have_no_influence_on_the_distance_or_its_gradient_and_get_none(kernel, normal, make_mask):
    mask = make_mask((4, 2), 6)
    results = []
    for padding in (0.0, 1e4):
        x, y = (
            normal(2, 6, 3, seed=seed, dtype=torch.float32).masked_fill(~mask.unsqueeze(-1), padding * sign)
            for seed, sign in ((12, 1), (13, -3))
        )
        x.requires_grad_()
        value = mmd_squared(x, y, kernel, x_mask=mask, y_mask=mask)
        value.sum().backward()
        results.append((value.detach(), x.grad))
    (value, grad), (padded_value, padded_grad) = results
    assert torch.equal(value, padded_value)
    assert torch.equal(grad, padded_grad)
    assert (grad[~mask] == 0).all()
    assert (grad[mask] != 0).all()
