"""AdamW with decay on matrices only; warm-up, plateau, cosine."""

import math

from torch import nn, optim

from perturbdiff.config import TrainingSettings

BETAS = (0.9, 0.98)
FINAL_SHARE = 0.01
"""The share of the learning rate that is left at the last step."""


def build_optimizer(module: nn.Module, settings: TrainingSettings) -> optim.AdamW:
    """AdamW; biases, gains and other vectors are not decayed."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return optim.AdamW(groups, lr=settings.learning_rate, betas=BETAS, fused=True)


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
