"""What populations are predicted to do on the mean, gene by gene, without keeping their cells; see `families.summary`.

One condition is drawn after another, and of each population its sums alone are kept: beside a minibatch of cells,
memory holds 16 bytes for each population and gene of one condition, and the rows of the table.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perturbdiff.cells.memory import Cells
from perturbdiff.checkpoint import Checkpoint
from perturbdiff.core.choices import COVARIATES
from perturbdiff.families.intervals import fewest
from perturbdiff.families.summary import Drawn, Reading, summarised
from perturbdiff.prediction.drawing import Chunk, Track
from perturbdiff.prediction.predict import Prepared, prepared
from perturbdiff.recipes.settings import Settings
from perturbdiff.spelling import nearest

type Matrix = NDArray[np.float64]


def summarise(
    checkpoint: Checkpoint,
    cells: Cells,
    conditions: pd.DataFrame,
    *,
    populations: int,
    reading: Reading,
    programmes: pd.DataFrame | None = None,
    seed: int = 0,
    device: str = "cpu",
    settings: Settings | None = None,
    min_overlap: float = 0.9,
    n_cells: int | None = None,
    track: Track = iter,
) -> pd.DataFrame:
    """Draw several populations of each condition, and say what their means do.

    Args:
        checkpoint: the model.
        cells: a file's cells, of which only control cells are used.
        conditions: see `prediction.conditions`.
        populations: how many are drawn of each condition.
        reading: level, threshold and top.
        programmes: weights of genes [genes, programmes], by name; genes that the panel lacks count as 0.
        seed: as in `predict`, as are all that follow.
        device: of torch.
        settings: those of the checkpoint, with another sampling perhaps.
        min_overlap: least share of the panel's genes that the control cells must have.
        n_cells: of each population: intervals are those of a measurement of so many cells.
        track: wraps the list of minibatches, to show progress.

    Returns:
        perturbation, cell_type, assay_batch, populations, cells, and the columns of `families.summary.summarised`.

    Raises:
        ValueError: as `predict`; or too few populations for the level, or a programme without a gene of the panel.
    """
    reading.check()
    if populations < fewest(reading.level):
        raise ValueError(
            f"populations={populations} are too few for intervals of level {reading.level:g}, which need "
            f"{fewest(reading.level)}; draw more, or lower the level."
        )
    genes = list(checkpoint.genes)
    weights = None if programmes is None else _weights(programmes, genes)
    names = genes + ([] if programmes is None else [str(name) for name in programmes.columns])
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
    )
    of_condition = [list(own) for _, own in groupby(start.asked.chunks, key=_condition)]
    batches = track([batch for own in of_condition for batch in start.drawing.batches(own)])
    tables = []
    for number, own in groupby(batches, key=lambda batch: _condition(batch[0])):
        table = summarised(_drawn(start, number, own, weights), names, reading)
        for place, name in enumerate(COVARIATES):
            table.insert(place, name, str(conditions[name].iloc[number]))
        table.insert(len(COVARIATES), "populations", populations)
        table.insert(len(COVARIATES) + 1, "cells", n_cells or len(start.asked.rows[number]))
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def read_programmes(path: Path) -> pd.DataFrame:
    """Weights of genes [genes, programmes] of a .csv or .parquet, whose first column names the genes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no table, or a weight is no number.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}; name the table of programmes.")
    if path.suffix not in {".csv", ".parquet"}:
        raise ValueError(f"{path.name!r} is no table; give a .csv or .parquet, genes down and programmes across.")
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
        named = table.index if table.index.dtype.kind in "OU" else table.iloc[:, 0]
        weights = table.select_dtypes("number")
    except (ValueError, OSError, IndexError) as error:
        raise ValueError(f"{path.name!r} cannot be read as a table ({error}); write it again.") from None
    others = [str(name) for name in table.columns[1:] if name not in weights.columns]
    if others or weights.empty:
        which = f"column {others[0]!r} holds no" if others else "no column holds"
        raise ValueError(f"{which} numbers in {path.name!r}, and programmes are weights; give a number for each gene.")
    if not np.isfinite(weights.to_numpy(dtype=np.float64)).all():
        raise ValueError(f"a weight in {path.name!r} is missing; write 0 for a gene that is not in a programme.")
    return weights.set_axis(pd.Index(named).astype(str))


def _condition(chunk: Chunk) -> int:
    return chunk.condition


def _drawn(start: Prepared, condition: int, batches: Iterable[list[Chunk]], weights: Matrix | None) -> Drawn:
    """The means of all populations of a condition, from its control cells' mean."""
    asked = start.asked
    control, _ = start.control.of(asked.used[condition])
    own = _features(control.toarray(), weights)
    sums, squares = np.zeros((2, asked.populations, own.shape[1]))
    sizes = np.zeros(asked.populations)
    for chunk, made in start.drawing.each(batches):
        values = _features(made.cells.toarray(), weights)
        sums[chunk.repeat] += values.sum(axis=0)
        squares[chunk.repeat] += np.square(values).sum(axis=0)
        sizes[chunk.repeat] += len(values)
    means = sums / sizes[:, None]
    variance = np.maximum(squares / sizes[:, None] - np.square(means), 0.0)
    # the control cells that a population starts from are a sample as well
    of_controls = own.var(axis=0) / len(own)
    errors = variance / sizes[:, None] + of_controls
    return Drawn(means - own.mean(axis=0), errors, control.shape[1])


def _features(values: NDArray[np.float32], weights: Matrix | None) -> Matrix:
    """Genes and programmes of cells [cells, features]."""
    found = values.astype(np.float64)
    return found if weights is None else np.hstack([found, found @ weights])


def _weights(programmes: pd.DataFrame, genes: Sequence[str]) -> Matrix:
    """The weights of the panel's genes in each programme [genes, programmes], their sizes summing to 1.

    Raises:
        ValueError: a programme has no gene of the panel, or a gene twice.
    """
    index = programmes.index.astype(str)
    if index.has_duplicates:
        raise ValueError(f"gene {index[index.duplicated()][0]!r} is twice in the programmes; give each gene one row.")
    table = programmes.set_axis(index).reindex(list(genes)).fillna(0.0).to_numpy(dtype=np.float64)
    size = np.abs(table).sum(axis=0)
    for name, total in zip(programmes.columns, size, strict=True):
        if total == 0:
            advice = nearest(str(index[0]), genes) if len(index) else "they name no gene"
            raise ValueError(
                f"programme {str(name)!r} has no gene of the model's panel ({advice}); name genes as the model does."
            )
    weighted: Matrix = table / size
    return weighted
