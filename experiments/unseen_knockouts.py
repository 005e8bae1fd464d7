"""Knock-outs that training has never seen, in five folds over all 25, from features of genes.

    python experiments/unseen_knockouts.py --data ../shared/data --seeds 0 1 2

Every knock-out is a test perturbation in one fold. Of the others five validate (which weights are kept): every fourth
by the size of its mean shift, so that strong and weak ones are among them. The features are embeddings of a sentence or
two on each gene (experiments/data/genes.csv), made by

    perturbdiff features language experiments/data/genes.csv --model all-MiniLM-L6-v2 \\
        --out experiments/data/genes.parquet

Beside the model: the trained null of a model of learned labels, the mean of the trained perturbations, a ridge
regression on the same features with its penalty chosen on left-out training perturbations, and unchanged controls.
Results: experiments/results/unseen_knockouts.md."""

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from common import (
    METRICS,
    STILL,
    groups_of,
    judged,
    margins,
    markdown,
    null_cells,
    on_panel,
    parsed,
    predicted_cells,
    record,
    shifted,
    summary,
    trained_shifts,
)
from perturbdiff import Cells, PerturbDiff, read_recipe
from perturbdiff.core.choices import PENALTIES
from perturbdiff.core.ridge import Ridge
from perturbdiff.features.files import read_features
from perturbdiff.recipes.selection import Match

HERE = Path(__file__).parent
FEATURES = HERE / "data" / "genes.parquet"
FOLDS, EVERY = 5, 4
PATHWAY = ["IFNGR1", "IFNGR2", "JAK2", "STAT1"]
TABLE = {"perturbation": {"kind": "table", "file": str(FEATURES)}}


def fold_of(cells: Cells, *folds: int) -> tuple[list[str], list[str]]:
    """The test and the validation perturbations of folds; the cells of test perturbations are not looked at."""
    labels = sorted({*cells.labels["perturbation"].cat.categories} - {cells.control})
    order = np.random.default_rng(0).permutation(labels).tolist()
    test = [label for fold in folds for label in order[fold::FOLDS]]
    shifts = trained_shifts(cells.take(~cells.labels["perturbation"].isin(test).to_numpy()), list(cells.genes))
    by_size = shifts.index[np.argsort(np.linalg.norm(shifts.to_numpy(), axis=1))].tolist()
    return test, by_size[EVERY // 2 :: EVERY]


def trained(data: Path, fold: int, seed: int, change: dict[str, dict]) -> PerturbDiff:
    """A model that has not seen the fold's test perturbations."""
    recipe = read_recipe(HERE / "papalexi.toml")
    test, validation = fold_of(PerturbDiff.from_recipe(recipe, folder=data).source, fold)
    tables = {name: {**getattr(recipe, name), **table} for name, table in change.items()}
    rules = [{"part": "validation", "perturbation": validation}]
    if "encoders" in change:
        rules.insert(0, {"part": "test", "perturbation": test})
    else:
        # who knows labels only can't be asked about others, so they are not held out but left out
        tables["exclude"] = (Match(perturbation=test),)
    model = PerturbDiff.from_recipe(recipe.model_copy(update=tables), folder=data)
    return model.train(hold_out=rules, seed=seed, device="cpu", show_progress=False)


def ridge(shifts: pd.DataFrame, test: list[str]) -> dict[str, np.ndarray]:
    """The ridge regression on features; its penalty is chosen on left-out training perturbations."""
    table, y = read_features(FEATURES), torch.tensor(shifts.to_numpy())
    fit = Ridge(torch.from_numpy(table.rows(list(shifts.index))).double())
    penalty = min(PENALTIES, key=lambda one: float((y - fit.left_out(one) @ y).square().sum()))
    rows = torch.from_numpy(table.rows(test)).double()
    return {label: (fit.weights(row, penalty) @ y).numpy() for label, row in zip(test, rows, strict=True)}


def one(data: Path, fold: int, seed: int) -> pd.DataFrame:
    """All methods on one fold."""
    torch.set_num_threads(1)
    model = trained(data, fold, seed, {"encoders": TABLE})
    start = trained(data, fold, seed, {"encoders": TABLE, "training": STILL})
    change = trained(data, fold, seed, {"encoders": TABLE, "model": {"target": "change"}})
    labels = trained(data, fold, seed, {})
    cells = model.source
    split = model.split(model.recipe.hold_out, seed=seed)
    genes = list(model.trained.genes)
    test, _ = fold_of(cells, fold)
    groups = groups_of(cells, test)
    shifts = trained_shifts(cells.take(split.rows("train")), genes)
    predicted = {
        "perturbdiff, features": predicted_cells(model, groups, cells, seed),
        "perturbdiff, features, step 0": predicted_cells(start, groups, cells, seed),
        'perturbdiff, features, target = "change"': predicted_cells(change, groups, cells, seed),
        "perturbdiff, learned labels' null": null_cells(labels, groups, cells, seed),
        "ridge on the same features": shifted(ridge(shifts, test), groups, cells, genes, seed),
        "mean of the trained perturbations": shifted(
            dict.fromkeys(test, shifts.mean(axis=0).to_numpy()), groups, cells, genes, seed
        ),
    }
    kept = [one.trained.history["step"] for one in (model, change, labels)]
    print(f"fold {fold}, seed {seed}: weights of steps {kept}, penalty {model.trained.fit.penalty}", flush=True)
    return judged(predicted, on_panel(cells, genes), seed).assign(seed=seed, fold=fold, kept_step=kept[0])


def main() -> None:
    arguments = parsed(__doc__, HERE, data=True)
    tasks = [(arguments.data, fold, seed) for seed in arguments.seeds for fold in range(FOLDS)]
    tables = []
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for task, table in zip(tasks, pool.map(one, *zip(*tasks, strict=True)), strict=True):
            tables.append(table)
            print(f"fold {task[1]}, seed {task[2]}", flush=True)
            print(markdown(summary(table, ["method"])), flush=True)
    rows = pd.concat(tables)
    rows = rows[rows["perturbation"] != ""]  # what is of a whole context stands apart
    text = page(rows)
    record("unseen_knockouts", text, rows[rows["metric"].isin(METRICS)], arguments.out)
    print(text)


def page(rows: pd.DataFrame) -> str:
    """The results in words and tables."""
    inside = rows["perturbation"].isin(PATHWAY)
    return (
        f"# Knock-outs that training has never seen\n\n{__doc__.split(chr(10) * 2)[0]} Every replicate "
        f"judged apart; means over replicates, over {rows['perturbation'].nunique()} knock-outs, then the mean over "
        f"seeds {sorted(rows['seed'].unique().tolist())} (range).\n\n"
        f"{markdown(summary(rows, ['method']))}\n\n"
        f"The {len(PATHWAY)} of the interferon gamma pathway, one by one:\n\n"
        f"{markdown(summary(rows[inside], ['perturbation', 'method'], METRICS[:4]))}\n\n"
        f"All others:\n\n{markdown(summary(rows[~inside], ['method']))}\n\n"
        "Energy distance less that of control, mean over knock-outs and seeds (95 % interval over the knock-outs): "
        f"{margins(rows, 'control')}.\n"
    )


if __name__ == "__main__":
    main()
