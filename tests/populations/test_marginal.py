"""Cells without their perturbation, and what is held back to judge a pretraining."""

import numpy as np
import pytest

from perturbdiff.cells.anndata import cells_from_anndata
from perturbdiff.cells.order import Segments
from perturbdiff.populations import marginal
from perturbdiff.populations.marginal import Marginal, batch_names, held_back
from perturbdiff.recipes.dataset import Columns, Expression

COLUMNS = Columns(perturbation="perturbation", cell_type="cell_type", assay_batch="assay_batch")


@pytest.fixture
def cells(adata):
    return cells_from_anndata(adata, columns=COLUMNS, expression=Expression(scale="counts"), control="control")


def test_no_cell_has_a_perturbation_and_every_group_stays_a_group(cells):
    called = {str(label): f"s: {label}" for label in cells.labels["assay_batch"].cat.categories}
    found = Marginal(cells, called)
    assert found.control is None
    assert set(found.runs.labels["perturbation"]) == {""}
    assert set(found.runs.labels["assay_batch"]) == set(called.values())
    assert len(found.runs) == len(cells.runs)
    assert bool(found.runs.is_control.all())
    assert list(found.genes) == list(cells.genes)


def test_batches_of_different_sources_never_share_a_name():
    found = batch_names(["a", "b", "c"], [["1", "2"], ["1", "9"], [""]])
    assert found == [{"1": "a: 1", "2": "2"}, {"1": "b: 1", "9": "9"}, {"": "c"}]
    clash = batch_names(["a", "b"], [["b"], [""]])
    assert len({*clash[0].values(), *clash[1].values()}) == 2


@pytest.mark.parametrize("m", [1, 3])
def test_what_is_held_back_is_a_whole_population_of_a_large_group_or_a_share_of_small_ones(cells, m, monkeypatch):
    monkeypatch.setattr(marginal, "HELD_BACK", 4)
    whole = cells.runs.whole()
    whole = Segments(whole.run, whole.start, whole.start + np.minimum(whole.sizes, np.arange(len(whole)) % 20 + 1))
    training, judging = held_back(whole, m)
    both = np.concatenate([training.positions(), judging.positions()])
    assert sorted(both.tolist()) == whole.positions().tolist()
    taken = dict(zip(judging.run.tolist(), judging.sizes.tolist(), strict=True))
    for run, size in zip(whole.run.tolist(), whole.sizes.tolist(), strict=True):
        # no group has the twelve cells that three are a quarter of
        share = size // 4 if size >= 8 else 0
        assert taken.get(run, 0) == (int(size >= 4) if m == 1 else share)
    assert len(judging)


def test_groups_too_small_for_two_cells_are_not_cut(cells):
    whole = cells.runs.whole()
    training, judging = held_back(Segments(whole.run, whole.start, whole.start + 2), 100)
    assert len(judging) == 0
    assert training.n_cells == 2 * len(whole)
