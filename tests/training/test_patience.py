"""A training that finds nothing better ends, says so, can be told not to, and ends at the same step after resuming."""

import signal

import pytest
import torch

from perturbdiff.checkpoint import load_checkpoint
from perturbdiff.recipes.settings import TrainingSettings
from perturbdiff.training.callbacks import RESUME
from perturbdiff.training.patience import Patience

EVERY = {"max_steps": 16, "validate_every": 2, "patience": 2}


@pytest.fixture
def train(said):
    """Trains a model, and says how patience ended it."""

    def trained(model, run=None, **options):
        said.clear()
        model.train(run=run, device="cpu", show_progress=False, **options)
        return model, [sentence for sentence in said if sentence.startswith("training ended")]

    return trained


def seen(*energies, patience=3, every=10):
    found = Patience(patience, every)
    for i, energy in enumerate(energies):
        found.see(every * i, energy)
    return found


@pytest.mark.parametrize("n_worse", range(6))
def test_patience_lasts_so_many_validations(n_worse):
    assert seen(2.0, 1.0, *[1.5] * n_worse).is_over == (n_worse >= 3)


@pytest.mark.parametrize("n_worse", range(10))
def test_a_late_best_is_given_as_many_steps_again(n_worse):
    assert seen(*[3.0] * 3, 2.9, 2.8, 2.7, 1.0, *[1.5] * n_worse, patience=2).is_over == (n_worse >= 6)


def test_an_equal_validation_is_no_better_and_a_better_one_begins_anew():
    assert seen(1.0, 1.0, 1.0, 1.0).is_over
    assert not seen(2.0, 2.0, 2.0, 1.0, 1.0, 1.0).is_over


def test_no_patience_is_never_over():
    assert not seen(1.0, *[2.0] * 1000, patience=0).is_over


def test_validations_between_those_of_every_nth_step_do_not_count():
    found = seen(1.0, 2.0, 2.0)
    found.see(23, 0.5)
    assert not found.is_over
    found.see(30, 2.0)
    assert found.is_over
    assert "at step 30 of 99: no validation has been better since step 0 " in found.sentence(99)


def test_training_ends_after_the_patience_keeps_the_best_and_says_so_in_one_sentence(
    train, make_model, energies, tmp_path
):
    energies(_2=1.0)
    model, said = train(make_model(training=EVERY), tmp_path / "run")
    assert model.outcome.steps == 6
    assert not model.outcome.interrupted
    assert load_checkpoint(tmp_path / "run").history == {"step": 2, "validation_energy": 1.0}
    assert said == [
        "training ended at step 6 of 16: no validation has been better since step 2 (training.patience = 2; "
        "0 trains on to the last step)."
    ]


def test_training_in_memory_has_a_patience_too_and_weights_of_step_0_count(train, make_model, energies):
    energies(_0=1.0)
    model, (sentence,) = train(make_model(training=EVERY | {"validate_start": True}))
    assert model.outcome.steps == 4
    assert model.trained.history["step"] == 0
    assert "since step 0" in sentence


def test_a_setting_overrules_it(train, make_model, energies):
    energies(_2=1.0)
    assert TrainingSettings.model_fields["patience"].default == 15
    for patience, steps in ((0, 16), (3, 8), (100, 16)):
        model, said = train(make_model(training=EVERY | {"patience": patience}))
        assert model.outcome.steps == steps
        assert len(said) == (steps < 16)


def test_a_training_without_validation_goes_on_to_its_last_step(train, make_model):
    hold_out = [{"part": "test", "perturbation": ["stimulus_1", "stimulus_2"], "keep_cells": 1}]
    model, said = train(make_model(hold_out=hold_out, training={"max_steps": 9, "validate_every": 1, "patience": 1}))
    assert model.outcome.steps == 9
    assert not said


@pytest.mark.parametrize("step", [2, 3, 4])
def test_an_interrupted_and_resumed_run_ends_at_the_same_step(
    train, make_model, energies, signal_at, monkeypatch, tmp_path, step
):
    # what an interrupted run validates besides would be the best by far
    by_step = {"_2": 1.0, "_3": 0.5, "_5": 0.5}
    with monkeypatch.context():
        energies(**by_step)
        signal_at(step, signal.SIGINT)
        model, said = train(make_model(training=EVERY), tmp_path / "run")
        assert model.outcome.interrupted
        assert model.outcome.steps == step + 1
        assert not said
    monkeypatch.undo()
    energies(**by_step)
    model, said = train(make_model(training=EVERY), tmp_path / "run")
    assert model.outcome.steps == 6
    assert "at step 6 of 16: no validation has been better since step 2" in said[0]


def test_a_run_that_patience_ended_is_complete_and_goes_on_only_where_it_is_told_to(
    train, make_model, energies, tmp_path
):
    energies(_2=1.0, _12=0.5)
    run = tmp_path / "run"
    _, said = train(make_model(training=EVERY), run)
    before = {name: (run / name).read_bytes() for name in ("model.json", "model.safetensors")}
    state = torch.load(run / RESUME, weights_only=True)
    model, again = train(make_model(training=EVERY), run)
    assert (model.outcome.steps, model.outcome.interrupted) == (6, False)
    assert again == said
    assert len(said) == 1
    assert {name: (run / name).read_bytes() for name in before} == before
    found = torch.load(run / RESUME, weights_only=True)
    assert (found["global_step"], found["callbacks"]["RunFolder"]) == (6, state["callbacks"]["RunFolder"])
    assert all(torch.equal(value, found["state_dict"][name]) for name, value in state["state_dict"].items())
    longer, _ = train(make_model(training=EVERY), run, max_steps=20)
    assert longer.outcome.steps == 6
    on, _ = train(make_model(training=EVERY | {"patience": 0}), run)
    assert on.outcome.steps == 16
    assert on.trained.history["step"] == 12


def test_a_state_of_before_there_was_a_patience_is_taken_up(train, make_model, energies, tmp_path):
    energies(_2=1.0)
    run = tmp_path / "run"
    train(make_model(training=EVERY), run, max_steps=4)
    state = torch.load(run / RESUME, weights_only=True)
    # nor had weights to prove themselves
    for name in ("patience", "start"):
        del state["callbacks"]["RunFolder"][name]
    torch.save(state, run / RESUME)
    model, _ = train(make_model(training=EVERY), run)
    # of what it sees, 6 is the best: training goes on for as many steps again
    assert model.outcome.steps == 12
    assert model.trained.history["step"] == 2
