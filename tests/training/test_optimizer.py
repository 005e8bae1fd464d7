"""AdamW decays matrices only; the schedule is its closed form."""

import math

import pytest
import torch
from torch import nn

from perturbdiff.recipes.settings import TrainingSettings
from perturbdiff.training.module import FINAL_SHARE, build_optimizer, learning_rate_factor


def settings(**changes):
    return TrainingSettings(**{"cells_per_population": 4, "populations_per_batch": 2} | changes)


def test_matrices_are_decayed_and_vectors_are_not_and_frozen_weights_are_not_there():
    module = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Embedding(4, 2), nn.Linear(2, 2))
    module[3].requires_grad_(requires_grad=False)
    matrices, vectors = build_optimizer(module, settings(weight_decay=0.3, learning_rate=0.02)).param_groups
    assert [tuple(p.shape) for p in matrices["params"]] == [(2, 3), (4, 2)]
    assert [tuple(p.shape) for p in vectors["params"]] == [(2,), (2,), (2,)]
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.3, 0.0)
    assert matrices["lr"] == vectors["lr"] == 0.02


def test_without_a_gradient_only_decay_moves_a_matrix():
    layer = nn.Linear(3, 2)
    before = {name: value.clone() for name, value in layer.named_parameters()}
    optimizer = build_optimizer(layer, settings(weight_decay=0.5, learning_rate=0.1))
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(layer.weight, before["weight"] * (1 - 0.1 * 0.5))
    torch.testing.assert_close(layer.bias, before["bias"])


def test_the_schedule_is_a_line_a_plateau_and_a_cosine():
    given = settings(max_steps=100, warmup_steps=10, decay_share=0.4)
    factors = [learning_rate_factor(step, given) for step in range(101)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10:60] == [1.0] * 50
    for step in range(60, 101):
        cosine = (1 + math.cos(math.pi * (step - 60) / 40)) / 2
        assert factors[step] == pytest.approx(FINAL_SHARE + (1 - FINAL_SHARE) * cosine)
    assert factors[100] == pytest.approx(FINAL_SHARE)
    assert learning_rate_factor(10_000, given) == pytest.approx(FINAL_SHARE)


def test_the_schedule_at_its_limits():
    level = settings(max_steps=9, warmup_steps=0, decay_share=0)
    assert [learning_rate_factor(s, level) for s in (0, 8, 99)] == [1.0] * 3
    whole = [learning_rate_factor(s, settings(max_steps=9, warmup_steps=0, decay_share=1)) for s in range(10)]
    assert whole[0] == 1.0
    assert whole == sorted(whole, reverse=True)
