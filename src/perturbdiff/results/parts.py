"""The parts of an evaluation that lie in parquet files: tests of every gene, and cells that are placed on planes.

    genes.parquet    side, perturbation, cell_type, assay_batch, gene, change, p_value, p_adjusted, mean
    cells.parquet    side, perturbation, cell_type, assay_batch, pc1, pc2, and with UMAP umap1, umap2

A side is "observed", the name of a predicted file, or "control". A file of genes of many conditions has many millions
of rows: it is read in batches into one array [conditions, genes] a side.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from shutil import copyfile
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from perturbdiff.io import whole_file
from perturbdiff.metrics.conditions import LABELS, Condition
from perturbdiff.metrics.differential_expression import RankSum
from perturbdiff.metrics.distances import Vector

OBSERVED = "observed"
"""The side that is the truth."""

SIGNIFICANT = 0.05
"""A gene is differentially expressed where its adjusted p is below this."""

THRESHOLD = float(-np.log10(SIGNIFICANT))

EVIDENCE = "\N{MINUS SIGN}log\N{SUBSCRIPT ONE}\N{SUBSCRIPT ZERO} adjusted p"
"""The name of the axis of evidence."""

_LABELS = ("side", *LABELS)
_COMPONENTS, _UMAP = ("pc1", "pc2"), ("umap1", "umap2")
_SMALLEST = 1e-300
_BATCH = 1 << 18
_PYARROW: Any = pyarrow


@dataclass(frozen=True)
class Test:
    """What is kept of a test of differential expression: the change from control, the test, the mean [genes]."""

    change: Vector
    test: RankSum
    mean: Vector


type Values = NDArray[np.float32]
type Codes = NDArray[np.int64]
type Tests = Sequence[tuple[Condition, Mapping[str, Test]]]
"""Of each condition, the tests of the observed cells and of predicted files, by side."""


@dataclass(frozen=True)
class Genes:
    """What the tests of differential expression said.

    Attributes:
        names: the genes.
        conditions: perturbation, cell type and assay batch, which is empty where they are pooled.
        change: by side [conditions, genes], mean log1p difference from control; NaN where absent.
        evidence: by side [conditions, genes], -log10 of the adjusted p, at most 300; NaN where absent.
        tests: what these are of; none where they were read.
        path: the file that they were read from; None where they were not.
    """

    names: tuple[str, ...]
    conditions: tuple[Condition, ...]
    change: dict[str, Values]
    evidence: dict[str, Values]
    tests: Tests = field(default=(), repr=False)
    path: Path | None = None

    @classmethod
    def of(cls, tests: Tests, names: Sequence[str]) -> "Genes":
        """What tests say of the judged genes."""
        sides = list(dict.fromkeys(side for _, own in tests for side in own))
        change, evidence = np.full((2, len(sides), len(tests), len(names)), np.nan, np.float32)
        for row, (_, own) in enumerate(tests):
            for side, one in own.items():
                change[sides.index(side), row] = one.change
                evidence[sides.index(side), row] = _evidence(one.test.p_adjusted)
        conditions = tuple(condition for condition, _ in tests)
        return cls(tuple(names), conditions, _by_side(sides, change), _by_side(sides, evidence), tests)

    @classmethod
    def read(cls, path: Path) -> "Genes":
        """Read genes.parquet of an evaluation.

        Raises:
            ValueError: it is no parquet file, lacks a column, or has no observed side.
        """
        columns = [*_LABELS, "gene", "change", "p_adjusted"]
        try:
            known = _PYARROW.parquet.read_schema(path).names
        except (ValueError, OSError) as error:
            raise ValueError(f"{str(path)!r} is not a parquet file ({error}); run evaluate again.") from None
        if "assay_batch" not in known:
            columns.remove("assay_batch")
        missing = [name for name in columns if name not in known]
        if missing:
            raise ValueError(f"{str(path)!r} lacks the columns {missing}; run evaluate again.")
        file = _PYARROW.parquet.ParquetFile(path, read_dictionary=columns[:-2])
        sides, keys, genes = _Places[str](), _Places[Condition](), _Places[str]()
        for (side, *condition, gene), _, _ in _batches(file, columns):
            sides.of(side.labels)
            genes.of(gene.labels)
            _keys(condition, keys)
        if OBSERVED not in sides.known:
            raise ValueError(f"{str(path)!r} has no side {OBSERVED!r}; run evaluate again.")
        shape = (len(sides.known), len(keys.known), len(genes.known))
        change, evidence = np.full((2, *shape), np.nan, np.float32)
        for (side, *condition, gene), changes, adjusted in _batches(file, columns):
            where = (
                sides.of(side.labels)[side.codes],
                _keys(condition, keys),
                genes.of(gene.labels)[gene.codes],
            )
            change[where] = changes
            evidence[where] = _evidence(adjusted)
        return cls(
            tuple(genes.known),
            tuple(keys.known),
            _by_side(sides.known, change),
            _by_side(sides.known, evidence),
            path=path,
        )

    @property
    def predicted(self) -> list[str]:
        """The sides that are predicted files."""
        return [side for side in self.change if side != OBSERVED]

    @cached_property
    def n_true(self) -> NDArray[np.int64]:
        """How many genes are differentially expressed in the observed cells of each condition."""
        return np.asarray((self.evidence[OBSERVED] > THRESHOLD).sum(axis=1), dtype=np.int64)

    def save(self, path: Path) -> None:
        """Write a row a side, condition and gene, condition by condition; a copy of the file that they were read from.

        It is written whole or not at all.
        """
        with whole_file(path) as partial:
            if self.path is not None:
                copyfile(self.path, partial)
            else:
                self._write(partial)

    def _write(self, path: Path) -> None:
        label = _PYARROW.dictionary(_PYARROW.int32(), _PYARROW.string())
        numbers = [(name, _PYARROW.float64()) for name in ("change", "p_value", "p_adjusted", "mean")]
        schema = _PYARROW.schema([*((name, label) for name in (*_LABELS, "gene")), *numbers])
        places = np.arange(len(self.names), dtype=np.int32)
        with _PYARROW.parquet.ParquetWriter(path, schema) as writer:
            for condition, sides in self.tests:
                for side, one in sides.items():
                    texts = [_repeated(text, len(places)) for text in (side, *condition)]
                    gene = _PYARROW.DictionaryArray.from_arrays(places, list(self.names))
                    values = (one.change, one.test.p_value, one.test.p_adjusted, one.mean)
                    arrays = [*texts, gene, *map(_PYARROW.array, values)]
                    writer.write_table(_PYARROW.Table.from_arrays(arrays, schema=schema))


class Plane(NamedTuple):
    """Where cells are drawn: the columns of their places, and the names of the axes."""

    columns: tuple[str, str]
    axes: tuple[str, str]


@dataclass(frozen=True)
class Projection:
    """Placed cells.

    Attributes:
        table: side, perturbation, cell_type, assay_batch, pc1, pc2; with UMAP also umap1, umap2, NaN for cells that it
            does not place.
        variance: the share of the variance of observed and control cells that each component has; empty where it is
            not known.
    """

    table: pd.DataFrame
    variance: tuple[float, ...]

    @classmethod
    def read(cls, path: Path, variance: tuple[float, ...]) -> "Projection":
        """Read cells.parquet of an evaluation.

        Raises:
            ValueError: it is no parquet file, or lacks a column.
        """
        try:
            table = pd.read_parquet(path)
        except (ValueError, OSError) as error:
            raise ValueError(f"{str(path)!r} is not a parquet file ({error}); run evaluate again.") from None
        if "assay_batch" not in table.columns:
            table["assay_batch"] = ""
        missing = [name for name in (*_LABELS, *_COMPONENTS) if name not in table.columns]
        if missing:
            raise ValueError(f"{str(path)!r} lacks the columns {missing}; run evaluate again.")
        return cls(table.astype(dict.fromkeys(_LABELS, str)), variance)

    def save(self, path: Path) -> None:
        """Write cells.parquet, whole or not at all."""
        with whole_file(path) as partial:
            self.table.to_parquet(partial, index=False)

    @property
    def components(self) -> Plane:
        """Two principal components, with their shares of variance."""
        shares = [f" ({100 * share:.1f} %)" for share in self.variance[:2]] or ["", ""]
        return Plane(_COMPONENTS, (f"PC 1{shares[0]}", f"PC 2{shares[-1]}"))

    @property
    def umap(self) -> Plane | None:
        """The plane of UMAP; None where no cell was placed on it."""
        there = set(_UMAP) <= set(self.table.columns) and bool(self.table[list(_UMAP)].notna().all(axis=1).any())
        return Plane(_UMAP, ("UMAP 1", "UMAP 2")) if there else None

    def on(self, plane: Plane) -> pd.DataFrame:
        """The cells that were placed on a plane: side, perturbation, cell_type, assay_batch, x, y."""
        table = self.table[[*_LABELS, *plane.columns]].dropna(subset=list(plane.columns))
        return table.set_axis([*_LABELS, "x", "y"], axis=1)


def _evidence(adjusted: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(-np.log10(np.clip(adjusted, _SMALLEST, 1.0)))


def _by_side(sides: Iterable[str], values: Values) -> dict[str, Values]:
    return dict(zip(sides, values, strict=True))


def _repeated(text: str, times: int) -> Any:  # noqa: ANN401 - an array of pyarrow, which has no types
    return _PYARROW.DictionaryArray.from_arrays(np.zeros(times, dtype=np.int32), [text])


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


def _keys(columns: Sequence[_Column], places: _Places[Condition]) -> Codes:
    """The condition of each row, by its columns of perturbation, cell type and perhaps assay batch."""
    codes = np.zeros_like(columns[0].codes)
    for column in columns:
        codes = codes * len(column.labels) + column.codes
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    labels: list[Condition] = []
    for row in first:
        perturbation, cell_type, *batch = (column.labels[column.codes[row]] for column in columns)
        labels.append(Condition(perturbation, cell_type, *batch))
    return np.asarray(places.of(labels)[inverse], dtype=np.int64)


def _batches(
    file: Any,  # noqa: ANN401 - a parquet file, which pyarrow does not type
    columns: list[str],
) -> Iterator[tuple[list[_Column], NDArray[np.float64], NDArray[np.float64]]]:
    for batch in file.iter_batches(batch_size=_BATCH, columns=columns):
        labels = []
        for name in columns[:-2]:
            column = batch.column(name)
            if not hasattr(column, "dictionary"):
                column = column.dictionary_encode()
            codes = column.indices.to_numpy(zero_copy_only=False).astype(np.int64)
            labels.append(_Column([str(label) for label in column.dictionary.to_pylist()], codes))
        numbers = [
            np.asarray(batch.column(name).to_numpy(zero_copy_only=False), dtype=np.float64) for name in columns[-2:]
        ]
        yield labels, numbers[0], numbers[1]
