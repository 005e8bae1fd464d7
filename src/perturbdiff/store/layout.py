"""A store on disk: which files it has, how their arrays are cut and compressed, and what a part's hash is of.

    NAME/
      manifest.json     what the store holds (see `manifest`), with hashes of everything else
      runs.parquet      a row a run: perturbation, cell_type, assay_batch, start, cells
      genes.parquet     a row a gene: name, identifier, and for file i whether it has the gene, "in:<i>"
      moments.parquet   a row a gene: sums over the training cells of the recipe's split, see `cells.moments`
      parts/00000.zarr  an AnnData of consecutive positions, which anndata.read_zarr reads: X in rows, obs and var

A part's X holds counts in the smallest unsigned integers that fit it, or log1p values in float32; a zero is never
stored and genes ascend within a cell. While a store is being made its folder is hidden: ``.NAME.partial``.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec, ZstdCodec

FORMAT = 1
"""The version of this layout."""

MANIFEST, RUNS, GENES, PARTS = "manifest.json", "runs.parquet", "genes.parquet", "parts"
MOMENTS = "moments.parquet"

CHUNK = 1 << 14
"""So many values are compressed together: the least that reading a range of cells must decompress."""

SHARD = 1 << 22
"""So many values lie in one file of a part; a multiple of `CHUNK`."""

CODEC = {"cname": "lz4", "clevel": 5, "shuffle": "bitshuffle"}
"""How values are compressed: arguments of zarr's `BloscCodec`."""

OBS_CHUNK = 1 << 12
"""So many cells' labels are compressed together."""

OBS_SHARD = 1 << 20
"""So many cells' labels lie in one file of a part; a multiple of `OBS_CHUNK`."""

PART_VALUES = 1 << 26
"""A part holds about so many values, where a cell counts as `CELL_VALUES` of them besides its own."""

CELL_VALUES = 64

OBS = ("total_counts", "name_hash", "profile_hash", "expressed", "file")
"""The columns of a part's obs; total_counts only where the scale is counts."""


def part_name(number: int) -> str:
    """The name of a part's folder within `PARTS`."""
    return f"{number:05d}.zarr"


def write_array(group: zarr.Group, name: str, values: npt.NDArray[Any], *, of_cells: bool = False) -> None:
    """Write a one-dimensional array as anndata reads it, a shard at a time; text has dtype object."""
    chunk, shard = (OBS_CHUNK, OBS_SHARD) if of_cells else (CHUNK, SHARD)
    text = values.dtype == object
    array = group.create_array(
        name,
        shape=values.shape,
        dtype="string" if text else values.dtype,
        chunks=(chunk if len(values) > chunk else max(1, len(values)),),
        shards=(min(shard, -(-len(values) // chunk) * chunk),) if len(values) > chunk else None,
        compressors=ZstdCodec(level=1) if text else _codec(),
        fill_value="" if text else 0,
        attributes={"encoding-type": "string-array" if text else "array", "encoding-version": "0.2.0"},
    )
    for start in range(0, len(values), shard):
        array[start : start + shard] = values[start : start + shard]


def content_hash(arrays: Iterable[npt.NDArray[Any]]) -> str:
    """The SHA-256 of arrays' uncompressed bytes, in their order; of text, each with its length before it.

    A part's is of X's data, indices and indptr, the cells' names, and the columns `OBS` that it has.
    """
    found = hashlib.sha256()
    for values in arrays:
        if values.dtype == object:
            encoded = [str(text).encode() for text in values]
            found.update(np.array([len(one) for one in encoded], dtype="<i8").tobytes())
            found.update(b"".join(encoded))
        else:
            found.update(np.ascontiguousarray(values).data)
    return found.hexdigest()


def file_hash(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _codec() -> BloscCodec:
    return BloscCodec(**CODEC)  # type: ignore[arg-type]
