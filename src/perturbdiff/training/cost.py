"""What a training will cost, measured on one of its own steps: parameters, memory, time."""

import logging
import time
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from perturbdiff.core.denoiser import Denoiser
from perturbdiff.core.objective import Objective
from perturbdiff.core.population import PopulationBatch

_LOG = logging.getLogger(__name__)

STATES = 5
"""Numbers kept for each parameter: weight, gradient, two moments of AdamW, averaged weight."""


@dataclass(frozen=True)
class Cost:
    """The cost of a training.

    Attributes:
        parameters: of the denoiser.
        memory: bytes of parameters, optimiser states and one step's activations; the data are not counted.
        seconds_per_step: of one step.
    """

    parameters: int
    memory: int
    seconds_per_step: float

    def sentence(self, steps: int) -> str:
        """One line for the user."""
        seconds = self.seconds_per_step * steps
        time_left = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
        return (
            f"{self.parameters:,} parameters, about {self.memory / 2**30:.2f} GiB beside the data, "
            f"about {time_left} for {steps} steps"
        )


def measure_cost(denoiser: Denoiser, objective: Objective, batch: PopulationBatch) -> Cost:
    """Run two steps without changing the weights; the first warms up, the second counts."""
    kept: dict[int, int] = {}

    def pack(saved: Tensor) -> Tensor:
        kept[saved.data_ptr()] = max(kept.get(saved.data_ptr(), 0), saved.nbytes)
        return saved

    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            loss = objective(denoiser, batch, objective.draw(batch, seed=0, step=0))
            torch.autograd.backward(loss.total)
        if batch.perturbed.is_cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        denoiser.zero_grad(set_to_none=True)
    parameters = sum(p.numel() for p in denoiser.parameters())
    return Cost(parameters, STATES * 4 * parameters + sum(kept.values()), seconds)


class Announcement(Callback):
    """Says what the training will cost before its first step."""

    def __init__(self, batch: PopulationBatch) -> None:
        self.batch = batch

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure on the device that will train, at its precision."""
        if trainer.should_stop:  # patience ended it earlier
            return
        module: Any = pl_module
        batch = module.transfer_batch_to_device(self.batch, module.device, 0)
        with trainer.precision_plugin.forward_context():
            cost = measure_cost(module.denoiser, module.objective, batch)
        steps = trainer.max_steps - trainer.global_step
        _LOG.info(f"{cost.sentence(steps)} on {module.device}, validations not counted.")
