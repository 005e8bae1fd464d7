"""Pretraining in Python: one call from sources to a model that predictions and fine-tunings start from.

pretrained = pretrain("immune.toml", run="runs/immune")
pretrained = pretrain({"atlas": atlas, "screen": screen}, weights={"atlas": 2}, cells={"screen": "controls"})
model = PerturbDiff.from_recipe("screen.toml").train(pretrained=pretrained)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from perturbdiff.features.files import Features, tables_of
from perturbdiff.model import PerturbDiff
from perturbdiff.prediction.inputs import torch_device
from perturbdiff.recipes.mixture import mixture_in_memory
from perturbdiff.recipes.selection import HoldOut
from perturbdiff.store.open import mixture_at, open_source
from perturbdiff.training.marginal import pretrain as pretrain_on
from perturbdiff.training.marginal import split_sources
from perturbdiff.training.processes import one_at_a_time
from perturbdiff.training.run import Run


@one_at_a_time
def pretrain(
    sources: str | Path | Mapping[str, PerturbDiff],
    *,
    weights: Mapping[str, float] | None = None,
    cells: Mapping[str, Literal["all", "controls"]] | None = None,
    hold_out: Mapping[str, Sequence[Mapping[str, Any] | HoldOut]] | None = None,
    n_genes: int | None = None,
    genes: Sequence[str] | None = None,
    encoders: Mapping[str, Any] | None = None,
    features: Mapping[str, Features] | None = None,
    model: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    sampling: Mapping[str, Any] | None = None,
    name: str = "mixture",
    run: str | Path | None = None,
    max_steps: int | None = None,
    seed: int | None = None,
    overwrite: bool = False,
    device: str = "auto",
    show_progress: bool = True,
) -> PerturbDiff:
    """Pretrain a model on unlabelled cells; the same call on the same folder resumes.

    Args:
        sources: a file of a mixture, a recipe or a store; or untrained models by the name of their source, which hold
            cells and say what their columns are.
        weights: shares of the populations, by source; 1 when absent. This and all up to `name` are of models: a file
            says them itself.
        cells: "all" training cells of a source (the default), or its "controls" only.
        hold_out: rules in place of those of the sources' recipes, by source.
        n_genes: genes of highest variability that each source gives to the panel; None takes all genes.
        genes: the panel itself.
        encoders: what stands for cell types and assay batches, as in the tables [encoders.NAME] of a recipe.
        features: of cell types or assay batches, as in `PerturbDiff.from_anndata`.
        model: settings of the network, as in the table [model] of a recipe.
        training: settings of the training.
        sampling: settings of the sampling.
        name: of the mixture.
        run: folder for the model, its logs and the state to resume from.
        max_steps: in place of the setting.
        seed: in place of the setting.
        overwrite: whether to begin anew where `run` holds a run.
        device: "auto", "cpu", "cuda".
        show_progress: whether to draw a bar.

    Returns:
        A model that predicts the cells of a cell type and assay batch, and that `PerturbDiff.train` can begin from.

    Raises:
        ValueError: held-out cells would train, a setting does not fit, or `run` holds another run.
        FileNotFoundError: a file is not there.
    """
    torch_device(device)
    own = {
        "n_genes": n_genes,
        "genes": None if genes is None else tuple(genes),
        "encoders": dict(encoders or {}),
        "model": dict(model or {}),
        "training": dict(training or {}),
        "sampling": dict(sampling or {}),
    }
    if isinstance(sources, str | Path):
        refused = [key for key, value in {**own, "weights": weights, "cells": cells}.items() if value]
        if refused:
            raise ValueError(f"{refused[0]} was given, but {str(sources)!r} says that; change the file instead.")
        mixture, members = mixture_at(Path(sources))
        folder = Path(sources).resolve().parent
        found = [open_source(member.recipe, member.folder or folder) for member in members]
    else:
        recipes = {known: one.recipe for known, one in sources.items()}
        mixture, members = mixture_in_memory(recipes, weights or {}, cells or {}, {"name": name, **own})
        folder, found = None, [one.source for one in sources.values()]
    settings = mixture.settings_with(training={"max_steps": max_steps, "seed": seed})
    outcome = pretrain_on(
        mixture,
        split_sources(members, found, hold_out or {}, settings),
        settings,
        run=Run(None if run is None else Path(run), overwrite, device, show_progress),
        features=tables_of(features),
        folder=folder,
    )
    trained = PerturbDiff(outcome.checkpoint.recipe, checkpoint=outcome.checkpoint)
    trained.outcome = outcome
    return trained
