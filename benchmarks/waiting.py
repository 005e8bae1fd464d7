"""What a user waits for: whole commands, from the first byte of Python to the last, and the README's first lines of it.

    python benchmarks/waiting.py --before ../earlier --rounds 5

On simulated cells (5,868 of 200 genes) and a tiny model: `--help`, `split`, `train` up to its first step, `predict` of
400 cells, each a process of its own, `--before` (a checkout of an earlier state) and this one in turn. Then the first
lines of Python in each README, once. Run it without the extras, as `pip install .` leaves things: lightning imports
transformers where that is installed, which takes a second. The machine is not ours alone: what counts is the ratio of
the medians, and of the CPU time. Results: benchmarks/results/waiting.json and waiting.md."""

import argparse
import json
import os
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import anndata as ad
import pandas as pd

HERE = Path(__file__).parent
RECIPE = """
name = "waiting"
control = "control"
files = ["screen.h5ad"]

[columns]
perturbation = "perturbation"
cell_type = "cell_type"
assay_batch = "assay_batch"

[expression]
scale = "counts"

[[hold_out]]
part = "test"
perturbation = ["stimulus_1"]
cell_type = ["type_4"]

[model]
preset = "tiny"

[training]
validate_start = false
"""
N_CELLS = 400
GOALS = {"--help": 1.5, "split": 1.5, "train, one step": 9.0, "predict, 400 cells": 6.0, "README, Python": 120.0}
"""Seconds, on two cores that do nothing else."""


def simulate_files(folder: Path) -> None:
    """A screen, its recipe, and 400 control cells of one type."""
    import perturbdiff

    screen = perturbdiff.simulate("interaction", control_cells_per_group=134, seed=0)
    screen.write_h5ad(folder / "screen.h5ad")
    own = (screen.obs["perturbation"] == "control") & (screen.obs["cell_type"] == "type_4")
    controls: ad.AnnData = screen[own][:N_CELLS].copy()
    if controls.n_obs != N_CELLS:
        raise RuntimeError(f"{controls.n_obs} control cells, not {N_CELLS}")
    controls.write_h5ad(folder / "controls.h5ad")
    asked = pd.DataFrame({"perturbation": ["stimulus_1"], "cell_type": ["type_4"]})
    asked.to_csv(folder / "conditions.csv", index=False)
    (folder / "recipe.toml").write_text(RECIPE)


def ended(words: list[str], checkout: Path, folder: Path) -> dict[str, float]:
    """Seconds on the clock and of the CPU that a process took."""
    environment = os.environ | {"PYTHONPATH": str(checkout / "src")}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *words], env=environment, cwd=folder, capture_output=True, text=True)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with status {done.returncode}:\n{done.stderr}")
    return {"seconds": seconds, "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def commands(which: str) -> dict[str, list[str]]:
    """The words of each; `which` names the folders that it writes to."""
    program = ["-m", "perturbdiff"]
    run, out = f"run-{which}", f"predicted-{which}.h5ad"
    return {
        "--help": [*program, "--help"],
        "split": [*program, "split", "recipe.toml"],
        "train, one step": [*program, "train", "recipe.toml", "--out", run, "--max-steps", "1", "--quiet"],
        "predict, 400 cells": [*program, "predict", run, "controls.h5ad", "conditions.csv", "--out", out, "--quiet"],
    }


def readme_lines(checkout: Path) -> str:
    """The first block of Python of a README."""
    found = re.search(r"```python\n(.*?)```", (checkout / "README.md").read_text(), re.DOTALL)
    if found is None:
        raise RuntimeError(f"{str(checkout / 'README.md')!r} has no block of Python")
    return found[1]


def measured(folder: Path, checkouts: dict[str, Path], rounds: int) -> list[dict[str, Any]]:
    """Every command of every checkout, in turn; a first round, which fills the caches of files, does not count."""
    simulate_files(folder)
    rows = []
    for turn in range(-1, rounds):
        for name in commands(""):
            for which, checkout in checkouts.items():
                if name == "train, one step":
                    shutil.rmtree(folder / f"run-{which}", ignore_errors=True)
                (folder / f"predicted-{which}.h5ad").unlink(missing_ok=True)
                row = {"what": name, "which": which, "round": turn}
                row |= ended(commands(which)[name], checkout, folder)
                print(row, flush=True)
                rows += [row] * (turn >= 0)
    for which, checkout in checkouts.items():
        own = folder / which
        own.mkdir()
        rows.append({"what": "README, Python", "which": which, "round": 0})
        rows[-1] |= ended(["-c", readme_lines(checkout)], checkout, own)
        print(rows[-1], flush=True)
    return rows


def table(rows: list[dict[str, Any]], checkouts: dict[str, Path]) -> str:
    """Medians, and the ratios to what was before."""
    lines = [
        "| what | " + " | ".join(f"{which}, s | CPU s" for which in checkouts) + " | ratio | of CPU | goal, s |",
        "|---" * (2 * len(checkouts) + 4) + "|",
    ]
    for name, goal in GOALS.items():
        own = [[row for row in rows if (row["what"], row["which"]) == (name, which)] for which in checkouts]
        medians = [[statistics.median(row[key] for row in one) for key in ("seconds", "cpu")] for one in own]
        ratios = [now / before for now, before in zip(medians[-1], medians[0], strict=True)]
        cells = [f"{value:.2f}" for values in (*medians, ratios) for value in values]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {goal:g} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    checkouts = {"before": arguments.before, "now": HERE.parent.resolve()}
    with tempfile.TemporaryDirectory(prefix="waiting.") as name:
        rows = measured(Path(name), checkouts, arguments.rounds)
    git = ["git", "-C", str(arguments.before), "rev-parse", "--short", "HEAD"]
    before = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    text = f"Medians of {arguments.rounds}; before: {before}.\n\n{table(rows, checkouts)}"
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    (HERE / "results" / "waiting.md").write_text(f"# What a user waits for\n\n{machine}. {text}\n")
    (HERE / "results" / "waiting.json").write_text(json.dumps({"before": before, "rows": rows}, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
