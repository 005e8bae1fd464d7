"""Pretraining in Python: one call from sources to a model that predictions and fine-tunings start from.

pretrained = pretrain("immune.toml", run="runs/immune")
pretrained = pretrain({"atlas": atlas, "screen": screen}, weights={"atlas": 2}, cells={"screen": "controls"})
model = PerturbDiff.from_recipe("screen.toml").train(pretrained=pretrained)
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from perturbdiff.cells.source import Source
from perturbdiff.config import settings_of
from perturbdiff.features.files import Features, tables_of
from perturbdiff.model import PerturbDiff
from perturbdiff.populations.mixing import Member, Mixture, SourceRule, read_mixture
from perturbdiff.prediction.inputs import torch_device
from perturbdiff.recipes.dataset import HoldOut, hold_outs_of
from perturbdiff.recipes.tables import validated
from perturbdiff.spelling import nearest
from perturbdiff.split.rules import split_cells
from perturbdiff.store.open import open_source
from perturbdiff.training.pretraining import Given
from perturbdiff.training.pretraining import pretrain as pretrain_on
from perturbdiff.training.processes import one_at_a_time

_LOG = logging.getLogger(__name__)


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
        mixture, members = read_mixture(Path(sources))
        folder = Path(sources).resolve().parent
        found = [open_source(member.recipe, member.folder or folder) for member in members]
    else:
        mixture, members = _in_memory(sources, weights or {}, cells or {}, {"name": name, **own})
        folder, found = None, [one.source for one in sources.values()]
    settings = settings_of(mixture, training={"max_steps": max_steps, "seed": seed})
    outcome = pretrain_on(
        mixture,
        _given(members, found, hold_out or {}, settings.training.seed, settings.training.cells_per_population),
        settings,
        run=None if run is None else Path(run),
        overwrite=overwrite,
        device=device,
        features=tables_of(features),
        folder=folder,
        show_progress=show_progress,
    )
    trained = PerturbDiff(outcome.checkpoint.recipe, checkpoint=outcome.checkpoint)
    trained.outcome = outcome
    return trained


def _in_memory(
    sources: Mapping[str, PerturbDiff],
    weights: Mapping[str, float],
    cells: Mapping[str, Any],
    tables: Mapping[str, Any],
) -> tuple[Mixture, tuple[Member, ...]]:
    for what, given in (("weights", weights), ("cells", cells)):
        _check_names(what, given, sources)
    rules = [
        validated(SourceRule, {"recipe": name, "weight": weights.get(name, 1.0), "cells": cells.get(name, "all")}, name)
        for name in sources
    ]
    mixture = validated(Mixture, {**tables, "sources": [rule.model_dump() for rule in rules]}, "the arguments")
    members = [
        Member(name, one.recipe, None, rule.weight, rule.cells)
        for (name, one), rule in zip(sources.items(), rules, strict=True)
    ]
    return mixture, tuple(members)


def _given(
    members: Sequence[Member],
    sources: Sequence[Source],
    hold_out: Mapping[str, Any],
    seed: int,
    cells_per_population: int,
) -> list[Given]:
    """The sources with their splits."""
    _check_names("hold_out", hold_out, [member.name for member in members])
    found = []
    for member, source in zip(members, sources, strict=True):
        rules = member.recipe.hold_out
        if member.name in hold_out:
            rules = hold_outs_of(hold_out[member.name], member.recipe)
        split = split_cells(source, rules, seed=seed, cells_per_population=cells_per_population)
        found.append(Given(member, split))
    return found


def _check_names(what: str, given: Mapping[str, Any], sources: Sequence[str] | Mapping[str, Any]) -> None:
    for name in given:
        if name not in sources:
            raise ValueError(f"{what} names {name!r}, which is no source; {nearest(name, sources)}.")
