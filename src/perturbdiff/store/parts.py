"""The parts of a store: cells by their positions, as they are stored.

Nothing is kept but the opened arrays. Positions are read in ranges, and ranges with small gaps between them as one, for
a chunk is decompressed whole whatever is wanted of it; cells in the gaps are read and marked as not asked for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import zarr

from perturbdiff.cells.order import Flags, Integers, aranges
from perturbdiff.store.layout import CHUNK, OBS_CHUNK, content_hash
from perturbdiff.store.manifest import Part
from perturbdiff.store.ranges import Ranges, n_missing, open_array, read

_CELLS = 4096
"""Longer ranges of cells are cut, so that what is read at once is bounded."""

_VALUES = 1 << 22
"""About so many values are read at once."""

_NAMES = "obs/_index"

_DAMAGE = (OSError, ValueError, RuntimeError, KeyError)
"""What zarr and its codecs raise for files that are missing or are not what was written."""


class CellRanges(NamedTuple):
    """Ranges of cells, ascending.

    Attributes:
        part: the number of the part of each range.
        start: first cell of each range, counted within its part; `stop` one after the last.
        asked: of each cell of all ranges, whether it was asked for.
    """

    part: Integers
    start: Integers
    stop: Integers
    asked: Flags

    def by_part(self, first: int = 0, last: int | None = None) -> Iterator[tuple[int, slice]]:
        """The ranges first to last, part by part."""
        part = self.part[first:last]
        edges = first + np.append(np.flatnonzero(np.diff(part, prepend=-1)), len(part))
        for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            yield int(self.part[a]), slice(a, b)


class Rows(NamedTuple):
    """Cells as they are stored: the arrays of a CSR matrix, with the lengths of its rows; which were asked for."""

    data: npt.NDArray[Any]
    indices: npt.NDArray[np.int32]
    lengths: Integers
    asked: Flags


class Extent(NamedTuple):
    """Where the values of ranges of cells lie: in its part's values, and the number of values of each cell."""

    start: Integers
    stop: Integers
    lengths: Integers


@dataclass(frozen=True, eq=False)
class Parts:
    """The parts in a folder.

    Attributes:
        folder: where they are.
        parts: what the manifest says of them, in the order of their positions.
        gap: ranges of cells with fewer cells between them are read as one.
    """

    folder: Path
    parts: tuple[Part, ...]
    gap: int
    _opened: dict[tuple[int, str], "zarr.Array[Any]"] = field(default_factory=dict)
    _opening: Any = field(default_factory=Lock)

    @classmethod
    def of(cls, folder: Path, parts: tuple[Part, ...], *, n_cells: int, n_values: int) -> "Parts":
        """The parts of a store of so many cells and values.

        Raises:
            ValueError: a part is missing.
        """
        there = {one.name for one in folder.iterdir()} if folder.is_dir() else set()
        absent = [one.name for one in parts if one.name not in there]
        if absent:
            raise ValueError(
                f"{str(folder)!r} lacks {len(absent)} of {len(parts)} parts, such as {absent[0]!r}; copy the store "
                "again, or make it again with `perturbdiff prepare --overwrite`."
            )
        return cls(folder, parts, max(1, CHUNK * n_cells // max(1, n_values)))

    def ranges(self, positions: Integers, gap: int | None = None) -> CellRanges:
        """The ranges to read for ascending positions, each given once."""
        if not len(positions):
            return CellRanges(positions, positions, positions, np.zeros(0, dtype=bool))
        breaks = np.flatnonzero(np.diff(positions) > (self.gap if gap is None else gap)) + 1
        start, stop = positions[np.append(0, breaks)], positions[np.append(breaks, len(positions)) - 1] + 1
        first, last = self._part_of(start), self._part_of(stop - 1)
        part = aranges(first, last - first + 1)
        n_ranges = last - first + 1
        start = np.maximum(np.repeat(start, n_ranges), self._edges[part])
        stop = np.minimum(np.repeat(stop, n_ranges), self._edges[part + 1])
        n_pieces = -(-(stop - start) // _CELLS)
        piece = aranges(np.zeros_like(n_pieces), n_pieces)
        part, start, stop = (np.repeat(one, n_pieces) for one in (part, start, stop))
        start = start + piece * _CELLS
        stop = np.minimum(stop, start + _CELLS)
        before = np.cumsum(stop - start) - (stop - start)
        asked = np.ones(int((stop - start).sum()), dtype=bool)
        if len(asked) > len(positions):
            asked[:] = False
            place = np.searchsorted(start, positions, side="right") - 1
            asked[before[place] + positions - start[place]] = True
        return CellRanges(part, start - self._edges[part], stop - self._edges[part], asked)

    def column(self, name: str, ranges: CellRanges) -> npt.NDArray[Any]:
        """A column of obs, of the cells asked for."""
        return self._of_cells(f"obs/{name}", ranges)[ranges.asked]

    def extent(self, ranges: CellRanges) -> Extent:
        """Where the values of these cells lie."""
        bounds = self._of_cells("X/indptr", ranges, more=1)
        # a range of n cells has n + 1 bounds
        n_bounds = ranges.stop - ranges.start + 1
        ends = np.cumsum(n_bounds)
        lengths = np.delete(np.diff(bounds), ends[:-1] - 1)
        return Extent(bounds[ends - n_bounds], bounds[ends - 1], lengths)

    def kinds(self, ranges: CellRanges) -> list[np.dtype[Any]]:
        """The types of the values of these cells."""
        return [self._array(part, "X/data").dtype for part, _ in ranges.by_part()] or [np.dtype(np.uint8)]

    def rows(self, ranges: CellRanges, extent: Extent) -> Iterator[Rows]:
        """These cells, some at a time."""
        cells = np.append(0, np.cumsum(ranges.stop - ranges.start))
        batch = np.cumsum(extent.stop - extent.start) // _VALUES
        edges = np.append(np.flatnonzero(np.diff(batch, prepend=-1)), len(batch)).tolist()
        for first, last in pairwise(edges):
            groups = list(ranges.by_part(first, last))
            found = self._read(
                [
                    (part, name, extent.start[i], extent.stop[i])
                    for name in ("X/data", "X/indices")
                    for part, i in groups
                ]
            )
            for j, (_, i) in enumerate(groups):
                some = slice(cells[i.start], cells[i.stop])
                yield Rows(found[j], found[len(groups) + j], extent.lengths[some], ranges.asked[some])

    def names(self, positions: Integers) -> npt.NDArray[np.object_]:
        """The names of cells at ascending positions, each given once."""
        ranges = self.ranges(positions, OBS_CHUNK)
        found = [np.zeros(0, dtype=object)]
        for number, start, stop in zip(*(one.tolist() for one in ranges[:3]), strict=True):
            try:
                names: Any = self._texts(number)[start:stop]
            except _DAMAGE as error:
                raise self._damaged(number, _NAMES, error) from None
            found.append(np.asarray(names, dtype=object))
        return np.concatenate(found)[ranges.asked]

    def is_whole(self, number: int, columns: Sequence[str]) -> bool:
        """Read a part and compare its contents, with these columns of obs, with what was written."""
        part = self.parts[number]
        try:
            names = ["X/data", "X/indices", "X/indptr", *(f"obs/{name}" for name in columns)]
            arrays = self._read([(number, name, np.array([0]), np.array([self._size(number, name)])) for name in names])
            arrays.insert(3, np.asarray(self._texts(number)[:], dtype=object))
        except _DAMAGE:
            return False
        return content_hash(arrays) == part.hash

    def _of_cells(self, name: str, ranges: CellRanges, more: int = 0) -> npt.NDArray[Any]:
        """An array with an entry a cell, of all cells of the ranges; and `more` entries after each range."""
        wanted = [(part, name, ranges.start[i], ranges.stop[i] + more) for part, i in ranges.by_part()]
        return np.concatenate(self._read(wanted or [(0, name, ranges.start, ranges.stop)]))

    def _part_of(self, positions: Integers) -> Integers:
        return np.searchsorted(self._edges, positions, side="right").astype(np.int64) - 1

    @cached_property
    def _edges(self) -> Integers:
        return np.array([*(one.start for one in self.parts), self.parts[-1].stop], dtype=np.int64)

    def _read(self, wanted: Sequence[tuple[int, str, Integers, Integers]]) -> list[npt.NDArray[Any]]:
        """Ranges of arrays of parts: number of the part, name of the array, starts, stops."""
        try:
            return read([Ranges(self._array(number, name), start, stop) for number, name, start, stop in wanted])
        except _DAMAGE:
            self._find(wanted)
            raise

    def _find(self, wanted: Sequence[tuple[int, str, Integers, Integers]]) -> None:
        """Say which array cannot be read."""
        for number, name, start, stop in wanted:
            try:
                read([Ranges(self._array(number, name), start, stop)])
            except _DAMAGE as error:
                raise self._damaged(number, name, error) from None

    def _array(self, number: int, name: str) -> "zarr.Array[Any]":
        with self._opening:
            if (number, name) not in self._opened:
                path = self.folder / self.parts[number].name / name
                array, size = open_array(path), self._size(number, name)
                if array.shape != (size,):
                    raise OSError(f"its shape is {array.shape} instead of {(size,)}")
                if self._must_be_whole(number, name) and (absent := n_missing(array, path)):
                    raise OSError(f"{absent} of its files are missing")
                self._opened[number, name] = array
            return self._opened[number, name]

    def _size(self, number: int, name: str) -> int:
        part = self.parts[number]
        if name.startswith("obs/"):
            return part.stop - part.start
        return part.stop - part.start + 1 if name == "X/indptr" else part.n_values

    def _must_be_whole(self, number: int, name: str) -> bool:
        """Whether an array cannot be all zeros for long, for zeros may have no file; names of files and genes may."""
        part = self.parts[number]
        fewest = part.stop - part.start if name == "X/indices" else 0
        return name != "obs/file" and part.n_values > fewest

    def _texts(self, number: int) -> "zarr.Array[Any]":
        return zarr.open_array(self.folder / self.parts[number].name / _NAMES, mode="r")

    def _damaged(self, number: int, name: str, error: Exception) -> ValueError:
        reason = str(error).split("\n")[0].rstrip(".") or type(error).__name__
        return ValueError(
            f"array {name!r} of part {self.parts[number].name!r} in {str(self.folder)!r} cannot be read ({reason}); "
            "copy the store again, or make it again with `perturbdiff prepare --overwrite`."
        )
