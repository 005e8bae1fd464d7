"""Some cells of a file, sorted and cut by bucket, in one file of the working folder.

The canonical order is cut into buckets of about equal weight before any cell has been moved. A bucket is a few whole
runs, or those cells of a larger run whose names' hashes lie between two numbers: hashes are spread evenly, so equal
widths hold about equally many cells. The cut depends on the cells alone, not on the files or the memory there is.

A spill holds for each bucket, one after the other and compressed: the cells' keys (run, hash of the name, facts and
names), the genes, and the values. A table at its end says where each begins.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
from numcodecs.blosc import Blosc

from perturbdiff.cells.memory import profile_hashes
from perturbdiff.cells.order import Hashes, Integers
from perturbdiff.files.disk import OnDisk, Rows
from perturbdiff.files.joining import aligned
from perturbdiff.files.matrices import Scale
from perturbdiff.recipes.dataset import Recipe
from perturbdiff.store.layout import CELL_VALUES, PART_VALUES
from perturbdiff.store.scan import checked_rows
from perturbdiff.store.workdir import unit

TABLE = np.dtype(
    [
        *((name, "<i8") for name in ("start", "keys", "indices", "data", "cells", "values")),
        ("gene_size", "<i4"),
        ("value_size", "<i4"),
    ]
)
"""Where a bucket's bytes start; how many its keys, genes and values take; how many cells and values it has; and how
many bytes one gene and one value take."""

FACTS = np.dtype(
    [("run", "<i4"), ("length", "<i4"), ("name", "<i4"), ("hash", "<u8"), ("profile", "<u8"), ("total", "<f8")]
)
"""A cell: its run, how many values it has, how many bytes its name takes, hashes of name and profile, total count."""

FOOT = np.dtype([("integers", "?"), ("highest", "<f8")])
"""Whether all values of a spill are integers, and the highest; both of log1p values only."""


@dataclass(frozen=True, eq=False)
class Buckets:
    """Run r lies in the buckets ``first[r]`` to ``first[r] + pieces[r]``."""

    first: Integers
    pieces: Integers

    def __len__(self) -> int:
        """Count the buckets."""
        return int((self.first + self.pieces).max(initial=0))

    def of(self, run: npt.NDArray[np.int32], hashes: Hashes) -> Integers:
        """The bucket of each cell; ascends with (run, hash)."""
        pieces = self.pieces[run].astype(np.uint64)
        return self.first[run] + (((hashes >> np.uint64(32)) * pieces) >> np.uint64(32)).astype(np.int64)


def cut(cells: Integers, values: Integers) -> Buckets:
    """Cut runs of so many cells and values into buckets of about `PART_VALUES`."""
    weight = values + CELL_VALUES * cells
    pieces = np.maximum(1, -(-weight // PART_VALUES))
    first = np.zeros(len(weight), dtype=np.int64)
    bucket, filled = -1, 0
    for run, (heavy, n_pieces) in enumerate(zip(weight.tolist(), pieces.tolist(), strict=True)):
        if n_pieces > 1 or bucket < 0 or filled + heavy > PART_VALUES:
            bucket, filled = bucket + 1, 0
        first[run] = bucket
        filled += heavy
        if n_pieces > 1:
            bucket, filled = bucket + n_pieces - 1, PART_VALUES
    return Buckets(first, pieces)


def n_parts(cells: Integers, values: Integers) -> Integers:
    """How many parts a bucket makes: one, but where it turned out to be heavier than was thought."""
    weight = values + CELL_VALUES * cells
    return np.where(weight > PART_VALUES + PART_VALUES // 2, -(-weight // PART_VALUES), 1) * (cells > 0)


class Chunk(NamedTuple):
    """Cells start to stop of a file."""

    file: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """The name of its spill."""
        return f"{self.file:05d}-{self.start:012d}-{self.stop:012d}"

    @classmethod
    def of(cls, name: str) -> "Chunk":
        """The chunk of a spill's name."""
        return cls(*map(int, name.split("-")))


@dataclass(frozen=True, eq=False)
class Target:
    """What spilling a file needs to know of the store.

    Attributes:
        file_genes: of the file, renamed.
        genes: of the store.
        suffix: is added to the names of the file's cells.
        buckets: of the store.
    """

    recipe: Recipe
    file_genes: pd.Index
    genes: pd.Index
    suffix: str
    buckets: Buckets


def spill(
    found: OnDisk,
    chunk: Chunk,
    run: npt.NDArray[np.int32],
    hashes: Hashes,
    target: Target,
    folder: Path,
    check: Callable[[], None],
) -> None:
    """Spill one chunk.

    Args:
        found: the file.
        chunk: which of its cells.
        run: of each of them; -1 where it is left out.
        hashes: of their names.
        target: what the store is to be.
        folder: for the spill.
        check: is called before the spill is kept, and raises where it is not to be.

    Raises:
        ValueError: as in `scan.checked_rows`.
    """
    kept = run >= 0
    values, totals, _, *foot = checked_rows(found, target.recipe, chunk.start, chunk.stop, kept)
    run, hashes, names = run[kept], hashes[kept], found.names(chunk.start, chunk.stop)[kept]
    order = np.lexsort((hashes, run))
    rows = sp.csr_matrix(aligned(values, target.file_genes, target.genes))
    rows.eliminate_zeros()
    profiles, _ = profile_hashes(rows)
    rows = _narrow(rows, target.recipe.expression.scale)[order]
    encoded = [name.encode() for name in (names[order] + target.suffix).tolist()]
    facts = np.zeros(len(order), dtype=FACTS)
    facts["run"], facts["hash"], facts["profile"] = run[order], hashes[order], profiles[order]
    facts["length"], facts["name"] = np.diff(rows.indptr), [len(name) for name in encoded]
    if totals is not None:
        facts["total"] = totals[order]
    bucket = target.buckets.of(facts["run"], facts["hash"])
    with unit(folder / chunk.name) as partial:
        _write(partial, facts, encoded, rows, bucket, len(target.buckets), foot)
        check()


class Spill:
    """A spill, read a bucket at a time."""

    def __init__(self, path: Path, n_buckets: int) -> None:
        self._path, self._n_buckets = path, n_buckets

    def table(self) -> npt.NDArray[np.void]:
        """Where the bytes of each bucket are."""
        with self._path.open("rb") as file:
            file.seek(-(self._n_buckets * TABLE.itemsize + FOOT.itemsize), os.SEEK_END)
            return np.frombuffer(file.read(self._n_buckets * TABLE.itemsize), dtype=TABLE)

    def foot(self) -> tuple[bool, float]:
        """Whether all its values are integers, and the highest."""
        with self._path.open("rb") as file:
            file.seek(-FOOT.itemsize, os.SEEK_END)
            foot = np.frombuffer(file.read(FOOT.itemsize), dtype=FOOT)[0]
        return bool(foot["integers"]), float(foot["highest"])

    def place(self, bucket: int) -> np.void:
        """Where the bytes of one bucket are."""
        with self._path.open("rb") as file:
            file.seek(-((self._n_buckets - bucket) * TABLE.itemsize + FOOT.itemsize), os.SEEK_END)
            place: np.void = np.frombuffer(file.read(TABLE.itemsize), dtype=TABLE)[0]
        return place

    def keys(self, place: np.void) -> tuple[npt.NDArray[np.void], bytes]:
        """What is known of the cells of a bucket: records of `FACTS`, and their names' bytes in a row."""
        raw = self._read(int(place["start"]), int(place["keys"]))
        facts = np.frombuffer(raw, dtype=FACTS, count=int(place["cells"]))
        return facts, raw[facts.nbytes :]

    def indices(self, place: np.void) -> npt.NDArray[Any]:
        """The genes of a bucket's values."""
        raw = self._read(int(place["start"] + place["keys"]), int(place["indices"]))
        return np.frombuffer(raw, dtype=f"<u{int(place['gene_size'])}")

    def data(self, place: np.void, kind: str) -> npt.NDArray[Any]:
        """The values of a bucket; `kind` is "u" for counts, "f" for log1p."""
        raw = self._read(int(place["start"] + place["keys"] + place["indices"]), int(place["data"]))
        return np.frombuffer(raw, dtype=f"<{kind}{int(place['value_size'])}")

    def _read(self, start: int, n_bytes: int) -> bytes:
        with self._path.open("rb") as file:
            file.seek(start)
            return bytes(_codec(1).decode(file.read(n_bytes)))


def _write(
    path: Path,
    facts: npt.NDArray[np.void],
    names: list[bytes],
    rows: Rows,
    bucket: Integers,
    n_buckets: int,
    foot: Sequence[float],
) -> None:
    table = np.zeros(n_buckets, dtype=TABLE)
    indices = rows.indices.astype(np.uint16 if rows.shape[1] <= 1 << 16 else np.uint32)
    edges = np.append(np.flatnonzero(np.diff(bucket, prepend=-1)), len(bucket))
    with path.open("wb") as file:
        for first, last in pairwise(edges.tolist()):
            one, place = table[bucket[first] : bucket[first] + 1], slice(rows.indptr[first], rows.indptr[last])
            data = rows.data[place]
            data = data if data.dtype.kind == "f" else data.astype(smallest(data))
            keys = facts[first:last].tobytes() + b"".join(names[first:last])
            one["start"], one["cells"], one["values"] = file.tell(), last - first, len(data)
            one["gene_size"], one["value_size"] = indices.itemsize, data.itemsize
            one["keys"] = file.write(_codec(1).encode(keys))
            one["indices"] = file.write(_codec(indices.itemsize).encode(indices[place]))
            one["data"] = file.write(_codec(data.itemsize).encode(data))
        file.write(table.tobytes())
        file.write(np.array([tuple(foot)], dtype=FOOT).tobytes())


def _narrow(rows: Rows, scale: Scale) -> Rows:
    """Values as small as they may be: unsigned integers, or float32."""
    data = rows.data.astype(np.float32 if scale == "log1p" else smallest(rows.data), copy=False)
    return sp.csr_matrix((data, rows.indices, rows.indptr), shape=rows.shape, copy=False)


def smallest(counts: npt.NDArray[Any]) -> "np.dtype[Any]":
    """The smallest type of unsigned integers that holds them."""
    return np.min_scalar_type(int(counts.max(initial=0)))


@lru_cache
def _codec(size: int) -> Blosc:
    return Blosc(cname="lz4", clevel=1, shuffle=Blosc.SHUFFLE if size > 1 else Blosc.NOSHUFFLE)
