"""Which law of counts, and how it is drawn: the change is known, so that only what is made of it can be wrong.

    python experiments/law.py --data ../shared/data --seeds 0 1 2

* Laws. Control cells of the same cell type and assay batch are given the mean change of a condition's own cells, and
  are judged by these: IFN-beta in six types of Kang et al., each donor, and the knock-outs of Papalexi et al. Every
  law's changes are found so that the drawn cells have the mean that is wanted (bisection, gene by gene). "counts" is
  the law of the package: counts are lost by thinning and Poisson counts added. Others add more unevenly: by a factor of
  the cell that all genes share (gamma, with this variance), by one of each cell and gene, or one half in proportion to
  the counts that the cell has already. "log1p" adds the change to log1p values.
* Steps. Models of simulated doses (doses.py) predict with drawn counts in every step of the reverse chain, which is
  the package's way, or with their expectation in all steps but the last. Errors are those of doses.py.

Results: experiments/results/law.md."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch

from common import (
    GROUP,
    METRICS,
    judged,
    markdown,
    of_distinct_controls,
    parsed,
    predicted_change,
    record,
    spread,
    summary,
)
from doses import DOSES, trained
from perturbdiff import Cells, PerturbDiff, read_recipe
from perturbdiff.baselines.control import drawn_rows, groups_of, under_labels
from perturbdiff.cells.counts import added, kept, logs, whole
from perturbdiff.core.denoiser import Denoiser
from perturbdiff.core.observation import Estimate
from perturbdiff.core.population import Noised
from perturbdiff.metrics.tables import over_batches
from perturbdiff.prediction import predict
from perturbdiff.recipes.dataset import PER
from perturbdiff.recipes.settings import SamplingSettings
from perturbdiff.simulation.responses import true_change

HERE = Path(__file__).parent
FILES = {
    "kang": ("B cells", "CD14+ Monocytes", "CD4 T cells", "CD8 T cells", "FCGR3A+ Monocytes", "NK cells"),
    "papalexi": ("THP-1",),
}
SMALLEST = 40
"""Cells of a condition that are enough to know its mean."""

SHOWN = [*METRICS, "variance_ratio", "zeros_predicted", "zeros_observed"]
ROUNDS, DRAWS = 12, 2

type Array = np.ndarray
type Factor = Callable[[Array, Array, np.random.Generator], Array | float]
"""By how much more or less than on the mean is added, of counts [cells, genes] and totals [cells]."""


def of_cell(variance: float, counts: Array, totals: Array, rng: np.random.Generator) -> Array:
    """One factor for all genes of a cell."""
    del totals
    return rng.gamma(1 / variance, variance, (len(counts), 1))


def of_gene(variance: float, counts: Array, totals: Array, rng: np.random.Generator) -> Array:
    """A factor for each cell and gene."""
    del totals
    return rng.gamma(1 / variance, variance, counts.shape)


def in_proportion(share: float, counts: Array, totals: Array, rng: np.random.Generator) -> Array:
    """A share in proportion to what the cell has of the gene, where any cell has some."""
    del rng
    has = counts / totals[:, None]
    mean = has.mean(axis=0)
    return 1 - share + share * np.divide(has, mean, out=np.ones_like(has), where=mean > 0)


LAWS: dict[str, Factor] = {
    "counts": lambda *_: 1.0,
    "a factor of the cell, variance 0.2": partial(of_cell, 0.2),
    "a factor of the cell, variance 1": partial(of_cell, 1.0),
    "a factor of cell and gene, variance 1": partial(of_gene, 1.0),
    "one half in proportion": partial(in_proportion, 0.5),
}


def drawn(counts: Array, totals: Array, change: Array, factor: Factor, rng: np.random.Generator) -> Array:
    """Log1p counts per 10^4 of cells that a change makes, by a law."""
    n = rng.binomial(counts.astype(np.int64), kept(change)).astype(float)
    n += rng.poisson(added(change) * (totals / PER)[:, None] * factor(counts, totals, rng))
    return logs(n, totals + (n - counts).sum(axis=1))


def found(counts: Array, totals: Array, wanted: Array, factor: Factor, seed: int) -> Array:
    """The change of which the drawn cells have the wanted mean; the draws are the same in every round."""
    low, high = np.full(len(wanted), -5.0), np.full(len(wanted), 8.0)
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        draws = [drawn(counts, totals, middle, factor, np.random.default_rng([seed, i])) for i in range(DRAWS)]
        mean = np.mean(draws, axis=(0, 1))
        low, high = np.where(mean < wanted, middle, low), np.where(mean < wanted, high, middle)
    change = (low + high) / 2
    return np.where(np.isclose(wanted, logs(counts, totals).mean(axis=0), atol=1e-9), 0.0, change)


def laws(data: Path, name: str, seed: int) -> pd.DataFrame:
    """Every law on one file."""
    rng = np.random.default_rng(seed)
    cells = PerturbDiff.from_recipe(read_recipe(HERE / f"{name}.toml"), folder=data).source
    labels = cells.labels.astype(str).reset_index(drop=True)
    sizes = groups_of(cells).astype(dict.fromkeys(GROUP, str))
    chosen = sizes[(sizes["cells"] >= SMALLEST) & sizes["cell_type"].isin(FILES[name])]
    controls = cells.take(cells.is_control)
    place = dict(labels.groupby(GROUP).indices)
    drawn_from = of_distinct_controls(chosen, cells)
    rows = drawn_rows(drawn_from, controls, rng)
    unchanged = under_labels(drawn_from, controls, rows, genes=cells.genes, control=str(cells.control))
    x, totals = unchanged.log_expression(cells.genes).toarray().astype(float), controls.known_totals[rows]
    made: dict[str, Array] = {method: np.empty_like(x, dtype=np.float32) for method in ("log1p", *LAWS)}
    start = 0
    for *labels, n in drawn_from[[*GROUP, "cells"]].itertuples(index=False, name=None):
        key, own = tuple(labels), slice(start, start + n)
        start += n
        change = _mean(cells, place[key]) - _mean(cells, place[(str(cells.control), *key[1:])])
        counts = whole(x[own], totals[own])
        wanted = np.maximum(x[own].mean(axis=0) + change, 0)
        made["log1p"][own] = np.maximum(x[own] + change, 0)
        for method, factor in LAWS.items():
            o = found(counts, totals[own], wanted, factor, seed)
            made[method][own] = drawn(counts, totals[own], o, factor, rng)
    judged_rows = np.concatenate(
        [*map(place.get, chosen[GROUP].itertuples(index=False, name=None)), np.flatnonzero(cells.is_control)]
    )
    predicted = {method: replace(unchanged, values=values) for method, values in made.items()}
    return judged(predicted, cells.take(np.sort(judged_rows)), seed).assign(part=name, seed=seed)


def _mean(cells: Cells, rows: Array) -> Array:
    return np.asarray(cells.log_expression(cells.genes, rows).mean(axis=0)).ravel()


class Expecting:
    """A denoiser of counts that gives their expectation in every step but the last."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser

    def estimate(self, noised: Noised) -> Estimate:
        """The cells of which the counts are those expected; drawn ones at t = 0."""
        if int(noised.t.max()) == 0 or noised.totals is None:
            return self.denoiser.estimate(noised)
        scale, per = self.denoiser.scale, (noised.totals / PER).unsqueeze(-1)
        change = self.denoiser.unclamped(noised) * scale
        counts = torch.expm1(noised.control * scale) * per
        n = counts * change.clamp(max=0).exp() + change.clamp(min=0).expm1() * per
        after = noised.totals + (n - counts).sum(dim=-1)
        return Estimate(torch.log1p(n * (PER / after).unsqueeze(-1)) / scale, after)


def steps(seed: int) -> pd.DataFrame:
    """The errors of models of simulated doses, either way."""
    torch.set_num_threads(1)
    adata, model = trained(seed)
    controls = adata[adata.obs["perturbation"] == "control"].copy()
    usual, rows = predict.build_guided, []

    def expecting(settings: SamplingSettings, denoiser: Denoiser) -> Expecting:
        return Expecting(usual(settings, denoiser))

    for method, built in (("drawn in every step", usual), ("expected in all steps but the last", expecting)):
        with patch.object(predict, "build_guided", built):
            for where, doses in DOSES.items():
                for drug in sorted(set(adata.obs["perturbation"]) - {"control"}):
                    scale = np.sqrt(np.mean(np.square(true_change(adata, drug, 1e6))))
                    for dose in doses:
                        change = predicted_change(model, controls, drug, seed, dose=dose, dose_unit="uM")
                        error = np.sqrt(np.mean(np.square(change - true_change(adata, drug, dose)))) / scale
                        rows.append((method, where, drug, dose, "error", float(error)))
    columns = ["method", "where", "drug", "dose", "metric", "value"]
    return pd.DataFrame(rows, columns=columns).assign(part="steps", seed=seed)


def main() -> None:
    arguments = parsed(__doc__, HERE, data=True)
    with ProcessPoolExecutor(arguments.jobs) as pool:
        tasks = [(arguments.data, name, seed) for name in FILES for seed in arguments.seeds]
        of_laws = pd.concat(pool.map(laws, *zip(*tasks, strict=True)))
        of_steps = pd.concat(pool.map(steps, arguments.seeds))
    parts = [f"# Which law of counts, and how it is drawn\n\n{__doc__.split(chr(10) * 2)[0]} Seeds {arguments.seeds}."]
    for name, own in of_laws.groupby("part", sort=False):
        n = len(own[GROUP].drop_duplicates())
        parts.append(f"## {name}: {n} conditions, the true change given\n\n{markdown(summary(own, ['method'], SHOWN))}")
    means = of_steps.groupby(["method", "where", "seed"], sort=False)["value"].mean().reset_index()
    cells = means.groupby(["method", "where"], sort=False)["value"].agg(spread).reset_index()
    table = cells.pivot_table(index="method", columns="where", values="value", aggfunc="first", sort=False)[list(DOSES)]
    parts.append(f"## Steps of the reverse chain\n\nError relative to the drug's whole programme.\n\n{markdown(table)}")
    text = "\n\n".join(parts)
    shown = of_laws[of_laws["metric"].isin(SHOWN)].dropna(subset=["value"])
    rows = over_batches(shown, ["part", "method", "metric", "seed"])
    record("law", text, pd.concat([rows, of_steps.drop(columns=["dose"])]), arguments.out)
    print(text)


if __name__ == "__main__":
    main()
