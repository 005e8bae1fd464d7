"""A trained model on disk: weights in safetensors, everything else that they mean in JSON.

    model.safetensors   the averaged weights, and the features of labels
    model.json          format, version, settings, gene panel, scale, vocabularies, recipe, split, history

Both are written to temporary names and moved into place, the JSON last: it holds the hash of the weights, so a pair
that does not belong together is refused. No code is run by loading.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from perturbdiff.building import build_denoiser
from perturbdiff.cells.contexts import Changes
from perturbdiff.cells.order import Hashes
from perturbdiff.core.denoiser import Denoiser
from perturbdiff.core.expectation import NOTHING_FITTED, Fit
from perturbdiff.features.tables import FeatureTable, features_from
from perturbdiff.io import whole_file
from perturbdiff.labels.conditions import Conditions
from perturbdiff.labels.members import grammar_of
from perturbdiff.labels.vocabulary import Vocabulary
from perturbdiff.populations.expected import Expectation
from perturbdiff.recipes.dataset import Recipe, recipe_from_mapping
from perturbdiff.recipes.settings import Settings
from perturbdiff.recipes.tables import validated
from perturbdiff.split.fingerprints import Seen

FORMAT = 6
"""Raised with every change that an older version could not read."""

WEIGHTS, DESCRIPTION, LOGS = "model.safetensors", "model.json", "logs"
"""What a run's folder holds beside its recipe and the state to resume from."""

FEATURES = "features/"
"""Before a covariate's name: the tensor of its labels' features, beside the weights."""

CHANGES = "changes/"
"""Before a name: what the change that is expected is made of."""

SEEN = "seen/"
"""Before a number and a kind: the hashes of a source's cells."""


@dataclass(frozen=True, eq=False)
class Pretraining:
    """The sources of a marginal pretraining.

    Attributes:
        sources: of each its name, weight, cells, hash of its split, own list of genes and its assay batches' names.
        seen: the cells of each that trained.
    """

    sources: tuple[Mapping[str, Any], ...]
    seen: tuple[Seen, ...]

    def source_of_batches(self, batches: Vocabulary) -> Tensor:
        """The source, 1 and up, of each label of assay batch [labels + 1]; 0 for the null."""
        owner = {label: i for i, own in enumerate(self.sources, start=1) for label in own["batches"].values()}
        return torch.tensor([0, *(owner.get(label, 0) for label in batches.labels)])


@dataclass(frozen=True, eq=False, kw_only=True)
class ModelSpec:
    """What the numbers of a model mean, trained or to be trained: all but its weights.

    Attributes:
        settings: of the run that trains it.
        genes: the panel, in the order of the network's inputs and outputs.
        scale: what log1p counts per 10^4 were divided by.
        vocabularies: of the labels that training has seen, one for each covariate.
        recipe: of the data it was trained on.
        folder: that the recipe's files are relative to; None where the data were in memory.
        split: hash, seed, and the conditions of each held-out part.
        features: of labels or agents, by covariate; the covariates that have some.
        fit: of what is expected of unseen perturbations.
        changes: of the training conditions, of which what is expected is made; None where nothing is.
        pretraining: what a marginal pretraining was on; None in a model of perturbations.
        total_genes: over which the total counts of the training cells ran; None where a column gives them, where the
            values were log1p, where files of different genes were joined, and in older models.
        begun_from: of a fine-tuned model the hash of the pretrained weights, their sources, and what was kept of them.
    """

    settings: Settings
    genes: tuple[str, ...]
    scale: float
    vocabularies: Mapping[str, Vocabulary]
    recipe: Recipe
    folder: str | None
    split: Mapping[str, Any]
    features: Mapping[str, FeatureTable] = field(default_factory=dict)
    fit: Fit = NOTHING_FITTED
    changes: Changes | None = None
    pretraining: Pretraining | None = None
    begun_from: Mapping[str, Any] | None = None
    total_genes: tuple[str, ...] | None = None

    @cached_property
    def conditions(self) -> Conditions:
        """What the model can be asked."""
        return Conditions(
            self.vocabularies,
            grammar_of(self.recipe),
            self.recipe.control,
            self.features,
            self.settings.encoders.with_learned_labels,
            self.fit,
        )

    def expectation(self, conditions: Conditions) -> Expectation | None:
        """The change that is expected of labels in contexts; None where none is."""
        if self.changes is None:
            return None
        weights = conditions.weights
        return Expectation(
            self.changes,
            None if weights is None else weights.numpy(),
            scale=self.scale,
            counts=self.settings.model.target == "counts",
        )

    def with_weights(self, weights: Mapping[str, Tensor], history: Mapping[str, Any]) -> "Checkpoint":
        """The trained model."""
        known = {one.name: getattr(self, one.name) for one in fields(ModelSpec)}
        return Checkpoint(**known, weights=weights, history=history)


@dataclass(frozen=True, eq=False, kw_only=True)
class Checkpoint(ModelSpec):
    """A trained denoiser and what its numbers mean.

    Attributes:
        weights: of the denoiser, by name.
        history: step of these weights, validation energy.
    """

    weights: Mapping[str, Tensor]
    history: Mapping[str, Any] = field(default_factory=dict)

    def denoiser(self, conditions: Conditions | None = None) -> Denoiser:
        """The network with these weights, in evaluation mode, on the CPU; for more labels than its own, perhaps."""
        # initial weights are drawn only to be replaced
        with torch.random.fork_rng(devices=[]):
            model = untrained(self, conditions or self.conditions)
        try:
            model.load_state_dict(dict(self.weights))
        except RuntimeError:
            raise ValueError(
                f"the weights do not fit the {len(self.genes)} genes, labels and settings described beside them in "
                f"{DESCRIPTION}, so it was changed; copy the folder of the model again."
            ) from None
        return model.eval().requires_grad_(requires_grad=False)

    def with_features(self, features: Mapping[str, FeatureTable]) -> "Checkpoint":
        """With features of more labels, beside those that it has.

        Raises:
            ValueError: it was trained without features of that covariate, or they are of another width.
        """
        joined = dict(self.features)
        for name, table in features.items():
            if name not in joined:
                raise ValueError(
                    f"this model was trained without features of {name}, so it cannot use {table.origin}; train one "
                    f"with encoders.{name}."
                )
            joined[name] = joined[name].joined(table)
        return replace(self, features=joined)

    def save(self, folder: Path) -> None:
        """Write both files into `folder`, which is made where it is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        beside = {FEATURES + name: torch.from_numpy(table.values) for name, table in self.features.items()}
        seen = () if self.pretraining is None else self.pretraining.seen
        for i, own in enumerate(seen):
            beside |= {f"{SEEN}{i}/{kind}": _signed(getattr(own, kind)) for kind in ("names", "profiles")}
        changes = self.changes
        if changes is not None:
            beside |= {CHANGES + name: torch.from_numpy(array) for name, array in changes.arrays().items()}
        weights = save({k: value.detach().cpu().contiguous() for k, value in {**self.weights, **beside}.items()})
        description = {
            "format": FORMAT,
            "version": version("perturbdiff"),
            "weights": hashlib.sha256(weights).hexdigest(),
            "settings": self.settings.model_dump(mode="json"),
            "genes": list(self.genes),
            "scale": self.scale,
            "vocabularies": {name: list(known.labels) for name, known in self.vocabularies.items()},
            "features": {name: [list(table.labels), table.origin] for name, table in self.features.items()},
            "fit": {
                "penalty": self.fit.penalty if math.isfinite(self.fit.penalty) else None,
                "ratios": [[*modalities, ratio] for modalities, ratio in self.fit.ratios.items()],
            },
            "contexts": None if changes is None else changes.facts(),
            "recipe": self.recipe.model_dump(mode="json", exclude_none=True),
            "folder": self.folder,
            "split": dict(self.split),
            "history": dict(self.history),
            "pretraining": None
            if self.pretraining is None
            else [
                {**source, "n_cells": own.n_cells, "limit": own.limit}
                for source, own in zip(self.pretraining.sources, seen, strict=True)
            ],
            "total_genes": None if self.total_genes is None else list(self.total_genes),
            "begun_from": None if self.begun_from is None else dict(self.begun_from),
        }
        with whole_file(folder / WEIGHTS) as partial:
            partial.write_bytes(weights)
        with whole_file(folder / DESCRIPTION) as partial:
            partial.write_bytes(json.dumps(description, indent=1, ensure_ascii=False).encode())


def untrained(spec: ModelSpec, conditions: Conditions) -> Denoiser:
    """A new network for a model and these labels."""
    sources = (
        None if spec.pretraining is None else spec.pretraining.source_of_batches(conditions.trained["assay_batch"])
    )
    return build_denoiser(
        spec.settings,
        n_genes=len(spec.genes),
        labels=conditions.covariates(),
        scale=spec.scale,
        sources=sources,
    )


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a model from its folder.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: a newer version wrote it, or a file is damaged.
    """
    description = _description(folder)
    try:
        weights = (folder / WEIGHTS).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{str(folder / WEIGHTS)!r} is missing; copy the whole folder of the model.") from None
    if hashlib.sha256(weights).hexdigest() != description.get("weights"):
        raise ValueError(
            f"{str(folder / WEIGHTS)!r} is damaged: its hash is not the one in {DESCRIPTION}; copy the folder again, "
            "or train again."
        )
    try:
        tensors = load(weights)
        features = {
            name: features_from(labels, tensors.pop(FEATURES + name).numpy(), origin)
            for name, (labels, origin) in description.get("features", {}).items()
        }
        pretraining = _pretraining(description.get("pretraining"), tensors)
        changes = _changes(description, tensors)
        return Checkpoint(
            weights=tensors,
            settings=validated(Settings, description["settings"], DESCRIPTION),
            genes=tuple(description["genes"]),
            scale=float(description["scale"]),
            vocabularies={
                name: Vocabulary(name, tuple(labels)) for name, labels in description["vocabularies"].items()
            },
            recipe=recipe_from_mapping(description["recipe"], DESCRIPTION),
            folder=description["folder"],
            split=description["split"],
            history=description["history"],
            features=features,
            fit=_fit(description.get("fit")),
            changes=changes,
            pretraining=pretraining,
            begun_from=description.get("begun_from"),
            total_genes=None if (total := description.get("total_genes")) is None else tuple(total),
        )
    except (KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ValueError(
            f"{str(folder)!r} is not a whole model ({type(error).__name__}: {error}); copy the folder again, or train "
            "again."
        ) from None


def _pretraining(table: list[dict[str, Any]] | None, tensors: dict[str, Tensor]) -> Pretraining | None:
    """The sources, whose hashes are taken out of the tensors."""
    if table is None:
        return None
    sources, seen = [], []
    for i, described in enumerate(table):
        found = {kind: tensors.pop(f"{SEEN}{i}/{kind}").numpy().view(np.uint64) for kind in ("names", "profiles")}
        n_cells, limit = (int(described.pop(key)) for key in ("n_cells", "limit"))
        seen.append(Seen(described["name"], n_cells, limit, **found))
        sources.append(described)
    return Pretraining(tuple(sources), tuple(seen))


def _changes(description: Mapping[str, Any], tensors: dict[str, Tensor]) -> Changes | None:
    """What is expected, which is taken out of the tensors."""
    if "shift.weight" in tensors:  # a change for each label, before format 5
        return Changes.of_labels(tensors.pop("shift.weight").numpy() * np.float32(description["scale"]))
    table = description.get("contexts")
    arrays = {
        name.removeprefix(CHANGES): tensors.pop(name).numpy() for name in list(tensors) if name.startswith(CHANGES)
    }
    return None if table is None else Changes.of_arrays(arrays, table)


def _signed(hashes: Hashes) -> Tensor:
    return torch.from_numpy(hashes.view(np.int64))


def _fit(table: Mapping[str, Any] | None) -> Fit:
    if table is None:
        return NOTHING_FITTED
    penalty = math.inf if table["penalty"] is None else float(table["penalty"])
    return Fit(penalty, {(int(one), int(other)): float(ratio) for one, other, ratio in table["ratios"]})


def _description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    try:
        description = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(
            f"there is no model in {str(folder)!r}: {DESCRIPTION} is missing; give the folder that training wrote."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"{str(path)!r} is damaged: it is not JSON; copy the folder again, or train again.") from None
    found = description.get("format") if isinstance(description, dict) else None
    if not isinstance(found, int):
        raise ValueError(f"{str(path)!r} is damaged: it names no format; copy the folder again, or train again.")
    if found > FORMAT:
        raise ValueError(
            f"{str(path)!r} has format {found}, written by perturbdiff {description.get('version')}, and this version "
            f"({version('perturbdiff')}) reads up to {FORMAT}; install a newer perturbdiff."
        )
    return dict(description)
