"""What a reader must know is said, each in one sentence, and only where it is so."""

import math

import pandas as pd
import pytest

from perturbdiff.evaluation.cautions import carried_by_targets, check_total, collapsed, few, indistinct, off_scale


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
    check_total("m", 10_000.0, observed=True)
    check_total("m", 40_000.0, observed=False)
    for total in (40_000.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"the cells of 'f' sum to .* declare the scale that they are on .*\.$"):
            check_total("f", total, observed=True)


def test_few_perturbations_are_an_anecdote():
    assert _one(few(["a", "a"]), "few").startswith("only 1 perturbation is judged")
    assert _one(few("abcd"), "few").startswith("only 4 perturbations are judged")
    assert few("abcde") == []
