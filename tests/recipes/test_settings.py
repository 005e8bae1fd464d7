"""Settings are strict, are read by their former names, and a preset fills in what is not given."""

import json
import tomllib

import pytest

from perturbdiff.core.choices import COVARIATES
from perturbdiff.core.population import Condition
from perturbdiff.prediction.inputs import with_sampling
from perturbdiff.recipes.dataset import recipe_from_mapping
from perturbdiff.recipes.selection import Match
from perturbdiff.recipes.settings import _PRESETS, Encoders, Guidance, Settings


def recipe_with(**tables):
    mapping = {"name": "r", "kind": "rna-seq", "expression": {"scale": "counts"}}
    return recipe_from_mapping(mapping | tables, "the test")


def test_all_that_has_a_field_for_each_covariate_has_them_in_one_order():
    assert Condition._fields == COVARIATES
    assert all(tuple(table.model_fields) == COVARIATES for table in (Match, Encoders, Guidance))


def test_a_given_value_wins_over_the_presets_and_an_override_over_both():
    recipe = recipe_with(model={"preset": "tiny", "width": 32}, training={"seed": 3, "max_steps": 7})
    settings = recipe.settings_with(training={"seed": 5, "max_steps": None})
    assert settings.model.width == 32
    assert settings.model.depth == _PRESETS["tiny"]["model"]["depth"]
    assert (settings.training.seed, settings.training.max_steps) == (5, 7)


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        ({"model": {"widht": 32}}, "'widht' is not a key here; the nearest is 'width'"),
        ({"training": {"learning_rte": 1.0}}, "'learning_rte' is not a key here; the nearest is 'learning_rate'"),
        ({"sampling": {"stpes": 5}}, "'stpes' is not a key here; the nearest is 'steps'"),
        ({"model": {"preset": "huge"}}, "model.preset is 'huge', which should be 'tiny', 'small', 'medium' or 'paper'"),
        ({"training": {"max_steps": "many"}}, "training.max_steps is 'many', which should be a valid integer"),
        ({"training": {"max_steps": 0}}, "training.max_steps is 0, which should be greater than or equal to 1"),
        ({"model": {"width": 20, "heads": 3}}, "width = 20 is not a multiple of heads = 3"),
        ({"model": {"kernel": "gaussian"}}, 'bandwidths = .. does not fit kernel = "gaussian"'),
        ({"model": {"bandwidths": [1.0]}}, 'bandwidths = .1.0. does not fit kernel = "energy"'),
        ({"training": {"mmd_weight": 0, "mse_weight": 0}}, "mmd_weight and mse_weight are both 0"),
        ({"model": {"times": 5}, "sampling": {"steps": 6}}, "sampling.steps = 6 of 5 times does not fit"),
        ({"sampling": {"steps": 4, "truncate": 3}}, "sampling.steps = 4 of 3 times does not fit"),
        ({"model": {"times": 5}, "sampling": {"steps": 2, "truncate": 6}}, "of 6 times does not fit a chain of"),
        *(
            ({"sampling": {"guidance": given}}, f"sampling.guidance: {given!r} is no strength, which is a number of at")
            for given in (-1.0, True, "strong", float("nan"), float("inf"))
        ),
        ({"sampling": {"guidance": [1.0, 2.0]}}, "sampling.guidance: .1.0, 2.0. is no strength, .*; write guidance ="),
        ({"sampling": {"guidance": {"celltype": 1.0}}}, "guidance: 'celltype' is not a key here; .* is 'cell_type'"),
        ({"sampling": {"guidance": {"cell_type": -1}}}, "sampling.guidance.cell_type is -1, which should be greater"),
        ({"sampling": {"guidance": {"cell_type": "x"}}}, "sampling.guidance.cell_type is 'x', which should be a valid"),
        ({"sampling": {"guidance": {"cell_type": float("inf")}}}, "cell_type is inf, which should be a finite number"),
        (
            {
                "model": {"null": "joint"},
                "training": {"dropout_per": "minibatch"},
                "sampling": {"guidance": {"perturbation": 1.5}},
            },
            'sampling.guidance has strengths .1.5, 0.0, 0.0. .* model.null = "joint" .*; write one number',
        ),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(tables, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        recipe_with(**tables).settings_with()
    assert "\n" not in str(error.value)


def test_settings_are_read_by_their_former_names_too_but_not_by_both():
    former = recipe_with(model={"rho": 0.25}, training={"coins": "minibatch"})
    today = recipe_with(model={"shared_noise": 0.25}, training={"dropout_per": "minibatch"})
    assert former == today
    assert (former.settings.model.shared_noise, former.settings.training.dropout_per) == (0.25, "minibatch")
    tables = today.settings.model_dump()
    tables["model"]["rho"] = tables["model"].pop("shared_noise")
    assert Settings.model_validate(tables) == today.settings
    with pytest.raises(ValueError, match=r"model\.rho is the former name of model.shared_noise; leave it out"):
        recipe_with(model={"rho": 0.25, "shared_noise": 0.25})


def test_settings_cannot_be_changed():
    settings = recipe_with().settings
    with pytest.raises(ValueError, match="frozen"):
        settings.training.seed = 1


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("guidance = 1", 1.0),
        ("guidance = 1.5", 1.5),
        ("guidance = {}", Guidance()),
        ("guidance = { perturbation = 1.5, cell_type = 1 }", Guidance(perturbation=1.5, cell_type=1.0)),
    ],
)
def test_guidance_is_a_number_or_a_table_in_toml_and_survives_json_and_other_overrides(text, wanted):
    settings = recipe_with(sampling=tomllib.loads(text)).settings
    assert settings.sampling.guidance == wanted
    assert type(settings.sampling.guidance) is type(wanted)
    stored = json.loads(json.dumps(settings.model_dump(mode="json")))
    assert Settings.model_validate(stored) == settings
    assert with_sampling(settings, {"steps": 7, "guidance": None}).sampling.guidance == wanted
    assert with_sampling(settings, {"guidance": {"assay_batch": 2}}).sampling.guidance == Guidance(assay_batch=2.0)
    assert with_sampling(settings, {"guidance": 3}).sampling.guidance == 3.0
