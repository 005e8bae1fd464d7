"""The labels that training sees, and the features that stand for them and for others, as the settings ask."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from perturbdiff.core.choices import COVARIATES
from perturbdiff.features.files import read_features
from perturbdiff.features.tables import FeatureTable
from perturbdiff.labels.conditions import PERTURBATION, Conditions
from perturbdiff.labels.members import grammar_of
from perturbdiff.labels.vocabulary import Vocabulary
from perturbdiff.recipes.dataset import Recipe
from perturbdiff.recipes.settings import EncoderSettings, Settings
from perturbdiff.split.rules import Split


def trained_conditions(
    split: Split,
    recipe: Recipe,
    settings: Settings,
    *,
    folder: Path | None = None,
    features: Mapping[str, FeatureTable] | None = None,
) -> Conditions:
    """The labels of the training cells, with features where the settings ask for some or some are given.

    Raises:
        ValueError: a label cannot be read as the recipe says, a training label lacks features, or no file is named.
        FileNotFoundError: a file of features is not there.
    """
    runs = split.source.runs
    labels = runs.labels.iloc[np.unique(split.of("train").run)]
    trained = {name: Vocabulary.from_labels(name, labels[name]) for name in COVARIATES}
    found = features_named(settings, folder, features, split)
    conditions = Conditions(
        trained, grammar_of(recipe), split.source.control, found, settings.encoders.with_learned_labels
    )
    check_features(conditions, settings)
    return conditions


def features_named(
    settings: Settings,
    folder: Path | None,
    features: Mapping[str, FeatureTable] | None = None,
    split: Split | None = None,
) -> dict[str, FeatureTable]:
    """The features that the settings ask for, or that are given, by covariate; without a split none of perturbations.

    Raises:
        ValueError: no file is named, or there are no perturbations to have features.
        FileNotFoundError: a file of features is not there.
    """
    found: dict[str, FeatureTable] = {}
    for name in COVARIATES:
        encoder: EncoderSettings = getattr(settings.encoders, name)
        if name == PERTURBATION and split is None:
            if encoder.kind != "labels" or name in (features or {}):
                raise ValueError(
                    f'encoders.perturbation is of kind = "{encoder.kind}", and pretraining has no perturbation; leave '
                    "it out."
                )
            continue
        table = (features or {}).get(name) or _features(name, encoder, split, folder)
        if table is not None:
            found[name] = table
    return found


def check_features(conditions: Conditions, settings: Settings) -> None:
    """Refuse training labels without features where the settings allow none.

    Raises:
        ValueError: there are some.
    """
    for name, table in conditions.features.items():
        known = conditions.trained_agents if name == PERTURBATION else conditions.trained[name].labels
        if getattr(settings.encoders, name).missing == "error":
            wanted = [label for label in known if label != conditions.control]
            table.require(wanted, f"trained {name.replace('_', ' ')}s")


def _features(name: str, encoder: EncoderSettings, split: Split | None, folder: Path | None) -> FeatureTable | None:
    if encoder.kind == "labels":
        return None
    # each needs a library of its own
    from perturbdiff.cells.loadings import expression_loadings
    from perturbdiff.features.molecules import fingerprints, read_smiles

    if encoder.kind == "loadings" and split is not None:
        training = split.of("train")
        controls = training.take(split.source.runs.is_control[training.run])
        return expression_loadings(split.source, controls, components=encoder.components)
    if encoder.file is None:
        raise ValueError(
            f'encoders.{name} is of kind = "{encoder.kind}" and names no file; add file, or hand the features in.'
        )
    path = (folder or Path()) / Path(encoder.file).expanduser()
    if encoder.kind == "smiles":
        return fingerprints(read_smiles(path), f"fingerprints of {path.name}", radius=encoder.radius, size=encoder.size)
    return read_features(path)
