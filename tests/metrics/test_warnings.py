"""What a reader must know is said, each in one sentence, and only where it is so."""

import math

import pandas as pd
import pytest

from perturbdiff.metrics.warnings import (
    Warned,
    behind,
    carried_by_targets,
    check_total,
    collapsed,
    few,
    in_order,
    indistinct,
    off_scale,
    scattered,
    step_zero,
)


def _one(cautions, kind):
    (caution,) = cautions
    assert caution.kind == kind
    assert caution.text.endswith(".")
    return caution.text


def test_metrics_that_do_not_tell_the_ceiling_from_the_baseline_are_named_by_suite():
    rows = [("ours", "mae", -0.1, True), ("ours", "mmd", -0.1, False), ("ours", "x", math.nan, False)]
    ranges = pd.DataFrame(rows, columns=["suite", "metric", "low", "apart"])
    text = _one(indistinct(ranges, "control", "ceiling"), "metric")
    assert text.startswith("mmd (ours) does not show 'ceiling' to be better than 'control'")
    assert indistinct(ranges[ranges["apart"]], "control", "ceiling") == []


def test_a_method_of_one_response_has_collapsed_and_one_of_half_the_ceilings_spread_has_not():
    spreads = {"one": 0.1, "half": 0.5, "ceiling": 1.0}
    text = _one(collapsed(spreads, 1.0, ["one", "half", "absent"]), "collapse")
    assert "predicted by 'one' differ from each other by 0.10 of what the observed ones do (the ceiling: 1.00)" in text
    assert collapsed({"one": 0.1}, math.nan, ["one"]) == []
    assert collapsed({"one": math.nan}, 1.0, ["one"]) == []


def _table(values):
    rows = [
        (method, f"p{i}", "T", metric, value) for (method, metric), own in values.items() for i, value in enumerate(own)
    ]
    return pd.DataFrame(rows, columns=["method", "perturbation", "cell_type", "metric", "value"]).assign(assay_batch="")


def _carried(table, every):
    return carried_by_targets(table, every, ["m"], "base", resamples=200, seed=0)


def test_a_gain_that_only_the_target_genes_carry_is_warned_of():
    base, same = [1.0, 1.1, 1.2, 1.3], [1.01, 1.09, 1.21, 1.29]
    every = _table({("m", "mae"): [0.1, 0.2, 0.1, 0.2], ("base", "mae"): base})
    text = _one(_carried(_table({("m", "mae"): same, ("base", "mae"): base}), every), "targets")
    assert text.startswith("mae of 'm' is better than that of 'base' by 1 over all genes, but by")
    better = _table({("m", "mae"): [0.5, 0.5, 0.6, 0.6], ("base", "mae"): base})
    assert _carried(better, every) == []
    assert _carried(better, every.iloc[:0]) == []
    worse = _table({("m", "mae"): [2.0] * 4, ("base", "mae"): base})
    assert _carried(worse, worse) == []


def test_conditions_whose_labels_name_no_gene_play_no_part():
    every = _table({("m", "mae"): [0.1, 0.1], ("base", "mae"): [1.0, 1.0]})
    table = _table({("m", "mae"): [1.0, 1.0, 0.0, 0.0, 0.0], ("base", "mae"): [1.0, 1.0, 1.0, 1.0, 1.0]})
    assert len(_carried(table, every)) == 1


@pytest.mark.parametrize(("total", "warned"), [(9000.0, False), (4600.0, False), (4000.0, True), (19000.0, True)])
def test_predicted_cells_of_far_more_or_fewer_counts_are_warned_of(total, warned):
    found = off_scale({"m": total}, 9000.0)
    assert bool(found) is warned
    if warned:
        assert f"the cells of 'm' sum to {total:.0f} counts" in _one(found, "scale")


def test_values_that_cannot_be_on_the_declared_scale_are_refused():
    check_total("m", 10_000.0)
    check_total("m", 105_000.0, 5_000.0)  # a poor model, on the right scale
    sentence = r"the cells of 'f' sum to .* {} declare the scale that they are on .*\.$"
    for total in (40_000.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=sentence.format("10000 at most;")):
            check_total("f", total)
    # log1p counts per 10^6, of a panel that holds a twentieth of all counts
    for total in (50_000.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=sentence.format("the observed to 500;")):
            check_total("f", total, 500.0)


def test_few_perturbations_are_an_anecdote():
    assert _one(few(["a", "a"]), "few").startswith("only 1 perturbation is judged")
    assert _one(few("abcd"), "few").startswith("only 4 perturbations are judged")
    assert few("abcde") == []


def _energies(model, control):
    return _table({("m", "energy_distance"): model, ("control", "energy_distance"): control})


def _behind(model, control):
    return behind(_energies(model, control), ["m", "absent"], "control", resamples=200, seed=0)


def test_a_prediction_further_from_the_observed_cells_than_control_cells_is_behind_them():
    base = [1.0, 1.2, 0.8, 1.1, 0.9, 1.3]
    text = _one(_behind([value + 0.5 for value in base], base), "behind")
    assert text.startswith("'m' is further from the observed cells than unchanged control cells are, 'control': its")
    assert "energy distance is larger by 0.5 (95 % interval 0.5 to 0.5)" in text
    assert _behind([value - 0.1 for value in base], base) == []
    assert _behind(base, base) == []


def test_a_loss_within_the_interval_is_no_warning_and_one_without_an_interval_is_by_the_means():
    base = [1.0, 1.2, 0.8, 1.1, 0.9, 1.3]
    assert _behind([1.4, 0.9, 1.3, 0.8, 1.2, 1.0], base) == []
    text = _one(_behind([1.5], [1.0]), "behind")
    assert "larger by 0.5, in too few conditions for an interval, so" in text
    assert "95 %" not in text
    assert _behind([0.9], [1.0]) == []
    assert _behind([math.nan], [1.0]) == []
    assert behind(_energies([2.0], [1.0]), ["m"], "no such", resamples=200, seed=0) == []


def test_predictions_that_differ_by_twice_what_the_observed_ones_do_are_warned_of():
    text = _one(scattered({"m": 7.3, "x": 1.9, "absent": math.nan}, 1.02, ["m", "x", "absent", "none"]), "spread")
    assert (
        "predicted by 'm' differ from each other 7.3 times as much as the observed ones do (the ceiling: 1.02)" in text
    )
    assert len(scattered({"m": 2.0}, 0.4, ["m"])) == 1
    assert scattered({"m": 1.9}, 0.4, ["m"]) == []
    assert scattered({"m": 3.0}, 1.6, ["m"]) == []
    assert "ceiling" not in _one(scattered({"m": 2.0}, math.nan, ["m"]), "spread")


def _run(step, **more):
    return {"kept": {"step": step, "validation_energy": 0.2}, "settings": {"model": {"target": "residual"}}} | more


def test_weights_of_step_0_are_the_expected_change_and_the_network_added_nothing():
    text = _one(step_zero(_run(0)), "step0")
    assert "those of step 0, before any training: this is the expected change, the network added nothing." in text
    for run in (None, {}, {"kept": {}}, _run(2), _run(None)):
        assert step_zero(run) == []


def test_what_step_0_predicts_is_said_as_the_target_has_it():
    def said(target):
        return step_zero(_run(0, settings={"model": {"target": target}}))[0].text

    assert said("change").endswith("these are the control cells, the network added nothing.")
    assert said("cell").endswith("this is what an untrained network says.")
    assert step_zero(_run(0, begun_from={"kept": []}))[0].text.endswith("begins with, fine-tuning added nothing.")


def test_leaks_come_first_then_what_is_behind_control_then_the_others_as_they_came():
    kinds = ["few", "spread", "step0", "behind", "leak", "metric", "behind"]
    ordered = in_order([Warned(kind, f"{i}") for i, kind in enumerate(kinds)])
    assert [one.text for one in ordered] == ["4", "3", "6", "2", "0", "1", "5"]
