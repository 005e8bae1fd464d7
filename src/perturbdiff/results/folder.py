"""The tables and the JSON of an evaluation's folder.

    metrics.csv      suite, method, perturbation, cell_type, assay_batch, metric, value
    overall.csv      means over conditions with 95 % intervals: suite, method, metric, value, low, high, conditions,
                     undefined, scaled, scaled_low, scaled_high
    contexts.csv     the same for each cell type
    metrics.json     all but the genes and cells, the legend, notes, warnings, versions and settings

The assay batch of a condition is "" where it is judged over all batches together; undefined values are nan in the
tables and null in JSON. Genes and placed cells lie beside them (see `parts`). Each file is written whole or not at all.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from perturbdiff.io import whole_file
from perturbdiff.metrics.conditions import LABELS

SCORES, OVERALL, CONTEXTS, CONTENT = "metrics.csv", "overall.csv", "contexts.csv", "metrics.json"
GENES, CELLS = "genes.parquet", "cells.parquet"

_MEANS = ("value", "low", "high", "conditions", "undefined", "scaled", "scaled_low", "scaled_high")
_COUNTS = {"conditions", "undefined"}
_TABLES = {
    SCORES: ("suite", "method", *LABELS, "metric", "value"),
    OVERALL: ("suite", "method", "metric", *_MEANS),
    CONTEXTS: ("suite", "method", "cell_type", "metric", *_MEANS),
}
_TEXTS = ("suite", "method", *LABELS, "metric")
_RANGES = ["suite", "metric", "baseline", "ceiling", "difference", "low", "high", "apart"]


KINDS = ("predicted", "baseline", "ceiling", "family")
"""The kinds of methods, in the order of the tables."""


@dataclass(frozen=True)
class Method:
    """A method of the tables: its name, its kind (one of `KINDS`), and what it does."""

    name: str
    kind: str
    about: str


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table of scores, whole or not at all."""
    _write(path, table.to_csv(index=False, na_rep="nan"))


def write_content(path: Path, content: Mapping[str, Any]) -> None:
    """Write what metrics.json says, whole or not at all."""
    _write(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table for JSON, what is not finite as None."""
    return [{str(key): _plain(value) for key, value in record.items()} for record in table.to_dict("records")]


def read_content(folder: Path) -> dict[str, Any]:
    """What metrics.json says."""
    path = folder / CONTENT
    absent = [name for name in (CONTENT, OVERALL, SCORES) if not (folder / name).is_file()]
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


def read_table(path: Path) -> pd.DataFrame:
    """A table of scores; labels stay texts, also where they read as a number or as nothing."""
    columns = _TABLES[path.name]
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if "assay_batch" in columns and "assay_batch" not in table.columns:
        table["assay_batch"] = ""  # as written when all conditions were pooled over their batches
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise ValueError(f"{str(path)!r} lacks the columns {missing}, as older versions wrote it; run evaluate again.")
    numbers = [name for name in columns if name not in _TEXTS]
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


def read_ranges(content: Mapping[str, Any]) -> pd.DataFrame:
    """How far each metric tells the ceiling from the baseline; undefined values are NaN."""
    rows = [[row.get(name) for name in _RANGES] for row in content.get("dynamic_range") or []]
    table = pd.DataFrame(rows, columns=_RANGES)
    return table.assign(**{name: pd.to_numeric(table[name], errors="coerce").astype(float) for name in _RANGES[2:7]})


def read_methods(folder: Path, content: Mapping[str, Any], overall: pd.DataFrame) -> tuple[Method, ...]:
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


def _plain(value: Any) -> Any:  # noqa: ANN401 - any value of a table
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, text: str) -> None:
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
