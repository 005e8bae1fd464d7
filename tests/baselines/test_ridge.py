"""Embeddings, and the ridge on them against numpy's solution."""

import math

import numpy as np
import pytest

from perturbdiff.baselines.embedding import Components, Embedding
from perturbdiff.baselines.regression import PENALTY
from perturbdiff.baselines.ridge import Ridge
from perturbdiff.features.tables import features_from
from perturbdiff.recipes.dataset import Grammar

N_GENES = 14
CONTEXT = {"T": np.full(N_GENES, 9.0)}
GIVEN = np.zeros(N_GENES)
PLUS = Grammar(separator="+")


def world(seed=0, n=13, width=3, noise=0.05):
    """Shifts of perturbations p0, p1, ... that are linear in their features, and the features of one more, "new"."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n + 1, width))
    shifts = features @ rng.normal(size=(width, N_GENES)) + noise * rng.normal(size=(n + 1, N_GENES))
    labels = [*(f"p{i:02d}" for i in range(n)), "new"]
    return dict(zip(labels, shifts, strict=True)), features_from(labels, features, "a test")


def cells_of(make_shifted, shifts):
    return make_shifted({(label, "T"): shift for label, shift in shifts.items() if label != "new"}, CONTEXT)


def test_ridge_on_features_is_numpys_solution_of_the_two_sided_problem(make_shifted, trained):
    shifts, features = world(noise=0.5)
    training = trained(cells_of(make_shifted, shifts), ["new"], features=features)
    ridge = Ridge(training)
    assert ridge.embedding.kind == "features"
    assert math.isfinite(ridge.penalty)
    y = training.bulks.mean_shifts
    p = features.rows(training.bulks.perturbations).astype(float)
    centred = p - p.mean(axis=0)
    g = np.linalg.svd(y - y.mean(axis=0), full_matrices=False)[2][:10].T
    absolute = ridge.penalty * np.square(centred).sum() / len(p)
    # min |vec(Y - b) - (G kron P) vec(W)|^2 + penalty |vec(W)|^2, as least squares on augmented rows
    design = np.kron(g, centred)
    rows = np.vstack([design, np.eye(design.shape[1]) * np.sqrt(absolute)])
    target = np.concatenate([(y - y.mean(axis=0)).ravel(order="F"), np.zeros(design.shape[1])])
    w = np.linalg.lstsq(rows, target, rcond=None)[0].reshape((3, 10), order="F")
    new = features.rows(["new"])[0] - p.mean(axis=0)
    assert ridge.shift("new", "T", GIVEN) == pytest.approx(y.mean(axis=0) + new @ w @ g.T)
    first = centred[0]
    assert ridge.shift("p00", "T", GIVEN) == pytest.approx(y.mean(axis=0) + first @ w @ g.T)


def test_ridge_predicts_a_new_perturbation_from_features_far_better_than_the_mean(make_shifted, trained):
    shifts, features = world()
    ridge = Ridge(trained(cells_of(make_shifted, shifts), ["new"], features=features))
    mean = np.mean([shift for label, shift in shifts.items() if label != "new"], axis=0)
    error = np.abs(ridge.shift("new", "T", GIVEN) - shifts["new"]).mean()
    assert error < 0.1 * np.abs(mean - shifts["new"]).mean()
    assert ridge.remarks(["new"]) == []


def test_features_that_say_nothing_give_a_large_penalty(make_shifted, trained):
    shifts, features = world(n=30)
    rng = np.random.default_rng(5)
    useless = features_from(features.labels, rng.normal(size=(len(features), 3)), "noise")
    assert Ridge(trained(cells_of(make_shifted, shifts), ["new"], features=useless)).penalty >= 3


def test_where_all_is_trained_and_there_are_no_features_every_perturbation_is_a_vector_of_its_own(
    make_shifted, trained
):
    shifts, _ = world(n=6)
    ridge = Ridge(trained(cells_of(make_shifted, shifts), ["p00"]))
    assert (ridge.embedding.kind, ridge.embedding.width, ridge.penalty) == ("members", 6, PENALTY)
    y = np.stack([shift for label, shift in shifts.items() if label != "new"])
    mean = y.mean(axis=0)
    # centred unit vectors have the eigenvalue 1, n - 1 times of n
    expected = mean + (y[0] - mean) / (1 + PENALTY * 5 / 6)
    assert ridge.shift("p00", "T", GIVEN) == pytest.approx(expected, abs=1e-5)


def test_a_perturbation_without_an_embedding_takes_the_mean_and_is_named(make_shifted, trained):
    shifts, features = world(n=6)
    mean = np.mean([shift for label, shift in shifts.items() if label != "new"], axis=0)
    for given, why in ((None, "have members that training has not seen"), (features, "have no features")):
        ridge = Ridge(trained(cells_of(make_shifted, shifts), ["p00", "else"], features=given))
        assert ridge.shift("else", "T", GIVEN) == pytest.approx(mean, abs=1e-5)
        (remark,) = ridge.remarks(["p00", "else"])
        assert remark == f"1 of 2 perturbations {why} ('else') and take the mean shift over all trained perturbations."


def test_trained_perturbations_without_features_do_not_stand_in_the_way(make_shifted, trained):
    shifts, features = world()
    known = [label for label in features.labels if label != "p03"]
    fewer = features_from(known, features.rows(known), "fewer")
    ridge = Ridge(trained(cells_of(make_shifted, shifts), ["new"], features=fewer))
    mean = np.mean([shift for label, shift in shifts.items() if label != "new"], axis=0)
    error = np.abs(ridge.shift("new", "T", GIVEN) - shifts["new"]).mean()
    assert error < 0.15 * np.abs(mean - shifts["new"]).mean()
    assert ridge.shift("p03", "T", GIVEN) == pytest.approx(mean, abs=1e-5)
    assert ridge.embedding.without(["p03", "p04"]) == ["p03"]


def test_members_of_combinations_have_effects_of_their_own(make_shifted, trained):
    rng = np.random.default_rng(3)
    own = dict(zip("abcd", rng.normal(size=(4, N_GENES)), strict=True))
    labels = [*"abcd", "a+b", "c+d", "a+c"]
    shifts = {label: sum(own[one] for one in label.split("+")) for label in labels}
    ridge = Ridge(trained(cells_of(make_shifted, shifts), ["b+d"], grammar=PLUS))
    assert ridge.embedding.kind == "members"
    assert (
        ridge.embedding.vector("b+a").tolist() == (ridge.embedding.vector("a") + ridge.embedding.vector("b")).tolist()
    )
    truth = own["b"] + own["d"]
    mean = np.mean(list(shifts.values()), axis=0)
    assert np.abs(ridge.shift("b+d", "T", GIVEN) - truth).mean() < 0.3 * np.abs(mean - truth).mean()


def test_genes_that_respond_alike_stand_for_new_targets_of_the_panel(make_shifted, trained):
    """Genes 0 to 6 respond as one and so do 7 to 13; who knocks one of them out moves all of its kind."""
    rng = np.random.default_rng(4)
    kind = np.repeat([0, 1], 7)
    shifts = {f"g{i}": -1.0 * (kind == kind[i]) + 0.02 * rng.normal(size=N_GENES) for i in (0, 1, 2, 3, 7, 8, 9, 10)}
    training = trained(cells_of(make_shifted, shifts), ["g4", "g12", "else"])
    ridge = Ridge(training)
    assert ridge.embedding.kind == "loadings"
    axes, spread = Components.of(training.bulks.mean_shifts)
    assert ridge.embedding.vector("g4") == pytest.approx(axes[4] * spread)
    for asked, expected in (("g4", -1.0 * (kind == 0)), ("g12", -1.0 * (kind == 1))):
        assert ridge.shift(asked, "T", GIVEN) == pytest.approx(expected, abs=0.15)
    (remark,) = ridge.remarks(["g4", "else"])
    assert "name no gene of the panel ('else')" in remark
    seen = Ridge(trained(cells_of(make_shifted, shifts), ["g3"]))
    assert seen.embedding.kind == "members"


def test_components_are_those_of_the_singular_value_decomposition_either_way():
    rng = np.random.default_rng(6)
    for shape in ((8, 20), (20, 8)):
        y = rng.normal(size=shape)
        s, vt = np.linalg.svd(y - y.mean(axis=0), full_matrices=False)[1:]
        axes, spread = Components.of(y, 5)
        assert spread == pytest.approx(s[:5] / np.sqrt(shape[0]))
        assert np.abs(np.sum(axes.T * vt[:5], axis=1)) == pytest.approx(np.ones(5))
        assert axes.T @ axes == pytest.approx(np.eye(5), abs=1e-9)
    assert Components.of(y[:1]).axes.shape == (8, 0)
    assert Components.of(np.ones((4, 8))).axes.shape == (8, 0)
    assert Components.of(np.outer(np.arange(4.0), np.ones(8))).axes.shape == (8, 1)


def test_one_trained_perturbation_is_its_own_prediction(make_shifted, trained):
    shifts, features = world(n=1)
    for given in (None, features):
        ridge = Ridge(trained(cells_of(make_shifted, shifts), ["p00", "new"], features=given))
        assert ridge.shift("new", "T", GIVEN) == pytest.approx(shifts["p00"], abs=1e-5)


def test_features_without_any_trained_perturbation_are_of_no_use(make_shifted, trained):
    shifts, _ = world(n=4)
    other = features_from(["new"], np.ones((1, 2)), "new only")
    assert Embedding.of(trained(cells_of(make_shifted, shifts), ["new"], features=other)).kind == "members"


def test_labels_that_mean_no_perturbation_are_the_zero_vector(make_shifted, trained):
    shifts, features = world(n=4)
    cells = cells_of(make_shifted, shifts | {"nothing": np.zeros(N_GENES)})
    for given in (None, features):
        embedding = Embedding.of(trained(cells, ["p00"], grammar=Grammar(nothing=("nothing",)), features=given))
        assert embedding.vector("nothing").tolist() == [0.0] * embedding.width
