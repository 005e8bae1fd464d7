"""What labels are made of: every form, in any order of members and any unit, and nothing of it evaluated."""

import os
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perturbdiff.labels.dose import Quantity
from perturbdiff.labels.members import (
    Member,
    at_any_dose,
    composed,
    grammar_of,
    is_plain,
    is_unit,
    labels_from,
    members_of,
    parts_of,
    same_as,
)
from perturbdiff.recipes.dataset import Columns, Grammar, recipe_from_mapping

PLAIN = Grammar()
SUMS = Grammar(separator="+", modality_separator="|", nothing=("ctrl",))
LISTS = Grammar(doses=True, modality_separator="|")
A, B = Member("A"), Member("B")


def nM(amount: float) -> Quantity:  # noqa: N802 - a unit
    return Quantity(amount, "nM")


# the forms


@pytest.mark.parametrize(
    ("label", "members"),
    [
        ("control", ()),
        ("STAT1", (Member("STAT1"),)),
        ("B+A", (A, B)),
        (" B + A ", (A, B)),
        ("KLF1+MAP2K6|CRISPRa", (Member("KLF1", "CRISPRa"), Member("MAP2K6", "CRISPRa"))),
        ("A|CRISPRi+B|CRISPRa", (Member("A", "CRISPRi"), Member("B", "CRISPRa"))),
        ("A|CRISPRi+B", (Member("A", "CRISPRi"), B)),
        ("C+A|CRISPRi+B|CRISPRa", (Member("A", "CRISPRi"), Member("B", "CRISPRa"), Member("C", "CRISPRi"))),
        ("A+A", (A, A)),
        ("A|x+A|y", (Member("A", "x"), Member("A", "y"))),
        ("A|", (A,)),
    ],
)
def test_names_between_separators_are_members_and_a_modality_is_of_all_before_it_that_name_none(label, members):
    assert members_of(label, SUMS, "control") == members


@pytest.mark.parametrize("label", ["A+ctrl", "ctrl+A", "A+control", "A + ctrl"])
def test_what_means_no_perturbation_is_no_member(label):
    assert members_of(label, SUMS, "control") == (A,)
    assert members_of(f"{label}|CRISPRa", SUMS, "control") == (Member("A", "CRISPRa"),)


def test_a_label_of_nothing_at_all_is_the_control():
    assert members_of("ctrl+ctrl", SUMS, "control") == ()
    assert members_of("ctrl", SUMS, None) == ()


def test_members_that_name_no_modality_have_the_recipes():
    grammar = SUMS.model_copy(update={"modality": "KO"})
    assert members_of("A+B|CRISPRa+C", grammar, None) == (
        Member("A", "CRISPRa"),
        Member("B", "CRISPRa"),
        Member("C", "KO"),
    )
    lists = LISTS.model_copy(update={"modality": "drug"})
    assert members_of("[('a', 1, 'nM')]", lists, None) == (Member("a", "drug", nM(1)),)
    assert members_of("[('a', 1, 'nM')]|toxin", lists, None) == (Member("a", "toxin", nM(1)),)


def test_a_list_has_members_at_doses_a_modality_behind_it_and_one_dose_for_names_between_separators():
    assert members_of("[('b', 5.0, 'nM'), ('a', 0.5, 'uM')]", LISTS, None) == (
        Member("a", "", nM(500)),
        Member("b", "", nM(5)),
    )
    assert members_of("[('a', 0.5, 'uM')] | drug", LISTS, None) == (Member("a", "drug", nM(500)),)
    both = LISTS.model_copy(update={"separator": "+"})
    assert members_of("[('b+a', 2, 'nM'), ('c', 3, 'nM')]", both, None) == (
        Member("a", "", nM(2)),
        Member("b", "", nM(2)),
        Member("c", "", nM(3)),
    )
    assert members_of("[('b+a', 2, 'nM')]", LISTS, None) == (Member("b+a", "", nM(2)),)


def test_the_vehicle_in_a_list_may_have_the_dose_0_and_is_no_member():
    grammar = LISTS.model_copy(update={"nothing": ("DMSO",)})
    assert members_of("[('DMSO', 0.0, 'uM'), ('a', 1, 'nM')]", grammar, "untreated") == (Member("a", "", nM(1)),)
    assert members_of("[('DMSO', 0.0, 'uM')]", grammar, "untreated") == ()
    assert members_of("[('DMSO', 0.0, 'uM')]", LISTS, "[('DMSO', 0.0, 'uM')]") == ()


@pytest.mark.parametrize("label", ["A+B|C", " A ", "[('a', 1, 'uM')]", "a_0.5uM", "+", "(|)"])
def test_where_the_recipe_says_nothing_a_label_is_one_agent_to_the_letter(label):
    assert is_plain(PLAIN)
    assert not is_plain(SUMS)
    assert members_of(label, PLAIN, "control") == (Member(label),)


# order


names = st.text(st.characters(categories=("L", "N", "Pd")), min_size=1, max_size=4)
pairs = st.lists(st.tuples(names, st.sampled_from(["KO", "CRISPRa"])), min_size=1, max_size=4)


@given(pairs, st.randoms(use_true_random=False))
def test_members_that_change_places_make_the_same_tuple(members, random):
    grammar = Grammar(separator="+", modality_separator="|")

    def label(some):
        return "+".join(f"{name}|{modality}" for name, modality in some)

    found = members_of(label(members), grammar, None)
    assert found == members_of(label(random.sample(members, len(members))), grammar, None)
    assert sorted(found) == sorted(Member(name, modality) for name, modality in members)


entries = st.lists(
    st.tuples(names, st.integers(1, 10**6), st.sampled_from(["nM", "uM", "mg/mL"])), min_size=1, max_size=4
)


@given(entries, st.randoms(use_true_random=False))
def test_entries_that_change_places_make_the_same_tuple(some, random):
    found = members_of(str(some), LISTS, None)
    assert found == members_of(str(random.sample(some, len(some))), LISTS, None)
    assert len(found) == len(some)


# units


@pytest.mark.parametrize(
    "label",
    [
        "[('a', 500, 'nM')]",
        "[('a', 0.5, 'uM')]",
        "[('a', 0.5, 'µM')]",
        "[('a', 0.5, 'μM')]",
        "[('a', 0.0005, 'mM')]",
        "[('a', 5e-7, 'M')]",
        "[('a', 5E5, 'pM')]",
        "[('a', 0.5000000000000001, 'uM')]",
    ],
)
def test_amounts_of_substance_are_equal_in_every_unit_to_the_last_bit(label):
    assert members_of(label, LISTS, None) == (Member("a", "", nM(500.0)),)


def test_masses_are_equal_in_every_unit_and_are_no_amounts_of_substance():
    masses = ["[('a', 1, 'mg/mL')]", "[('a', 1000, 'ug/ml')]", "[('a', 1e6, 'ng/mL')]", "[('a', 1e9, 'pg/mL')]"]
    assert {members_of(label, LISTS, None) for label in masses} == {(Member("a", "", Quantity(1e6, "ng/mL")),)}


@given(st.integers(1, 10**9), st.integers(-6, 3), st.sampled_from(["pM", "nM", "uM", "mM", "M"]))
def test_an_amount_is_its_number_times_the_powers_of_ten_of_its_unit(number, power, unit):
    (member,) = members_of(f"[('a', {number}e{power}, '{unit}')]", LISTS, None)
    tens = {"pM": -3, "nM": 0, "uM": 3, "mM": 6, "M": 9}[unit]
    assert member.dose == nM(float(Decimal(number).scaleb(power + tens)))


def test_a_text_is_a_unit_or_the_name_of_a_column():
    assert all(is_unit(unit) for unit in ("nM", "uM", "µM", "mg/mL", "ug/ml", " M "))
    assert not any(is_unit(text) for text in ("dose_unit", "um", "", "%"))


# refusals


@pytest.mark.parametrize(
    ("label", "grammar", "sentence"),
    [
        ("A+", SUMS, r"'A\+' has a member without a name; mend the label, or the separator in \[perturbation\]"),
        ("A++B", SUMS, "has a member without a name"),
        ("|CRISPRa", SUMS, "has a member without a name"),
        ("[('', 1, 'uM')]", LISTS, "has a member without a name"),
        (
            "STAT1",
            LISTS,
            r"'STAT1' is not a list of \(drug, dose, unit\), which doses = true says of every label; mend",
        ),
        ("[]", LISTS, "is not a list"),
        ("[('a', 1)]", LISTS, "is not a list"),
        ("[('a', '1', 'uM')]", LISTS, "is not a list"),
        ("[('a', 1, 'uM')] and more", LISTS, "is not a list"),
        ("[('a', 1, 'uM')]and|more", LISTS, "is not a list"),
        ("[('a', 1, '')]", LISTS, r"'a' has the dose 1 without a unit; add one of pM, nM, uM, .*mg/mL"),
        (
            "[('a', 1, 'um')]",
            LISTS,
            "'a' has a dose in the unknown unit 'um'; the nearest is 'uM': convert it to one of",
        ),
        ("[('a', 1, 'mg/l')]", LISTS, "unknown unit 'mg/l'; the nearest is 'mg/mL'"),
        (
            "[('a', 0, 'uM')]",
            LISTS,
            "'a' has the dose '0', and a dose is a number above 0; mend it, and give untreated",
        ),
        ("[('a', 0.0, 'mg/mL')]", LISTS, "is a number above 0"),
        ("[('a', nan, 'uM')]", LISTS, "'a' has the dose 'nan', and a dose is a number above 0"),
        ("[('a', -1, 'uM')]", LISTS, "is a number above 0"),
        ("[('a', inf, 'uM')]", LISTS, "is a number above 0"),
        ("[('a', 1e99, 'uM')]", LISTS, "is a number above 0"),
    ],
)
def test_a_label_that_is_not_of_the_recipes_form_is_refused(label, grammar, sentence):
    with pytest.raises(ValueError, match=sentence):
        members_of(label, grammar, "control")


@pytest.mark.parametrize("call", ["__import__('os').system('x')", "'a' if __import__('os').system('x') else 'b'"])
def test_nothing_in_a_label_is_evaluated(monkeypatch, call):
    ran = []
    monkeypatch.setattr(os, "system", ran.append)
    for label in (f"[({call}, 1, 'uM')]", f"[('a', {call}, 'uM')]", f"[('a', 1, {call})]"):
        with pytest.raises(ValueError, match=r"is not a list|above 0"):
            members_of(label, LISTS, None)
        assert members_of(label, PLAIN, None) == (Member(label),)
        assert at_any_dose("a", [label]) == []
    assert ran == []


# labels from columns


DOSED = Columns(perturbation="drug", dose="dose", dose_unit="uM")
WITH_UNITS = DOSED.model_copy(update={"dose_unit": "unit"})
MODAL = Columns(perturbation="drug", modality="kind")
EVERYTHING = WITH_UNITS.model_copy(update={"modality": "kind"})


def labels(frame: dict, columns: Columns, control: str | None = "DMSO") -> list:
    table = pd.DataFrame(frame)
    found = labels_from(lambda name, key: table[name], columns, control)
    return [None if pd.isna(label) else str(label) for label in found]


def test_a_column_of_doses_makes_lists_in_the_units_of_the_recipe_or_of_a_column():
    frame = {"drug": ["a", "DMSO", "b", "a"], "dose": [0.5, 0.0, 10.0, 2], "unit": ["uM", "uM", "mg/mL", "nM"]}
    assert labels(frame, DOSED) == ["[('a', 0.5, 'uM')]", "DMSO", "[('b', 10, 'uM')]", "[('a', 2, 'uM')]"]
    assert labels(frame, WITH_UNITS) == ["[('a', 0.5, 'uM')]", "DMSO", "[('b', 10, 'mg/mL')]", "[('a', 2, 'nM')]"]


def test_a_column_of_modalities_stands_behind_the_label_where_it_says_something():
    frame = {"drug": ["A", "DMSO", "A", "B"], "kind": ["CRISPRi", "CRISPRi", "CRISPRa", None], "dose": [1, 0, 2, 3]}
    assert labels(frame, MODAL) == ["A|CRISPRi", "DMSO", "A|CRISPRa", "B"]
    frame["unit"] = "nM"
    assert labels(frame, EVERYTHING) == [
        "[('A', 1, 'nM')]|CRISPRi",
        "DMSO",
        "[('A', 2, 'nM')]|CRISPRa",
        "[('B', 3, 'nM')]",
    ]


def test_without_columns_of_doses_and_modalities_the_labels_are_the_column_itself():
    series = pd.Series(["a", None, "b"])
    assert labels_from(lambda name, key: series, Columns(perturbation="drug"), "DMSO") is series


def test_a_combination_has_a_dose_for_each_of_its_drugs_or_one_for_all():
    frame = {"drug": ["a+b", "a+b"], "dose": ["0.1+1.0", "0.5"]}
    one, other = labels(frame, DOSED)
    assert one == "[('a', 0.1, 'uM'), ('b', 1.0, 'uM')]"
    assert other == "[('a+b', 0.5, 'uM')]"
    grammar = Grammar(doses=True, separator="+")
    assert members_of(one, grammar, None) == (Member("a", "", nM(100)), Member("b", "", nM(1000)))
    assert members_of(other, grammar, None) == (Member("a", "", nM(500)), Member("b", "", nM(500)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, object, "Float32", "category"])
def test_doses_are_the_numbers_that_were_written_whatever_holds_them(dtype):
    dose = pd.Series([0.1, np.nan, 3.0, 0.25, 1e-5]).astype(dtype)
    frame = {"drug": ["a", "DMSO", "a", "b", "b"], "dose": dose}
    wanted = ["[('a', 0.1, 'uM')]", "DMSO", "[('a', 3, 'uM')]", "[('b', 0.25, 'uM')]", "[('b', 1e-05, 'uM')]"]
    assert labels(frame, DOSED) == wanted
    assert labels({"drug": ["a"], "dose": [0.1 + 0.2]}, DOSED) == ["[('a', 0.3, 'uM')]"]


def test_equal_doses_are_one_label_and_the_codes_are_those_of_each_cell(rng):
    drug, dose = rng.choice(["a", "b", "DMSO"], 300), rng.choice([0.1, 1.0, 10.0], 300)
    found = labels({"drug": pd.Categorical(drug), "dose": dose}, DOSED)
    wanted = ["DMSO" if name == "DMSO" else f"[('{name}', {n:g}, 'uM')]" for name, n in zip(drug, dose, strict=True)]
    assert found == wanted
    # a part of the cells has the labels that it has among all
    assert labels({"drug": drug[50:90], "dose": dose[50:90]}, DOSED) == found[50:90]


def test_controls_need_no_dose_and_perturbed_cells_do():
    assert labels({"drug": ["DMSO", "a"], "dose": [np.nan, 1]}, DOSED)[0] == "DMSO"
    for missing in (np.nan, None, "", " "):
        with pytest.raises(
            ValueError, match="perturbation 'a' has no dose in some cells, and every perturbed cell needs"
        ):
            labels({"drug": ["DMSO", "a"], "dose": pd.Series([1, missing], dtype=object)}, DOSED)


def test_a_cell_without_a_label_has_none_whatever_its_dose():
    assert labels({"drug": [None, "", " ", "a"], "dose": [1, 1, 1, 1]}, DOSED) == [*[None] * 3, "[('a', 1, 'uM')]"]
    assert labels({"drug": [None, " "], "kind": ["KO", "KO"]}, MODAL) == [None, None]


@pytest.mark.parametrize(
    ("drug", "dose", "unit", "sentence"),
    [
        ("a", 1.0, None, "'a' has the dose 1 without a unit"),
        ("a", 1.0, "um", "unknown unit 'um'; the nearest is 'uM'"),
        ("a", 0.0, "uM", "'a' has the dose '0', and a dose is a number above 0"),
        ("a", -2.0, "uM", "'a' has the dose '-2'"),
        ("a", "low", "uM", "'a' has the dose 'low'"),
        ("a+b", "1+2+3", "uM", r"'a\+b' has 2 members and 3 doses, '1\+2\+3'; give one dose, or one for each member"),
        ("a", "1+2", "uM", "'a' has 1 members and 2 doses"),
    ],
)
def test_doses_that_mean_nothing_are_refused(drug, dose, unit, sentence):
    with pytest.raises(ValueError, match=sentence):
        labels({"drug": [drug], "dose": [dose], "unit": [unit]}, WITH_UNITS)


# round trips


texts = st.text(st.characters(categories=("L", "N", "P", "S", "Zs")), max_size=8).map(str.strip).filter(bool)
alone = texts.filter(lambda text: "+" not in text)
numbers = st.from_regex(r"[1-9][0-9]{0,4}(\.[0-9]{1,4})?(e-?[1-9])?", fullmatch=True)
units = st.sampled_from(["nM", "uM", "µM", "mM", "mg/mL", "ng/ml"])
modalities = st.text(st.characters(categories=("L", "N", "Pd")), max_size=6)


@given(texts, numbers, units, modalities)
def test_a_composed_label_says_what_it_was_composed_of(name, amount, unit, modality):
    label = composed(name, EVERYTHING, modality, amount, unit)
    wanted = {"perturbation": name, "dose": amount, "dose_unit": unit, "modality": modality}
    assert parts_of(label, EVERYTHING) == wanted
    (member,) = members_of(label, LISTS, None)
    assert (member.agent, member.modality) == (name, modality)
    assert member.dose.amount > 0


@given(st.lists(st.tuples(alone, numbers), min_size=2, max_size=3), units, modalities)
def test_a_composed_combination_says_what_it_was_composed_of(members, unit, modality):
    names, amounts = ("+".join(part) for part in zip(*members, strict=True))
    label = composed(names, EVERYTHING, modality, amounts, unit)
    wanted = {"perturbation": names, "dose": amounts, "dose_unit": unit, "modality": modality}
    assert parts_of(label, EVERYTHING) == wanted
    each = [members_of(composed(name, EVERYTHING, modality, n, unit), LISTS, None)[0] for name, n in members]
    assert sorted(members_of(label, LISTS, None)) == sorted(each)


@given(texts, modalities.filter(bool))
def test_a_label_and_its_modality_are_told_apart_again(name, modality):
    label = composed(name, MODAL, modality, None, None)
    assert parts_of(label, MODAL) == {"perturbation": name, "dose": "", "dose_unit": "", "modality": modality}
    assert members_of(label, Grammar(modality_separator="|"), None) == (Member(name, modality),)


def test_a_label_that_was_not_composed_is_a_perturbation_and_no_more():
    nothing = {"dose": "", "dose_unit": "", "modality": ""}
    for columns in (DOSED, MODAL, Columns(perturbation="drug")):
        assert parts_of("DMSO", columns) == {"perturbation": "DMSO"} | nothing
    assert parts_of("A|B", Columns(perturbation="drug")) == {"perturbation": "A|B"} | nothing


def test_columns_add_to_the_grammar_what_labels_are_composed_of():
    def grammar(columns, **more):
        base = {"name": "x", "control": "DMSO", "expression": {"scale": "counts"}}
        return grammar_of(recipe_from_mapping(base | {"columns": columns.model_dump(exclude_none=True)} | more, "x"))

    assert grammar(Columns(perturbation="drug")) == PLAIN
    assert grammar(DOSED) == Grammar(doses=True)
    assert grammar(EVERYTHING) == LISTS
    assert grammar(MODAL, perturbation={"separator": "+"}) == Grammar(separator="+", modality_separator="|")


# whatever the dose


def test_a_drug_without_its_dose_is_meant_at_every_dose_and_nothing_else_is():
    known = [
        "[('a', 1, 'uM')]",
        "[('a', 2, 'uM')]|CRISPRi",
        "[('b', 1, 'uM')]",
        "[('a', 1, 'uM'), ('b', 1, 'uM')]",
        "[('a+b', 1, 'uM')]",
        "a",
        "a]",
        "",
        "DMSO",
    ]
    assert at_any_dose("a", known) == known[:2]
    assert at_any_dose("a+b", known) == known[3:5]
    for nothing in ("A", "c", "", "DMSO", "b+a"):
        assert at_any_dose(nothing, known) == []


def test_labels_that_mean_the_same_are_named_by_the_known_one_and_no_others_are():
    grammar = Grammar(separator="+", nothing=("ctrl",))
    labels = ["B+A", "A+ctrl", "ctrl+ctrl", "C", "A+B", "+", "a+b"]
    assert same_as(labels, ["A+B", "A", "C"], grammar, "control") == {
        "B+A": "A+B",
        "A+ctrl": "A",
        "ctrl+ctrl": "control",
    }
    assert same_as(["B+A"], ["A+B"], Grammar(), "control") == {}
