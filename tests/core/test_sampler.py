"""The reverse chain. For Gaussian populations the best denoiser is known, and so is every map and marginal."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from perturbdiff.core.denoiser import DenoiserContract
from perturbdiff.core.observation import Estimate
from perturbdiff.core.population import Noised
from perturbdiff.core.process import Process, linear_betas, power_cosine_betas
from perturbdiff.core.randomness import PopulationNoise, stream
from perturbdiff.core.sampler import DDIM, DDPM, Sampler, State, Step, respaced

T = 1025  # so that 2^k + 1 steps are evenly spaced
PROCESS = Process(linear_betas(T, 1e-4, 0.01))
MEAN = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
SPREAD = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)


class GaussianDenoiser:
    """E[x_0 | x_t] for cells x_0 ~ N(mean, diag(spread^2)), not clamped at 0; it remembers what it was asked."""

    def __init__(self, process: Process, mean: Tensor = MEAN, spread: Tensor = SPREAD) -> None:
        self.process, self.mean, self.spread = process, mean, spread
        self.asked: list[Noised] = []

    def __call__(self, noised: Noised) -> Tensor:
        self.asked.append(noised)
        alpha_bar = self.process.alpha_bar(noised.t)[:, None, None]
        gain = alpha_bar.sqrt() * self.spread**2 / (alpha_bar * self.spread**2 + 1 - alpha_bar)
        return self.mean + gain * (noised.x_t - alpha_bar.sqrt() * self.mean)

    def unclamped(self, noised: Noised) -> Tensor:
        return self(noised)

    def made_of(self, unclamped: Tensor, noised: Noised) -> Estimate:
        return Estimate(unclamped)

    def estimate(self, noised: Noised) -> Estimate:
        return Estimate(self(noised))


class Perfect:
    """Knows x_0."""

    def __init__(self, x_0: Tensor) -> None:
        self.x_0 = x_0

    def __call__(self, noised: Noised) -> Tensor:
        return self.x_0

    def unclamped(self, noised: Noised) -> Tensor:
        return self.x_0

    def made_of(self, unclamped: Tensor, noised: Noised) -> Estimate:
        return Estimate(unclamped)

    def estimate(self, noised: Noised) -> Estimate:
        return Estimate(self(noised))


class Impulses:
    """Noise that is 1 in one cell more at each call: in a chain that is affine in its noise, the response to it."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, like: Tensor) -> Tensor:
        self.calls += 1
        noise = torch.zeros_like(like)
        if self.calls + 1 < like.shape[1]:
            noise[:, self.calls + 1] = 1.0
        return noise


def no_noise(like: Tensor) -> Tensor:
    message = "a deterministic step asked for noise"
    raise AssertionError(message)


def started(x_t: Tensor, make_condition: Any) -> Noised:
    t = torch.full((len(x_t),), -77)  # never read
    return Noised(x_t, t, torch.ones_like(x_t), make_condition(len(x_t)))


def sampled(denoiser: Any, start: Noised, times: list[int], step: Step, noise: Any = no_noise) -> list[State]:
    return list(Sampler(PROCESS, times, step).reverse(denoiser, start, noise))


def std_at(t: int) -> Tensor:
    """Of x_t, when the data are Gaussian."""
    alpha_bar = PROCESS.alpha_bar(t)
    return (alpha_bar * SPREAD**2 + 1 - alpha_bar).sqrt()


# times


def test_respaced_times_fall_from_the_last_to_0_without_repeats():
    for n_times in range(2, 40):
        for steps in range(2, n_times + 1):
            times = respaced(n_times, steps)
            assert len(times) == steps
            assert (times[0], times[-1]) == (n_times - 1, 0)
            gaps = [t - s for t, s in itertools.pairwise(times)]
            assert 1 <= min(gaps) <= max(gaps) <= min(gaps) + 1
    assert respaced(1000, 1000) == list(range(999, -1, -1))
    assert respaced(1000, 1) == [999]
    assert respaced(1025, 5) == [1024, 768, 512, 256, 0]


def test_truncated_times_stay_below_the_truncation():
    assert respaced(1000, 100, truncate=100) == list(range(99, -1, -1))
    assert respaced(1000, 3, truncate=101) == [100, 50, 0]
    assert respaced(1000, 3, truncate=1000) == respaced(1000, 3)


@pytest.mark.parametrize(("steps", "truncate"), [(0, None), (11, None), (6, 5), (2, 0), (2, 11)])
def test_more_steps_than_times_and_truncations_outside_of_the_chain_are_refused(steps, truncate):
    with pytest.raises(ValueError, match="must lie between 1 and the"):
        respaced(10, steps, truncate=truncate)


# single steps


def test_ddim_with_the_true_x_0_stays_on_the_line_of_its_noise(normal):
    x_0, eps = normal(3, 4, 2, seed=0), normal(3, 4, 2, seed=1)
    t, s = torch.tensor([1024, 400, 7]), torch.tensor([900, -1, 0])
    x_s = DDIM()(PROCESS, PROCESS.corrupt(x_0, t, eps), x_0, t, s, no_noise)
    torch.testing.assert_close(x_s[[0, 2]], PROCESS.corrupt(x_0, s, eps)[[0, 2]], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(x_s[1], x_0[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("step", [DDIM(0.0), DDIM(0.4), DDIM(1.0), DDPM("small")], ids=["0", "0.4", "1", "small"])
def test_steps_with_the_true_x_0_keep_the_chains_marginal(step, normal):
    # var x_s = (response to x_t)^2 (1 - abar_t) + (response to z)^2 = 1 - abar_s, the mean sqrt(abar_s) x_0
    for t, s in [(1024, 1023), (1024, 300), (500, 0), (3, 1)]:
        at, to = torch.tensor([t]), torch.tensor([s])
        zero, one = torch.zeros(1, 1, 1, dtype=torch.float64), torch.ones(1, 1, 1, dtype=torch.float64)
        of_x_t = step(PROCESS, one, zero, at, to, torch.zeros_like).item()
        of_x_0 = step(PROCESS, zero, one, at, to, torch.zeros_like).item()
        of_z = step(PROCESS, zero, zero, at, to, torch.ones_like).item()
        alpha_bar_t, alpha_bar_s = PROCESS.alpha_bar(t).item(), PROCESS.alpha_bar(s).item()
        assert of_x_t**2 * (1 - alpha_bar_t) + of_z**2 == pytest.approx(1 - alpha_bar_s, rel=1e-9)
        assert of_x_t * math.sqrt(alpha_bar_t) + of_x_0 == pytest.approx(math.sqrt(alpha_bar_s), rel=1e-9)


def test_ddim_with_eta_1_is_ddpm_with_the_small_variance(normal):
    x_t, x_0, z = (normal(4, 5, 2, seed=seed) for seed in (0, 1, 2))
    t, s = torch.tensor([1024, 1024, 30, 0]), torch.tensor([1023, 100, 29, -1])
    implicit = DDIM(eta=1.0)(PROCESS, x_t, x_0, t, s, lambda like: z)
    ancestral = DDPM("small")(PROCESS, x_t, x_0, t, s, lambda like: z)
    torch.testing.assert_close(implicit, ancestral, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.25, 0.5, 1.0])
def test_eta_is_the_share_of_the_posteriors_standard_deviation_that_is_drawn_afresh(eta, normal):
    x_t, x_0, z = (normal(3, 5, 2, seed=seed) for seed in (0, 1, 2))
    t, s = torch.tensor([1024, 600, 30]), torch.tensor([100, 599, 0])
    with_noise, without_noise = (DDIM(eta)(PROCESS, x_t, x_0, t, s, lambda like, f=f: f * z) for f in (1, 0))
    _, variance = PROCESS.posterior(x_0, x_t, t, s)
    wanted = eta * variance.sqrt()[:, None, None] * z
    torch.testing.assert_close(with_noise - without_noise, wanted, rtol=1e-9, atol=1e-9)


def test_the_large_variance_is_the_forward_chains_and_none_at_the_data(normal):
    x_t, x_0, z = (normal(3, 5, 2, seed=seed) for seed in (0, 1, 2))
    t, s = torch.tensor([1024, 30, 12]), torch.tensor([100, 29, -1])
    mean, _ = PROCESS.posterior(x_0, x_t, t, s)
    added = (DDPM("large")(PROCESS, x_t, x_0, t, s, lambda like: z) - mean) / z
    variance = [1 - float(PROCESS.alpha_bar(1024) / PROCESS.alpha_bar(100)), PROCESS.betas[30].item(), 0.0]
    wanted = torch.tensor(variance, dtype=torch.float64).sqrt()[:, None, None].expand_as(added)
    torch.testing.assert_close(added, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("step", [DDIM(0.0), DDIM(1.0), DDPM("small"), DDPM("large")])
def test_the_step_to_the_data_gives_the_estimate_itself(step, normal):
    x_t, x_0 = normal(2, 4, 3, seed=0), normal(2, 4, 3, seed=1)
    x_s = step(PROCESS, x_t, x_0, torch.tensor([0, 500]), torch.tensor([-1, -1]), torch.ones_like)
    torch.testing.assert_close(x_s, x_0, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_an_eta_outside_of_0_and_1_is_refused(eta):
    with pytest.raises(ValueError, match="must lie between 0"):
        DDIM(eta)


# the whole chain, against what Gaussian populations must become


def test_ddim_follows_the_probability_flow_at_first_order(normal, make_condition):
    # the flow keeps each cell's place among its population: (x_t - sqrt(abar_t) mean) / std_t is constant
    start = started(normal(1, 20, 3, seed=0), make_condition)
    place = (start.x_t - PROCESS.alpha_bar(T - 1).sqrt() * MEAN) / std_at(T - 1)
    wanted = PROCESS.alpha_bar(0).sqrt() * MEAN + std_at(0) * place
    denoiser = GaussianDenoiser(PROCESS)
    assert isinstance(denoiser, DenoiserContract)
    errors = []
    for steps in (65, 129, 257, 513):
        before_the_end = sampled(denoiser, start, respaced(T, steps), DDIM())[-2]
        assert before_the_end.t == 0
        errors.append(float((before_the_end.x_t - wanted).abs().max()))
    rates = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert rates == pytest.approx([1, 1, 1], abs=0.15)
    assert errors[-1] < 0.02


def _moments(step: Step, denoiser: GaussianDenoiser, steps: int, make_condition: Any) -> tuple[Tensor, Tensor]:
    """Mean and variance at t = 0 of a chain begun at the right marginal, exactly: by its responses to each noise."""
    n_genes = len(denoiser.mean)
    x_t = torch.zeros(1, steps + 1, n_genes, dtype=torch.float64)
    alpha_bar = PROCESS.alpha_bar(T - 1)
    x_t[:] = alpha_bar.sqrt() * denoiser.mean
    x_t[:, 1] += (alpha_bar * denoiser.spread**2 + 1 - alpha_bar).sqrt()
    state = sampled(denoiser, started(x_t, make_condition), respaced(T, steps), step, Impulses())[-2]
    responses = state.x_t[0, 1:] - state.x_t[0, :1]
    return state.x_t[0, 0], responses.square().sum(dim=0)


@pytest.mark.parametrize("step", [DDPM("small"), DDPM("large"), DDIM(1.0), DDIM(0.5)])
def test_stochastic_chains_give_the_datas_marginal_at_first_order(step, make_condition):
    denoiser, errors = GaussianDenoiser(PROCESS), []
    for steps in (129, 257, 513):
        mean, variance = _moments(step, denoiser, steps, make_condition)
        torch.testing.assert_close(mean, PROCESS.alpha_bar(0).sqrt() * MEAN, rtol=1e-9, atol=1e-9)
        errors.append(float((variance / std_at(0) ** 2 - 1).abs().max()))
    rates = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert rates == pytest.approx([1, 1], abs=0.25)
    assert errors[-1] < 0.1


@pytest.mark.parametrize("steps", [3, 17, 129])
@pytest.mark.parametrize(("variance", "spread"), [("large", 1.0), ("small", 0.0)])
def test_the_large_variance_is_exact_for_standard_data_and_the_small_one_for_a_point(
    variance, spread, steps, make_condition
):
    # the two ends between which the true reverse variance lies (Ho et al. 2020, section 3.2)
    mean = torch.tensor([1.5], dtype=torch.float64)
    denoiser = GaussianDenoiser(PROCESS, 0 * mean if spread else mean, torch.full_like(mean, spread))
    _, exact = _moments(DDPM(variance), denoiser, steps, make_condition)
    alpha_bar = PROCESS.alpha_bar(0).item()
    assert exact.item() == pytest.approx(alpha_bar * spread**2 + 1 - alpha_bar, rel=1e-9)
    other = "small" if variance == "large" else "large"
    _, inexact = _moments(DDPM(other), denoiser, steps, make_condition)
    assert (inexact < exact) if other == "small" else (inexact > exact)


@pytest.mark.parametrize("step", [DDIM(), DDPM("small"), DDPM("large")], ids=["ddim", "small", "large"])
def test_sampled_populations_have_the_datas_marginal_and_share_what_their_noise_shares(step, make_condition):
    # initial and fresh noise alike: for Gaussian data the share of variance in common arrives unchanged
    n_populations, rho = 1500, 0.3
    noise = PopulationNoise(Process(PROCESS.betas, rho=rho), [stream(0, i) for i in range(n_populations)])
    start = started(noise(torch.zeros(n_populations, 2, 3, dtype=torch.float64)), make_condition)
    cells = sampled(GaussianDenoiser(PROCESS), start, respaced(T, 129), step, noise)[-1].x_t
    standard = (cells - MEAN) / SPREAD
    error = 4 / math.sqrt(n_populations)
    # and the discretisation of 129 steps
    assert (standard.mean(dim=(0, 1)).abs() < error + 0.02).all()
    variance = standard.square().mean(dim=(0, 1))
    assert ((variance - 1).abs() < 1.5 * error + 0.1).all()
    assert ((standard[:, 0] * standard[:, 1]).mean(dim=0) / variance - rho).abs().max() < 1.5 * error


# what a chain makes of a population's level


@pytest.mark.parametrize("n_steps", [1, 2, 5, 20])
@pytest.mark.parametrize("way", ["drawn first", "probability flow", "posterior mean"])
def test_a_levels_law_arrives_whole_where_it_is_drawn_first_or_follows_the_flow_exactly(way, n_steps):
    """Of populations whose level is N(0, 0.5^2): the law is known, so what few steps make of it is too."""
    spread, rho, n_cells, n = 0.5, 0.5, 48, 4000
    process, noise = Process(PROCESS.betas, rho=rho), rho + (1 - rho) / n_cells
    generator = torch.Generator().manual_seed(0)
    level = spread * torch.randn(n, 1, 1, generator=generator, dtype=torch.float64)
    x = math.sqrt(noise) * torch.randn(n, 1, 1, generator=generator, dtype=torch.float64)
    times, factor = respaced(T, n_steps), 1.0
    for t, s in zip(times, [*times[1:], -1], strict=True):
        now, then = (float((1 - process.alpha_bar(one)) / process.alpha_bar(one)) for one in (t, s))
        share = math.sqrt(then / now)
        flow = math.sqrt((spread**2 + noise * then) / (spread**2 + noise * now))
        gain = (flow - share) / (1 - share) if way == "probability flow" else spread**2 / (spread**2 + noise * now)
        x_0 = level if way == "drawn first" else gain * x / process.alpha_bar(t).sqrt()
        at, to = (torch.full((n,), one, dtype=torch.long) for one in (t, s))
        x = DDIM()(process, x, x_0, at, to, no_noise)
        factor *= gain + share * (1 - gain)  # what a step makes of x / sqrt(abar) in closed form
    if way == "drawn first":
        assert torch.equal(x, level)
        return
    wanted = factor * math.sqrt(spread**2 + noise * float(1 / process.alpha_bar(times[0]) - 1))
    if way == "probability flow":
        assert wanted == pytest.approx(spread, rel=1e-6)
    else:
        assert wanted < 0.97 * spread
    start = math.sqrt(
        noise / (spread**2 * float(process.alpha_bar(times[0])) + noise * float(1 - process.alpha_bar(times[0])))
    )
    assert float(x.std()) == pytest.approx(wanted * start, rel=0.05)


# what the loop asks and yields


def test_the_loop_asks_once_a_time_and_shows_the_last_estimate(normal, make_condition):
    denoiser, start = GaussianDenoiser(PROCESS), started(normal(2, 4, 3, seed=0), make_condition)
    times = [1000, 400, 0]
    states = sampled(denoiser, start, times, DDIM())
    assert [state.t for state in states] == [400, 0, -1]
    assert [asked.t.tolist() for asked in denoiser.asked] == [[t, t] for t in times]
    assert denoiser.asked[0].self_conditioning is None
    for asked, state in zip(denoiser.asked[1:], states, strict=False):
        assert torch.equal(asked.self_conditioning, state.x_0)
        assert torch.equal(asked.x_t, state.x_t)
        assert asked.control is start.control
        assert asked.condition is start.condition


def test_without_self_conditioning_the_network_is_shown_nothing(normal, make_condition):
    denoiser, start = GaussianDenoiser(PROCESS), started(normal(2, 4, 3, seed=0), make_condition)
    list(Sampler(PROCESS, [9, 5, 0], DDIM(), self_conditioning=False).reverse(denoiser, start, no_noise))
    assert [asked.self_conditioning for asked in denoiser.asked] == [None] * 3


def test_estimates_below_the_cutoff_are_zero_and_no_others_change(normal, make_condition):
    start = started(normal(2, 40, 3, seed=0), make_condition)
    for cutoff in (0.0, 0.5):
        denoiser = GaussianDenoiser(PROCESS)
        states = list(Sampler(PROCESS, [9, 5, 0], DDIM(), cutoff=cutoff).reverse(denoiser, start, no_noise))
        for asked, state in zip(list(denoiser.asked), states, strict=True):
            estimate = denoiser(asked)
            wanted = torch.where(estimate < cutoff, 0.0, estimate) if cutoff else estimate
            assert torch.equal(state.x_0, wanted)
    assert (states[-1].x_t[states[-1].x_t != 0] >= 0.5 - 1e-9).all()


def test_the_same_streams_give_the_same_populations(make_condition):
    results = []
    for _ in range(2):
        noise = PopulationNoise(PROCESS, [stream(3, i) for i in range(2)])
        start = started(noise(torch.zeros(2, 4, 3, dtype=torch.float64)), make_condition)
        results.append(sampled(GaussianDenoiser(PROCESS), start, respaced(T, 9), DDPM(), noise)[-1].x_t)
    assert torch.equal(*results)


@pytest.mark.parametrize("betas", [linear_betas(1000), power_cosine_betas(1000), power_cosine_betas(1000, gamma=0.3)])
@pytest.mark.parametrize("step", [DDIM(), DDIM(1.0), DDPM("large")], ids=["ddim", "eta 1", "large"])
def test_a_perfect_denoiser_is_reached_exactly_on_every_schedule_in_float32(betas, step, normal, make_condition):
    process, x_0 = Process(betas), normal(2, 6, 3, seed=7, dtype=torch.float32).relu()
    start = started(normal(2, 6, 3, seed=8, dtype=torch.float32), make_condition)
    times = respaced(1000, 10)
    *_, last = Sampler(process, times, step).reverse(Perfect(x_0), start, torch.ones_like)
    torch.testing.assert_close(last.x_t, x_0, rtol=1e-5, atol=1e-5)
