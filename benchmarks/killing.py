"""SIGKILL at random moments: what is resumed must end as what was never disturbed.

    python benchmarks/killing.py --moments 10

`perturbdiff prepare` of 4 simulated files, and a training from the store that it makes, are each killed at ten random
moments between their first and their last write, every time from the beginning, and then resumed. The store must be
equal file by file, and be invisible until it is whole; the minibatches that training saw (a hash of all their tensors,
step by step) and its weights must be those of the undisturbed run. Results: benchmarks/results/killing.json and .md."""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STEPS = 60
RECIPE: dict[str, Any] = {
    "name": "killed",
    "control": "control",
    "files": ["cells_*.h5ad"],
    "columns": {"perturbation": "perturbation", "cell_type": "cell_type", "assay_batch": "assay_batch"},
    "expression": {"scale": "counts"},
    "hold_out": [
        {"part": "test", "perturbation": ["stimulus_1"], "cell_type": ["type_1"]},
        {"part": "validation", "perturbation": ["stimulus_2"], "cell_type": ["type_1"]},
    ],
    "model": {"preset": "tiny"},
    "training": {"max_steps": STEPS, "validate_every": 5, "cells_per_population": 16, "populations_per_batch": 4},
    "sampling": {"steps": 2},
}


def simulate_files(folder: Path) -> Path:
    """Four files and their recipe."""
    from perturbdiff.recipes.dataset import recipe_from_mapping, write_recipe
    from perturbdiff.simulation.screen import simulate

    adata = simulate(
        "interaction",
        n_genes=400,
        n_cell_types=4,
        n_assay_batches=4,
        n_perturbations=8,
        cells_per_group=150,
        control_cells_per_group=400,
        seed=0,
    )
    adata.obs_names = [f"cell {i}" for i in range(adata.n_obs)]
    for i in range(4):
        adata[i::4].copy().write_h5ad(folder / f"cells_{i}.h5ad")
    write_recipe(recipe_from_mapping(RECIPE, "killing"), folder / "recipe.toml")
    return folder / "recipe.toml"


def worker(kind: str, source: str, out: str) -> None:
    """Do the work in this process; training notes each minibatch."""
    if kind == "prepare":
        from perturbdiff.recipes.dataset import read_recipe
        from perturbdiff.store import build
        from perturbdiff.store.build import build_store

        build._CELLS = 500  # noqa: SLF001 - many small steps, so that there is something to interrupt
        recipe = Path(source)
        build_store(read_recipe(recipe), recipe.parent, Path(out))
        return
    import torch

    from perturbdiff.core.population import PopulationBatch
    from perturbdiff.model import PerturbDiff
    from perturbdiff.training.module import DenoiserModule

    torch.set_num_threads(1)
    original, notes = DenoiserModule.training_step, Path(f"{out}.batches")

    def training_step(module: DenoiserModule, batch: PopulationBatch, batch_idx: int) -> torch.Tensor:
        tensors = [batch.perturbed, batch.control, *batch.condition, batch.key]
        seen = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()
        with notes.open("a") as file:
            file.write(f"{module.global_step} {seen}\n")
        return original(module, batch, batch_idx)

    DenoiserModule.training_step = training_step  # type: ignore[method-assign]
    PerturbDiff.from_recipe(source).train(run=out, device="cpu", show_progress=False)


def start(kind: str, source: Path, out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, __file__, "--worker", kind, str(source), str(out)])


def finish(process: subprocess.Popen[bytes]) -> None:
    if process.wait() != 0:
        raise RuntimeError(f"it ended with status {process.returncode}")


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    while not path.exists():
        if process.poll() is not None:
            raise RuntimeError(f"it ended with status {process.returncode} and wrote nothing")
        time.sleep(0.002)


def files_of(folder: Path) -> dict[str, str]:
    """A hash of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def run_of(folder: Path) -> dict[str, str]:
    """The last note of each step, and the weights; a step that was done again must have been the same."""
    found: dict[str, str] = {}
    for line in Path(f"{folder}.batches").read_text().splitlines():
        step, seen = line.split(" ")
        if found.setdefault(step, seen) != seen:
            raise RuntimeError(f"step {step} saw another minibatch when it was done again")
    return found | {"weights": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()}


def disturb(
    kind: str, source: Path, folder: Path, moments: int, rng: random.Random, outcome: Callable[[Path], dict[str, str]]
) -> list[dict[str, Any]]:
    """Kill and resume, time after time; what came of each."""
    first = {"prepare": lambda out: out.with_name(f".{out.name}.partial"), "train": lambda out: out / "resume.ckpt"}
    undisturbed = folder / f"{kind}.whole"
    process = start(kind, source, undisturbed)
    wait_for(first[kind](undisturbed), process)
    began = time.monotonic()
    finish(process)
    duration, expected = time.monotonic() - began, outcome(undisturbed)
    found: list[dict[str, Any]] = []
    while len(found) < moments:
        out = folder / f"{kind}.{len(found)}"
        process = start(kind, source, out)
        wait_for(first[kind](out), process)
        after = rng.uniform(0, duration)
        time.sleep(after)
        if process.poll() is not None:
            # it was quicker this time: not a moment between its writes
            shutil.rmtree(out)
            Path(f"{out}.batches").unlink(missing_ok=True)
            continue
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        if kind == "prepare" and out.exists():
            # killed after the last write, when the store is there: it must be whole
            if outcome(out) != expected:
                raise RuntimeError("a half-made store was visible")
            shutil.rmtree(out)
            continue
        finish(start(kind, source, out))
        one = {"what": kind, "killed_after": after / duration, "equal": outcome(out) == expected}
        print(one, flush=True)
        found.append(one)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(*arguments.worker)
        return
    rng = random.Random(arguments.seed)  # noqa: S311 - moments, not secrets
    with tempfile.TemporaryDirectory(prefix="killing.") as name:
        folder = Path(name)
        recipe = simulate_files(folder)
        rows = disturb("prepare", recipe, folder, arguments.moments, rng, files_of)
        rows += disturb("train", folder / "prepare.whole", folder, arguments.moments, rng, run_of)
    lines = ["| what | killed at (share of the time between first and last write) | resumed equal |", "|---|---|---|"]
    for kind in ("prepare", "train"):
        own = [row for row in rows if row["what"] == kind]
        when = ", ".join(f"{row['killed_after']:.2f}" for row in sorted(own, key=lambda row: row["killed_after"]))
        lines.append(f"| {kind} | {when} | {sum(row['equal'] for row in own)} of {len(own)} |")
    text = "\n".join(lines)
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "killing.md").write_text(f"# Killed and resumed\n\n{text}\n")
    (HERE / "results" / "killing.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
