"""Differential expression of every gene in every condition, of the observed cells and of each predicted file.

A file of many conditions has many millions of rows: it is read in batches into one array [conditions, genes] a side.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

OBSERVED = "observed"
"""The side that is the truth."""

SIGNIFICANT = 0.05
"""A gene is differentially expressed where its adjusted p is below this."""

THRESHOLD = float(-np.log10(SIGNIFICANT))

EVIDENCE = "\N{MINUS SIGN}log\N{SUBSCRIPT ONE}\N{SUBSCRIPT ZERO} adjusted p"
"""The name of the axis of evidence."""

_LABELS = ("side", "perturbation", "cell_type", "assay_batch", "gene")
_SMALLEST = 1e-300
_BATCH = 1 << 18

type Values = NDArray[np.float32]
type Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Genes:
    """What the tests of differential expression said.

    Attributes:
        names: the genes.
        conditions: perturbation, cell type and assay batch, which is empty where they are pooled.
        change: by side [conditions, genes], mean log1p difference from control; NaN where absent.
        evidence: by side [conditions, genes], -log10 of the adjusted p, at most 300; NaN where absent.
    """

    names: tuple[str, ...]
    conditions: tuple[tuple[str, str, str], ...]
    change: dict[str, Values]
    evidence: dict[str, Values]

    @property
    def predicted(self) -> list[str]:
        """The sides that are predicted files."""
        return [side for side in self.change if side != OBSERVED]

    @cached_property
    def n_true(self) -> NDArray[np.int64]:
        """How many genes are differentially expressed in the observed cells of each condition."""
        return np.asarray((self.evidence[OBSERVED] > THRESHOLD).sum(axis=1), dtype=np.int64)


def read_genes(path: Path) -> Genes:
    """Read genes.parquet of an evaluation.

    Raises:
        ValueError: it is no parquet file, lacks a column, or has no observed side.
    """
    columns = [*_LABELS, "change", "p_adjusted"]
    try:
        known = pq.read_schema(path).names  # type: ignore[no-untyped-call]
    except (ValueError, OSError) as error:
        raise ValueError(f"{str(path)!r} is not a parquet file ({error}); run evaluate again.") from None
    if "assay_batch" not in known:
        columns.remove("assay_batch")
    missing = [name for name in columns if name not in known]
    if missing:
        raise ValueError(f"{str(path)!r} lacks the columns {missing}; run evaluate again.")
    labels = [name for name in _LABELS if name in columns]
    file: Any = pq.ParquetFile(path, read_dictionary=labels)  # type: ignore[no-untyped-call]
    sides, keys, genes = _Places[str](), _Places[tuple[str, str, str]](), _Places[str]()
    for (side, *condition, gene), _, _ in _batches(file, columns):
        sides.of(side.labels)
        genes.of(gene.labels)
        _keys(condition, keys)
    if OBSERVED not in sides.known:
        raise ValueError(f"{str(path)!r} has no side {OBSERVED!r}; run evaluate again.")
    shape = (len(sides.known), len(keys.known), len(genes.known))
    change, evidence = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    for (side, *condition, gene), changes, adjusted in _batches(file, columns):
        where = (
            sides.of(side.labels)[side.codes],
            _keys(condition, keys),
            genes.of(gene.labels)[gene.codes],
        )
        change[where] = changes
        evidence[where] = -np.log10(np.clip(adjusted, _SMALLEST, 1.0))
    return Genes(
        tuple(genes.known),
        tuple(keys.known),
        {side: change[place] for side, place in sides.known.items()},
        {side: evidence[place] for side, place in sides.known.items()},
    )


@dataclass(frozen=True)
class _Column:
    """A column of labels: what they are, and which of them each row has."""

    labels: list[str]
    codes: Codes


class _Places[Label]:
    """Places of labels in the order in which they are met."""

    def __init__(self) -> None:
        self.known: dict[Label, int] = {}

    def of(self, labels: list[Label]) -> Codes:
        """The place of each label; a new one takes the next."""
        return np.array([self.known.setdefault(label, len(self.known)) for label in labels], dtype=np.int64)


def _keys(columns: Sequence[_Column], places: _Places[tuple[str, str, str]]) -> Codes:
    """The condition of each row, by its columns of perturbation, cell type and perhaps assay batch."""
    codes = np.zeros_like(columns[0].codes)
    for column in columns:
        codes = codes * len(column.labels) + column.codes
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    labels: list[tuple[str, str, str]] = []
    for row in first:
        perturbation, cell_type, *batch = (column.labels[column.codes[row]] for column in columns)
        labels.append((perturbation, cell_type, batch[0] if batch else ""))
    return np.asarray(places.of(labels)[inverse], dtype=np.int64)


def _batches(
    file: Any,  # noqa: ANN401 - a parquet file, which pyarrow does not type
    columns: list[str],
) -> Iterator[tuple[list[_Column], NDArray[np.float64], NDArray[np.float64]]]:
    for batch in file.iter_batches(batch_size=_BATCH, columns=columns):
        labels = []
        for name in (name for name in _LABELS if name in columns):
            column = batch.column(name)
            if not hasattr(column, "dictionary"):
                column = column.dictionary_encode()
            codes = column.indices.to_numpy(zero_copy_only=False).astype(np.int64)
            labels.append(_Column([str(label) for label in column.dictionary.to_pylist()], codes))
        numbers = [
            np.asarray(batch.column(name).to_numpy(zero_copy_only=False), dtype=np.float64)
            for name in ("change", "p_adjusted")
        ]
        yield labels, numbers[0], numbers[1]
