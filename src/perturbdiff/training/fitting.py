"""Lightning's loop around a denoiser, and the run folder: what every training has in common, whatever it trains on.

A run folder holds the model, `resume.ckpt` (Lightning's state, always loaded with ``weights_only=True``), and `logs/`
(CSV and TensorBoard). The same call on the same folder resumes; a folder that holds another run is refused.
"""

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader

from perturbdiff.checkpoint import LOGS, Checkpoint, load_checkpoint, untrained
from perturbdiff.config import TrainingSettings
from perturbdiff.core.denoiser import Denoiser
from perturbdiff.core.randomness import stream
from perturbdiff.labels.conditions import Conditions
from perturbdiff.training.callbacks import (
    AveragedWeights,
    Interruption,
    Progress,
    RunFolder,
    Start,
    returning_to_the_caller,
)
from perturbdiff.training.cost import Announcement
from perturbdiff.training.module import DenoiserModule
from perturbdiff.training.patience import Patience
from perturbdiff.training.processes import Processes, processes
from perturbdiff.training.resuming import State, clear, identity, resumable
from perturbdiff.training.streams import Epochs, FixedPopulations, PopulationStream, Share, check_share

_LOG = logging.getLogger(__name__)

LOG_EVERY = 10

type Weights = Mapping[str, Tensor]


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


@dataclass(frozen=True)
class Beginning:
    """What a training starts with.

    Attributes:
        described: the model to come, without weights.
        denoiser: the network at step 0.
        finished: trained weights as the model keeps them; as they are when absent.
    """

    described: Checkpoint
    denoiser: Denoiser
    finished: Callable[[Weights], Weights] = dict


def fit(
    described: Checkpoint,
    training: Epochs,
    validation: Epochs | None,
    begin: Callable[[], Beginning],
    *,
    run: Path | None,
    overwrite: bool,
    device: str,
    show_progress: bool,
) -> Outcome:
    """Train a denoiser; several processes, where torchrun or SLURM started them.

    Args:
        described: the model to come, by which a run folder is known.
        training: populations to train on.
        validation: to choose the weights by; None keeps the last ones.
        begin: gives the network at step 0, asked once the run folder has proved to be of this training.
        run: folder to write to and resume from; None keeps the model in memory only.
        overwrite: whether to begin anew where `run` holds a run.
        device: "auto", "cpu", "cuda" or another of Lightning's accelerators.
        show_progress: whether to draw a progress bar.

    Raises:
        ValueError: the run folder holds another run.
    """
    settings, launched = described.settings, processes()
    share = Share(launched.rank, launched.world)
    if run is not None and overwrite and launched.rank == 0:
        clear(run)
    # nothing is taken up that the first process is removing
    resume = None if run is None or overwrite else resumable(run, described)
    begun = begin()
    kept: list[Checkpoint] = []

    def save_model(weights: Weights, history: Mapping[str, Any]) -> None:
        kept.append(replace(begun.described, weights=begun.finished(weights), history=history))
        del kept[:-1]
        if run is not None and launched.rank == 0:
            kept[0].save(run)

    module = DenoiserModule(begun.denoiser, settings, scale=described.scale)
    averaged, interruption = AveragedWeights(settings.training.ema_decay), Interruption()
    folder = RunFolder(
        run,
        averaged,
        save_model,
        every=settings.training.validate_every,
        validates=validation is not None,
        identity=identity(described),
        patience=Patience(settings.training.patience, settings.training.validate_every),
    )
    per_batch = settings.training.populations_per_batch
    plan = training.plan(0, per_batch)[: per_batch // launched.world]
    held_out = None
    if validation is not None:
        held_out = FixedPopulations(validation, per_batch=per_batch, at_most=settings.training.validation_populations)
    trainer = _trainer(
        settings.training,
        [
            averaged,
            folder,
            *([Start(held_out.batches, folder)] if held_out is not None and settings.training.validate_start else []),
            interruption,
            Announcement(training.batch(plan, None)),
            *([Progress.of(settings.training.max_steps)] if show_progress else []),
        ],
        launched,
        loggers=[] if run is None else _loggers(run, resume),
        device=device,
        validates=validation is not None,
        show_progress=show_progress,
    )
    _fit(trainer, module, training, held_out, resume, share)
    if folder.patience.is_over and trainer.global_step < settings.training.max_steps:
        _LOG.info(folder.patience.sentence(settings.training.max_steps))
    # nothing better may have been found after resuming: then the run folder has the kept weights
    checkpoint = kept[0] if kept or run is None else load_checkpoint(run)
    return Outcome(checkpoint, interruption.received is not None, trainer.global_step)


def check_processes(settings: TrainingSettings) -> None:
    """See that the populations of a step can be shared out; of several processes the first alone speaks.

    Raises:
        ValueError: the populations of a step cannot be shared out among them.
    """
    launched = processes()
    check_share(settings.populations_per_batch, Share(launched.rank, launched.world))
    if launched.rank:
        logging.getLogger("perturbdiff").setLevel(logging.WARNING)


def initial(described: Checkpoint, conditions: Conditions) -> Denoiser:
    """The network at step 0: its weights are a function of the seed; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.set_state(stream(described.settings.training.seed, -2).get_state())
        return untrained(described.settings, described.genes, conditions, described.pretraining)


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
    populations: Epochs,
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
