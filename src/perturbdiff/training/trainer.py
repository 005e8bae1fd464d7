"""From cells and a split to a model of perturbations, from new weights or from those of a pretrained model."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from perturbdiff.checkpoint import Checkpoint, ModelSpec
from perturbdiff.features.tables import FeatureTable
from perturbdiff.files.totals import total_genes
from perturbdiff.populations.changes import measured_changes
from perturbdiff.populations.epochs import Populations
from perturbdiff.populations.expected import ExpectedPopulations
from perturbdiff.recipes.dataset import Recipe
from perturbdiff.recipes.settings import Settings
from perturbdiff.split.audit import repeated_names
from perturbdiff.split.rules import HELD_OUT, Split
from perturbdiff.training.fitting import InitialState, TrainingResult, check_processes, fit, initial
from perturbdiff.training.preparation import Prepared, drawable, prepare
from perturbdiff.training.run import Run
from perturbdiff.training.streams import Epochs
from perturbdiff.training.transfer import begun_from, check_unseen, transferred

MANY = 1 << 20
"""Of so many training cells it is said that a pass over them begins."""

_LOG = logging.getLogger(__name__)


def train(
    split: Split,
    recipe: Recipe,
    settings: Settings,
    *,
    run: Run,
    data_folder: Path | None = None,
    features: Mapping[str, FeatureTable] | None = None,
    pretrained: Checkpoint | None = None,
) -> TrainingResult:
    """Train a model on the training part of a split; several processes, where torchrun or SLURM started them.

    Args:
        split: of the recipe's cells.
        recipe: of the data, kept in the checkpoint.
        settings: of the model, the training and the sampling; with a pretrained model as `fine_tuned` gives them.
        run: its folder and its device.
        data_folder: that the recipe's files are relative to.
        features: of labels, in place of those that the settings name, by covariate.
        pretrained: to begin from, see `training.transfer`.

    Raises:
        ValueError: cells share a name; the run folder holds another run; the panel does not fit, or a group has no
            control cells; or the pretrained model has seen held-out cells.
    """
    if split.source.control is None:
        raise ValueError(
            f"the cells of {recipe.name!r} have no perturbation, so there is no response to train on; pretrain on them."
        )
    check_processes(settings.training)
    settings = drawable(split, settings)
    for leak in repeated_names(split.source):
        raise ValueError(leak)
    if pretrained is not None:
        check_unseen(pretrained, split)
    n_cells = split.of("train").n_cells
    if n_cells > MANY and split.source.moments(split.hash) is None:
        _LOG.info(f"measuring the genes of {n_cells:,} training cells; this is one pass over them.")
    prepared = prepare(split, recipe, settings, folder=data_folder, features=features)
    for note in (*split.source.notes, *split.notes, *prepared.notes):
        _LOG.info(note)
    spec = ModelSpec(
        settings=settings,
        genes=prepared.genes,
        scale=prepared.scale,
        vocabularies=prepared.conditions.trained,
        features=prepared.conditions.features,
        recipe=recipe,
        folder=None if data_folder is None else str(data_folder.resolve()),
        split=describe(split),
        total_genes=total_genes(split.source.genes, recipe),
        begun_from=None if pretrained is None else begun_from(pretrained),
    )

    def begin() -> InitialState:
        begun = _begun(spec, prepared, split)
        return begun if pretrained is None else transferred(pretrained, begun)

    return fit(spec, begin, run=run)


def _begun(spec: ModelSpec, prepared: Prepared, split: Split) -> InitialState:
    """The network at step 0, and its populations, with what is expected of them where it departs from that."""
    conditions, runs, changes = prepared.conditions, split.source.runs, None
    trained = conditions.trained["perturbation"]
    if spec.settings.model.target in {"residual", "counts"}:
        changes = measured_changes(prepared.training, runs)
        conditions = conditions.fitted(torch.from_numpy(changes.pooled(len(trained))))
    fitted = replace(spec, fit=conditions.fit, changes=changes)
    expectation = fitted.expectation(conditions)

    def told(populations: Populations, *, in_all_ways: bool) -> Epochs:
        if expectation is None:
            return populations
        control = trained.index(str(prepared.control))
        return ExpectedPopulations(populations, expectation, runs, in_all_ways=in_all_ways, control=control)

    return InitialState(
        fitted,
        initial(fitted, conditions),
        told(prepared.training, in_all_ways=True),
        None if prepared.validation is None else told(prepared.validation, in_all_ways=False),
    )


def describe(split: Split) -> dict[str, Any]:
    """What a checkpoint keeps of a split: its hash, its seed, and the conditions of each held-out part."""
    return {
        "hash": split.hash,
        "seed": split.seed,
        "conditions": {part: split.groups(part).to_dict(orient="records") for part in HELD_OUT},
    }
