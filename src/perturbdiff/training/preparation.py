"""What training needs of the data: the gene panel, the scale, the labels, and the populations of each part."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from perturbdiff.cells.genes import check_panel, measured_scale, select_panel
from perturbdiff.cells.measure import measure
from perturbdiff.cells.moments import Moments
from perturbdiff.cells.order import Segments
from perturbdiff.cells.totals import uncounted
from perturbdiff.features.tables import FeatureTable
from perturbdiff.labels.conditions import PERTURBATION, Conditions
from perturbdiff.populations.epochs import Populations
from perturbdiff.populations.pairing import SMALLEST_GROUP
from perturbdiff.recipes.dataset import Recipe
from perturbdiff.recipes.settings import Settings
from perturbdiff.split.rules import Split
from perturbdiff.training.encoders import trained_conditions

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Prepared:
    """Populations to train and validate on, and what their numbers mean.

    Attributes:
        genes: the panel.
        scale: the divisor of log1p counts per 10^4.
        conditions: the training cells' labels, and what stands for others; those of the validation are asked of it.
        training: populations of the training part.
        validation: populations of the validation part; None where it has none that can be sampled.
        notes: sentences for the user.
        control: label of the control cells; None where no cell is perturbed.
    """

    genes: tuple[str, ...]
    scale: float
    conditions: Conditions
    training: Populations
    validation: Populations | None
    notes: tuple[str, ...]
    control: str | None


def prepare(
    split: Split,
    recipe: Recipe,
    settings: Settings,
    *,
    folder: Path | None = None,
    features: Mapping[str, FeatureTable] | None = None,
) -> Prepared:
    """Choose the panel and measure the scale on training cells only, and sort the cells into populations.

    Args:
        split: of the cells.
        recipe: of the data.
        settings: of the run.
        folder: that files of features are relative to.
        features: in place of those that the settings name, by covariate.

    Raises:
        ValueError: the panel does not fit the data, a label cannot be read or lacks features, a group has no control
            cells, nothing is left to train on, or nothing of the test part could be asked afterwards.
    """
    source, segments, training = split.source, split.of("train"), settings.training
    if recipe.genes is not None:
        check_panel(source.genes, recipe.genes)  # before any label is read
    conditions = trained_conditions(split, recipe, settings, folder=folder, features=features)
    held_out, asked, notes = _sampleable(split, conditions, nulls=training.condition_dropout > 0)
    notes = (*notes, *_unasked(split, conditions))
    conditions = conditions.asking(asked)
    genes, moments = panel_of(split, recipe)
    scale = settings.model.scale or measured_scale(moments, genes)

    def populations(part: Segments, *, control_share: float, controls: Segments | None = None) -> Populations:
        return Populations(
            source,
            part,
            genes,
            scale,
            conditions.vocabularies,
            cells_per_population=training.cells_per_population,
            control_share=control_share,
            seed=training.seed,
            controls=controls,
            pairing=training.pairing,
        )

    trained = populations(segments, control_share=training.control_share if source.control is not None else 0.0)
    validation = None
    if len(held_out):
        controls = None if source.control is None else segments.take(source.runs.is_control[segments.run])
        validation = populations(held_out, control_share=0.0, controls=controls)
    return Prepared(tuple(genes), scale, conditions, trained, validation, (*trained.notes, *notes), source.control)


def drawable(split: Split, settings: Settings) -> Settings:
    """The settings; where cells cannot be drawn as counts, since those of control cells are not known, without that."""
    if settings.model.target != "counts":
        return settings
    unknown = uncounted(split.source, split.of("train"))
    if unknown:
        _LOG.info(
            f"{unknown} control cells hold log1p values that do not tell their counts (the smallest value of each cell "
            "would be one count), so predicted cells are not drawn as counts; give the counts if there are any."
        )
        return settings.without_counts()
    return settings


def panel_of(split: Split, recipe: Recipe) -> tuple[list[str], Moments]:
    """The genes that the recipe names, or those that it has chosen by the training cells; and the moments of these.

    Raises:
        ValueError: a gene is not there, or too few vary.
    """
    source = split.source
    given = None if recipe.genes is None else check_panel(source.genes, recipe.genes)
    moments = source.moments(split.hash) or measure(source, given, split.of("train"))
    return (select_panel(moments, recipe.n_genes) if given is None else given), moments


def _unasked(split: Split, conditions: Conditions) -> list[str]:
    """The sentence on held-out test perturbations that the model to come can't be asked.

    Raises:
        ValueError: that is all of them, and prediction can't be handed features of them either.
    """
    labels = list(dict.fromkeys(map(str, split.groups("test")["perturbation"])))
    labels = [label for label in labels if label != split.source.control]
    unknown = [label for label in labels if _refused(conditions, label)]
    if not unknown:
        return []
    named = ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
    featured = PERTURBATION in conditions.features
    remedy = "hand features in with predict --features" if featured else "name features in [encoders.perturbation]"
    sentence = (
        f"{len(unknown)} of the {len(labels)} perturbations held out for test cannot be asked of this model ({named}): "
        f"no cell of them trains and no features stand for them; keep some cells in training (keep_cells), {remedy}, "
        "or leave the cells out (exclude) in place of holding them out."
    )
    if len(unknown) == len(labels) and not featured:
        raise ValueError(sentence)
    return [sentence]


def _sampleable(split: Split, conditions: Conditions, *, nulls: bool) -> tuple[Segments, list[str], tuple[str, ...]]:
    """The perturbed validation cells that the model can be asked for, in groups of two and more, and what to ask.

    A perturbation that training has not seen may be made of what it has seen, or have features; an assay batch may be
    the null, where that is trained.
    """
    runs, segments = split.source.runs, split.of("validation")
    if split.source.control is not None:
        segments = segments.take(~runs.is_control[segments.run])
    there = runs.labels.iloc[np.unique(segments.run)]
    perturbations = list(dict.fromkeys(map(str, there["perturbation"])))
    asked = [label for label in perturbations if not _refused(conditions, label)]
    labels = [*conditions.trained["perturbation"].labels, *asked, ""]
    known = runs.labels["perturbation"].isin(labels).to_numpy(copy=True)
    for name in ("cell_type", "assay_batch"):
        if name == "cell_type" or not nulls:
            known &= runs.labels[name].isin([*conditions.vocabularies[name].labels, ""]).to_numpy()
    unknown = ~known[segments.run]
    notes: tuple[str, ...] = ()
    if unknown.any():
        notes = (
            f"{int(segments.sizes[unknown].sum())} of {segments.n_cells} validation cells have a label that no "
            "training cell has; they are left out of the validation.",
        )
    enough = split.cells_of_runs("validation")[segments.run] >= SMALLEST_GROUP
    return segments.take(~unknown & enough), asked, notes


def _refused(conditions: Conditions, label: str) -> bool:
    try:
        conditions.check(label)
    except ValueError:
        return True
    return False
