from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from perturbdiff.cells.anndata import cells_from_anndata
from perturbdiff.cells.order import Runs, Segments
from perturbdiff.core.choices import COVARIATES
from perturbdiff.labels.vocabulary import Vocabulary
from perturbdiff.populations.epochs import Populations
from perturbdiff.populations.pairing import Groups, cut
from perturbdiff.recipes.dataset import Columns, Expression

COLUMNS = Columns(perturbation="perturbation", cell_type="cell_type", assay_batch="assay_batch")


def make_cells(groups, *, control="control", columns=COLUMNS, n_genes=6, seed=0):
    """Cells of {(perturbation, cell type, assay batch): number of cells}, in random order."""
    rng = np.random.default_rng(seed)
    labels = [label for label, n in groups.items() for _ in range(n)]
    labels = [labels[i] for i in rng.permutation(len(labels))]
    obs = pd.DataFrame(labels, columns=list(COVARIATES), index=[f"cell {i}" for i in range(len(labels))])
    counts = csr_matrix(rng.poisson(1.0, (len(labels), n_genes)) + np.eye(1, n_genes))
    adata = anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]))
    return cells_from_anndata(adata, columns=columns, expression=Expression(scale="counts"), control=control)


def make_populations(cells, rows=None, **options):
    vocabularies = {name: Vocabulary.from_labels(name, cells.labels[name]) for name in COVARIATES}
    segments = cells.runs.whole() if rows is None else cells.segments(rows)
    options = {"cells_per_population": 4, "control_share": 0.0, "seed": 0, "scale": 2.0} | options
    return Populations(cells, segments, list(cells.genes), vocabularies=vocabularies, **options)


def drawn(cells, populations, epoch=0):
    """The populations of an epoch, with rows of the cells for positions."""
    return [
        draw._replace(rows=cells.order[draw.rows], control_rows=cells.order[draw.control_rows])
        for draw in populations.plan(epoch)
    ]


def label_of(cells, row):
    return tuple(cells.labels[name].iloc[row] for name in COVARIATES)


def control_draws(cells, draws):
    return [draw for draw in draws if cells.is_control[draw.rows].all()]


@pytest.fixture
def cells():
    return make_cells(
        {
            ("control", "B", "d1"): 30,
            ("control", "B", "d2"): 17,
            ("control", "NK", "d1"): 9,
            ("control", "NK", "d2"): 12,
            ("IFN", "B", "d1"): 13,
            ("IFN", "B", "d2"): 8,
            ("IFN", "NK", "d1"): 2,
            ("TNF", "B", "d1"): 7,
        }
    )


def test_every_perturbed_cell_is_drawn_exactly_once_an_epoch(cells):
    populations = make_populations(cells)
    for epoch in range(3):
        rows = np.concatenate([draw.rows for draw in drawn(cells, populations, epoch)])
        np.testing.assert_array_equal(np.sort(rows), np.flatnonzero(~cells.is_control))


def test_a_population_is_of_one_condition_and_its_controls_are_of_its_type_and_assay_batch(cells):
    for draw in drawn(cells, make_populations(cells, control_share=0.3)):
        condition = {label_of(cells, row) for row in draw.rows}
        assert len(condition) == 1
        _, cell_type, assay_batch = condition.pop()
        assert {label_of(cells, row) for row in draw.control_rows} == {("control", cell_type, assay_batch)}
        assert len(draw.rows) == len(draw.control_rows) <= 4


def test_the_condition_is_the_labels_place_in_their_vocabularies(cells):
    vocabularies = [Vocabulary.from_labels(name, cells.labels[name]) for name in COVARIATES]
    for draw in drawn(cells, make_populations(cells, control_share=0.3)):
        labels = label_of(cells, draw.rows[0])
        assert draw.condition == tuple(v.index(label) for v, label in zip(vocabularies, labels, strict=True))


def test_the_plan_is_a_function_of_seed_and_epoch_only(cells):
    populations = make_populations(cells, control_share=0.2)
    later = populations.plan(7)
    populations.plan(1)
    for again in (populations.plan(7), make_populations(cells, control_share=0.2).plan(7)):
        for a, b in zip(later, again, strict=True):
            np.testing.assert_array_equal(a.rows, b.rows)
            np.testing.assert_array_equal(a.control_rows, b.control_rows)
            assert (a.condition, a.key) == (b.condition, b.key)
    for other in (populations.plan(8), make_populations(cells, control_share=0.2, seed=1).plan(7)):
        assert any(set(a.rows) != set(b.rows) for a, b in zip(later, other, strict=True))


def test_keys_run_over_all_epochs(cells):
    populations = make_populations(cells, control_share=0.25)
    keys = [draw.key for epoch in range(3) for draw in populations.plan(epoch)]
    assert keys == list(range(3 * len(populations)))


@given(sizes=st.lists(st.integers(2, 50), min_size=1, max_size=20), m=st.integers(3, 12))
@settings(max_examples=50, deadline=None)
def test_groups_are_cut_into_full_populations_but_the_last_and_no_cell_is_left_alone(sizes, m):
    group_of, population_sizes = cut(np.array(sizes), m)
    np.testing.assert_array_equal(np.bincount(group_of, weights=population_sizes), sizes)
    np.testing.assert_array_equal(np.bincount(group_of), [-(-n // m) for n in sizes])
    assert population_sizes.min() >= 2
    assert population_sizes.max() <= m
    for group, n in enumerate(sizes):
        own = population_sizes[group_of == group]
        assert (own[:-2] == m).all()
        assert own[-1] == (n % m or m) or (n % m == 1 and list(own[-2:]) == [m - 1, 2])


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12), data=st.data())
@settings(max_examples=50, deadline=None)
def test_groups_number_each_chosen_cell_once_among_its_like(sizes, data):
    labels = pd.DataFrame({name: pd.Categorical(np.arange(len(sizes))) for name in COVARIATES})
    runs = Runs(labels, np.append(0, np.cumsum(sizes)), None)
    chosen = data.draw(st.sets(st.integers(0, sum(sizes) - 1), min_size=1))
    positions = np.array(sorted(chosen))
    groups = Groups.of(Segments.of(runs, positions))
    np.testing.assert_array_equal(groups.positions(np.arange(groups.n_cells)), positions)
    np.testing.assert_array_equal(groups.run, np.unique(runs.of(positions)))
    for run, start, stop in zip(groups.run, groups.offsets[:-1], groups.offsets[1:], strict=True):
        assert (runs.of(groups.positions(np.arange(start, stop))) == run).all()
    kept = groups.at_least(2)
    assert kept.n_cells == groups.sizes[groups.sizes >= 2].sum()


def test_groups_of_one_cell_are_left_out_and_counted():
    cells = make_cells({("control", "B", "d"): 9, ("IFN", "B", "d"): 5, ("TNF", "B", "d"): 1, ("IL6", "B", "d"): 1})
    populations = make_populations(cells)
    rows = np.concatenate([draw.rows for draw in drawn(cells, populations)])
    assert {label_of(cells, row)[0] for row in rows} == {"IFN"}
    assert populations.left_out == 2
    assert populations.notes == ("2 groups of a single cell are left out: a population takes at least 2 cells.",)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_control_to_control_populations_are_the_asked_share(share):
    cells = make_cells({("control", "B", "d1"): 60, ("control", "B", "d2"): 50, ("IFN", "B", "d1"): 400})
    populations = make_populations(cells, control_share=share)
    draws = drawn(cells, populations)
    assert len(draws) == len(populations)
    assert len(control_draws(cells, draws)) / len(draws) == pytest.approx(share, abs=1 / len(draws))


def test_control_to_control_streams_are_disjoint_and_go_through_all_control_groups(cells):
    draws = control_draws(cells, drawn(cells, make_populations(cells, control_share=0.5)))
    for draw in draws:
        assert len(set(draw.rows) | set(draw.control_rows)) == 2 * len(draw.rows)
    assert {label_of(cells, draw.rows[0])[1:] for draw in draws} == {
        ("B", "d1"),
        ("B", "d2"),
        ("NK", "d1"),
        ("NK", "d2"),
    }


def test_a_small_control_group_gives_two_disjoint_halves():
    cells = make_cells({("control", "B", "d"): 7, ("IFN", "B", "d"): 40})
    (draw, *_) = control_draws(cells, drawn(cells, make_populations(cells, cells_per_population=20, control_share=0.4)))
    assert len(draw.rows) == len(draw.control_rows) == 3
    assert not set(draw.rows) & set(draw.control_rows)


def test_controls_come_without_replacement_while_they_last():
    cells = make_cells({("control", "B", "d"): 24, ("IFN", "B", "d"): 24})
    draws = drawn(cells, make_populations(cells, cells_per_population=8))
    np.testing.assert_array_equal(
        np.sort(np.concatenate([draw.control_rows for draw in draws])), np.flatnonzero(cells.is_control)
    )


def test_no_control_cell_is_twice_in_a_population_that_the_controls_suffice_for():
    cells = make_cells({("control", "B", "d"): 11, ("IFN", "B", "d"): 80})
    for draw in make_populations(cells, cells_per_population=8).plan(0):
        assert len(set(draw.control_rows)) == 8


def test_too_few_controls_are_repeated_as_evenly_as_possible():
    cells = make_cells({("control", "B", "d"): 3, ("IFN", "B", "d"): 10})
    (draw,) = make_populations(cells, cells_per_population=10).plan(0)
    assert sorted(np.unique(draw.control_rows, return_counts=True)[1]) == [3, 3, 4]


def test_controls_of_other_assay_batches_stand_in_and_it_is_said_once():
    groups = {("control", "B", "d1"): 9, ("control", "B", "d3"): 5, ("control", "NK", "d2"): 9}
    cells = make_cells(groups | {("IFN", "B", "d2"): 14, ("TNF", "B", "d2"): 5, ("IFN", "B", "d1"): 4})
    populations = make_populations(cells, cells_per_population=14)
    for draw in drawn(cells, populations):
        used = {label_of(cells, row)[1:] for row in draw.control_rows}
        at_home = label_of(cells, draw.rows[0])[2] == "d1"
        assert used <= ({("B", "d1")} if at_home else {("B", "d1"), ("B", "d3")})
    (note,) = populations.notes
    assert note == (
        "2 of 3 groups, such as ('IFN', 'B', 'd2'), have fewer than 2 control cells in their assay batch: those of "
        "their cell type in any assay batch stand in."
    )


def test_controls_are_never_taken_from_another_cell_type():
    cells = make_cells({("control", "B", "d"): 9, ("control", "NK", "d"): 1, ("IFN", "NK", "d"): 5})
    with pytest.raises(ValueError, match=r"group \('IFN', 'NK', 'd'\) has 1 control cells of its cell type"):
        make_populations(cells)


def test_a_part_without_controls_uses_the_controls_handed_in(cells):
    held_out = np.array([i for i in range(cells.n_cells) if label_of(cells, i)[:2] == ("IFN", "B")])
    training_controls = np.flatnonzero(cells.is_control)[::2]
    populations = make_populations(cells, held_out, controls=cells.segments(training_controls))
    draws = populations.plan(0)
    rows = cells.order[np.concatenate([draw.rows for draw in draws])]
    np.testing.assert_array_equal(np.sort(rows), held_out)
    assert {row for draw in draws for row in cells.order[draw.control_rows]} <= set(training_controls)
    assert populations.batch(draws).perturbed.shape == (len(draws), 4, 6)
    with pytest.raises(ValueError, match="not labelled 'control'"):
        make_populations(cells, held_out, controls=cells.runs.whole())


@pytest.mark.parametrize("dense", [False, True])
def test_a_batch_is_the_rows_of_the_panel_divided_by_the_scale(cells, dense):
    panel = ["g4", "g0", "g2"]
    vocabularies = {name: Vocabulary.from_labels(name, cells.labels[name]) for name in COVARIATES}
    if dense:
        cells = replace(cells, values=cells.values.toarray())  # noqa: PD011 - not a DataFrame's
    options = {"cells_per_population": 5, "control_share": 0.3, "seed": 0}
    populations = Populations(cells, cells.runs.whole(), panel, 1.7, vocabularies, **options)
    expected = cells.log_expression(panel).toarray() / np.float32(1.7)
    draws = populations.plan(0)
    batch = populations.batch(draws)
    assert batch.perturbed.dtype == batch.control.dtype == torch.float32
    for i, draw in enumerate(draws):
        n = len(draw.rows)
        for tensor, rows in ((batch.perturbed, draw.rows), (batch.control, draw.control_rows)):
            np.testing.assert_array_equal(tensor[i, :n].numpy(), expected[cells.order[rows]])
            assert not tensor[i, n:].any()
        assert batch.mask[i].tolist() == [True] * n + [False] * (5 - n)
        assert tuple(int(codes[i]) for codes in batch.condition) == draw.condition
        assert int(batch.key[i]) == draw.key


def test_drawing_leaves_the_expression_as_it_was(cells):
    populations = make_populations(cells)
    draws = populations.plan(0)
    first, again = populations.batch(draws), populations.batch(draws)
    assert torch.equal(first.perturbed, again.perturbed)
    assert torch.equal(first.control, again.control)


def test_full_populations_need_no_mask():
    cells = make_cells({("control", "B", "d"): 9, ("IFN", "B", "d"): 8})
    populations = make_populations(cells)
    assert populations.batch(populations.plan(0)).mask is None


def test_data_without_perturbations_have_a_zero_control_stream():
    columns = Columns(cell_type="cell_type", assay_batch="assay_batch")
    cells = make_cells({("", "B", "d1"): 9, ("", "NK", "d1"): 6}, control=None, columns=columns)
    populations = make_populations(cells, control_share=0.1)
    draws = populations.plan(0)
    batch = populations.batch(draws)
    np.testing.assert_array_equal(np.sort(np.concatenate([draw.rows for draw in draws])), np.arange(15))
    assert not batch.control.any()
    assert batch.perturbed.any()
    assert batch.condition.perturbation.tolist() == [0] * len(draws)
    assert set(batch.condition.cell_type.tolist()) == {1, 2}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"scale": 0.0}, "scale=0.0 must be positive"),
        ({"cells_per_population": 1}, "cells_per_population=1 must be at least 2"),
        ({"control_share": 1.0}, r"control_share=1.0 must be in \[0, 1\)"),
        ({"rows": np.arange(0)}, "0 perturbed cells in 0 groups give no population"),
    ],
)
def test_what_cannot_be_drawn_is_refused(cells, option, message):
    with pytest.raises(ValueError, match=message):
        make_populations(cells, **option)


def test_control_populations_without_enough_controls_are_refused():
    cells = make_cells({("control", "B", "d"): 3, ("IFN", "B", "d"): 8})
    with pytest.raises(ValueError, match="no \\(cell type, assay batch\\) has the 4 control cells"):
        make_populations(cells, control_share=0.1)


def test_a_label_outside_its_vocabulary_is_refused(cells):
    vocabularies = {name: Vocabulary.from_labels(name, cells.labels[name]) for name in COVARIATES}
    vocabularies["perturbation"] = Vocabulary("perturbation", ("control", "IFNb"))
    with pytest.raises(ValueError, match="'IFN'"):
        Populations(
            cells,
            cells.runs.whole(),
            list(cells.genes),
            1.0,
            vocabularies,
            cells_per_population=4,
            control_share=0.0,
            seed=0,
        )


def distinct(cells):
    """The same counts, as if every cell had a total of its own: so no two cells have the same expression."""
    return replace(cells, total_counts=1000.0 + np.arange(cells.n_cells))


def totals_by_expression(cells, control, scale=2.0):
    """The total of the one cell that has each row of expression [cells, genes]."""
    known = cells.log_expression(list(cells.genes)).toarray() / np.float32(scale)
    same = (known == control.numpy()[:, None]).all(axis=-1)
    assert (same.sum(axis=-1) == 1).all()
    return cells.known_totals[same.argmax(axis=-1)].astype(np.float32)


@pytest.mark.parametrize("held", [0, 1 << 30])
@pytest.mark.parametrize("pairing", ["assay_batch", "cell_type", "nearest", "optimal_transport"])
def test_totals_are_those_of_the_control_cells_that_were_paired(cells, pairing, held):
    cells = distinct(cells)
    populations = make_populations(cells, control_share=0.3, pairing=pairing, held=held)
    batch = populations.batch(populations.plan(0))
    there = batch.mask.numpy()
    assert batch.totals.dtype == torch.float32
    assert not there.all()
    np.testing.assert_array_equal(batch.totals.numpy()[there], totals_by_expression(cells, batch.control[batch.mask]))
    assert (batch.totals.numpy()[~there] == 1).all()


def test_a_control_cell_of_unknown_total_leaves_its_minibatch_without_totals(cells):
    logs = replace(cells, values=cells.log_expression(list(cells.genes)), scale="log1p", total_counts=None)
    unknown = np.flatnonzero(np.isnan(logs.known_totals))
    assert unknown.size
    populations = make_populations(logs)
    draws = drawn(logs, populations)
    lacking = [bool(np.isin(draw.control_rows, unknown).any()) for draw in draws]
    assert len({*lacking}) == 2
    for draw, lacks in zip(populations.plan(0), lacking, strict=True):
        batch = populations.batch([draw])
        assert (batch.totals is None) == lacks
        if not lacks:
            wanted = logs.known_totals[logs.order[draw.control_rows]]
            np.testing.assert_array_equal(batch.totals[0, : len(wanted)], wanted)
    assert populations.batch(populations.plan(0)).totals is None


def test_data_without_perturbations_have_no_totals_of_control_cells():
    cells = make_cells(
        {("", "B", "d1"): 9}, control=None, columns=Columns(cell_type="cell_type", assay_batch="assay_batch")
    )
    populations = make_populations(cells)
    assert populations.batch(populations.plan(0)).totals is None
