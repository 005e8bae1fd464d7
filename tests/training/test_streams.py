"""The minibatches of a step do not depend on where a run began; a validation looks at the same cells each time."""

from itertools import islice

import numpy as np
import pytest
import torch

from perturbdiff.config import settings_of
from perturbdiff.data.split import split_cells
from perturbdiff.training.preparation import prepare
from perturbdiff.training.streams import FixedPopulations, PopulationStream


@pytest.fixture(scope="module")
def prepared(make_model):
    model = make_model()
    split = model.split()
    return prepare(model.cells, split, model.recipe, settings_of(model.recipe))


def equal(one, other):
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a is b is None or all(map(torch.equal, a, b))
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("per_batch", [1, 3, 40])
def test_a_step_has_the_same_minibatch_whatever_the_first_step(prepared, per_batch):
    populations = prepared.training
    whole = list(islice(PopulationStream(populations, per_batch=per_batch), 40))
    assert 40 * per_batch > len(populations)
    for first in (1, 7, 30):
        stream = PopulationStream(populations, per_batch=per_batch, first_step=first)
        for step, batch in enumerate(islice(stream, 5), first):
            assert equal(batch, whole[step])


def test_every_population_of_every_epoch_comes_once_whatever_the_epochs_borders(prepared):
    populations = prepared.training
    n_epochs, per_batch = 4, len(populations) // 2 + 1
    keys = torch.cat([b.key for b in islice(PopulationStream(populations, per_batch=per_batch), n_epochs * 2)])
    assert len(keys.unique()) == len(keys)
    assert set(range(n_epochs * len(populations))) <= set(keys.tolist())


def test_the_stream_of_another_seed_is_another(make_model):
    def first(seed):
        model = make_model(training={"seed": seed})
        split = split_cells(model.cells, model.recipe.hold_out, seed=0)
        prepared = prepare(model.cells, split, model.recipe, settings_of(model.recipe))
        return next(iter(PopulationStream(prepared.training, per_batch=4)))

    assert equal(first(0), first(0))
    assert not equal(first(0), first(1))


def test_a_validation_takes_the_same_populations_each_time_up_to_a_number(prepared):
    fixed = FixedPopulations(prepared.validation, per_batch=2, at_most=3)
    assert [len(fixed[i].key) for i in range(len(fixed))] == [2, 1]
    assert equal(fixed[0], fixed[0])
    whole = FixedPopulations(prepared.validation, per_batch=2, at_most=10**6)
    keys = np.concatenate([whole[i].key for i in range(len(whole))])
    assert sorted(keys) == list(range(len(prepared.validation)))
