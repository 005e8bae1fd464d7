"""Averaged weights with a warmed-up decay, the run folder, and an end in good order when interrupted."""

import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar, WeightAveraging
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from torch import Tensor

from perturbdiff.training.patience import Energies, Patience, proven
from perturbdiff.training.streams import ValidationBatch

RESUME = "resume.ckpt"
"""Lightning's file of the whole training state; plain tensors, numbers and text only."""

SaveModel = Callable[[Mapping[str, Tensor], Mapping[str, Any]], None]


class AveragedWeights(WeightAveraging):
    """An exponential moving average whose n-th update decays by min(decay, (1 + n) / (10 + n)).

    A constant decay would still sit on the first weights after a few hundred steps.
    """

    def __init__(self, decay: float) -> None:
        def average(averaged: Tensor, current: Tensor, n_averaged: Tensor | int) -> Tensor:
            kept = min(decay, (1 + float(n_averaged)) / (10 + float(n_averaged)))
            return averaged.lerp(current, 1 - kept)

        # what is no weight is the same at every step
        super().__init__(use_buffers=False, avg_fn=average)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the trained weights in the module: training may be resumed from them, and `weights` has the others."""

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights of the denoiser, by name."""
        if self._average_model is None:
            raise ValueError("there are no averaged weights before training has begun; begin it first.")
        denoiser: Any = self._average_model.module.denoiser
        return {name: value.detach().clone() for name, value in denoiser.state_dict().items()}


class RunFolder(Callback):
    """Keeps the best averaged weights, by validation energy, and the state to resume from.

    Without a validation the last weights are kept. Stands after the averaging in the list of callbacks, whose update
    belongs to the step.

    Args:
        folder: of the run; None keeps the best weights in memory only.
        averaged: the averaging callback.
        save_model: writes a model, given its weights and its history.
        every: steps between two resume files.
        validates: whether there is a validation.
        identity: of the run; kept in the resume file, so that no other run takes it up.
        patience: with validations that are no better.
        unjudged: whether nothing can judge what would be learned beyond the weights of step 0, so that they are kept.
    """

    def __init__(
        self,
        folder: Path | None,
        averaged: AveragedWeights,
        save_model: SaveModel,
        *,
        every: int,
        validates: bool,
        identity: str,
        patience: Patience,
        unjudged: bool = False,
    ) -> None:
        self.unjudged = unjudged
        self.folder = folder
        self.averaged = averaged
        self.save_model = save_model
        self.every = every
        self.validates = validates
        self.identity = identity
        self.patience = patience
        self.best = math.inf
        self.best_step = -1
        self.start: list[float] | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights where they are the best so far, write the state to resume from, and end where it is time."""
        module: Any = pl_module
        self.judge(trainer, module.energies)
        self._write_state(trainer)
        self._end_in_time(trainer)

    def judge(self, trainer: Trainer, energies: Energies) -> None:
        """Keep the weights where their validation energy is the best so far, and proven to be below that of step 0."""
        energy = energies.mean
        if trainer.global_step == 0:
            self.start = list(energies.populations)
        self.patience.see(trainer.global_step, energy)
        first = trainer.global_step == 0 or self.start is None
        if energy < self.best and (first or proven(energies, self.start or [])):
            self.best, self.best_step = energy, trainer.global_step
            self._keep(trainer, energy)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Do not go on where patience ended an earlier training, and do not begin where nothing would judge it."""
        self._end_in_time(trainer)
        trainer.should_stop = trainer.should_stop or self.unjudged

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ANN401, ARG002
        batch: Any,  # noqa: ANN401, ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Write the state to resume from, every so many steps, where no validation does it."""
        # the last state is written when training ends, after the model
        if not self.validates and trainer.global_step % self.every == 0 and trainer.global_step < trainer.max_steps:
            self._write_state(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Leave a usable model and the state to resume from, however training ended."""
        if not self.validates or self.best_step < 0:
            self._keep(trainer, None)
        self._write_state(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The best so far, for resuming."""
        return {
            "best": self.best,
            "best_step": self.best_step,
            "start": self.start,
            "identity": self.identity,
            "patience": self.patience.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The best so far, when resuming."""
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]
        # states of before weights had to prove themselves have nothing that these would be held against
        self.start = state_dict.get("start")
        # states of before there was a patience have none: it begins anew
        self.patience.load_state_dict(state_dict.get("patience", self.patience.state_dict()))

    def _end_in_time(self, trainer: Trainer) -> None:
        # every process has the same energies, so all end together
        if self.patience.is_over:
            trainer.should_stop = True

    def _keep(self, trainer: Trainer, energy: float | None) -> None:
        weights = self.averaged.weights()
        if not all(bool(value.isfinite().all()) for value in weights.values()):
            raise ValueError(f"the weights are not finite after step {trainer.global_step}; lower learning_rate.")
        self.save_model(weights, {"step": trainer.global_step, "validation_energy": energy})

    def _write_state(self, trainer: Trainer) -> None:
        if self.folder is None:
            return
        # of one name for all processes, which write it together
        temporary = self.folder / f".{RESUME}.part"
        trainer.save_checkpoint(temporary)
        if trainer.is_global_zero:
            temporary.replace(self.folder / RESUME)


class Start(Callback):
    """Judges the weights that training begins with, so that it never ends with worse ones.

    Args:
        batches: of the validation.
        folder: keeps them where nothing better is found.
    """

    def __init__(self, batches: Sequence[ValidationBatch], folder: RunFolder) -> None:
        self.batches = batches
        self.folder = folder

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge them, where training does not go on from an earlier one."""
        if trainer.global_step > 0:
            return
        module: Any = pl_module
        with trainer.precision_plugin.val_step_context():
            for i, batch in enumerate(self.batches):
                module.validation_step(module.transfer_batch_to_device(batch, module.device, 0), i)
        energies = module.validation_energies()
        self.folder.judge(trainer, energies)
        for logger in trainer.loggers:
            logger.log_metrics({"validation energy": energies.mean}, step=0)


class Interruption(Callback):
    """The first Ctrl-C or SIGTERM ends training after the step at hand, in good order; the second at once.

    Handlers are put in place for the time of training only, and only in the main thread, which alone receives signals.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Listen."""
        if threading.current_thread() is not threading.main_thread():
            return

        def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
            self.received = signal.Signals(number)
            # of several processes none may stop alone: the others would wait for it
            trainer.should_stop = trainer.world_size == 1
            self._restore()

        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.getsignal(number)
            signal.signal(number, stop)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ANN401, ARG002
        batch: Any,  # noqa: ANN401, ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """All processes stop after the same step, whichever received the signal."""
        if trainer.world_size > 1:
            stop = trainer.strategy.reduce_boolean_decision(self.received is not None, all=False)
            if stop:
                trainer.should_stop, self.received = True, self.received or signal.SIGTERM

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Listen no more."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Listen no more."""
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()


@contextmanager
def returning_to_the_caller() -> Iterator[None]:
    """At a second Ctrl-C Lightning ends the interpreter and leaves Ctrl-C dead: raise KeyboardInterrupt instead."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


class Progress(TQDMProgressBar):
    """Lightning's bar for training, without its version number, on standard error: standard output is for results.

    Where standard error is no terminal but a log, the bar is written about ten times in all and at validations.
    """

    @classmethod
    def of(cls, max_steps: int) -> "Progress":
        """The bar of a training of so many steps."""
        return cls(refresh_rate=1 if sys.stderr.isatty() else max(1, max_steps // 10))

    def init_train_tqdm(self) -> Tqdm:
        """The bar of the steps."""
        return Tqdm(
            desc="training",
            disable=self.is_disabled,
            leave=True,
            dynamic_ncols=True,
            file=sys.stderr,
            smoothing=0,
            bar_format=self.BAR_FORMAT,
        )

    def init_validation_tqdm(self) -> Tqdm:
        """No bar: a validation is short."""
        return Tqdm(disable=True, file=sys.stderr)

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Loss, cells/s and validation energy."""
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        return shown
