"""What a model can be asked: the order of labels and agents, what is refused, and features that stand for labels."""

import re

import numpy as np
import pytest
import torch

from perturbdiff.core.choices import COVARIATES
from perturbdiff.core.conditioning import Covariate, Novelty
from perturbdiff.features.tables import FeatureTable, features_from
from perturbdiff.labels.conditions import NARROWEST, Conditions
from perturbdiff.labels.dose import Quantity
from perturbdiff.labels.vocabulary import Vocabulary
from perturbdiff.recipes.dataset import Grammar

SUMS = Grammar(separator="+", modality_separator="|")
LISTS = Grammar(doses=True, separator="+")
KNOWN, NEW_SET, NEW_AGENT = (int(one) for one in Novelty)


def table(labels, *, width=3, seed=0, shuffle=None) -> FeatureTable:
    """Features that are far from centred, each label's the same whichever labels stand beside it."""
    values = [np.random.default_rng([seed, *label.encode()]).normal(4.0, 3.0, width) for label in labels]
    order = list(range(len(labels))) if shuffle is None else shuffle.permutation(len(labels)).tolist()
    return features_from([labels[i] for i in order], np.array(values)[order], "here")


def conditions(perturbation, *, cell_type=(), assay_batch=(), features=None, **more) -> Conditions:
    labels = {"perturbation": perturbation, "cell_type": cell_type, "assay_batch": assay_batch}
    trained = {name: Vocabulary(name, tuple(sorted(labels[name]))) for name in COVARIATES}
    return Conditions(trained, control=more.pop("control", "ctrl"), features=features or {}, **more)


def plain(**more) -> Conditions:
    return conditions(("ctrl", "STAT1", "JAK2"), cell_type=("B", "T"), assay_batch=("d1",), **more)


def sums(**more) -> Conditions:
    return conditions(("ctrl", "A|KO", "B|KO", "B|KO+A|KO", "A|CRISPRa"), grammar=SUMS, **more)


def lists(**more) -> Conditions:
    labels = ("ctrl", "[('a', 1, 'uM')]", "[('a', 10, 'uM')]", "[('b', 100, 'nM')]", "[('a', 1, 'uM'), ('b', 1, 'uM')]")
    return conditions(labels, grammar=LISTS, **more)


# order


def test_labels_that_training_has_seen_come_first_then_those_that_were_asked():
    asked = plain(features={"perturbation": table(["STAT1", "IRF1", "CUL3", "JAK2"])}).asking(["IRF1", "CUL3", "IRF1"])
    assert asked.vocabularies["perturbation"].labels == ("JAK2", "STAT1", "ctrl", "IRF1", "CUL3")
    assert asked.trained_agents == ("JAK2", "STAT1", "ctrl")
    assert asked.agents == ("JAK2", "STAT1", "ctrl", "CUL3", "IRF1")
    # asking again adds to it, and changes no index that there was
    more = asked.asking(["STAT1", "", "IRF1"])
    assert more.vocabularies == asked.vocabularies


def test_agents_are_sorted_as_text_whatever_the_labels_they_are_in():
    assert sums().trained_agents == ("A", "B", "ctrl")
    assert sums().modalities == ("CRISPRa", "KO")
    assert lists().trained_agents == ("a", "b", "ctrl")
    assert lists().dimensions == ("nM",)
    assert lists().doses == {
        "a": [Quantity(1000, "nM"), Quantity(10000, "nM")],
        "b": [Quantity(100, "nM"), Quantity(1000, "nM")],
    }
    assert plain().doses == {}


def test_cell_types_beyond_training_have_indices_where_they_have_features_and_are_the_null_elsewhere():
    known = plain(features={"cell_type": table(["NK", "T", "B", "DC"])})
    types, batches = known.vocabularies["cell_type"], known.vocabularies["assay_batch"]
    assert types.labels == ("B", "T", "DC", "NK")
    assert [types.index(label) for label in ("B", "T", "DC", "NK", "mast", "")] == [1, 2, 3, 4, 0, 0]
    assert [batches.index(label) for label in ("d1", "d2")] == [1, 0]
    assert known.covariates()[1].n_trained == 2
    with pytest.raises(ValueError, match="perturbation 'mast' is not one of the 3 labels"):
        known.vocabularies["perturbation"].index("mast")


# asking


def test_a_plain_label_that_training_has_not_seen_is_refused_with_the_nearest():
    sentence = (
        "perturbation 'STAT2' is not one of the 3 labels known here; the nearest is 'STAT1', and the empty label "
        "stands for the trained null."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        plain().asking(["JAK2", "STAT2"])
    known = plain(features={"perturbation": table(["IRF1", "STAT1"])})
    sentence = (
        "perturbation 'IRF2' is not one of the 3 labels known here, and no features stand for it; the nearest is "
        "'IRF1', or give features of it."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        known.check("IRF2")


def test_a_plain_label_is_one_agent_to_the_letter_blanks_included():
    known = conditions(("ctrl", " A", "A"), features={"perturbation": table([" A", "A", "B "])}).asking(["B "])
    assert known.agents == (" A", "A", "ctrl", "B ")
    first = known.covariates()[0]
    assert first.members.agent.flatten().tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="'B' is not one of the 3 labels"):
        known.check("B")


@pytest.mark.parametrize(
    ("label", "novelty"),
    [
        ("B|KO", KNOWN),
        ("A|KO+B|KO", KNOWN),  # spelt in another way
        ("B|CRISPRa", NEW_SET),
        ("A|KO+B|CRISPRa", NEW_SET),
        ("C|KO", NEW_AGENT),
        ("A|KO+C|KO", NEW_AGENT),
    ],
)
def test_what_is_made_of_what_is_known_can_be_asked_and_is_as_new_as_it_is(label, novelty):
    asked = sums(features={"perturbation": table(["A", "B", "C"])}).asking([label])
    first, index = asked.covariates()[0], asked.vocabularies["perturbation"].index(label)
    assert first.novelty[:, index].unique().tolist() == [novelty]
    assert len(asked.asked) == (label != "B|KO")


@pytest.mark.parametrize(
    ("made", "label", "sentence"),
    [
        (
            sums,
            "A+D|KO",
            r"'A\+D|KO' has the agent 'D', which is not one of the 5 labels known here; there are 'A', 'B', or",
        ),
        (sums, "a|KO", r"has the agent 'a', which .*; the nearest is 'A', or give features of it.$"),
        (sums, "A|CRISPRi", "has the modality 'CRISPRi', which training has not seen; the nearest is 'CRISPRa'.$"),
        (sums, "A+B", "has no modality, which training has not seen; there are 'CRISPRa', 'KO'.$"),
        (sums, "A+", "has a member without a name"),
        (
            lists,
            "[('a', 1, 'mg/mL')]",
            "has a dose in ng/mL, and training has seen doses in nM only, which are not conv",
        ),
        (lists, "[('a', 0, 'uM')]", "a dose is a number above 0"),
        (lists, "a", "is not a list"),
        (
            lists,
            "[('c', 1, 'uM')]",
            "has the agent 'c', which is not one of the 5 labels known here; there are 'a', 'b'",
        ),
    ],
)
def test_what_is_not_made_of_what_is_known_is_refused(made, label, sentence):
    with pytest.raises(ValueError, match=sentence):
        made().asking([label])


def test_a_modality_is_refused_where_training_has_seen_none_and_so_is_a_dose_or_the_lack_of_one():
    none = conditions(("ctrl", "A", "B"), grammar=SUMS)
    with pytest.raises(
        ValueError, match=r"has the modality 'KO', which training has not seen; there are none to choose"
    ):
        none.check("A|KO")
    undosed = conditions(("ctrl",), grammar=LISTS, features={"perturbation": table(["c"])})
    with pytest.raises(ValueError, match="has a dose, and training has seen none; leave the dose out"):
        undosed.check("[('c', 1, 'uM')]")


def test_another_label_of_no_perturbation_is_the_control():
    grammar = LISTS.model_copy(update={"nothing": ("DMSO",)})
    asked = conditions(("ctrl", "[('a', 1, 'uM')]"), grammar=grammar).asking(["[('DMSO', 0, 'uM')]"])
    first, place = asked.covariates()[0], asked.vocabularies["perturbation"].index
    vehicle, control = place("[('DMSO', 0, 'uM')]"), place("ctrl")
    assert torch.equal(first.members.agent[vehicle], first.members.agent[control])
    assert not first.novelty[:, vehicle].any()
    assert torch.equal(asked.weights[:, vehicle], asked.weights[:, control])


def test_the_empty_label_and_the_control_can_always_be_asked():
    for made in (plain, sums, lists):
        assert made().asking(["", "ctrl"]).asked == ()


# tensors


def test_features_are_centred_and_scaled_by_the_rows_of_training_alone():
    features = table(["STAT1", "JAK2", "IRF1", "CUL3"])
    first = plain(features={"perturbation": features}).covariates()[0]
    seen = features.rows(["JAK2", "STAT1"]).astype(np.float64)
    centre = seen.mean(axis=0)
    spread = np.sqrt(np.square(seen - centre).mean())
    # the null, JAK2, STAT1, the control (which has none), CUL3 and IRF1
    wanted = np.zeros((6, 3))
    wanted[[1, 2, 4, 5]] = (features.rows(["JAK2", "STAT1", "CUL3", "IRF1"]) - centre) / spread
    np.testing.assert_allclose(first.features.numpy(), wanted, rtol=1e-5, atol=1e-6)
    assert first.has_features.tolist() == [False, True, True, False, True, True]
    assert first.n_trained == 3
    more = plain(features={"perturbation": table(["STAT1", "JAK2", "IRF1", "CUL3", "GATA1"])}).covariates()[0]
    assert torch.equal(more.features[:4], first.features[:4])


def test_features_of_one_trained_label_are_centred_and_of_none_are_left_as_they_are():
    one = plain(features={"perturbation": table(["STAT1", "IRF1"])}).covariates()[0]
    rows = table(["STAT1", "IRF1"]).rows(["STAT1", "IRF1"])
    assert not one.features[2].any()
    np.testing.assert_allclose(one.features[4], rows[1] - rows[0], rtol=1e-6)
    none = plain(features={"cell_type": table(["NK"])}).covariates()[1]
    np.testing.assert_array_equal(none.features[3], table(["NK"]).rows(["NK"])[0])
    assert none.has_features.tolist() == [False, False, False, True]


def test_features_in_any_other_unit_or_from_any_other_origin_are_the_same():
    known = ["STAT1", "JAK2", "IRF1"]
    moved = features_from(known, 20.0 * table(known).rows(known).astype(np.float64) - 7.0, "elsewhere")
    one, other = (plain(features={"perturbation": each}).covariates()[0] for each in (table(known), moved))
    torch.testing.assert_close(one.features, other.features, rtol=1e-4, atol=1e-5)


def test_the_order_of_the_rows_of_a_table_and_of_the_labels_does_not_matter_to_the_last_bit(rng):
    agents, types = ["A", "B", "C", "D"], ["B", "T", "NK"]
    asked = ["C|KO", "A|CRISPRa+D|KO"]

    def tensors(shuffle):
        features = {"perturbation": table(agents, shuffle=shuffle), "cell_type": table(types, shuffle=shuffle)}
        made = sums(cell_type=("T", "B"), features=features).asking(asked)
        return made.covariates(), made.weights

    (ones, expected), (others, again) = tensors(None), tensors(rng)
    assert torch.equal(expected, again)
    for one, other in zip(ones, others, strict=True):
        assert (one.n_trained, one.learned, one.n_modalities) == (other.n_trained, other.learned, other.n_modalities)
        for a, b in (
            (one.features, other.features),
            (one.has_features, other.has_features),
            (one.novelty, other.novelty),
        ):
            assert (a is b is None) or torch.equal(a, b)
    assert all(map(torch.equal, ones[0].members, others[0].members))


def test_the_members_of_a_label_are_rows_of_the_tables_of_agents_modalities_and_doses():
    asked = sums(features={"perturbation": table(["A", "C"])}).asking(["C|KO"])
    first = asked.covariates()[0]
    agents, modalities = ["", *asked.agents], ["", *asked.modalities]
    assert first.n_modalities == 2
    assert first.members.dose.shape == (7, 2, 0)
    for label, agent, modality, exists in zip(
        ["", *asked.vocabularies["perturbation"].labels], *first.members[:2], first.members.exists, strict=True
    ):
        found = [f"{agents[a]}|{modalities[m]}".removesuffix("|") for a, m in zip(agent, modality, strict=True)]
        assert sorted(one for one, there in zip(found, exists, strict=True) if there) == sorted(label.split("+"))


def test_doses_are_logarithms_centred_and_scaled_by_those_of_training_with_a_one_for_their_dimension():
    asked = lists().asking(["[('b', 1, 'mM')]"])
    place, doses = asked.vocabularies["perturbation"].index, asked.covariates()[0].members.dose
    logs = np.array([2.0, 3.0, 4.0])  # 100 nM, 1 uM and 10 uM, each once
    for label, log in [("[('b', 100, 'nM')]", 2), ("[('a', 10, 'uM')]", 4), ("[('b', 1, 'mM')]", 6)]:
        row = doses[place(label)]
        assert row[0].tolist() == pytest.approx([(log - logs.mean()) / logs.std(), 1.0], abs=1e-6)
        assert not row[1].any()
    assert doses[place("[('a', 1, 'uM'), ('b', 1, 'uM')]"), :, 1].tolist() == [1, 1]
    # the null and the control have none
    assert not doses[[0, place("ctrl")]].any()


def test_a_single_dose_is_not_blown_up_and_every_dimension_has_a_place_of_its_own():
    known = conditions(("ctrl", "[('a', 1, 'uM')]", "[('b', 1, 'mg/mL')]"), grammar=LISTS)
    asked = known.asking(["[('a', 10, 'uM')]", "[('a', 1, 'ng/mL')]"])
    assert asked.dimensions == ("nM", "ng/mL")
    doses, place = asked.covariates()[0].members.dose, asked.vocabularies["perturbation"].index
    assert doses[place("[('a', 1, 'uM')]"), 0].tolist() == [0, 1, 0]
    assert doses[place("[('b', 1, 'mg/mL')]"), 0].tolist() == [0, 0, 1]
    assert doses[place("[('a', 10, 'uM')]"), 0].tolist() == pytest.approx([1 / NARROWEST, 1, 0])
    assert doses[place("[('a', 1, 'ng/mL')]"), 0].tolist() == pytest.approx([-6 / NARROWEST, 0, 1])


def test_plain_labels_without_features_are_learned_vectors_and_no_more():
    for one, n_labels in zip(plain().covariates(), (3, 2, 1), strict=True):
        assert one.n_trained == n_labels
        assert (one.features, one.members, one.novelty) == (None, None, None)
    assert plain().weights is None
    fitted = plain().fitted(torch.ones(4, 4))
    assert fitted.fit == plain().fit


def test_data_without_any_covariate_have_nulls_only():
    nothing = conditions((), control=None)
    for one in nothing.covariates():
        assert isinstance(one, Covariate)
        assert one.n_trained == 0
    assert nothing.agents == ()
    assert nothing.weights is None
    assert [vocabulary.index("") for vocabulary in nothing.vocabularies.values()] == [0, 0, 0]
    assert nothing.vocabularies["cell_type"].index("B") == 0
    assert nothing.asking([""]).asked == ()
    with pytest.raises(ValueError, match="'A' is not one of the 0 labels known here; there are none to choose from"):
        nothing.check("A")
    featured = conditions((), control=None, features={"cell_type": table(["B"])}).covariates()[1]
    assert (featured.n_trained, featured.has_features.tolist()) == (0, [False, True])


def test_labels_may_go_without_learned_vectors_by_covariate():
    features = {"perturbation": table(["STAT1"]), "cell_type": table(["B"])}
    first, second, third = plain(features=features, learned=frozenset({"cell_type"})).covariates()
    assert (first.learned, second.learned, third.features) == (False, True, None)


# expectation


def test_the_shift_of_an_asked_label_is_the_sum_of_its_members_on_a_line_between_doses():
    label = "[('a', 3.1622776601683795, 'uM'), ('b', 100, 'nM')]"
    asked = lists().asking([label])
    place = asked.vocabularies["perturbation"].index
    weights = asked.weights[KNOWN, place(label)]
    wanted = torch.zeros(6)
    wanted[[place("[('a', 1, 'uM')]"), place("[('a', 10, 'uM')]")]] = 0.5
    wanted[place("[('b', 100, 'nM')]")] = 1.0
    torch.testing.assert_close(weights, wanted)


def test_the_penalty_is_fitted_on_the_agents_that_have_features():
    agents = [f"G{i}" for i in range(8)]
    known = conditions(("ctrl", *agents), features={"perturbation": table(agents)})
    values = torch.from_numpy(table(agents).rows(agents))
    shifts = torch.cat([torch.zeros(1, 3), values, torch.zeros(1, 3)])  # the null, G0 to G7, the control
    assert known.fitted(shifts).fit.penalty == 0.01
    assert known.fitted(shifts).asking([]).fit.penalty == 0.01


def test_labels_of_one_composition_are_told_apart_by_their_shifts_alone():
    twice = conditions(("ctrl", "A", "B", "A+B", "B+A"), grammar=Grammar(separator="+"))
    first, place = twice.covariates()[0], twice.vocabularies["perturbation"].index
    for column in first.members:
        assert torch.equal(column[place("A+B")], column[place("B+A")])
    expected = twice.weights[KNOWN]
    torch.testing.assert_close(expected, torch.eye(6))
