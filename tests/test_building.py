"""Every build_* hands core what the settings say, and every preset composes."""

import pytest
import torch

from perturbdiff.building import (
    build_denoiser,
    build_guided,
    build_kernel,
    build_objective,
    build_process,
    build_sampler,
)
from perturbdiff.core.choices import COVARIATES
from perturbdiff.core.guidance import Guided
from perturbdiff.core.kernel import EnergyKernel, GaussianKernel
from perturbdiff.core.sampler import DDIM, DDPM
from perturbdiff.recipes.dataset import recipe_from_mapping
from perturbdiff.recipes.settings import _PRESETS, Guidance, ModelSettings, SamplingSettings


def recipe_with(**tables):
    mapping = {"name": "r", "kind": "rna-seq", "expression": {"scale": "counts"}}
    return recipe_from_mapping(mapping | tables, "the test")


@pytest.mark.parametrize("preset", sorted(_PRESETS))
def test_a_preset_composes_and_fills_in_what_is_not_given(preset):
    settings = recipe_with(model={"preset": preset}).settings
    for table, values in _PRESETS[preset].items():
        assert {key: getattr(getattr(settings, table), key) for key in values} == dict(values)
    with torch.device("meta"):
        denoiser = build_denoiser(settings, n_genes=50, labels=(3, 2, 0))
    assert len(denoiser.blocks) == settings.model.depth
    assert build_objective(settings).process.n_times == settings.model.times
    assert len(build_sampler(settings).times) == settings.sampling.steps


def test_the_default_configuration_composes():
    settings = recipe_with().settings
    assert settings.model.preset in _PRESETS
    assert build_denoiser(settings, n_genes=5, labels=(1, 1, 1)) is not None
    assert build_objective(settings) is not None
    assert build_sampler(settings) is not None


def test_the_cosine_schedule_is_the_power_cosine_of_gamma_1():
    cosine = build_process(_model(schedule="cosine")).alpha_bar(torch.arange(20))
    powered = build_process(_model(schedule="power-cosine", gamma=1.0)).alpha_bar(torch.arange(20))
    torch.testing.assert_close(cosine, powered)
    assert not torch.allclose(cosine, build_process(_model()).alpha_bar(torch.arange(20)))


def test_kernel_step_and_guidance_are_those_named():
    assert isinstance(build_kernel(_model()), EnergyKernel)
    assert isinstance(build_kernel(_model(kernel="gaussian", bandwidths=(1.0, 2.0))), GaussianKernel)
    given = ({"eta": 0.5}, {"sampler": "ddpm", "variance": "large"})
    ddim, ddpm = (build_sampler(recipe_with(sampling=sampling).settings).step for sampling in given)
    assert isinstance(ddim, DDIM)
    assert ddim.eta == 0.5
    assert isinstance(ddpm, DDPM)
    assert ddpm.variance == "large"
    denoiser = build_denoiser(recipe_with().settings, n_genes=5, labels=(1, 1, 1))
    assert build_guided(SamplingSettings(guidance=0.0), denoiser) is denoiser
    guided = build_guided(SamplingSettings(guidance=1.5, guidance_of="x_0", guidance_passes="two"), denoiser)
    assert isinstance(guided, Guided)
    assert (guided.terms, guided.of, guided.one_pass) == ([(1.5, (True, True, True))], "x_0", False)


def test_a_strength_for_each_covariate_is_a_term_of_its_own_and_none_is_no_guidance():
    denoiser = build_denoiser(recipe_with().settings, n_genes=5, labels=(1, 1, 1))
    guided = build_guided(SamplingSettings(guidance=Guidance(cell_type=0.5, perturbation=1.5)), denoiser)
    assert isinstance(guided, Guided)
    assert guided.terms == [(1.5, (True, False, False)), (0.5, (False, True, False))]
    assert tuple(Guidance.model_fields) == COVARIATES
    assert build_guided(SamplingSettings(guidance=Guidance()), denoiser) is denoiser


def test_the_times_of_the_reverse_chain_reach_from_its_end_or_truncation_to_zero():
    recipe = recipe_with(model={"times": 40}, sampling={"steps": 4})
    assert build_sampler(recipe.settings).times == [39, 26, 13, 0]
    assert build_sampler(recipe.settings_with(sampling={"truncate": 4})).times == [3, 2, 1, 0]


def _model(**changes):
    return ModelSettings(**{"width": 16, "depth": 1, "heads": 2, "embedding_width": 4, "times": 20} | changes)
