"""What is expected of the unseen, as weights: sums, lines in log dose, regressions, and never a label of itself."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from perturbdiff.core.choices import PENALTIES
from perturbdiff.core.conditioning import Novelty
from perturbdiff.core.expectation import Expectation, Fit, Part, Parts
from perturbdiff.core.ridge import Ridge

KNOWN, NEW_SET, NEW_AGENT = (int(one) for one in Novelty)
CONTROL: Parts = ()


def at(agent: int, dose: float, *, dimension: int = 1) -> Part:
    """An agent at 10^dose."""
    return Part(agent, 0, dose, dimension)


def one(*parts: Part) -> Parts:
    return parts


def singles(*agents: int, modality: int = 0) -> list[Parts]:
    return [(Part(agent, modality),) for agent in agents]


def shares(weights: Tensor | None) -> dict[int, float]:
    """The labels that have weight."""
    assert weights is not None
    return {label: pytest.approx(float(weights[label])) for label in weights.nonzero().flatten().tolist()}


def features_of(n_agents: int, normal, *, width: int = 4) -> Tensor:
    """Of the null and agents 1, 2, ..."""
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), normal(n_agents, width, seed=40)])


# sets


def test_a_set_is_the_sum_of_its_members():
    expected = Expectation([CONTROL, *singles(1, 2, 3)])
    assert shares(expected.of(one(Part(1), Part(3)))) == {2: 1, 4: 1}
    assert shares(expected.of(one(Part(1), Part(2), Part(3)))) == {2: 1, 3: 1, 4: 1}
    assert shares(expected.of(one(Part(2), Part(2)))) == {3: 2}
    assert shares(expected.of(CONTROL)) == {1: 1}


def test_a_set_that_training_has_seen_is_itself_and_not_its_sum():
    expected = Expectation([*singles(1, 2), one(Part(1), Part(2))])
    assert shares(expected.of(one(Part(1), Part(2)))) == {3: 1}


def test_labels_of_one_set_in_several_spellings_share_it():
    expected = Expectation([*singles(1), one(Part(1), Part(2)), one(Part(1), Part(2)), *singles(1)])
    assert shares(expected.of(one(Part(1), Part(2)))) == {2: 0.5, 3: 0.5}
    assert shares(expected.of(one(Part(1)))) == {1: 0.5, 4: 0.5}


# doses


DOSES = [CONTROL, one(at(1, 1.0)), one(at(1, 3.0)), one(at(2, 2.0))]


@pytest.mark.parametrize(
    ("dose", "wanted"),
    [
        (1.0, {2: 1.0}),
        (1.5, {2: 0.75, 3: 0.25}),
        (2.5, {2: 0.25, 3: 0.75}),
        (3.0, {3: 1.0}),
        (3.1, {3: 1.0}),
        (9.0, {3: 1.0}),
        (0.0, {2: 0.1}),
        (-2.0, {2: 0.001}),
    ],
)
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "in a set"])
def test_a_dose_is_on_a_line_in_log_dose_the_highest_above_and_in_proportion_below(dose, wanted, beside):
    parts = one(at(1, dose), at(2, 2.0)) if beside else one(at(1, dose))
    assert shares(Expectation(DOSES).of(parts)) == (wanted | {4: 1.0} if beside else wanted)


def test_over_doses_the_expectation_has_no_step_and_falls_to_nothing():
    expected, shift = Expectation(DOSES), torch.tensor([0.0, 0.0, 2.0, 5.0, 7.0], dtype=torch.float64)
    for edge in (1.0, 3.0):
        below, above = (float(expected.of(one(at(1, edge + step))) @ shift) for step in (-1e-7, 1e-7))
        assert below == pytest.approx(above, abs=1e-5)
    assert float(expected.of(one(at(1, -12.0))) @ shift) == pytest.approx(0, abs=1e-10)


def test_doses_of_another_dimension_or_modality_are_another_matter():
    expected = Expectation([*DOSES, one(at(2, 2.0, dimension=2)), one(Part(3, 1, 2.0, 1))])
    # masses say nothing of molar amounts: of agent 1 in ng/mL only what others do there is known
    assert shares(expected.of(one(at(1, 2.0, dimension=2)))) == {5: 1}
    assert shares(expected.of(one(at(2, 1.0, dimension=2)))) == {5: 0.1}
    assert shares(expected.of(one(Part(1, 1, 2.0, 1)))) == {6: 1}
    assert shares(expected.of(one(at(1, 2.0)))) == {2: 0.5, 3: 0.5}


# agents that training has not seen


def test_without_features_an_unseen_agent_is_the_mean_of_the_seen_in_its_modality():
    expected = Expectation([CONTROL, *singles(1, 2), *singles(3, modality=1), one(Part(1), Part(2))])
    assert shares(expected.of(one(Part(9)))) == {2: 0.5, 3: 0.5}
    assert shares(expected.of(one(Part(9, 1)))) == {4: 1}
    assert shares(expected.of(one(Part(9), Part(1)))) == {2: 1.5, 3: 0.5}


def test_where_no_agent_was_seen_by_itself_a_member_has_its_share_of_the_sets():
    pairs = [one(Part(1, 1), Part(2, 1)), one(Part(3, 1), Part(4, 1))]
    assert shares(Expectation([CONTROL, *pairs]).of(one(Part(5, 1)))) == {2: 0.25, 3: 0.25}
    # of the same modality where there is one
    assert shares(Expectation([*pairs, *singles(6)]).of(one(Part(5, 1)))) == {1: 0.25, 2: 0.25}
    assert shares(Expectation([*pairs, *singles(6)]).of(one(Part(5, 2)))) == {1: 1 / 6, 2: 1 / 6, 3: 1 / 3}


@pytest.mark.parametrize("penalty", [0.01, 1.0, math.inf])
def test_an_unseen_agent_with_features_is_the_regression_on_the_seen_that_have_some(normal, penalty):
    # agent 4 has none, and agent 5 is of another modality
    labels = [CONTROL, *singles(3, 1, 2, 4), *singles(5, modality=1)]
    features = features_of(6, normal)
    expected = Expectation(labels, features, frozenset({1, 2, 3, 5, 6}), Fit(penalty))
    w_1, w_2, w_3 = Ridge(features[[1, 2, 3]]).weights(features[6], penalty).tolist()
    assert shares(expected.of(one(Part(6)))) == {2: w_3, 3: w_1, 4: w_2}
    assert shares(expected.of(one(Part(6), Part(1)))) == {2: w_3, 3: w_1 + 1, 4: w_2}


def test_an_unseen_agent_at_a_dose_is_the_regression_on_the_seen_each_at_that_dose(normal):
    labels = [one(at(1, 1.0)), one(at(1, 3.0)), one(at(2, 0.0)), one(at(3, 4.0))]
    features = features_of(4, normal)
    expected = Expectation(labels, features, frozenset({1, 2, 3, 4}), Fit(0.3))
    w = Ridge(features[[1, 2, 3]]).weights(features[4], 0.3)
    wanted = sum(w[i] * expected.of(one(at(agent, 2.0))) for i, agent in enumerate((1, 2, 3)))
    torch.testing.assert_close(expected.of(one(at(4, 2.0))), wanted)
    assert shares(wanted) == {1: w[0] / 2, 2: w[0] / 2, 3: w[1], 4: w[2] / 100}


def test_features_are_of_no_use_where_no_seen_agent_has_some(normal):
    expected = Expectation([CONTROL, *singles(1, 2)], features_of(3, normal), frozenset({3}))
    assert shares(expected.of(one(Part(3)))) == {2: 0.5, 3: 0.5}


# agents that training has seen in another modality


def test_an_agent_of_another_modality_keeps_its_departure_from_the_others_by_a_ratio(normal):
    s = normal(5, 6, seed=41)
    labels = [*singles(1, 2, 3, 4, 5, modality=1), *singles(1, 2, 3, 4, modality=2)]
    t = 0.7 + 1.6 * (s - 0.2)
    shifts = torch.cat([torch.zeros(1, 6, dtype=torch.float64), s, t[:4]])
    fit = Expectation(labels).fitted(shifts)
    assert fit.ratios == {(1, 2): pytest.approx(1.6), (2, 1): pytest.approx(1 / 1.6)}
    expected = Expectation(labels, fit=fit)
    torch.testing.assert_close(expected.of(one(Part(5, 2))) @ shifts, t[4])
    # and of a label that is taken as new, without itself
    for agent in (1, 2, 3):
        weights = expected.as_new_set(5 + agent)
        assert weights[5 + agent] == 0
        others = [a for a in (1, 2, 3, 4) if a != agent]
        wanted = t[[a - 1 for a in others]].mean(0) + 1.6 * (s[agent - 1] - s[[a - 1 for a in [*others, 5]]].mean(0))
        torch.testing.assert_close(weights @ shifts, wanted)


def test_modalities_that_share_few_agents_say_nothing_of_each_other(normal):
    labels = [*singles(1, 2, 3, modality=1), *singles(1, 2, modality=2)]
    fit = Expectation(labels).fitted(normal(6, 3, seed=42))
    assert fit.ratios == {}
    assert shares(Expectation(labels, fit=fit).of(one(Part(3, 2)))) == {4: 0.5, 5: 0.5}


# labels as if they were new


def test_a_trained_set_as_new_is_its_sum_and_has_no_weight_in_itself():
    expected = Expectation([CONTROL, *singles(1, 2, 3), one(Part(1), Part(2)), one(Part(1), Part(4))])
    assert shares(expected.as_new_set(5)) == {2: 1, 3: 1}
    # agent 4 was never seen by itself; one label has nothing beside it; the control is nothing new
    assert expected.as_new_set(6) is None
    assert expected.as_new_set(2) is None
    assert expected.as_new_set(1) is None


def test_a_trained_dose_as_new_is_what_the_other_doses_say():
    expected = Expectation([*(one(at(1, dose)) for dose in (1.0, 2.0, 4.0)), one(at(2, 1.0))])
    assert shares(expected.as_new_set(1)) == {2: 0.1}
    assert shares(expected.as_new_set(2)) == {1: 2 / 3, 3: 1 / 3}
    assert shares(expected.as_new_set(3)) == {2: 1}
    assert expected.as_new_set(4) is None


def test_a_set_as_new_has_no_weight_in_its_other_spelling_either():
    twice = [*singles(1, 2), one(Part(1), Part(2)), one(Part(1), Part(2))]
    for label in (3, 4):
        assert shares(Expectation(twice).as_new_set(label)) == {1: 1, 2: 1}
    doses = [one(at(1, 1.0)), one(at(1, 1.0)), one(at(1, 3.0))]
    assert shares(Expectation(doses).as_new_set(1)) == {3: 0.01}
    assert shares(Expectation(doses).as_new_set(3)) == {1: 0.5, 2: 0.5}


@pytest.fixture
def featured(normal) -> Expectation:
    """The control, agents 1 to 4 (of which 4 has no features), the sets of 1 and 2 and of 1 and 4; 5 is unseen."""
    labels = [CONTROL, *singles(1, 2, 3, 4), one(Part(1), Part(2)), one(Part(1), Part(4))]
    return Expectation(labels, features_of(5, normal), frozenset({1, 2, 3, 5}), Fit(0.3))


def test_a_trained_agent_as_new_is_the_regression_on_the_others(featured):
    left_out = Ridge(featured.features[[1, 2, 3]]).left_out(0.3)
    for i, label in enumerate((2, 3, 4)):
        weights = featured.as_new_agents(label)
        torch.testing.assert_close(weights[2:5], left_out[i])
        assert weights[label] == 0
        assert not weights[[0, 1, 5, 6, 7]].any()


def test_in_a_set_as_of_new_agents_each_is_left_out_of_its_own_regression_and_of_no_other(featured):
    torch.testing.assert_close(featured.as_new_agents(6), featured.as_new_agents(2) + featured.as_new_agents(3))
    assert featured.as_new_agents(6)[6] == 0
    assert (featured.as_new_agents(6)[2:5] != 0).all()


def test_only_agents_with_features_among_enough_others_can_be_taken_as_new(featured, normal):
    # the control, an agent without features, and a set with such an agent
    assert [featured.as_new_agents(label) for label in (1, 5, 7)] == [None] * 3
    two = Expectation(singles(1, 2), features_of(2, normal), frozenset({1, 2}))
    assert two.as_new_agents(1) is None


def test_no_label_that_is_taken_as_new_has_weight_in_itself_or_the_null(featured):
    weights, novelty = featured.table()
    for novel in (NEW_SET, NEW_AGENT):
        for label in range(1, 8):
            own, taken = weights[novel, label], int(novelty[novel, label])
            assert float(own[label]) == (taken == KNOWN)
            assert own[0] == 0


# the table


def test_the_table_takes_each_label_at_the_novelty_that_it_can_be_taken_at(featured):
    asked = [
        one(Part(1), Part(3)),  # known agents, not together
        one(Part(5)),  # by features only
        one(Part(1), Part(5)),
        one(Part(1), Part(2)),  # a trained set, spelt in another way
        CONTROL,
    ]
    as_they_are = [NEW_SET, NEW_AGENT, NEW_AGENT, KNOWN, KNOWN]
    weights, novelty = featured.table(asked)
    assert weights.shape == (3, 1 + 7 + 5, 1 + 7)
    assert novelty.tolist() == [
        [*([KNOWN] * 8), *as_they_are],
        # 1 to 3 can be taken as new agents, the sets as new sets; 4 has nothing beside it, and no features
        [KNOWN, KNOWN, NEW_AGENT, NEW_AGENT, NEW_AGENT, KNOWN, NEW_SET, NEW_SET, *as_they_are],
        [KNOWN, KNOWN, NEW_AGENT, NEW_AGENT, NEW_AGENT, KNOWN, NEW_AGENT, KNOWN, *as_they_are],
    ]
    torch.testing.assert_close(weights[KNOWN, :8], torch.eye(8))
    for novel in range(3):
        for i, parts in enumerate(asked):
            torch.testing.assert_close(weights[novel, 8 + i], featured.of(parts).float())
        for label in range(8):
            ways = {KNOWN: torch.eye(8)[label]}
            if label:
                ways |= {NEW_SET: featured.as_new_set(label), NEW_AGENT: featured.as_new_agents(label)}
            torch.testing.assert_close(weights[novel, label], ways[int(novelty[novel, label])].float())


def test_a_trained_label_that_is_spelt_in_two_ways_is_known_in_both_and_has_a_shift_of_its_own_in_each():
    weights, novelty = Expectation([*singles(1, 2), one(Part(1), Part(2)), one(Part(1), Part(2))]).table()
    assert not novelty[KNOWN].any()
    assert torch.equal(weights[KNOWN], torch.eye(5))


# what is fitted


def fitted_penalty(labels: Sequence[Parts], features: Tensor, shifts: Tensor) -> float:
    return Expectation(labels, features, frozenset(range(1, len(features)))).fitted(shifts).penalty


@pytest.mark.parametrize("dosed", [False, True])
def test_the_penalty_is_least_for_shifts_that_are_linear_in_features_and_infinite_for_features_that_say_nothing(
    normal, dosed
):
    n, n_genes = 12, 400
    labels = [one(at(agent, 2.0)) if dosed else one(Part(agent)) for agent in range(1, n + 1)]
    features = features_of(n, normal)
    linear, noise = (1.5 + features) @ normal(4, n_genes, seed=43), normal(n + 1, n_genes, seed=44)
    assert fitted_penalty([*labels, CONTROL], features, torch.cat([linear, linear[:1]])) == PENALTIES[0]
    assert fitted_penalty([*labels, CONTROL], features, torch.cat([noise, noise[:1]])) == math.inf


def test_the_penalty_is_the_one_that_left_out_agents_are_predicted_best_with(normal):
    n, n_genes = 12, 60
    features = features_of(n, normal)
    shifts = features @ normal(4, n_genes, seed=43) + 3.0 * normal(n + 1, n_genes, seed=44)
    labels = singles(*range(1, n + 1))

    def error(penalty: float) -> float:
        expected = Expectation(labels, features, frozenset(range(1, n + 1)), Fit(penalty))
        return sum(float((expected.as_new_agents(k) @ shifts - shifts[k]).square().sum()) for k in range(1, n + 1))

    chosen = fitted_penalty(labels, features, shifts)
    assert PENALTIES[0] < chosen < math.inf
    assert chosen == min(PENALTIES, key=error)


def test_where_there_is_nothing_to_fit_on_the_penalty_stays(normal):
    features = features_of(3, normal)
    shifts = normal(3, 5, seed=45)
    for labels in (singles(1, 2), [one(Part(1), Part(2)), one(Part(1), Part(3))]):
        assert fitted_penalty(labels, features, shifts[: len(labels) + 1]) == Fit().penalty


# symmetries


@pytest.mark.parametrize("seed", [0, 1])
def test_the_order_of_labels_and_the_numbers_of_agents_do_not_matter(normal, seed):
    labels = [
        CONTROL,
        *(one(at(agent, dose)) for agent in (1, 2, 3, 4) for dose in (0.0, 1.0, 2.0)),
        one(at(1, 0.0), at(2, 1.0)),
        one(at(5, 1.0)),
    ]
    asked = [one(at(6, 0.5)), one(at(1, 1.0), at(6, 2.0)), one(at(7, 1.0)), one(at(3, -1.0), at(4, 5.0))]
    features, featured, shifts = features_of(7, normal), {1, 2, 3, 4, 6}, normal(len(labels) + 1, 8, seed=46)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator).tolist()
    number = [0, *(1 + torch.randperm(7, generator=generator)).tolist()]

    def renumbered(parts: Parts) -> Parts:
        return tuple(part._replace(agent=number[part.agent]) for part in parts)

    one_way = Expectation(labels, features, frozenset(featured))
    moved = torch.empty_like(features)
    moved[number] = features
    other_way = Expectation(
        [renumbered(labels[i]) for i in order], moved, frozenset(number[agent] for agent in featured)
    )
    rows = [0, *(1 + i for i in order)]
    assert other_way.fitted(shifts[rows]).penalty == one_way.fitted(shifts).penalty
    weights, novelty = one_way.table(asked)
    again, novelty_again = other_way.table([renumbered(parts) for parts in asked])
    rows += range(len(labels) + 1, len(labels) + 1 + len(asked))
    assert torch.equal(novelty_again, novelty[:, rows])
    torch.testing.assert_close(again, weights[:, rows][..., rows[: len(labels) + 1]], rtol=1e-5, atol=1e-6)
