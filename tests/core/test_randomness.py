"""Streams belong to keys; the noise of cells and of populations has the moments it should have."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from perturbdiff.core.process import Process, linear_betas
from perturbdiff.core.randomness import PopulationNoise, stream


def first(*key: int) -> float:
    return torch.rand(1, generator=stream(*key), dtype=torch.float64).item()


def noise(rho: float, keys: list[int], *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    drawn = PopulationNoise(Process(linear_betas(10), rho=rho), [stream(0, key) for key in keys])
    return drawn(torch.zeros(len(keys), *shape, dtype=dtype))


def test_a_stream_is_a_function_of_its_key_alone():
    before = first(3, 1, 4)
    first(2, 7)
    assert first(3, 1, 4) == before


def test_streams_of_different_keys_differ_and_the_order_of_a_key_counts():
    drawn = [first(*key) for key in itertools.product(range(10), repeat=3)]
    assert len(set(drawn)) == 1000
    assert first(5) != first(5, 0)


def test_the_first_numbers_of_neighbouring_streams_are_uniform_and_uncorrelated():
    # counters as keys are what training uses; poor mixing would show here
    drawn = torch.tensor([[first(seed, step) for step in range(2000)] for seed in (0, 1)]).double()
    centred = (drawn - 0.5) * math.sqrt(12)
    assert (centred.mean(dim=1).abs() < 4 / math.sqrt(2000)).all()
    assert (centred.square().mean(dim=1) - 1).abs().max() < 0.1
    neighbours = (centred[:, 1:] * centred[:, :-1]).mean(dim=1)
    assert (neighbours.abs() < 4 / math.sqrt(2000)).all()
    assert abs(float((centred[0] * centred[1]).mean())) < 4 / math.sqrt(2000)


@pytest.mark.parametrize("rho", [0.0, 0.3, 1.0])
def test_noise_has_variance_one_covariance_rho_within_a_population_and_none_between(rho):
    n_populations, n_cells, n_genes = 4000, 3, 2
    eps = noise(rho, list(range(n_populations)), n_cells, n_genes)
    flat = eps.reshape(n_populations, -1)
    within = torch.full((n_cells, n_cells), rho).fill_diagonal_(1.0).double()
    wanted = torch.kron(within, torch.eye(n_genes).double())  # genes are independent, shared part or not
    bound = 5 * (1 + wanted.square()).sqrt() / math.sqrt(n_populations)
    assert ((flat.T @ flat / n_populations - wanted).abs() < bound).all()
    assert (flat.mean(dim=0).abs() < 5 / math.sqrt(n_populations)).all()
    between = (flat[1:].T @ flat[:-1] / n_populations).abs()
    assert (between < 5 / math.sqrt(n_populations)).all()


def test_when_all_is_shared_every_cell_has_the_same_noise():
    eps = noise(1.0, [1, 2], 5, 4)
    assert torch.equal(eps, eps[:, :1].expand(-1, 5, -1))
    assert not torch.equal(eps[0], eps[1])


@pytest.mark.parametrize("rho", [0.0, 0.4])
def test_a_populations_noise_is_the_same_alone_and_in_any_minibatch(rho):
    together = noise(rho, [5, 6, 7], 8, 3)
    assert torch.equal(noise(rho, [6], 8, 3)[0], together[1])
    assert torch.equal(noise(rho, [7, 9, 5], 8, 3)[[2, 0]], together[[0, 2]])


def test_a_stream_goes_on_from_draw_to_draw():
    own = PopulationNoise(Process(linear_betas(10), rho=0.5), [stream(1)])
    like = torch.zeros(1, 4, 3)
    once, again = own(like), own(like)
    assert once.dtype == torch.float32
    assert not torch.equal(once, again)


def test_parts_of_one_population_have_its_shared_noise_and_their_own():
    process, like = Process(linear_betas(10), rho=0.4), torch.zeros(3, 4, 5)
    keys, whole = (1, 2, 3), (7, 7, 8)
    drawn = PopulationNoise(process, [stream(key) for key in keys], [stream(key) for key in whole])
    shared = torch.stack([torch.randn(1, 5, generator=stream(key)) for key in whole])
    own = torch.stack([torch.randn(4, 5, generator=stream(key)) for key in keys])
    torch.testing.assert_close(drawn(like), math.sqrt(0.6) * own + math.sqrt(0.4) * shared)
    assert torch.equal(PopulationNoise(Process(process.betas), [stream(1)], [stream(7)])(like[:1])[0], own[0])


def test_as_many_streams_as_populations_are_asked_for():
    with pytest.raises(ValueError, match="3 populations need as many streams; 1 were given"):
        PopulationNoise(Process(linear_betas(10)), [stream(0)])(torch.zeros(3, 2, 2))
