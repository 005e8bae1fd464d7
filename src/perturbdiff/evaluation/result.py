"""What a comparison found, and the folder that it is written to.

    metrics.csv      suite, method, perturbation, cell_type, assay_batch, metric, value
    overall.csv      means over conditions with 95 % intervals: suite, method, metric, value, low, high, conditions,
                     undefined, scaled, scaled_low, scaled_high
    contexts.csv     the same for each cell type
    genes.parquet    side, perturbation, cell_type, assay_batch, gene, change, p_value, p_adjusted, mean
    cells.parquet    side, perturbation, cell_type, assay_batch, pc1, pc2, and with UMAP umap1, umap2
    metrics.json     all but the genes and cells, the legend, notes, warnings, versions and settings

The assay batch of a condition is "" where it is judged over all batches together. Each file is written whole or not at
all; undefined values are nan in the tables and null in JSON.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet

from perturbdiff.evaluation.folder import KINDS, Method
from perturbdiff.evaluation.methods import BASELINES, CONTROL, MEAN_SHIFT
from perturbdiff.evaluation.projection import Projection
from perturbdiff.evaluation.scores import Test
from perturbdiff.io import whole_file
from perturbdiff.metrics.conditions import LABELS, Condition
from perturbdiff.metrics.suites import Legend
from perturbdiff.metrics.tables import COLUMNS, OURS, wide_table
from perturbdiff.metrics.warnings import Caution, in_order, step_zero

_PYARROW: Any = pyarrow


@dataclass(frozen=True)
class Comparison:
    """The tables of a comparison.

    Attributes:
        scores: suite, method, perturbation, cell_type, assay_batch, metric, value; metrics of a whole context have no
            perturbation.
        overall: means over conditions, see the module.
        contexts: the same for each cell type.
        ranges: the dynamic range of each metric: suite, metric, baseline, ceiling, difference, low, high.
        notes: what was left out, undefined or missing, as sentences.
        warnings: what a reader must know before believing a number.
        methods: in the order of the tables.
        tests: of each condition, the tests of differential expression of the observed cells and of predicted files.
        genes: the judged genes.
        projection: some cells on principal components, and by UMAP.
        legend: of each suite and metric, what is better, the meaning and the range.
        baseline: the method that is 0 on the scaled score.
        ceiling: the method that is 1 on the scaled score.
        headline: the metrics to lead with.
        versions: of the packages that numbers depend on.
        settings: of the comparison.
        missing: baselines that were asked for and could not be made.
        audit: of the split that the run was trained with.
        run: the history and the settings of the run.
    """

    scores: pd.DataFrame
    overall: pd.DataFrame
    contexts: pd.DataFrame
    ranges: pd.DataFrame
    notes: tuple[str, ...]
    warnings: tuple[Caution, ...] = ()
    methods: tuple[Method, ...] = ()
    tests: tuple[tuple[Condition, Mapping[str, Test]], ...] = field(default=(), repr=False)
    genes: tuple[str, ...] = ()
    projection: Projection | None = None
    legend: Mapping[str, Legend] = field(default_factory=dict)
    baseline: str = ""
    ceiling: str = ""
    headline: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    audit: Mapping[str, Any] | None = None
    run: Mapping[str, Any] | None = None

    @property
    def table(self) -> pd.DataFrame:
        """Our own metrics of every method and condition; the columns of `metrics.tables`."""
        own = (self.scores["suite"] == OURS) & (self.scores["perturbation"] != "")
        return self.scores.loc[own, list(COLUMNS)].reset_index(drop=True)

    def conditions(self) -> list[Condition]:
        """The judged conditions."""
        return [condition for condition, _ in self.tests]

    def summary(self) -> pd.DataFrame:
        """Our own metrics as they are read: a row per method, a column per metric; NaN for a method that is missing."""
        names = {kind: [one.name for one in self.methods if one.kind == kind] for kind in KINDS}
        baselines = [name for name in BASELINES if name in {*names["baseline"], *self.missing}]
        wide = wide_table(self.overall[self.overall["suite"] == OURS])
        return wide.reindex([*names["predicted"], *baselines, *names["ceiling"]])

    def headlines(self) -> pd.DataFrame:
        """The headline metrics as they are read: a row per method, values over their intervals, as text."""
        own = self.overall[(self.overall["suite"] == OURS) & self.overall["metric"].isin(self.headline)]
        texts = own.assign(text=[_interval(*row) for row in own[["value", "low", "high"]].itertuples(index=False)])
        wide = texts.pivot_table(index="method", columns="metric", values="text", aggfunc="first", sort=False)
        wide = wide[[name for name in self.headline if name in wide]].reset_index()
        return wide.rename(columns=lambda name: name.replace("_", "\n"))

    def drawn(self) -> pd.DataFrame:
        """The part of `table` that a figure shows: predicted files, the simple baselines and the ceiling."""
        shown = {method.name for method in self.methods if method.kind == "predicted"}
        return self.table[self.table["method"].isin(shown | {CONTROL, MEAN_SHIFT, self.ceiling})]

    def with_settings(self, settings: Mapping[str, Any]) -> "Comparison":
        """The same with more settings on record."""
        return replace(self, settings={**self.settings, **settings})

    def with_notes(self, *notes: str) -> "Comparison":
        """The same with sentences before all other notes."""
        return replace(self, notes=(*notes, *self.notes))

    def with_run(
        self, audit: Mapping[str, Any] | None, run: Mapping[str, Any] | None, leaks: tuple[Caution, ...]
    ) -> "Comparison":
        """The same with what is known of the run that made the predictions; leaks come before all other warnings."""
        return replace(self, audit=audit, run=run, warnings=in_order((*leaks, *self.warnings, *step_zero(run))))

    def save(self, folder: Path) -> None:
        """Write the folder of results (see the module), each file whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        tables = {"metrics.csv": self.scores, "overall.csv": self.overall, "contexts.csv": self.contexts}
        for name, table in tables.items():
            _write(folder / name, table.to_csv(index=False, na_rep="nan"))
        if self.tests:
            self._save_genes(folder / "genes.parquet")
        if self.projection is not None:
            with whole_file(folder / "cells.parquet") as partial:
                self.projection.table.to_parquet(partial, index=False)
        _write(folder / "metrics.json", json.dumps(self._content(), indent=1, allow_nan=False) + "\n")

    def _content(self) -> dict[str, Any]:
        return {
            "headline": list(self.headline),
            "baseline": self.baseline,
            "ceiling": self.ceiling,
            "methods": [vars(method) for method in self.methods],
            "warnings": [vars(caution) for caution in self.warnings],
            "notes": list(self.notes),
            "legend": self.legend,
            "overall": _records(self.overall),
            "dynamic_range": _records(self.ranges),
            "variance": None if self.projection is None else list(self.projection.variance),
            "versions": dict(self.versions),
            "settings": dict(self.settings),
            "audit": self.audit,
            "run": self.run,
            "conditions": _records(self.scores),
        }

    def _save_genes(self, path: Path) -> None:
        """A row a side, condition and gene, written condition by condition."""
        label = _PYARROW.dictionary(_PYARROW.int32(), _PYARROW.string())
        numbers = [(name, _PYARROW.float64()) for name in ("change", "p_value", "p_adjusted", "mean")]
        labels = [(name, label) for name in ("side", *LABELS, "gene")]
        schema = _PYARROW.schema([*labels, *numbers])
        places = np.arange(len(self.genes), dtype=np.int32)
        with whole_file(path) as partial, _PYARROW.parquet.ParquetWriter(partial, schema) as writer:
            for condition, sides in self.tests:
                for side, one in sides.items():
                    texts = [_repeated(text, len(places)) for text in (side, *condition)]
                    gene = _PYARROW.DictionaryArray.from_arrays(places, list(self.genes))
                    values = (one.change, one.test.p_value, one.test.p_adjusted, one.mean)
                    arrays = [*texts, gene, *map(_PYARROW.array, values)]
                    writer.write_table(_PYARROW.Table.from_arrays(arrays, schema=schema))


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:.3f}" + (f"\n{low:.2f}…{high:.2f}" if math.isfinite(low) else "")


def _repeated(text: str, times: int) -> Any:  # noqa: ANN401 - an array of pyarrow, which has no types
    return _PYARROW.DictionaryArray.from_arrays(np.zeros(times, dtype=np.int32), [text])


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table for JSON, what is not finite as None."""
    return [{str(key): _plain(value) for key, value in record.items()} for record in table.to_dict("records")]


def _plain(value: Any) -> Any:  # noqa: ANN401 - any value of a table
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, text: str) -> None:
    """Write a text, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
