"""What is expected of populations in training: the ways it comes in, and the streams of its coins; sampled counts."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from perturbdiff.core.conditioning import Novelty
from perturbdiff.core.objective import Objective
from perturbdiff.core.observation import Estimate
from perturbdiff.core.population import Noised, PopulationBatch
from perturbdiff.core.process import Process, linear_betas
from perturbdiff.core.randomness import seeds, stream
from perturbdiff.core.sampler import DDIM, Sampler

PROCESS = Process(linear_betas(100), rho=0.3)
MANY = 4000


class Asked(nn.Module):
    """Gives zeros, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Noised] = []

    def forward(self, noised: Noised) -> Tensor:
        self.asked.append(noised)
        return torch.zeros_like(noised.x_t)

    def unclamped(self, noised: Noised) -> Tensor:
        return self(noised)

    def made_of(self, unclamped: Tensor, noised: Noised) -> Estimate:
        return Estimate(unclamped)

    def estimate(self, noised: Noised) -> Estimate:
        return Estimate(self(noised))


def frequency_is(coins: Tensor, p: float) -> None:
    assert abs(float(coins.double().mean()) - p) < 4 * math.sqrt(p * (1 - p) / len(coins))


@pytest.fixture(scope="module")
def many(make_batch) -> PopulationBatch:
    return make_batch(MANY, 1, n_genes=1)


def test_each_population_is_expected_in_the_way_that_its_coins_say(make_batch, normal):
    combinations = list(itertools.product(Novelty, (False, True)))
    batch, denoiser = make_batch(len(combinations)), Asked()
    expected = normal(len(combinations), 6, 5, seed=9)
    batch = batch._replace(expected=expected)
    novel = torch.tensor([[novelty, 2 - novelty, 1] for novelty, _ in combinations])
    elsewhere = torch.tensor([there for _, there in combinations])
    draw = Objective(PROCESS).draw(batch, seed=0, step=0)._replace(novel=novel, elsewhere=elsewhere)
    Objective(PROCESS)(denoiser, batch, draw)
    # known, a new set, new agents, each first in its own context, then by others
    wanted = torch.stack([own[way] for own, way in zip(expected, [0, 3, 1, 4, 2, 5], strict=True)])
    assert torch.equal(denoiser.asked[-1].expected, wanted)


def test_the_only_way_is_taken_whatever_the_coins_say(make_batch):
    batch, denoiser = make_batch(3), Asked()
    objective = Objective(PROCESS, novelty=1.0, context_dropout=1.0, self_conditioning=0.0)
    objective(denoiser, batch, objective.draw(batch, seed=0, step=0))
    assert torch.equal(denoiser.asked[0].expected, batch.expected[:, 0])
    objective(denoiser, batch._replace(expected=None), objective.draw(batch, seed=0, step=0))
    assert denoiser.asked[1].expected is None


def test_totals_and_seeds_reach_the_first_estimate_and_the_second_alike(make_batch, normal):
    batch, denoiser = make_batch(3, lengths=(6, 2, 4))._replace(expected=normal(3, 6, 5, seed=9)), Asked()
    objective = Objective(PROCESS, self_conditioning=1.0, novelty=0.5, context_dropout=0.5)
    draw = objective.draw(batch, seed=0, step=0)
    objective(denoiser, batch, draw)
    first, second = denoiser.asked
    for field, wanted in (("totals", batch.totals), ("seed", draw.seed), ("expected", second.expected)):
        assert torch.equal(getattr(first, field), wanted)
        assert torch.equal(getattr(second, field), wanted)


def test_other_contexts_are_taken_with_their_probability_and_independently_of_the_other_coins(many):
    objective = Objective(PROCESS, condition_dropout=0.3, control_dropout=0.2, novelty=0.4, context_dropout=0.25)
    draw = objective.draw(many, seed=0, step=0)
    frequency_is(draw.elsewhere, 0.25)
    frequency_is(draw.elsewhere[1:] & draw.elsewhere[:-1], 0.0625)
    frequency_is(draw.elsewhere & draw.control_dropped, 0.05)
    for column in draw.dropped.unbind(dim=1):
        frequency_is(draw.elsewhere & column, 0.075)
    for column in draw.novel.unbind(dim=1):
        frequency_is(draw.elsewhere & (column != Novelty.KNOWN), 0.1)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_other_contexts_are_never_taken_with_probability_0_and_always_with_1(many, p):
    assert (Objective(PROCESS, context_dropout=p).draw(many, seed=0, step=0).elsewhere == bool(p)).all()


def test_the_coin_of_other_contexts_of_the_first_population_serves_a_minibatch_of_shared_coins(make_batch):
    shared, own = (Objective(PROCESS, dropout_per=per, context_dropout=0.5) for per in ("minibatch", "population"))
    for step in range(40):
        one, other = (objective.draw(make_batch(), seed=0, step=step) for objective in (shared, own))
        assert torch.equal(one.elsewhere, other.elsewhere[:1].expand(3))
        assert torch.equal(one.seed, other.seed)


def test_other_contexts_change_no_draw_but_their_own_coin(make_batch):
    one, other = (
        Objective(PROCESS, condition_dropout=0.5, novelty=0.5, context_dropout=p).draw(make_batch(), seed=1, step=2)
        for p in (0.0, 1.0)
    )
    assert all(torch.equal(a, b) for a, b in zip(one._replace(elsewhere=other.elsewhere), other, strict=True))


def test_every_draw_has_its_place_in_the_stream_of_its_population(make_batch):
    batch = make_batch()
    objective = Objective(
        PROCESS,
        condition_dropout=0.5,
        control_dropout=0.5,
        self_conditioning=0.5,
        novelty=0.5,
        context_dropout=0.5,
    )
    draw = objective.draw(batch, seed=4, step=7)
    for i, key in enumerate(batch.key.tolist()):
        own = stream(4, 7, key)
        assert draw.t[i] == torch.randint(PROCESS.n_times, (1,), generator=own)
        coins = torch.rand(5, generator=own) < 0.5
        assert torch.equal(torch.cat([draw.dropped[i], draw.control_dropped[i, None], coins[4:]]), coins)
        assert draw.self_conditioned[i] == coins[4]
        # the cells' own parts, and the one that they share
        e = torch.randn(7, 5, generator=own, dtype=torch.float64)
        torch.testing.assert_close(draw.eps[i], math.sqrt(0.7) * e[:6] + math.sqrt(0.3) * e[6:])
        novel = torch.rand(3, generator=own)
        assert torch.equal(draw.novel[i], 1 * (novel < 0.5) + 1 * (novel < 0.25))
        assert draw.elsewhere[i] == (torch.rand(1, generator=own) < 0.5)
        assert draw.seed[i] == seeds([own])


def test_seeds_differ_from_population_to_population_and_from_step_to_step(many):
    one, other = (Objective(PROCESS).draw(many, seed=0, step=step).seed for step in (0, 1))
    assert len(torch.cat([one, other]).unique()) == 2 * MANY


def test_seeds_are_the_next_of_each_stream_and_of_no_other():
    streams = [stream(0, i) for i in range(3)]
    first, second = seeds(streams), seeds(streams)
    assert len(torch.cat([first, second]).unique()) == 6
    assert (first >= 0).all()
    alone = stream(0, 1)
    assert torch.equal(torch.cat([seeds([alone]), seeds([alone])]), torch.stack([first[1], second[1]]))


# counts out of the reverse chain


def sampled(denoiser: nn.Module, noised: Noised, *, keys: tuple[int, ...] = (0, 1, 2), **changes: Tensor | None):
    given = {"totals": noised.totals, "expected": noised.expected, "mask": noised.mask} | changes
    return Sampler(PROCESS, [99, 40, 0], DDIM())(
        denoiser,
        control=noised.control,
        condition=noised.condition,
        streams=[stream(5, key) for key in keys],
        **given,
    )


def test_sampled_cells_are_whole_counts_of_their_totals(make_denoiser, make_noised):
    noised = make_noised()
    found = sampled(make_denoiser(target="counts"), noised)
    counts = torch.expm1(found.x_0) * (found.totals / 1e4).unsqueeze(-1)
    torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-8)
    before = (torch.expm1(noised.control) * (noised.totals / 1e4).unsqueeze(-1)).round()
    torch.testing.assert_close(found.totals, noised.totals + (counts - before).sum(dim=-1), rtol=0, atol=1e-6)
    assert not torch.equal(counts.round(), before)


def test_the_same_streams_give_the_same_counts_and_a_populations_counts_are_those_of_its_stream(
    make_denoiser, make_noised
):
    denoiser, noised = make_denoiser(target="counts"), make_noised()
    one, again, other = (sampled(denoiser, noised, keys=keys) for keys in ((0, 1, 2), (0, 1, 2), (0, 8, 2)))
    assert torch.equal(one.x_0, again.x_0)
    assert torch.equal(one.totals, again.totals)
    torch.testing.assert_close(one.x_0[[0, 2]], other.x_0[[0, 2]], rtol=1e-9, atol=1e-9)
    assert not torch.isclose(one.x_0[1], other.x_0[1]).all()


@pytest.mark.parametrize("target", ["cell", "change", "residual"])
def test_sampled_cells_that_are_no_counts_have_no_totals(make_denoiser, make_noised, target):
    assert sampled(make_denoiser(target=target), make_noised()).totals is None


def test_counts_are_not_sampled_without_totals(make_denoiser, make_noised):
    with pytest.raises(ValueError, match="give their totals, and seeds"):
        sampled(make_denoiser(target="counts"), make_noised(), totals=None)


def test_every_step_is_asked_with_totals_what_is_expected_and_seeds_of_its_own(make_noised):
    noised, denoiser = make_noised(), Asked()
    sampled(denoiser, noised)
    assert all(torch.equal(asked.totals, noised.totals) for asked in denoiser.asked)
    assert all(torch.equal(asked.expected, noised.expected) for asked in denoiser.asked)
    assert len(torch.cat([asked.seed for asked in denoiser.asked]).unique()) == 9
    without = Asked()
    sampled(without, noised, totals=None, expected=None)
    assert {(asked.totals, asked.expected, asked.seed) for asked in without.asked} == {(None, None, None)}
