"""The additive baseline sums what members do alone, and says of whom training knows nothing."""

import numpy as np
import pytest

from perturbdiff.baselines.additive import Additive
from perturbdiff.recipes.dataset import Grammar

PLUS = Grammar(separator="+", nothing=("ctrl",))
CONTEXTS = {"B": [4.0, 4.0, 4.0], "T": [6.0, 5.0, 4.0]}
SHIFTS = {
    ("a", "T"): [1.0, 0.0, 0.5],
    ("a", "B"): [2.0, 0.0, 0.0],
    ("b+ctrl", "T"): [0.0, -1.0, 0.25],
    ("a+b", "B"): [9.0, 9.0, 9.0],
    ("c+d", "T"): [9.0, 9.0, 9.0],
}
GIVEN = np.zeros(3)


@pytest.fixture
def additive(make_shifted, trained):
    return Additive(trained(make_shifted(SHIFTS, CONTEXTS), grammar=PLUS))


def test_a_combination_is_exactly_the_sum_of_its_singles_in_either_order(additive):
    for label in ("a+b", "b+a"):
        assert additive.refusal(label, "T") == ""
        assert additive.shift(label, "T", GIVEN) == pytest.approx([1.0, -1.0, 0.75])


def test_a_single_is_that_of_the_cell_type_else_its_mean_over_cell_types(additive):
    assert additive.shift("a", "B", GIVEN) == pytest.approx([2.0, 0.0, 0.0])
    assert additive.shift("a", "NK", GIVEN) == pytest.approx([1.5, 0.0, 0.25])


def test_the_combination_itself_is_not_used_where_training_has_it(additive):
    assert additive.shift("a+b", "B", GIVEN) == pytest.approx([2.0, -1.0, 0.25])


def test_a_member_that_training_has_only_in_combinations_leaves_the_condition_out(additive):
    assert additive.refusal("a+c", "T") == "training has no cells of 'c' alone"
    assert additive.refusal("d+c", "T") == "training has no cells of 'c' and 'd' alone"
    assert additive.refusal("b", "T") == ""


def test_modalities_and_doses_are_members_of_their_own(make_shifted, trained):
    shifts = {("a|CRISPRa", "T"): [1.0, 0.0, 0.0], ("b|CRISPRi", "T"): [0.0, 1.0, 0.0]}
    grammar = Grammar(separator="+", modality_separator="|")
    additive = Additive(trained(make_shifted(shifts, CONTEXTS), grammar=grammar))
    assert additive.shift("a|CRISPRa+b|CRISPRi", "T", GIVEN) == pytest.approx([1.0, 1.0, 0.0])
    assert "'b' by 'CRISPRa' alone" in additive.refusal("a+b|CRISPRa", "T")
    doses = {("[('a', 1.0, 'uM')]", "T"): [1.0, 0.0, 0.0], ("[('b', 1.0, 'uM')]", "T"): [0.0, 1.0, 0.0]}
    additive = Additive(trained(make_shifted(doses, CONTEXTS), grammar=Grammar(doses=True)))
    both = "[('b', 1.0, 'uM'), ('a', 1000, 'nM')]"
    assert additive.shift(both, "T", GIVEN) == pytest.approx([1.0, 1.0, 0.0])
    assert "'a' at 5000 nM alone" in additive.refusal("[('a', 5, 'uM')]", "T")


def test_without_a_grammar_a_label_is_one_agent(make_shifted, trained):
    additive = Additive(trained(make_shifted(SHIFTS, CONTEXTS)))
    assert additive.shift("a+b", "B", GIVEN) == pytest.approx([9.0, 9.0, 9.0])
    assert additive.refusal("a+c", "T") == "training has no cells of 'a+c' alone"
