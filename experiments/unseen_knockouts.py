"""Knock-outs that training has never seen, in five folds over all 25, from features of genes.

    python experiments/unseen_knockouts.py --data ../shared/data --seeds 0 1 2

Every knock-out is a test perturbation in one fold; four others of the fold validate (which weights are kept). The
features are embeddings of a sentence or two on each gene (experiments/data/genes.csv), made by

    perturbdiff features language experiments/data/genes.csv --model all-MiniLM-L6-v2 --out experiments/data/genes.parquet

Beside the model: the trained null of a model of learned labels, the mean of the trained perturbations, a ridge
regression on the same features with its penalty chosen on left-out training perturbations, and unchanged controls.
Results: experiments/results/unseen_knockouts.md."""

import argparse
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import (
    groups_of,
    judged,
    markdown,
    on_panel,
    predicted_cells,
    record,
    shifted,
    summary,
    trained_shifts,
)

from perturbdiff import PerturbDiff, read_recipe
from perturbdiff.core.ridge import PENALTIES, Ridge
from perturbdiff.data.features import read_features

HERE = Path(__file__).parent
FEATURES = HERE / "data" / "genes.parquet"
FOLDS, N_VALIDATION = 5, 4
PATHWAY = ["IFNGR1", "IFNGR2", "JAK2", "STAT1"]
TABLE = {"perturbation": {"kind": "table", "file": str(FEATURES)}}
VARIANTS: dict[str, dict[str, dict]] = {
    "features + learned": {"encoders": TABLE},
    "features only": {"encoders": {"perturbation": TABLE["perturbation"] | {"learned": False}}},
    "never as if new": {"encoders": TABLE, "training": {"novelty": 0.0}},
}


def fold_of(labels: list[str], fold: int) -> tuple[list[str], list[str]]:
    """The test and the validation perturbations of a fold."""
    order = np.random.default_rng(0).permutation(sorted(labels)).tolist()
    test = order[fold::FOLDS]
    rest = [label for label in order if label not in test]
    return test, np.random.default_rng([1, fold]).permutation(rest)[:N_VALIDATION].tolist()


def trained(data: Path, fold: int, seed: int, change: dict[str, dict]) -> PerturbDiff:
    """A model that has not seen the fold's test perturbations."""
    recipe = read_recipe(HERE / "papalexi.toml")
    tables = {name: {**getattr(recipe, name), **table} for name, table in change.items()}
    model = PerturbDiff.from_recipe(recipe.model_copy(update=tables), folder=data)
    known = [label for label in model.source.labels["perturbation"].cat.categories if label != recipe.control]
    test, validation = fold_of(known, fold)
    rules = [{"part": "test", "perturbation": test}, {"part": "validation", "perturbation": validation}]
    return model.train(hold_out=rules, seed=seed, device="cpu", show_progress=False)


def ridge(shifts: pd.DataFrame, test: list[str]) -> dict[str, np.ndarray]:
    """The ridge regression on features; its penalty is chosen on left-out training perturbations."""
    table, y = read_features(FEATURES), torch.tensor(shifts.to_numpy())
    fit = Ridge(torch.from_numpy(table.rows(list(shifts.index))).double())
    penalty = min(PENALTIES, key=lambda one: float((y - fit.left_out(one) @ y).square().sum()))
    rows = torch.from_numpy(table.rows(test)).double()
    return {label: (fit.weights(row, penalty) @ y).numpy() for label, row in zip(test, rows, strict=True)}


def one(data: Path, fold: int, seed: int, threads: int) -> pd.DataFrame:
    """All methods on one fold."""
    torch.set_num_threads(threads)
    model = trained(data, fold, seed, VARIANTS["features + learned"])
    labels = trained(data, fold, seed, {"training": {}})
    split, cells = model.split(seed=seed), model.source
    cells = cells.take(np.sort(np.concatenate([split.rows("train"), split.rows("test"), split.rows("validation")])))
    genes = list(model.trained.genes)
    test, _ = fold_of([p for p in cells.labels["perturbation"].cat.categories if p != cells.control], fold)
    groups = groups_of(cells, test)
    training = model.source.take(split.rows("train"))
    shifts = trained_shifts(training, genes)
    nulls = predicted_cells(labels, groups.assign(perturbation=""), cells, seed)
    predicted = {
        "perturbdiff, features": predicted_cells(model, groups, cells, seed),
        "perturbdiff, learned labels' null": relabelled(nulls, groups, seed),
        "ridge on the same features": shifted(ridge(shifts, test), groups, cells, genes, seed),
        "mean of the trained perturbations": shifted(
            dict.fromkeys(test, shifts.mean(axis=0).to_numpy()), groups, cells, genes, seed
        ),
    }
    return judged(predicted, on_panel(cells, genes), seed).assign(seed=seed, fold=fold)


def relabelled(nulls: "Cells", groups: pd.DataFrame, seed: int) -> "Cells":
    raise NotImplementedError


if __name__ == "__main__":
    pass
