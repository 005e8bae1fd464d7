"""Whether drawn populations differ as unseen donors do: spread, coverage and the score of families.

    python experiments/families.py --data ../shared/data --seeds 0 1 2

* The simulator "interaction" (100 genes, two types, two perturbations, 32 donors of 48 cells a group; twenty train, ten
  test: they are new to the model, which is given their own control cells), with five laws of what is hidden of donors.
  Step 0 draws with a network that adds nothing; "trained" with the weights of step 500; "noise alone" is the same
  network where every population is told the same change, so that draws differ by the chain's shared noise (rho 0.5)
  alone; "rho 0" has not even that.
* Kang, each of the three stimulated donors left out; Papalexi, each of three replicates left out: step 0.
* A linear-Gaussian family, whose law is known: what chains of few and of many steps make of it.

Beside them one population, the changes of training donors drawn at random (the strongest simple family), and those of
the other test donors. What is done stays in experiments/runs, and the same command goes on from there. Results:
experiments/results/families.md and families.png."""

from collections.abc import Sequence
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.stats import t as student

from common import STILL, markdown, on_panel, parsed, record, spread
from perturbdiff import Cells, PerturbDiff, evaluate, read_recipe, simulate
from perturbdiff.cells.anndata import Made, cells_from_anndata
from perturbdiff.core.process import Process, power_cosine_betas
from perturbdiff.core.sampler import DDIM, respaced
from perturbdiff.evaluation.families import ONE, OTHERS, TRAINED
from perturbdiff.evaluation.scope import Depth
from perturbdiff.families.scores import projected
from perturbdiff.metrics.tables import FAMILIES
from perturbdiff.recipes.dataset import Expression
from perturbdiff.simulation.donors import Donors

HERE = Path(__file__).parent
RUNS = HERE / "runs" / "families"
CASES = {
    "sd 0.5": Donors(sd=0.5),
    "sd 0.15": Donors(sd=0.15),
    "two programmes": Donors(sd=0.5, hidden="two programmes"),
    "two kinds": Donors(sd=0.7, hidden="two kinds"),
    "told by control cells": Donors(sd=0.5, told=0.8),
}
STIMULI = ["stimulus_1", "stimulus_2"]
TRAINING, VALIDATING, TESTING = range(1, 21), range(21, 23), range(23, 33)
LABELS = ["perturbation", "cell_type", "assay_batch"]
DRAWS, FEW = 39, 13
"""So many populations: intervals of 95 % need 39."""
STEPS = 500
METRICS = [
    "family_score",
    "coverage_50",
    "coverage_80",
    "coverage_95",
    "de_coverage_80",
    "de_coverage_95",
    "interval_width",
    "expected_coverage",
]
COLUMNS = {"perturbation": "perturbation", "cell_type": "cell_type", "assay_batch": "assay_batch"}


def named(donors: range) -> list[str]:
    return [f"donor_{i}" for i in donors]


def screen(case: str, seed: int) -> ad.AnnData:
    return simulate(
        "interaction",
        n_genes=100,
        n_cell_types=2,
        n_assay_batches=32,
        n_perturbations=2,
        cells_per_group=48,
        control_cells_per_group=96,
        donors=CASES[case],
        seed=seed,
    )


def trained(adata: ad.AnnData, case: str, seed: int, kind: str) -> PerturbDiff:
    """A model of the training donors, kept in its folder."""
    run = RUNS / f"{case.replace(' ', '-')}-{seed}-{kind}"
    if (run / "model.json").exists():
        return PerturbDiff.load(run)
    training = {"cells_per_population": 48, "max_steps": STEPS} | (STILL if kind == "still" else {})
    rho = {"shared_noise": 0.0} if kind == "rho 0" else {}
    model = PerturbDiff.from_anndata(
        adata, control="control", **COLUMNS, model={"preset": "tiny"} | rho, training=training
    )
    # without validation the last weights are kept: whether they are better is not the question here
    part = "validation" if kind == "still" else "test"
    rules = [
        {"part": part, "perturbation": STIMULI, "assay_batch": named(donors)}
        for part, donors in (("test", TESTING), (part, VALIDATING))
    ]
    return model.train(hold_out=rules, run=run, seed=seed, device="cpu", show_progress=False)


def drawn(model: PerturbDiff, controls: ad.AnnData, conditions: pd.DataFrame, draws: int, seed: int) -> ad.AnnData:
    return model.predict(controls, conditions=conditions, populations=draws, n_cells=48, seed=seed, device="cpu")


def by_noise_alone(model: PerturbDiff, controls: ad.AnnData, conditions: pd.DataFrame, draws: int) -> ad.AnnData:
    """Single populations by so many seeds, as so many populations of one file."""
    parts = []
    for seed in range(draws):
        one = model.predict(controls, conditions=conditions, n_cells=48, seed=1000 + seed, device="cpu")
        one.obs["population"] = np.where(one.obs["population"] < 0, -1, seed)
        parts.append(one if not parts else one[one.obs["population"] >= 0].copy())
    return ad.concat(parts, index_unique="-")


def as_cells(made: ad.AnnData, model: PerturbDiff) -> Cells:
    columns = model.recipe.columns.model_copy(update={"total_counts": None})
    return cells_from_anndata(
        made,
        columns=columns,
        expression=Expression(scale="log1p"),
        control=str(model.recipe.control),
        observed=False,
        require="any",
        made=Made("control_cell", "population"),
    )


def judged(predicted: dict[str, Cells], observed: Cells, training: Cells, seed: int) -> pd.DataFrame:
    """The scores of all families and conditions."""
    depth = Depth(suites=("ours", FAMILIES), baselines=(), halvings=1)
    return evaluate(predicted, observed, training=training, seed=seed, depth=depth).scores


def simulated(case: str, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The scores by condition, and the strengths of donors and draws."""
    files = [RUNS / f"{case.replace(' ', '-')}-{seed}-{what}.parquet" for what in ("scores", "strengths")]
    if all(file.exists() for file in files):
        scores, strengths = map(pd.read_parquet, files)
        return scores, strengths
    adata = screen(case, seed)
    batch = adata.obs["assay_batch"].astype(str)
    controls = adata[(adata.obs["perturbation"] == "control") & batch.isin(named(TESTING))].copy()
    asked = pd.MultiIndex.from_product([STIMULI, ["type_1", "type_2"], named(TESTING)], names=LABELS).to_frame(
        index=False
    )
    still, learned = (trained(adata, case, seed, kind) for kind in ("still", "learned"))
    made = {
        "step 0": drawn(still, controls, asked, DRAWS, seed),
        f"trained, {STEPS} steps": drawn(learned, controls, asked, DRAWS, seed),
        "trained, noise alone": by_noise_alone(learned, controls, asked, FEW),
    }
    if case == "sd 0.5":
        made["trained, rho 0"] = by_noise_alone(trained(adata, case, seed, "rho 0"), controls, asked, FEW)
    cells = cells_from_anndata(
        adata, columns=still.recipe.columns, expression=Expression(scale="counts"), control="control"
    )
    tests, trains = (np.flatnonzero(batch.isin(named(donors))) for donors in (TESTING, TRAINING))
    predicted = {name: as_cells(one, still) for name, one in made.items()}
    scores = judged(predicted, cells.take(tests), cells.take(trains), seed)
    strengths = strengths_of(cells, predicted)
    for table, file in zip((scores, strengths), files, strict=True):
        table.to_parquet(file)
    return scores, strengths


def strengths_of(cells: Cells, predicted: dict[str, Cells]) -> pd.DataFrame:
    """The strength of all donors and draws along the mean change of the training donors, and its sampling noise."""
    genes = list(cells.genes)
    values, labels = cells.log_expression(genes).toarray(), cells.labels.astype(str)
    groups = labels.groupby(LABELS).indices
    mean = {key: values[rows].mean(axis=0) for key, rows in groups.items()}
    rows = []
    made = {name: (one.log_expression(genes).toarray(), one) for name, one in predicted.items()}
    draws = {
        name: one.labels.astype(str).assign(draw=one.draws).groupby([*LABELS, "draw"]).indices
        for name, (_, one) in made.items()
    }
    for label in STIMULI:
        for kind in ("type_1", "type_2"):
            changes = [mean[label, kind, one] - mean["control", kind, one] for one in named(TRAINING)]
            direction = np.mean(changes, axis=0)
            for donor in named(range(1, 33)):
                own = projected(values[groups[label, kind, donor]], mean["control", kind, donor], direction)
                rows.append(("donors", label, kind, donor, 0, own.strength, own.noise))
            for name, (expression, _) in made.items():
                for (perturbation, cell_type, donor, draw), there in draws[name].items():
                    if (perturbation, cell_type) == (label, kind):
                        own = projected(expression[there], mean["control", kind, donor], direction)
                        rows.append((name, label, kind, donor, draw, own.strength, own.noise))
    return pd.DataFrame(rows, columns=["method", *LABELS, "draw", "strength", "noise"])


def spread_of(strengths: pd.DataFrame) -> pd.DataFrame:
    """Of draws, the spread of strengths with the sampling of cells taken out; its ratio to that of all 32 donors."""
    rows = []
    for method, own in strengths.groupby("method", sort=False):
        variances, inside, tied = [], [], []
        for (label, kind), some in own.groupby(["perturbation", "cell_type"]):
            per = some.groupby("assay_batch") if method != "donors" else [("", some)]
            variances.append(np.mean([one["strength"].var() - one["noise"].mean() for _, one in per]))
            if method != "donors":
                true = strengths[
                    (strengths["method"] == "donors")
                    & (strengths["perturbation"] == label)
                    & (strengths["cell_type"] == kind)
                ].set_index("assay_batch")["strength"]
                limits = some.groupby("assay_batch")["strength"].agg(["min", "max", "mean"])
                held = true[limits.index]
                inside.append(((held >= limits["min"]) & (held <= limits["max"])).mean())
                tied.append(np.corrcoef(limits["mean"], held)[0, 1])
        rows.append(
            (method, np.sqrt(max(np.mean(variances), 0)), np.mean(inside or [np.nan]), np.mean(tied or [np.nan]))
        )
    table = pd.DataFrame(rows, columns=["method", "sd", "inside", "correlation"]).set_index("method")
    return table.assign(ratio=(table["sd"] / table["sd"]["donors"]) ** 2)


def linear_gaussian() -> pd.DataFrame:
    """Populations whose level is N(0, 0.5^2) along one gene: what is drawn of it, by steps.

    A level that is drawn first is handed to every step. A level that the chain carries is estimated at each: by its
    posterior mean, or so that a step is that of the probability flow, which for a normal law is known.
    """
    spread_, cells, rho = 0.5, 48, 0.5
    process, noise = Process(power_cosine_betas(1000), rho=rho), rho + (1 - rho) / cells
    rows = []
    for steps in (1, 2, 5, 10, 20, 50):
        times = respaced(1000, steps)
        found = {}
        for way in ("drawn first", "posterior mean", "probability flow"):
            generator = torch.Generator().manual_seed(0)
            n = 20_000
            level = spread_ * torch.randn(n, generator=generator, dtype=torch.float64)
            x = np.sqrt(noise) * torch.randn(n, 1, 1, generator=generator, dtype=torch.float64)
            for t, s in zip(times, [*times[1:], -1], strict=True):
                bar, to = float(process.alpha_bar(t)), float(process.alpha_bar(s))
                seen = x / np.sqrt(bar)
                now, then = ((1 - one) / one for one in (bar, to))
                if way == "drawn first":
                    x_0 = level[:, None, None]
                elif way == "posterior mean":
                    x_0 = seen * spread_**2 / (spread_**2 + noise * now)
                else:
                    ratio = np.sqrt((spread_**2 + noise * then) / (spread_**2 + noise * now))
                    share = np.sqrt(then / now)
                    x_0 = seen * (ratio - share) / (1 - share)
                at, after = (torch.full((n,), one, dtype=torch.long) for one in (t, s))
                x = DDIM()(process, x, x_0, at, after, torch.zeros_like)
            found[way] = float(x.std())
        rows.append({"steps": steps, **found, "true": spread_})
    return pd.DataFrame(rows)


def left_out(data: Path, name: str, seed: int) -> pd.DataFrame:
    """Each donor or replicate of a data set left out, at step 0: the scores of all families."""
    path = RUNS / f"{name}-{seed}.parquet"
    if path.exists():
        return pd.read_parquet(path)
    recipe = read_recipe(HERE / f"{name}.toml")
    recipe = recipe.model_copy(update={"training": {**recipe.training, **STILL}})
    cells = PerturbDiff.from_recipe(recipe, folder=data).source
    labels = cells.labels.astype(str)
    perturbed = labels[~cells.is_control]
    batches = sorted(perturbed["assay_batch"].unique())
    tables = []
    for batch in batches:
        validating = next(one for one in batches if one != batch)
        kinds = sorted(perturbed["perturbation"].unique())
        kept = perturbed["cell_type"].value_counts().index[0]
        rules = [
            {"part": "test", "perturbation": kinds, "assay_batch": [batch]},
            {"part": "validation", "perturbation": kinds[:1], "cell_type": [kept], "assay_batch": [validating]},
        ]
        model = PerturbDiff(recipe, source=cells)
        model.train(hold_out=rules, seed=seed, device="cpu", show_progress=False)
        held = perturbed[perturbed["assay_batch"] == batch].groupby(LABELS).size()
        asked = held[held >= 20].reset_index()[LABELS]
        made = model.predict_cells(
            cells.take(cells.is_control), asked, populations=DRAWS, n_cells=100, seed=seed, device="cpu"
        )
        genes = list(model.trained.genes)
        split = model.split(rules, seed=seed)
        tests = np.union1d(split.rows("test"), np.flatnonzero(cells.is_control))
        observed, training = (on_panel(cells.take(rows), genes) for rows in (tests, split.rows("train")))
        tables.append(judged({"step 0": as_cells(made, model)}, observed, training, seed))
        print(name, batch, len(asked), flush=True)
    table = pd.concat(tables)
    table.to_parquet(path)
    return table


def means(table: pd.DataFrame) -> pd.DataFrame:
    """Means over conditions, then over seeds (range); a row a family."""
    own = table[(table["suite"] == FAMILIES) & table["metric"].isin(METRICS)]
    by_seed = own.groupby(["method", "metric", "seed"], sort=False)["value"].mean().reset_index()
    cells = by_seed.groupby(["method", "metric"], sort=False)["value"].agg(spread).reset_index()
    wide = cells.pivot_table(index="method", columns="metric", values="value", aggfunc="first", sort=False)
    return wide[[metric for metric in METRICS if metric in wide]]


def against(table: pd.DataFrame, method: str, other: str, units: Sequence[str] = ("seed", "assay_batch")) -> str:
    """How far a family's score is from another's, mean and 95 % interval over units, in words."""
    own = table[(table["suite"] == FAMILIES) & (table["metric"] == "family_score")]
    wide = own.pivot_table(index=list(units), columns="method", values="value")
    if method not in wide or other not in wide:
        return ""
    apart = (wide[method] - wide[other]).dropna()
    half = float(student.ppf(0.975, len(apart) - 1)) * apart.std() / np.sqrt(len(apart))
    return f"{method} less {other}: {apart.mean():+.4f} ({apart.mean() - half:+.4f} to {apart.mean() + half:+.4f})"


def drawing(strengths: dict[str, pd.DataFrame], path: Path) -> None:
    """The distribution of strengths, donors and draws, for each case."""
    figure = Figure(figsize=(13, 3.2), layout="constrained")
    axes = figure.subplots(1, len(strengths), sharey=True)
    looks = {"donors": ("black", 2.2), "step 0": ("tab:blue", 1.6), f"trained, {STEPS} steps": ("tab:orange", 1.6)}
    looks["trained, noise alone"] = ("tab:gray", 1.2)
    for axis, (case, table) in zip(axes, strengths.items(), strict=True):
        for method, (colour, width) in looks.items():
            values = np.sort(table.loc[table["method"] == method, "strength"].to_numpy())
            axis.plot(values, np.linspace(0, 1, len(values)), color=colour, lw=width, label=method)
        axis.set(title=case, xlabel="strength of the response", xlim=(-0.5, 3))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("share of populations below")
    axes[0].legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path, dpi=150)


def main() -> None:
    arguments = parsed(__doc__, HERE, data=True)
    RUNS.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    lines = ["# Families of populations\n", __doc__.split("\n\n")[0] + "\n"]
    lines.append(
        f"Means over conditions, then over seeds {arguments.seeds} (range). `sd`: of the strength over the draws of a "
        "donor, or over all 32 donors, the sampling of cells taken out; `ratio`: of these variances; `inside`: share "
        "of test donors within the range of the draws (39 draws: 0.95; 13: 0.86); `correlation`: of the mean draw "
        "with the donor.\n"
    )
    rows, pictures = [], {}
    for case in CASES:
        found = [simulated(case, seed) for seed in arguments.seeds]
        scores = pd.concat([one.assign(seed=seed) for (one, _), seed in zip(found, arguments.seeds, strict=True)])
        spreads = pd.concat(
            [spread_of(own).assign(seed=seed) for (_, own), seed in zip(found, arguments.seeds, strict=True)]
        )
        wide = spreads.drop(columns="seed").groupby("method", sort=False).agg(spread)
        lines.append(f"## {case}\n\n{markdown(wide)}\n\n{markdown(means(scores))}\n")
        said = [against(scores, "step 0", other) for other in (TRAINED, OTHERS, ONE)]
        said.append(against(scores, f"trained, {STEPS} steps", TRAINED))
        lines.append("Score, over donors and seeds: " + "; ".join(filter(None, said)) + ".\n")
        pictures[case] = pd.concat([own for _, own in found])
        own = scores[(scores["suite"] == FAMILIES) & scores["metric"].isin(METRICS)]
        rows.append(own.groupby(["method", "metric", "seed"])["value"].mean().reset_index().assign(data=case))
        long = spreads.reset_index().melt(["method", "seed"], var_name="metric")
        rows.append(long.assign(data=case))
        print("\n".join(lines[-2:]), flush=True)
    for name in ("kang", "papalexi"):
        table = pd.concat([left_out(arguments.data, name, seed).assign(seed=seed) for seed in arguments.seeds])
        n = table.loc[table["suite"] == FAMILIES, "assay_batch"].replace("", np.nan).nunique()
        lines.append(f"## {name}, each of {n} left out, step 0\n\n{markdown(means(table))}\n")
        lines.append(f"Score, over the {n}: {against(table, 'step 0', TRAINED, ['assay_batch'])}.\n")
        own = table[(table["suite"] == FAMILIES) & table["metric"].isin(METRICS)]
        rows.append(own.groupby(["method", "metric", "seed"])["value"].mean().reset_index().assign(data=name))
        print("\n".join(lines[-2:]), flush=True)
    law = linear_gaussian()
    lines.append(
        f"## A linear-Gaussian family: standard deviation of the level\n\n{markdown(law.round(3).set_index('steps'))}\n"
    )
    record("families", "\n".join(lines), pd.concat(rows).dropna(subset=["value"]), arguments.out)
    drawing(pictures, arguments.out / "families.png")


if __name__ == "__main__":
    main()
