r"""What noise in cell space does to the embedding in H: the linearised covariance operators, and the energy kernel.

For a differentiable kernel, x_j + h eps_j moves mu by h Delta + O(h^2) with ``Delta = (1/m) sum_j T_j eps_j`` and
``T_j v = sum_r v_r d_r k(x_j, .)``. By the reproducing property ``(T_j^* f)_r = d_r f(x_j)``, so that between k(z, .)
and k(z', .)

    cell noise         C(z, z') = (1/m^2) sum_j <d k(x_j, z), d k(x_j, z')>
    population noise   C(z, z') = (1 - rho)/m^2 sum_j <d k(x_j, z), d k(x_j, z')> + rho <T^* k_z, T^* k_z'>

with ``T = (1/m) sum_j T_j``. For the Gaussian kernel of bandwidth b in G dimensions ``tr T_j T_j^* = sum_r d_r d'_r
k(x, x) = G / b^2`` and ``tr T T^*`` is the mean over all pairs of ``k(x, y) (G / b^2 - |x - y|^2 / b^4)``.

The energy kernel is not differentiable where its arguments meet. Its noise has an exact variance instead: the squared
norm between the embeddings of two cells is their distance, so that cell noise has ``E |mu_h - E mu_h|^2 = (1/m) h
E|eps - eps'| / 2 = (h/m) Gamma((G+1)/2) / Gamma(G/2)``.
"""

import itertools
import math

import pytest
import torch
from torch import Tensor

from perturbdiff.core.kernel import EnergyKernel, GaussianKernel, mean_embedding, mmd_squared
from perturbdiff.core.process import Process, linear_betas
from perturbdiff.core.randomness import PopulationNoise, stream

N_GENES, BANDWIDTH = 3, 1.5
KERNEL = GaussianKernel((BANDWIDTH,))
LADDER = (0.4, 0.2, 0.1, 0.05)


def gradients(x: Tensor, z: Tensor) -> Tensor:
    """d_r k(x_j, z_i): cells, probes, genes."""
    return (z - x[:, None]) / BANDWIDTH**2 * KERNEL(x, z)[..., None]


def cell_operator(x: Tensor, z: Tensor) -> Tensor:
    """(1/m^2) sum_j T_j T_j^* between the probes."""
    g = gradients(x, z)
    return torch.einsum("jar,jbr->ab", g, g) / len(x) ** 2


def shared_operator(x: Tensor, z: Tensor) -> Tensor:
    """T T^* between the probes."""
    g = gradients(x, z).mean(dim=0)
    return g @ g.T


def operator(x: Tensor, z: Tensor, rho: float) -> Tensor:
    return (1 - rho) * cell_operator(x, z) + rho * shared_operator(x, z)


def trace(x: Tensor, rho: float) -> float:
    squared = (x[:, None] - x).square().sum(dim=-1)
    of_shared = (KERNEL(x, x) * (N_GENES / BANDWIDTH**2 - squared / BANDWIDTH**4)).mean().item()
    return (1 - rho) * N_GENES / (len(x) * BANDWIDTH**2) + rho * of_shared


def drawn_noise(m: int, draws: int, rho: float, *, seed: int = 0) -> Tensor:
    """As training and sampling draw it: draws, cells, genes."""
    process = Process(linear_betas(10), rho=rho)
    streams = [stream(seed, i) for i in range(draws)]
    return PopulationNoise(process, streams)(torch.zeros(draws, m, N_GENES, dtype=torch.float64))


def antithetic(eps: Tensor) -> Tensor:
    """With every eps its opposite: odd orders in h leave every sample mean exactly, not only in expectation."""
    return torch.cat([eps, -eps])


def slope(values: list[float]) -> float:
    """The last step's power of h on a ladder that halves."""
    return math.log2(values[-2] / values[-1])


@pytest.fixture(scope="module")
def x(normal) -> Tensor:
    return normal(6, N_GENES, seed=0)


@pytest.fixture(scope="module")
def probes(normal) -> Tensor:
    return 1.5 * normal(5, N_GENES, seed=1)


every_rho = pytest.mark.parametrize("rho", [0.0, 0.3, 1.0])


# the operator of the Gaussian kernel


def test_the_derivative_kernels_are_the_derivatives(x, probes):
    jacobian = torch.autograd.functional.jacobian(lambda cells: KERNEL(cells, probes), x)
    own = jacobian.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    torch.testing.assert_close(gradients(x, probes), own)
    twice = torch.autograd.functional.jacobian(
        lambda z: torch.autograd.functional.jacobian(lambda a: _smooth(a, z), x[0], create_graph=True), x[1]
    )
    squared = float((x[0] - x[1]).square().sum())
    wanted = float(_smooth(x[0], x[1])) * (N_GENES / BANDWIDTH**2 - squared / BANDWIDTH**4)
    assert float(twice.trace()) == pytest.approx(wanted, rel=1e-10)


def _smooth(a: Tensor, z: Tensor) -> Tensor:
    """The Gaussian kernel of two points, twice differentiable by autograd."""
    return torch.exp(-(a - z).square().sum() / (2 * BANDWIDTH**2))


@every_rho
def test_one_draw_moves_the_embedding_by_its_linear_part_and_a_second_order(rho, x, probes):
    eps = drawn_noise(len(x), 50, rho)
    linear = torch.einsum("jar,njr->na", gradients(x, probes), eps) / len(x)
    at_rest = mean_embedding(x, KERNEL)(probes)
    errors = []
    for h in LADDER:
        moved = mean_embedding(x + h * eps, KERNEL)(probes.expand(50, -1, -1))
        errors.append(float((moved - at_rest - h * linear).abs().max()))
    assert slope(errors) == pytest.approx(2, abs=0.15)


@every_rho
def test_the_embeddings_covariance_is_the_operator_up_to_second_order(rho, x, probes):
    draws = 4000
    eps = antithetic(drawn_noise(len(x), draws, rho))
    linear = torch.einsum("jar,njr->na", gradients(x, probes), eps) / len(x)
    in_sample = linear.T.cov()
    wanted = operator(x, probes, rho)
    # Wishart: Var S_ab = (C_aa C_bb + C_ab^2) / n
    deviation = ((wanted.diag()[:, None] * wanted.diag() + wanted.square()) / draws).sqrt()
    # the same draws at every h, so that what is left of the sampling error is not in the rate
    errors = []
    for h in LADDER:
        moved = mean_embedding(x + h * eps, KERNEL)(probes.expand(len(eps), -1, -1))
        covariance = moved.T.cov() / h**2
        errors.append(float((covariance - in_sample).norm() / wanted.norm()))
    assert slope(errors) == pytest.approx(2, abs=0.05)
    assert errors[-1] < 0.01
    assert ((covariance - wanted).abs() < 5 * deviation + 0.01 * wanted.norm()).all()


def test_the_two_operators_are_told_apart_by_the_samples(x, probes):
    # else the agreement above would say nothing
    cell, shared = cell_operator(x, probes), shared_operator(x, probes)
    assert float((cell - shared).norm() / cell.norm()) > 0.5


# its trace


@every_rho
@pytest.mark.parametrize("m", [4, 16])
def test_the_mean_squared_norm_of_the_move_is_the_trace_up_to_second_order(rho, m, normal):
    x = normal(m, N_GENES, seed=2)
    draws = 3000
    eps = antithetic(drawn_noise(m, draws, rho))
    at_rest = x.expand(len(eps), -1, -1)
    ratios = []
    for h in (0.2, 0.1, 0.05):
        norms = mmd_squared(x + h * eps, at_rest, KERNEL) / h**2
        ratios.append(float(norms.mean()))
    # on one sample the mean is a polynomial in h^2: two rungs give its limit, and a third its order
    limits = [(4 * fine - coarse) / 3 for coarse, fine in itertools.pairwise(ratios)]
    assert math.log2((ratios[0] - limits[1]) / (ratios[1] - limits[1])) == pytest.approx(2, abs=0.1)
    error = float(norms.std()) / math.sqrt(draws)
    assert abs(limits[1] - trace(x, rho)) < 4 * error
    assert error < 0.04 * trace(x, rho)


def _trace_of_normal_populations(m: int, rho: float) -> float:
    """The mean trace for populations of m standard normal cells: two of them are N(0, 2 I) apart."""
    ratio = 1 / (1 + 2 / BANDWIDTH**2)
    of_two_cells = ratio ** (N_GENES / 2) * (1 - 2 / BANDWIDTH**2 * ratio)
    of_shared = 1 / m + (1 - 1 / m) * of_two_cells
    return N_GENES / BANDWIDTH**2 * ((1 - rho) / m + rho * of_shared)


@pytest.mark.parametrize(("m", "draws"), [(4, 3000), (32, 600), (256, 120)])
def test_the_trace_of_cell_noise_falls_as_one_over_m_and_that_of_population_noise_stays(m, draws, normal):
    x, h, measured = normal(draws, m, N_GENES, seed=3), 0.02, {}
    for rho in (0.0, 0.2):
        norms = mmd_squared(x + h * drawn_noise(m, draws, rho), x, KERNEL) / h**2
        measured[rho] = float(norms.mean())
        error = float(norms.std()) / math.sqrt(draws)
        assert abs(measured[rho] - _trace_of_normal_populations(m, rho)) < 4 * error
        assert error < 0.1 * measured[rho]
    assert measured[0.0] == pytest.approx(N_GENES / (BANDWIDTH**2 * m), rel=0.1)
    assert measured[0.2] > 0.8 * _trace_of_normal_populations(10**6, 0.2)


def test_when_all_cells_coincide_shared_noise_has_the_trace_of_a_single_cell(x):
    together = x[:1].expand(9, -1)
    assert trace(together, 1.0) == pytest.approx(N_GENES / BANDWIDTH**2, rel=1e-12)
    assert trace(together, 0.0) == pytest.approx(N_GENES / BANDWIDTH**2 / 9, rel=1e-12)


# the energy kernel


def _energy_variance(x: Tensor, h: float, rho: float, draws: int) -> tuple[float, float]:
    """E |mu_h - E mu_h|^2, half the mean squared norm between independent copies; and its standard error."""
    one, other = (x + h * drawn_noise(len(x), draws, rho, seed=seed) for seed in (1, 2))
    norms = mmd_squared(one, other, EnergyKernel()) / 2
    return float(norms.mean()), float(norms.std()) / math.sqrt(draws)


@pytest.mark.parametrize("m", [4, 16, 64])
@pytest.mark.parametrize("h", [0.05, 0.5])
def test_cell_noise_gives_the_energy_embedding_its_closed_variance_of_order_h_over_m(m, h, normal):
    measured, error = _energy_variance(normal(m, N_GENES, seed=4), h, 0.0, 1000)
    wanted = h / m * math.gamma((N_GENES + 1) / 2) / math.gamma(N_GENES / 2)
    assert abs(measured - wanted) < 4 * error
    assert error < 0.04 * wanted


def test_population_noise_gives_the_energy_embedding_a_variance_that_stays_as_the_population_grows(normal):
    x = normal(128, N_GENES, seed=5)
    (small, _), (large, _) = (_energy_variance(x[:m], 1.0, 0.3, 500) for m in (16, 128))
    (cell_small, _), (cell_large, _) = (_energy_variance(x[:m], 1.0, 0.0, 500) for m in (16, 128))
    assert cell_large / cell_small == pytest.approx(1 / 8, rel=0.05)
    assert large / small > 0.5
    assert large > 5 * cell_large


@pytest.mark.parametrize(("kernel", "power"), [(EnergyKernel(), 1), (KERNEL, 2)], ids=["energy", "gaussian"])
def test_the_squared_move_is_of_order_h_for_the_energy_kernel_and_h_squared_for_a_smooth_one(kernel, power, x):
    eps = drawn_noise(len(x), 400, 0.0)
    moves = [float(mmd_squared(x + h * eps, x.expand(400, -1, -1), kernel).mean()) for h in (2e-3, 1e-3, 5e-4)]
    assert slope(moves) == pytest.approx(power, abs=0.01)


def test_the_energy_embeddings_squared_move_begins_as_h_over_m_times_the_length_of_the_noise(x):
    eps, h = drawn_noise(len(x), 400, 0.0), 1e-4
    moves = mmd_squared(x + h * eps, x.expand(400, -1, -1), EnergyKernel())
    wanted = h / len(x) * eps.norm(dim=-1).mean(dim=-1)
    torch.testing.assert_close(moves, wanted, rtol=5e-3, atol=0)
