"""The reports of two data sets: our model by three seeds, all baselines and the ceilings, by all metrics.

    python experiments/reports.py --data ../shared/data --seeds 0 1 2

* Kang: IFN-beta in two held-out cell types (kang.toml);
* Papalexi: ten knock-outs that training has never seen (the first two folds of unseen_knockouts.py), from features of
  genes.

Each is done by the commands that a user has: train, predict, evaluate, report. The pages and all that they are made of
stay in experiments/runs, and the same command goes on from there. Results: experiments/results/reports.md."""

import subprocess
import sys
from pathlib import Path

import pandas as pd

from common import markdown, parsed, record, summary
from perturbdiff import PerturbDiff, Recipe, read_recipe
from perturbdiff.metrics.tables import over_batches
from perturbdiff.recipes.dataset import write_recipe
from perturbdiff.recipes.selection import hold_outs_from
from unseen_knockouts import FEATURES, fold_of

HERE = Path(__file__).parent
RUNS = HERE / "runs" / "reports"
TEST_FOLDS = (0, 1)
OURS = ["energy_distance", "pearson_from_centroid", "pearson_of_change", "de_auroc", "de_overlap", "mae"]
SPREADS = ["spread_ratio", "variance_ratio", "zeros_error", "spread_between"]
MODEL = "perturbdiff"


def kang(data: Path) -> Recipe:
    """Two cell types held out, a third validates."""
    return _located(read_recipe(HERE / "kang.toml"), data)


def papalexi(data: Path) -> Recipe:
    """Knock-outs held out altogether, with features of genes."""
    recipe = _located(read_recipe(HERE / "papalexi.toml"), data)
    test, validation = fold_of(PerturbDiff.from_recipe(recipe, folder=data).source, *TEST_FOLDS)
    rules = [{"part": "test", "perturbation": test}, {"part": "validation", "perturbation": validation}]
    encoders = {"perturbation": {"kind": "table", "file": str(FEATURES)}}
    return recipe.model_copy(update={"hold_out": hold_outs_from(rules), "encoders": encoders})


def _located(recipe: Recipe, data: Path) -> Recipe:
    return recipe.model_copy(update={"files": tuple(str(data / file) for file in recipe.files)})


def perturbdiff(*words: object) -> None:
    """Run a command."""
    print("perturbdiff", *words, flush=True)
    subprocess.run([sys.executable, "-m", "perturbdiff", *map(str, words), "--quiet"], check=True)  # noqa: S603


def reported(name: str, recipe: Recipe, seeds: list[int], jobs: int) -> pd.DataFrame:
    """Train, predict, evaluate and report; the scores of every method, seed and condition."""
    folder = RUNS / name
    folder.mkdir(parents=True, exist_ok=True)
    write_recipe(recipe, folder / "recipe.toml")
    observed, files = recipe.files[0], []
    for seed in seeds:
        run, file = folder / f"run-{seed}", folder / f"{MODEL}-{seed}.h5ad"
        files.append(file)
        if file.exists():
            continue
        perturbdiff("train", folder / "recipe.toml", "--out", run, "--seed", seed, "--device", "cpu")
        perturbdiff("predict", run, observed, "--part", "test", "--seed", seed, "--out", file, "--device", "cpu")
    # the split depends on no seed where no rule draws cells, so that any run brings the same training cells
    options = ["--run", folder / "run-0", "--suites", "ours,paper,vcc2026", "--umap", "--jobs", jobs]
    perturbdiff("evaluate", *files, observed, *options, "--out", folder / "eval", "--overwrite")
    perturbdiff("report", folder / "eval", "--out", folder / "report.html", "--overwrite")
    scores = pd.read_csv(folder / "eval" / "metrics.csv")
    seed = pd.to_numeric(scores["method"].str.extract(rf"^{MODEL}-(\d+)$")[0])
    methods = scores["method"].where(seed.isna(), MODEL)
    return scores.assign(data=name, method=methods, seed=seed.fillna(-1).astype(int))


def main() -> None:
    arguments = parsed(__doc__, HERE, data=True)
    tables = [
        reported(name, make(arguments.data), arguments.seeds, arguments.jobs)
        for name, make in {"kang": kang, "papalexi": papalexi}.items()
    ]
    lines = ["# All baselines beside the model\n", __doc__.split("\n\n")[0] + "\n"]
    lines.append(f"Means over conditions; of {MODEL} then over seeds {arguments.seeds} (range).\n")
    for table in tables:
        lines.append(f"## {table['data'].iloc[0]}\n")
        suites = [table.loc[table["suite"] == suite, "metric"].unique().tolist() for suite in ("paper", "vcc2026")]
        lines += [f"{markdown(summary(table, ['method'], metrics))}\n" for metrics in (OURS, SPREADS, *suites)]
    keys = ["data", "suite", "method", "seed", "metric"]
    record("reports", "\n".join(lines), over_batches(pd.concat(tables), keys), arguments.out)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
