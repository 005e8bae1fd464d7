"""What training needs of the data: the gene panel, the scale, the labels, and the populations of each part."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from perturbdiff.cells.genes import check_panel, measured_scale, select_panel
from perturbdiff.cells.measure import measure
from perturbdiff.cells.moments import Moments
from perturbdiff.cells.order import Integers, Segments, aranges
from perturbdiff.features.tables import FeatureTable
from perturbdiff.labels.conditions import PERTURBATION, Conditions
from perturbdiff.populations.blocks import BLOCK, SLAB
from perturbdiff.populations.epochs import Populations
from perturbdiff.populations.pairing import SMALLEST_GROUP
from perturbdiff.recipes.dataset import Recipe
from perturbdiff.recipes.settings import Settings
from perturbdiff.split.rules import Split
from perturbdiff.training.encoders import trained_conditions

type FloatTable = npt.NDArray[np.float32]


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


CELLS_PER_LABEL = 1 << 14
"""Cells that a mean shift is measured on, at most; of each group the first of its share, which are random ones."""


SPREAD_GROUPS, SPREAD_CELLS = 1 << 13, 16
"""Groups that the spread of cells is measured on, and cells of each, at most."""


def mean_shifts(prepared: Prepared, *, shrink: bool = False) -> FloatTable:
    r"""The mean change of each perturbation label over training cells; 0 for nulls and controls.

    A group's change is the mean of its cells less the mean of its control cells, both in units of the training scale;
    groups count by their cells.

    Args:
        prepared: populations and labels.
        shrink: whether a label's shift s is multiplied by max(0, 1 - V / |s|^2), V its variance as a mean of finitely
            many cells, summed over genes: the positive part of James and Stein's estimator. With n cells, of which a
            share a_p has the n_p control cells of pool p beside it, V = tr(Sigma) (1 / n + sum_p a_p^2 / n_p), Sigma
            the covariance of cells within a group.

    Returns:
        [labels + 1, genes], row 0 the null.
    """
    populations, known = prepared.training, prepared.conditions.trained["perturbation"]
    n_labels, label = len(known) + 1, populations.conditions[:, 0]
    if prepared.control is None:
        return np.zeros((n_labels, len(prepared.genes)), dtype=np.float32)
    groups, controls = populations.groups, populations.controls
    n_cells = np.bincount(label, weights=groups.sizes, minlength=n_labels)
    taken = np.ceil(groups.sizes * np.minimum(1, CELLS_PER_LABEL / n_cells[label])).astype(np.int64)
    perturbed = groups.positions(aranges(groups.offsets[:-1], taken))
    sums = _sums(populations, perturbed, np.repeat(label, taken), n_labels)
    # each group's share of the mean of its controls
    pools, pool = np.unique(populations.pools, axis=0, return_inverse=True)
    beside = np.minimum(pools[:, 1] - pools[:, 0], CELLS_PER_LABEL)
    control = controls.positions(aranges(pools[:, 0], beside))
    means = _sums(populations, control, np.repeat(np.arange(len(pools)), beside), len(pools)) / beside[:, None]
    sums -= sp.csr_matrix((taken.astype(np.float64), (label, pool.ravel())), shape=(n_labels, len(pools))) @ means
    weights = np.maximum(np.bincount(label, weights=taken, minlength=n_labels), 1)
    shifts = sums / weights[:, None]
    if shrink:
        shares = sp.csr_matrix((taken / weights[label], (label, pool.ravel())), shape=(n_labels, len(pools)))
        variance = _spread_within(populations) * (1 / weights + shares.power(2) @ (1 / beside))
        size = np.square(shifts).sum(axis=1)
        noise = np.divide(variance, size, out=np.ones_like(size), where=size > 0)
        shifts *= np.maximum(0.0, 1.0 - noise)[:, None]
    return shifts.astype(np.float32)


def _spread_within(populations: Populations) -> float:
    """The trace of the covariance of cells within groups: half the mean squared distance of two cells of a group.

    Cells of a group are drawn in its order, which is a random one, and each is held against the next.
    """
    groups = populations.groups
    chosen = np.unique(np.linspace(0, len(groups.sizes) - 1, SPREAD_GROUPS).astype(np.int64))
    taken = np.minimum(groups.sizes[chosen], SPREAD_CELLS)
    rows = groups.positions(aranges(groups.offsets[:-1][chosen], taken))
    cells = populations.reader.load(np.unique(rows)).rows(rows).astype(np.float64)
    owner = np.repeat(chosen, taken)
    apart: sp.csr_matrix[np.float64] = (cells[1:] - cells[:-1])[owner[1:] == owner[:-1]]
    squares: float = apart.power(2).sum()
    return squares / (2 * max(apart.shape[0], 1))


def _sums(populations: Populations, rows: Integers, owner: Integers, n_owners: int) -> npt.NDArray[np.float64]:
    """The sum of the cells of each owner [owners, genes], in units of the scale."""
    sums = np.zeros((n_owners, populations.n_genes))
    for first in range(0, len(rows), SLAB * BLOCK):
        some, own = rows[first : first + SLAB * BLOCK], owner[first : first + SLAB * BLOCK]
        cells = populations.reader.load(np.unique(some)).rows(some).astype(np.float64)
        sums += (
            sp.csr_matrix((np.ones(len(some)), (own, np.arange(len(some)))), (n_owners, len(some))) @ cells
        ).toarray()
    return sums
