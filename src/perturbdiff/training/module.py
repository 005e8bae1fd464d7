"""The training and validation step around a denoiser, and its optimiser: AdamW with warm-up, plateau and cosine.

Everything else is Lightning's.
"""

import math
import re
import time
from collections import defaultdict
from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn, optim
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from perturbdiff.building import build_guided, build_objective, build_sampler
from perturbdiff.core.denoiser import Denoiser
from perturbdiff.core.kernel import energy_distance
from perturbdiff.core.population import PopulationBatch
from perturbdiff.core.randomness import stream
from perturbdiff.recipes.settings import Settings, TrainingSettings
from perturbdiff.training.patience import Energies
from perturbdiff.training.streams import ValidationBatch

VALIDATION_STREAM = -1
"""The place of the step in the key of a validation's streams: the same noise at every validation."""

LARGEST_SET = 512
"""Cells of one condition that enter the energy distance of a validation."""

BETAS = (0.9, 0.98)
FINAL_SHARE = 0.01
"""The share of the learning rate that is left at the last step."""


class DenoiserModule(LightningModule):
    """Trains a denoiser; validates by the energy distance of sampled to observed held-out populations.

    Args:
        denoiser: to be trained.
        settings: of the run.
        scale: what expression was divided by; reported distances are multiplied by it (log1p counts per 10^4).
    """

    def __init__(self, denoiser: Denoiser, settings: Settings, *, scale: float) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.settings = settings
        self.scale = scale
        self.objective = build_objective(settings)
        self._sampled: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self._since = time.perf_counter()
        self.energies = Energies({}, [])

    def training_step(self, batch: PopulationBatch, batch_idx: int) -> Tensor:  # noqa: ARG002 - Lightning's signature
        """The loss of one minibatch; its noise is a function of (seed, step, key of each population)."""
        draw = self.objective.draw(batch, seed=self.settings.training.seed, step=self.global_step)
        loss = self.objective(self.denoiser, batch, draw)
        if not bool(loss.total.isfinite()):
            raise ValueError(
                f"the loss is {float(loss.total.detach())} at step {self.global_step}, and training cannot go on from "
                "there; lower learning_rate or gradient_clip."
            )
        now = time.perf_counter()
        n_cells = batch.perturbed.shape[:2].numel() if batch.mask is None else int(batch.mask.sum())
        # a process has its share of the step's populations; what is shown is of all
        self.log("loss", loss.total.detach(), prog_bar=True, sync_dist=True)
        # a part of weight 0 is not computed, so there is nothing to log
        if self.settings.training.mmd_weight > 0:
            self.log("mmd", loss.mmd.detach().mean(), sync_dist=True)
        if self.settings.training.mse_weight > 0:
            self.log("mse", loss.mse.detach().mean(), sync_dist=True)
        self.log("cells/s", n_cells / (now - self._since), prog_bar=True, sync_dist=True, reduce_fx="sum")
        self._since = now
        return loss.total

    def validation_step(self, batch: ValidationBatch, batch_idx: int) -> None:  # noqa: ARG002 - Lightning's signature
        """Sample each population from its control cells."""
        (populations, groups), settings = batch, self.settings
        sampled = build_sampler(settings)(
            build_guided(settings.sampling, self.denoiser),
            control=populations.control,
            condition=populations.condition,
            streams=[
                stream(settings.training.seed, VALIDATION_STREAM, int(key), device=populations.control.device)
                for key in populations.key.tolist()
            ],
            mask=populations.mask,
            genes=populations.genes,
            totals=populations.totals,
            expected=None if populations.expected is None else populations.expected[:, 0],
        ).x_0.float()
        kept = torch.ones_like(sampled[..., 0], dtype=torch.bool) if populations.mask is None else populations.mask
        for i, group in enumerate(map(tuple, groups.tolist())):
            self._sampled[group].append((sampled[i, kept[i]], populations.perturbed[i, kept[i]]))

    def on_validation_epoch_end(self) -> None:
        """Log the energy of the validation."""
        self.energies = self.validation_energies()
        self.log("validation energy", self.energies.mean, prog_bar=True, sync_dist=True)
        self._since = time.perf_counter()

    def validation_energies(self) -> Energies:
        """The unbiased energy distance of what was sampled since it was asked last, log1p counts per 10^4.

        Each (perturbation, cell type, assay batch) is judged apart: cells of one sample are more alike than those of
        two. Beside them stand those of the populations.

        Raises:
            ValueError: one is not finite.
        """
        found, apart, keys = {}, [], []
        for group, populations in self._sampled.items():
            predicted, observed = (torch.cat(cells)[:LARGEST_SET] for cells in zip(*populations, strict=True))
            found[group] = float(energy_distance(predicted, observed)) * self.scale
            own = [float(energy_distance(*pair)) * self.scale for pair in populations if len(pair[0]) > 1]
            apart += own
            keys += [group] * len(own)
        self._sampled.clear()
        energies = Energies(found, apart, keys)
        if not math.isfinite(energies.mean):
            raise ValueError(
                f"the validation energy is {energies.mean} after step {self.global_step}, so the weights cannot be "
                "judged; lower learning_rate or gradient_clip."
            )
        return energies

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,  # noqa: ARG002 - Lightning's signature
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,  # noqa: ARG002 - Lightning's signature
    ) -> None:
        """Clip by the norm of all gradients.

        Lightning's own way refuses a fused optimiser under bfloat16, though nothing is scaled there.
        """
        if gradient_clip_val is not None:
            nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW and its schedule, one step at a time."""
        training = self.settings.training
        optimizer = build_optimizer(self, training, layer_decay=self.settings.finetuning.layer_decay)
        schedule = LambdaLR(optimizer, lambda step: learning_rate_factor(step, training))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


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
