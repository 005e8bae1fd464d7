"""The mean changes of training conditions, their sampling noise and their contexts, against sums over tables."""

import numpy as np
import pandas as pd
import pytest

from perturbdiff.cells import contexts
from perturbdiff.cells.anndata import cells_from_anndata
from perturbdiff.core.choices import COVARIATES
from perturbdiff.labels.vocabulary import Vocabulary
from perturbdiff.populations import changes as module
from perturbdiff.populations.changes import measured_changes
from perturbdiff.populations.epochs import Populations
from perturbdiff.recipes.dataset import Columns, Expression

COLUMNS = Columns(perturbation="perturbation", cell_type="cell_type", assay_batch="assay_batch")


def populations_of(adata, *, scale=2.0, columns=COLUMNS, **options):
    cells = cells_from_anndata(adata, columns=columns, expression=Expression(scale="counts"), control="control")
    vocabularies = {name: Vocabulary.from_labels(name, cells.labels[name]) for name in COVARIATES}
    options = {"cells_per_population": 4, "control_share": 0.0, "seed": 0} | options
    return cells, Populations(cells, cells.runs.whole(), list(cells.genes), scale, vocabularies, **options)


def measured(adata, **options):
    cells, populations = populations_of(adata, **options)
    return cells, measured_changes(populations, cells.runs)


def frame(cells):
    """Log1p counts per 10^4 with an index of labels."""
    index = pd.MultiIndex.from_frame(cells.labels[list(COVARIATES)].astype(str))
    return pd.DataFrame(cells.log_expression(cells.genes).toarray().astype(float), index=index)


def keys_of(cells, changes):
    """The (perturbation, cell type, assay batch) of each condition."""
    labels = Vocabulary.from_labels("perturbation", cells.labels["perturbation"]).labels
    return [(labels[i - 1], *changes.contexts[j]) for i, j in zip(changes.label, changes.context, strict=True)]


def thinned(adata, seed=1):
    """Groups of different sizes."""
    kept = np.random.default_rng(seed).random(adata.n_obs) < 0.75
    return adata[kept].copy()


def test_the_change_of_a_condition_is_the_mean_of_its_cells_less_that_of_its_control_cells(adata):
    cells, changes = measured(thinned(adata))
    table = frame(cells)
    means, sizes = table.groupby(level=[0, 1, 2]).mean(), table.groupby(level=[0, 1, 2]).size()
    keys = keys_of(cells, changes)
    assert sorted(keys) == [key for key in means.index if key[0] != "control"]
    assert len({*changes.sizes}) > 3
    for i, (label, *context) in enumerate(keys):
        wanted = means.loc[label, *context] - means.loc["control", *context]
        np.testing.assert_allclose(changes.changes[i], wanted, atol=1e-5)
        assert changes.sizes[i] == sizes[label, *context]
    for name, mean in zip(changes.contexts, changes.means, strict=True):
        np.testing.assert_allclose(mean, means.loc["control", *name], atol=1e-5)


def test_halves_of_a_conditions_cells_differ_by_as_much_noise_as_its_change_has(adata):
    """Over conditions and genes, and along any direction, where the noise of genes goes together."""
    ratios, along = [], []
    for seed in range(20):
        cells, changes = measured(thinned(adata[np.random.default_rng(seed).permutation(adata.n_obs)].copy(), seed))
        groups = frame(cells).groupby(level=[0, 1, 2])
        of_means = groups.var(ddof=1).div(groups.size(), axis=0)
        noise = sum(
            of_means.loc[key].sum() + of_means.loc["control", *key[1:]].sum() for key in keys_of(cells, changes)
        )
        ratios.append(np.square(changes.halves).sum() / noise)
        along.append(changes.halves.sum(axis=1))
    assert np.mean(ratios) == pytest.approx(1, abs=0.1)
    assert np.abs(np.mean(along)) < 4 * np.std(along) / np.sqrt(np.size(along))


def test_the_noise_of_a_change_is_that_of_both_means(adata):
    cells, changes = measured(thinned(adata))
    table = frame(cells)
    squares = table.groupby(level=[0, 1, 2]).var(ddof=1)
    sizes = table.groupby(level=[0, 1, 2]).size()
    larger = 0
    for i, (label, *context) in enumerate(keys_of(cells, changes)):
        beside = [key for key in sizes.index if key[0] != "control" and [*key[1:]] == context]
        free = sizes[beside] - 1
        spread = (squares.loc[beside].to_numpy() * free.to_numpy()[:, None]).sum(axis=0) / free.sum()
        own = squares.loc[label, *context].to_numpy()
        larger += (own > spread).sum()
        control = squares.loc["control", *context].to_numpy() / sizes["control", *context]
        wanted = np.maximum(own, spread) / sizes[label, *context] + control
        np.testing.assert_allclose(changes.noise[i], wanted, rtol=1e-4, atol=1e-6)
    assert 0.1 < larger / changes.noise.size < 0.9


def test_the_noise_is_at_least_how_far_changes_of_halves_of_the_cells_lie_apart_and_little_more(adata):
    rng, ratios = np.random.default_rng(0), []
    for _ in range(40):
        first = rng.random(adata.n_obs) < 0.5
        _, one = measured(adata[first].copy())
        _, other = measured(adata[~first].copy())
        if not np.array_equal(one.label * 100 + one.context, other.label * 100 + other.context):
            continue  # a group of a half has a single cell
        apart = np.square(one.changes - other.changes).sum(axis=1)
        ratios.append(apart.sum() / (one.noise + other.noise).sum())
    assert len(ratios) > 10
    # two random halves of some cells lie as far apart as two samples
    assert 0.7 < np.mean(ratios) < 1.05


def test_the_scale_of_training_is_no_part_of_the_changes(adata):
    _, one = measured(adata, scale=1.0)
    _, other = measured(adata, scale=7.0)
    for name, values in one.arrays().items():
        np.testing.assert_allclose(other.arrays()[name], values, rtol=1e-4, atol=1e-6, err_msg=name)
    assert one.contexts == other.contexts
    for carried, wanted in ((other.within, one.within), (other.across, one.across)):
        assert carried == pytest.approx(wanted, rel=1e-4)


def test_the_null_and_the_control_have_no_change_though_control_cells_train(adata):
    for share in (0.0, 0.3):
        cells, changes = measured(adata, control_share=share)
        known = Vocabulary.from_labels("perturbation", cells.labels["perturbation"])
        assert set(changes.label) == {known.index(label) for label in known.labels} - {known.index("control")}
        pooled = changes.pooled(len(known))
        assert pooled.shape == (len(known) + 1, adata.n_vars)
        assert not pooled[[0, known.index("control")]].any()


def test_a_perturbation_that_does_nothing_is_expected_to_do_next_to_nothing_and_others_are_kept(adata):
    changed = adata.copy()
    label = changed.obs["perturbation"].astype(str).to_numpy()
    label[np.flatnonzero(label == "control")[::4]] = "placebo"
    changed.obs["perturbation"] = label
    cells, changes = measured(changed)
    known = Vocabulary.from_labels("perturbation", cells.labels["perturbation"])
    kept, sizes = {}, changes.pooled(len(known))
    for name in known.labels:
        if name != "control":
            found = [
                changes.expected(known.index(name), changes.similarity(mean), place)
                for place, mean in enumerate(changes.means)
            ]
            kept[name] = np.linalg.norm(np.mean(found, axis=0)) / np.linalg.norm(sizes[known.index(name)])
    assert kept.pop("placebo") < 0.4
    assert min(kept.values()) > 0.7


def test_a_condition_of_very_many_cells_is_measured_on_some_of_them_and_counts_by_all(adata, monkeypatch):
    _, whole = measured(adata)
    monkeypatch.setattr(module, "CELLS_PER_CONDITION", 4)
    _, some = measured(adata)
    np.testing.assert_array_equal(some.sizes, whole.sizes)
    np.testing.assert_array_equal(some.label, whole.label)
    assert not np.allclose(some.changes, whole.changes)
    # the noise is that of the cells that were read
    assert (some.noise.sum(axis=1) > 1.2 * whole.noise.sum(axis=1)).all()


def test_slabs_of_cells_that_are_read_together_change_no_number(adata, monkeypatch):
    _, whole = measured(adata)
    monkeypatch.setattr(module, "SLAB", 1)
    monkeypatch.setattr(module, "BLOCK", 7)
    _, parts = measured(adata)
    for name, values in whole.arrays().items():
        np.testing.assert_allclose(parts.arrays()[name], values, rtol=1e-5, atol=1e-6, err_msg=name)


def test_where_conditions_are_too_many_those_of_a_cell_type_are_one(adata, monkeypatch):
    monkeypatch.setattr(contexts, "MOST_CONDITIONS", 9)
    cells, changes = measured(thinned(adata))
    assert changes.contexts == (("type_1", ""), ("type_2", ""), ("type_3", ""))
    table = frame(cells)
    means, sizes = table.groupby(level=[0, 1, 2]).mean(), table.groupby(level=[0, 1, 2]).size()
    own = means.drop("control") - means.loc["control"].reindex(means.drop("control").index.droplevel(0)).to_numpy()
    for i, (label, kind, _) in enumerate(keys_of(cells, changes)):
        batches = sizes[label, kind]
        wanted = (own.loc[label, kind].to_numpy() * batches.to_numpy()[:, None]).sum(axis=0) / batches.sum()
        np.testing.assert_allclose(changes.changes[i], wanted, atol=1e-5)
        assert changes.sizes[i] == batches.sum()


def test_data_without_cell_types_or_assay_batches_are_one_context(adata):
    cells, changes = measured(adata, columns=Columns(perturbation="perturbation"))
    assert changes.contexts == (("", ""),)
    table = frame(cells)
    wanted = table.loc["stimulus_1"].mean() - table.loc["control"].mean()
    row = [label for label, *_ in keys_of(cells, changes)].index("stimulus_1")
    np.testing.assert_allclose(changes.changes[row], wanted, atol=1e-5)
    assert changes.within == changes.across == contexts.CARRIED == (np.inf, 1.0)
