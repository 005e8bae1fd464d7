import anndata
import numpy as np
import pytest
from scipy.sparse import issparse
from scipy.spatial.distance import cdist

from perturbdiff.simulation.screen import simulate

ENOUGH = {"n_perturbations": 2, "cells_per_group": 100, "control_cells_per_group": 100}


def log_expression(adata):
    counts = adata.X.toarray()
    return np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))


def energy(x, y):
    return cdist(x, y).mean() - cdist(x, x).mean() / 2 - cdist(y, y).mean() / 2


def cells_of(adata, perturbation, cell_type):
    return ((adata.obs["perturbation"] == perturbation) & (adata.obs["cell_type"] == cell_type)).to_numpy()


def ceiling_and_mean_shift(adata, perturbation, held_out="type_4"):
    """Energy distances to half of the observed cells: of the other half, and of control + mean shift of the others."""
    x = log_expression(adata)
    others = sorted(set(adata.obs["cell_type"]) - {held_out})
    shift = np.mean(
        [x[cells_of(adata, perturbation, c)].mean(0) - x[cells_of(adata, "control", c)].mean(0) for c in others],
        axis=0,
    )
    observed = x[cells_of(adata, perturbation, held_out)]
    half, other_half = observed[::2], observed[1::2]
    control = x[cells_of(adata, "control", held_out)][: len(half)]
    return energy(half, other_half), energy(np.maximum(control + shift, 0.0), other_half)


@pytest.mark.parametrize("setting", ["additive", "interaction"])
def test_counts_are_raw_and_every_group_is_full(setting):
    adata = simulate(setting, n_cell_types=3, cells_per_group=5, control_cells_per_group=7, seed=1)
    assert issparse(adata.X)
    assert adata.X.format == "csr"
    np.testing.assert_array_equal(adata.X.data, np.round(adata.X.data))
    assert adata.X.data.min() > 0
    sizes = adata.obs.groupby(["perturbation", "cell_type", "assay_batch"], observed=False).size()
    assert set(sizes["control"]) == {7}
    assert set(sizes.drop("control")) == {5}
    assert adata.shape == (5 * 4 * 3 * 3 + 7 * 3 * 3, 200)


@pytest.mark.parametrize("setting", ["additive", "interaction"])
def test_the_seed_alone_decides(setting):
    first, again, other = (simulate(setting, cells_per_group=4, seed=seed) for seed in (3, 3, 4))
    assert (first.X != again.X).nnz == 0
    assert first.obs.equals(again.obs)
    np.testing.assert_array_equal(first.uns["truth"]["effect"], again.uns["truth"]["effect"])
    assert (first.X != other.X).nnz > 0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_in_the_additive_setting_control_plus_mean_shift_is_near_the_ceiling(seed):
    adata = simulate("additive", **ENOUGH, seed=seed)
    for perturbation in ("stimulus_1", "stimulus_2"):
        ceiling, shifted = ceiling_and_mean_shift(adata, perturbation)
        assert shifted < 3 * ceiling


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_in_the_interaction_setting_control_plus_mean_shift_is_far_from_the_ceiling(seed):
    adata = simulate("interaction", **ENOUGH, seed=seed)
    ceilings, shifted = zip(*(ceiling_and_mean_shift(adata, f"stimulus_{i}") for i in (1, 2)), strict=True)
    assert np.mean(shifted) > 4 * np.mean(ceilings)


@pytest.mark.parametrize("setting", ["additive", "interaction"])
def test_the_observed_change_is_the_true_effect_up_to_count_noise(setting):
    adata = simulate(setting, **ENOUGH, seed=5)
    x, truth = log_expression(adata), adata.uns["truth"]
    for tau, perturbation in enumerate(truth["perturbations"]):
        for c, cell_type in enumerate(truth["cell_types"]):
            change = x[cells_of(adata, perturbation, cell_type)].mean(0)
            change -= x[cells_of(adata, "control", cell_type)].mean(0)
            if np.abs(truth["effect"][tau, c]).max() > 1:
                assert np.corrcoef(change, truth["effect"][tau, c])[0, 1] > 0.95


def test_the_additive_effect_is_alike_in_all_types_and_the_interaction_is_not():
    additive = simulate("additive", cells_per_group=30, seed=0).uns["truth"]["effect"]
    interaction = simulate("interaction", cells_per_group=30, seed=0).uns["truth"]["effect"]

    def spread_over_types(effect):
        return effect.std(axis=1).mean() / np.abs(effect).mean()

    assert spread_over_types(additive) < 0.2
    assert spread_over_types(interaction) > 0.5


def test_the_receptor_in_control_cells_tells_how_strongly_a_type_responds():
    adata = simulate("interaction", n_cell_types=6, cells_per_group=60, control_cells_per_group=200, seed=2)
    x, truth = log_expression(adata), adata.uns["truth"]
    for tau in range(len(truth["perturbations"])):
        gene = adata.var_names.get_loc(truth["receptor_gene"][tau])
        seen = [x[cells_of(adata, "control", c), gene].mean() for c in truth["cell_types"]]
        per_responding_cell = np.abs(truth["effect"][tau]).mean(axis=1) / truth["responding_share"][tau]
        assert np.corrcoef(seen, truth["receptor_level"][:, tau])[0, 1] > 0.8
        assert np.corrcoef(seen, per_responding_cell)[0, 1] > 0.8


def test_the_activation_in_control_cells_tells_the_share_that_responds():
    adata = simulate("interaction", n_cell_types=6, cells_per_group=100, control_cells_per_group=200, seed=2)
    truth = adata.uns["truth"]
    x = log_expression(adata)[:, truth["activation_loading"] > 0]
    log_baseline = (truth["log_baseline"] + truth["log_type_effect"])[:, truth["activation_loading"] > 0]
    seen = [
        (x[cells_of(adata, "control", c)] - baseline).mean()
        for c, baseline in zip(truth["cell_types"], log_baseline, strict=True)
    ]
    assert np.corrcoef(seen, truth["responding_share"].mean(axis=0))[0, 1] > 0.9


def test_the_last_type_resembles_a_relative_more_than_the_mean_of_the_others():
    truth = simulate("interaction", cells_per_group=2, control_cells_per_group=2, seed=9).uns["truth"]
    for level in (*np.log(truth["receptor_level"]).T, truth["activation_of_type"]):
        assert np.abs(level[:-1] - level[-1]).min() < 0.5
    markers = truth["log_type_effect"]
    distance = np.linalg.norm(markers[:-1] - markers[-1], axis=1)
    assert distance.min() < 0.6 * np.median(distance)


def test_silent_genes_stay_silent_under_every_perturbation():
    adata = simulate("interaction", cells_per_group=20, seed=4)
    truth, counts = adata.uns["truth"], adata.X.toarray()
    assert not truth["expressed_in_type"].all()
    for expressed, cell_type in zip(truth["expressed_in_type"], truth["cell_types"], strict=True):
        assert counts[(adata.obs["cell_type"] == cell_type).to_numpy()][:, ~expressed].sum() == 0


def test_the_truth_survives_a_file(tmp_path):
    adata = simulate("interaction", cells_per_group=2, control_cells_per_group=2, seed=0)
    adata.write_h5ad(tmp_path / "simulated.h5ad")
    read = anndata.read_h5ad(tmp_path / "simulated.h5ad")
    np.testing.assert_array_equal(read.uns["truth"]["effect"], adata.uns["truth"]["effect"])
    assert list(read.uns["truth"]["receptor_gene"]) == list(adata.uns["truth"]["receptor_gene"])
    assert (read.X != adata.X).nnz == 0


def test_counts_are_overdispersed_as_declared():
    sizes = {"n_cell_types": 1, "n_assay_batches": 1, "n_perturbations": 1, "cells_per_group": 2}
    adata = simulate("additive", **sizes, control_cells_per_group=4000, seed=0)
    counts, truth = adata.X.toarray(), adata.uns["truth"]
    share = counts / counts.sum(axis=1, keepdims=True)
    plain = (truth["activation_loading"] == 0) & ~np.isin(adata.var_names, truth["receptor_gene"])
    plain &= counts.mean(axis=0) > 20
    poisson = (share.mean(0) / counts.sum(axis=1).mean())[plain]
    dispersion = (share.var(0)[plain] - poisson) / share.mean(0)[plain] ** 2
    assert np.corrcoef(dispersion, truth["dispersion"][plain])[0, 1] > 0.9
    assert dispersion.mean() == pytest.approx(truth["dispersion"][plain].mean(), rel=0.25)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="setting 'linear' is unknown"):
        simulate("linear", seed=0)
    with pytest.raises(ValueError, match="cells_per_group=0"):
        simulate("additive", cells_per_group=0, seed=0)
    with pytest.raises(ValueError, match="n_genes=20 leaves no room"):
        simulate("additive", n_genes=20, seed=0)
