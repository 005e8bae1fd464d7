"""Tables hold every method, condition and metric, and a mean never hides what is undefined."""

import math

import pandas as pd
import pytest

from perturbdiff.metrics.conditions import Condition
from perturbdiff.metrics.ours import METRICS
from perturbdiff.metrics.tables import COLUMNS, long_table, overall_table, undefined_notes, wide_table

NAMES = [metric.name for metric in METRICS]
A, B = Condition("a", "T"), Condition("b", "T")


def _table():
    one, three = dict.fromkeys(NAMES, 1.0), dict.fromkeys(NAMES, 3.0)
    return long_table([("z", A, one), ("z", B, three | {"de_auroc": math.nan}), ("m", A, one), ("m", B, one)])


def test_the_long_table_has_a_row_per_method_condition_and_metric():
    table = _table()
    assert tuple(table.columns) == COLUMNS
    assert len(table) == 4 * len(NAMES)
    assert table["value"].isna().sum() == 1


def test_overall_is_the_mean_over_conditions_and_counts_the_undefined():
    overall = overall_table(_table()).set_index(["method", "metric"])
    assert overall.loc[("z", "mae")].tolist() == [2.0, 2, 0]
    assert overall.loc[("z", "de_auroc")].tolist() == [1.0, 2, 1]
    assert undefined_notes(overall.reset_index()) == [
        "de_auroc of 'z' is undefined in 1 of 2 conditions, and its mean is over the rest."
    ]


def test_what_is_undefined_alike_is_said_in_one_sentence_and_what_is_said_elsewhere_is_not():
    lacking = dict.fromkeys(NAMES, 1.0) | {"mmd": math.nan, "mae": math.nan}
    scores = [(method, A, lacking) for method in "xyz"] + [(method, B, dict.fromkeys(NAMES, 1.0)) for method in "xyz"]
    overall = overall_table(long_table(scores))
    assert undefined_notes(overall) == [
        "mmd, mae of every method are undefined in 1 of 2 conditions, and their means are over the rest."
    ]
    assert undefined_notes(overall, {"x": 1}) == [
        "mmd, mae of every method but 'x' are undefined in 1 of 2 conditions, and their means are over the rest."
    ]
    assert undefined_notes(overall[overall["metric"] == "mmd"]) == [
        "mmd of every method is undefined in 1 of 2 conditions, and its mean is over the rest."
    ]
    fourth = overall.assign(undefined=overall["undefined"].where(overall["method"] != "x", 0))
    two = pd.concat([fourth, fourth[fourth["method"] == "x"].replace({"method": {"x": "w"}})])
    assert undefined_notes(two)[0].startswith("mmd, mae of 'y', 'z' are undefined")
    assert undefined_notes(overall.assign(suite="paper"), {"x": 1, "y": 1, "z": 1}) == []
    assert "mmd, mae (paper) of every method" in undefined_notes(overall.assign(suite="paper"))[0]


def test_the_wide_table_keeps_the_order_of_methods_and_metrics_and_undefined_columns():
    table = _table()
    table.loc[table["metric"] == "mae", "value"] = math.nan
    wide = wide_table(overall_table(table))
    assert wide.index.tolist() == ["z", "m"]
    assert wide.columns.tolist() == NAMES
    assert wide["mae"].isna().all()
    assert wide.loc["z", "energy_distance"] == pytest.approx(2.0)
