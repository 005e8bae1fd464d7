"""Predict how a population of single cells responds to a perturbation.

Populations of cells are points of a Hilbert space, and a diffusion model generates such points (Yuan et al. 2026,
arXiv:2602.19685v1).
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perturbdiff.cells.anndata import read_cells
    from perturbdiff.cells.memory import Cells
    from perturbdiff.checkpoint import Checkpoint, load_checkpoint
    from perturbdiff.evaluation.evaluate import evaluate
    from perturbdiff.model import PerturbDiff
    from perturbdiff.recipes.dataset import Recipe, read_recipe
    from perturbdiff.results.evaluation import Evaluation
    from perturbdiff.simulation.screen import simulate
    from perturbdiff.split.rules import Split, split_cells
    from perturbdiff.store.stored import Store

__version__ = version("perturbdiff")

__all__ = [
    "Cells",
    "Checkpoint",
    "Evaluation",
    "PerturbDiff",
    "Recipe",
    "Split",
    "Store",
    "evaluate",
    "load_checkpoint",
    "pretrain",
    "read_cells",
    "read_recipe",
    "simulate",
    "split_cells",
]

_HOMES = {
    "Cells": "cells.memory",
    "Checkpoint": "checkpoint",
    "Evaluation": "results.evaluation",
    "PerturbDiff": "model",
    "Recipe": "recipes.dataset",
    "Split": "split.rules",
    "Store": "store.stored",
    "evaluate": "evaluation.evaluate",
    "load_checkpoint": "checkpoint",
    "pretrain": "pretraining",
    "read_cells": "cells.anndata",
    "read_recipe": "recipes.dataset",
    "simulate": "simulation.screen",
    "split_cells": "split.rules",
}

_BEFORE = {"Comparison": "Evaluation", "compare": "evaluate"}
"""Names of before, which are still found."""


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public name
    """Import a public name when it is first asked for: torch takes seconds and hundreds of MB that not all need."""
    name = _BEFORE.get(name, name)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
