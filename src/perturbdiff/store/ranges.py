"""Ranges of one-dimensional arrays on disk, all ranges of a request in one reading.

Reading a range is cheap, and asking for it is not: a selection of zarr's costs a fraction of a millisecond, whatever
its size. So the ranges of all arrays of a request are handed to zarr's codecs together, which read, decompress and
place them on several threads (zarrs: in Rust).

To zarr an array whose file is missing holds zeros there. So the files of an array are counted when it is opened.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import zarr
from zarr.buffer import default_buffer_prototype
from zarr.core.array_spec import ArrayConfig, ArraySpec
from zarr.core.sync import sync

from perturbdiff.cells.order import Integers, aranges

_PIPELINE = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}

_OPENING = Lock()
"""zarr's settings belong to the process, and are changed while an array is opened."""


class Ranges(NamedTuple):
    """Ranges ``start[i]`` to ``stop[i]`` of an array, one after the other; they may be empty."""

    array: "zarr.Array[Any]"
    start: Integers
    stop: Integers


def open_array(path: Path) -> "zarr.Array[Any]":
    """Open an array of numbers for `read`.

    Raises:
        OSError, KeyError, ValueError: it is not there, or is no array.
    """
    with _OPENING, zarr.config.set(_PIPELINE):
        return zarr.open_array(path, mode="r")


def n_missing(array: "zarr.Array[Any]", path: Path) -> int:
    """How many files of an array are not there; of zeros only, none is written."""
    if not array.shape[0]:
        return 0
    there = sum(1 for _ in (path / "c").iterdir()) if (path / "c").is_dir() else 0
    return -(-array.shape[0] // _file_size(array)) - there


def read(wanted: Sequence[Ranges]) -> list[npt.NDArray[Any]]:
    """The values of all ranges of each request, one after the other.

    Raises:
        RuntimeError, OSError, ValueError: a file is damaged.
    """
    found: list[npt.NDArray[Any]] = [np.empty(int((one.stop - one.start).sum()), one.array.dtype) for one in wanted]

    async def fill() -> None:
        await asyncio.gather(*(_fill(one, out) for one, out in zip(wanted, found, strict=True) if len(out)))

    sync(fill())
    return found


async def _fill(wanted: Ranges, out: npt.NDArray[Any]) -> None:
    array, prototype = wanted.array, default_buffer_prototype()
    size, held = _file_size(array), wanted.array.async_array
    metadata: Any = held.metadata
    spec = ArraySpec((size,), metadata.dtype, metadata.fill_value, ArrayConfig.from_dict({}), prototype)
    number, start, stop = _by_file(wanted, size)
    ends = np.cumsum(stop - start)
    paths = {i: held.store_path / metadata.encode_chunk_key((i,)) for i in np.unique(number).tolist()}
    pieces = zip(
        number.tolist(),
        (start - number * size).tolist(),
        (stop - number * size).tolist(),
        (ends - (stop - start)).tolist(),
        ends.tolist(),
        strict=True,
    )
    await held.codec_pipeline.read(
        [(paths[i], spec, (slice(a, b),), (slice(c, d),), False) for i, a, b, c, d in pieces],
        prototype.nd_buffer(out),
    )


def _by_file(wanted: Ranges, size: int) -> tuple[Integers, Integers, Integers]:
    """Cut ranges where a file ends: the number of the file, start and stop of each piece."""
    filled = wanted.stop > wanted.start
    start, stop = wanted.start[filled], wanted.stop[filled]
    n_files = (stop - 1) // size - start // size + 1
    number = aranges(start // size, n_files)
    return (
        number,
        np.maximum(np.repeat(start, n_files), number * size),
        np.minimum(np.repeat(stop, n_files), (number + 1) * size),
    )


def _file_size(array: "zarr.Array[Any]") -> int:
    return int((array.shards or array.chunks)[0])
