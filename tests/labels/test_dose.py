import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perturbdiff.labels.dose import Treatment, identity, treatment_of, without_dose
from perturbdiff.spelling import spelling


def test_a_list_of_drug_dose_and_unit_is_read():
    assert treatment_of("[('DMSO_TF', 0.0, 'uM')]") == Treatment((("dmsotf", Decimal(0), "nM"),))
    assert treatment_of("[('b', 5.0, 'uM'), ('a', 0.5, 'uM')]") == Treatment(
        (("a", Decimal(500), "nM"), ("b", Decimal(5000), "nM"))
    )


@pytest.mark.parametrize(
    "other",
    [
        "[('Drug-1', 500, 'nM')]",
        "[('drug 1', 0.50, 'uM')]",
        '[("DRUG_1", 5e-1, "µM")]',
        "[('drug1', .5, 'μM'),]",
        " [ ( 'drug1' , 0.0005 , 'mM' ) ] ",
        "[('drug1', 5E-7, 'M')]",
        "[('drug1', 0.5000000000000001, 'uM')]",
    ],
)
def test_the_same_dose_of_the_same_drug_has_one_identity(other):
    assert identity(other) == identity("[('drug1', 0.5, 'uM')]")


@pytest.mark.parametrize(
    "other",
    [
        "[('drug1', 5.0, 'uM')]",
        "[('drug1', 0.5, 'mM')]",
        "[('drug1', 0.5, 'ug/mL')]",
        "[('drug1', 0.5, '%')]",
        "[('drug2', 0.5, 'uM')]",
        "[('drug1', 0.5, 'uM'), ('drug2', 0.5, 'uM')]",
        "[('drug1', 0.5, 'uM'), ('drug1', 0.5, 'uM')]",
        "[('drug1', 0.5001, 'uM')]",
    ],
)
def test_another_dose_unit_or_drug_has_another_identity(other):
    assert identity(other) != identity("[('drug1', 0.5, 'uM')]")


def test_mass_and_molar_concentrations_are_kept_apart_and_each_has_its_units():
    assert identity("[('a', 1, 'mg/mL')]") == identity("[('a', 1000, 'µg/ml')]") == identity("[('a', 1e6, 'ng/mL')]")
    assert treatment_of("[('a', 2, 'IU')]").doses == (("a", Decimal(2), "IU"),)


NOT_LISTS = [
    "",
    "[]",
    "[",
    "drug_0.5uM",
    "drug@500nM",
    "('a', 1, 'uM')",
    "['a', 1, 'uM']",
    "[('a', 1)]",
    "[('a', 1, 'uM'), ('b', 2)]",
    "[('a', 1, 'uM') ('b', 2, 'uM')]",
    "[('a', 1, 'uM'),,]",
    "[,('a', 1, 'uM')]",
    "[('a', 1, 'uM',)]",
    "[('a', 1, 'uM')] and more",
    "[('a', 1, 'uM')][0]",
    "[('a', 1, 'uM')",
    "[('a, 1, 'uM')]",
    "[('a' 'b', 1, 'uM')]",
    "[('a', '1', 'uM')]",
    "[('a', 1, uM)]",
    "[('a', -1, 'uM')]",
    "[('a', nan, 'uM')]",
    "[('a', inf, 'uM')]",
    "[('a', True, 'uM')]",
    "[('a', 1_0, 'uM')]",
    "[('a', ٣, 'uM')]",
    "[('a', 1e, 'uM')]",
    "[('a', 1e99999999, 'uM')]",
    "[('a', 1+1, 'uM')]",
    "[('', 1, 'uM')]",
    "[('a', 1, '')]",
    "[(__import__('os').getcwd(), 1, 'uM')]",
]


@pytest.mark.parametrize("label", NOT_LISTS)
def test_any_other_label_is_itself_and_holds_no_dose(label):
    assert treatment_of(label) is None
    assert without_dose(label) is None
    assert identity(label) == spelling(label)


def test_quotes_brackets_and_commas_within_a_name_are_part_of_it():
    label = r"""[("5'-(x, [y])", 1, 'uM'), ('it\'s', 2, 'uM')]"""
    assert [drug for drug, _, _ in treatment_of(label).doses] == ["5xy", "its"]


def test_without_its_dose_a_treatment_is_its_drugs():
    assert without_dose("[('B', 5.0, 'uM'), ('a', 1, 'nM')]") == without_dose("[('A', 2, 'mM'), ('b', 0, 'uM')]")
    assert without_dose("[('a', 1, 'uM')]") != without_dose("[('a', 1, 'uM'), ('b', 1, 'uM')]")


def test_a_list_never_has_the_identity_of_a_plain_label():
    assert identity("[('a', 1, 'uM')]") != spelling(identity("[('a', 1, 'uM')]"))


def test_accents_are_one_letter_however_they_are_encoded():
    assert identity("caf\u00e9") == identity("cafe\u0301")


drugs = st.text(st.characters(categories=("L", "N", "P", "Zs")), max_size=12).filter(spelling)
doses = st.tuples(drugs, st.integers(0, 10**9), st.sampled_from(["nM", "uM", "mM", "ng/mL", "mg/mL", "IU"]))


@given(st.lists(doses, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_the_order_of_drugs_and_the_way_of_writing_do_not_matter(treatment, random):
    shuffled = random.sample(treatment, len(treatment))
    assert treatment_of(str(treatment)) is not None
    assert identity(str(treatment)) == identity(str(shuffled).replace(", ", ","))
    assert without_dose(str(treatment)) == without_dose(str(shuffled))


@given(st.text(st.sampled_from("[]()',\"\\ 0.15eEauM-"), max_size=30))
def test_reading_never_fails_and_agrees_with_itself(label):
    found = treatment_of(label)
    assert (without_dose(label) is None) == (found is None)
    if found is not None:
        again = str([(drug, float(amount), unit) for drug, amount, unit in found.doses])
        assert treatment_of(again) is not None
        assert re.match(r"^ *\[", label)
