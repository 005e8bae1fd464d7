"""Kang, IFN-beta in two unseen cell types: the model beside baselines and ceiling, and how many steps sampling needs.

    python benchmarks/kang.py --data ../shared/data --seeds 0 1 2

For each seed one model is trained (benchmarks/kang.toml; the kept weights are those with the best energy distance on
CD8 T cells) and predicts each held-out (cell type, donor) from that donor's control cells, as many cells as were
observed. The baselines take control cells of the same donor, as many. Results: benchmarks/results/kang.json and
kang.md."""

import argparse
import json
import statistics
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch

from perturbdiff import Cells, PerturbDiff, evaluate, read_recipe
from perturbdiff.cells.anndata import cells_from_anndata
from perturbdiff.metrics.tables import over_batches
from perturbdiff.prediction.conditions import held_out_conditions
from perturbdiff.recipes.dataset import Columns, Expression

HERE = Path(__file__).parent
SAMPLERS = {
    "8 respaced": {"steps": 8},
    "20 respaced": {"steps": 20},
    "100 respaced": {"steps": 100},
    "100 truncated": {"steps": 100, "truncate": 100},
}
METRICS = ["energy_distance", "pearson_of_change", "mae", "spread_ratio", "zeros_predicted", "de_auroc", "de_overlap"]


def as_many_as_observed(model: PerturbDiff, observed: Cells, seed: int, sampling: dict[str, int]) -> Cells:
    """Predicted cells of each held-out condition, as many as were observed, beside all its control cells.

    Each is of another control cell: of one there can't be two that are as different as those of two.
    """
    held_out = held_out_conditions(model.trained)
    parts, rng = [], np.random.default_rng(seed)
    labels = observed.labels
    for row in held_out.to_dict("records"):
        own = (labels["cell_type"] == row["cell_type"]) & (labels["assay_batch"] == row["assay_batch"])
        wanted = int((own & (labels["perturbation"] == row["perturbation"])).sum())
        controls = int((own & (labels["perturbation"] == observed.control)).sum())
        predicted = model.predict_cells(observed, pd.DataFrame([row]), seed=seed, device="cpu", sampling=sampling)
        made = np.flatnonzero(predicted.obs["population"] >= 0)
        kept = np.sort(rng.permutation(made)[: min(wanted, controls)])
        parts.append(predicted[np.r_[np.flatnonzero(predicted.obs["population"] < 0), kept]])
    both = ad.concat(parts, index_unique="-")
    columns = Columns(perturbation="perturbation", cell_type="cell_type", assay_batch="batch")
    return cells_from_anndata(
        both, columns=columns, expression=Expression(scale="log1p"), control=str(observed.control), observed=False
    )


def one_seed(data: Path, seed: int, samplers: dict[str, dict[str, int]]) -> tuple[pd.DataFrame, dict[str, object]]:
    """Train one model; judge it with every sampler."""
    recipe = read_recipe(HERE / "kang.toml")
    model = PerturbDiff.from_recipe(recipe, folder=data)
    start = time.perf_counter()
    model.train(seed=seed, device="cpu", show_progress=False)
    seconds = time.perf_counter() - start
    split = model.split(seed=seed)
    training, observed = model.source.take(split.rows("train")), model.source
    names = {"perturbdiff": {}, **{f"perturbdiff, {name}": settings for name, settings in samplers.items()}}
    predicted = {name: as_many_as_observed(model, observed, seed, settings) for name, settings in names.items()}
    panel = list(model.trained.genes)
    judged = Cells(
        values=observed.log_expression(panel),
        scale="log1p",
        total_counts=None,
        genes=pd.Index(panel),
        names=observed.names,
        labels=observed.labels,
        control=observed.control,
    )
    table = evaluate(predicted, judged, training=training, seed=seed).table
    facts = {"seed": seed, "seconds": round(seconds, 1), **model.trained.history}
    return table.assign(seed=seed), facts


def summarise(table: pd.DataFrame) -> str:
    """Means over the donors of a type, then over the two types, then over seeds (range), a row a method."""
    keys = ["method", "metric", "seed"]
    means = over_batches(table, keys).groupby(keys, sort=False)["value"].mean().reset_index()
    lines = ["| method | " + " | ".join(METRICS) + " |", "|---" * (len(METRICS) + 1) + "|"]
    for method in means["method"].unique():
        cells = []
        for metric in METRICS:
            values = means[(means["method"] == method) & (means["metric"] == metric)]["value"].tolist()
            spread = f" ({min(values):.3f}-{max(values):.3f})" if max(values) - min(values) > 5e-4 else ""
            cells.append(f"{statistics.fmean(values):.3f}{spread}")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tables, facts = [], []
    for seed in arguments.seeds:
        table, fact = one_seed(arguments.data.resolve(), seed, SAMPLERS)
        tables.append(table)
        facts.append(fact)
        print(fact, flush=True)
        print(summarise(table), flush=True)
    whole = pd.concat(tables)
    arguments.out.mkdir(parents=True, exist_ok=True)
    summary = summarise(whole)
    by_type = whole[whole["metric"].isin(["energy_distance", "pearson_of_change"])]
    per_type = by_type.pivot_table(index="method", columns=["cell_type", "metric"], values="value", sort=False)
    text = "# Kang, IFN-beta in B cells and CD14+ monocytes\n\n"
    text += (
        f"Every donor judged apart; means over the donors of a type, the two types and {len(facts)} seeds (range).\n\n"
    )
    text += f"{summary}\n\nPer type, means over seeds:\n\n```\n{per_type.round(3).to_string()}\n```\n\n"
    text += f"Trainings: {facts}\n"
    (arguments.out / "kang.md").write_text(text)
    rows = over_batches(whole, ["method", "metric", "seed"])
    (arguments.out / "kang.json").write_text(
        json.dumps({"trainings": facts, "rows": rows.to_dict(orient="records")}, indent=1) + "\n"
    )
    print(summary)


if __name__ == "__main__":
    main()
