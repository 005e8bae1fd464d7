"""The tables of an evaluation: one long table of every method, condition and metric, and its means over conditions.

A mean is taken over the conditions where the metric is defined, and the number where it is not stands beside
it.
"""

from collections.abc import Iterable, Mapping

import pandas as pd

from perturbdiff.evaluation.metrics import METRICS
from perturbdiff.evaluation.pairs import Condition

COLUMNS = ("method", "perturbation", "cell_type", "metric", "value")
"""The columns of the long table."""


def long_table(scores: Iterable[tuple[str, Condition, Mapping[str, float]]]) -> pd.DataFrame:
    """One row per method, condition and metric (`COLUMNS`), in the order of the scores; NaN where undefined."""
    rows = [
        (method, condition.perturbation, condition.cell_type, metric.name, values[metric.name])
        for method, condition, values in scores
        for metric in METRICS
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"value": "float64"})


def overall_table(table: pd.DataFrame) -> pd.DataFrame:
    """Means over conditions: method, metric, value, conditions (how many), undefined (how many of them)."""
    groups = table.groupby(["method", "metric"], sort=False, observed=True)["value"]
    overall = groups.agg(value="mean", conditions="size", defined="count").reset_index()
    overall["undefined"] = overall["conditions"] - overall["defined"]
    return overall.drop(columns="defined")


def wide_table(overall: pd.DataFrame) -> pd.DataFrame:
    """The overall table as it is read: one row per method and one column per metric, in the order of the tables."""
    wide = overall.pivot_table(index="method", columns="metric", values="value", sort=False, dropna=False)
    names = [metric.name for metric in METRICS]
    return wide.reindex(index=list(dict.fromkeys(overall["method"])), columns=names)


def undefined_notes(overall: pd.DataFrame) -> list[str]:
    """A sentence per method and metric that is undefined somewhere, so that no mean hides it."""
    undefined = overall[overall["undefined"] > 0]
    return [
        f"{metric} of {method!r} is undefined in {missing} of {conditions} conditions"
        + (", and its mean is over the rest." if missing < conditions else ".")
        for metric, method, missing, conditions in zip(
            *(undefined[name].tolist() for name in ("metric", "method", "undefined", "conditions")), strict=True
        )
    ]
