"""Intervals are those of a cluster bootstrap, and a scaled score is 0 at the baseline and 1 at the ceiling."""

import math

import numpy as np
import pandas as pd
import pytest

from perturbdiff.metrics.intervals import Resampling, Scale, paired_difference, summarise, unit_of

SCALE = Scale("base", "top", {"up": "higher", "down": "lower", "one": "near 1", "word": "near observed"})


def _table(values, metric="up", cell_types=("T",)):
    """Values [perturbation][cell type] by method."""
    rows = [
        (method, f"p{i}", kind, metric, value)
        for method, own in values.items()
        for i, of_types in enumerate(own)
        for kind, value in zip(cell_types, np.atleast_1d(of_types), strict=True)
    ]
    return pd.DataFrame(rows, columns=["method", "perturbation", "cell_type", "metric", "value"]).assign(assay_batch="")


def _row(overall, method, metric="up"):
    return overall.set_index(["method", "metric"]).loc[(method, metric)]


def test_an_interval_is_that_of_a_bootstrap_written_out():
    values = np.random.default_rng(0).normal(size=(12, 2))
    overall, _ = summarise(_table({"m": values}, cell_types=("T", "B")), SCALE, resamples=4000, seed=1)
    rng = np.random.default_rng(2)
    means = [values[rng.integers(0, 12, 12)].mean() for _ in range(4000)]
    row = _row(overall, "m")
    assert row["value"] == pytest.approx(values.mean())
    assert [row["low"], row["high"]] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.03)
    assert (row["conditions"], row["undefined"]) == (24, 0)


def test_conditions_of_one_perturbation_are_drawn_together():
    alike = np.repeat(np.arange(6.0)[:, None], 4, axis=1)
    clustered, _ = summarise(_table({"m": alike}, cell_types="abcd"), SCALE, resamples=2000)
    single, _ = summarise(_table({"m": alike[:, 0]}), SCALE, resamples=2000)
    assert _row(clustered, "m")[["low", "high"]].tolist() == _row(single, "m")[["low", "high"]].tolist()


def test_intervals_repeat_with_their_seed():
    table = _table({"m": np.arange(7.0)})
    pd.testing.assert_frame_equal(summarise(table, SCALE, seed=3)[0], summarise(table, SCALE, seed=3)[0])
    assert summarise(table, SCALE, seed=3)[0]["low"][0] != summarise(table, SCALE, resamples=50, seed=4)[0]["low"][0]


def test_cell_types_are_drawn_where_there_is_one_perturbation_and_nothing_where_there_is_one_of_both():
    types, _ = summarise(_table({"m": [[1.0, 2.0, 6.0]]}, cell_types="abc"), SCALE)
    assert _row(types, "m")["low"] < _row(types, "m")["value"] < _row(types, "m")["high"]
    alone, _ = summarise(_table({"m": [1.0]}), SCALE)
    assert math.isnan(_row(alone, "m")["low"])


def test_a_scaled_score_is_zero_at_the_baseline_one_at_the_ceiling_and_has_its_closed_form():
    base, top = np.array([0.1, 0.2, 0.3, 0.2]), np.array([0.9, 0.8, 1.0, 0.9])
    model = base + 0.25 * (top - base)
    overall, ranges = summarise(_table({"m": model, "base": base, "top": top}), SCALE)
    assert _row(overall, "base")["scaled"] == 0.0
    assert _row(overall, "top")["scaled"] == 1.0
    assert _row(overall, "m")[["scaled", "scaled_low", "scaled_high"]].tolist() == pytest.approx([0.25] * 3)
    assert ranges.loc[0, ["metric", "baseline", "ceiling"]].tolist() == ["up", 0.2, 0.9]
    assert ranges.loc[0, "difference"] == pytest.approx(0.7)
    assert 0 < ranges.loc[0, "low"] < 0.7 < ranges.loc[0, "high"] < 1


def test_a_metric_that_is_better_when_lower_is_scaled_by_the_same_formula():
    overall, _ = summarise(
        _table({"m": [0.4, 0.4, 0.4], "base": [1.0, 1.1, 1.2], "top": [0.0, 0.0, 0.0]}, "down"), SCALE
    )
    assert _row(overall, "m", "down")["scaled"] == pytest.approx((0.4 - 1.1) / (0.0 - 1.1))


def test_a_metric_that_is_best_at_one_is_scaled_by_its_distance_from_it():
    table = _table({"m": [1.5, 0.5, 0.5], "base": [2.0, 2.0, 2.0], "top": [1.0, 1.0, 1.0]}, "one")
    assert _row(summarise(table, SCALE)[0], "m", "one")["scaled"] == pytest.approx(0.5)


def test_nothing_is_scaled_where_ceiling_and_baseline_do_not_differ_or_nothing_is_best():
    same = _table({"m": [1.0, 2.0, 1.5], "base": [1.0, -1.0, 0.1], "top": [-1.0, 1.0, 0.0]})
    overall, ranges = summarise(same, SCALE)
    assert overall["scaled"].isna().all()
    assert ranges.loc[0, "low"] <= 0 <= ranges.loc[0, "high"]
    for metric in ("word", "unknown"):
        overall, ranges = summarise(_table({"m": [1.0], "base": [0.0], "top": [2.0]}, metric), SCALE)
        assert overall["scaled"].isna().all()
        assert ranges.empty


def test_undefined_values_are_left_out_counted_and_never_scaled_against():
    nan = math.nan
    values = {"m": [1.0, nan, 3.0], "base": [0.0, 0.0, nan], "top": [2.0, 2.0, 2.0]}
    overall, _ = summarise(_table(values), SCALE)
    row = _row(overall, "m")
    assert (row["value"], row["conditions"], row["undefined"]) == (2.0, 3, 1)
    assert row["scaled"] == pytest.approx(0.5)  # by the first condition alone
    gone, _ = summarise(_table({"m": [nan, nan], "base": [0.0, 1.0], "top": [2.0, 2.0]}), SCALE)
    assert math.isnan(_row(gone, "m")["value"])
    assert math.isnan(_row(gone, "m")["scaled"])


def test_a_gain_is_paired():
    base = np.random.default_rng(5).normal(size=9) * 10
    gain, low, high = paired_difference(_table({"m": base + 1.0, "base": base}), "up", "m", "base")
    assert [gain, low, high] == pytest.approx([1.0] * 3)
    assert all(math.isnan(value) for value in paired_difference(_table({"m": base}), "up", "m", "base"))


def test_draws_are_of_as_many_perturbations_as_there_are():
    conditions = pd.DataFrame({"perturbation": list("abca"), "cell_type": ["T", "T", "T", "B"], "assay_batch": ""})
    drawn = Resampling.of(conditions, resamples=20, seed=0)
    assert (drawn.clusters, drawn.weights.shape) == (3, (20, 3))
    assert (drawn.weights.sum(axis=1) == 3).all()
    assert drawn.unit.tolist() == [0, 1, 2, 0]


def _of_donors(values):
    """One metric of one method: values [perturbation][donor], NaN where a donor has none."""
    rows = [
        ("m", f"p{i}", "T", f"d{j}", "up", value)
        for i, own in enumerate(values)
        for j, value in enumerate(own)
        if not np.isnan(value)
    ]
    return pd.DataFrame(rows, columns=["method", "perturbation", "cell_type", "assay_batch", "metric", "value"])


def test_a_mean_is_over_the_batches_of_a_perturbation_first():
    table = _of_donors([[1.0, 2.0, 3.0], [10.0, np.nan, np.nan]])
    for unit in ("perturbation", "assay_batch"):
        assert _row(summarise(table, SCALE, unit=unit)[0], "m")["value"] == (2.0 + 10.0) / 2


def test_donors_are_drawn_where_they_are_the_unit_and_the_bootstrap_is_the_one_written_out():
    rng = np.random.default_rng(3)
    values = rng.normal(size=(3, 1)) + 2 * rng.normal(size=(1, 8)) + 0.1 * rng.normal(size=(3, 8))
    table = _of_donors(values)
    donors = _row(summarise(table, SCALE, resamples=4000, unit="assay_batch")[0], "m")
    means = [values[:, rng.integers(0, 8, 8)].mean() for _ in range(4000)]
    assert [donors["low"], donors["high"]] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.15)
    perturbations = _row(summarise(table, SCALE, resamples=4000)[0], "m")
    means = [values.mean(axis=1)[rng.integers(0, 3, 3)].mean() for _ in range(4000)]
    assert [perturbations["low"], perturbations["high"]] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.1)


def test_a_unit_of_which_there_is_one_only_gives_way_to_the_next():
    conditions = pd.DataFrame({"perturbation": ["a", "a"], "cell_type": ["T", "T"], "assay_batch": ["d0", "d1"]})
    assert unit_of(conditions) == "assay_batch"
    assert unit_of(conditions.assign(perturbation=["a", "b"])) == "perturbation"
    assert unit_of(conditions.assign(perturbation=["a", "b"]), "assay_batch") == "assay_batch"
    assert unit_of(conditions.assign(assay_batch="", cell_type=["T", "B"])) == "cell_type"


def test_two_units_have_no_interval_and_no_scaled_score_and_three_have_both():
    values = {"m": [0.4, 0.5, 0.6], "base": [1.0, 1.1, 1.2], "top": [0.0, 0.1, 0.0]}
    two = _row(summarise(_table({name: own[:2] for name, own in values.items()}, "down"), SCALE)[0], "m", "down")
    assert two[["low", "high", "scaled"]].isna().all()
    three = _row(summarise(_table(values, "down"), SCALE)[0], "m", "down")
    assert three[["low", "high", "scaled"]].notna().all()
