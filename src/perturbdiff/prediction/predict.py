"""Predicted populations from a checkpoint and control cells: one predicted cell for each control cell.

The control cells of a condition are those of the file with its cell type and assay batch (any, where the condition
leaves it open), shuffled by the seed and cut into chunks of m, the populations that the network sees. Every chunk
draws from a stream of its own, a function of (seed, repeat, condition, chunk), and what the chunks of one population
have in common from another, of (seed, repeat, condition): the result does not depend on how chunks are batched.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import batched, count, groupby

import anndata
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
import torch

from perturbdiff.building import build_guided, build_sampler
from perturbdiff.cells.controls import borrowing_note, controls_of
from perturbdiff.cells.genes import align_genes
from perturbdiff.cells.memory import Cells
from perturbdiff.checkpoint import Checkpoint
from perturbdiff.core.choices import COVARIATES
from perturbdiff.core.denoiser import DenoiserContract
from perturbdiff.core.population import Condition
from perturbdiff.core.randomness import stream
from perturbdiff.labels.conditions import Conditions
from perturbdiff.labels.members import grammar_of
from perturbdiff.predicted import Predicted, as_file
from perturbdiff.prediction.controls import Ahead, Controls, Rows, check_whole_numbers, panel_of, totals_of
from perturbdiff.recipes.settings import Settings
from perturbdiff.spelling import nearest

_LOG = logging.getLogger(__name__)

NUMBERS_AT_ONCE = 8 * 256 * 2000
"""Expression values in one minibatch, which bounds the memory of a prediction."""

type Track = Callable[[Sequence[list["Chunk"]]], Iterator[list["Chunk"]]]


@dataclass(frozen=True)
class Chunk:
    """Up to m control cells of one condition, the start of one predicted population.

    Attributes:
        rows: of the control cells.
        condition: row in the table of conditions.
        repeat: which of the K populations.
        number: of the chunk within condition and repeat.
    """

    rows: Rows
    condition: int
    repeat: int
    number: int


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
    chunks = _chunks(matched, settings.training.cells_per_population, populations, seed, n_cells)
    used = np.unique(np.concatenate([chunk.rows for chunk in chunks]))
    control = Controls(used, panel_of(cells, genes, missing, used), totals_of(cells, used, checkpoint))
    values, totals = _run(
        checkpoint,
        known,
        settings,
        chunks,
        conditions,
        control,
        draws=populations,
        device=device,
        seed=seed,
        track=track,
    )
    facts = {
        "split_hash": str(checkpoint.split["hash"]),
        "checkpoint": json.dumps(dict(checkpoint.history)),
        "seed": seed,
        "populations": populations,
        "sampling": settings.sampling.model_dump_json(),
        "missing_genes": json.dumps(missing),
        "zero_shot": checkpoint.pretraining is not None,
        "grammar": grammar_of(checkpoint.recipe).model_dump_json(),
    }
    sizes = [len(chunk.rows) for chunk in chunks]
    made = Predicted(
        values,
        source=np.concatenate([chunk.rows for chunk in chunks]),
        condition=np.repeat([chunk.condition for chunk in chunks], sizes),
        repeat=np.repeat([chunk.repeat for chunk in chunks], sizes),
        totals=totals,
    )
    recipe = checkpoint.recipe
    return as_file(
        made,
        cells,
        conditions,
        control.expression,
        genes=genes,
        columns=recipe.columns,
        control=recipe.control,
        facts=facts,
        control_totals=control.totals if integers else None,
    )


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


def _chunks(matched: list[Rows], m: int, populations: int, seed: int, n_cells: int | None) -> list[Chunk]:
    """The control cells of each condition and repeat, shuffled and cut.

    A condition that is drawn once has them all, from a fresh shuffle where all were taken, and none twice in a chunk.
    Each of several populations has those of a donor of whom as many control cells could have been seen: it draws with
    replacement from as many drawn with replacement, so that draws differ by what is not known of the control cells.
    """
    chunks = []
    for condition, rows in enumerate(matched):
        wanted = len(rows) if n_cells is None else n_cells
        for repeat in range(populations):
            rng, number = np.random.default_rng([seed, repeat, condition]), count()
            if populations > 1:
                laps = [rng.choice(rng.choice(rows, len(rows)), wanted)]
            else:
                laps = [rng.permutation(rows)[:left] for left in range(wanted, 0, -len(rows))]
            for some in laps:
                chunks += [Chunk(some[at : at + m], condition, repeat, next(number)) for at in range(0, len(some), m)]
    return chunks


def _run(
    checkpoint: Checkpoint,
    known: Conditions,
    settings: Settings,
    chunks: list[Chunk],
    conditions: pd.DataFrame,
    control: Controls,
    *,
    draws: int,
    device: str,
    seed: int,
    track: Track,
) -> tuple["sp.csr_matrix[np.float32]", npt.NDArray[np.float64] | None]:
    """The predicted cells of all chunks, one below the other, and their totals where they are drawn as counts."""
    rows: dict[int, list[Rows]] = {}
    for chunk in chunks:
        rows.setdefault(chunk.condition, []).append(chunk.rows)
    index = np.stack([known.vocabularies[name].encode(conditions[name]) for name in COVARIATES])
    expectation = checkpoint.expectation(known)
    ahead = None
    if expectation is not None:
        names = list(zip(conditions["cell_type"].astype(str), conditions["assay_batch"].astype(str), strict=True))
        ahead = Ahead(expectation, index[0], names, control, rows, draws=draws, seed=seed)
    if checkpoint.recipe.control is None:  # trained without control cells: to it they express nothing
        control = control._replace(expression=sp.csr_matrix(control.expression.shape, dtype=np.float32))
    denoiser = build_guided(settings.sampling, checkpoint.denoiser(known).to(device))
    per_batch = max(1, NUMBERS_AT_ONCE // (settings.training.cells_per_population * len(checkpoint.genes)))
    # only chunks of equal length share a minibatch: padding would change the numbers that a chunk's stream gives it
    order = sorted(range(len(chunks)), key=lambda i: -len(chunks[i].rows))
    batches = [
        list(alike)
        for _, same_length in groupby((chunks[i] for i in order), key=lambda chunk: len(chunk.rows))
        for alike in batched(same_length, per_batch)
    ]
    results: list[sp.csr_matrix[np.float32]] = []
    totals: list[npt.NDArray[np.float64] | None] = []
    for batch in track(batches):
        of = [chunk.condition for chunk in batch]
        labels = torch.from_numpy(index[:, of]).to(device)
        expected = None if ahead is None else torch.from_numpy(ahead.of([(c.condition, c.repeat) for c in batch]))
        made = _sample(denoiser, checkpoint.scale, settings, batch, labels, expected, control, device=device, seed=seed)
        results += [cells for cells, _ in made]
        totals += [own for _, own in made]
    place = np.argsort(order)
    cells: sp.csr_matrix[np.float32] = sp.vstack([results[i] for i in place], format="csr")
    known_totals = [own for i in place if (own := totals[i]) is not None]
    return cells, np.concatenate(known_totals) if known_totals else None


def _sample(
    denoiser: DenoiserContract,
    scale: float,
    settings: Settings,
    batch: list[Chunk],
    labels: torch.Tensor,
    expected: torch.Tensor | None,
    control: Controls,
    *,
    device: str,
    seed: int,
) -> list[tuple["sp.csr_matrix[np.float32]", npt.NDArray[np.float64] | None]]:
    """One minibatch of chunks of equal length: the cells of each, and their totals where they are drawn as counts."""
    shape = (len(batch), len(batch[0].rows))
    expression, totals = control.of(np.concatenate([chunk.rows for chunk in batch]))
    dense = torch.from_numpy(expression.toarray()).reshape(*shape, -1) / scale
    cells, after = build_sampler(settings)(
        denoiser,
        control=dense.to(device),
        condition=Condition(*labels),
        streams=[stream(seed, c.repeat, c.condition, c.number, device=device) for c in batch],
        # what the chunks of a population have in common
        shared=[stream(seed, c.repeat, c.condition, device=device) for c in batch],
        totals=None if totals is None else torch.from_numpy(totals).float().reshape(shape).to(device),
        expected=None if expected is None else expected.to(device),
    )
    cells = (cells.clamp(min=0) * scale).float().cpu()
    sums = [None] * len(batch) if after is None else list(after.double().cpu().numpy())
    return [(sp.csr_matrix(population.numpy()), own) for population, own in zip(cells, sums, strict=True)]
