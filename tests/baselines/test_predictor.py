"""Cells that are drawn as counts have the mean that is expected, keep their zeros, and belong to their condition."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from perturbdiff.baselines.catalogue import NoResponse, Unchanged
from perturbdiff.baselines.predictor import Predictor, Response
from perturbdiff.cells.memory import Cells

GENES = [f"g{i}" for i in range(40)]
RATES = np.random.default_rng(0).gamma(0.4, 2.0, 40)


class By(Response):
    """A change of one's own, larger for "b"."""

    def __init__(self, shift):
        self.change = np.asarray(shift, dtype=np.float64)

    def shift(self, perturbation, cell_type, given):
        return self.change * (2.0 if perturbation == "b" else 1.0)


def counted(labels, seed=0, rates=RATES):
    """Cells of Poisson counts, under labels of perturbation."""
    counts = np.random.default_rng(seed).poisson(rates, (len(labels), 40)).astype(np.float32)
    counts[:, 0] += 1  # no cell is empty, and the smallest value of each is one count
    return Cells(
        values=counts,
        scale="counts",
        total_counts=counts.sum(axis=1, dtype=np.float64) + 100.0,
        genes=pd.Index(GENES),
        names=pd.Index([f"cell{i}" for i in range(len(labels))]),
        labels=pd.DataFrame(
            {"perturbation": pd.Categorical(labels), "cell_type": pd.Categorical(["T"] * len(labels)),
             "assay_batch": pd.Categorical([""] * len(labels))}
        ),
        control="control",
    )  # fmt: skip


def as_counts(response):
    return Predictor("by", tuple(GENES), response, way="counts")


def values_of(cells):
    return cells.log_expression(GENES).toarray()


CELLS = counted(["a"] * 1500)
SHIFT = np.where(np.arange(40) % 2, 0.3, -0.1) * (values_of(CELLS).mean(axis=0) > 0.3)


def test_no_change_leaves_the_cells_as_they_are_to_the_last_bit():
    still = as_counts(NoResponse()).predict(CELLS)
    assert np.array_equal(values_of(still), values_of(CELLS))
    assert np.array_equal(values_of(still), values_of(Predictor("by", tuple(GENES), NoResponse()).predict(CELLS)))
    assert Unchanged("control", tuple(GENES), NoResponse(), way="counts").predict(CELLS) is CELLS


def test_the_mean_of_drawn_cells_is_that_of_the_control_cells_and_the_shift():
    before, after = values_of(CELLS), values_of(as_counts(By(SHIFT)).predict(CELLS))
    change = (after - before).mean(axis=0, dtype=np.float64)
    error = after.std(axis=0) / np.sqrt(256)  # the change is that of 256 of the cells
    assert np.abs(change - SHIFT).max() < 4 * error.max()
    assert np.abs(change - SHIFT).mean() < error.mean()


def test_drawn_cells_keep_the_zeros_that_shifted_cells_lose():
    truth = counted(["a"] * 1500, seed=1, rates=RATES * np.where(np.arange(40) % 2, 1.6, 0.9))
    shift = values_of(truth).mean(axis=0) - values_of(CELLS).mean(axis=0)
    zeros = (values_of(truth) == 0).mean()
    drawn = (values_of(as_counts(By(shift)).predict(CELLS)) == 0).mean()
    shifted = (values_of(Predictor("by", tuple(GENES), By(shift)).predict(CELLS)) == 0).mean()
    assert drawn == pytest.approx(zeros, abs=0.02)
    assert abs(shifted - zeros) > 0.1


def test_drawn_cells_are_log1p_values_of_whole_counts_under_their_labels():
    moved = as_counts(By(SHIFT)).predict(CELLS)
    assert (moved.scale, moved.total_counts) == ("log1p", None)
    assert moved.names.equals(CELLS.names)
    rates = np.expm1(values_of(moved).astype(np.float64))
    one = np.where(rates > 0, rates, np.inf).min(axis=1, keepdims=True)
    assert np.abs(rates / one - np.rint(rates / one)).max() < 0.01


def test_a_condition_is_drawn_the_same_alone_and_among_others_and_unlike_another():
    mixed = counted(["a", "b", "b", "a", "a", "b"] * 20)
    one = as_counts(By(SHIFT))
    together = one.predict(mixed)
    for label in "ab":
        rows = np.flatnonzero(mixed.labels["perturbation"] == label)
        assert np.array_equal(values_of(one.predict(mixed.take(rows))), values_of(together)[rows])
    same = counted(["a"] * 50), counted(["c"] * 50)
    assert not np.array_equal(*(values_of(one.predict(cells)) for cells in same))


def test_log1p_values_that_tell_the_totals_are_drawn_as_their_counts_are():
    logged = replace(CELLS, values=values_of(CELLS), scale="log1p", total_counts=None)
    one = as_counts(By(SHIFT))
    assert logged.known_totals == pytest.approx(CELLS.known_totals, rel=1e-5)
    assert values_of(one.predict(logged)) == pytest.approx(values_of(one.predict(CELLS)), abs=1e-4)


def test_the_totals_of_a_panel_are_those_that_are_given():
    panel = Predictor("by", tuple(GENES[:10]), By(SHIFT[:10]), way="counts")
    whole = panel.predict(CELLS)
    logged = replace(CELLS, values=values_of(CELLS)[:, :10], scale="log1p", total_counts=None, genes=CELLS.genes[:10])
    cut = panel.predict(logged, CELLS.known_totals)
    assert cut.log_expression(GENES[:10]).toarray() == pytest.approx(whole.log_expression(GENES[:10]).toarray())


def test_cells_of_unknown_totals_are_moved_on_log1p_values():
    values = values_of(CELLS) * np.random.default_rng(0).uniform(0.9, 1.1, (1500, 40)).astype(np.float32)
    unknown = replace(CELLS, values=values, scale="log1p", total_counts=None)
    assert np.isnan(unknown.known_totals).any()
    one = as_counts(By(SHIFT))
    assert np.array_equal(values_of(one.predict(unknown)), values_of(replace(one, way="log1p").predict(unknown)))
