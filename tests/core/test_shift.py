"""What is expected before the network speaks: a sum of trained vectors, by weights that are given."""

import pytest
import torch
from torch import Tensor

from perturbdiff.core.conditioning import Conditioning, Covariate, Members, Novelty
from perturbdiff.core.denoiser import Denoiser
from perturbdiff.core.shift import Shift

N_GENES = 5


@pytest.fixture
def expected(normal) -> Tensor:
    """Of three trained labels and two that are asked, the trained ones as they are where they are known."""
    weights = normal(3, 6, 4, seed=60)
    weights[:, 0] = torch.eye(4)[0]
    weights[int(Novelty.KNOWN), :4] = torch.eye(4)
    return weights


@pytest.fixture
def shift(expected, randomise) -> Shift:
    return randomise(Shift(3, N_GENES, expected).double())


def test_a_new_shift_is_zero_with_a_row_for_each_label_and_the_null():
    assert Shift(3, N_GENES).weight.shape == (4, N_GENES)
    assert not Shift(3, N_GENES).weight.any()


def test_without_weights_a_label_has_its_own_vector(randomise):
    shift, label = randomise(Shift(3, N_GENES)), torch.tensor([3, 0, 1])
    assert torch.equal(shift(label), shift.weight[label])
    assert torch.equal(shift(label, torch.tensor([0, 1, 2])), shift.weight[label])
    with pytest.raises(IndexError):
        shift(torch.tensor([4]))


def test_with_weights_it_is_their_sum_over_the_trained_labels_at_each_novelty(shift, expected):
    for novelty in range(3):
        for label in range(6):
            found = shift(torch.tensor([label]), torch.tensor([novelty]))[0]
            wanted = sum(expected[novelty, label, k] * shift.weight[k] for k in range(4))
            torch.testing.assert_close(found, wanted)


def test_a_known_label_is_its_own_vector_to_the_last_bit_and_known_unless_said_otherwise(shift):
    label = torch.arange(6)
    assert torch.equal(shift(label)[:4], shift.weight)
    assert torch.equal(shift(label), shift(label, torch.zeros(6, dtype=torch.int64)))


def test_a_label_taken_as_new_trains_the_vectors_that_it_is_made_of(shift, expected, normal):
    label, novelty, out = torch.tensor([2, 5, 0]), torch.tensor([1, 2, 1]), normal(3, N_GENES, seed=61)
    (shift(label, novelty) * out).sum().backward()
    torch.testing.assert_close(shift.weight.grad, expected[novelty, label].T @ out)


def test_weights_that_are_given_are_no_part_of_what_is_saved(shift):
    assert set(shift.state_dict()) == {"weight"}


# in the denoiser


@pytest.fixture
def conditioning(expected) -> Conditioning:
    """Labels 1 to 3 are agents 1 to 3, label 4 is 2 and 3 together, label 5 again."""
    agent = torch.tensor([[0, 0], [1, 0], [2, 0], [3, 0], [2, 3], [2, 3]])
    exists = torch.tensor([[True, False]] * 4 + [[True, True]] * 2)
    sets = Members(agent, torch.zeros_like(agent), torch.zeros(6, 2, 0), exists)
    novelty = torch.tensor([[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1], [0, 0, 2, 2, 1, 1]])
    return Conditioning([Covariate(3, members=sets, novelty=novelty), 3, 2], width=8, embedding_width=3)


def test_the_denoiser_adds_the_shift_of_each_label_at_the_novelty_that_it_is_taken_at(
    conditioning, shift, expected, randomise, make_noised
):
    denoiser = Denoiser(conditioning, n_genes=N_GENES, width=8, depth=1, heads=2, target="residual", shift=shift)
    denoiser = randomise(denoiser.double())
    noised = make_noised(5)
    condition = noised.condition._replace(perturbation=torch.tensor([2, 2, 4, 1, 2]))
    noised = noised._replace(
        condition=condition,
        dropped=torch.tensor([[False] * 3] * 4 + [[True] * 3]),
        novel=torch.tensor([[0, 2, 0], [2, 0, 0], [2, 0, 0], [1, 0, 0], [2, 0, 0]]),
    )
    added = denoiser.unclamped(noised) - denoiser.streams(noised)[0] - noised.control
    taken = [(0, 2), (2, 2), (1, 4), (0, 1), (0, 0)]
    wanted = torch.stack([expected[novelty, label] @ shift.weight for novelty, label in taken])
    torch.testing.assert_close(added, wanted[:, None].expand_as(added))


def test_unless_it_is_given_a_shift_has_a_vector_for_each_label_and_not_for_each_agent(conditioning, make_noised):
    denoiser = Denoiser(conditioning, n_genes=N_GENES, width=8, depth=1, heads=2, target="residual").double()
    assert denoiser.shift.weight.shape == (6, N_GENES)
    noised = make_noised(2)
    condition = noised.condition._replace(perturbation=torch.tensor([5, 3]))
    assert denoiser(noised._replace(condition=condition)).shape == noised.x_t.shape
