"""The folder of an evaluation, read and checked; nothing else is looked at.

What must be there: metrics.json, overall.csv and metrics.csv. All else (contexts.csv, genes.parquet, cells.parquet, the
history of a run, the audit of a split, the suites of other libraries) may be absent, and a sentence says what is not
shown for it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from perturbdiff.evaluation.cells import Cells, read_cells
from perturbdiff.evaluation.genes import Genes, read_genes

SUITES = {"ours": "perturbdiff's own", "paper": "the paper's, by cell-eval", "vcc2026": "vcc2026, by cell-eval2"}
"""What a suite of metrics is called in words."""

LAST = "R2"
"""R2 of means is high for nearly everything: it never stands among the headline metrics."""

LEAST = 3
"""Of fewer units that are drawn again no interval is spoken of: their draws hardly differ."""

UNITS = {"perturbation": "perturbations", "assay_batch": "assay batches", "cell_type": "cell types"}
"""What may be drawn again for an interval: that which is independent."""

type Key = tuple[str, str, str]
"""A condition: perturbation, cell type, and assay batch, which is empty where it is pooled over them."""

_LABELS = ("suite", "method", "perturbation", "cell_type", "assay_batch", "metric")
_SCORES = ("value", "low", "high", "conditions", "undefined", "scaled", "scaled_low", "scaled_high")
_COUNTS = {"conditions", "undefined"}
_TABLES = {
    "metrics.csv": (*_LABELS, "value"),
    "overall.csv": ("suite", "method", "metric", *_SCORES),
    "contexts.csv": ("suite", "method", "cell_type", "metric", *_SCORES),
}
KINDS = ("predicted", "baseline", "ceiling")
"""The kinds of methods, in the order of the tables."""


@dataclass(frozen=True)
class Method:
    """A method of the tables: its name, its kind (one of `KINDS`), and what it does."""

    name: str
    kind: str
    about: str


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


@dataclass(frozen=True)
class Evaluation:
    """All that an evaluation's folder holds.

    Attributes:
        methods: predicted files, then baselines, then ceilings.
        metrics: those of the tables, in the legend's order, R2 of means last in its suite.
        table: suite, method, perturbation, cell_type, assay_batch, metric, value.
        overall: means over conditions, with the columns of `Score`.
        contexts: the same for each cell type; None where absent.
        genes: None where absent.
        cells: None where absent.
        baseline: what is 0 on the scaled score; empty where none is named.
        ceiling: what is 1 on the scaled score; empty where none is named.
        headline: the metrics that the verdict is about.
        ranges: suite, metric, baseline, ceiling, difference, low, high, apart; None where absent.
        history: a row for each recorded step; None where absent.
        missing: what is not shown, as a sentence by part: contexts, genes, cells, history, audit, paper, vcc2026.
    """

    name: str
    methods: tuple[Method, ...]
    metrics: tuple[Metric, ...]
    table: pd.DataFrame
    overall: pd.DataFrame
    contexts: pd.DataFrame | None
    genes: Genes | None
    cells: Cells | None
    baseline: str
    ceiling: str
    headline: tuple[Metric, ...]
    notes: tuple[str, ...]
    warnings: tuple[tuple[str, str], ...]
    versions: Mapping[str, Any]
    settings: Mapping[str, Any]
    audit: Mapping[str, Any] | None
    ranges: pd.DataFrame | None
    history: pd.DataFrame | None
    run_settings: Mapping[str, Any]
    missing: Mapping[str, str] = field(default_factory=dict)

    def of_kind(self, *kinds: str) -> list[Method]:
        """The methods of these kinds."""
        return [method for method in self.methods if method.kind in kinds]

    def of_suite(self, suite: str) -> list[Metric]:
        """The metrics of a suite."""
        return [metric for metric in self.metrics if metric.suite == suite]

    @cached_property
    def conditions(self) -> list[Key]:
        """The judged conditions, in the order of the table.

        A metric of a whole cell type stands under the empty perturbation, which is none of them.
        """
        columns = ["perturbation", "cell_type", "assay_batch"]
        keys = self.table.loc[self.table["perturbation"] != "", columns].drop_duplicates()
        return list(keys.itertuples(index=False, name=None))

    @cached_property
    def unit(self) -> str:
        """What is drawn again for intervals, one of `UNITS`: as the evaluation says.

        Where it does not say, perturbations, or cell types where there is one perturbation.
        """
        said = str(self.settings.get("unit") or "")
        if said in UNITS:
            return said
        return "perturbation" if len({perturbation for perturbation, _, _ in self.conditions}) > 1 else "cell_type"

    @cached_property
    def n_units(self) -> int:
        """How many of them there are."""
        place = list(UNITS).index(self.unit)
        order = (0, 2, 1)  # a condition has its batch last
        return len({condition[order[place]] for condition in self.conditions})

    @cached_property
    def blind(self) -> set[Metric]:
        """The metrics that do not tell the ceiling from the baseline, where there is an interval that says so."""
        if self.ranges is None:
            return set()
        rows = self.ranges[~self.ranges["apart"].astype(bool) & self.ranges["low"].notna()]
        names = set(zip(rows["suite"], rows["metric"], strict=True))
        return {metric for metric in self.metrics if (metric.suite, metric.name) in names}

    @cached_property
    def scores(self) -> dict[tuple[str, str, str], Score]:
        """The rows of the overall table by suite, metric and method."""
        rows = self.overall.itertuples(index=False)
        return {(str(row.suite), str(row.metric), str(row.method)): score_of(row) for row in rows}

    def score(self, metric: Metric, method: str) -> Score | None:
        """The overall score of a method by a metric; None where the table has none."""
        return self.scores.get((metric.suite, metric.name, method))


def score_of(row: Any) -> Score:  # noqa: ANN401 - a row of a table, which pandas does not type
    """The score in a row of overall.csv or contexts.csv."""
    conditions, undefined = (int(count) if pd.notna(count) else 0 for count in (row.conditions, row.undefined))
    value, low, high = float(row.value), float(row.low), float(row.high)
    scaled = (float(row.scaled), float(row.scaled_low), float(row.scaled_high))
    return Score(value, low, high, conditions, undefined, *scaled)


def read_evaluation(folder: Path) -> Evaluation:
    """Read the folder that `perturbdiff evaluate` wrote.

    Raises:
        ValueError: it is no such folder, or a file in it is not what `evaluate` writes.
    """
    content = _content(folder)
    table, overall = _table(folder / "metrics.csv"), _table(folder / "overall.csv")
    methods = _methods(folder, content, overall)
    metrics = _metrics(content.get("legend") or {}, overall)
    if not (table["perturbation"] != "").any():
        raise ValueError(f"metrics.csv in {str(folder)!r} has no condition; run evaluate again.")
    contexts = _table(folder / "contexts.csv") if (folder / "contexts.csv").is_file() else None
    genes = read_genes(folder / "genes.parquet") if (folder / "genes.parquet").is_file() else None
    cells = _cells(folder / "cells.parquet", content)
    run = content.get("run") or {}
    history = pd.DataFrame(run["history"]) if run.get("history") else None
    audit = content.get("audit") or None
    present = {"contexts": contexts, "genes": genes, "cells": cells, "history": history, "audit": audit}
    suites = {metric.suite for metric in metrics}
    absent = {part for part, found in present.items() if found is None} | {
        name for name in SUITES if name not in suites
    }
    return _without_rash_intervals(
        Evaluation(
            name=folder.resolve().name,
            methods=methods,
            metrics=metrics,
            table=table,
            overall=overall,
            contexts=contexts,
            genes=genes,
            cells=cells,
            baseline=str(content.get("baseline") or ""),
            ceiling=str(content.get("ceiling") or ""),
            headline=_headline(content.get("headline") or [], metrics),
            notes=tuple(map(str, content.get("notes") or [])),
            warnings=tuple((str(one["kind"]), str(one["text"])) for one in content.get("warnings") or []),
            versions=content.get("versions") or {},
            settings=content.get("settings") or {},
            audit=audit,
            ranges=_ranges(content),
            history=history,
            run_settings=run.get("settings") or {},
            missing={part: _ABSENT[part] for part in sorted(absent) if part in _ABSENT},
        )
    )


def _without_rash_intervals(evaluation: Evaluation) -> Evaluation:
    """Without the intervals that are over fewer than `LEAST` units: two of them say nothing of a third."""
    ends = ["low", "high", "scaled_low", "scaled_high"]
    changes: dict[str, Any] = {}
    if evaluation.n_units < LEAST:
        changes["overall"] = evaluation.overall.assign(**dict.fromkeys(ends, np.nan))
        if evaluation.ranges is not None:
            changes["ranges"] = evaluation.ranges.assign(low=np.nan, high=np.nan, apart=False)
    if evaluation.contexts is not None:
        conditions = pd.DataFrame(evaluation.conditions, columns=["perturbation", "cell_type", "assay_batch"])
        units = conditions.groupby("cell_type")[evaluation.unit].nunique()
        rash = evaluation.contexts["cell_type"].map(units).fillna(0) < LEAST
        changes["contexts"] = evaluation.contexts.assign(
            **{name: evaluation.contexts[name].mask(rash) for name in ends}
        )
    return replace(evaluation, **changes)


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


def _content(folder: Path) -> dict[str, Any]:
    """What metrics.json says."""
    path = folder / "metrics.json"
    absent = [name for name in ("metrics.json", "overall.csv", "metrics.csv") if not (folder / name).is_file()]
    if absent:
        raise ValueError(
            f"{str(folder)!r} has no {absent[0]}, so it is not the folder of an evaluation; "
            "give the folder that `perturbdiff evaluate --out` wrote."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} is not JSON ({error}); run evaluate again.") from None
    if not isinstance(content, dict) or "methods" not in content:
        raise ValueError(f"{str(path)!r} names no methods, as older versions wrote it; run evaluate again.")
    return content


def _table(path: Path) -> pd.DataFrame:
    """A table of scores; labels stay texts, also where they read as a number or as nothing."""
    columns = _TABLES[path.name]
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if "assay_batch" in columns and "assay_batch" not in table.columns:
        table["assay_batch"] = ""  # as written when all conditions were pooled over their batches
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise ValueError(f"{str(path)!r} lacks the columns {missing}, as older versions wrote it; run evaluate again.")
    numbers = [name for name in columns if name not in _LABELS]
    try:
        values = {
            name: pd.to_numeric(table[name].where(~table[name].str.lower().isin(["", "nan"]))).astype(float)
            for name in numbers
        }
    except ValueError as error:
        raise ValueError(f"{str(path)!r} holds a value that is no number ({error}); run evaluate again.") from None
    whole = [name for name in _COUNTS & values.keys() if values[name].notna().all()]
    counts = {name: values.pop(name).astype("int64") for name in whole}
    return table[list(columns)].assign(**values, **counts)


def _methods(folder: Path, content: dict[str, Any], overall: pd.DataFrame) -> tuple[Method, ...]:
    """The methods, by kind; each of the table's must be named."""
    methods = [Method(str(one["name"]), str(one["kind"]), str(one.get("about") or "")) for one in content["methods"]]
    named = {method.name for method in methods}
    unnamed = [name for name in overall["method"].unique() if name not in named]
    if unnamed:
        raise ValueError(
            f"overall.csv in {str(folder)!r} has the method {unnamed[0]!r}, which metrics.json does not name; "
            "run evaluate again."
        )
    strange = [method for method in methods if method.kind not in KINDS]
    if strange:
        raise ValueError(
            f"the method {strange[0].name!r} in {str(folder)!r} is of the kind {strange[0].kind!r}, which is none of "
            f"{list(KINDS)}; run evaluate again."
        )
    if not any(method.kind == "predicted" for method in methods):
        raise ValueError(f"{str(folder)!r} holds no predicted file; give evaluate at least one.")
    return tuple(method for kind in KINDS for method in methods if method.kind == kind)


def _metrics(legend: Mapping[str, Any], overall: pd.DataFrame) -> tuple[Metric, ...]:
    """The metrics of the table, in the order of the suites and of the legend."""
    found: list[Metric] = []
    pairs = overall[["suite", "metric"]].drop_duplicates()
    suites = [*SUITES, *(suite for suite in pairs["suite"].unique() if suite not in SUITES)]
    for suite in suites:
        said = legend.get(suite) or {}
        present = list(pairs.loc[pairs["suite"] == suite, "metric"])
        names = [name for name in said if name in present] + [name for name in present if name not in said]
        for name in sorted(names, key=lambda name: name == LAST):
            about = said.get(name) or {}
            texts = (str(about.get(key) or "") for key in ("better", "meaning", "range"))
            found.append(Metric(suite, name, *texts))
    return tuple(found)


def _headline(names: list[str], metrics: tuple[Metric, ...]) -> tuple[Metric, ...]:
    """The headline metrics, each in the first suite that has it; where none is named, the first of each suite."""
    wanted = [metric for name in names for metric in [m for m in metrics if m.name == name][:1]]
    if not wanted:
        judged = [metric for metric in metrics if metric.better not in {"", "none"}]
        wanted = [metric for suite in SUITES for metric in [m for m in judged if m.suite == suite][:2]]
    return tuple(metric for metric in wanted if metric.name != LAST)


def _cells(path: Path, content: dict[str, Any]) -> Cells | None:
    if not path.is_file():
        return None
    shares = content.get("variance")
    return read_cells(path, tuple(float(share) for share in shares) if isinstance(shares, list) else ())


def _ranges(content: dict[str, Any]) -> pd.DataFrame | None:
    """How far each metric tells the ceiling from the baseline; undefined values are NaN."""
    columns = ["suite", "metric", "baseline", "ceiling", "difference", "low", "high", "apart"]
    rows = [[row.get(name) for name in columns] for row in content.get("dynamic_range") or []]
    if not rows:
        return None
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(**{name: pd.to_numeric(table[name], errors="coerce").astype(float) for name in columns[2:7]})
