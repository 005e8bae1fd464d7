"""Pretraining on unperturbed PBMC, then fine-tuning with few perturbed cells, beside training from scratch.

    python experiments/pretraining.py --data ../shared/data --seeds 0 1 2

A model of unperturbed cells is pretrained on FACS-sorted PBMC and the control cells of Kang et al. (pbmc.toml). From it
one model is fine-tuned, and from new weights another trained, at equal steps and on the same cells:

* Kang, IFN-beta in two held-out cell types, with 16, 64, 256 and all stimulated training cells;
* Papalexi, 24 knock-outs in another cell line on another panel of genes, with 4, 16 and 64 cells of each; other cells
  of the same knock-outs test.

The weights are chosen on validation cells that are the same for both: CD8 T cells; other cells of each knock-out. Each
is done for three readings of the network: as a change of the control cells' counts beside the expected one (target
"counts", the default; the head begins afresh), of their log1p values ("residual"), and as the cell itself (target
"cell", the release's; the head is kept).

What is done stays in experiments/runs, and the same command goes on from there. Results:
experiments/results/pretraining.md."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import wraps
from itertools import product
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch

from common import GROUP, METRICS, groups_of, judged, markdown, on_panel, parsed, predicted_cells, record, summary
from perturbdiff import Cells, PerturbDiff, pretrain, read_recipe
from perturbdiff.cells.anndata import cells_from_anndata
from perturbdiff.metrics.tables import over_batches
from perturbdiff.recipes.dataset import Expression

HERE = Path(__file__).parent
TARGETS = ("counts", "residual", "cell")
VARIANTS = {
    "counts": ("counts", {}, "fresh"),
    "residual": ("residual", {}, "fresh"),
    "cell": ("cell", {}, "kept"),
}
"""Of fine-tuning and training from scratch: the target, settings of the training, the head of a fine-tuning."""
AMOUNTS = {"kang": [16, 64, 256, None], "papalexi": [4, 16, 64]}
PRETRAINING = {"cells_per_population": 32, "populations_per_batch": 8, "validate_every": 50}
SNAPSHOTS = [0, 50, 100, 200, 400, 800, 1200]
"""Steps of the pretraining at which it is asked; each prolongs the run, whose rate is lowered over its second half."""
STEPS = {"kang": 300, "papalexi": 150}
METHODS = ("scratch", "fine-tuned")
SOURCES = ("zheng", "kang")
SUITES = ("ours", "paper")
PAPER = ["PDCorr", "MAE", "MSE", "PDS_cosine", "DEOver", "DEPrec", "DirAgr", "LFCSpear", "AUROC", "AUPRC", "R2"]
"""Of the paper's metrics those that are shown; the means beside the page have all."""
LAYER_DECAY = 0.6
"""By the validation energy of seed 0, among 1, 0.6, a copied control stream, a frozen backbone, a third of the rate."""
BLOCK = 8
"""Stimulated cells that are drawn of one (cell type, donor) at a time: a population takes two and more."""
VALIDATING, TESTING = 15, (10, 200)
"""Cells of each knock-out that validate; that it must have to be tested, and that test at most."""


def kept(make: Callable[..., pd.DataFrame]) -> Callable[..., pd.DataFrame]:
    """A part of the experiment that is done once: its table stays in `runs`, and the experiment goes on from there."""

    @wraps(make)
    def once(data: Path, *what: object) -> pd.DataFrame:
        path = HERE / "runs" / f"{make.__name__}-{'-'.join(map(str, what))}.parquet"
        if not path.exists():
            torch.set_num_threads(1)
            path.parent.mkdir(exist_ok=True)
            make(data, *what).to_parquet(path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
        return pd.read_parquet(path)

    return once


@kept
def pretrained(data: Path, target: str, seed: int) -> pd.DataFrame:
    """Pretrain a model, which stays in its folder; how it predicts held-out cells on its way."""
    folder = HERE / "runs" / f"pbmc-{target}-{seed}"
    sources = {name: PerturbDiff.from_recipe(read_recipe(HERE / f"{name}.toml"), folder=data) for name in SOURCES}
    tables = []
    for steps in SNAPSHOTS:
        model = pretrain(
            sources,
            cells={"kang": "controls"},
            n_genes=2000,
            model={"preset": "small", "target": target},
            # step 0 is judged before training begins, and kept where the one step that follows is not judged
            training=PRETRAINING | {"max_steps": max(1, steps)},
            name="pbmc",
            seed=seed,
            run=folder if steps else None,
            device="cpu",
            show_progress=False,
        )
        tables.append(zero_shot(model, sources["kang"], seed).assign(step=steps))
    print(f"pretrained {target} {seed}: {model.trained.history}", flush=True)
    return pd.concat(tables).assign(data="kang, zero-shot", cells="0", target=target, seed=seed)


def zero_shot(model: PerturbDiff, kang: PerturbDiff, seed: int) -> pd.DataFrame:
    """Held-out stimulated cells, predicted from cell type and donor alone."""
    cells = kang.source
    genes = [gene for gene in model.trained.genes if gene in set(cells.genes)]
    observed, parts = on_panel(cells, genes), []
    groups = held_out(cells)
    for row in groups.itertuples():
        made = model.predict(
            cell_type=row.cell_type, assay_batch=row.assay_batch, cells=row.cells, seed=seed, device="cpu"
        )
        made.obs["perturbation"] = row.perturbation
        made.obs_names = [f"{row.cell_type}-{row.assay_batch}-{name}" for name in made.obs_names]
        parts.append(made[:, genes].copy())
    controls = observed.take(observed.is_control)
    obs = controls.labels.rename(columns={"assay_batch": "batch"}).set_index(controls.names)
    parts.append(ad.AnnData(controls.values, obs=obs.astype(str), var=pd.DataFrame(index=genes)))
    both = ad.concat(parts)
    columns = kang.recipe.columns
    predicted = cells_from_anndata(
        both, columns=columns, expression=Expression(scale="log1p"), control="control", observed=False
    )
    table = judged({"zero-shot": predicted}, observed, seed)
    rows = []
    for cell_type in groups["cell_type"].unique():
        own = {name: _mean(part, "IFN-beta", cell_type) for name, part in (("zero-shot", predicted), ("", observed))}
        own["control"] = _mean(observed, "control", cell_type)
        truth = own.pop("")
        for method, mean in own.items():
            share = 1 - ((mean - truth) ** 2).sum() / ((truth - truth.mean()) ** 2).sum()
            rows.append({"method": method, "perturbation": "IFN-beta", "cell_type": cell_type, "value": share})
    return pd.concat([table, pd.DataFrame(rows).assign(metric="r2_of_means")])


def _mean(cells: Cells, perturbation: str, cell_type: str) -> np.ndarray:
    labels = cells.labels
    own = ((labels["perturbation"] == perturbation) & (labels["cell_type"] == cell_type)).to_numpy()
    return np.asarray(cells.log_expression(list(cells.genes), np.flatnonzero(own)).mean(axis=0)).ravel()


def held_out(cells: Cells) -> pd.DataFrame:
    """The groups of Kang that are predicted."""
    groups = groups_of(cells, ["IFN-beta"])
    return groups[groups["cell_type"].isin(["B cells", "CD14+ Monocytes"])]


def kang(data: Path, amount: int | None, seed: int) -> tuple[PerturbDiff, Cells, pd.DataFrame, list[dict] | None]:
    """A model of so many stimulated cells, drawn by seed; all cells, the groups to predict, and no other rules."""
    recipe = read_recipe(HERE / "kang.toml")
    model = PerturbDiff.from_recipe(recipe, folder=data)
    cells = model.source
    trains = np.zeros(cells.n_cells, dtype=bool)
    trains[model.split(seed=seed).rows("train")] = True
    stimulated = np.flatnonzero(trains & ~cells.is_control)
    rng = np.random.default_rng(seed)
    labels = cells.labels.iloc[stimulated][["cell_type", "assay_batch"]].astype(str)
    groups = [rng.permutation(rows) for rows in labels.reset_index(drop=True).groupby(list(labels)).indices.values()]
    blocks = [rows[i : i + BLOCK] for rows in groups for i in range(0, len(rows), BLOCK)]
    blocks = [blocks[i] for i in rng.permutation(len(blocks)) if len(blocks[i]) > 1]
    drawn = stimulated[np.concatenate(blocks)[:amount]]
    kept = np.ones(cells.n_cells, dtype=bool)
    kept[stimulated] = False
    kept[drawn] = True
    return PerturbDiff(recipe, source=cells.take(kept)), cells, held_out(cells), None


def papalexi(data: Path, amount: int, seed: int) -> tuple[PerturbDiff, Cells, pd.DataFrame, list[dict] | None]:
    """A model of so many cells of each knock-out; the cells that test, the groups to predict, and what validates."""
    recipe = read_recipe(HERE / "papalexi.toml")
    cells = PerturbDiff.from_recipe(recipe, folder=data).source
    rng = np.random.default_rng(seed)
    labels = cells.labels["perturbation"].astype(str).to_numpy()
    seen, tests = [np.flatnonzero(cells.is_control)], [np.flatnonzero(cells.is_control)]
    rules, largest = [], max(AMOUNTS["papalexi"])
    for label in sorted({*labels} - {cells.control}):
        rows = rng.permutation(np.flatnonzero(labels == label))
        if len(rows) < largest + VALIDATING + TESTING[0]:
            continue
        # the same cells validate and test, however many train
        tests.append(rows[largest + VALIDATING :][: TESTING[1]])
        seen += [rows[:amount], rows[largest : largest + VALIDATING]]
        rules.append({"part": "validation", "perturbation": [label], "keep_total": amount})
    model = PerturbDiff(recipe, source=cells.take(np.sort(np.concatenate(seen))))
    judging = cells.take(np.sort(np.concatenate(tests)))
    groups = groups_of(judging, [rule["perturbation"][0] for rule in rules])
    return model, judging, groups, rules


@kept
def one(data: Path, name: str, amount: int | None, variant: str, seed: int) -> pd.DataFrame:
    """Fine-tuned and from scratch, on the same cells."""
    target, more, head = VARIANTS[variant]
    predicted, facts = {}, {}
    for method in METHODS:
        model, cells, groups, rules = (kang if name == "kang" else papalexi)(data, amount, seed)
        tables = {
            "model": {"preset": "small", "target": target} if method == "scratch" else {"target": target},
            "training": model.recipe.training | more | {"max_steps": STEPS[name]},
            "finetuning": {"head": head, "layer_decay": LAYER_DECAY},
        }
        model.recipe = model.recipe.model_copy(update=tables)
        run = HERE / "runs" / f"{name}-{amount}-{variant}-{method}-{seed}"
        model.train(
            hold_out=rules,
            pretrained=None if method == "scratch" else HERE / "runs" / f"pbmc-{target}-{seed}",
            seed=seed,
            run=run,
            device="cpu",
            show_progress=False,
        )
        predicted[method] = predicted_cells(model, groups, cells, seed)
        logs = pd.read_csv(run / "logs" / "metrics.csv")
        facts[method] = logs.dropna(subset=["validation energy"])[["step", "validation energy"]]
        genes = list(model.trained.genes)
    table = judged(predicted, on_panel(cells, genes), seed, SUITES)
    curves = pd.concat(
        curve.rename(columns={"validation energy": "value"}).assign(method=method, metric="validation energy")
        for method, curve in facts.items()
    )
    best = {method: float(curve["validation energy"].min()) for method, curve in facts.items()}
    print(name, amount, variant, seed, {method: round(value, 4) for method, value in best.items()}, flush=True)
    named = {"data": name, "cells": "all" if amount is None else str(amount), "target": variant, "seed": seed}
    return pd.concat([table, curves]).assign(**named)


def main() -> None:
    arguments = parsed(__doc__, HERE, data=True)
    begun = list(product(TARGETS, arguments.seeds))
    tasks = [
        (name, amount, variant, seed)
        for seed, variant in product(arguments.seeds, VARIANTS)
        for name, amounts in AMOUNTS.items()
        for amount in amounts
    ]
    with ProcessPoolExecutor(arguments.jobs) as pool:
        shots = pd.concat(pool.map(pretrained, [arguments.data] * len(begun), *zip(*begun, strict=True)))
        rows = pd.concat(pool.map(one, [arguments.data] * len(tasks), *zip(*tasks, strict=True)))
    measured = rows[rows["metric"] != "validation energy"]
    curves = rows[rows["metric"] == "validation energy"]
    lines = ["# Few perturbed cells, with and without pretraining\n", __doc__.split("\n\n")[0] + "\n"]
    lines.append(
        f"Means over conditions, then over seeds {arguments.seeds} (range); ceiling: half of the observed cells.\n"
    )
    wanted = ["r2_of_means", "energy_distance", "pearson_of_change", "mae"]
    lines.append("## Zero-shot, over the steps of pretraining\n")
    for target in TARGETS:
        own = shots[shots["target"] == target]
        lines.append(f'Target "{target}":\n\n{markdown(summary(own, ["step", "method"], wanted))}\n')
    for name, variant in product(AMOUNTS, VARIANTS):
        own = measured[(measured["data"] == name) & (measured["target"] == variant)]
        lines.append(f'## {name}, target "{variant}"\n\n{markdown(summary(own, ["cells", "method"], METRICS))}\n')
        lines.append(f"By the paper's metrics:\n\n{markdown(summary(own, ['cells', 'method'], PAPER))}\n")
        curve = curves[(curves["data"] == name) & (curves["target"] == variant)]
        table = curve[curve["step"] % 50 == 49].assign(step=lambda one: one["step"].astype(int) + 1)
        means = table.pivot_table(index=["cells", "method"], columns="step", values="value", sort=False).round(3)
        lines.append(f"Validation energy over steps, means over seeds:\n\n{markdown(means)}\n")
    every = pd.concat([shots, rows]).dropna(subset=["value"])
    keys = [name for name in every.columns if name not in {*GROUP, "value"}]
    means = over_batches(every, keys).groupby(keys, sort=False, dropna=False)["value"].mean().reset_index()
    record("pretraining", "\n".join(lines), means.astype({"step": "Int64"}).astype({"step": str}), arguments.out)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
