"""AdamW with decay on matrices only; warm-up, plateau, cosine."""

import math
import re
from collections.abc import Sequence

from torch import nn, optim

from perturbdiff.recipes.settings import TrainingSettings

BETAS = (0.9, 0.98)
FINAL_SHARE = 0.01
"""The share of the learning rate that is left at the last step."""


def build_optimizer(module: nn.Module, settings: TrainingSettings, *, layer_decay: float = 1.0) -> optim.AdamW:
    """AdamW; biases, gains and other vectors are not decayed; layers far from the output learn slower, where asked."""
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    distances = _distances(list(trained)) if layer_decay < 1 else {}
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        decays = parameter.ndim >= 2 and not name.endswith("bias")
        groups.setdefault((distances.get(name, 0), decays), []).append(parameter)
    ordered = sorted(groups.items(), key=lambda group: (group[0][0], not group[0][1]))
    return optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": settings.weight_decay if decays else 0.0,
                "lr": settings.learning_rate * layer_decay**distance,
            }
            for (distance, decays), parameters in ordered
        ],
        lr=settings.learning_rate,
        betas=BETAS,
        fused=True,
    )


def _distances(names: Sequence[str]) -> dict[str, int]:
    """How many layers a weight lies from the output: 0 for the head and what stands for perturbations."""
    numbers = ((name, re.search(r"blocks\.(\d+)\.", name)) for name in names)
    blocks = {name: int(match.group(1)) for name, match in numbers if match is not None}
    depth = 1 + max(blocks.values(), default=-1)
    before = re.compile(r"(^|\.)(embed(_control)?|time|conditioning\.(tables\.[12]|mix|project|joint_null))\b")
    return {name: depth - block for name, block in blocks.items()} | {
        name: depth + 1 for name in names if before.search(name)
    }


def learning_rate_factor(step: int, settings: TrainingSettings) -> float:
    """The share of the learning rate at a step: up a line, level, down a cosine to `FINAL_SHARE`."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    decay_steps = round(settings.decay_share * settings.max_steps)
    start = settings.max_steps - decay_steps
    if step < start or decay_steps == 0:
        return 1.0
    progress = min((step - start) / decay_steps, 1.0)
    return FINAL_SHARE + (1 - FINAL_SHARE) * (1 + math.cos(math.pi * progress)) / 2
