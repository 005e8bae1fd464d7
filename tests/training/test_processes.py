"""Several processes train as one would; what launchers say is read right."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from perturbdiff.checkpoint import load_checkpoint
from perturbdiff.recipes.dataset import read_recipe, write_recipe
from perturbdiff.training.processes import Processes, processes

SCRIPT = Path(__file__).with_name("two_processes.py")
STEPS = 10


@pytest.fixture
def _no_launcher(monkeypatch):
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("_no_launcher")
def test_one_process_is_alone_where_no_launcher_started_it():
    assert processes() == Processes(0, 1, 1)
    assert processes().per_node == 1


@pytest.mark.usefixtures("_no_launcher")
def test_torchruns_variables_give_rank_world_and_machines(monkeypatch):
    told = {"TORCHELASTIC_RUN_ID": "x", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "1"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert processes() == Processes(5, 8, 2)
    assert processes().per_node == 4
    monkeypatch.setenv("WORLD_SIZE", "7")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="7 processes are not spread evenly over 2 machines"):
        processes()


@pytest.mark.usefixtures("_no_launcher")
def test_slurms_variables_give_rank_world_and_machines(monkeypatch):
    told = {"SLURM_NTASKS": "8", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "3", "SLURM_NNODES": "2"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="SLURM starts 8 tasks and does not say how many on each machine; give --nta"):
        processes()
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
    assert processes() == Processes(3, 8, 2)


@pytest.fixture(scope="module")
def launch(screen, tmp_path_factory):
    """Train the tiny screen for some steps with so many processes; the losses of each step, a mean over processes."""
    folder = tmp_path_factory.mktemp("processes")
    recipe = read_recipe(screen.recipe)

    def start(name, n_processes, *, die_at=None, stage="train", pretrained=None, no_better=False, **training):
        changed = {"training": recipe.training | {"max_steps": STEPS, "populations_per_batch": 4} | training}
        write_recipe(recipe.model_copy(update=changed | {"files": (str(screen.data),)}), folder / "recipe.toml")
        alone = [sys.executable]
        several = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_processes}"]
        arguments = [SCRIPT, folder / "recipe.toml", folder / name, folder / f"{name}.losses"]
        options = {"--die-at": die_at, "--stage": stage, "--pretrained": pretrained}
        given = [part for pair in options.items() if pair[1] is not None for part in pair]
        given += ["--no-better"] * no_better
        command = [*(alone if n_processes == 1 else several), *arguments, *given]
        ended = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)
        assert (ended.returncode == 0) == (die_at is None), ended.stderr[-3000:]
        found = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{name}.losses.*"))]
        assert len(found) == n_processes
        return folder / name, found

    return start


@pytest.fixture(scope="module")
def two(launch):
    return launch("two", 2)


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one_with_the_doubled_batch_on_disjoint_populations(launch, two):
    (_, alone), (run, both) = launch("one", 1), two
    for step in map(str, range(STEPS)):
        (loss, keys), shares = alone[0][step], [own[step] for own in both]
        assert sorted(keys) == sorted(key for _, own in shares for key in own)
        assert not set(shares[0][1]) & set(shares[1][1])
        assert np.mean([own for own, _ in shares]) == pytest.approx(loss, abs=1e-4)
    one, other = load_checkpoint(run.with_name("one")), load_checkpoint(run)
    assert one.history["step"] == other.history["step"]
    assert one.history["validation_energy"] == pytest.approx(other.history["validation_energy"], abs=1e-4)


@pytest.mark.slow
def test_two_processes_that_were_killed_resume_as_if_nothing_had_happened(launch, two):
    run, undisturbed = two
    launch("killed", 2, die_at=5)
    again, resumed = launch("killed", 2)
    for own, before in zip(resumed, undisturbed, strict=True):
        assert min(map(int, own)) in range(1, 6)
        assert {step: before[step] for step in own} == own
    whole, found = load_checkpoint(run), load_checkpoint(again)
    assert found.history == whole.history
    assert all(torch.equal(found.weights[name], value) for name, value in whole.weights.items())


@pytest.mark.slow
def test_patience_ends_two_processes_as_it_does_one_and_a_fine_tuning_too(launch):
    settings = {"validate_start": True, "validate_every": 2, "patience": 2}
    pretrained, _ = launch("before", 1, stage="pretrain")
    for name, n_processes, begun in (("one", 1, None), ("two", 2, None), ("tuned", 2, pretrained)):
        run, losses = launch(f"patient-{name}", n_processes, pretrained=begun, no_better=True, **settings)
        assert [max(map(int, own)) for own in losses] == [3] * n_processes
        assert load_checkpoint(run).history["step"] == 0


@pytest.mark.slow
def test_two_processes_pretrain_and_fine_tune_as_one_does_and_go_on_after_one_was_killed(launch):
    stages = {}
    for stage in ("pretrain", "finetune"):
        pretrained = stages["pretrain"] if stage == "finetune" else None
        one, (alone,) = launch(f"{stage}-one", 1, stage=stage, pretrained=pretrained)
        run, losses = launch(f"{stage}-two", 2, stage=stage, pretrained=pretrained)
        launch(f"{stage}-cut", 2, stage=stage, pretrained=pretrained, die_at=6)
        cut, _ = launch(f"{stage}-cut", 2, stage=stage, pretrained=pretrained)
        for step, (loss, keys) in alone.items():
            assert sorted(losses[0][step][1] + losses[1][step][1]) == sorted(keys)
            assert np.mean([own[step][0] for own in losses]) == pytest.approx(loss, rel=1e-4)
        finished = [load_checkpoint(folder).weights for folder in (run, cut)]
        assert all(torch.equal(value, finished[1][name]) for name, value in finished[0].items())
        stages[stage] = one
