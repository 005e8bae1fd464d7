"""Predicted cells from a checkpoint and control cells: one for each control cell of a condition, or so many."""

import json
import logging
from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from perturbdiff.cells.controls import borrowing_note, controls_of
from perturbdiff.cells.genes import align_genes
from perturbdiff.cells.memory import Cells
from perturbdiff.checkpoint import Checkpoint
from perturbdiff.core.choices import COVARIATES
from perturbdiff.labels.conditions import Conditions
from perturbdiff.labels.members import grammar_of
from perturbdiff.predicted import Predicted, as_file
from perturbdiff.prediction.controls import Controls, check_whole_numbers, panel_of, totals_of
from perturbdiff.prediction.drawing import Asked, Drawing, Track
from perturbdiff.recipes.settings import Settings
from perturbdiff.spelling import nearest

_LOG = logging.getLogger(__name__)


def predict(
    checkpoint: Checkpoint,
    cells: Cells,
    conditions: pd.DataFrame,
    *,
    populations: int = 1,
    seed: int = 0,
    device: str = "cpu",
    settings: Settings | None = None,
    min_overlap: float = 0.9,
    n_cells: int | None = None,
    integers: bool = False,
    track: Track = iter,
) -> anndata.AnnData:
    """Predict conditions from control cells.

    Args:
        checkpoint: the model.
        cells: a file's cells, of which only control cells are used.
        conditions: see `prediction.conditions`.
        populations: how often each condition is drawn.
        seed: of all noise and of the chunks.
        device: of torch.
        settings: those of the checkpoint, with another sampling perhaps.
        min_overlap: least share of the panel's genes that the control cells must have; missing ones count as 0.
        n_cells: predicted cells of each condition and draw; one for each of its control cells when None.
        integers: whether X holds whole numbers of counts, and the log1p counts per 10^4 are a layer.
        track: wraps the list of minibatches, to show progress.

    Returns:
        The control cells and the predicted cells: log1p counts per 10^4, [cells, panel], see `predicted`.

    Raises:
        ValueError: a condition has no control cells, too few of the panel's genes are there, or the counts of control
            cells are needed and are not known.
    """
    start = prepared(
        checkpoint,
        cells,
        conditions,
        populations=populations,
        seed=seed,
        device=device,
        settings=settings,
        min_overlap=min_overlap,
        n_cells=n_cells,
        integers=integers,
    )
    chunks = start.asked.chunks
    found = {chunk.key: made for chunk, made in start.drawing.each(track(start.drawing.batches(chunks)))}
    parts = [found[chunk.key] for chunk in chunks]
    totals = [made.totals for made in parts if made.totals is not None]
    sizes = [len(chunk.rows) for chunk in chunks]
    every = Predicted(
        sp.vstack([made.cells for made in parts], format="csr"),
        source=np.concatenate([chunk.rows for chunk in chunks]),
        condition=np.repeat([chunk.condition for chunk in chunks], sizes),
        repeat=np.repeat([chunk.repeat for chunk in chunks], sizes),
        totals=np.concatenate(totals) if totals else None,
    )
    facts = {
        "split_hash": str(checkpoint.split["hash"]),
        "checkpoint": json.dumps(dict(checkpoint.history)),
        "seed": seed,
        "populations": populations,
        "sampling": start.settings.sampling.model_dump_json(),
        "missing_genes": json.dumps(start.missing),
        "zero_shot": checkpoint.pretraining is not None,
        "grammar": grammar_of(checkpoint.recipe).model_dump_json(),
    }
    recipe = checkpoint.recipe
    return as_file(
        every,
        cells,
        conditions,
        start.control.expression,
        genes=list(checkpoint.genes),
        columns=recipe.columns,
        control=recipe.control,
        facts=facts,
        control_totals=start.control.totals if integers else None,
    )


@dataclass(frozen=True)
class Prepared:
    """A prediction that can begin.

    Attributes:
        asked: what is to be drawn.
        control: the control cells that are used.
        drawing: by the model.
        settings: of the model, with another sampling perhaps.
        missing: genes of the panel that the control cells do not have.
    """

    asked: Asked
    control: Controls
    drawing: Drawing
    settings: Settings
    missing: list[str]


def prepared(
    checkpoint: Checkpoint,
    cells: Cells,
    conditions: pd.DataFrame,
    *,
    populations: int,
    seed: int,
    device: str,
    settings: Settings | None,
    min_overlap: float,
    n_cells: int | None,
    integers: bool = False,
) -> Prepared:
    """All that comes before the first cell is drawn, as `predict`: what is refused is refused here."""
    if populations < 1:
        raise ValueError(f"populations={populations} must be at least 1; give how often each condition is drawn.")
    if n_cells is not None and n_cells < 1:
        raise ValueError(f"n_cells={n_cells} must be at least 1; leave it out for one cell for each control cell.")
    settings = settings or checkpoint.settings
    if integers:
        check_whole_numbers(checkpoint, settings)
    for note in cells.notes:
        _LOG.info(note)
    genes = list(checkpoint.genes)
    missing = align_genes(genes, [str(gene) for gene in cells.genes], min_overlap=min_overlap)
    if missing:
        _LOG.info(
            f"{len(missing)} of the panel's {len(genes)} genes are not in the control cells and count as 0: "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}."
        )
    known = checkpoint.conditions.asking(conditions["perturbation"])
    if checkpoint.pretraining is not None:
        _LOG.info(
            "zero-shot: this model was pretrained on cells without their perturbation, so it predicts the cells of "
            "each cell type and assay batch; control cells say which and how many, and nothing else."
        )
    _say_nulls(conditions, known, settings)
    _say_absent_columns(cells, conditions, checkpoint)
    rows = [{str(key): str(label) for key, label in row.items()} for row in conditions.to_dict("records")]
    matched, borrowing = controls_of(cells, rows)
    for note in borrowing_note(rows, borrowing):
        _LOG.info(note)
    asked = Asked(conditions, matched, settings.training.cells_per_population, populations, n_cells, seed)
    used = np.unique(np.concatenate(asked.used))
    control = Controls(used, panel_of(cells, genes, missing, used), totals_of(cells, used, checkpoint))
    drawing = Drawing(checkpoint, known, settings, asked, control, device=device)
    return Prepared(asked, control, drawing, settings, missing)


def _say_nulls(conditions: pd.DataFrame, known: Conditions, settings: Settings) -> None:
    """What is predicted with a trained null, once for each covariate.

    Raises:
        ValueError: the model was trained without nulls.
    """
    trained = settings.training.condition_dropout > 0 and settings.model.null == "covariate"
    for name in COVARIATES:
        vocabulary, covariate = known.vocabularies[name], name.replace("_", " ")
        labels = [str(label) for label in conditions[name].unique()]
        null = [label for label in labels if vocabulary.index(label) == 0]
        if not len(vocabulary) or not null:
            continue
        new = [label for label in null if label]
        if not trained:
            raise ValueError(
                f"{covariate} {null[0]!r} asks for a trained null, and this model has none, since its labels were not "
                f"dropped one by one in training; name one of {', '.join(map(repr, vocabulary.labels[:5]))}."
            )
        if "" in null:
            _LOG.info(f"conditions without {covariate} are predicted with its trained null.")
        if new:
            named = ", ".join(map(repr, new[:3])) + (", ..." if len(new) > 3 else "")
            _LOG.info(
                f"{covariate} {named}: not seen in training and without features, so predicted with the trained null "
                f"(of {new[0]!r} {nearest(new[0], vocabulary.labels)})."
            )


def _say_absent_columns(cells: Cells, conditions: pd.DataFrame, checkpoint: Checkpoint) -> None:
    """What is taken for granted of control cells whose file lacks a column."""
    columns = checkpoint.recipe.columns
    if cells.control is None and columns.perturbation is not None:
        _LOG.info(
            f"there is no column {columns.perturbation!r}, so all {cells.n_cells} cells are taken as control cells."
        )
    for name in ("cell_type", "assay_batch"):
        if getattr(columns, name) is None and (conditions[name] != "").any():
            _LOG.info(
                f"the model was trained without {name.replace('_', ' ')}, so that of the conditions says nothing to it."
            )
        elif list(cells.labels[name].cat.categories) == [""] and (conditions[name] != "").any():
            _LOG.info(
                f"the control cells have no column {getattr(columns, name)!r}, so all of them serve every "
                f"{name.replace('_', ' ')}."
            )
