"""Averaging warms up; interruptions end training in good order; the run folder keeps the best proven weights."""

import json
import signal
import threading

import pytest
import torch
from torch import nn

from perturbdiff.checkpoint import load_checkpoint
from perturbdiff.model import PerturbDiff
from perturbdiff.training.callbacks import RESUME, AveragedWeights, Interruption, Progress
from perturbdiff.training.module import DenoiserModule

NO_VALIDATION = [{"part": "test", "perturbation": ["stimulus_1", "stimulus_2"], "keep_cells": 1}]
"""It leaves fewer groups than a validation could be drawn from."""


def train(model, run, **options):
    return model.train(run=run, device="cpu", show_progress=False, **options)


@pytest.mark.parametrize("decay", [0.15, 0.999])
def test_the_nth_average_decays_by_the_warmed_up_rate(decay):
    average = AveragedWeights(decay)._kwargs["avg_fn"]
    values = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    found = expected = torch.zeros(3)
    for n, value in enumerate(values):
        kept = min(decay, (1 + n) / (10 + n))
        expected = kept * expected + (1 - kept) * value
        found = average(found, value, torch.tensor(n))
    torch.testing.assert_close(found, expected)


def test_the_kept_weights_are_the_hand_averaged_ones_of_the_trained(make_model, tmp_path, monkeypatch):
    trained = []
    original = DenoiserModule.on_train_batch_start

    def remember(module, *arguments):
        trained.append({name: value.clone() for name, value in module.denoiser.state_dict().items()})
        return original(module, *arguments)

    monkeypatch.setattr(DenoiserModule, "on_train_batch_start", remember)
    model = train(
        make_model(hold_out=NO_VALIDATION, training={"max_steps": 5, "learning_rate": 0.01}), tmp_path / "run"
    )
    state = torch.load(tmp_path / "run" / RESUME, weights_only=True)
    after = {name.removeprefix("denoiser."): value for name, value in state["current_model_state"].items()}
    expected = trained[0]
    # the first update copies; the n-th after it decays by (1 + n) / (10 + n)
    for n, weights in enumerate([*trained[1:], after]):
        kept = 0.0 if n == 0 else min(0.999, (1 + n) / (10 + n))
        expected = {name: kept * expected[name] + (1 - kept) * value for name, value in weights.items()}
    for name, value in model.trained.weights.items():
        torch.testing.assert_close(value, expected[name])


def test_there_are_no_averaged_weights_before_training():
    with pytest.raises(ValueError, match="no averaged weights before training has begun"):
        AveragedWeights(0.9).weights()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_training_after_the_step_at_hand_and_leaves_a_model(make_model, tmp_path, signal_at, number):
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    signal_at(1, number)
    model = train(make_model(training={"max_steps": 50, "validate_every": 10}), tmp_path / "run")
    assert model.outcome.interrupted
    assert model.outcome.steps == 2
    assert {one: signal.getsignal(one) for one in before} == before
    loaded = PerturbDiff.load(tmp_path / "run")
    assert loaded.trained.history["step"] == 2
    assert torch.load(tmp_path / "run" / RESUME, weights_only=True)["global_step"] == 2


def test_an_interrupted_training_in_memory_keeps_its_model(make_model, signal_at):
    signal_at(1, signal.SIGINT)
    model = make_model(hold_out=NO_VALIDATION, training={"max_steps": 50})
    model.train(device="cpu", show_progress=False)
    assert model.outcome.interrupted
    assert model.trained.history == {"step": 2, "validation_energy": None}


def test_a_second_signal_ends_at_once_with_a_keyboard_interrupt_and_not_the_interpreter(
    make_model, tmp_path, signal_at
):
    # a shell's background jobs begin with Ctrl-C ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    signal_at(1, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(make_model(training={"max_steps": 50}), tmp_path / "run")
    assert {one: signal.getsignal(one) for one in before} == before


def test_handlers_are_restored_after_a_training_that_ends_well_and_one_that_fails(make_model, monkeypatch):
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    make_model().train(device="cpu", show_progress=False)
    assert {one: signal.getsignal(one) for one in before} == before

    def fail(*_arguments):
        raise ValueError("on purpose")

    monkeypatch.setattr(DenoiserModule, "training_step", fail)
    with pytest.raises(ValueError, match="on purpose"):
        make_model().train(device="cpu", show_progress=False)
    assert {one: signal.getsignal(one) for one in before} == before


def test_outside_the_main_thread_no_handler_is_touched():
    found = []

    def listen():
        interruption = Interruption()
        interruption.on_train_start(None, None)
        found.append(interruption._before)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [{}]


def test_the_best_weights_by_validation_energy_are_kept_and_not_the_last(make_model, tmp_path, monkeypatch, energies):
    energies(_2=3.0, _4=1.0, _6=2.0, _8=1.5)
    seen = []
    original = DenoiserModule.on_validation_epoch_end

    def on_validation_epoch_end(module):
        seen.append(averaged(next(c for c in module.trainer.callbacks if isinstance(c, AveragedWeights))))
        original(module)

    averaged = AveragedWeights.weights
    monkeypatch.setattr(DenoiserModule, "on_validation_epoch_end", on_validation_epoch_end)
    model = train(make_model(training={"max_steps": 8}), tmp_path / "run")
    assert model.trained.history == {"step": 4, "validation_energy": 1.0}
    loaded = load_checkpoint(tmp_path / "run")
    assert loaded.history == {"step": 4, "validation_energy": 1.0}
    for name, value in loaded.weights.items():
        assert torch.equal(value, seen[1][name])


def test_the_best_so_far_survives_a_resumption(make_model, tmp_path, energies):
    energies(_2=1.0, _4=2.0, _6=3.0)
    model = make_model(training={"max_steps": 4})
    train(model, tmp_path / "run")
    train(model, tmp_path / "run", max_steps=6)
    assert model.outcome.steps == 6
    assert model.trained.history == {"step": 2, "validation_energy": 1.0}
    assert json.loads((tmp_path / "run" / "model.json").read_text())["history"]["step"] == 2


JUDGED = {"max_steps": 4, "validate_start": True, "learning_rate": 0.01}
UNPROVEN = {"_0": [1.0, 1.0, 1.0], "_2": [0.2, 1.1, 1.2], "_4": [0.7, 0.95, 1.2]}
"""Lower at steps 2 and 4, by less than the standard error of it over populations."""


def test_a_lower_energy_that_is_not_proven_keeps_the_weights_of_step_0(make_model, tmp_path, energies):
    energies(**UNPROVEN)
    model = train(make_model(training=JUDGED), tmp_path / "run")
    assert model.outcome.steps == 4
    assert model.trained.history == load_checkpoint(tmp_path / "run").history == {"step": 0, "validation_energy": 1.0}
    # they are those that any training begins with
    other = make_model(training=JUDGED | {"learning_rate": 1.0}).train(device="cpu", show_progress=False)
    assert other.trained.history["step"] == 0
    for name, value in model.trained.weights.items():
        assert torch.equal(value, other.trained.weights[name])


def test_a_proven_energy_keeps_the_trained_weights_and_a_yet_lower_one_has_to_be_proven_too(
    make_model, tmp_path, energies
):
    energies(_0=[1.0, 1.0, 1.0], _2=[0.9, 0.8, 0.9], _4=[-3.0, 1.3, 1.4])
    model = train(make_model(training=JUDGED), tmp_path / "run")
    assert model.trained.history == {"step": 2, "validation_energy": pytest.approx(2.6 / 3)}


def test_energies_of_the_start_survive_a_resumption(make_model, tmp_path, energies):
    energies(**UNPROVEN)
    model = train(make_model(training=JUDGED | {"max_steps": 2}), tmp_path / "run")
    state = torch.load(tmp_path / "run" / RESUME, weights_only=True)["callbacks"]["RunFolder"]
    assert state["start"] == [1.0, 1.0, 1.0]
    train(model, tmp_path / "run", max_steps=4)
    assert model.outcome.steps == 4
    assert model.trained.history == {"step": 0, "validation_energy": 1.0}


def test_where_step_0_is_not_judged_the_lowest_energy_is_kept(make_model, tmp_path, energies):
    energies(**UNPROVEN)
    model = train(make_model(training=JUDGED | {"validate_start": False}), tmp_path / "run")
    assert model.trained.history == {"step": 2, "validation_energy": pytest.approx(2.5 / 3)}


def test_without_a_validation_the_weights_of_step_0_are_kept_and_a_warning_names_both_remedies(
    make_model, tmp_path, said
):
    model = train(make_model(hold_out=NO_VALIDATION, training=JUDGED), tmp_path / "run")
    assert (model.outcome.steps, model.outcome.interrupted) == (0, False)
    assert model.trained.history == load_checkpoint(tmp_path / "run").history == {"step": 0, "validation_energy": None}
    (warning,) = (sentence for sentence in said if "before its first step" in sentence)
    assert warning.startswith("without validation cells nothing tells whether a trained network is better than what is")
    assert '(hold_out, part = "validation")' in warning
    assert "training.validate_start = false" in warning
    # it is complete: asked for again it neither trains nor is refused
    again = train(make_model(hold_out=NO_VALIDATION, training=JUDGED), tmp_path / "run")
    assert again.outcome.steps == 0
    assert all(torch.equal(value, again.trained.weights[name]) for name, value in model.trained.weights.items())


def test_without_a_validation_training_goes_on_where_step_0_is_not_to_be_judged_or_nothing_is_expected(
    make_model, said
):
    for changes in (
        {"training": JUDGED | {"validate_start": False}},
        {"training": JUDGED, "model": {"target": "change"}},
    ):
        model = make_model(hold_out=NO_VALIDATION, **changes).train(device="cpu", show_progress=False)
        assert model.outcome.steps == 4
        assert model.trained.history == {"step": 4, "validation_energy": None}
    assert not any("before its first step" in sentence for sentence in said)


def test_without_a_validation_the_last_weights_are_kept_and_a_note_says_why_there_is_none(make_model, tmp_path, said):
    small = make_model(hold_out=NO_VALIDATION)
    assert len(small.split().groups("validation")) == 0
    train(small, tmp_path / "run")
    assert small.trained.history == {"step": 4, "validation_energy": None}
    (note,) = {note for note in said if note.startswith("No validation: ")}
    assert "none has cells enough to be divided" in note


def test_what_is_kept_are_weights_of_the_denoiser_alone(make_model):
    model = make_model().train(device="cpu", show_progress=False)
    assert isinstance(model.trained.denoiser(), nn.Module)
    assert not any("denoiser" in name or "module" in name for name in model.trained.weights)


def test_a_bar_writes_little_into_a_log_that_is_no_terminal(monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    assert Progress.of(2000).refresh_rate == 200
    assert Progress.of(4).refresh_rate == 1
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert Progress.of(2000).refresh_rate == 1
