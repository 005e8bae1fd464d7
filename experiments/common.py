"""What the experiments share: predicted cells of held-out conditions, baselines from shifts, tables over seeds."""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy.stats import t as student

from perturbdiff import Cells, PerturbDiff, evaluate
from perturbdiff.baselines.control import predict_control
from perturbdiff.baselines.mean import MeanShift, mean_shift
from perturbdiff.cells.anndata import cells_from_anndata
from perturbdiff.evaluation.scope import Depth
from perturbdiff.metrics.tables import over_batches
from perturbdiff.predicted import UNSPECIFIED
from perturbdiff.recipes.dataset import Expression, Recipe
from perturbdiff.split.rules import Split

GROUP = ["perturbation", "cell_type", "assay_batch"]
STILL = {"max_steps": 1, "learning_rate": 1e-12}
"""Settings of a training that learns nothing."""

METRICS = ["pearson_of_change", "energy_distance", "mae", "de_auroc", "spread_ratio"]


def parsed(doc: str, folder: Path, *, data: bool) -> argparse.Namespace:
    """The options of an experiment: seeds, where to write, how many trainings side by side, and the real data."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if data:
        parser.add_argument("--data", type=lambda text: Path(text).resolve(), default=Path("../shared/data").resolve())
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=folder / "results")
    parser.add_argument("--jobs", type=int, default=1, help="Trainings side by side, a thread each.")
    return parser.parse_args()


def on_panel(cells: Cells, genes: Sequence[str]) -> Cells:
    """The same cells with the genes of a panel alone; their totals stay those over all genes."""
    place = cells.genes.get_indexer(pd.Index(genes))
    return replace(cells, values=cells.values[:, place], genes=pd.Index(genes))  # noqa: PD011


def groups_of(cells: Cells, perturbations: Sequence[str]) -> pd.DataFrame:
    """The observed groups of some perturbations, and their numbers of cells."""
    labels = cells.labels[cells.labels["perturbation"].isin(perturbations)].astype(str)
    return labels.groupby(GROUP, sort=True).size().rename("cells").reset_index()


def of_distinct_controls(groups: pd.DataFrame, cells: Cells) -> pd.DataFrame:
    """The same groups, of no more cells than there are control cells beside them.

    Two cells that are made of one control cell are more alike than two of a population, which an unbiased energy
    distance takes for a wrong prediction: the more so, the less a method changes them.
    """
    controls = cells.labels[cells.is_control].astype(str).groupby(GROUP[1:]).size()
    beside = pd.MultiIndex.from_frame(groups[GROUP[1:]].astype(str))
    return groups.assign(cells=np.minimum(groups["cells"].to_numpy(), controls.reindex(beside).to_numpy()))


def predicted_cells(model: PerturbDiff, groups: pd.DataFrame, cells: Cells, seed: int, **sampling: object) -> Cells:
    """Cells that the model predicts, as many of each group as were observed, each of another control cell."""
    return _as_cells(_predicted(model, groups, cells, seed, sampling), model, cells)


def null_cells(model: PerturbDiff, groups: pd.DataFrame, cells: Cells, seed: int) -> Cells:
    """Cells that the model predicts without a perturbation (its trained null), under the labels of the groups."""
    parts, column = [], str(model.recipe.columns.perturbation)
    for label, own in groups.groupby("perturbation", sort=True):
        part = _predicted(model, own.assign(perturbation=""), cells, seed, {})
        part.obs[column] = part.obs[column].astype(str).replace({UNSPECIFIED: str(label)})
        parts.append(part if not parts else part[part.obs["population"] >= 0].copy())
    return _as_cells(ad.concat(parts, index_unique="-"), model, cells)


def _predicted(
    model: PerturbDiff, groups: pd.DataFrame, cells: Cells, seed: int, sampling: Mapping[str, object]
) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    controls = cells.take(cells.is_control)
    sizes = controls.labels.astype(str).groupby(["cell_type", "assay_batch"]).size()
    wanted = of_distinct_controls(groups, cells).set_index(GROUP)["cells"]
    made = model.predict_cells(controls, groups[GROUP], seed=seed, device="cpu", sampling=dict(sampling) or None)
    # predicted cells stand in the order of the conditions
    n_controls = int((made.obs["population"] < 0).sum())
    rows, start = [np.arange(n_controls)], n_controls
    for key, n in wanted.items():
        n_made = int(sizes[key[1], key[2]])
        rows.append(start + np.sort(rng.permutation(n_made)[:n]))
        start += n_made
    return made[np.concatenate(rows)].copy()


def _as_cells(made: ad.AnnData, model: PerturbDiff, cells: Cells) -> Cells:
    declared = model.recipe.columns.model_copy(update={"total_counts": None})
    return cells_from_anndata(
        made, columns=declared, expression=Expression(scale="log1p"), control=str(cells.control), observed=False
    )


def shifted(
    shifts: Mapping[str, np.ndarray], groups: pd.DataFrame, cells: Cells, genes: Sequence[str], seed: int
) -> Cells:
    """Control cells moved by a given shift of each perturbation: a baseline's prediction."""
    controls = cells.take(cells.is_control)
    unchanged = predict_control(
        of_distinct_controls(groups, cells),
        controls,
        genes=genes,
        control=str(cells.control),
        rng=np.random.default_rng(seed),
    )
    table = pd.DataFrame(np.stack(list(shifts.values())), index=list(shifts), columns=list(genes))
    return MeanShift(tuple(genes), table, 0).predict(unchanged)


def predicted_change(
    model: PerturbDiff, controls: ad.AnnData, label: str | None, seed: int, **asked: object
) -> np.ndarray:
    """The change of the mean that the model predicts, over cell types."""
    parts = []
    for cell_type in controls.obs["cell_type"].unique():
        made = model.predict(controls, perturbation=label, cell_type=cell_type, seed=seed, device="cpu", **asked)
        control = (made.obs["population"] < 0).to_numpy()
        parts.append(np.asarray(made.X[~control].mean(axis=0) - made.X[control].mean(axis=0)).ravel())
    return np.mean(parts, axis=0)


def logs(adata: ad.AnnData) -> np.ndarray:
    """Log1p counts per 10^4."""
    counts = adata.X.toarray().astype(float)
    return np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))


def measured_change(adata: ad.AnnData, treated: pd.Series) -> np.ndarray:
    """The mean change of the treated cells (a flag for each cell) from control cells, over cell types."""
    x, obs, parts = logs(adata), adata.obs, []
    control = (obs["perturbation"] == "control").to_numpy()
    for cell_type in obs["cell_type"].unique():
        own = (obs["cell_type"] == cell_type).to_numpy()
        parts.append(x[own & treated.to_numpy()].mean(axis=0) - x[own & control].mean(axis=0))
    return np.mean(parts, axis=0)


def trained_shifts(training: Cells, genes: Sequence[str]) -> pd.DataFrame:
    """The mean shift of every trained perturbation [labels, genes]."""
    return mean_shift(training, genes).shifts


def judged(
    predicted: Mapping[str, Cells], observed: Cells, seed: int, suites: Sequence[str] = ("ours",)
) -> pd.DataFrame:
    """The metrics of every prediction, the unchanged controls and the ceiling."""
    found = evaluate(predicted, observed, training=None, seed=seed, depth=Depth(suites=suites))
    return found.scores.drop(columns="suite")


def judged_beside(
    predicted: Mapping[str, Cells],
    cells: Cells,
    split: Split,
    genes: Sequence[str],
    seed: int,
    baselines: Sequence[str],
) -> pd.DataFrame:
    """The metrics of every prediction of test cells, some baselines (each the better way) and the ceiling."""
    tested = np.union1d(split.rows("test"), np.flatnonzero(cells.is_control))
    found = evaluate(
        predicted,
        on_panel(cells.take(tested), genes),
        training=on_panel(cells.take(split.rows("train")), genes),
        seed=seed,
        grammar=cells.grammar,
        depth=Depth(baselines=baselines, halvings=3),
    )
    for note in found.notes:
        if "nearer" in note:
            print(note, flush=True)
    return found.scores


def start_of(recipe: Recipe) -> Recipe:
    """The same recipe, whose model learns nothing: what is expected, drawn as cells."""
    return recipe.model_copy(update={"training": {**recipe.training, **STILL}})


def margins(table: pd.DataFrame, against: str, metric: str = "energy_distance", unit: str = "perturbation") -> str:
    """Each method's metric less that of another, the mean over units and its 95 % interval, in words."""
    known = table[table["metric"] == metric].pivot_table(index=unit, columns="method", values="value")
    found = []
    for method in known.columns.drop([against, "ceiling"], errors="ignore"):
        apart = (known[method] - known[against]).dropna()
        if len(apart) > 1:
            half = statistics.stdev(apart) / len(apart) ** 0.5 * float(student.ppf(0.975, len(apart) - 1))
            found.append(f"{method} {apart.mean():+.4f} ({apart.mean() - half:+.4f} to {apart.mean() + half:+.4f})")
    return "; ".join(found)


def summary(table: pd.DataFrame, by: Sequence[str], metrics: Sequence[str] = METRICS) -> pd.DataFrame:
    """Means over conditions (batches first), then the mean and the range over seeds, a row a method."""
    known = over_batches(table[table["metric"].isin(metrics)], [*by, "metric", "seed"]).dropna(subset=["value"])
    means = known.groupby([*by, "metric", "seed"], sort=False)["value"].mean().reset_index()
    cells = means.groupby([*by, "metric"], sort=False)["value"].agg(spread).reset_index()
    wide = cells.pivot_table(index=list(by), columns="metric", values="value", aggfunc="first", sort=False)
    order = list(dict.fromkeys(means[list(by)].itertuples(index=False, name=None)))
    index = [key[0] for key in order] if len(by) == 1 else pd.MultiIndex.from_tuples(order, names=by)
    return wide.loc[index, [metric for metric in metrics if metric in wide]]


def spread(values: pd.Series) -> str:
    """The mean, and the range where there is one."""
    low, high = values.min(), values.max()
    return f"{statistics.fmean(values):.3f}" + (f" ({low:.3f} to {high:.3f})" if high - low > 5e-4 else "")


def markdown(table: pd.DataFrame) -> str:
    """A table of text for a page."""
    flat = table.reset_index()
    lines = ["| " + " | ".join(map(str, flat.columns)) + " |", "|---" * len(flat.columns) + "|"]
    lines += ["| " + " | ".join(str(value) for value in row) + " |" for row in flat.itertuples(index=False)]
    return "\n".join(lines)


def record(name: str, text: str, rows: pd.DataFrame, folder: Path) -> None:
    """Write a page of results, and the rows that it is made of: a JSON table, as `pandas.read_json` reads "split"."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(text.rstrip() + "\n")
    table = json.loads(rows.assign(value=rows["value"].round(6)).to_json(orient="split", index=False))
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in table["data"])
    (folder / f"{name}.json").write_text(f'{{"columns":{json.dumps(table["columns"])},"data":[\n{lines}\n]}}\n')
