"""A resumed run ends where an undisturbed one does; no other run is ever taken up or overwritten unasked."""

import shutil
import signal
import subprocess
import sys

import pytest
import torch

from perturbdiff.checkpoint import load_checkpoint
from perturbdiff.io import run_lock
from perturbdiff.model import PerturbDiff
from perturbdiff.training.callbacks import RESUME
from perturbdiff.training.module import DenoiserModule


def train(model, run, **options):
    return model.train(run=run, device="cpu", show_progress=False, **options)


def state_of(run):
    return torch.load(run / RESUME, weights_only=True)


def assert_equal_states(one, other):
    for key in ("state_dict", "current_model_state"):
        assert one[key].keys() == other[key].keys()
        assert all(torch.equal(value, other[key][name]) for name, value in one[key].items())
    moments = [state["optimizer_states"][0]["state"] for state in (one, other)]
    assert all(torch.equal(value, moments[1][i][name]) for i, own in moments[0].items() for name, value in own.items())
    assert one["lr_schedulers"][0]["last_epoch"] == other["lr_schedulers"][0]["last_epoch"]
    assert one["global_step"] == other["global_step"]


@pytest.mark.parametrize(("step", "target"), [(0, "counts"), (2, "counts"), (3, "counts"), (2, "residual")])
def test_an_interrupted_and_resumed_run_equals_an_undisturbed_one(
    make_model, tmp_path, signal_at, monkeypatch, step, target
):
    training = {"max_steps": 7, "validate_every": 3, "learning_rate": 0.01}
    changes = {"training": training, "model": {"target": target}}
    train(make_model(**changes), tmp_path / "whole")
    with monkeypatch.context():
        signal_at(step, signal.SIGINT)
        interrupted = train(make_model(**changes), tmp_path / "parts")
    monkeypatch.undo()
    assert interrupted.outcome.interrupted
    assert interrupted.outcome.steps == step + 1
    resumed = train(make_model(**changes), tmp_path / "parts")
    assert not resumed.outcome.interrupted
    assert resumed.outcome.steps == 7
    assert resumed.trained.settings.model.target == target
    assert_equal_states(state_of(tmp_path / "parts"), state_of(tmp_path / "whole"))


@pytest.mark.parametrize(
    "hold_out", [[], [{"part": "test", "perturbation": ["stimulus_1", "stimulus_2"], "keep_cells": 1}]]
)
def test_a_run_killed_between_two_states_is_taken_up_from_the_last_one(
    make_model, tmp_path, monkeypatch, hold_out, said
):
    changes = {"hold_out": hold_out, "training": {"max_steps": 6, "validate_every": 2}}
    train(make_model(**changes), tmp_path / "whole")
    original = DenoiserModule.training_step

    def die(module, batch, batch_idx):
        if module.global_step == 3:
            raise OSError("the power is gone")
        return original(module, batch, batch_idx)

    monkeypatch.setattr(DenoiserModule, "training_step", die)
    with pytest.raises(OSError, match="the power is gone"):
        train(make_model(**changes), tmp_path / "parts")
    monkeypatch.undo()
    assert state_of(tmp_path / "parts")["global_step"] == 2
    said.clear()
    train(make_model(**changes), tmp_path / "parts")
    assert f"resuming from {str(tmp_path / 'parts' / RESUME)!r}." in said
    assert any("for 4 steps" in sentence for sentence in said)
    assert_equal_states(state_of(tmp_path / "parts"), state_of(tmp_path / "whole"))
    kept, expected = load_checkpoint(tmp_path / "parts"), load_checkpoint(tmp_path / "whole")
    assert kept.history == expected.history
    assert all(torch.equal(value, expected.weights[name]) for name, value in kept.weights.items())


def test_the_same_call_on_a_finished_run_changes_nothing(make_model, own_run):
    before = {name: (own_run / name).read_bytes() for name in ("model.json", "model.safetensors", RESUME)}
    model = train(make_model(n_genes=30), own_run)
    assert model.outcome.steps == 4
    assert model.trained.history == load_checkpoint(own_run).history
    assert {name: (own_run / name).read_bytes() for name in before} == before


def test_a_finished_run_can_be_prolonged_and_shortening_it_changes_nothing(make_model, own_run):
    assert train(make_model(n_genes=30), own_run, max_steps=6).outcome.steps == 6
    assert train(make_model(n_genes=30), own_run, max_steps=2).outcome.steps == 6
    assert state_of(own_run)["global_step"] == 6


def test_the_log_of_a_resumed_run_stands_beside_the_earlier_one(make_model, own_run):
    before = (own_run / "logs" / "metrics.csv").read_bytes()
    train(make_model(n_genes=30), own_run, max_steps=6)
    assert (own_run / "logs" / "metrics.csv").read_bytes() == before
    assert "validation energy" in (own_run / "logs" / "from_step_4" / "metrics.csv").read_text()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"training": {"seed": 1}}, "settings"),
        ({"model": {"width": 32}}, "settings"),
        ({"sampling": {"steps": 3}}, "settings"),
        ({"hold_out": [{"part": "test", "perturbation": ["stimulus_3"], "cell_type": ["type_1"]}]}, "split"),
        ({"n_genes": 20}, "genes"),
        ({"columns": {"perturbation": "perturbation", "cell_type": "cell_type"}}, "columns, labels"),
    ],
)
def test_another_run_is_refused_and_the_folder_left_as_it_was(make_model, own_run, changes, named):
    before = {path: path.read_bytes() for path in own_run.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=rf"holds another run .it differs in .*{named}.*, and nothing is overwritten"):
        train(make_model(**{"n_genes": 30} | changes), own_run)
    assert {path: path.read_bytes() for path in own_run.rglob("*") if path.is_file()} == before


def test_another_run_is_refused_even_where_only_its_state_was_written(make_model, own_run):
    (own_run / "model.json").unlink()
    before = (own_run / RESUME).read_bytes()
    with pytest.raises(ValueError, match=r"holds another run .it differs in settings or data"):
        train(make_model(n_genes=30, training={"seed": 1}), own_run)
    assert (own_run / RESUME).read_bytes() == before


def test_other_labels_of_the_same_cells_are_another_run(make_model, own_run, adata):
    renamed = adata.copy()
    renamed.obs["cell_type"] = renamed.obs["cell_type"].astype(str).replace("type_1", "type_9")
    with pytest.raises(ValueError, match="it differs in labels"):
        train(make_model(of=renamed, n_genes=30), own_run)


def test_a_run_is_overwritten_only_when_asked_and_only_once_the_data_are_sound(make_model, own_run):
    before = load_checkpoint(own_run)
    kept = own_run / "notes.txt"
    kept.write_text("mine")
    broken = make_model(n_genes=30, hold_out=[{"part": "test", "cell_type": ["type_1", "type_2", "type_3"]}])
    with pytest.raises(ValueError, match="3 of the 3 perturbations held out for test cannot be asked"):
        train(broken, own_run, overwrite=True)
    assert load_checkpoint(own_run).history == before.history
    model = train(make_model(n_genes=30, training={"seed": 1}), own_run, overwrite=True)
    assert model.outcome.steps == 4
    assert load_checkpoint(own_run).settings.training.seed == 1
    assert kept.read_text() == "mine"


def test_a_damaged_or_missing_state_is_named_and_the_model_stays(make_model, own_run):
    content = (own_run / RESUME).read_bytes()
    for damaged in (content[:1000], b"", b"garbage"):
        (own_run / RESUME).write_bytes(damaged)
        with pytest.raises(ValueError, match=r"resume.ckpt' is damaged, so the run cannot be resumed"):
            train(make_model(n_genes=30), own_run)
    (own_run / RESUME).unlink()
    with pytest.raises(ValueError, match=r"holds a model without resume.ckpt; choose another folder"):
        train(make_model(n_genes=30), own_run)
    assert load_checkpoint(own_run).history["step"] in {2, 4}


def test_a_run_folder_can_be_moved(make_model, own_run, tmp_path):
    moved = shutil.move(own_run, tmp_path / "elsewhere")
    assert train(make_model(n_genes=30), moved, max_steps=5).outcome.steps == 5


def test_a_run_folder_in_which_another_process_trains_is_refused_and_left_as_it_is(screen, own_run, cli, tmp_path):
    run = tmp_path / "run"
    code = (
        "import sys, pathlib; from perturbdiff.io import run_lock\n"
        "with run_lock(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        ended = cli("train", screen.recipe, "--out", run)
        assert ended.status == 2
        sentence = f"another process trains in {str(run)!r}; wait until it has ended, or choose another folder."
        assert ended.err == f"error: {sentence}\n"
        model = PerturbDiff.from_recipe(screen.recipe)
        with pytest.raises(ValueError, match="another process trains in"):
            model.train(run=run, device="cpu", show_progress=False)
        for words in (["pretrain", screen.recipe], ["finetune", own_run, screen.recipe]):
            assert cli(*words, "--out", run).err == f"error: {sentence}\n"
        assert [path.name for path in run.iterdir()] == [".lock"]
    finally:
        other.kill()
        other.communicate()
    # the system let go of it; what is left of it stands in nobody's way, and a training leaves nothing of it behind
    model.train(run=run, device="cpu", show_progress=False)
    assert (run / "model.json").exists()
    assert not (run / ".lock").exists()


def test_a_lock_leaves_no_folder_behind_that_it_made_for_itself(tmp_path):
    with pytest.raises(ValueError, match="bad input"), run_lock(tmp_path / "a" / "run"):
        raise ValueError("bad input")
    assert not list(tmp_path.iterdir())
