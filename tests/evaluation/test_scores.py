"""Conditions are judged one by one: their numbers do not depend on the others, on the order or on the jobs."""

import math

import numpy as np
import pandas as pd
import pytest

from perturbdiff.cells.memory import Cells
from perturbdiff.evaluation.alignment import align
from perturbdiff.evaluation.scores import CEILING, REPLICATES, Contexts, Judging, in_order
from perturbdiff.metrics.conditions import TOGETHER, Condition, Context
from perturbdiff.metrics.ours import METRICS, Reference, judge
from perturbdiff.results.parts import OBSERVED

GENES = ["TP53", *(f"g{i}" for i in range(11))]


def _cells(seed, batches=("",), n_cells=24, change=1.0):
    rng = np.random.default_rng(seed)
    labels, values = [], []
    for kind in ("T", "B"):
        for place, label in enumerate(("control", "TP53", "b", "c")):
            mean = np.full(12, 3.0)
            mean[3 * place : 3 * place + 3] += change * (place > 0)
            labels += [(label, kind, batches[i % len(batches)]) for i in range(n_cells)]
            values.append(mean + rng.normal(0, 0.4, (n_cells, 12)))
    return Cells(
        values=np.concatenate(values).astype(np.float32),
        scale="log1p",
        total_counts=None,
        genes=pd.Index(GENES),
        names=pd.Index([f"c{i}" for i in range(len(labels))]),
        labels=pd.DataFrame(labels, columns=["perturbation", "cell_type", "assay_batch"]).astype("category"),
        control="control",
    )


OBSERVED_CELLS, PREDICTED = _cells(0), _cells(1, change=0.5)


class Files:
    """Predicted files as methods, of which some conditions may be absent."""

    def __init__(self, pairs, files, absent=()):
        self.cells = {name: pairs.populations_of(file) for name, file in files.items()}
        self.names, self.absent = tuple(files), absent

    def has(self, method, condition):
        return (method, condition) not in self.absent

    def __call__(self, method, condition):
        assert self.has(method, condition)
        return self.cells[method](condition)


def _judged(observed=OBSERVED_CELLS, absent=(), **settings):
    pairs = align({"m": PREDICTED}, observed, pooling=TOGETHER)
    settings = {"seed": 0, "replicates": False, "kept": ("m",)} | settings
    return pairs, list(Judging(**settings).judge(pairs, Files(pairs, {"m": PREDICTED}, absent)))


def test_numbers_do_not_depend_on_the_number_of_jobs():
    _, one = _judged(jobs=1)
    _, three = _judged(jobs=3)
    assert [judged.condition for judged in three] == [judged.condition for judged in one]
    assert [judged.scores for judged in three] == [judged.scores for judged in one]


def test_conditions_are_judged_in_the_order_of_the_pairs_and_progress_is_drawn_of_each():
    drawn = []
    pairs, judged = _judged(track=lambda conditions: (drawn.append(one) or one for one in conditions))
    assert tuple(one.condition for one in judged) == pairs.conditions == tuple(drawn)


def test_a_condition_is_judged_against_its_own_cells_the_controls_of_its_type_and_the_centroid_of_all():
    pairs, judged = _judged()
    (condition,) = [one.condition for one in judged if one.condition == Condition("b", "B")]
    means = [pairs.observed_cells(Condition(label, "B")).mean for label in ("TP53", "b", "c")]
    reference = Reference(pairs.observed_cells(condition), pairs.control(Context("B")), np.mean(means, axis=0))
    expected = judge(pairs.populations_of(PREDICTED)(condition), reference)
    found = next(one for one in judged if one.condition == condition)
    assert found.scores["m"] == pytest.approx(expected)
    assert found.all_genes == {}


def test_the_genes_that_a_label_names_are_left_out_of_every_metric_and_never_of_the_kept_tests():
    pairs, judged = _judged()
    found = next(one for one in judged if one.condition == Condition("TP53", "T"))
    targets = np.array([0])
    means = [pairs.observed_cells(Condition(label, "T")).mean for label in ("TP53", "b", "c")]
    reference = Reference(pairs.observed_cells(found.condition), pairs.control(Context("T")), np.mean(means, axis=0))
    cells = pairs.populations_of(PREDICTED)(found.condition)
    assert found.scores["m"] == pytest.approx(judge(cells.without(targets), reference.without(targets)))
    assert found.all_genes["m"]["mae"] == pytest.approx(judge(cells, reference)["mae"])
    for side in ("m", OBSERVED):
        assert found.tests[side].change.shape == found.tests[side].test.p_value.shape == (12,)
    assert found.observed.mean[0] == pairs.control(Context("T")).mean[0]
    assert any("2 of 6 conditions have a label that names judged genes" in note for note in pairs.notes)


def test_a_method_that_does_not_predict_a_condition_is_undefined_there_and_nowhere_else():
    absent = [("m", Condition("b", "T"))]
    _, judged = _judged(absent=absent)
    for one in judged:
        values = one.scores["m"]
        assert list(values) == [metric.name for metric in METRICS]
        assert all(map(math.isnan, values.values())) is (one.condition == absent[0][1])
        assert math.isfinite(one.scores[CEILING]["mae"])


def test_the_spread_between_is_over_the_conditions_that_a_method_predicts():
    contexts, fewer = Contexts(), Contexts()
    for one in _judged()[1]:
        contexts.add(one)
    for one in _judged(absent=[("m", Condition("b", "T"))])[1]:
        fewer.add(one)
    every = {(method, kind): scores["spread_between"] for method, (_, kind, _), scores in contexts.scores()}
    some = {(method, kind): scores["spread_between"] for method, (_, kind, _), scores in fewer.scores()}
    assert every["m", "T"] == pytest.approx(0.5, abs=0.1)
    assert some["m", "T"] == pytest.approx(0.5, abs=0.1)
    assert every["m", "T"] != some["m", "T"]
    assert every["m", "B"] == some["m", "B"]
    assert every[CEILING, "B"] == pytest.approx(1.0, abs=0.1)


def test_replicates_are_judged_where_there_are_two_assay_batches_of_enough_cells():
    _, judged = _judged(_cells(0, batches=("x", "y"), n_cells=60), replicates=True)
    assert all(one.scores[REPLICATES]["pearson_of_change"] > 0.9 for one in judged)
    _, judged = _judged(_cells(0, batches=("x", "y")), replicates=True)
    assert all(math.isnan(one.scores[REPLICATES]["mae"]) for one in judged)


def test_tests_that_were_made_before_are_used_and_change_nothing():
    _, fresh = _judged()
    known = {one.condition: one.tests[OBSERVED].test for one in fresh}
    _, again = _judged(known=known)
    assert [one.scores["m"] for one in again] == [one.scores["m"] for one in fresh]
    assert again[0].tests[OBSERVED].test is known[again[0].condition]


def test_calls_run_a_few_ahead_and_come_back_in_order_and_an_error_comes_through():
    started = []

    def call(item):
        started.append(item)
        if item == 40:
            raise ValueError("the 40th is bad.")
        return -item

    results = in_order(call, iter(range(50)), 2)
    assert [next(results) for _ in range(3)] == [0, -1, -2]
    assert len(started) < 12
    with pytest.raises(ValueError, match="the 40th is bad"):
        list(results)
