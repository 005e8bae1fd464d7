"""A run is a function of data, settings and seed, and says beforehand what it will cost."""

import os
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from perturbdiff.building import build_objective
from perturbdiff.training.cost import Cost, measure_cost
from perturbdiff.training.streams import PopulationStream
from perturbdiff.training.trainer import initial


def train(model, **options):
    return model.train(device="cpu", show_progress=False, **options)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(make_model):
    first, again = (train(make_model()).trained for _ in range(2))
    other = train(make_model(), seed=1).trained
    assert first.history == again.history
    assert all(torch.equal(value, again.weights[name]) for name, value in first.weights.items())
    assert any(not torch.equal(value, other.weights[name]) for name, value in first.weights.items())


def test_initial_weights_are_a_function_of_the_seed_and_the_global_generators_are_left_alone(make_model):
    described = train(make_model()).trained
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002 - that it is not used
    first = initial(described, described.conditions).state_dict()
    torch.rand(3)
    again = initial(described, described.conditions).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    torch.set_rng_state(torch_state)
    initial(described, described.conditions)
    assert torch.equal(torch.get_rng_state(), torch_state)
    settings = described.settings
    reseeded = settings.model_copy(update={"training": settings.training.model_copy(update={"seed": 9})})
    other = initial(replace(described, settings=reseeded), described.conditions).state_dict()
    assert any(not torch.equal(value, other[name]) for name, value in first.items())
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_training_draws_nothing_from_the_global_generators(make_model):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    train(make_model())
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_one_line_says_what_the_training_will_cost(make_model, said):
    model = train(make_model())
    (line,) = [sentence for sentence in said if "parameters" in sentence]
    found = re.fullmatch(
        r"([\d,]+) parameters, about [\d.]+ GiB beside the data, about \d+ (s|min) for 4 steps on cpu, "
        r"validations not counted\.",
        line,
    )
    assert found
    n_parameters = sum(parameter.numel() for parameter in model.trained.denoiser().parameters())
    assert int(found[1].replace(",", "")) == n_parameters


def test_measuring_the_cost_changes_no_weight_and_leaves_no_gradient(make_model, begins_with):
    state = begins_with(make_model())
    denoiser = state.denoiser
    before = {name: value.clone() for name, value in denoiser.state_dict().items()}
    batch = next(iter(PopulationStream(state.training, per_batch=4)))
    cost = measure_cost(denoiser, build_objective(state.spec.settings), batch)
    assert cost.parameters == sum(p.numel() for p in denoiser.parameters())
    assert cost.memory > 5 * 4 * cost.parameters
    assert all(torch.equal(value, before[name]) for name, value in denoiser.state_dict().items())
    assert all(parameter.grad is None for parameter in denoiser.parameters())


def test_a_long_training_is_announced_in_minutes():
    assert Cost(1234, 2**30, 0.5).sentence(100) == (
        "1,234 parameters, about 1.00 GiB beside the data, about 50 s for 100 steps"
    )
    assert "about 5 min for 600 steps" in Cost(1234, 2**30, 0.5).sentence(600)


def test_training_in_memory_writes_nothing(make_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(make_model())
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - nothing at all


def test_cells_without_perturbations_are_for_pretraining(make_model, adata):
    unperturbed = adata[adata.obs["perturbation"] == "control"].copy()
    model = make_model(of=unperturbed, kind="rna-seq", control=None, hold_out=[], columns={"cell_type": "cell_type"})
    with pytest.raises(ValueError, match=r"the cells of 'screen' have no perturbation, .*; pretrain on them"):
        train(model)


@pytest.mark.parametrize("target", ["cell", "change", "residual"])
@pytest.mark.parametrize("joint", ["tokens", "features"])
def test_every_target_and_joint_trains_and_every_weight_moves(make_model, target, joint):
    settings = {"model": {"target": target, "joint": joint}, "training": {"learning_rate": 0.01, "max_steps": 4}}
    model = train(make_model(hold_out=[], **settings))
    start = initial(model.trained, model.trained.conditions).state_dict()
    moved = {name: not torch.equal(value, start[name]) for name, value in model.trained.weights.items()}
    assert [name for name, changed in moved.items() if not changed] == []


def test_an_unknown_device_is_refused_and_a_missing_one_named(make_model):
    with pytest.raises(ValueError, match="device 'abacus' is not a device; choose auto, cpu or cuda"):
        make_model().train(device="abacus")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device 'cuda' is not there: torch sees no CUDA device"):
            make_model().train(device="cuda")


def test_bfloat16_trains_with_clipped_gradients_and_keeps_weights_in_float32(make_model):
    model = train(make_model(training={"precision": "bfloat16", "gradient_clip": 0.5}))
    assert {value.dtype for value in model.trained.weights.values()} == {torch.float32}
    assert np.isfinite(model.trained.history["validation_energy"])


def test_gradients_are_clipped_to_the_norm_that_is_set(make_model, monkeypatch):
    norms = []
    monkeypatch.setattr(
        "perturbdiff.training.module.DenoiserModule.on_before_zero_grad",
        lambda module, _optimizer: norms.append([p.grad.norm() for p in module.parameters() if p.grad is not None]),
        raising=False,
    )
    train(make_model(training={"gradient_clip": 0.01, "max_steps": 3}))
    clipped = [float(torch.stack(one).norm()) for one in norms if one]
    assert clipped
    assert max(clipped) <= 0.01 + 1e-5
