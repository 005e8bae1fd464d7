"""No setting is dead, as dropout, qk_norm and output_fn of the release are: each changes what is built or used."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from perturbdiff.building import build_denoiser, build_guided
from perturbdiff.core.choices import COVARIATES
from perturbdiff.core.population import Condition, Noised
from perturbdiff.pretraining import pretrain
from perturbdiff.recipes.dataset import recipe_from_mapping
from perturbdiff.recipes.selection import HoldOut
from perturbdiff.recipes.settings import (
    EncoderSettings,
    FinetuningSettings,
    Guidance,
    ModelSettings,
    SamplingSettings,
    TrainingSettings,
)

TINY = {
    "model": {"preset": "tiny", "width": 16, "depth": 1, "heads": 2, "embedding_width": 4, "times": 20},
    "training": {"max_steps": 4, "cells_per_population": 6, "populations_per_batch": 4, "warmup_steps": 1},
    "sampling": {"steps": 2},
}


def outcome(make_model, **tables):
    """The weights and the validation energy of a short training."""
    model = make_model(**tables).train(device="cpu", show_progress=False)
    flat = torch.cat([value.flatten() for value in model.trained.weights.values()])
    return (*flat.tolist(), model.trained.history["step"], model.trained.history["validation_energy"])


def steps_of_a_steady_training(make_model, **tables):
    """How many steps a training takes whose weights get no better: they hardly change."""
    still = merged(tables, {"training": {"learning_rate": 1e-30, "ema_decay": 0.0}})
    return make_model(**still).train(device="cpu", show_progress=False).outcome.steps


def encoded(make_model, **encoder):
    """The weights after a short training of a model whose cell types have features, in a file."""
    rows = {f"type_{i + 1}": np.cos([i, 2.0 * i + 1, i * i]) for i in range(3)}
    tables = {name: encoder.pop(name) for name in ("training", "model", "sampling") if name in encoder}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "types.npz"
        np.savez(path, **{label: row for label, row in rows.items() if label not in encoder.get("without", ())})
        table = {"kind": "table", "file": str(path)} | {k: v for k, v in encoder.items() if k != "without"}
        return outcome(make_model, encoders={"cell_type": table}, **tables)


def with_features(make_model, **tables):
    return encoded(make_model, **tables)


def two_populations():
    """Of five cells and three genes."""
    cells, index = torch.zeros(2, 5, 3), torch.ones(2, dtype=torch.long)
    return Noised(cells, index, cells, Condition(index, index, index), totals=torch.ones(2, 5), seed=index)


def calls_to_the_network(make_model, **tables):
    """How often guidance asks the network, and for how many populations at a time."""
    settings = make_model(**tables).recipe.settings
    denoiser = build_denoiser(settings, n_genes=3, labels=(1, 1, 1))
    asked = []

    def unclamped(noised):
        asked.append(len(noised.x_t))
        return type(denoiser).unclamped(denoiser, noised)

    denoiser.unclamped = unclamped
    build_guided(settings.sampling, denoiser)(two_populations())
    return asked


def width_of_the_modulation(make_model, **tables):
    """The shape of the condition that the first block is given: once a population, or once a cell."""
    settings = make_model(**tables).recipe.settings
    denoiser, seen = build_denoiser(settings, n_genes=3, labels=(1, 1, 1)), []
    denoiser.blocks[0].register_forward_pre_hook(lambda _block, inputs: seen.append(tuple(inputs[2].shape)))
    denoiser(two_populations())
    return seen


def filled(make_model, **tables):
    """What a preset fills in."""
    table = {"name": "r", "kind": "rna-seq", "expression": {"scale": "counts"}}
    return recipe_from_mapping(table | {"model": tables["model"]}, "the test").settings.model_dump()


def pretrained_on_two(make_model, **tables):
    """A model pretrained on the tiny screen and on the same cells as another source."""
    tables.pop("finetuning", None)
    sources = {name: make_model(hold_out=[]) for name in ("screen", "other")}
    settings = {name: {**TINY[name], **tables.get(name, {})} for name in ("model", "training", "sampling")}
    return pretrain(sources, cells={"other": "controls"}, device="cpu", show_progress=False, **settings)


def pretrained_outcome(make_model, **tables):
    weights = pretrained_on_two(make_model, **tables).trained.weights
    return {name: value.flatten().tolist() for name, value in weights.items()}


def fine_tuned_outcome(make_model, **tables):
    """The weights after a short fine-tuning."""
    pretrained = pretrained_on_two(make_model, **tables)
    model = tables.get("model", {})
    model.pop("projections", None)
    tuned = make_model(**{**tables, "model": model}, hold_out=[])
    tuned.train(pretrained=pretrained, device="cpu", show_progress=False)
    return {name: value.flatten().tolist() for name, value in tuned.trained.weights.items()}


BASE = {"training": {"learning_rate": 0.05, "condition_dropout": 0.5, "control_share": 0.1, "mmd_weight": 1.0}}
BASE["training"] |= {"mse_weight": 1.0, "dropout_per": "minibatch"}
GAUSSIAN = {"model": {"kernel": "gaussian", "bandwidths": [1.0]}}
GUIDED = {"sampling": {"guidance": 2.0}}

DIFFERENCES = {
    "model": {
        "preset": ("tiny", "medium", {}, filled),
        "width": (16, 24, {}, outcome),
        "depth": (1, 2, {}, outcome),
        "heads": (2, 4, {}, outcome),
        "embedding_width": (4, 6, {}, outcome),
        "joint": ("tokens", "features", {}, outcome),
        "target": ("residual", "counts", {}, outcome),
        "null": ("covariate", "joint", {}, outcome),
        "modulate_by": ("population", "cell", {}, width_of_the_modulation),
        "schedule": ("linear", "cosine", {}, outcome),
        "gamma": (0.3, 0.6, {"model": {"schedule": "power-cosine"}}, outcome),
        "times": (20, 30, {}, outcome),
        "shared_noise": (0.0, 0.5, {}, outcome),
        "kernel": ("energy", "gaussian", {}, outcome),
        "bandwidths": ([1.0], [3.0], GAUSSIAN, outcome),
        "scale": (1.0, 2.0, {}, outcome),
        "projections": ("shared", "per_source", {}, pretrained_outcome),
    },
    "training": {
        "max_steps": (1, 4, {}, outcome),
        "cells_per_population": (6, 5, {}, outcome),
        "populations_per_batch": (4, 3, {}, outcome),
        "learning_rate": (0.05, 0.01, {}, outcome),
        "warmup_steps": (1, 3, {}, outcome),
        "decay_share": (0.0, 1.0, {}, outcome),
        "weight_decay": (0.0, 0.5, {}, outcome),
        "gradient_clip": (1.0, 0.001, {}, outcome),
        "ema_decay": (0.999, 0.0, {}, outcome),
        "control_share": (0.0, 0.5, {}, outcome),
        "pairing": ("assay_batch", "nearest", {}, outcome),
        "mmd_weight": (1.0, 0.5, {}, outcome),
        "mse_weight": (1.0, 0.5, {}, outcome),
        "condition_dropout": (0.0, 1.0, {}, outcome),
        "control_dropout": (0.0, 1.0, {}, outcome),
        "self_conditioning": (0.0, 1.0, {}, outcome),
        "dropout_per": ("minibatch", "population", {}, outcome),
        "validate_every": (3, 4, {}, outcome),
        "validate_start": (False, True, {"training": {"learning_rate": 10.0}}, outcome),
        "patience": (0, 1, {"training": {"max_steps": 8, "validate_every": 1}}, steps_of_a_steady_training),
        # what becomes of the labels is not seen in the first steps, in which the network opens
        "novelty": (0.0, 1.0, {"training": {"dropout_per": "population", "validate_every": 4}}, with_features),
        "context_dropout": (0.0, 1.0, {"training": {"validate_every": 4}}, outcome),
        "validation_populations": (4, 1, {}, outcome),
        "seed": (0, 1, {}, outcome),
        "precision": ("float32", "bfloat16", {}, outcome),
    },
    "sampling": {
        "steps": (2, 4, {}, outcome),
        "truncate": (None, 5, {}, outcome),
        "sampler": ("ddim", "ddpm", {}, outcome),
        "eta": (0.0, 1.0, {}, outcome),
        "variance": ("small", "large", {"sampling": {"sampler": "ddpm"}}, outcome),
        "guidance": (0.0, 2.0, {}, outcome),
        "guidance_of": ("change", "x_0", GUIDED, outcome),
        "guidance_passes": ("one", "two", GUIDED, calls_to_the_network),
        "cutoff": (1e-4, 0.5, {}, outcome),
    },
    "finetuning": {
        "head": ("fresh", "kept", {}, fine_tuned_outcome),
        "labels": ("by_name", "fresh", {}, fine_tuned_outcome),
        "source": ("screen", "other", {"model": {"projections": "per_source"}}, fine_tuned_outcome),
        "control_stream": ("kept", "copied", {}, fine_tuned_outcome),
        "freeze": ("nothing", "backbone", {}, fine_tuned_outcome),
        "layer_decay": (1.0, 0.5, {}, fine_tuned_outcome),
        "adapter_rank": (0, 2, {}, fine_tuned_outcome),
    },
}
"""Each setting with two values, what it needs beside it, and where its difference shows."""


def merged(*changes):
    tables = {}
    for change in changes:
        for name, table in change.items():
            tables[name] = tables.get(name, {}) | table
    return tables


def test_every_setting_is_in_the_walk():
    tables = {
        "model": ModelSettings,
        "training": TrainingSettings,
        "sampling": SamplingSettings,
        "finetuning": FinetuningSettings,
    }
    for name, table in tables.items():
        assert set(DIFFERENCES[name]) == set(table.model_fields)


@pytest.mark.parametrize(
    ("table", "field"), [(table, field) for table, fields in DIFFERENCES.items() for field in fields]
)
def test_every_setting_changes_what_is_built_or_used(make_model, table, field):
    one, other, beside, observe = DIFFERENCES[table][field]
    first, second = (
        observe(make_model, **merged(BASE, beside, {table: {field: value}}, _kernel(field, value)))
        for value in (one, other)
    )
    assert first != second


def _kernel(field, value):
    """Bandwidths go with the Gaussian kernel and with no other."""
    return {"model": {"bandwidths": [1.0]}} if field == "kernel" and value == "gaussian" else {}


def test_the_strength_of_every_covariate_changes_the_outcome_and_no_two_change_it_alike(make_model):
    tables = [{}, *({"sampling": {"guidance": {name: 2.0}}} for name in COVARIATES)]
    assert set(Guidance.model_fields) == set(COVARIATES)
    assert len({outcome(make_model, **merged(BASE, table)) for table in tables}) == 1 + len(COVARIATES)


def test_every_setting_of_an_encoder_is_used(make_model):
    fields = {"kind", "file", "learned", "missing", "components", "radius", "size"}
    assert set(EncoderSettings.model_fields) == fields
    made = outcome(make_model, **BASE), encoded(make_model, **BASE), encoded(make_model, learned=False, **BASE)
    assert len({*made}) == 3
    with pytest.raises(ValueError, match=r"1 of 3 trained cell types have no row in types[.]npz"):
        encoded(make_model, without=["type_2"])
    assert encoded(make_model, without=["type_2"], missing="learned", **BASE) != encoded(make_model, **BASE)
    # components, radius and size are handed to the functions that make features, and tested there
    encoders = {"perturbation": {"kind": "loadings", "components": 3, "missing": "learned"}}
    assert (
        make_model(encoders=encoders).train(device="cpu", show_progress=False).trained.features["perturbation"].width
        == 3
    )


def test_what_a_hold_out_rule_says_is_used(make_model):
    fields = {"keep_fraction": 0.5, "keep_cells": 3, "keep_populations": 1, "keep_total": 5, "hold_out_controls": True}
    rule = {"part": "test", "cell_type": ["type_3"]}
    plain = make_model(hold_out=[rule]).split().hash
    # what other_doses says is heard by the audit of a split
    assert {*HoldOut.model_fields} == {"part", "perturbation", "cell_type", "assay_batch", "other_doses", *fields}
    hashes = {make_model(hold_out=[rule | {key: value}]).split().hash for key, value in fields.items()}
    assert len(hashes | {plain}) == 6
