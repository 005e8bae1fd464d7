"""The loss, its coins and its streams: what each weight, each coin and each key is worth."""

import itertools
import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from perturbdiff.core.choices import Target
from perturbdiff.core.conditioning import Novelty
from perturbdiff.core.kernel import EnergyKernel, GaussianKernel, mmd_squared
from perturbdiff.core.objective import Draw, Objective
from perturbdiff.core.observation import Estimate
from perturbdiff.core.population import Noised, PopulationBatch
from perturbdiff.core.process import Process, linear_betas

PROCESS = Process(linear_betas(100))
MANY = 4000
NOVEL = torch.tensor([[0, 1, 2], [2, 0, 1], [1, 2, 0]])


class Linear(torch.nn.Module):
    """x_0 = a x_t + b hint + c control: a denoiser whose gradients are known, and that remembers what it was asked."""

    def __init__(self, a: float = 0.7, b: float = 0.4, c: float = 0.2) -> None:
        super().__init__()
        self.a, self.b, self.c = (torch.nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in (a, b, c))
        self.asked: list[Noised] = []
        self.with_gradient: list[bool] = []

    def forward(self, noised: Noised) -> Tensor:
        self.asked.append(noised)
        self.with_gradient.append(torch.is_grad_enabled())
        hint = 0 if noised.self_conditioning is None else noised.self_conditioning
        return self.a * noised.x_t + self.b * hint + self.c * noised.control

    def unclamped(self, noised: Noised) -> Tensor:
        return self(noised)

    def made_of(self, unclamped: Tensor, noised: Noised) -> Estimate:
        return Estimate(unclamped)

    def estimate(self, noised: Noised) -> Estimate:
        return Estimate(self(noised))


def close(actual: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-12)


def no_coins(batch: PopulationBatch, eps: Tensor) -> Draw:
    off = torch.zeros(len(batch.key), dtype=torch.bool)
    three = off[:, None].expand(-1, 3)
    return Draw(5 + torch.arange(len(batch.key)), three, off, off, eps, three.long(), off, 50 + batch.key)


@pytest.fixture
def estimate(normal) -> Tensor:
    return normal(3, 6, 5, seed=20).relu()


# the two terms


@pytest.mark.parametrize("lengths", [None, (6, 2, 4)])
@pytest.mark.parametrize("kernel", [EnergyKernel(), GaussianKernel((0.5, 2.0))], ids=["energy", "gaussian"])
@pytest.mark.parametrize(("mmd_weight", "mse_weight"), [(1.0, 1.0), (0.3, 2.0)])
def test_the_loss_is_the_weighted_sum_of_both_terms_over_the_cells_that_exist(
    make_batch, estimate, lengths, kernel, mmd_weight, mse_weight
):
    batch = make_batch(lengths=lengths)
    loss = Objective(PROCESS, kernel, mmd_weight, mse_weight).compare(batch, estimate)
    for i, m in enumerate(lengths or (6, 6, 6)):
        observed, predicted = batch.perturbed[i, :m], estimate[i, :m]
        close(loss.mmd[i], mmd_squared(observed, predicted, kernel, estimate="biased"))
        squares = [math.dist(x, y) ** 2 for x, y in zip(observed, predicted, strict=True)]
        close(loss.mse[i], torch.tensor(sum(squares) / (m * 5), dtype=torch.float64))
    close(loss.total, sum(mmd_weight * loss.mmd[i] + mse_weight * loss.mse[i] for i in range(3)) / 3)


def test_without_weight_a_term_is_left_out_and_logged_as_0(make_batch, estimate):
    batch = make_batch()
    both = Objective(PROCESS).compare(batch, estimate)
    mmd_only = Objective(PROCESS, mse_weight=0.0).compare(batch, estimate)
    mse_only = Objective(PROCESS, mmd_weight=0.0).compare(batch, estimate)
    close(mmd_only.total, both.mmd.mean())
    close(mse_only.total, both.mse.mean())
    assert (mmd_only.mse == 0).all()
    assert (mse_only.mmd == 0).all()
    close(mmd_only.mmd, both.mmd)
    close(mse_only.mse, both.mse)


def test_the_loss_of_the_observed_cells_is_exactly_zero(make_batch):
    batch = make_batch(lengths=(6, 2, 4))
    assert Objective(PROCESS).compare(batch, batch.perturbed.clone()).total == 0.0


def test_the_mmd_is_blind_to_which_cell_is_which_and_the_mse_is_not(make_batch):
    batch = make_batch()
    loss = Objective(PROCESS).compare(batch, batch.perturbed.roll(1, dims=1))
    assert (loss.mmd.abs() < 1e-12).all()
    assert (loss.mse > 0.1).all()


@pytest.mark.parametrize(("mmd_weight", "mse_weight"), [(0.0, 0.0), (-1.0, 2.0), (2.0, -1.0)])
def test_weights_that_leave_no_loss_or_a_negative_one_are_refused(mmd_weight, mse_weight):
    with pytest.raises(ValueError, match="must not be negative, and one of them must be positive"):
        Objective(PROCESS, mmd_weight=mmd_weight, mse_weight=mse_weight)


# streams


def test_a_draw_is_a_function_of_seed_step_and_key(make_batch):
    objective, batch = Objective(Process(linear_betas(100), rho=0.3)), make_batch()
    drawn = objective.draw(batch, seed=1, step=2)
    again = objective.draw(batch, seed=1, step=2)
    assert all(torch.equal(one, other) for one, other in zip(drawn, again, strict=True))
    others = [
        objective.draw(batch, seed=2, step=2),
        objective.draw(batch, seed=1, step=3),
        objective.draw(batch._replace(key=batch.key + 3), seed=1, step=2),
    ]
    for one, other in itertools.combinations([drawn, *others], 2):
        assert not torch.isclose(one.eps, other.eps).any()


def test_a_populations_draw_is_the_same_alone_and_in_any_minibatch(make_batch, make_condition):
    objective, batch = Objective(Process(linear_betas(100), rho=0.3), condition_dropout=0.5), make_batch(3)
    together = objective.draw(batch, seed=1, step=2)
    for i in range(3):
        alone = batch._replace(
            perturbed=batch.perturbed[i : i + 1],
            control=batch.control[i : i + 1],
            condition=make_condition(1),
            key=batch.key[i : i + 1],
        )
        own = objective.draw(alone, seed=1, step=2)
        assert all(torch.equal(one[0], other[i]) for one, other in zip(own, together, strict=True))


def test_a_draw_does_not_depend_on_the_cells(make_batch):
    objective, batch = Objective(PROCESS), make_batch()
    one, other = (objective.draw(batch._replace(perturbed=x), seed=0, step=0) for x in (batch.perturbed, batch.control))
    assert torch.equal(one.eps, other.eps)


# coins


@pytest.fixture(scope="module")
def many(make_batch) -> PopulationBatch:
    return make_batch(MANY, 1, n_genes=1)


def frequency_is(coins: Tensor, p: float) -> None:
    assert abs(float(coins.double().mean()) - p) < 4 * math.sqrt(p * (1 - p) / len(coins))


def test_coins_fall_with_their_probabilities_and_independently_of_each_other(many):
    objective = Objective(PROCESS, condition_dropout=0.3, control_dropout=0.2, self_conditioning=0.6)
    draw = objective.draw(many, seed=0, step=0)
    columns = [*draw.dropped.unbind(dim=1), draw.control_dropped, draw.self_conditioned]
    chances = (0.3, 0.3, 0.3, 0.2, 0.6)
    for coins, p in zip(columns, chances, strict=True):
        frequency_is(coins, p)
    for (one, p), (other, q) in itertools.combinations(zip(columns, chances, strict=True), 2):
        frequency_is(one & other, p * q)


def test_neighbouring_populations_toss_independently(many):
    dropped = Objective(PROCESS, condition_dropout=0.3).draw(many, seed=0, step=0).dropped
    for i in range(3):
        frequency_is(dropped[1:, i] & dropped[:-1, i], 0.09)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_coins_of_probability_0_never_fall_and_of_1_always(many, p):
    objective = Objective(PROCESS, condition_dropout=p, control_dropout=p, self_conditioning=p)
    draw = objective.draw(many, seed=0, step=0)
    for coins in (draw.dropped, draw.control_dropped, draw.self_conditioned):
        assert (coins == bool(p)).all()


def test_times_are_uniform_over_the_chain_and_noise_is_standard(many):
    draw = Objective(Process(linear_betas(10))).draw(many, seed=0, step=0)
    for t in range(10):
        frequency_is(draw.t == t, 0.1)
    assert draw.t.min() == 0
    assert draw.t.max() == 9
    assert abs(float(draw.eps.mean())) < 4 / math.sqrt(MANY)
    assert abs(float(draw.eps.square().mean()) - 1) < 4 * math.sqrt(2 / MANY)


def test_coins_of_the_minibatch_are_shared_by_populations_and_covariates(make_batch):
    objective = Objective(PROCESS, condition_dropout=0.5, control_dropout=0.3, dropout_per="minibatch")
    draws = [objective.draw(make_batch(), seed=0, step=step) for step in range(1000)]
    for draw in draws:
        assert len(draw.dropped.unique()) == len(draw.control_dropped.unique()) == 1
        assert len(draw.self_conditioned.unique()) == 1
    first = [torch.stack([draw[i].flatten()[0] for draw in draws]) for i in (1, 2, 3)]
    for coins, p in zip(first, (0.5, 0.3, 0.5), strict=True):
        frequency_is(coins, p)
    frequency_is(first[0] & first[2], 0.25)
    # times and noise stay each population's own
    assert any(len(draw.t.unique()) == 3 for draw in draws)
    alone = Objective(PROCESS).draw(make_batch(), seed=0, step=7)
    assert torch.equal(draws[7].t, alone.t)
    assert torch.equal(draws[7].eps, alone.eps)


def test_labels_are_taken_as_new_with_their_probability_half_of_them_as_of_new_agents(many):
    novel = Objective(PROCESS, novelty=0.4).draw(many, seed=0, step=0).novel
    for column in novel.unbind(dim=1):
        assert column.unique().tolist() == [int(one) for one in Novelty]
        frequency_is(column != Novelty.KNOWN, 0.4)
        frequency_is(column == Novelty.NEW_SET, 0.2)
        frequency_is(column == Novelty.NEW_AGENT, 0.2)


def test_coins_of_novelty_fall_independently_of_each_other_of_neighbours_and_of_the_other_coins(many):
    draw = Objective(PROCESS, condition_dropout=0.3, control_dropout=0.2, novelty=0.4).draw(many, seed=0, step=0)
    new = draw.novel != Novelty.KNOWN
    for one, other in itertools.combinations(new.unbind(dim=1), 2):
        frequency_is(one & other, 0.16)
    for coins in new.unbind(dim=1):
        frequency_is(coins[1:] & coins[:-1], 0.16)
        frequency_is(coins & draw.control_dropped, 0.08)
        for dropped in draw.dropped.unbind(dim=1):
            frequency_is(coins & dropped, 0.12)


def test_without_novelty_every_label_is_as_it_is_and_with_1_none_is(many):
    draw = Objective(PROCESS).draw(many, seed=0, step=0)
    assert not draw.novel.any()
    assert Objective(PROCESS, novelty=1.0).draw(many, seed=0, step=0).novel.all()


@pytest.mark.parametrize("dropout_per", ["population", "minibatch"])
def test_novelty_is_drawn_last_so_that_it_changes_no_time_no_noise_and_no_other_coin(make_batch, dropout_per):
    process = Process(linear_betas(100), rho=0.3)
    one, other = (
        Objective(process, condition_dropout=0.5, control_dropout=0.5, dropout_per=dropout_per, novelty=p).draw(
            make_batch(), seed=1, step=2
        )
        for p in (0.0, 1.0)
    )
    assert all(torch.equal(a, b) for a, b in zip(one._replace(novel=other.novel), other, strict=True))
    assert other.novel.all()


def test_coins_of_novelty_of_the_minibatch_are_shared_by_populations_and_not_by_covariates(make_batch):
    objective = Objective(PROCESS, dropout_per="minibatch", novelty=0.4)
    draws = [objective.draw(make_batch(), seed=0, step=step).novel for step in range(1000)]
    assert all(torch.equal(novel, novel[:1].expand(3, 3)) for novel in draws)
    first = torch.stack([novel[0] for novel in draws])
    for column in first.unbind(dim=1):
        frequency_is(column == Novelty.NEW_SET, 0.2)
        frequency_is(column == Novelty.NEW_AGENT, 0.2)
    frequency_is((first[:, 0] != 0) & (first[:, 1] != 0), 0.16)
    # the first population's coins are those of all
    alone = Objective(PROCESS, novelty=0.4)
    for step in range(20):
        assert torch.equal(alone.draw(make_batch(), seed=0, step=step).novel[0], draws[step][0])


# what the denoiser is asked


def test_the_denoiser_is_asked_the_corrupted_cells_at_their_times_with_condition_and_coins(make_batch, normal):
    batch, denoiser = make_batch(lengths=(6, 2, 4)), Linear()
    draw = no_coins(batch, normal(3, 6, 5, seed=21))._replace(dropped=torch.eye(3, dtype=torch.bool), novel=NOVEL)
    Objective(PROCESS)(denoiser, batch, draw)
    (asked,) = denoiser.asked
    close(asked.x_t, PROCESS.corrupt(batch.perturbed, draw.t, draw.eps))
    assert torch.equal(asked.t, draw.t)
    assert torch.equal(asked.control, batch.control)
    assert asked.condition is batch.condition
    assert asked.mask is batch.mask
    assert torch.equal(asked.dropped, draw.dropped)
    assert torch.equal(asked.novel, draw.novel)
    assert not asked.self_conditioning.any()


def test_dropped_controls_are_zeros_for_the_populations_drawn_and_for_no_other(make_batch, normal):
    batch, denoiser = make_batch(), Linear()
    dropped = torch.tensor([True, False, True])
    draw = no_coins(batch, normal(3, 6, 5, seed=21))._replace(control_dropped=dropped, self_conditioned=~dropped)
    before = batch.control.clone()
    Objective(PROCESS)(denoiser, batch, draw)
    assert torch.equal(denoiser.asked[0].control, before[1:2])
    assert not denoiser.asked[1].control[dropped].any()
    assert torch.equal(denoiser.asked[1].control[1], before[1])
    assert torch.equal(batch.control, before)


def test_only_the_populations_drawn_see_their_own_first_estimate(make_batch, normal):
    batch, denoiser = make_batch(lengths=(6, 2, 4)), Linear()
    chosen = torch.tensor([True, False, True])
    draw = no_coins(batch, normal(3, 6, 5, seed=21))._replace(
        self_conditioned=chosen, dropped=torch.eye(3, dtype=torch.bool), novel=NOVEL
    )
    Objective(PROCESS)(denoiser, batch, draw)
    first, second = denoiser.asked
    assert denoiser.with_gradient == [False, True]
    assert first.self_conditioning is None
    for field in ("x_t", "t", "control", "mask", "dropped", "novel"):
        assert torch.equal(getattr(first, field), getattr(second, field)[chosen])
    for one, other in zip(first.condition, second.condition, strict=True):
        assert torch.equal(one, other[chosen])
    close(second.self_conditioning[chosen], (0.7 * first.x_t + 0.2 * first.control))
    assert not second.self_conditioning[~chosen].any()


def test_no_gradient_passes_through_the_first_estimate(make_batch, normal):
    batch, denoiser = make_batch(), Linear()
    everyone = torch.ones(3, dtype=torch.bool)
    draw = no_coins(batch, normal(3, 6, 5, seed=21))._replace(self_conditioned=everyone)
    Objective(PROCESS, mmd_weight=0.0)(denoiser, batch, draw).total.backward()
    x_t = PROCESS.corrupt(batch.perturbed, draw.t, draw.eps)
    hint = 0.7 * x_t + 0.2 * batch.control
    residual = 0.7 * x_t + 0.4 * hint + 0.2 * batch.control - batch.perturbed
    # d/da of the mean of residual^2 with the hint held fixed
    close(denoiser.a.grad, (2 * residual * x_t).mean())
    close(denoiser.b.grad, (2 * residual * hint).mean())
    close(denoiser.c.grad, (2 * residual * batch.control).mean())


@pytest.mark.parametrize("target", get_args(Target))
def test_a_minibatchs_loss_is_the_mean_of_its_populations_losses_each_alone_and_unpadded(
    make_denoiser, make_batch, target
):
    lengths = (6, 2, 4)
    denoiser, batch = make_denoiser(target=target), make_batch(lengths=lengths)
    objective = Objective(PROCESS, condition_dropout=0.5, control_dropout=0.4)
    draw = objective.draw(batch, seed=0, step=3)
    together = objective(denoiser, batch, draw)
    totals = []
    for i, m in enumerate(lengths):
        one = slice(i, i + 1)
        alone = PopulationBatch(
            batch.perturbed[one, :m],
            batch.control[one, :m],
            None,
            type(batch.condition)(*(index[one] for index in batch.condition)),
            batch.key[one],
            totals=batch.totals[one, :m],
            expected=batch.expected[one],
        )
        own = Draw(*(part[one] for part in draw))._replace(eps=draw.eps[one, :m])
        totals.append(objective(denoiser, alone, own).total)
        close(totals[-1], together.mmd[i] + together.mse[i])
    close(together.total, torch.stack(totals).mean())
