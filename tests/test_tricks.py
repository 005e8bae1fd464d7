"""Tricks that raise the scores of weaker evaluations do not raise the headline score of this one."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from perturbdiff.cells.memory import Cells
from perturbdiff.evaluation.evaluate import HEADLINE, evaluate

GENES = [f"gene_{i}" for i in range(60)]
TARGETS = {f"knockout of gene_{i}": i for i in range(6)}
RATE = np.concatenate([np.full(6, 8.0), np.random.default_rng(7).gamma(1.0, 1.5, 54)])


def _cells(strength, seed, n_cells=60, own=1.0):
    """Counts of Poisson, log1p: a response that all share, and one of each perturbation's own; the target falls."""
    rng = np.random.default_rng(seed)
    effects = np.random.default_rng(11)
    shared = np.where(np.arange(60) >= 50, 1.0, 0.0)
    labels, values = [], []
    for label in ("control", *TARGETS):
        change = np.zeros(60)
        if label != "control":
            change = strength * (shared + own * effects.normal(0, 0.8, 60) * (effects.random(60) < 0.3))
            change[TARGETS[label]] -= 1.5 * strength
        n = 3 * n_cells if label == "control" else n_cells
        labels += [(label, "T", "")] * n
        values.append(np.log1p(rng.poisson(RATE * np.exp(change), (n, 60))))
    return Cells(
        values=np.concatenate(values).astype(np.float32),
        scale="log1p",
        total_counts=None,
        genes=pd.Index(GENES),
        names=pd.Index([f"cell{i}" for i in range(len(labels))]),
        labels=pd.DataFrame(labels, columns=["perturbation", "cell_type", "assay_batch"]).astype("category"),
        control="control",
    )


OBSERVED = _cells(1.0, 0)
HONEST = _cells(0.6, 1)
"""A prediction that has learned a part of every response."""


def _changed(change):
    """The honest prediction, with its perturbed cells changed: change(values [cells, genes], labels)."""
    values = np.array(HONEST.values)
    perturbed = ~HONEST.is_control
    labels = HONEST.labels["perturbation"].astype(str).to_numpy()[perturbed]
    values[perturbed] = change(values[perturbed], labels)
    return replace(HONEST, values=values.astype(np.float32))


def _noise(values, labels):
    return np.maximum(values + np.random.default_rng(2).normal(0, 0.7, values.shape), 0)


def _log_twice(values, labels):
    return np.log1p(values)


def _scaled(values, labels):
    return values * 1.6


def _shrunk(values, labels):
    return values * 0.6


def _spiked_target(values, labels):
    spiked = values.copy()
    for label, gene in TARGETS.items():
        spiked[labels == label, gene] = 0.0
    return spiked


def _mean_for_all(values, labels):
    return np.tile(values.mean(axis=0), (len(values), 1))


def _cells_of_all(values, labels):
    return values[np.random.default_rng(3).permutation(len(values))]


TRICKS = {
    "noise": _noise,
    "log twice": _log_twice,
    "scaled": _scaled,
    "shrunk": _shrunk,
    "mean for all": _mean_for_all,
    "cells of all": _cells_of_all,
}


@pytest.fixture(scope="module")
def compared():
    files = {name: _changed(change) for name, change in TRICKS.items()}
    return evaluate({"honest": HONEST, **files}, OBSERVED, training=None, seed=0)


@pytest.mark.parametrize("trick", TRICKS)
def test_a_trick_does_not_raise_the_headline_score(compared, trick):
    energy = compared.summary()["energy_distance"]
    assert energy[trick] > energy["honest"]


@pytest.mark.parametrize("trick", TRICKS)
def test_a_trick_does_not_raise_any_metric_that_the_tables_lead_with(compared, trick):
    summary = compared.summary()
    for metric in HEADLINE[1:]:
        assert summary.loc[trick, metric] <= summary.loc["honest", metric] + 0.02, metric


def test_one_response_for_all_has_no_correlation_from_the_centroid_though_it_has_one_from_control(compared):
    summary = compared.summary()
    assert summary.loc["cells of all", "pearson_of_change"] > 0.4
    assert abs(summary.loc["cells of all", "pearson_from_centroid"]) < 0.2
    assert summary.loc["honest", "pearson_from_centroid"] > 0.6
    assert summary.loc["cells of all", "spread_between"] < 0.2


def test_one_response_for_all_is_warned_of(compared):
    warned = " ".join(caution.text for caution in compared.warnings if caution.kind == "collapse")
    assert "'cells of all'" in warned
    assert "'mean for all'" in warned
    assert "'honest'" not in warned


def test_a_dense_prediction_is_seen_by_its_zeros_and_its_variance(compared):
    summary = compared.summary()
    assert summary.loc["mean for all", "variance_ratio"] < 0.01
    assert summary.loc["noise", "zeros_error"] > 2 * summary.loc["honest", "zeros_error"]


def test_a_dense_prediction_inflates_differential_expression_and_is_seen_by_it(compared):
    summary = compared.summary()
    assert summary.loc["mean for all", "de_share_predicted"] > 2 * summary.loc["mean for all", "de_share_observed"]
    assert summary.loc["honest", "de_share_predicted"] < summary.loc["honest", "de_share_observed"]


def _only_the_target(seed):
    """Control cells in which nothing but the target gene falls."""
    nothing = _cells(0.0, seed)
    values = np.array(nothing.values)
    labels = nothing.labels["perturbation"].astype(str).to_numpy()
    for label, gene in TARGETS.items():
        values[labels == label, gene] = 0.0
    return replace(nothing, values=values)


def test_a_score_that_the_target_genes_alone_carry_is_warned_of():
    found = evaluate({"target": _only_the_target(4), "honest": HONEST}, OBSERVED, training=None, seed=0)
    warned = [caution.text for caution in found.warnings if caution.kind == "targets"]
    assert any("pearson_from_centroid of 'target'" in text or "mae of 'target'" in text for text in warned), warned
    assert not any("'honest'" in text for text in warned)


def test_spiking_the_target_gene_changes_no_metric_of_ours_at_all():
    spiked = _changed(_spiked_target)
    found = evaluate({"honest": HONEST, "spiked": spiked}, OBSERVED, training=None, seed=0)
    summary = found.summary()
    assert summary.loc["spiked"].to_dict() == pytest.approx(summary.loc["honest"].to_dict(), rel=1e-9)
    assert not [caution for caution in found.warnings if caution.kind == "targets"]


def test_spiking_different_targets_does_not_hide_one_response_for_all():
    one = _changed(_cells_of_all)
    values = np.array(one.values)
    labels = one.labels["perturbation"].astype(str).to_numpy()
    for label, gene in TARGETS.items():
        values[labels == label, gene] = 0.0
    found = evaluate({"hidden": replace(one, values=values)}, OBSERVED, training=None, seed=0)
    assert found.summary().loc["hidden", "spread_between"] < 0.2
    assert [caution.kind for caution in found.warnings if caution.kind == "collapse"]
