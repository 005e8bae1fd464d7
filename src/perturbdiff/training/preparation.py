"""What training needs of the data: the gene panel, the scale, the vocabularies, and the populations of each part."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from perturbdiff.config import Settings
from perturbdiff.core.population import COVARIATES
from perturbdiff.data.cells import Cells
from perturbdiff.data.genes import check_panel, measured_scale, select_panel
from perturbdiff.data.populations import Populations
from perturbdiff.data.recipe import Recipe
from perturbdiff.data.split import Indices, Split
from perturbdiff.data.vocabulary import Vocabulary

type FloatTable = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Prepared:
    """Populations to train and validate on, and what their numbers mean.

    Attributes:
        genes: the panel.
        scale: the divisor of log1p counts per 10^4.
        vocabularies: of the training cells' labels, one for each covariate.
        training: populations of the training part.
        validation: populations of the validation part; None where it has none that can be sampled.
        notes: sentences for the user.
        control: label of the control cells; None where no cell is perturbed.
    """

    genes: tuple[str, ...]
    scale: float
    vocabularies: Mapping[str, Vocabulary]
    training: Populations
    validation: Populations | None
    notes: tuple[str, ...]
    control: str | None


def prepare(cells: Cells, split: Split, recipe: Recipe, settings: Settings) -> Prepared:
    """Choose the panel and measure the scale on training cells only, and sort the cells into populations.

    Raises:
        ValueError: the panel does not fit the data, a group has no control cells, or nothing is left to train on.
    """
    rows = split.rows("train")
    with _same_threads():
        genes = select_panel(cells, rows, recipe.n_genes) if recipe.genes is None else check_panel(cells, recipe.genes)
    scale = settings.model.scale or measured_scale(cells.log_expression(genes, rows))
    vocabularies = {name: Vocabulary.from_labels(name, cells.labels[name].iloc[rows]) for name in COVARIATES}
    m, seed = settings.training.cells_per_population, settings.training.seed
    training = Populations(
        cells,
        rows,
        genes,
        scale,
        vocabularies,
        cells_per_population=m,
        control_share=settings.training.control_share if cells.control is not None else 0.0,
        seed=seed,
    )
    validation_rows, notes = _sampleable(cells, split.rows("validation"), vocabularies)
    validation = None
    if len(validation_rows):
        validation = Populations(
            cells,
            validation_rows,
            genes,
            scale,
            vocabularies,
            cells_per_population=m,
            control_share=0.0,
            seed=seed,
            control_rows=rows[cells.is_control[rows]] if cells.control is not None else None,
        )
    return Prepared(tuple(genes), scale, vocabularies, training, validation, (*training.notes, *notes), cells.control)


@contextmanager
def _same_threads() -> Iterator[None]:
    """Keep torch's number of threads: ranking genes sets it to all cores, and idle threads that wait cost dearly."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _sampleable(cells: Cells, rows: Indices, vocabularies: Mapping[str, Vocabulary]) -> tuple[Indices, tuple[str, ...]]:
    """The perturbed cells whose labels training knows, in groups of two and more."""
    rows = rows[~cells.is_control[rows]] if cells.control is not None else rows
    known = np.ones(len(rows), dtype=bool)
    for name in COVARIATES:
        known &= cells.labels[name].iloc[rows].isin([*vocabularies[name].labels, ""]).to_numpy()
    notes: tuple[str, ...] = ()
    if not known.all():
        notes = (
            f"{int((~known).sum())} of {len(rows)} validation cells have a label that no training cell has; "
            "they are left out of the validation.",
        )
    rows = rows[known]
    sizes = cells.labels.iloc[rows].groupby(list(COVARIATES), observed=True)["cell_type"].transform("size")
    return rows[sizes.to_numpy() >= 2], notes


POPULATIONS_PER_LABEL = 256
"""Populations that a mean shift is measured on, at most."""


def mean_shifts(prepared: Prepared) -> FloatTable:
    """The mean change of each perturbation label over training populations; 0 for nulls and controls.

    A population's change is the mean of its perturbed cells less the mean of its control cells, both in units of the
    training scale; populations count by their cells.

    Returns:
        [labels + 1, genes], row 0 the null.
    """
    known = prepared.vocabularies["perturbation"]
    sums = np.zeros((len(known) + 1, len(prepared.genes)))
    populations, cells = np.zeros(len(known) + 1, dtype=int), np.zeros(len(known) + 1)
    for draw in prepared.training.plan(0):
        label = draw.condition[0]
        if label == 0 or known.labels[label - 1] == prepared.control or populations[label] == POPULATIONS_PER_LABEL:
            continue
        batch = prepared.training.batch([draw])
        sums[label] += (batch.perturbed.sum(dim=1) - batch.control.sum(dim=1))[0].double().numpy()
        populations[label] += 1
        cells[label] += len(draw.rows)
    return (sums / np.maximum(cells, 1)[:, None]).astype(np.float32)
