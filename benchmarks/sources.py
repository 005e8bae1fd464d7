"""Cells in memory and in a store: the same split, panel, scale and minibatches, and the same trained weights.

    python benchmarks/sources.py --data ../shared/data

Makes a store of real knock-outs (Papalexi et al. 2021, 18,826 THP-1 cells x 303 genes), draws so many minibatches from
it and from the .h5ad in memory for each seed, and compares every tensor bit by bit; then trains one model from each.
Results: benchmarks/results/sources.json and sources.md."""

import argparse
import json
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from perturbdiff import PerturbDiff, Recipe
from perturbdiff.core.population import PopulationBatch
from perturbdiff.recipes.dataset import recipe_from_mapping
from perturbdiff.split.rules import split_cells
from perturbdiff.store.build import build_store
from perturbdiff.store.open import open_source
from perturbdiff.training.preparation import Prepared, prepare
from perturbdiff.training.streams import PopulationStream

HERE = Path(__file__).parent
FILE = "papalexi_eccite_thp1_303genes.h5ad"


def recipe_of(data: Path, seed: int) -> Recipe:
    return recipe_from_mapping(
        {
            "name": "knock-outs",
            "control": "control",
            "files": [str((data / FILE).resolve())],
            "n_genes": 200,
            "columns": {"perturbation": "perturbation", "cell_type": "cell_type", "assay_batch": "batch"},
            "expression": {"scale": "counts"},
            "hold_out": [{"part": "test", "perturbation": ["STAT1"], "keep_total": 50}],
            "model": {"preset": "tiny"},
            "training": {"cells_per_population": 64, "populations_per_batch": 4, "max_steps": 30, "seed": seed},
        },
        "benchmarks/sources.py",
    )


def prepared_of(recipe: Recipe, folder: Path) -> tuple[Prepared, str]:
    settings = recipe.settings
    split = split_cells(open_source(recipe, folder), recipe.hold_out, seed=settings.training.seed)
    return prepare(split, recipe, settings), split.hash


def equal(one: PopulationBatch, other: PopulationBatch) -> bool:
    pairs = [(one.perturbed, other.perturbed), (one.control, other.control), (one.key, other.key)]
    pairs += list(zip(one.condition, other.condition, strict=True))
    masks = one.mask is other.mask is None or bool((one.mask == other.mask).all())
    return masks and all(torch.equal(a, b) for a, b in pairs)


def compare(recipe: Recipe, stored: Recipe, folder: Path, n_batches: int) -> dict[str, Any]:
    (memory, split), (store, again) = (prepared_of(one, folder) for one in (recipe, stored))
    streams = [PopulationStream(one.training, per_batch=4) for one in (memory, store)]
    alike, seconds = 0, [0.0, 0.0]
    drawn = [iter(stream) for stream in streams]
    for _ in range(n_batches):
        batches = []
        for i, one in enumerate(drawn):
            start = time.perf_counter()
            batches += list(islice(one, 1))
            seconds[i] += time.perf_counter() - start
        alike += equal(*batches)
    weights = [
        PerturbDiff.from_recipe(one, folder=folder).train(device="cpu", show_progress=False).trained.weights
        for one in (recipe, stored)
    ]
    return {
        "seed": recipe.settings.training.seed,
        "split": split == again,
        "panel and scale": (memory.genes, memory.scale) == (store.genes, store.scale),
        "batches": n_batches,
        "equal": alike,
        "epochs": n_batches * 4 / len(memory.training),
        "weights": all(torch.equal(value, weights[1][name]) for name, value in weights[0].items()),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batches", type=int, default=500)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory(prefix="sources.") as name:
        folder = Path(name)
        build_store(recipe_of(arguments.data, 0), folder, folder / "made.store")
        for seed in arguments.seeds:
            recipe = recipe_of(arguments.data, seed)
            stored = recipe.model_copy(update={"files": ("made.store",)})
            rows.append(compare(recipe, stored, folder, arguments.batches))
            print(rows[-1], flush=True)
    lines = ["| seed | split | panel and scale | minibatches that are equal | epochs | weights after 30 steps |"]
    lines.append("|---|---|---|---|---|---|")
    said = {True: "equal", False: "NOT equal"}
    lines.extend(
        f"| {row['seed']} | {said[row['split']]} | {said[row['panel and scale']]} | {row['equal']} of "
        f"{row['batches']} | {row['epochs']:.1f} | {said[row['weights']]} |"
        for row in rows
    )
    text = "\n".join(lines)
    (HERE / "results" / "sources.md").write_text(f"# Memory and store\n\n{text}\n")
    (HERE / "results" / "sources.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
