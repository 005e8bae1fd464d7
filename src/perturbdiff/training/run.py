"""A run: its folder and its device, the state that it is resumed from, and whether that is of the same training.

A run may be prolonged, by max_steps or patience; everything else that its weights depend on must be as it was:
settings, columns and labels, gene panel, scale and split.
"""

import hashlib
import json
import logging
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint

from perturbdiff.checkpoint import DESCRIPTION, LOGS, WEIGHTS, ModelSpec, load_checkpoint
from perturbdiff.features.tables import FeatureTable
from perturbdiff.training.callbacks import RESUME, RunFolder

_LOG = logging.getLogger(__name__)


class Run(NamedTuple):
    """Where and how a training runs, whatever it trains on.

    Attributes:
        folder: to write to and resume from; None keeps the model in memory only.
        overwrite: whether to begin anew where `folder` holds a run; it is removed once the data have proved sound.
        device: "auto", "cpu", "cuda" or another of Lightning's accelerators.
        show_progress: whether to draw a progress bar.
    """

    folder: Path | None = None
    overwrite: bool = False
    device: str = "auto"
    show_progress: bool = True


class State(NamedTuple):
    """Where a run can be taken up again: Lightning's file, and the step that it was written after."""

    path: Path
    step: int


def resumable(run: Path, spec: ModelSpec) -> State | None:
    """The state to resume from, where the folder holds this same run; None where it holds none.

    Raises:
        ValueError: it holds another run, or its state is damaged.
    """
    holds_model, resume = (run / DESCRIPTION).exists(), run / RESUME
    if not holds_model and not resume.exists():
        return None
    if holds_model:
        _refuse_another(run, bound(load_checkpoint(run)), bound(spec))
    if not resume.exists():
        raise ValueError(f"{str(run)!r} holds a model without {RESUME}; choose another folder, or overwrite it.")
    state = _load(resume)
    if state.get("callbacks", {}).get(RunFolder.__qualname__, {}).get("identity") != identity(spec):
        _refuse_another(run, {}, {"settings or data": ""})
    _LOG.info(f"resuming from {str(resume)!r}.")
    return State(resume, int(state["global_step"]))


def bound(spec: ModelSpec) -> dict[str, Any]:
    """What must not change in a resumed run, as JSON, by the name that a user knows it by."""
    settings, recipe = spec.settings.model_dump(mode="json"), spec.recipe
    for prolongs in ("max_steps", "patience"):
        settings["training"].pop(prolongs)
    return {
        "settings": settings,
        "columns": [recipe.columns.model_dump(), recipe.expression.model_dump(), recipe.control],
        "perturbation": recipe.perturbation.model_dump(),
        "features": {name: [table.labels, _digest(table)] for name, table in spec.features.items()},
        "labels": {name: list(known.labels) for name, known in spec.vocabularies.items()},
        "genes": list(spec.genes),
        "scale": spec.scale,
        "split": spec.split["hash"],
        "sources": [] if spec.pretraining is None else list(spec.pretraining.sources),
        "the pretrained model": None if spec.begun_from is None else spec.begun_from["weights"],
    }


def identity(spec: ModelSpec) -> str:
    """One hash of it all."""
    return hashlib.sha256(json.dumps(bound(spec), sort_keys=True).encode()).hexdigest()


def _digest(table: FeatureTable) -> str:
    return hashlib.sha256(table.values.tobytes()).hexdigest()


def clear(run: Path) -> None:
    """Remove what an earlier run wrote, and nothing else."""
    if not (run / DESCRIPTION).exists() and not (run / RESUME).exists():
        return
    for name in (WEIGHTS, DESCRIPTION, RESUME, "recipe.toml"):
        (run / name).unlink(missing_ok=True)
    shutil.rmtree(run / LOGS, ignore_errors=True)


def _refuse_another(run: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    differing = ", ".join(name for name, value in here.items() if there.get(name) != value)
    if differing:
        raise ValueError(
            f"{str(run)!r} holds another run (it differs in {differing}), and nothing is overwritten unasked; choose "
            "another folder, or overwrite it."
        )


def _load(path: Path) -> dict[str, Any]:
    try:
        if zipfile.is_zipfile(path) and not get_unsafe_globals_in_checkpoint(path):
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            return state
    except RuntimeError:
        pass
    raise ValueError(
        f"{str(path)!r} is damaged, so the run cannot be resumed; the model beside it is as it was: choose another "
        "folder, or overwrite the run."
    )


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """One hash of some weights."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
