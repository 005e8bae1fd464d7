"""Kernel ridge against its closed form, written out."""

import numpy as np
import pytest

from perturbdiff.baselines import kernel
from perturbdiff.baselines.kernel import KernelRidge
from perturbdiff.core.choices import PENALTIES
from perturbdiff.features.tables import features_from

KINDS, TAUS, N_GENES = ["A", "B", "C", "D"], ["p", "q", "r"], 5


@pytest.fixture
def world(make_shifted, trained):
    """Four contexts, three perturbations, a response that is smooth in both; one condition is not trained."""
    rng = np.random.default_rng(0)
    contexts = {kind: 6.0 + rng.normal(size=N_GENES) for kind in KINDS}
    features = features_from([*TAUS, "s"], rng.normal(size=(4, 2)), "a test")
    mix = rng.normal(size=(2, N_GENES))
    shifts = {
        (tau, kind): 0.5 * features.rows([tau])[0] @ mix + 0.2 * contexts[kind]
        for tau in TAUS
        for kind in KINDS
        if (tau, kind) != ("r", "D")
    }
    return trained(make_shifted(shifts, contexts), ["s"], features=features), features, contexts


def by_hand(training, features, condition, context=None, penalty=None):
    """The median bandwidth, the penalty by refits without each condition, the system with an intercept."""
    bulks = training.bulks
    x = np.stack([bulks.context(kind) for _, kind in bulks.conditions])
    p = features.rows([tau for tau, _ in bulks.conditions]).astype(float)
    own = bulks.context(condition[1]) if context is None else context
    f = features.rows([condition[0]])[0].astype(float) if condition[0] in features.labels else p.mean(axis=0)
    x_unit = np.square(x - x.mean(axis=0)).sum(axis=1).mean()
    p_unit = np.square(p - p.mean(axis=0)).sum(axis=1).mean()

    def squared(x1, p1, x2, p2):
        return np.square(x1[:, None] - x2).sum(axis=2) / x_unit + np.square(p1[:, None] - p2).sum(axis=2) / p_unit

    within = squared(x, p, x, p)
    bandwidth = np.sqrt(np.median(within[np.triu_indices(len(x), 1)]))
    k = np.exp(-within / (2 * bandwidth**2))
    point = np.exp(-squared(own[None], f[None], x, p)[0] / (2 * bandwidth**2))
    n = len(k)
    centring = np.eye(n) - 1 / n
    unit = np.trace(centring @ k @ centring) / n

    def solved(rows, at, penalty):
        m = len(rows)
        if np.isinf(penalty):
            return bulks.shifts[rows].mean(axis=0)
        system = np.block(
            [[k[np.ix_(rows, rows)] + penalty * unit * np.eye(m), np.ones((m, 1))], [np.ones((1, m)), np.zeros((1, 1))]]
        )
        solution = np.linalg.solve(system, np.vstack([bulks.shifts[rows], np.zeros((1, N_GENES))]))
        return np.append(at[rows], 1.0) @ solution

    every = np.arange(n)
    errors = [
        sum(np.square(bulks.shifts[i] - solved(every[every != i], k[i], one)).sum() for i in every) for one in PENALTIES
    ]
    best = PENALTIES[int(np.argmin(errors))]
    return solved(every, point, best), bandwidth, best


def test_it_is_the_closed_form_with_the_median_bandwidth_and_the_penalty_by_leaving_one_out(world):
    training, features, _ = world
    found = KernelRidge(training)
    for condition in (("r", "D"), ("p", "A"), ("s", "B")):
        expected, bandwidth, penalty = by_hand(training, features, condition)
        assert found.bandwidth == pytest.approx(bandwidth)
        assert found.penalty == penalty
        assert found.shift(*condition, np.zeros(N_GENES)) == pytest.approx(expected)


def test_the_context_of_a_cell_type_unknown_to_training_is_that_of_the_given_control_cells(world):
    training, features, _ = world
    given = np.full(N_GENES, 6.5)
    expected, *_ = by_hand(training, features, ("q", "new"), context=given)
    assert KernelRidge(training).shift("q", "new", given) == pytest.approx(expected)


def test_given_control_cells_are_of_no_consequence_where_training_knows_the_cell_type(world):
    training, *_ = world
    found = KernelRidge(training)
    one, other = (found.shift("r", "D", np.full(N_GENES, level)) for level in (0.0, 9.0))
    assert one.tolist() == other.tolist()


def test_it_comes_nearer_to_an_untrained_condition_than_the_mean_of_the_perturbation(world):
    training, _, contexts = world
    bulks = training.bulks
    truth = bulks.shifts[bulks.place["r", "A"]] + 0.2 * (contexts["D"] - contexts["A"])
    mean = bulks.mean_shifts[bulks.perturbations.index("r")]
    error = np.abs(KernelRidge(training).shift("r", "D", np.zeros(N_GENES)) - truth).mean()
    assert error < np.abs(mean - truth).mean()


def test_a_perturbation_without_features_stands_at_the_centre_and_is_named(world):
    training, features, _ = world
    found = KernelRidge(training)
    assert found.shift("else", "B", np.zeros(N_GENES)) == pytest.approx(by_hand(training, features, ("else", "B"))[0])
    assert found.remarks(["p", "else"]) == [
        "1 of 2 perturbations have no features ('else') and take what the context alone says."
    ]


def test_of_very_many_conditions_an_even_share_is_regressed_on_and_said(world, monkeypatch):
    monkeypatch.setattr(kernel, "CONDITIONS", 6)
    found = KernelRidge(world[0])
    (remark,) = found.remarks(["p"])
    assert remark == "6 of 11 trained conditions are regressed on, an even share."
    assert np.isfinite(found.shift("p", "A", np.zeros(N_GENES))).all()


def test_one_condition_is_its_own_prediction_everywhere(make_shifted, trained):
    found = KernelRidge(trained(make_shifted({("p", "A"): [1.0, -1.0]}, {"A": [4.0, 4.0], "B": [5.0, 5.0]})))
    for tau, kind in (("p", "A"), ("p", "B"), ("new", "B"), ("p", "new")):
        assert found.shift(tau, kind, np.zeros(2)) == pytest.approx([1.0, -1.0])
