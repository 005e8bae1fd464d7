"""Few training cells of every perturbation: whether a prediction is ever worse than unchanged control cells.

    python experiments/few_cells.py --data ../shared/data --seeds 0 1 2

Of each perturbation so many cells train (in each cell type and assay batch), the others are for test: knock-outs of
Papalexi et al., interference of TAP-seq, single activations and interference of Norman and McFaline-Figueroa, IFN-beta
of Kang et al. in every cell type. Nothing is tuned: the defaults of a small model, with 150 steps at most. Beside it
stand its step 0, baselines in the better of both ways (as counts, or on log1p values), unchanged control cells and the
ceiling; the nearest cell type and the sum of members are the mean shift here. Results:
experiments/results/few_cells.md."""

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pandas as pd
import torch

from common import (
    METRICS,
    groups_of,
    judged_beside,
    margins,
    markdown,
    parsed,
    predicted_cells,
    record,
    start_of,
    summary,
)
from perturbdiff import PerturbDiff
from perturbdiff.metrics.tables import over_batches
from perturbdiff.recipes.dataset import Recipe, recipe_from_mapping

HERE = Path(__file__).parent
FILES = {
    "papalexi": ("papalexi_eccite_thp1_303genes.h5ad", "total_umi", (4, 16, 64)),
    "tapseq": ("tapseq_diffex_k562_74genes.h5ad", None, (10, 20)),
    "norman": ("norman_mcfaline_perturbench_devel.h5ad", "total_umi", (10, 20)),
    "kang": ("kang_ifnb_1kgenes.h5ad", None, (16,)),
}
BASELINES = ("control + mean shift", "perturbed mean", "ridge", "similar contexts")
SPARE = 10
"""So many cells a group must have besides those that train, to be judged."""


def recipe_of(name: str) -> Recipe:
    """The recipe of a file, small and quick."""
    file, totals, _ = FILES[name]
    columns = {"perturbation": "perturbation", "cell_type": "cell_type", "assay_batch": "batch"}
    table = {
        "name": name,
        "control": "control",
        "files": [file],
        "columns": columns | ({"total_counts": totals} if totals else {}),
        "expression": {"scale": "counts"},
        "model": {"preset": "small"},
        "training": {
            "cells_per_population": 32,
            "populations_per_batch": 8,
            "max_steps": 150,
            "validate_every": 25,
        },
    }
    if name == "kang":
        table["exclude"] = [{"assay_batch": ["unknown"]}]
    return recipe_from_mapping(table, name)


def rules_of(model: PerturbDiff, kept: int) -> list[dict[str, object]]:
    """A rule for each group that has enough cells; groups with fewer train whole."""
    labels = sorted({*model.source.labels["perturbation"].cat.categories} - {model.source.control})
    groups = groups_of(model.source, [label for label in labels if "+" not in label])
    chosen = groups[groups["cells"] >= kept + SPARE]
    covariates = ["perturbation", "cell_type", "assay_batch"]
    return [
        {"part": "test", "keep_cells": kept, **{name: [row[name]] for name in covariates}}
        for row in chosen.to_dict("records")
    ]


def one(data: Path, name: str, kept: int, seed: int) -> pd.DataFrame:
    """All methods on one file with so many training cells."""
    torch.set_num_threads(1)
    model = PerturbDiff.from_recipe(recipe_of(name), folder=data)
    rules = rules_of(model, kept)
    made, steps = {}, {}
    for method, recipe in {"perturbdiff": model.recipe, "step 0": start_of(model.recipe)}.items():
        trained = PerturbDiff.from_recipe(recipe, folder=data)
        trained.train(hold_out=rules, seed=seed, device="cpu", show_progress=False)
        split = trained.split(rules, seed=seed)
        groups = split.groups("test")
        made[method] = predicted_cells(trained, groups, trained.source, seed)
        steps[method] = trained.trained.history["step"]
    found = judged_beside(made, trained.source, split, list(trained.trained.genes), seed, BASELINES)
    return found.assign(file=name, kept=kept, seed=seed, kept_step=steps["perturbdiff"])


def main() -> None:
    arguments = parsed(__doc__, HERE, data=True)
    tasks = [
        (arguments.data, name, kept, seed)
        for seed in arguments.seeds
        for name, (_, _, numbers) in FILES.items()
        for kept in numbers
    ]
    tables = []
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for task, table in zip(tasks, pool.map(one, *zip(*tasks, strict=True)), strict=True):
            tables.append(table)
            print(task[1:], markdown(summary(table, ["method"])), sep="\n", flush=True)
    rows = pd.concat(tables)
    text = page(rows)
    shown = rows[rows["metric"].isin(METRICS[:2])].drop(columns="suite").dropna(subset=["value"])
    record(
        "few_cells",
        text,
        over_batches(shown, ["file", "kept", "seed", "kept_step", "method", "metric"]),
        arguments.out,
    )
    print(text)


def page(rows: pd.DataFrame) -> str:
    """The results in words and tables."""
    seeds = sorted(rows["seed"].unique().tolist())
    parts = [f"# Few cells of every perturbation\n\n{__doc__.split(chr(10) * 2)[0]} Seeds {seeds}."]
    for (name, kept), own in rows.groupby(["file", "kept"], sort=False):
        steps = sorted(own[["seed", "kept_step"]].drop_duplicates()["kept_step"].tolist())
        perturbations = own.loc[own["metric"] == "energy_distance", "perturbation"]
        unit = "cell_type" if len(set(perturbations)) == 1 else "perturbation"
        apart = margins(own, "control", unit=unit)
        parts += [
            f"## {name}, {kept} cells\n\n{markdown(summary(own, ['method']))}",
            f"Energy distance less that of control, mean over conditions and seeds (95 % interval over "
            f"{unit.replace('_', ' ')}s): {apart}. Steps of the kept weights: {steps}.",
        ]
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
