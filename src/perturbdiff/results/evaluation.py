"""An evaluation: what was found, as it is made, saved to a folder, loaded from one, and shown on a page.

In a folder must be metrics.json, overall.csv and metrics.csv (see `folder`). All else (contexts.csv, genes.parquet,
cells.parquet, the history of a run, the audit of a split, the suites of other libraries) may be absent, and a sentence
says what is not shown for it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from perturbdiff.metrics.conditions import LABELS, Condition
from perturbdiff.metrics.intervals import LEAST, RESAMPLES, UNITS
from perturbdiff.metrics.tables import COLUMNS, FAMILIES, OURS, SUITES, wide_table
from perturbdiff.metrics.warnings import Warned
from perturbdiff.results import folder as files
from perturbdiff.results.folder import Method
from perturbdiff.results.parts import Genes, Projection

CONTROL, MEAN_SHIFT = "control", "control + mean shift"
"""The baselines of every evaluation."""

LAST = "R2"
"""R2 of means is high for nearly everything: it never stands among the headline metrics."""

_ABSENT = {
    "contexts": "contexts.csv is missing, so there are no tables for each cell type.",
    "genes": "genes.parquet is missing, so there are no densities, no volcano plots and no tables of genes.",
    "cells": "cells.parquet is missing, so there is no projection of the cells.",
    "history": "The evaluation names no training run, so there is no training curve; give evaluate the model by --run.",
    "audit": "The evaluation names no split, so leakage was not audited; give evaluate the model by --run.",
    "ours": "perturbdiff's own metrics are missing from the evaluation.",
    "paper": "The paper's metrics are missing from the evaluation, so there is no radar of them.",
    "vcc2026": "The metrics of vcc2026 are missing from the evaluation.",
}


@dataclass(frozen=True)
class Metric:
    """A metric: its suite and name, what is better, its meaning and its range, in words."""

    suite: str
    name: str
    better: str
    meaning: str
    range: str

    @property
    def title(self) -> str:
        """The name as it is read."""
        return self.name.replace("_", " ")


@dataclass(frozen=True)
class Score:
    """A mean over conditions with its 95 % interval, and the same scaled: 0 is the baseline, 1 the ceiling.

    Of the `conditions` that were judged it is `undefined` in some; the mean is over the others.
    """

    value: float
    low: float
    high: float
    conditions: int
    undefined: int
    scaled: float
    scaled_low: float
    scaled_high: float

    @classmethod
    def of(cls, row: Any) -> Self:  # noqa: ANN401 - a row of a table, which pandas does not type
        """The score in a row of overall.csv or contexts.csv."""
        conditions, undefined = (int(count) if pd.notna(count) else 0 for count in (row.conditions, row.undefined))
        value, low, high = float(row.value), float(row.low), float(row.high)
        scaled = (float(row.scaled), float(row.scaled_low), float(row.scaled_high))
        return cls(value, low, high, conditions, undefined, *scaled)


@dataclass(frozen=True)
class Evaluation:
    """All that an evaluation found.

    Attributes:
        scores: suite, method, perturbation, cell_type, assay_batch, metric, value; metrics of a whole context have no
            perturbation.
        overall: means over conditions, see `folder`.
        contexts: the same for each cell type; None where absent.
        ranges: the dynamic range of each metric: suite, metric, baseline, ceiling, difference, low, high, apart.
        notes: what was left out, undefined or missing, as sentences.
        warnings: what a reader must know before believing a number.
        methods: predicted files, then baselines, then ceilings.
        genes: what tests say of the genes of the observed cells and of predicted files; None where absent.
        projection: some cells on principal components, and by UMAP; None where absent.
        legend: of each suite and metric, what is better, the meaning and the range.
        baseline: the method that is 0 on the scaled score; empty where none is named.
        ceiling: the method that is 1 on the scaled score; empty where none is named.
        leading: the names of the metrics to lead with, see `headline`.
        versions: of the packages that numbers depend on.
        settings: of the evaluation.
        audit: of the split that the run was trained with; None where there is none.
        run: the history and the settings of the run; None where there is none.
    """

    scores: pd.DataFrame
    overall: pd.DataFrame
    contexts: pd.DataFrame | None
    ranges: pd.DataFrame
    notes: tuple[str, ...]
    warnings: tuple[Warned, ...] = ()
    methods: tuple[Method, ...] = ()
    genes: Genes | None = field(default=None, repr=False)
    projection: Projection | None = None
    legend: Mapping[str, Mapping[str, Mapping[str, str]]] = field(default_factory=dict)
    baseline: str = ""
    ceiling: str = ""
    leading: tuple[str, ...] = ()
    versions: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    audit: Mapping[str, Any] | None = None
    run: Mapping[str, Any] | None = None

    def save(self, folder: Path) -> None:
        """Write the folder of results, each file whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        tables = {files.SCORES: self.scores, files.OVERALL: self.overall, files.CONTEXTS: self.contexts}
        for name, table in tables.items():
            if table is not None:
                files.write_table(folder / name, table)
        if self.genes is not None:
            self.genes.save(folder / files.GENES)
        if self.projection is not None:
            self.projection.save(folder / files.CELLS)
        content = {
            "headline": list(self.leading),
            "baseline": self.baseline,
            "ceiling": self.ceiling,
            "methods": [vars(method) for method in self.methods],
            "warnings": [one._asdict() for one in self.warnings],
            "notes": list(self.notes),
            "legend": self.legend,
            "overall": files.records(self.overall),
            "dynamic_range": files.records(self.ranges),
            "variance": None if self.projection is None else list(self.projection.variance),
            "versions": dict(self.versions),
            "settings": dict(self.settings),
            "audit": self.audit,
            "run": self.run,
            "conditions": files.records(self.scores),
        }
        files.write_content(folder / files.CONTENT, content)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the folder that `save`, and so `perturbdiff evaluate`, wrote.

        Raises:
            ValueError: it is no such folder, or a file in it is not what `save` writes.
        """
        content = files.read_content(folder)
        scores, overall = files.read_table(folder / files.SCORES), files.read_table(folder / files.OVERALL)
        methods = files.read_methods(folder, content, overall)
        if not (scores["perturbation"] != "").any():
            raise ValueError(f"metrics.csv in {str(folder)!r} has no condition; run evaluate again.")
        contexts, genes, cells = (folder / name for name in (files.CONTEXTS, files.GENES, files.CELLS))
        shares = content.get("variance")
        variance = tuple(float(share) for share in shares) if isinstance(shares, list) else ()
        return cls(
            scores=scores,
            overall=overall,
            contexts=files.read_table(contexts) if contexts.is_file() else None,
            ranges=files.read_ranges(content),
            notes=tuple(map(str, content.get("notes") or [])),
            warnings=tuple(Warned(str(one["kind"]), str(one["text"])) for one in content.get("warnings") or []),
            methods=methods,
            genes=Genes.read(genes) if genes.is_file() else None,
            projection=Projection.read(cells, variance) if cells.is_file() else None,
            legend=content.get("legend") or {},
            baseline=str(content.get("baseline") or ""),
            ceiling=str(content.get("ceiling") or ""),
            leading=tuple(content.get("headline") or []),
            versions=content.get("versions") or {},
            settings=content.get("settings") or {},
            audit=content.get("audit") or None,
            run=content.get("run") or None,
        )

    @property
    def table(self) -> pd.DataFrame:
        """Our own metrics of every method and condition; the columns of `metrics.tables`."""
        own = (self.scores["suite"] == OURS) & (self.scores["perturbation"] != "")
        return self.scores.loc[own, list(COLUMNS)].reset_index(drop=True)

    def summary(self) -> pd.DataFrame:
        """Our own metrics as they are read: a row per method, a column per metric; NaN for a method that is missing."""
        from perturbdiff.baselines.catalogue import NAMES  # with all that these need, which a page does not

        made = [one.name for one in self.of_kind("baseline")]
        baselines = [name for name in NAMES if name in {*made, *self.not_made}]
        predicted, ceilings = ([one.name for one in self.of_kind(kind)] for kind in ("predicted", "ceiling"))
        return wide_table(self.overall[self.overall["suite"] == OURS]).reindex([*predicted, *baselines, *ceilings])

    def headlines(self) -> pd.DataFrame:
        """The headline metrics as they are read: a row per method, values over their intervals, as text."""
        own = self.overall[(self.overall["suite"] == OURS) & self.overall["metric"].isin(self.leading)]
        texts = own.assign(text=[_interval(*row) for row in own[["value", "low", "high"]].itertuples(index=False)])
        wide = texts.pivot_table(index="method", columns="metric", values="text", aggfunc="first", sort=False)
        wide = wide[[name for name in self.leading if name in wide]].reset_index()
        return wide.rename(columns=lambda name: name.replace("_", "\n"))

    def drawn(self) -> pd.DataFrame:
        """The part of `table` that a figure shows: predicted files, the simple baselines and the ceiling."""
        shown = {one.name for one in self.of_kind("predicted")} | {CONTROL, MEAN_SHIFT, self.ceiling}
        return self.table[self.table["method"].isin(shown)]

    def of_kind(self, *kinds: str) -> list[Method]:
        """The methods of these kinds."""
        return [method for method in self.methods if method.kind in kinds]

    def of_suite(self, suite: str) -> list[Metric]:
        """The metrics of a suite."""
        return [metric for metric in self.metrics if metric.suite == suite]

    @cached_property
    def not_made(self) -> tuple[str, ...]:
        """The baselines that were asked for and could not be made."""
        made = {one.name for one in self.methods}
        return tuple(name for name in self.settings.get("baselines") or () if name not in made)

    @cached_property
    def conditions(self) -> list[Condition]:
        """The judged conditions, in the order of the table.

        A metric of a whole cell type stands under the empty perturbation, which is none of them.
        """
        keys = self.scores.loc[self.scores["perturbation"] != "", list(LABELS)].drop_duplicates()
        return [Condition(*key) for key in keys.itertuples(index=False, name=None)]

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics of the overall table, in the order of the suites and of the legend, R2 last in its suite."""
        found: list[Metric] = []
        pairs = self.overall[["suite", "metric"]].drop_duplicates()
        for suite in [*SUITES, *(suite for suite in pairs["suite"].unique() if suite not in SUITES)]:
            said = self.legend.get(suite) or {}
            present = list(pairs.loc[pairs["suite"] == suite, "metric"])
            names = [name for name in said if name in present] + [name for name in present if name not in said]
            for name in sorted(names, key=lambda name: name == LAST):
                texts = (str((said.get(name) or {}).get(key) or "") for key in ("better", "meaning", "range"))
                found.append(Metric(suite, name, *texts))
        return tuple(found)

    @cached_property
    def headline(self) -> tuple[Metric, ...]:
        """The leading metrics, each in the first suite that has it; where none leads, the first of each suite."""
        wanted = [metric for name in self.leading for metric in [m for m in self.metrics if m.name == name][:1]]
        if not wanted:
            judged = [metric for metric in self.metrics if metric.better not in {"", "none"}]
            wanted = [metric for suite in SUITES for metric in [m for m in judged if m.suite == suite][:2]]
        return tuple(metric for metric in wanted if metric.name != LAST)

    @cached_property
    def unit(self) -> str:
        """What is drawn again for intervals, one of `UNITS`: as the evaluation says.

        Where it does not say, perturbations, or cell types where there is one perturbation.
        """
        said = str(self.settings.get("unit") or "")
        if said in UNITS:
            return said
        return "perturbation" if len({one.perturbation for one in self.conditions}) > 1 else "cell_type"

    @cached_property
    def n_units(self) -> int:
        """How many of them there are."""
        return len({getattr(condition, self.unit) for condition in self.conditions})

    @property
    def resamples(self) -> int:
        """How often they are drawn."""
        return int(self.settings.get("resamples") or RESAMPLES)

    @property
    def seed(self) -> int:
        """Of the draws."""
        return int(self.settings.get("seed") or 0)

    @cached_property
    def blind(self) -> set[Metric]:
        """The metrics that do not tell the ceiling from the baseline, where there is an interval that says so."""
        rows = self.ranges[~self.ranges["apart"].astype(bool) & self.ranges["low"].notna()]
        names = set(zip(rows["suite"], rows["metric"], strict=True))
        return {metric for metric in self.metrics if (metric.suite, metric.name) in names}

    @cached_property
    def history(self) -> pd.DataFrame | None:
        """What the run recorded, a row for each step; None where absent."""
        steps = (self.run or {}).get("history")
        return pd.DataFrame(steps) if steps else None

    @property
    def run_settings(self) -> Mapping[str, Any]:
        """The settings of the run; empty where there is none."""
        return (self.run or {}).get("settings") or {}

    @cached_property
    def missing(self) -> dict[str, str]:
        """What is not shown, as a sentence by part: contexts, genes, cells, history, audit, and the suites."""
        parts: dict[str, object] = {"contexts": self.contexts, "genes": self.genes, "cells": self.projection}
        parts |= {"history": self.history, "audit": self.audit}
        absent = [name for name, found in parts.items() if found is None]
        absent += {*SUITES} - {FAMILIES} - {metric.suite for metric in self.metrics}
        return {part: _ABSENT[part] for part in sorted(absent)}

    @cached_property
    def _means(self) -> dict[tuple[str, str, str], Score]:
        """The rows of the overall table by suite, metric and method."""
        rows = self.overall.itertuples(index=False)
        return {(str(row.suite), str(row.metric), str(row.method)): Score.of(row) for row in rows}

    def score(self, metric: Metric, method: str) -> Score | None:
        """The overall score of a method by a metric; None where the table has none."""
        return self._means.get((metric.suite, metric.name, method))

    def without_rash_intervals(self) -> Self:
        """Without the intervals that are over fewer than `LEAST` units: two of them say nothing of a third."""
        ends = ["low", "high", "scaled_low", "scaled_high"]
        changes: dict[str, Any] = {}
        if self.n_units < LEAST:
            changes["overall"] = self.overall.assign(**dict.fromkeys(ends, np.nan))
            changes["ranges"] = self.ranges.assign(low=np.nan, high=np.nan, apart=False)
        if self.contexts is not None:
            units = pd.DataFrame(self.conditions).groupby("cell_type")[self.unit].nunique()
            rash = self.contexts["cell_type"].map(units).fillna(0) < LEAST
            changes["contexts"] = self.contexts.assign(**{name: self.contexts[name].mask(rash) for name in ends})
        return replace(self, **changes)


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:.3f}" + (f"\n{low:.2f}…{high:.2f}" if math.isfinite(low) else "")
