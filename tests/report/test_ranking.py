"""Directions, ranks, win rates and paired intervals, where the answer is known."""

import json

import numpy as np
import pandas as pd
import pytest

from perturbdiff.metrics.conditions import Condition
from perturbdiff.metrics.intervals import paired_difference
from perturbdiff.report.ranking import (
    AHEAD,
    BEHIND,
    LEVEL,
    UNKNOWN,
    Comparer,
    Differences,
    best,
    directed,
    goodness,
    strongest,
)
from perturbdiff.report.summary import summarise
from perturbdiff.results.evaluation import Evaluation, Metric

LOWER, HIGHER = Metric("ours", "a", "lower", "", ""), Metric("ours", "b", "higher", "", "")
NEAR, NONE = Metric("ours", "c", "near 1", "", ""), Metric("ours", "d", "none", "", "")


@pytest.fixture
def evaluated(tmp_path):
    """An evaluation of one metric from values by method, perturbation and cell type."""

    def make(values, *, better="higher", headline=("b",), kinds=None):
        kinds = {"model": "predicted", "ceiling": "ceiling"} | (kinds or {})
        rows = [
            ("ours", method, perturbation, cell_type, "b", value)
            for method, own in values.items()
            for (perturbation, cell_type), value in own.items()
        ]
        table = pd.DataFrame(rows, columns=["suite", "method", "perturbation", "cell_type", "metric", "value"])
        table.to_csv(tmp_path / "metrics.csv", index=False, na_rep="nan")
        overall = table.groupby(["suite", "method", "metric"], sort=False)["value"].mean().reset_index()
        for name in ("low", "high", "scaled", "scaled_low", "scaled_high"):
            overall[name] = np.nan
        overall.assign(conditions=2, undefined=0).to_csv(tmp_path / "overall.csv", index=False, na_rep="nan")
        methods = [{"name": name, "kind": kinds.get(name, "baseline")} for name in values]
        legend = {"ours": {"b": {"better": better}}}
        content = {"methods": methods, "headline": list(headline), "legend": legend}
        (tmp_path / "metrics.json").write_text(json.dumps(content))
        return Evaluation.load(tmp_path)

    return make


def _over(values):
    return {(f"p{i}", "T"): value for i, value in enumerate(values)}


def test_goodness_grows_as_a_metric_improves():
    assert goodness([1.0, 2.0], HIGHER).tolist() == [1, 2]
    assert goodness([1.0, 2.0], LOWER).tolist() == [-1, -2]
    assert goodness([0.5, 1.0, 1.25], NEAR).tolist() == [-0.5, 0, -0.25]
    assert np.isnan(goodness([1.0], NONE)).all()
    assert [directed(metric) for metric in (LOWER, HIGHER, NEAR, NONE)] == [True, True, True, False]


def _interval(gain, perturbation):
    """The interval of gains [conditions], each of a cell type of its own."""
    conditions = tuple(Condition(f"p{p}", f"T{i}") for i, p in enumerate(perturbation))
    return Differences(gain, 0 * gain, conditions, gain).interval("perturbation")


def test_the_interval_of_a_constant_gain_is_that_gain():
    assert _interval(np.full(12, 0.25), np.arange(12) // 3) == (0.25, 0.25)


def test_the_interval_of_many_perturbations_is_that_of_the_normal_law():
    gain = np.random.default_rng(1).normal(0.3, 1.0, 900)
    low, high = _interval(gain, np.arange(900))
    half = 1.96 * gain.std() / np.sqrt(900)
    assert low == pytest.approx(gain.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(gain.mean() + half, abs=0.15 * half)


def test_cell_types_of_one_perturbation_are_not_counted_as_if_they_were_independent():
    per_perturbation = np.random.default_rng(2).normal(0.0, 1.0, 40)
    gain = np.repeat(per_perturbation, 25)
    low, high = _interval(gain, np.repeat(np.arange(40), 25))
    half = 1.96 * per_perturbation.std() / np.sqrt(40)
    assert (high - low) / 2 == pytest.approx(half, rel=0.15)


@pytest.mark.parametrize("unit", ["perturbation", "assay_batch"])
def test_the_interval_of_the_page_is_that_of_the_tables_whatever_the_order_of_conditions(unit):
    rng = np.random.default_rng(3)
    conditions = [Condition(f"p{i}", kind, batch) for i in range(6) for kind in "AB" for batch in "xyz"]
    values = rng.normal(0.3, 1.0, (2, len(conditions)))
    rows = [
        (method, *condition, "b", value)
        for method, own in zip(("model", "x"), values, strict=True)
        for condition, value in zip(conditions, own, strict=True)
    ]
    table = pd.DataFrame(rows, columns=["method", *Condition._fields, "metric", "value"])
    _, low, high = paired_difference(table, "b", "model", "x", resamples=300, seed=7, unit=unit)
    order = rng.permutation(len(conditions))
    one, two = values[:, order]
    pairs = Differences(one, two, tuple(conditions[place] for place in order), one - two)
    assert pairs.interval(unit, resamples=300, seed=7) == (low, high)


def test_ahead_means_ahead_of_every_baseline_and_behind_means_behind_one(evaluated):
    base = np.linspace(0, 1, 10)
    values = {"model": _over(base + 0.2), "x": _over(base), "y": _over(base + 0.1)}
    evaluation = evaluated(values)
    assert Comparer(evaluation).standing(evaluation.metrics[0], "model").outcome == AHEAD
    evaluation = evaluated(values | {"y": _over(base + 0.3)})
    standing = Comparer(evaluation).standing(evaluation.metrics[0], "model")
    assert (standing.outcome, standing.baseline) == (BEHIND, "y")
    evaluation = evaluated(values | {"y": _over(base + 0.2 + np.tile([-0.1, 0.1], 5))})
    assert Comparer(evaluation).standing(evaluation.metrics[0], "model").outcome == LEVEL
    evaluation = evaluated(values, better="lower")
    assert Comparer(evaluation).standing(evaluation.metrics[0], "model").outcome == BEHIND


def test_one_perturbation_is_drawn_over_cell_types_and_one_condition_not_at_all(evaluated):
    one = {("p", kind): 1.0 + place for place, kind in enumerate("ABCD")}
    evaluation = evaluated({"model": {key: value + 0.5 for key, value in one.items()}, "x": one})
    assert Comparer(evaluation).standing(evaluation.metrics[0], "model").outcome == AHEAD
    evaluation = evaluated({"model": {("p", "A"): 2.0}, "x": {("p", "A"): 1.0}})
    comparer = Comparer(evaluation)
    assert comparer.standing(evaluation.metrics[0], "model").outcome == UNKNOWN
    assert "Only one condition was judged" in summarise(evaluation, comparer).paragraph


def test_a_tie_is_half_a_win_and_undefined_conditions_do_not_count(evaluated):
    values = {"model": _over([1.0, 2.0, 3.0, np.nan]), "x": _over([0.0, 2.0, 4.0, 1.0])}
    evaluation = evaluated(values)
    pairs = Comparer(evaluation).differences(evaluation.metrics[0], "model", "x")
    assert (pairs.wins, pairs.n, pairs.win_rate) == (1.5, 3, 0.5)
    assert [key[0] for key in pairs.conditions] == ["p0", "p1", "p2"]


def test_the_best_and_the_strongest_ignore_what_has_no_value(evaluated):
    values = {"model": _over([1.0, 1.0]), "x": _over([2.0, 2.0]), "y": _over([np.nan, np.nan])}
    evaluation = evaluated(values)
    assert best(evaluation, evaluation.metrics[0], ["model", "x", "y"]) == "x"
    assert best(evaluation, evaluation.metrics[0], ["y"]) is None
    assert strongest(evaluation, ["y", "x"]) == "x"


def test_a_verdict_counts_and_says_where_an_interval_is_rough(evaluated):
    values = {"model": _over([1.0, 1.1, 1.2]), "x": _over([0.5, 0.6, 0.4]), "ceiling": _over([2.0, 2.0, 2.0])}
    evaluation = evaluated(values)
    said = summarise(evaluation, Comparer(evaluation)).paragraph
    assert said.startswith("“model” is ahead of every baseline, beyond the 95 % interval over 3 perturbations, on 1 of")
    assert "With 3 perturbations such an interval is rough" in said
    assert "b 1.10, against 0.500 of the best baseline (“x”)" in said


def test_of_several_files_the_verdict_is_on_the_best_and_the_others_are_counted(evaluated):
    base = np.linspace(0, 1, 10)
    values = {"model": _over(base), "other": _over(base + 0.5), "x": _over(base + 0.1)}
    evaluation = evaluated(values, kinds={"other": "predicted"})
    said = summarise(evaluation, Comparer(evaluation))
    assert said.model == "other"
    assert said.paragraph.endswith("The same count for the other predicted files: “model” 0 of 1.")
