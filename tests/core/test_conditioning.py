"""Labels to vectors: every covariate counts, and what is dropped is replaced by the trained null that `null` names.

Labels with features, sets of members, and labels that are taken as if they were new.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from perturbdiff.core.conditioning import Conditioning, Covariate, Encoder, Members, Novelty, SetEncoder
from perturbdiff.core.population import NULL, Condition

LABELS = (4, 3, 2)
everything = torch.ones(3, 3, dtype=torch.bool)


def conditioning(randomise, null: str) -> Conditioning:
    return randomise(Conditioning(LABELS, width=6, embedding_width=3, null=null).double())


def only(*covariates: int) -> Tensor:
    dropped = torch.zeros(3, 3, dtype=torch.bool)
    dropped[:, list(covariates)] = True
    return dropped


@pytest.fixture(params=["covariate", "joint"])
def either(request: pytest.FixtureRequest, randomise) -> Conditioning:
    return conditioning(randomise, request.param)


@pytest.fixture
def of_covariate(randomise) -> Conditioning:
    return conditioning(randomise, "covariate")


@pytest.fixture
def jointly(randomise) -> Conditioning:
    return conditioning(randomise, "joint")


def test_the_vector_is_the_formula(either, make_condition):
    condition = make_condition(3)
    vectors = either(condition)
    for i in range(3):
        row = torch.cat([table.weight[index[i]] for table, index in zip(either.tables, condition, strict=True)])
        mixed = either.mix.weight @ row + either.mix.bias
        wanted = either.project.weight @ (mixed / (1 + torch.exp(-mixed))) + either.project.bias
        torch.testing.assert_close(vectors[i], wanted)


def test_every_combination_of_labels_and_nulls_has_a_vector_of_its_own(either):
    every = torch.cartesian_prod(*(torch.arange(n_labels + 1) for n_labels in LABELS))
    vectors = either(Condition(*every.unbind(dim=1))).detach()
    apart = torch.cdist(vectors, vectors) + torch.eye(len(vectors))
    assert float(apart.min()) > 1e-3


@pytest.mark.parametrize("covariate", [0, 1, 2])
def test_dropping_a_covariate_is_asking_for_its_null_and_leaves_the_others(of_covariate, make_condition, covariate):
    condition = make_condition(3)
    asked = list(condition)
    asked[covariate] = torch.full((3,), NULL)
    dropped = of_covariate(condition, only(covariate))
    assert torch.equal(dropped, of_covariate(Condition(*asked)))
    assert not torch.isclose(dropped, of_covariate(condition)).all(dim=1).any()


def test_coins_are_per_population(of_covariate, make_condition):
    condition = make_condition(3)
    dropped = torch.eye(3, dtype=torch.bool)
    vectors = of_covariate(condition, dropped)
    for i in range(3):
        assert torch.equal(vectors[i], of_covariate(condition, only(i))[i])


def test_the_joint_null_is_one_vector_for_conditions_dropped_as_a_whole(jointly, make_condition):
    condition = make_condition(3)
    dropped = only(0, 1)
    dropped[1] = True
    vectors = jointly(condition, dropped)
    assert torch.equal(vectors[1], jointly.joint_null)
    assert torch.equal(vectors[[0, 2]], jointly(condition)[[0, 2]])


def test_a_condition_that_is_dropped_says_nothing_of_its_labels(either, make_condition):
    condition = make_condition(3)
    other = Condition(*(index.roll(1) for index in condition))
    assert torch.equal(either(condition, everything), either(other, everything))
    assert not torch.equal(either(condition), either(other))


def test_coins_that_drop_nothing_change_nothing(either, make_condition):
    condition = make_condition(3)
    assert torch.equal(either(condition, ~everything), either(condition))


def test_the_mixed_width_is_the_networks_unless_given():
    assert Conditioning(LABELS, width=6, embedding_width=3).mix.out_features == 6
    assert Conditioning(LABELS, width=6, embedding_width=3, mixed_width=11).project.in_features == 11


def test_a_label_that_is_in_no_table_is_an_error(either, make_condition):
    for covariate, n_labels in zip(Condition._fields, LABELS, strict=True):
        unknown = make_condition(3)._replace(**{covariate: torch.full((3,), n_labels + 1)})
        with pytest.raises(IndexError):
            either(unknown)


# labels with features


N_TRAINED, FEATURED = 3, torch.tensor([False, True, False, True, True, True])
"""Of the null and five labels: 1 to 3 are trained, 2 has no features, 4 and 5 have nothing else."""


def given(normal) -> Tensor:
    return normal(6, 4, seed=50).masked_fill(~FEATURED[:, None], 0.0)


@pytest.fixture
def featured(normal) -> Covariate:
    return Covariate(N_TRAINED, given(normal), FEATURED)


@pytest.fixture
def encoder(featured, randomise) -> Encoder:
    return randomise(Encoder(featured, 3).double())


def test_a_label_is_its_learned_vector_and_the_projection_of_its_features(encoder, normal):
    vectors = encoder(torch.arange(6))
    for label in range(6):
        wanted = encoder.projection.weight @ given(normal)[label]
        if label <= N_TRAINED:
            wanted = wanted + encoder.weight[label]
        torch.testing.assert_close(vectors[label], wanted)
    # the null and the label without features are what they learned, to the last bit
    assert torch.equal(vectors[[0, 2]], encoder.weight[[0, 2]])


def test_in_a_new_network_features_speak_alone_where_there_are_some(featured):
    weight = Encoder(featured, 3).weight
    assert not weight[FEATURED[:4]].any()
    assert (weight[~FEATURED[:4]] != 0).all()


def test_labels_with_features_may_have_no_learned_vector_and_others_keep_theirs(featured, randomise, encoder):
    bare = randomise(Encoder(replace(featured, learned=False), 3).double())
    everyone = torch.arange(6)
    assert torch.equal(bare(everyone)[[0, 2]], bare.weight[[0, 2]])
    torch.testing.assert_close(bare(everyone), encoder(everyone, FEATURED))
    grad = torch.autograd.grad(bare(everyone).sum(), bare.weight)[0]
    assert grad.any(dim=1).tolist() == (~FEATURED[:4]).tolist()


def test_as_new_a_label_loses_what_it_learned_only_where_features_remain(encoder):
    everyone = torch.arange(6)
    all_new = encoder(everyone, torch.ones(6, dtype=torch.bool))
    torch.testing.assert_close(all_new[FEATURED], (encoder.features @ encoder.projection.weight.T)[FEATURED])
    assert torch.equal(all_new[~FEATURED], encoder(everyone)[~FEATURED])
    some = encoder(everyone, everyone == 3)
    assert torch.equal(some[:3], encoder(everyone)[:3])
    assert torch.equal(some[3], all_new[3])


def test_a_label_that_has_neither_features_nor_training_is_an_error(encoder):
    with pytest.raises(IndexError):
        encoder(torch.tensor([6]))


def test_a_cell_type_is_taken_as_new_by_its_own_coin(featured, randomise):
    model = randomise(Conditioning([4, featured, replace(featured)], width=6, embedding_width=3).double())
    condition = Condition(*(torch.tensor([1, 3, 3]) for _ in range(3)))
    novel = torch.tensor([[2, 0, 0], [0, 2, 0], [1, 1, 1]])
    vectors, as_they_are = model(condition, None, novel), model(condition)
    # perturbations without features and new sets are as they are
    assert torch.equal(vectors[[0, 2]], as_they_are[[0, 2]])
    rows = [model.tables[0].weight[3], model.tables[1](torch.tensor(3), torch.tensor(True))]
    mixed = model.mix(torch.cat([*rows, model.tables[2](torch.tensor(3))]))
    torch.testing.assert_close(vectors[1], model.project(torch.nn.functional.silu(mixed)))
    assert not torch.allclose(vectors[1], as_they_are[1])


# sets of members


CONTROL, ONE, OTHER, BOTH, AGAIN, LOWER, TURNED, UNSEEN, PARTLY = range(1, 10)
SETS = [
    [(NULL, 0, None)],
    [(1, 0, None)],
    [(2, 1, 0.5)],
    [(3, 2, 0.5)],
    [(2, 1, 0.5), (3, 2, 0.5)],
    [(2, 1, 0.5), (3, 2, 0.5)],
    [(2, 1, -1.0)],
    [(2, 2, 0.5)],
    [(5, 1, 0.5)],
    [(2, 1, 0.5), (5, 1, 0.5)],
]
"""(agent, modality, dose) of the members of every label; agent 1 is the control, agent 5 is not trained."""

NOVELTY = torch.tensor([[0, 0, 0, 0, 0, 0, 0, 0, 2, 2], [0, 0, 1, 0, 1, 1, 1, 1, 2, 2], [0, 0, 2, 2, 2, 2, 2, 2, 2, 2]])


def members(sets=SETS, n_members: int = 2) -> Members:
    padded = [[*one, *([(NULL, 0, None)] * (n_members - len(one)))] for one in sets]
    return Members(
        torch.tensor([[agent for agent, _, _ in one] for one in padded]),
        torch.tensor([[modality for _, modality, _ in one] for one in padded]),
        torch.tensor([[[dose or 0.0, float(dose is not None)] for _, _, dose in one] for one in padded]).double(),
        torch.arange(n_members) < torch.tensor([len(one) for one in sets])[:, None],
    )


@pytest.fixture
def perturbations(normal) -> Covariate:
    has = torch.tensor([False, False, True, True, True, True])
    features = normal(6, 4, seed=51).masked_fill(~has[:, None], 0.0)
    return Covariate(3, features, has, members=members(), n_modalities=2, novelty=NOVELTY)


def made(covariate: Covariate, randomise) -> SetEncoder:
    return randomise(SetEncoder(covariate, covariate.members, 3).double())


@pytest.fixture
def sets(perturbations, randomise) -> SetEncoder:
    return made(perturbations, randomise)


def test_a_member_is_its_agent_scaled_and_moved_by_what_its_modality_and_dose_say(sets):
    vectors = sets(torch.tensor([ONE, LOWER, TURNED, UNSEEN]))
    for vector, label in zip(vectors, (ONE, LOWER, TURNED, UNSEEN), strict=True):
        ((agent, modality, dose),) = SETS[label]
        up, down, q = sets.member.up, sets.member.down, sets.member.modality.weight[modality]
        hidden = up.weight @ torch.cat([torch.tensor([dose, 1.0]).double(), q]) + up.bias
        s, b = (down.weight @ (hidden * torch.sigmoid(hidden)) + down.bias).split(3)
        torch.testing.assert_close(vector, sets.agents(torch.tensor(agent)) * (1 + s) + b)


def test_a_set_is_the_sum_of_its_members(sets):
    one, other, both, unseen, partly = sets(torch.tensor([ONE, OTHER, BOTH, UNSEEN, PARTLY]))
    torch.testing.assert_close(both, one + other)
    torch.testing.assert_close(partly, one + unseen)


def test_the_null_and_the_control_are_what_they_learned_whatever_doses_and_modalities_say(sets):
    assert torch.equal(sets(torch.tensor([NULL, CONTROL])), sets.agents.weight[[NULL, 1]])
    grads = torch.autograd.grad(sets(torch.tensor([NULL, CONTROL])).sum(), list(sets.member.parameters()))
    assert not any(grad.any() for grad in grads)


def test_dose_modality_and_agent_each_make_a_vector_of_their_own(sets):
    vectors = sets(torch.tensor([CONTROL, ONE, OTHER, BOTH, LOWER, TURNED, UNSEEN, PARTLY])).detach()
    assert float((torch.cdist(vectors, vectors) + torch.eye(len(vectors))).min()) > 1e-2


def test_labels_of_equal_members_have_the_same_vector_to_the_last_bit(sets):
    assert torch.equal(sets(torch.tensor([CONTROL, BOTH, ONE])), sets(torch.tensor([CONTROL, AGAIN, ONE])))


def test_room_for_more_members_changes_nothing(perturbations, randomise, sets):
    wider = made(replace(perturbations, members=members(n_members=4)), randomise)
    everyone = torch.arange(len(SETS))
    torch.testing.assert_close(wider(everyone), sets(everyone))


def test_without_doses_and_modalities_a_set_is_the_sum_of_its_agents(perturbations, randomise):
    plain = members([[(agent, 0, None) for agent, _, _ in one] for one in SETS])
    plain = plain._replace(dose=plain.dose[..., :0])
    sets = made(replace(perturbations, members=plain, n_modalities=0), randomise)
    assert sets.member is None
    for label, one in enumerate(SETS):
        wanted = sum(sets.agents(torch.tensor(agent)) for agent, _, _ in one)
        torch.testing.assert_close(sets(torch.tensor([label]))[0], wanted)


def test_as_new_all_agents_of_a_set_lose_what_they_learned(sets):
    label = torch.tensor([BOTH, BOTH, CONTROL, NULL])
    vectors = sets(label, torch.tensor([True, False, True, True]))
    assert torch.equal(vectors[1:], sets(label)[1:])
    with torch.no_grad():
        sets.agents.weight[2:] = 0.0
    torch.testing.assert_close(sets(label)[0], vectors[0])


# labels as if they were new


@pytest.fixture
def model(perturbations, featured, randomise) -> Conditioning:
    return randomise(Conditioning([perturbations, featured, 2], width=6, embedding_width=3).double())


def asked(labels: list[int]) -> Condition:
    return Condition(torch.tensor(labels), 1 + torch.arange(len(labels)) % 5, 1 + torch.arange(len(labels)) % 2)


def test_a_label_is_taken_at_the_novelty_that_it_can_be_taken_at(model):
    everyone = torch.arange(len(SETS))
    assert torch.equal(model.novelty_of(everyone, None), NOVELTY[0])
    for novel in range(3):
        assert torch.equal(model.novelty_of(everyone, torch.full_like(everyone, novel)), NOVELTY[novel])


def test_without_a_table_every_label_is_known(of_covariate, make_condition):
    label = make_condition(3).perturbation
    assert not of_covariate.novelty_of(label, torch.full_like(label, Novelty.NEW_AGENT)).any()
    assert of_covariate.novelty_embedding is None
    novel = torch.full((3, 3), int(Novelty.NEW_AGENT))
    assert torch.equal(of_covariate(make_condition(3), None, novel), of_covariate(make_condition(3)))


def test_the_network_is_told_how_new_a_label_is_by_a_vector_that_begins_at_0(model, perturbations):
    assert not Conditioning([perturbations, 3, 2], width=6, embedding_width=3).novelty_embedding.weight.any()
    labels = [BOTH, BOTH, BOTH, ONE, CONTROL, UNSEEN]
    novel = torch.tensor([0, 1, 2, 2, 2, 0])
    taken = [0, 1, 2, 2, 0, 2]
    condition = asked(labels)
    vectors = model(condition, None, torch.stack([novel, torch.zeros(6).long(), torch.zeros(6).long()], dim=1))
    sets, types, batches = model.tables
    told = model.novelty_embedding.weight[taken]
    first = sets(condition.perturbation, torch.tensor(taken) == 2) + told
    mixed = model.mix(torch.cat([first, types(condition.cell_type), batches(condition.assay_batch)], dim=1))
    torch.testing.assert_close(vectors, model.project(torch.nn.functional.silu(mixed)))
    for one, other in [(0, 1), (0, 2), (1, 2)]:
        assert not torch.allclose(first[one], first[other])


def test_a_perturbation_that_is_dropped_is_the_known_null_however_new_it_was_to_be_taken(model):
    condition, dropped = asked([ONE, BOTH, UNSEEN]), torch.tensor([[True, False, False]] * 3)
    known = model(condition, dropped)
    assert torch.equal(known, model(condition._replace(perturbation=torch.zeros(3).long())))
    for novel in range(3):
        columns = torch.tensor([[novel, 0, 0]] * 3)
        assert torch.equal(model(condition, dropped, columns), known)


def test_two_labels_of_one_composition_have_one_vector_to_the_last_bit(model):
    for novel in range(3):
        columns = torch.full((2, 3), novel)
        one, other = (model(asked([label, CONTROL]), None, columns) for label in (BOTH, AGAIN))
        assert torch.equal(one, other)


def test_every_parameter_earns_a_gradient_of_features_members_doses_modalities_and_novelty(model, normal):
    labels = [*range(len(SETS))] * 3
    novel = torch.arange(3).repeat_interleave(len(SETS))[:, None].expand(-1, 3)
    vectors = model(asked(labels), None, novel)
    (vectors * normal(*vectors.shape, seed=52)).sum().backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert len(grads) == 15
    assert [name for name, grad in grads.items() if grad is None or not grad.isfinite().all() or not grad.any()] == []
    # of every row, save those of nulls that nobody asked for
    for name in (
        "novelty_embedding.weight",
        "tables.0.agents.weight",
        "tables.0.member.up.weight",
        "tables.0.member.down.weight",
    ):
        assert grads[name].any(dim=1).all(), name
    assert grads["tables.0.member.modality.weight"].any(dim=1).tolist() == [False, True, True]


def test_weights_hold_nothing_of_what_was_given_so_that_more_labels_can_be_asked_later(model, perturbations, featured):
    names = {name for name, _ in model.named_parameters()}
    assert set(model.state_dict()) == names
    fewer = replace(perturbations, members=members(SETS[:6]), novelty=NOVELTY[:, :6])
    other = Conditioning([fewer, featured, 2], width=6, embedding_width=3).double()
    other.load_state_dict(model.state_dict())
    condition = asked([CONTROL, ONE, BOTH])
    assert torch.equal(other(condition), model(condition))
