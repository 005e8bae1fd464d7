"""Nearest is nearest: by the control cells of training, else by those that are given."""

import numpy as np
import pytest

from perturbdiff.baselines.nearest import NearestCellType

CONTEXTS = {"A": [1.0, 1.0], "B": [4.0, 1.0], "C": [4.0, 8.0], "new controls": [3.0, 1.5]}
SHIFTS = {
    ("p", "A"): [1.0, 0.0],
    ("p", "B"): [2.0, 0.0],
    ("p", "C"): [3.0, 0.0],
    ("q", "A"): [0.0, 1.0],
    ("q", "C"): [0.0, 3.0],
}


@pytest.fixture
def nearest(make_shifted, trained):
    return NearestCellType(trained(make_shifted(SHIFTS, CONTEXTS)))


def test_the_change_is_that_of_the_nearest_cell_type_that_has_the_perturbation(nearest):
    assert nearest.shift("p", "new controls", np.zeros(2)) == pytest.approx([2.0, 0.0])
    # B is nearest, but has no q
    assert nearest.shift("q", "new controls", np.zeros(2)) == pytest.approx([0.0, 1.0])
    assert nearest.shift("q", "B", np.zeros(2)) == pytest.approx([0.0, 1.0])


def test_nearest_is_nearest_among_all_for_random_contexts(make_shifted, trained):
    rng = np.random.default_rng(0)
    contexts = {f"c{i}": rng.uniform(2, 9, 3) for i in range(8)}
    shifts = {("p", f"c{i}"): [float(i), 0.0, 0.0] for i in range(6)}
    nearest = NearestCellType(trained(make_shifted(shifts, contexts)))
    for asked in ("c6", "c7"):
        distances = [np.linalg.norm(contexts[asked] - contexts[f"c{i}"]) for i in range(6)]
        assert nearest.shift("p", asked, np.zeros(3)) == pytest.approx([np.argmin(distances), 0, 0], abs=1e-5)


def test_a_cell_type_that_has_the_perturbation_is_nearest_to_itself(nearest):
    assert nearest.nearest("p", "A", np.array([4.0, 8.0])) == "A"


def test_a_cell_type_without_training_control_cells_is_placed_by_the_given_ones(nearest):
    assert nearest.nearest("p", "unknown", np.array([4.0, 7.0])) == "C"
    assert nearest.nearest("p", "unknown", np.array([1.0, 0.0])) == "A"


def test_a_perturbation_without_a_relative_is_refused_with_the_reason(nearest):
    assert nearest.refusal("r", "A") == "training has 'r' in no cell type"
    assert nearest.refusal("q", "B") == ""
