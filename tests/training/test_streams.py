"""The minibatches of a step do not depend on where a run began; a validation looks at the same cells each time."""

from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from perturbdiff.core.population import Condition, PopulationBatch
from perturbdiff.split.rules import split_cells
from perturbdiff.training.preparation import prepare
from perturbdiff.training.processes import Processes
from perturbdiff.training.streams import FixedPopulations, PopulationStream, shared_out


@pytest.fixture(scope="module")
def prepared(make_model):
    model = make_model()
    split = model.split()
    return prepare(split, model.recipe, model.recipe.settings)


def equal(one, other):
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a is b is None or all(map(torch.equal, a, b))
        for a, b in zip(one, other, strict=True)
    )


def joined(batches):
    """The minibatches of several processes as one, in the order of the ranks."""
    tensors = {}
    for name in ("perturbed", "control", "key", "totals"):
        tensors[name] = torch.cat([getattr(batch, name) for batch in batches])
    conditions = Condition(*(torch.cat(parts) for parts in zip(*(batch.condition for batch in batches), strict=True)))
    exists = [torch.ones(b.perturbed.shape[:2], dtype=bool) if b.mask is None else b.mask for b in batches]
    mask = torch.cat(exists)
    return PopulationBatch(**tensors, mask=None if mask.all() else mask, condition=conditions)


@pytest.mark.parametrize(("world", "per_batch"), [(2, 2), (2, 6), (3, 6), (4, 40)])
@pytest.mark.parametrize("first_step", [0, 5])
def test_processes_share_out_what_one_process_would_see(prepared, world, per_batch, first_step):
    def steps(**share):
        stream = PopulationStream(
            prepared.training, per_batch=per_batch, first_step=first_step, share=Processes(**share) if share else None
        )
        return list(islice(stream, 20))

    whole, shares = steps(), [steps(rank=rank, world=world) for rank in range(world)]
    assert 20 * per_batch > len(prepared.training)
    for step, batch in enumerate(whole):
        parts = [share[step] for share in shares]
        assert all(len(part.key) == per_batch // world for part in parts)
        assert equal(joined(parts), batch)


def test_a_step_that_cannot_be_shared_out_evenly_is_refused(prepared):
    with pytest.raises(
        ValueError, match="populations_per_batch = 5 cannot be shared out evenly among 2 processes; make"
    ):
        PopulationStream(prepared.training, per_batch=5, share=Processes(0, 2))


def test_a_process_reads_only_blocks_of_its_own_populations(prepared, monkeypatch):
    asked = []
    reader = prepared.training.reader
    monkeypatch.setattr(prepared.training, "_held", ())
    monkeypatch.setattr(
        prepared.training, "reader", SimpleNamespace(load=lambda rows: asked.append(rows) or reader.load(rows))
    )
    stream = PopulationStream(prepared.training, per_batch=4, share=Processes(1, 2))
    used = set()
    for batch in islice(stream, 3):
        used |= set(batch.key.tolist())
    slab = next(prepared.training.slabs())
    own = [draw for draws in shared_out(slab, 4, Processes(1, 2)) for draw in draws]
    assert used <= {draw.key for draw in own}
    needed = np.unique(np.concatenate([rows for draw in own for rows in (draw.rows, draw.control_rows)]))
    np.testing.assert_array_equal(asked[0], needed)


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
        split = split_cells(model.source, model.recipe.hold_out, seed=0)
        prepared = prepare(split, model.recipe, model.recipe.settings)
        return next(iter(PopulationStream(prepared.training, per_batch=4)))

    assert equal(first(0), first(0))
    assert not equal(first(0), first(1))


def test_a_validation_takes_the_same_populations_each_time_up_to_a_number(prepared):
    fixed = FixedPopulations(prepared.validation, per_batch=2, at_most=3)
    assert [len(fixed[i].batch.key) for i in range(len(fixed))] == [2, 1]
    assert equal(fixed[0].batch, fixed[0].batch)
    whole = FixedPopulations(prepared.validation, per_batch=2, at_most=10**6)
    keys = np.concatenate([whole[i].batch.key for i in range(len(whole))])
    assert sorted(keys) == list(range(len(prepared.validation)))
