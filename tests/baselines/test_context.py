"""The perturbed mean is one response for all; the context mean is exact where contexts and perturbations add up."""

import numpy as np
import pytest

from perturbdiff.baselines.context import ContextMean, PerturbedMean

CONTEXTS = {"B": [4.0, 4.0], "NK": [5.0, 3.0], "T": [6.0, 5.0]}
PART = {"a": np.array([1.0, 0.0]), "b": np.array([-0.5, 0.5]), "c": np.array([0.25, -1.0])}
OWN = {"B": np.array([0.5, 0.5]), "T": np.array([-0.25, 1.0]), "NK": np.array([0.0, 0.125])}
GIVEN = np.zeros(2)


def additive(conditions):
    return {(tau, kind): PART[tau] + OWN[kind] for tau, kind in conditions}


FULL = [(tau, kind) for tau in PART for kind in ("B", "T")]


def test_the_perturbed_mean_is_the_mean_of_all_perturbations_of_the_cell_type(make_shifted, trained):
    mean = PerturbedMean(trained(make_shifted(additive(FULL), CONTEXTS)))
    expected = np.mean(list(PART.values()), axis=0) + OWN["B"]
    assert [mean.shift(tau, "B", GIVEN).tolist() for tau in ("a", "new")] == [pytest.approx(expected)] * 2


def test_in_a_cell_type_never_perturbed_the_perturbed_mean_is_that_of_all_mean_shifts(make_shifted, trained):
    mean = PerturbedMean(trained(make_shifted(additive(FULL), CONTEXTS)))
    expected = np.mean(list(PART.values()), axis=0) + (OWN["B"] + OWN["T"]) / 2
    assert mean.shift("a", "NK", GIVEN) == pytest.approx(expected)


def test_every_perturbation_counts_once_whatever_its_cells(make_cells, trained):
    values = {"control": 2.0, "a": 3.0, "b": 6.0}
    groups = [("control", "T", "", 2), ("a", "T", "", 50), ("b", "T", "", 1)]
    cells = make_cells(groups, lambda tau, *_: [values[tau]], ["g0"])
    assert PerturbedMean(trained(cells)).shift("b", "T", np.zeros(1)) == pytest.approx([2.5])


def test_the_context_mean_is_exact_on_contexts_and_perturbations_that_add_up(make_shifted, trained):
    mean = ContextMean(trained(make_shifted(additive(FULL), CONTEXTS)))
    for tau, kind in FULL:
        assert mean.shift(tau, kind, GIVEN) == pytest.approx(PART[tau] + OWN[kind])


def test_a_perturbation_unseen_in_a_cell_type_takes_that_types_mean_and_its_own_departure(make_shifted, trained):
    # a and b in B and T, c in T only
    conditions = [*additive([("a", "B"), ("b", "B"), *((tau, "T") for tau in PART)]).items()]
    mean = ContextMean(trained(make_shifted(dict(conditions), CONTEXTS)))
    of_b = (PART["a"] + PART["b"]) / 2 + OWN["B"]
    departure = PART["c"] - np.mean(list(PART.values()), axis=0)
    assert mean.shift("c", "B", GIVEN) == pytest.approx(of_b + departure)


def test_in_a_cell_type_never_perturbed_the_context_mean_is_the_mean_shift_on_balanced_data(make_shifted, trained):
    training = trained(make_shifted(additive(FULL), CONTEXTS))
    mean, bulks = ContextMean(training), training.bulks
    assert mean.shift("b", "NK", GIVEN) == pytest.approx(bulks.mean_shifts[bulks.perturbations.index("b")])


def test_a_perturbation_never_seen_takes_the_mean_of_the_context_and_is_named(make_shifted, trained):
    training = trained(make_shifted(additive(FULL), CONTEXTS))
    mean = ContextMean(training)
    assert mean.shift("new", "T", GIVEN) == pytest.approx(PerturbedMean(training).shift("new", "T", GIVEN))
    (remark,) = mean.remarks(["a", "new"])
    assert remark == "1 of 2 perturbations were not in training ('new') and take the mean response of the cell type."
    assert mean.remarks(["a"]) == []
