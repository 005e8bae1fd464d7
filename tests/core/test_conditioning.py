"""Labels to vectors: every covariate counts, and what is dropped is replaced by the trained null that `null` names."""

import pytest
import torch
from torch import Tensor

from perturbdiff.core.conditioning import Conditioning
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
