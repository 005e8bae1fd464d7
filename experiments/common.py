"""What the experiments share: predicted cells of held-out conditions, baselines from shifts, tables over seeds."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from perturbdiff import Cells, PerturbDiff, compare
from perturbdiff.baselines.control import predict_control
from perturbdiff.baselines.mean import MeanShift, mean_shift
from perturbdiff.data.intake import cells_from_anndata
from perturbdiff.data.recipe import Columns, Expression

METRICS = ["pearson_of_change", "energy_distance", "mae", "de_auroc", "spread_ratio"]


def on_panel(cells: Cells, genes: Sequence[str]) -> Cells:
    """The same cells as log1p counts per 10^4 of a panel."""
    return Cells(
        values=cells.log_expression(genes),
        scale="log1p",
        total_counts=None,
        genes=pd.Index(genes),
        names=cells.names,
        labels=cells.labels,
        control=cells.control,
    )


def groups_of(cells: Cells, perturbations: Sequence[str]) -> pd.DataFrame:
    """The observed groups of some perturbations, and their numbers of cells."""
    labels = cells.labels[cells.labels["perturbation"].isin(perturbations)].astype(str)
    names = ["perturbation", "cell_type", "assay_batch"]
    return labels.groupby(names, sort=True).size().rename("cells").reset_index()


def predicted_cells(model: PerturbDiff, groups: pd.DataFrame, cells: Cells, seed: int, **sampling: object) -> Cells:
    """Cells that the model predicts, as many of each group as were observed."""
    rng = np.random.default_rng(seed)
    names = ["perturbation", "cell_type", "assay_batch"]
    controls = cells.take(cells.is_control)
    sizes = controls.labels.astype(str).groupby(["cell_type", "assay_batch"]).size()
    wanted = groups.set_index(names)["cells"]
    repeats = max(-(-n // int(sizes[key[1], key[2]])) for key, n in wanted.items())
    made = model.predict_cells(
        controls, groups[names], populations=repeats, seed=seed, device="cpu", sampling=sampling or None
    )
    obs = made.obs.rename(columns=_columns(model)).reset_index(drop=True)
    predicted = obs["population"] >= 0
    rows = [np.flatnonzero(~predicted)]
    for key, n in wanted.items():
        own = predicted.copy()
        for name, label in zip(names, key, strict=True):
            if name in obs and label:
                own &= obs[name].astype(str) == label
        rows.append(rng.permutation(np.flatnonzero(own))[:n])
    kept = made[np.sort(np.concatenate(rows))].copy()
    declared = {name: column for name, column in model.recipe.columns.model_dump().items() if column}
    declared.pop("total_counts", None)
    return cells_from_anndata(
        kept, columns=Columns(**declared), expression=Expression(scale="log1p"), control=str(cells.control)
    )


def _columns(model: PerturbDiff) -> dict[str, str]:
    columns = model.recipe.columns
    return {getattr(columns, name): name for name in ("cell_type", "assay_batch") if getattr(columns, name)} | {
        str(columns.perturbation): "perturbation"
    }


def shifted(shifts: Mapping[str, np.ndarray], groups: pd.DataFrame, cells: Cells, genes: Sequence[str], seed: int) -> Cells:
    """Control cells moved by a given shift of each perturbation: a baseline's prediction."""
    controls = cells.take(cells.is_control)
    unchanged = predict_control(
        groups, controls, genes=genes, control=str(cells.control), rng=np.random.default_rng(seed)
    )
    table = pd.DataFrame(np.stack(list(shifts.values())), index=list(shifts), columns=list(genes))
    return MeanShift(tuple(genes), table, 0).predict(unchanged)


def trained_shifts(training: Cells, genes: Sequence[str]) -> pd.DataFrame:
    """The mean shift of every trained perturbation [labels, genes]."""
    return mean_shift(training, genes).shifts


def judged(predicted: Mapping[str, Cells], observed: Cells, seed: int) -> pd.DataFrame:
    """The metrics of every prediction, the unchanged controls and the ceiling."""
    return compare(predicted, observed, training=None, seed=seed).table


def summary(table: pd.DataFrame, by: Sequence[str], metrics: Sequence[str] = METRICS) -> pd.DataFrame:
    """Means over conditions, then the mean and the range over seeds, a row a method."""
    known = table[table["metric"].isin(metrics)].dropna(subset=["value"])
    means = known.groupby([*by, "metric", "seed"], sort=False)["value"].mean().reset_index()
    cells = means.groupby([*by, "metric"], sort=False)["value"].agg(spread).reset_index()
    wide = cells.pivot(index=list(by), columns="metric", values="value")
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
    """Write a page of results, and the rows that it is made of."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(text.rstrip() + "\n")
    rows = rows.assign(value=rows["value"].round(6))
    (folder / f"{name}.json").write_text(json.dumps(rows.to_dict(orient="records"), indent=0) + "\n")
