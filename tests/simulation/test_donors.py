"""What is hidden of simulated donors has the law that is asked for, and leaves all else as it is."""

import numpy as np
import pytest

from perturbdiff.simulation.donors import Donors, draw_eta
from perturbdiff.simulation.screen import simulate

SMALL = {"n_genes": 80, "n_cell_types": 2, "n_assay_batches": 6, "n_perturbations": 2, "cells_per_group": 10}


def eta(n=4000, **law):
    return draw_eta(Donors(**law), n, 2, np.random.default_rng(0))


def test_by_default_one_normal_number_a_donor_and_perturbation():
    both, u = eta(sd=0.5)
    assert np.log(both).std() == pytest.approx(0.5, rel=0.05)
    np.testing.assert_array_equal(both[..., 0], both[..., 1])
    assert abs(np.corrcoef(np.log(both[..., 0].T))[0, 1]) < 0.05
    assert not u.any()


def test_two_programmes_have_numbers_of_their_own():
    both = np.log(eta(sd=0.5, hidden="two programmes")[0])
    assert both.std(axis=0) == pytest.approx(np.full((2, 2), 0.5), rel=0.05)
    assert abs(np.corrcoef(both[:, 0].T)[0, 1]) < 0.05


def test_two_kinds_of_donors_are_two_numbers():
    both = np.log(eta(sd=0.5, hidden="two kinds")[0])
    assert sorted(set(np.round(both.ravel(), 9))) == [-0.5, 0.5]
    assert (both > 0).mean() == pytest.approx(0.5, abs=0.03)


def test_what_is_told_is_one_number_for_all_perturbations():
    both, u = eta(sd=0.5, told=0.64)
    for perturbation in (0, 1):
        assert np.corrcoef(np.log(both[:, perturbation, 0]), u)[0, 1] == pytest.approx(0.8, abs=0.03)
    assert np.log(both).std() == pytest.approx(0.5, rel=0.05)


def test_control_cells_tell_what_is_told():
    adata = simulate("interaction", **SMALL | {"n_assay_batches": 40}, donors=Donors(sd=0.5, told=1.0), seed=0)
    u = np.log(adata.uns["truth"]["response_of_batch"][:, 0])
    counts = adata.X.toarray()
    x = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    batch = adata.obs["assay_batch"].str.removeprefix("donor_").astype(int).to_numpy() - 1
    control = (adata.obs["perturbation"] == "control").to_numpy()
    means = np.array([x[control & (batch == k)].mean(axis=0) for k in range(40)])
    correlations = [np.corrcoef(column, u)[0, 1] for column in means.T if column.std() > 0]
    assert np.sort(np.abs(correlations))[-8:].min() > 0.8


def test_donors_that_differ_otherwise_leave_the_control_cells_as_they_are():
    one = simulate("interaction", **SMALL, seed=1)
    other = simulate("interaction", **SMALL, donors=Donors(sd=1.0), seed=1)
    control = (one.obs["perturbation"] == "control").to_numpy()
    np.testing.assert_array_equal(one.uns["truth"]["log_batch_effect"], other.uns["truth"]["log_batch_effect"])
    assert (one.X[control] != other.X[control]).mean() < 0.02 or one.obs.equals(other.obs)
    both = simulate("interaction", **SMALL, donors=Donors(hidden="two programmes"), seed=1)
    assert both.uns["truth"]["response_of_batch"].shape == (6, 2, 2)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sd": -1.0}, r"sd=-1\.0 is a standard deviation and must be at least 0"),
        ({"told": 1.5}, r"told=1\.5 is a share of variance"),
        ({"hidden": "three"}, "hidden='three' is unknown; choose of 'strength', 'two programmes', 'two kinds'"),
    ],
)
def test_what_is_no_law_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        simulate("interaction", **SMALL, donors=Donors(**wrong), seed=0)
