"""Cells in memory and in a store train the same model: the same split, panel, scale, populations and weights."""

from itertools import islice

import numpy as np
import pytest
import torch

from perturbdiff.model import PerturbDiff
from perturbdiff.populations.changes import measured_changes
from perturbdiff.recipes.dataset import read_recipe, recipe_from_mapping, write_recipe
from perturbdiff.split.rules import split_cells
from perturbdiff.store.build import build_store
from perturbdiff.store.open import open_source, recipe_at
from perturbdiff.store.stored import Store
from perturbdiff.training.preparation import prepare
from perturbdiff.training.streams import PopulationStream


def prepared_of(recipe, folder):
    source = open_source(recipe, folder)
    settings = recipe.settings
    split = split_cells(source, recipe.hold_out, seed=settings.training.seed)
    return prepare(split, recipe, settings), split


def assert_same_training(one, other, n_steps):
    (first, split), (second, again) = one, other
    assert split.hash == again.hash
    assert split.notes == again.notes
    assert split.table().equals(again.table())
    assert (first.genes, first.scale, first.control) == (second.genes, second.scale, second.control)
    assert first.conditions.vocabularies == second.conditions.vocabularies
    changes = [measured_changes(own.training, parts.source.runs) for own, parts in (one, other)]
    assert changes[0].contexts == changes[1].contexts
    assert (changes[0].within, changes[0].across) == (changes[1].within, changes[1].across)
    for name, values in changes[0].arrays().items():
        np.testing.assert_array_equal(values, changes[1].arrays()[name], err_msg=name)
    for populations, others in ((first.training, second.training), (first.validation, second.validation)):
        streams = (PopulationStream(one, per_batch=4) for one in (populations, others))
        for a, b in islice(zip(*streams, strict=True), n_steps):
            assert torch.equal(a.key, b.key)
            assert all(map(torch.equal, a.condition, b.condition))
            assert torch.equal(a.perturbed, b.perturbed)
            assert torch.equal(a.control, b.control)
            assert (a.mask is b.mask is None) or torch.equal(a.mask, b.mask)
            assert torch.equal(a.totals, b.totals)


@pytest.fixture(scope="module")
def stored(screen, tmp_path_factory):
    """The recipe of the screen, and one that reads the store made of it."""
    folder = tmp_path_factory.mktemp("stored")
    recipe = read_recipe(screen.recipe).model_copy(update={"files": (str(screen.data),)})
    write_recipe(recipe, folder / "recipe.toml")
    build_store(recipe, folder, folder / "screen.store")
    return folder, recipe, recipe.model_copy(update={"files": ("screen.store",)})


@pytest.mark.parametrize("pairing", ["assay_batch", "nearest"])
def test_a_store_and_memory_give_the_same_minibatches(stored, pairing):
    folder, *recipes = stored
    recipes = [one.model_copy(update={"training": one.training | {"pairing": pairing}}) for one in recipes]
    assert_same_training(*(prepared_of(recipe, folder) for recipe in recipes), n_steps=60)


def test_few_shot_keeps_the_same_cells_in_a_store_and_in_memory(stored):
    folder, *recipes = stored
    rule = {"part": "test", "perturbation": ["stimulus_1"], "cell_type": ["type_3"], "keep_cells": 5}
    splits = []
    for recipe in recipes:
        own = recipe_from_mapping(recipe.model_dump(exclude_none=True) | {"hold_out": [rule]}, "the test")
        splits.append(prepared_of(own, folder)[1])
    assert splits[0].hash == splits[1].hash
    for part in ("train", "test"):
        np.testing.assert_array_equal(*(split.of(part).positions() for split in splits))


def test_controls_that_are_read_are_those_that_would_be_held(stored, monkeypatch):
    folder, _, recipe = stored
    held, _ = prepared_of(recipe, folder)
    monkeypatch.setitem(held.training.__init__.__kwdefaults__, "held", 0)
    read, _ = prepared_of(recipe, folder)
    assert held.training._held
    assert not read.training._held
    streams = (PopulationStream(one.training, per_batch=4) for one in (held, read))
    for a, b in islice(zip(*streams, strict=True), 30):
        assert torch.equal(a.control, b.control)
        assert torch.equal(a.perturbed, b.perturbed)


@pytest.mark.parametrize("target", ["counts", "residual"])
def test_a_model_trained_from_a_store_is_the_one_trained_from_memory(stored, target):
    folder, *recipes = stored
    trained = []
    for recipe in recipes:
        own = recipe.model_copy(update={"model": recipe.model | {"target": target}})
        trained.append(PerturbDiff.from_recipe(own, folder=folder).train(device="cpu", show_progress=False).trained)
    one, other = trained
    assert one.settings.model.target == target
    assert all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())
    assert one.history == other.history


def test_the_moments_of_a_store_are_those_that_training_would_measure(stored):
    folder, _, recipe = stored
    source = Store.open(folder / "screen.store")
    split = split_cells(source, recipe.hold_out, seed=0)
    assert source.moments(split.hash) is not None
    assert source.moments("another split") is None


def test_a_store_has_the_recipe_that_it_was_made_by_and_refuses_another_reading(stored):
    folder, recipe, reading = stored
    found, beside = recipe_at(folder / "screen.store")
    assert (found, beside) == (reading, folder)
    columns = recipe.columns.model_copy(update={"assay_batch": None})
    with pytest.raises(
        ValueError, match=r"differs from the one that the store 'screen.store' was made with in columns"
    ):
        open_source(reading.model_copy(update={"columns": columns}), folder)
    with pytest.raises(ValueError, match=r"names the store 'screen.store' among 2 files, and a store stands alone"):
        open_source(reading.model_copy(update={"files": ("screen.store", str(recipe.files[0]))}), folder)


@pytest.mark.real
def test_real_knock_outs_give_the_same_minibatches_from_a_store(real_data, tmp_path):
    recipe = recipe_from_mapping(
        {
            "name": "knock-outs",
            "control": "control",
            "files": [str(real_data / "papalexi_eccite_thp1_303genes.h5ad")],
            "n_genes": 200,
            "columns": {"perturbation": "perturbation", "cell_type": "cell_type", "assay_batch": "batch"},
            "expression": {"scale": "counts"},
            "hold_out": [{"part": "test", "perturbation": ["STAT1"], "keep_total": 50}],
            "training": {"cells_per_population": 64, "populations_per_batch": 4},
        },
        "the test",
    )
    build_store(recipe, tmp_path, tmp_path / "made.store")
    stored = recipe.model_copy(update={"files": ("made.store",)})
    assert_same_training(prepared_of(recipe, tmp_path), prepared_of(stored, tmp_path), n_steps=150)
