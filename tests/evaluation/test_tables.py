"""Tables hold every method, condition and metric, and a mean never hides what is undefined."""

import math

import pytest

from perturbdiff.evaluation.metrics import METRICS
from perturbdiff.evaluation.pairs import Condition
from perturbdiff.evaluation.tables import COLUMNS, long_table, overall_table, undefined_notes, wide_table

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


def test_the_wide_table_keeps_the_order_of_methods_and_metrics_and_undefined_columns():
    table = _table()
    table.loc[table["metric"] == "mae", "value"] = math.nan
    wide = wide_table(overall_table(table))
    assert wide.index.tolist() == ["z", "m"]
    assert wide.columns.tolist() == NAMES
    assert wide["mae"].isna().all()
    assert wide.loc["z", "energy_distance"] == pytest.approx(2.0)
