"""The tables of an evaluation: one long table of every method, condition and metric, and its means over conditions.

A mean is taken over the conditions where the metric is defined, and the number where it is not stands beside it: first
over the assay batches of a (perturbation, cell type), then over these. A metric of a whole context has an empty
perturbation.
"""

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from perturbdiff.metrics.conditions import LABELS, Condition

COLUMNS = ("method", *LABELS, "metric", "value")
"""The columns of the long table."""

OURS = "ours"
"""The suite of this library's own metrics."""

FAMILIES = "families"
"""The suite that judges several populations of a condition together."""

SUITES = {
    OURS: "perturbdiff's own",
    "paper": "the paper's, by cell-eval",
    "vcc2026": "vcc2026, by cell-eval2",
    FAMILIES: "of families of populations",
}
"""All suites of metrics, by name, and in words."""


def long_table(scores: Iterable[tuple[str, Condition, Mapping[str, float]]]) -> pd.DataFrame:
    """One row per method, condition and metric (`COLUMNS`), in the order of the scores; NaN where undefined."""
    rows = [
        (method, *condition, metric, float(value))
        for method, condition, values in scores
        for metric, value in values.items()
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"value": "float64"})


def overall_table(table: pd.DataFrame) -> pd.DataFrame:
    """Means over conditions: method, metric, value, conditions (how many), undefined (how many of them)."""
    keys = ["method", "metric"]
    counts = table.groupby(keys, sort=False, observed=True)["value"].agg(conditions="size", defined="count")
    means = over_batches(table, keys).groupby(keys, sort=False, observed=True)["value"].mean()
    overall = means.to_frame("value").join(counts).reset_index()
    overall["undefined"] = overall["conditions"] - overall["defined"]
    return overall.drop(columns="defined")


def over_batches(table: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Means over the assay batches of each (perturbation, cell type): the keys, perturbation, cell_type and value."""
    every = list(dict.fromkeys([*keys, *LABELS[:2]]))
    groups = table.groupby(every, sort=False, observed=True, dropna=False)
    return groups["value"].mean().reset_index()


def wide_table(overall: pd.DataFrame) -> pd.DataFrame:
    """Our own metrics as they are read: one row per method and one column per metric, in the order of the tables."""
    from perturbdiff.metrics.ours import CONTEXT_METRICS, METRICS  # with tests of ranks, which tables do not need

    wide = overall.pivot_table(index="method", columns="metric", values="value", sort=False, dropna=False)
    names = [metric.name for metric in (*METRICS, *CONTEXT_METRICS)]
    found = set(overall["metric"])
    return wide.reindex(index=list(dict.fromkeys(overall["method"])), columns=[name for name in names if name in found])


def undefined_notes(overall: pd.DataFrame, left_out: Mapping[str, int] | None = None) -> list[str]:
    """Sentences on what is undefined somewhere, so that no mean hides it; what is alike is said in one.

    Args:
        overall: method, metric, conditions, undefined, and suite where there are several.
        left_out: of methods, in how many conditions they predict nothing, which is said elsewhere.
    """
    methods = list(dict.fromkeys(overall["method"]))
    said = overall["method"].map(left_out or {}).fillna(0).astype(int)
    rows = overall.assign(undefined=overall["undefined"] - said, suite=overall.get("suite", OURS))
    notes = []
    for (suite, missing, conditions), some in rows[rows["undefined"] > 0].groupby(
        ["suite", "undefined", "conditions"], sort=False
    ):
        of_methods: dict[tuple[str, ...], list[str]] = {}
        for metric, own in some.groupby("metric", sort=False)["method"]:
            of_methods.setdefault(tuple(own), []).append(str(metric))
        for named, metrics in of_methods.items():
            of, are_one = _named(named, methods)
            are, means = ("is", "its mean is") if len(metrics) == 1 and are_one else ("are", "their means are")
            rest = "." if missing == conditions else f", and {means} over the rest."
            where = "" if suite == OURS else f" ({suite})"
            notes.append(
                f"{', '.join(metrics)}{where} of {of} {are} undefined in {missing} of {conditions} conditions{rest}"
            )
    return notes


def _named(named: Sequence[str], methods: Sequence[str]) -> tuple[str, bool]:
    """Some of the methods in words, and whether these words are singular."""
    others = [method for method in methods if method not in named]
    if 1 < len(methods) == len(named):
        return "every method", True
    if len(others) == 1 and len(named) > 1:
        return f"every method but {others[0]!r}", True
    return ", ".join(map(repr, named)), len(named) == 1
