"""The chain's tables and its algebra, against composed one-step chains in float64."""

import math

import pytest
import torch
from torch import Tensor

from perturbdiff.core.process import Process, linear_betas, power_cosine_betas

SCHEDULES = {
    "linear": linear_betas(50),
    "cosine": power_cosine_betas(50),
    "power cosine": power_cosine_betas(50, gamma=0.3),
    "uneven": torch.tensor([0.2, 0.01, 0.1, 0.4, 0.05] * 10, dtype=torch.float64),
}


@pytest.fixture(scope="module", params=SCHEDULES.values(), ids=SCHEDULES.keys())
def process(request: pytest.FixtureRequest) -> Process:
    return Process(request.param)


def at(t: int) -> Tensor:
    return torch.tensor([t])


def cell(value: float) -> Tensor:
    return torch.full((1, 1, 1), value, dtype=torch.float64)


def posterior_weights(process: Process, t: int, s: int | None) -> tuple[float, float, float]:
    """(of x_0, of x_t, variance), read off the affine posterior."""
    to = None if s is None else at(s)
    of_x_0, variance = process.posterior(cell(1.0), cell(0.0), at(t), to)
    of_x_t, _ = process.posterior(cell(0.0), cell(1.0), at(t), to)
    return of_x_0.item(), of_x_t.item(), variance.item()


def chain(process: Process, first: int, last: int) -> tuple[float, float]:
    """(factor, variance) of x_last given x_{first - 1}, by the one-step chain alone."""
    factor, variance = 1.0, 0.0
    for beta in process.betas[first : last + 1].tolist():
        factor, variance = math.sqrt(1 - beta) * factor, (1 - beta) * variance + beta
    return factor, variance


def test_the_linear_schedule_rises_evenly_and_keeps_what_the_paper_keeps():
    betas = linear_betas(1000)
    wanted = [1e-4 + i * (0.02 - 1e-4) / 999 for i in range(1000)]
    torch.testing.assert_close(betas, torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=0)
    alpha_bar = math.exp(math.fsum(math.log1p(-beta) for beta in wanted[:100]))
    assert Process(betas).alpha_bar(99).item() == pytest.approx(alpha_bar, rel=1e-12)
    assert alpha_bar == pytest.approx(0.90, abs=0.005)
    assert Process(betas).alpha_bar(999).item() < 5e-5


@pytest.mark.parametrize("gamma", [1.0, 0.3, 2.0])
def test_the_power_cosine_schedule_is_its_formula(gamma):
    steps, process = 200, Process(power_cosine_betas(200, gamma=gamma))
    f = [math.cos(math.pi / 2 * (t / steps + 0.008) / 1.008) ** 2 for t in range(steps)]
    wanted = torch.tensor([(f[t + 1] / f[0]) ** gamma for t in range(steps - 1)], dtype=torch.float64)
    torch.testing.assert_close(process.alpha_bar(torch.arange(steps - 1)), wanted, rtol=1e-10, atol=0)
    # f(T) = 0: only the last step is capped
    assert process.betas[-1] == 0.999
    assert (process.betas[:-1] < 0.999).all()


def test_a_power_of_the_cosine_schedule_is_that_power_of_its_alpha_bar():
    t = torch.arange(99)
    cosine, power = (Process(power_cosine_betas(100, gamma=gamma)).alpha_bar(t) for gamma in (1.0, 0.3))
    torch.testing.assert_close(power, cosine**0.3, rtol=1e-10, atol=0)
    assert (power > cosine).all()


def test_alpha_bar_is_one_at_the_data_and_falls(process):
    t = torch.arange(-1, process.n_times)
    assert process.n_times == 50
    assert process.alpha_bar(-1) == 1.0
    assert (process.alpha_bar(t).diff() < 0).all()
    assert process.alpha_bar(t).dtype == torch.float64


def test_the_marginal_is_the_composition_of_one_step_chains(process):
    for t in range(process.n_times):
        factor, variance = chain(process, 0, t)
        assert process.corrupt(cell(1.0), at(t), cell(0.0)).item() == pytest.approx(factor, rel=1e-12)
        assert process.corrupt(cell(0.0), at(t), cell(1.0)).item() ** 2 == pytest.approx(variance, rel=1e-12)


@pytest.mark.parametrize("stride", [1, 2, 7, 40])
def test_the_posterior_is_the_gaussian_conditional_of_the_chain(process, stride):
    for t in range(stride, process.n_times):
        s = t - stride
        (to_s, var_s), (onward, var_onward) = chain(process, 0, s), chain(process, s + 1, t)
        # (x_s, x_t) given x_0 is Gaussian: condition on x_t
        gain = onward * var_s / (onward**2 * var_s + var_onward)
        wanted = (to_s * (1 - gain * onward), gain, var_s * (1 - gain * onward))
        assert posterior_weights(process, t, s) == pytest.approx(wanted, rel=1e-8)


def test_the_posterior_of_one_step_is_the_papers_formula(process):
    for t in range(1, process.n_times):
        beta, now, before = process.betas[t].item(), process.alpha_bar(t).item(), process.alpha_bar(t - 1).item()
        wanted = (
            math.sqrt(before) * beta / (1 - now),
            math.sqrt(1 - beta) * (1 - before) / (1 - now),
            beta * (1 - before) / (1 - now),
        )
        assert posterior_weights(process, t, None) == pytest.approx(wanted, rel=1e-9)


def test_a_respaced_posterior_is_the_composition_over_the_skipped_steps(process):
    for t, s in [(49, 0), (49, 30), (20, 17), (5, 3)]:
        of_x_0, of_x_t, variance = 0.0, 1.0, 0.0
        for u in range(t, s, -1):
            step_x_0, step_x_t, step_variance = posterior_weights(process, u, u - 1)
            of_x_0, of_x_t = step_x_0 + step_x_t * of_x_0, step_x_t * of_x_t
            variance = step_variance + step_x_t**2 * variance
        assert posterior_weights(process, t, s) == pytest.approx((of_x_0, of_x_t, variance), rel=1e-8)


def test_the_posterior_at_the_data_is_x_0_without_variance(process):
    for t in (0, 3, 49):
        assert posterior_weights(process, t, -1) == pytest.approx((1.0, 0.0, 0.0), abs=1e-12)
    assert posterior_weights(process, 0, None) == (1.0, 0.0, 0.0)


def test_x_0_and_eps_are_inverses_of_each_other_at_every_time(process, normal):
    t = torch.tensor([0, 1, 25, 49])
    x_0, eps = normal(4, 6, 3, seed=0), normal(4, 6, 3, seed=1)
    x_t = process.corrupt(x_0, t, eps)
    torch.testing.assert_close(process.eps_from_x_0(x_t, t, x_0), eps, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(process.x_0_from_eps(x_t, t, eps), x_0, rtol=1e-8, atol=1e-8)
    guess = normal(4, 6, 3, seed=2)
    back = process.x_0_from_eps(x_t, t, process.eps_from_x_0(x_t, t, guess))
    torch.testing.assert_close(back, guess, rtol=1e-8, atol=1e-8)


def test_each_population_has_its_own_time(process, normal):
    t, s = torch.tensor([3, 40, 12]), torch.tensor([1, 39, -1])
    x_0, x_t = normal(3, 4, 2, seed=0), normal(3, 4, 2, seed=1)
    mean, variance = process.posterior(x_0, x_t, t, s)
    for i in range(3):
        alone, its_variance = process.posterior(x_0[i : i + 1], x_t[i : i + 1], t[i : i + 1], s[i : i + 1])
        assert torch.equal(mean[i], alone[0])
        assert torch.equal(variance[i], its_variance[0])
        corrupted = process.corrupt(x_0, t, x_t)[i]
        assert torch.equal(corrupted, process.corrupt(x_0[i : i + 1], t[i : i + 1], x_t[i : i + 1])[0])


def test_tables_are_float64_and_results_have_the_type_of_their_cells(process, normal):
    x_0 = normal(1, 4, 2, seed=0, dtype=torch.float32)
    assert process.corrupt(x_0, at(3), x_0).dtype == torch.float32
    assert process.posterior(x_0, x_0, at(3))[0].dtype == torch.float32
    assert Process(torch.full((3,), 0.1)).alpha_bar(2).dtype == torch.float64


@pytest.mark.parametrize("rho", [0.0, 0.25, 1.0])
def test_shared_and_own_noise_are_mixed_by_their_shares_of_variance(rho, normal):
    own, shared = normal(2, 5, 3, seed=0), normal(2, 1, 3, seed=1)
    mixed = Process(linear_betas(3), rho=rho).noise(own, shared)
    torch.testing.assert_close(mixed, math.sqrt(1 - rho) * own + math.sqrt(rho) * shared)


@pytest.mark.parametrize("betas", [[0.0, 0.1], [0.1, 1.0], [-0.1]])
def test_betas_outside_of_0_and_1_are_refused(betas):
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        Process(torch.tensor(betas))


@pytest.mark.parametrize("rho", [-0.1, 1.1, float("nan")])
def test_a_share_outside_of_0_and_1_is_refused(rho):
    with pytest.raises(ValueError, match=r"rho=.* must lie between 0 and 1"):
        Process(linear_betas(3), rho=rho)
