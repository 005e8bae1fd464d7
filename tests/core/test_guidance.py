"""Guidance is one affine formula: its limits, its cost, and what the unconditional pass is asked."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from perturbdiff.core.denoiser import DenoiserContract, Target
from perturbdiff.core.guidance import Guided
from perturbdiff.core.population import Condition, Noised
from perturbdiff.core.process import Process, linear_betas

ALL = (True, True, True)


class Recorder:
    """A denoiser that remembers what it was asked."""

    def __init__(self, denoiser: DenoiserContract) -> None:
        self.denoiser = denoiser
        self.asked: list[Noised] = []

    def __call__(self, noised: Noised) -> Tensor:
        self.asked.append(noised)
        return self.denoiser(noised)

    def unclamped(self, noised: Noised) -> Tensor:
        self.asked.append(noised)
        return self.denoiser.unclamped(noised)


@pytest.fixture(params=get_args(Target))
def recorder(request: pytest.FixtureRequest, make_denoiser) -> Recorder:
    return Recorder(make_denoiser(target=request.param))


@pytest.fixture
def noised(make_noised) -> Noised:
    return make_noised(lengths=(6, 2, 4))


def without(noised: Noised, covariates: tuple[bool, bool, bool] = ALL) -> Noised:
    return noised._replace(dropped=torch.tensor(covariates).expand(len(noised.t), 3))


def close(actual: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("of", ["x_0", "change"])
def test_strength_0_is_the_denoiser_itself_in_one_call(recorder, noised, of):
    guided = Guided(recorder, strength=0.0, of=of)
    assert torch.equal(guided(noised), recorder.denoiser(noised))
    assert len(recorder.asked) == 1
    assert recorder.asked[0] is noised
    assert isinstance(guided, DenoiserContract)


@pytest.mark.parametrize("covariates", [ALL, (True, False, False)])
@pytest.mark.parametrize("strength", [0.7, 3.0])
def test_guided_x_0_is_the_formula_on_both_denoised_populations(recorder, noised, strength, covariates):
    conditional, unconditional = (recorder.denoiser(asked) for asked in (noised, without(noised, covariates)))
    guided = Guided(recorder, strength=strength, covariates=covariates)(noised)
    close(guided, (1 + strength) * conditional - strength * unconditional)
    assert float((guided - conditional).detach().abs().max()) > 1e-3


def test_strength_minus_1_is_the_unconditional_denoiser(recorder, noised):
    close(Guided(recorder, strength=-1.0)(noised), recorder.denoiser(without(noised)))


@pytest.mark.parametrize("of", ["x_0", "change"])
@pytest.mark.parametrize("hinted", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_one_doubled_pass_is_two_passes(recorder, make_noised, of, hinted, masked):
    noised = make_noised(lengths=(6, 2, 4) if masked else None)
    if not hinted:
        noised = noised._replace(self_conditioning=None)
    once = Guided(recorder, strength=1.5, of=of)(noised)
    assert [len(asked.t) for asked in recorder.asked] == [6]
    recorder.asked.clear()
    twice = Guided(recorder, strength=1.5, of=of, one_pass=False)(noised)
    assert [len(asked.t) for asked in recorder.asked] == [3, 3]
    close(once, twice)


@pytest.mark.parametrize("strength", [0.5, 4.0])
def test_guidance_in_x_0_is_guidance_in_eps(recorder, noised, strength):
    process, x_t, t = Process(linear_betas(100)), noised.x_t, noised.t
    guided = process.eps_from_x_0(x_t, t, Guided(recorder, strength=strength)(noised))
    conditional, unconditional = (
        process.eps_from_x_0(x_t, t, recorder.denoiser(asked)) for asked in (noised, without(noised))
    )
    close(guided, (1 + strength) * conditional - strength * unconditional)


def test_guiding_the_change_and_guiding_x_0_differ_by_clamping_alone(recorder, noised):
    conditional, unconditional = (recorder.denoiser.unclamped(asked) for asked in (noised, without(noised)))
    of_x_0, of_change = (Guided(recorder, strength=2.0, of=of)(noised) for of in ("x_0", "change"))
    unclamped = 3 * conditional - 2 * unconditional
    close(of_x_0, 3 * conditional.relu() - 2 * unconditional.relu())
    close(of_change, unclamped.relu())
    close(Guided(recorder, strength=2.0, of="change").unclamped(noised), unclamped)
    untouched = (conditional > 0) & (unconditional > 0)
    close(of_change[untouched], of_x_0[untouched].relu())
    assert untouched.any()
    assert float((of_change - of_x_0).detach().abs().max()) > 1e-3
    assert (of_change >= 0).all()


def test_guiding_the_change_pushes_the_network_and_not_the_control_cell(make_denoiser, noised):
    denoiser = make_denoiser(target="change")
    conditional, unconditional = (denoiser.streams(asked)[0] for asked in (noised, without(noised)))
    guided = Guided(denoiser, strength=2.0, of="change").unclamped(noised) - noised.control
    close(guided, 3 * conditional - 2 * unconditional)


@pytest.mark.parametrize("covariates", [ALL, (True, False, False), (False, True, True)])
@pytest.mark.parametrize("one_pass", [True, False])
def test_the_unconditional_pass_drops_the_named_covariates_and_keeps_all_else(recorder, noised, covariates, one_pass):
    already = torch.tensor([[False, True, False], [False, False, False], [False, False, True]])
    Guided(recorder, strength=1.0, covariates=covariates, one_pass=one_pass)(noised._replace(dropped=already))
    dropped = torch.cat([asked.dropped for asked in recorder.asked])
    assert torch.equal(dropped, torch.cat([already, already | torch.tensor(covariates)]))
    for field in ("x_t", "t", "control", "mask", "self_conditioning"):
        given = getattr(noised, field)
        assert torch.equal(torch.cat([getattr(asked, field) for asked in recorder.asked]), torch.cat([given, given]))
    for index, *asked in zip(noised.condition, *(asked.condition for asked in recorder.asked), strict=True):
        assert torch.equal(torch.cat(asked), torch.cat([index, index]))


def test_an_empty_condition_cannot_be_strengthened(recorder, noised):
    nothing = noised._replace(condition=Condition(*(torch.zeros_like(index) for index in noised.condition)))
    close(Guided(recorder, strength=5.0)(nothing), recorder.denoiser(nothing))
