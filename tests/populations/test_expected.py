"""What populations are told is expected of them: in every way the change that contexts and labels give, or counts."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from perturbdiff.cells.anndata import cells_from_anndata
from perturbdiff.cells.contexts import Carried
from perturbdiff.cells.counts import Curves, changed, logs
from perturbdiff.cells.order import Segments
from perturbdiff.core.choices import COVARIATES
from perturbdiff.labels.vocabulary import Vocabulary
from perturbdiff.populations import expected as module
from perturbdiff.populations.changes import measured_changes
from perturbdiff.populations.epochs import Populations
from perturbdiff.populations.expected import Expectation, ExpectedPopulations
from perturbdiff.recipes.dataset import Columns, Expression

COLUMNS = Columns(perturbation="perturbation", cell_type="cell_type", assay_batch="assay_batch")
SCALE = 2.0
CARRIED = {"within": Carried(0.1, 0.6), "across": Carried(0.3, 0.4)}


@pytest.fixture(scope="module")
def cells(adata):
    kept = np.random.default_rng(1).random(adata.n_obs) < 0.8
    return cells_from_anndata(
        adata[kept].copy(), columns=COLUMNS, expression=Expression(scale="counts"), control="control"
    )


@pytest.fixture(scope="module")
def vocabularies(cells):
    return {name: Vocabulary.from_labels(name, cells.labels[name]) for name in COVARIATES}


@pytest.fixture(scope="module")
def make(cells, vocabularies):
    """Populations of cells, with control -> control ones."""

    def populations(rows=None, **options):
        segments = cells.runs.whole() if rows is None else cells.segments(rows)
        return Populations(
            cells,
            segments,
            list(cells.genes),
            SCALE,
            options.pop("vocabularies", vocabularies),
            **({"cells_per_population": 4, "control_share": 0.2, "seed": 0} | options),
        )

    return populations


@pytest.fixture(scope="module")
def changes(make, cells):
    return replace(measured_changes(make(), cells.runs), **CARRIED)


def told_by(populations, cells, changes, vocabularies, *, counts=False, weights=None, in_all_ways=True):
    expectation = Expectation(changes, weights, scale=SCALE, counts=counts)
    control = vocabularies["perturbation"].index("control")
    return ExpectedPopulations(populations, expectation, cells.runs, in_all_ways=in_all_ways, control=control)


def named(draw, vocabularies):
    """The labels of a population."""
    return [vocabularies[name].labels[i - 1] for name, i in zip(COVARIATES, draw.condition, strict=True)]


def controls_of(cells, cell_type, assay_batch):
    """The rows of the control cells of a context, in canonical order."""
    here = (cells.labels["cell_type"] == cell_type) & (cells.labels["assay_batch"] == assay_batch)
    rows = cells.order
    return rows[(here.to_numpy() & cells.is_control)[rows]]


def test_a_population_is_told_the_change_of_its_label_in_its_context_and_then_by_other_contexts(
    make, cells, changes, vocabularies
):
    told = told_by(make(), cells, changes, vocabularies)
    draws = told.plan(0)
    batch, plain = told.batch(draws), told.populations.batch(draws)
    assert batch.expected.shape == (len(draws), 6, 40)
    assert batch.expected.dtype == torch.float32
    for name in ("perturbed", "control", "key", "totals"):
        assert torch.equal(getattr(batch, name), getattr(plain, name))
    n_perturbed = 0
    for draw, found in zip(draws, batch.expected.numpy() * SCALE, strict=True):
        label, *context = named(draw, vocabularies)
        if label == "control":
            assert not found.any()
            continue
        n_perturbed += 1
        own = changes.place[tuple(context)]
        similarity = changes.similarity(changes.means[own])
        inside = changes.expected(draw.condition[0], similarity, own)
        outside = changes.expected(draw.condition[0], similarity, own, left_out=True)
        assert not np.allclose(inside, outside)
        # labels that are their own alone are the same however new they are taken to be
        np.testing.assert_allclose(found, [inside] * 3 + [outside] * 3, rtol=1e-5, atol=1e-6)
    assert 0 < n_perturbed < len(draws)


def test_a_label_taken_as_new_is_told_what_the_weights_make_of_the_others_in_the_same_context(
    make, cells, changes, vocabularies, rng
):
    weights = rng.normal(size=(3, 5, 5))
    weights[:, :, 0] = 0
    weights[1, 2] = 0
    told = told_by(make(), cells, changes, vocabularies, weights=weights)
    draws = told.plan(0)
    for draw, found in zip(draws, told.batch(draws).expected.numpy() * SCALE, strict=True):
        label, *context = named(draw, vocabularies)
        if label == "control":
            assert not found.any()
            continue
        own = changes.place[tuple(context)]
        similarity = changes.similarity(changes.means[own])
        for way in range(6):
            novelty, left_out = way % 3, way >= 3
            each = [changes.expected(k, similarity, own, left_out=left_out) for k in range(5)]
            wanted = weights[novelty, draw.condition[0]] @ np.array(each)
            np.testing.assert_allclose(found[way], wanted, rtol=1e-4, atol=1e-5)


def test_where_one_way_is_wanted_it_is_the_first(make, cells, changes, vocabularies):
    every, first = (
        told_by(make(), cells, changes, vocabularies, counts=True, in_all_ways=ways) for ways in (True, False)
    )
    draws = every.plan(0)
    assert torch.equal(first.batch(draws).expected, every.batch(draws).expected[:, :1])


def test_where_cells_are_drawn_as_counts_the_change_is_that_of_counts_which_moves_the_mean_so_far(
    make, cells, changes, vocabularies, rng
):
    told = told_by(make(), cells, changes, vocabularies, counts=True)
    draws = told.plan(0)
    seen = set()
    for draw, found in zip(draws, told.batch(draws).expected.numpy() * SCALE, strict=True):
        label, *context = named(draw, vocabularies)
        if label == "control" or (label, *context) in seen:
            continue
        seen.add((label, *context))
        own = changes.place[tuple(context)]
        similarity = changes.similarity(changes.means[own])
        rows = controls_of(cells, *context)
        counts, totals = cells.values[rows].toarray().astype(float), cells.known_totals[rows]
        for way, left_out in ((0, False), (3, True)):
            shift = changes.expected(draw.condition[0], similarity, own, left_out=left_out)
            np.testing.assert_allclose(found[way], Curves.of(counts, totals).realised(shift), rtol=1e-4, atol=1e-5)
        if len(seen) == 1:
            shift = changes.expected(draw.condition[0], similarity, own)
            drawn = [logs(*changed(counts, totals, found[0], rng)).mean(axis=0) for _ in range(300)]
            before = logs(counts, totals).mean(axis=0)
            reached = np.maximum(shift, -before)
            np.testing.assert_allclose(np.mean(drawn, axis=0) - before, reached, atol=0.1)
            assert np.abs(np.mean(drawn, axis=0) - before - reached).mean() < 0.02
    assert len(seen) == 18


def test_a_context_that_training_has_not_seen_is_known_by_its_control_cells(make, cells, vocabularies):
    seen = (cells.labels["cell_type"] != "type_3").to_numpy()
    changes = replace(measured_changes(make(np.flatnonzero(seen)), cells.runs), **CARRIED)
    assert all(kind != "type_3" for kind, _ in changes.contexts)
    told = told_by(make(np.flatnonzero(~seen)), cells, changes, vocabularies)
    draws = [draw for draw in told.plan(0) if named(draw, vocabularies)[0] != "control"]
    assert draws
    for draw, found in zip(draws, told.batch(draws).expected.numpy() * SCALE, strict=True):
        _, *context = named(draw, vocabularies)
        mean = cells.log_expression(cells.genes, controls_of(cells, *context)).toarray().mean(axis=0, dtype=float)
        wanted = changes.expected(draw.condition[0], changes.similarity(mean))
        # there is nothing to leave out
        np.testing.assert_allclose(found, [wanted] * 6, rtol=1e-4, atol=1e-5)


def test_a_new_assay_batch_of_a_cell_type_is_told_what_carries_over_within_it_and_then_across_types(
    make, cells, vocabularies
):
    labels = cells.labels.astype(str)
    new = ((labels["cell_type"] == "type_3") & (labels["assay_batch"] == "donor_2")).to_numpy()
    changes = replace(measured_changes(make(np.flatnonzero(~new)), cells.runs), **CARRIED)
    assert ("type_3", "donor_2") not in changes.place
    told = told_by(make(np.flatnonzero(new)), cells, changes, vocabularies)
    draws = [draw for draw in told.plan(0) if named(draw, vocabularies)[0] != "control"]
    assert draws
    control = cells.log_expression(cells.genes, controls_of(cells, "type_3", "donor_2")).toarray()
    similarity = changes.similarity(control.mean(axis=0, dtype=float))
    for draw, found in zip(draws, told.batch(draws).expected.numpy() * SCALE, strict=True):
        within, across = (
            changes.expected(draw.condition[0], similarity, cell_type=cell_type) for cell_type in ("type_3", "")
        )
        elsewhere = changes.expected(draw.condition[0], similarity, cell_type="type_3", left_out=True)
        np.testing.assert_allclose(found, [within] * 3 + [elsewhere] * 3, rtol=1e-4, atol=1e-5)
        assert not np.allclose(within, across)
        assert not np.allclose(elsewhere, across)


def test_a_context_is_known_by_its_name_where_training_has_seen_it_whichever_control_cells_there_are(changes, rng):
    expectation = Expectation(changes, None, scale=SCALE, counts=False)
    others = rng.normal(size=(5, 40)).astype(np.float32)
    there = expectation.surroundings(("type_2", "donor_1"), others, None)
    own = changes.place["type_2", "donor_1"]
    assert (there.own, there.cell_type) == (own, "type_2")
    np.testing.assert_array_equal(there.similarity, changes.similarity(changes.means[own]))
    for context in (("type_2", "donor_9"), ("type_2", ""), ("", ""), ("elsewhere", "donor_1")):
        there = expectation.surroundings(context, others, None)
        assert (there.own, there.cell_type) == (None, context[0])
        np.testing.assert_allclose(there.similarity, changes.similarity(others.mean(axis=0, dtype=float)))


def test_where_the_assay_batches_of_a_cell_type_are_one_every_batch_is_that_context(changes):
    for contexts, own in (((("type_1", ""), ("type_2", "")), 1), ((("", ""),), 0)):
        joined = replace(
            changes,
            contexts=contexts,
            context=changes.context[:1] * 0,
            label=changes.label[:1],
            changes=changes.changes[:1],
            noise=changes.noise[:1],
            sizes=changes.sizes[:1],
            means=changes.means[: len(contexts)],
        )
        expectation = Expectation(joined, None, scale=SCALE, counts=False)
        for batch in ("donor_1", "donor_7", ""):
            there = expectation.surroundings(("type_2", batch), np.ones((2, 40), dtype=np.float32), None)
            assert there.own == own


@pytest.mark.parametrize("counts", [False, True])
def test_what_is_kept_for_the_next_time_changes_no_number(make, cells, changes, vocabularies, monkeypatch, counts):
    weights = np.random.default_rng(0).normal(size=(3, 5, 5))
    options = {"counts": counts, "weights": weights}
    once = told_by(make(), cells, changes, vocabularies, **options)
    draws = once.plan(0)
    wanted = once.batch(draws).expected
    assert torch.equal(once.batch(draws).expected, wanted)
    monkeypatch.setattr(module, "HELD", 0)
    monkeypatch.setattr(module, "CONTEXTS_HELD", 1)
    anew = told_by(make(), cells, changes, vocabularies, **options)
    assert torch.equal(anew.batch(draws).expected, wanted)
    turned = draws[::-1]
    assert torch.equal(anew.batch(turned).expected, wanted.flip(0))


def test_minibatches_are_told_the_same_however_they_are_cut_and_whether_their_cells_were_read_before(
    make, cells, changes, vocabularies
):
    told = told_by(make(), cells, changes, vocabularies, counts=True)
    slab = next(told.slabs())
    loaded = told.load(slab.draws)
    whole = told.batch(slab.draws, (loaded,)).expected
    parts = [told.batch(slab.draws[i : i + 3]).expected for i in range(0, len(slab.draws), 3)]
    assert torch.equal(torch.cat(parts), whole)
    assert told.notes == told.populations.notes


def test_of_very_many_control_cells_those_at_equal_distances_stand_for_all(changes, cells, monkeypatch):
    monkeypatch.setattr(module, "CELLS_OF_CURVES", 3)
    expectation = Expectation(changes, None, scale=SCALE, counts=True)
    rows = controls_of(cells, "type_1", "donor_1")[:9]
    control, totals = cells.log_expression(cells.genes, rows).toarray(), cells.known_totals[rows]
    some = [0, 4, 8]
    counts = cells.values[rows[some]].toarray().astype(float)
    found = expectation.surroundings(("type_1", "donor_1"), control, totals).curves
    np.testing.assert_allclose(found.means, Curves.of(counts, totals[some]).means)


def test_segments_of_another_part_have_control_cells_of_training_beside_them(make, cells, changes, vocabularies):
    held_out = np.flatnonzero((cells.labels["perturbation"] == "stimulus_1").to_numpy())
    controls = Segments.of(cells.runs, np.flatnonzero(cells.is_control[cells.order]))
    told = told_by(
        make(held_out, controls=controls, control_share=0.0), cells, changes, vocabularies, in_all_ways=False
    )
    draws = told.plan(0)
    for draw, (found,) in zip(draws, told.batch(draws).expected.numpy() * SCALE, strict=True):
        own = changes.place[tuple(named(draw, vocabularies)[1:])]
        wanted = changes.expected(draw.condition[0], changes.similarity(changes.means[own]), own)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
