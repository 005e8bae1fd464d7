"""Suites of other libraries are given whole contexts: the same control cells on both sides, and all conditions."""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
import polars as pl

from perturbdiff.cells.memory import Cells
from perturbdiff.evaluation import contexts
from perturbdiff.evaluation.alignment import align
from perturbdiff.evaluation.contexts import judge_by, too_large
from perturbdiff.evaluation.scores import CEILING
from perturbdiff.metrics.conditions import Condition, Context
from perturbdiff.metrics.ours import Metric
from perturbdiff.metrics.sides import PERTURBATION
from perturbdiff.metrics.suites import Suite


def _cells(seed, n_cells=10):
    rng = np.random.default_rng(seed)
    labels = [(label, kind, "") for kind in ("T", "B") for label in ("control", "a", "b") for _ in range(n_cells)]
    return Cells(
        values=rng.gamma(1.0, 1.0, (len(labels), 4)).astype(np.float32),
        scale="log1p",
        total_counts=None,
        genes=pd.Index([f"g{i}" for i in range(4)]),
        names=pd.Index([f"c{i}" for i in range(len(labels))]),
        labels=pd.DataFrame(labels, columns=["perturbation", "cell_type", "assay_batch"]).astype("category"),
        control="control",
    )


OBSERVED, PREDICTED = _cells(0), _cells(1)


class Side(NamedTuple):
    adata: object
    control: str
    de: object


class One:
    names = ("m",)

    def __init__(self, pairs, absent=()):
        self.cells, self.absent = pairs.populations_of(PREDICTED), absent

    def has(self, method, condition):
        return condition not in self.absent

    def __call__(self, method, condition):
        return self.cells(condition)


def _labels(side):
    return sorted(set(side.adata.obs[PERTURBATION]))


def _run(absent=(), kept=None, observed=OBSERVED):
    seen, made = [], []

    def judge(predicted, observed, *, threads):
        seen.append((predicted, observed))
        own = [label for label in _labels(observed) if label != "control"]
        return {label: {"up": 1.0} for label in own} | {"": {"whole": 2.0}}

    def test(side, *, threads):
        made.append(side)
        return pl.DataFrame({"target": [label for label in _labels(side) if label != "control"]})

    metrics = [Metric("up", "higher", "up", "0 to 1"), Metric("whole", "lower", "whole", "0 to 1")]
    pairs = align({"m": PREDICTED}, observed)
    tests = (lambda _, call: call()) if kept is None else lambda name, call: kept.setdefault(name, call())
    suite = Suite("fake", metrics, Side, test, judge, {})
    rows = list(judge_by(suite, pairs, One(pairs, absent), seed=0, threads=1, tests=tests))
    return pairs, rows, seen, made


def _values(side, label):
    return side.adata.X.toarray()[(side.adata.obs[PERTURBATION] == label).to_numpy()]


def test_both_sides_have_the_same_real_control_cells_and_the_cells_of_their_own():
    pairs, _, seen, _ = _run()
    predicted, observed = seen[0]
    kind = next(iter(pairs.contexts))
    assert np.array_equal(_values(predicted, "control"), pairs.control(kind).cells)
    assert np.array_equal(_values(observed, "control"), pairs.control(kind).cells)
    assert np.array_equal(_values(observed, "a"), pairs.observed_cells(Condition("a", *kind)).cells)
    assert np.array_equal(_values(predicted, "b"), pairs.populations_of(PREDICTED)(Condition("b", *kind)).cells)
    assert list(observed.adata.var_names) == list(pairs.genes)


def test_the_ceiling_is_one_half_of_the_observed_cells_against_the_disjoint_other_half():
    pairs, _, seen, _ = _run()
    first, second = seen[1]
    kind = next(iter(pairs.contexts))
    halves = np.concatenate([_values(first, "a"), _values(second, "a")])
    assert np.array_equal(np.sort(halves, axis=0), np.sort(pairs.observed_cells(Condition("a", *kind)).cells, axis=0))
    assert len(_values(first, "a")) == len(_values(second, "a")) == 5


def test_a_condition_of_three_observed_cells_has_no_ceiling_and_keeps_its_scores():
    few = OBSERVED.take(np.setdiff1d(np.arange(60), np.flatnonzero(OBSERVED.labels["perturbation"] == "a")[3:10]))
    _, rows, seen, _ = _run(observed=few)
    by = {(method, condition): scores for method, condition, scores in rows}
    assert math.isnan(by[CEILING, Condition("a", "T")]["up"])
    assert by[CEILING, Condition("a", "B")] == by["m", Condition("a", "T")] == {"up": 1.0}
    assert sum(_labels(first) == ["b", "control"] for first, _ in seen) == 1


def test_every_condition_and_context_has_a_row_of_every_method():
    _, rows, _, _ = _run()
    for method in ("m", CEILING):
        own = {condition: scores for name, condition, scores in rows if name == method}
        assert own[Condition("a", "T")] == {"up": 1.0}
        assert own[Condition("", "T")] == {"whole": 2.0}
        assert len(own) == 6


def test_a_method_is_judged_on_the_conditions_that_it_predicts():
    _, rows, seen, _ = _run(absent=[Condition("a", "T"), Condition("a", "B"), Condition("b", "B")])
    own = {condition: scores for method, condition, scores in rows if method == "m"}
    assert own[Condition("b", "T")] == {"up": 1.0}
    assert math.isnan(own[Condition("a", "T")]["up"])
    assert math.isnan(own[Condition("b", "B")]["up"])
    (pair,) = [pair for pair in seen if _labels(pair[0]) == ["b", "control"]]
    assert _labels(pair[1]) == ["b", "control"]
    assert pair[1].de["target"].to_list() == ["b"]


def test_the_tests_of_the_observed_side_are_made_once_a_context_and_kept_by_name():
    kept = {}
    _, _, seen, made = _run(kept=kept)
    assert len(made) == len(kept) == 2
    assert seen[0][1].de is kept["fake-0"]
    assert seen[0][0].de is None


def test_a_context_of_too_many_values_is_named(monkeypatch):
    pairs = align({"m": PREDICTED}, OBSERVED)
    assert too_large(pairs, lambda _: 10) == []
    assert too_large(pairs, lambda one: 10**9 if one.cell_type == "T" else 10) == [Context("T")]
    monkeypatch.setattr(contexts, "VALUES", 30 * 4)  # two conditions and the control cells, 4 genes
    assert too_large(pairs, lambda _: 1) == []
    monkeypatch.setattr(contexts, "VALUES", 30 * 4 - 1)
    assert too_large(pairs, lambda _: 1) == [Context("B"), Context("T")]
