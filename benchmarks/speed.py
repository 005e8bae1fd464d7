"""A training step's and a prediction's time and memory, against the release's configuration of the same size.

    python benchmarks/speed.py

Both have 2,000 genes, width 512, depth 8, 8 heads and minibatches of 8 populations of 256 cells. "parity" is the
release's way: streams joined on features, one condition vector a cell, self-conditioning and dropped conditions at
1/2 by one coin a minibatch, 100 truncated steps with two forwards each for guidance. "ours" has the defaults, which
draw cells as counts; "ours, log1p" changes log1p values, and is otherwise the same.
Configurations take turns in one run, each in a process of its own, so that ratios hold on a noisy machine; times are
medians, memory is the peak resident set of the process. Results: benchmarks/results/speed.json and speed.md."""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from perturbdiff.building import build_denoiser, build_guided, build_objective, build_sampler
from perturbdiff.core.population import Condition, PopulationBatch
from perturbdiff.core.randomness import stream
from perturbdiff.recipes.dataset import recipe_from_mapping
from perturbdiff.recipes.settings import Settings

HERE = Path(__file__).parent
N_GENES, N_POPULATIONS, N_CELLS = 2000, 8, 256
PARITY: dict[str, Any] = {
    "model": {
        "preset": "paper",
        "joint": "features",
        "target": "cell",
        "null": "joint",
        "modulate_by": "cell",
        "shared_noise": 0.0,
    },
    "training": {"mse_weight": 1.0, "condition_dropout": 0.5, "self_conditioning": 0.5, "dropout_per": "minibatch"},
    "sampling": {"steps": 100, "truncate": 100, "guidance": 1.0, "guidance_of": "x_0", "guidance_passes": "two"},
}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "parity": PARITY,
    "ours, log1p": {"model": {"preset": "paper", "target": "residual"}},
    "ours": {"model": {"preset": "paper"}},
    "ours, guidance 1": {"model": {"preset": "paper"}, "sampling": {"guidance": 1.0}},
}


def settings(name: str) -> Settings:
    """The settings of one configuration."""
    mapping = {"name": name, "control": "c", "columns": {"perturbation": "p"}, "expression": {"scale": "counts"}}
    return recipe_from_mapping({**mapping, **CONFIGURATIONS[name]}, name).settings


def batch() -> PopulationBatch:
    """Cells of about 5,000 counts, log1p counts per 10^4, and a change that is expected of some genes."""
    generator = torch.Generator().manual_seed(0)
    shape = (N_POPULATIONS, N_CELLS, N_GENES)
    rates = (2 * torch.randn(N_GENES, generator=generator)).exp()
    rates *= 5000 / rates.sum()
    counts = torch.poisson(rates.expand(2, *shape), generator=generator)
    totals = counts.sum(dim=-1, keepdim=True)
    cells = torch.log1p(1e4 * counts / totals)
    labels = torch.arange(N_POPULATIONS) % 5 + 1
    return PopulationBatch(
        *cells,
        None,
        Condition(labels, labels, labels),
        torch.arange(N_POPULATIONS),
        totals=totals[1, ..., 0],
        expected=0.3 * torch.randn(N_POPULATIONS, 6, N_GENES, generator=generator),
    )


def worker(name: str, what: str, repeats: int) -> dict[str, Any]:
    """Time one configuration in this process."""
    chosen, cells = settings(name), batch()
    counts = chosen.model.target == "counts"
    denoiser = build_denoiser(chosen, n_genes=N_GENES, labels=(10, 10, 10))
    parameters = sum(p.numel() for p in denoiser.parameters())
    seconds = []
    if what == "training":
        objective = build_objective(chosen)
        optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-4, fused=True)
        for step in range(repeats + 1):
            start = time.perf_counter()
            objective(denoiser, cells, objective.draw(cells, seed=0, step=step)).total.backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(time.perf_counter() - start)
    else:
        denoiser.eval().requires_grad_(requires_grad=False)
        whole = build_sampler(chosen)
        # the parity chain is timed on its last steps, all of which cost the same
        timed = replace(whole, times=whole.times[-2:]) if len(whole.times) > 20 else whole
        for _ in range(repeats + 1):
            start = time.perf_counter()
            timed(
                build_guided(chosen.sampling, denoiser),
                control=cells.control,
                condition=cells.condition,
                streams=[stream(0, i) for i in range(N_POPULATIONS)],
                totals=cells.totals if counts else None,
                expected=None if cells.expected is None else cells.expected[:, 0],
            )
            seconds.append((time.perf_counter() - start) * len(whole.times) / len(timed.times))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds[1:], "peak_bytes": peak, "parameters": parameters}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="training steps a round; coins differ between steps")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        repeats = arguments.steps if arguments.worker[1] == "training" else 1
        print(json.dumps(worker(*arguments.worker, repeats)))
        return
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for _ in range(arguments.rounds):
        for what in ("training", "prediction"):
            for name in CONFIGURATIONS:
                if what == "training" and "guidance" in name:
                    continue
                command = [sys.executable, __file__, "--steps", str(arguments.steps), "--worker", name, what]
                one = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                kept = found.setdefault((what, name), {"seconds": [], "peak_bytes": 0})
                kept["seconds"] += one["seconds"]
                kept["peak_bytes"] = max(kept["peak_bytes"], one["peak_bytes"])
                kept["parameters"] = one["parameters"]
                print(what, name, one, flush=True)
    lines = [
        "| what | configuration | parameters | seconds (min-max) | times faster | peak memory, GiB |",
        "|---|---|---|---|---|---|",
    ]
    for (what, name), one in found.items():
        # the mean over coin flips for training, the median for prediction
        middle = statistics.fmean if what == "training" else statistics.median
        ratio = middle(found[what, "parity"]["seconds"]) / middle(one["seconds"])
        seconds = f"{middle(one['seconds']):.2f} ({min(one['seconds']):.2f}-{max(one['seconds']):.2f})"
        peak = one["peak_bytes"] / 2**30
        lines.append(f"| {what} | {name} | {one['parameters']:,} | {seconds} | {ratio:.1f} | {peak:.1f} |")
    text = "\n".join(lines)
    machine = (
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "speed.md").write_text(
        f"# Speed and memory\n\n{machine}; [8 populations of 256 cells, 2,000 genes].\n\n{text}\n"
    )
    rows = [{"what": what, "configuration": name, **one} for (what, name), one in found.items()]
    (HERE / "results" / "speed.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
