"""From cells and a split to a checkpoint, through Lightning's loop.

A run folder holds the model, `resume.ckpt` (Lightning's state, always loaded with ``weights_only=True``), and `logs/`
(CSV and TensorBoard). The same call on the same folder resumes; a folder that holds another run is refused.
"""

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader

from perturbdiff.checkpoint import Checkpoint, load_checkpoint, untrained
from perturbdiff.config import Settings, TrainingSettings
from perturbdiff.core.denoiser import Denoiser
from perturbdiff.core.randomness import stream
from perturbdiff.data.conditions import Conditions
from perturbdiff.data.features import FeatureTable
from perturbdiff.data.populations import Populations
from perturbdiff.data.recipe import Recipe
from perturbdiff.data.split import HELD_OUT, Split
from perturbdiff.training.callbacks import (
    AveragedWeights,
    Interruption,
    Progress,
    RunFolder,
    Say,
    Start,
    returning_to_the_caller,
)
from perturbdiff.training.cost import Announcement
from perturbdiff.training.module import DenoiserModule
from perturbdiff.training.preparation import mean_shifts, prepare
from perturbdiff.training.processes import Processes, processes
from perturbdiff.training.resuming import LOGS, State, clear, identity, resumable
from perturbdiff.training.streams import FixedPopulations, PopulationStream, Share, check_share

LOG_EVERY = 10
MANY = 1 << 20
"""Of so many training cells it is said that a pass over them begins."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """A trained model, and how its training ended.

    Attributes:
        checkpoint: the kept weights.
        interrupted: whether a signal ended it before its last step.
        steps: optimiser steps done.
    """

    checkpoint: Checkpoint
    interrupted: bool
    steps: int


def train(
    split: Split,
    recipe: Recipe,
    settings: Settings,
    *,
    run: Path | None = None,
    data_folder: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    features: Mapping[str, FeatureTable] | None = None,
    say: Say = _LOG.info,
    show_progress: bool = True,
) -> Outcome:
    """Train a model on the training part of a split; several processes, where torchrun or SLURM started them.

    Args:
        split: of the recipe's cells.
        recipe: of the data, kept in the checkpoint.
        settings: of the model, the training and the sampling.
        run: folder to write to and resume from; None keeps the model in memory only.
        data_folder: that the recipe's files are relative to.
        overwrite: whether to begin anew where `run` holds a run; it is removed once the data have proved sound.
        device: "auto", "cpu", "cuda" or another of Lightning's accelerators.
        features: of labels, in place of those that the settings name, by covariate.
        say: receives sentences for the user.
        show_progress: whether to draw a progress bar.

    Raises:
        ValueError: the run folder holds another run, the panel does not fit, or a group has no control cells.
    """
    launched = processes()
    share = Share(launched.rank, launched.world)
    check_share(settings.training.populations_per_batch, share)
    if launched.rank > 0:
        say = _LOG.debug
    n_cells = split.of("train").n_cells
    if n_cells > MANY and split.source.moments(split.hash) is None:
        say(f"measuring the genes of {n_cells:,} training cells; this is one pass over them.")
    prepared = prepare(split, recipe, settings, folder=data_folder, features=features)
    for note in (*split.source.notes, *split.notes, *prepared.notes):
        say(note)
    described = Checkpoint(
        weights={},
        settings=settings,
        genes=prepared.genes,
        scale=prepared.scale,
        vocabularies=prepared.conditions.trained,
        features=prepared.conditions.features,
        recipe=recipe,
        folder=None if data_folder is None else str(data_folder.resolve()),
        split=describe(split),
    )
    if run is not None and overwrite and launched.rank == 0:
        clear(run)
    # nothing is taken up that the first process is removing
    resume = None if run is None or overwrite else resumable(run, described, say)
    shifts = torch.from_numpy(mean_shifts(prepared)) if settings.model.target == "residual" else None
    conditions = prepared.conditions if shifts is None else prepared.conditions.fitted(shifts)
    described = replace(described, fit=conditions.fit)
    kept: list[Checkpoint] = []

    def save_model(weights: Mapping[str, Tensor], history: Mapping[str, Any]) -> None:
        kept.append(replace(described, weights=weights, history=history))
        del kept[:-1]
        if run is not None and launched.rank == 0:
            kept[0].save(run)

    denoiser = initial(described, conditions)
    if denoiser.shift is not None and shifts is not None:
        denoiser.shift.weight.data.copy_(shifts)
    module = DenoiserModule(denoiser, settings, scale=prepared.scale)
    averaged, interruption = AveragedWeights(settings.training.ema_decay), Interruption()
    folder = RunFolder(
        run,
        averaged,
        save_model,
        every=settings.training.validate_every,
        validates=prepared.validation is not None,
        identity=identity(described),
    )
    per_batch = settings.training.populations_per_batch
    first = prepared.training.batch(prepared.training.plan(0, per_batch)[: per_batch // launched.world])
    held_out = None
    if prepared.validation is not None:
        held_out = FixedPopulations(
            prepared.validation, per_batch=per_batch, at_most=settings.training.validation_populations
        )
    trainer = _trainer(
        settings.training,
        [
            averaged,
            folder,
            *([Start(held_out.batches, folder)] if held_out is not None and settings.training.validate_start else []),
            interruption,
            Announcement(first, say),
            *([Progress()] if show_progress else []),
        ],
        launched,
        loggers=[] if run is None else _loggers(run, resume),
        device=device,
        validates=prepared.validation is not None,
        show_progress=show_progress,
    )
    _fit(trainer, module, prepared.training, held_out, resume, share)
    # nothing better may have been found after resuming: then the run folder has the kept weights
    checkpoint = kept[0] if kept or run is None else load_checkpoint(run)
    return Outcome(checkpoint, interruption.received is not None, trainer.global_step)


def initial(described: Checkpoint, conditions: Conditions) -> Denoiser:
    """The network at step 0: its weights are a function of the seed; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.set_state(stream(described.settings.training.seed, -2).get_state())
        return untrained(described.settings, described.genes, conditions)


def describe(split: Split) -> dict[str, Any]:
    """What a checkpoint keeps of a split: its hash, its seed, and the conditions of each held-out part."""
    return {
        "hash": split.hash,
        "seed": split.seed,
        "conditions": {part: split.groups(part).to_dict(orient="records") for part in HELD_OUT},
    }


def _loggers(run: Path, resume: State | None) -> list[Logger]:
    """CSV and TensorBoard in `logs`; the CSV of a resumed run in a folder of its own, beside what was logged before."""
    version = "" if resume is None else f"from_step_{resume.step}"
    run.mkdir(parents=True, exist_ok=True)
    return [
        CSVLogger(run, name=LOGS, version=version, flush_logs_every_n_steps=LOG_EVERY),
        TensorBoardLogger(run, name=LOGS, version=""),
    ]


def _trainer(
    training: TrainingSettings,
    callbacks: list[Callback],
    launched: Processes,
    *,
    loggers: list[Logger],
    device: str,
    validates: bool,
    show_progress: bool,
) -> Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    return Trainer(
        accelerator=device,
        devices=launched.per_node,
        num_nodes=launched.nodes,
        strategy="ddp" if launched.world > 1 else "auto",
        # the populations are shared out by their stream, and every process validates on all of them
        use_distributed_sampler=False,
        precision=_precision(training, device),
        max_steps=training.max_steps,
        max_epochs=-1,
        gradient_clip_val=training.gradient_clip,
        val_check_interval=min(training.validate_every, training.max_steps) if validates else None,
        check_val_every_n_epoch=None,
        limit_val_batches=None if validates else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=LOG_EVERY,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=show_progress,
        callbacks=callbacks,
        logger=loggers,
    )


def _precision(training: TrainingSettings, device: str) -> Literal["32-true", "bf16-mixed"]:
    if training.precision == "auto":
        on_gpu = device != "cpu" and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return "bf16-mixed" if on_gpu else "32-true"
    return "bf16-mixed" if training.precision == "bfloat16" else "32-true"


def _fit(
    trainer: Trainer,
    module: DenoiserModule,
    populations: Populations,
    held_out: FixedPopulations | None,
    resume: State | None,
    share: Share,
) -> None:
    training = module.settings.training
    first_step = 0 if resume is None else resume.step
    unused = torch.Generator()  # a loader seeds its workers, of which there are none; else from the global generator
    batches = DataLoader(
        PopulationStream(populations, per_batch=training.populations_per_batch, first_step=first_step, share=share),
        batch_size=None,
        generator=unused,
    )
    judged = None if held_out is None else DataLoader(held_out, batch_size=None, generator=unused)
    with warnings.catch_warnings(), returning_to_the_caller():
        # a thread of the stream reads ahead: workers would only copy
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message="You defined a `validation_step` but have no `val_dataloader`")
        # raised by lightning's own use of torch
        warnings.filterwarnings("ignore", message=".isinstance.treespec, LeafSpec.. is deprecated")
        # what was logged after the state that is taken up again is logged once more
        warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
        trainer.fit(module, batches, judged, ckpt_path=None if resume is None else resume.path, weights_only=True)
