"""Guidance is one affine formula: its limits, its cost, and what the passes without covariates are asked."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from perturbdiff.core.choices import COVARIATES, Target
from perturbdiff.core.denoiser import DenoiserContract
from perturbdiff.core.guidance import Guided
from perturbdiff.core.observation import Estimate
from perturbdiff.core.population import Condition, Noised
from perturbdiff.core.process import Process, linear_betas

ALL = (True, True, True)
ALONE = {name: tuple(name == other for other in COVARIATES) for name in COVARIATES}


class Additive:
    """A denoiser in closed form: 30, and the label of each covariate that is kept times a size of its own."""

    sizes = (1.0, -3.0, 0.5)

    def unclamped(self, noised: Noised) -> Tensor:
        labels = torch.stack(noised.condition, dim=-1).double()
        if noised.dropped is not None:
            labels = labels.masked_fill(noised.dropped, 0.0)
        return torch.zeros_like(noised.x_t) + 30 + (labels * torch.tensor(self.sizes)).sum(dim=-1)[:, None, None]

    def __call__(self, noised: Noised) -> Tensor:
        return self.unclamped(noised).relu()

    def made_of(self, unclamped: Tensor, noised: Noised) -> Estimate:
        return Estimate(unclamped.relu())

    def estimate(self, noised: Noised) -> Estimate:
        return self.made_of(self.unclamped(noised), noised)


class Recorder:
    """A denoiser that remembers what it was asked."""

    def __init__(self, denoiser: DenoiserContract) -> None:
        self.denoiser = denoiser
        self.asked: list[Noised] = []
        self.made: list[Tensor] = []

    def __call__(self, noised: Noised) -> Tensor:
        self.asked.append(noised)
        return self.denoiser(noised)

    def unclamped(self, noised: Noised) -> Tensor:
        self.asked.append(noised)
        return self.denoiser.unclamped(noised)

    def made_of(self, unclamped: Tensor, noised: Noised) -> Estimate:
        self.made.append(unclamped)
        return self.denoiser.made_of(unclamped, noised)

    def estimate(self, noised: Noised) -> Estimate:
        self.asked.append(noised)
        return self.denoiser.estimate(noised)


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
@pytest.mark.parametrize("one_pass", [True, False])
@pytest.mark.parametrize("strength", [0.0, (0.0, 0.0, 0.0)])
def test_strength_0_is_the_denoiser_itself_in_one_call(recorder, noised, of, strength, one_pass):
    guided = Guided(recorder, strength=strength, of=of, one_pass=one_pass)
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


@pytest.mark.parametrize("strength", [(0.7, 0.0, 0.0), (2.0, 1.0, 0.0), (1.5, 0.25, 4.0)])
@pytest.mark.parametrize("of", ["x_0", "change"])
def test_each_strength_pushes_by_what_its_covariate_alone_changes(noised, strength, of):
    guided = Guided(Additive(), strength=strength, of=of)(noised)
    labels = torch.stack(noised.condition, dim=-1)
    pushed = ((1 + torch.tensor(strength, dtype=torch.float64)) * torch.tensor(Additive.sizes) * labels).sum(dim=-1)
    assert (30 + pushed > 0).all()
    close(guided, (30 + pushed)[:, None, None].expand(guided.shape))


def test_three_terms_sum_over_a_network_too(recorder, noised):
    strength = dict(zip(COVARIATES, (0.5, 1.25, 3.0), strict=True))
    conditional = recorder.denoiser(noised)
    differences = [w * (conditional - recorder.denoiser(without(noised, ALONE[name]))) for name, w in strength.items()]
    assert all(float(difference.detach().abs().max()) > 1e-3 for difference in differences)
    close(Guided(recorder, strength=tuple(strength.values()))(noised), conditional + sum(differences))


@pytest.mark.parametrize("one_pass", [True, False])
@pytest.mark.parametrize("covariate", COVARIATES)
def test_a_strength_of_one_covariate_is_the_single_strength_that_drops_it(recorder, noised, covariate, one_pass):
    strength = tuple(1.5 if name == covariate else 0.0 for name in COVARIATES)
    one_of_three = Guided(recorder, strength=strength, one_pass=one_pass)(noised)
    n_passes = len(recorder.asked)
    single = Guided(recorder, strength=1.5, covariates=ALONE[covariate], one_pass=one_pass)(noised)
    assert torch.equal(one_of_three, single)
    assert len(recorder.asked) == 2 * n_passes


def test_only_a_single_strength_is_told_what_to_drop(recorder):
    with pytest.raises(ValueError, match=r"is of a single strength, .*; leave covariates out"):
        Guided(recorder, strength=(1.0, 0.0, 0.0), covariates=(True, False, False))


@pytest.mark.parametrize("of", ["x_0", "change"])
@pytest.mark.parametrize("hinted", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(
    ("strength", "n_copies"), [(1.5, 2), ((0.0, 1.5, 0.0), 2), ((1.5, 0.0, 0.5), 3), ((1.5, 1.0, 0.5), 4)]
)
def test_one_pass_of_all_copies_is_one_pass_each(recorder, make_noised, of, hinted, masked, strength, n_copies):
    noised = make_noised(lengths=(6, 2, 4) if masked else None)
    if not hinted:
        noised = noised._replace(self_conditioning=None)
    once = Guided(recorder, strength=strength, of=of)(noised)
    assert [len(asked.t) for asked in recorder.asked] == [3 * n_copies]
    recorder.asked.clear()
    each = Guided(recorder, strength=strength, of=of, one_pass=False)(noised)
    assert [len(asked.t) for asked in recorder.asked] == [3] * n_copies
    close(once, each)


def test_repeated_populations_are_whole_copies_in_every_field(noised):
    full = {"mask": noised.x_t[:, :, 0] > 0, "dropped": torch.eye(3, dtype=torch.bool), "novel": torch.eye(3).long()}
    for given in (noised, noised._replace(**full), noised._replace(**dict.fromkeys(full))):
        for name, field in given.repeated(3)._asdict().items():
            one = getattr(given, name)
            if one is None:
                assert field is None
            elif isinstance(one, Condition):
                assert torch.equal(torch.stack(field), torch.stack(one).repeat(1, 3))
            else:
                assert all(torch.equal(copy, one) for copy in field.chunk(3))


@pytest.mark.parametrize("strength", [0.5, 4.0])
def test_guidance_in_x_0_is_guidance_in_eps(recorder, noised, strength):
    process, x_t, t = Process(linear_betas(100)), noised.x_t, noised.t

    def eps(x_0: Tensor) -> Tensor:
        return process.eps_from_x_0(x_t, t, x_0)

    conditional = eps(recorder.denoiser(noised))
    single = eps(Guided(recorder, strength=strength)(noised))
    close(single, (1 + strength) * conditional - strength * eps(recorder.denoiser(without(noised))))
    each = eps(Guided(recorder, strength=(strength, 1.0, 0.0))(noised))
    without_one, without_other = (
        eps(recorder.denoiser(without(noised, ALONE[name]))) for name in ("perturbation", "cell_type")
    )
    close(each, conditional + strength * (conditional - without_one) + (conditional - without_other))


@pytest.mark.parametrize("target", ["cell", "change", "residual"])
def test_guiding_the_change_and_guiding_x_0_differ_by_clamping_alone(make_denoiser, noised, target):
    recorder = Recorder(make_denoiser(target=target))
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


def test_cells_are_made_once_of_the_guided_change(recorder, noised):
    conditional, unconditional = (recorder.denoiser.unclamped(asked) for asked in (noised, without(noised)))
    found = Guided(recorder, strength=2.0, of="change").estimate(noised)
    (made,) = recorder.made
    close(made, 3 * conditional - 2 * unconditional)
    wanted = recorder.denoiser.made_of(made, noised)
    assert torch.equal(found.x_0, wanted.x_0)
    assert (found.totals is None) == (recorder.denoiser.target != "counts")
    if found.totals is not None:
        assert torch.equal(found.totals, wanted.totals)


def test_guided_x_0_is_made_of_nothing_more_and_its_cells_have_no_totals(recorder, noised):
    guided = Guided(recorder, strength=2.0, of="x_0")
    found = guided.estimate(noised)
    assert found.totals is None
    assert torch.equal(found.x_0, guided(noised))
    assert recorder.made == []


def test_guidance_pushes_along_what_is_expected_of_the_perturbation(make_denoiser, noised):
    with_it, without_it = (
        Guided(make_denoiser(target="counts"), strength=2.0, of="change").unclamped(asked)
        for asked in (noised, noised._replace(expected=None))
    )
    close(with_it - without_it, (3 * noised.expected)[:, None].expand_as(with_it))


def test_guiding_the_change_pushes_the_network_and_not_the_control_cell(make_denoiser, noised):
    denoiser = make_denoiser(target="change")
    conditional, unconditional = (denoiser.streams(asked)[0] for asked in (noised, without(noised)))
    noised = noised._replace(expected=None)
    guided = Guided(denoiser, strength=2.0, of="change").unclamped(noised) - noised.control
    close(guided, 3 * conditional - 2 * unconditional)


@pytest.mark.parametrize(
    ("options", "drops"),
    [
        *(
            ({"strength": 1.0, "covariates": covariates}, [covariates])
            for covariates in (ALL, (True, False, False), (False, True, True))
        ),
        ({"strength": (1.0, 2.0, 3.0)}, list(ALONE.values())),
        ({"strength": (0.0, 2.0, 3.0)}, [ALONE["cell_type"], ALONE["assay_batch"]]),
    ],
)
@pytest.mark.parametrize("one_pass", [True, False])
def test_a_pass_drops_the_covariates_of_its_term_and_keeps_all_else(recorder, noised, options, drops, one_pass):
    already = torch.tensor([[False, True, False], [False, False, False], [False, False, True]])
    Guided(recorder, **options, one_pass=one_pass)(noised._replace(dropped=already))
    dropped = torch.cat([asked.dropped for asked in recorder.asked])
    assert torch.equal(dropped, torch.cat([already, *(already | torch.tensor(drop) for drop in drops)]))
    n_copies = 1 + len(drops)
    for field in ("x_t", "t", "control", "mask", "self_conditioning"):
        given = getattr(noised, field)
        assert torch.equal(
            torch.cat([getattr(asked, field) for asked in recorder.asked]), torch.cat([given] * n_copies)
        )
    for index, *asked in zip(noised.condition, *(asked.condition for asked in recorder.asked), strict=True):
        assert torch.equal(torch.cat(asked), torch.cat([index] * n_copies))


def test_an_empty_condition_cannot_be_strengthened(recorder, noised):
    empty = Condition(*(torch.zeros_like(index) for index in noised.condition))
    nothing = noised._replace(condition=empty, expected=torch.zeros_like(noised.expected))
    for strength in (5.0, (5.0, 2.0, 1.0)):
        close(Guided(recorder, strength=strength)(nothing), recorder.denoiser(nothing))
