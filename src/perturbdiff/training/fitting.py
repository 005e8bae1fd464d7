"""Lightning's loop around a denoiser, and the run folder: what every training has in common, whatever it trains on.

A run folder holds the model, `resume.ckpt` (Lightning's state, always loaded with ``weights_only=True``), and `logs/`
(CSV and TensorBoard). The same call on the same folder resumes; a folder that holds another run is refused.
"""

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader

from perturbdiff.checkpoint import LOGS, Checkpoint, ModelSpec, load_checkpoint, untrained
from perturbdiff.core.denoiser import Denoiser
from perturbdiff.core.randomness import stream
from perturbdiff.labels.conditions import Conditions
from perturbdiff.recipes.settings import TrainingSettings
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
from perturbdiff.training.run import Run, State, clear, identity, resumable
from perturbdiff.training.streams import Epochs, FixedPopulations, PopulationStream, check_share

_LOG = logging.getLogger(__name__)

LOG_EVERY = 10

type Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class TrainingResult:
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
class InitialState:
    """What a training starts with.

    Attributes:
        spec: of the model to come.
        denoiser: the network at step 0.
        training: populations to train on.
        validation: to choose the weights by; None keeps the last ones.
        finished: trained weights as the model keeps them; as they are when absent.
    """

    spec: ModelSpec
    denoiser: Denoiser
    training: Epochs
    validation: Epochs | None
    finished: Callable[[Weights], Weights] = dict


def fit(
    spec: ModelSpec,
    begin: Callable[[], InitialState],
    *,
    run: Run,
) -> TrainingResult:
    """Train a denoiser; several processes, where torchrun or SLURM started them.

    Args:
        spec: of the model to come, by which a run folder is known.
        begin: gives what it starts with, asked once the run folder has proved to be of this training.
        run: its folder and its device.

    Raises:
        ValueError: the run folder holds another run.
    """
    settings, launched, folder = spec.settings, processes(), run.folder
    if folder is not None and run.overwrite and launched.rank == 0:
        clear(folder)
    # nothing is taken up that the first process is removing
    resume = None if folder is None or run.overwrite else resumable(folder, spec)
    initial_state = begin()
    training, validation = initial_state.training, initial_state.validation
    kept: list[Checkpoint] = []

    def save_model(weights: Weights, history: Mapping[str, Any]) -> None:
        kept.append(initial_state.spec.with_weights(initial_state.finished(weights), history))
        del kept[:-1]
        if folder is not None and launched.rank == 0:
            kept[0].save(folder)

    module = DenoiserModule(initial_state.denoiser, settings, scale=spec.scale)
    averaged, interruption = AveragedWeights(settings.training.ema_decay), Interruption()
    keeper = RunFolder(
        folder,
        averaged,
        save_model,
        every=settings.training.validate_every,
        validates=validation is not None,
        identity=identity(spec),
        patience=Patience(settings.training.patience, settings.training.validate_every),
        unjudged=_unjudged(initial_state),
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
            keeper,
            *([Start(held_out.batches, keeper)] if held_out is not None and settings.training.validate_start else []),
            interruption,
            Announcement(training.batch(plan, None)),
            *([Progress.of(settings.training.max_steps)] if run.show_progress else []),
        ],
        launched,
        run,
        loggers=[] if folder is None else _loggers(folder, resume),
        validates=validation is not None,
    )
    _fit(trainer, module, training, held_out, resume, launched)
    if keeper.patience.is_over and trainer.global_step < settings.training.max_steps:
        _LOG.info(keeper.patience.sentence(settings.training.max_steps))
    # nothing better may have been found after resuming: then the run folder has the kept weights
    checkpoint = kept[0] if kept or folder is None else load_checkpoint(folder)
    return TrainingResult(checkpoint, interruption.received is not None, trainer.global_step)


def _unjudged(begun: InitialState) -> bool:
    """Whether nothing can judge what a network would learn beyond what is expected; said where it is so."""
    settings = begun.spec.settings.training
    if begun.validation is not None or begun.spec.changes is None or not settings.validate_start:
        return False
    _LOG.warning(
        "without validation cells nothing tells whether a trained network is better than what is expected, so training "
        'ends before its first step: hold out some conditions (hold_out, part = "validation"), or set '
        "training.validate_start = false to train all the same."
    )
    return True


def check_processes(settings: TrainingSettings) -> None:
    """See that the populations of a step can be shared out; of several processes the first alone speaks.

    Raises:
        ValueError: the populations of a step cannot be shared out among them.
    """
    launched = processes()
    check_share(settings.populations_per_batch, launched)
    if launched.rank:
        logging.getLogger("perturbdiff").setLevel(logging.WARNING)


def initial(spec: ModelSpec, conditions: Conditions) -> Denoiser:
    """The network at step 0: its weights are a function of the seed; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.set_state(stream(spec.settings.training.seed, -2).get_state())
        return untrained(spec, conditions)


def _loggers(folder: Path, resume: State | None) -> list[Logger]:
    """CSV and TensorBoard in `logs`; the CSV of a resumed run in a folder of its own, beside what was logged before."""
    version = "" if resume is None else f"from_step_{resume.step}"
    folder.mkdir(parents=True, exist_ok=True)
    return [
        CSVLogger(folder, name=LOGS, version=version, flush_logs_every_n_steps=LOG_EVERY),
        TensorBoardLogger(folder, name=LOGS, version=""),
    ]


def _trainer(
    training: TrainingSettings,
    callbacks: list[Callback],
    launched: Processes,
    run: Run,
    *,
    loggers: list[Logger],
    validates: bool,
) -> Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    return Trainer(
        accelerator=run.device,
        devices=launched.per_node,
        num_nodes=launched.nodes,
        strategy="ddp" if launched.world > 1 else "auto",
        # the populations are shared out by their stream, and every process validates on all of them
        use_distributed_sampler=False,
        precision=_precision(training, run.device),
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
        enable_progress_bar=run.show_progress,
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
    share: Processes,
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
