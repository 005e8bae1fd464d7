"""The cells of one bucket, from all spills, as a part of the store: merged, cut where it is heavy, and hashed."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import anndata
import numpy as np
import numpy.typing as npt
import pandas as pd
import zarr

from perturbdiff.cells.order import Integers, aranges
from perturbdiff.files.disk import Texts
from perturbdiff.files.matrices import Scale
from perturbdiff.store.layout import CELL_VALUES, OBS, PARTS, content_hash, part_name, write_array
from perturbdiff.store.manifest import Part
from perturbdiff.store.spill import Chunk, Spill, n_parts, smallest
from perturbdiff.store.workdir import RECORDS, STORE, unit, write_json

_SCATTERED = 1 << 20
"""About so many values are put into their places together."""


@dataclass(frozen=True)
class Bucket:
    """A bucket that becomes parts.

    Attributes:
        number: of the bucket; `first_part` of its first part.
        start: position of its first cell.
        n_parts: how many parts it makes.
        n_cells: how many cells it holds.
    """

    number: int
    start: int
    first_part: int
    n_parts: int
    n_cells: int


class _Merged(NamedTuple):
    """The cells of a bucket in the order of the spills, and where they go.

    Attributes:
        places: where each spill keeps its cells of the bucket.
        edges: which of the cells are each spill's.
        facts: of each cell.
        names: of each cell.
        order: the cell that stands at each place of the bucket.
    """

    places: list[tuple[Spill, np.void]]
    edges: Integers
    facts: npt.NDArray[np.void]
    names: Texts
    files: npt.NDArray[np.int16]
    order: Integers


class _Rows(NamedTuple):
    """Rows of a part: the arrays of a CSR matrix."""

    data: npt.NDArray[Any]
    indices: npt.NDArray[np.int32]
    indptr: Integers


def gather(
    bucket: Bucket, spills: Sequence[Spill], chunks: Sequence[Chunk], genes: pd.Index, scale: Scale, folder: Path
) -> None:
    """Write the parts of a bucket into the store that is being made in `folder`, each with a record."""
    merged = _merge(bucket, spills, chunks)
    weight = np.cumsum(merged.facts["length"][merged.order].astype(np.int64) + CELL_VALUES)
    edges = np.searchsorted(weight, weight[-1] * np.arange(bucket.n_parts + 1) // bucket.n_parts, side="left")
    edges[-1] = len(weight)
    for i in range(bucket.n_parts):
        name = part_name(bucket.first_part + i)
        record = folder / RECORDS / f"{name}.json"
        if not record.is_file():
            first, last = int(edges[i]), int(edges[i + 1])
            rows = _rows(merged, first, last, scale)
            with unit(folder / STORE / PARTS / name) as partial:
                found = _write(partial, merged, merged.order[first:last], rows, genes, scale)
            part = Part(name, bucket.start + first, bucket.start + last, int(rows.indptr[-1]), found)
            write_json(record, asdict(part))


def bucket_plan(spills: Sequence[Spill], n_buckets: int) -> list[Bucket]:
    """Where the cells of each bucket stand, and which parts it makes; buckets without cells make none."""
    cells, values = np.zeros(n_buckets, dtype=np.int64), np.zeros(n_buckets, dtype=np.int64)
    for one in spills:
        table = one.table()
        cells += table["cells"]
        values += table["values"]
    parts = n_parts(cells, values)
    starts, firsts = np.cumsum(cells) - cells, np.cumsum(parts) - parts
    numbers = np.flatnonzero(parts).tolist()
    return [Bucket(i, int(starts[i]), int(firsts[i]), int(parts[i]), int(cells[i])) for i in numbers]


def recorded(bucket: Bucket, folder: Path) -> Iterator[Part | None]:
    """The parts of a bucket that are there; None for one that is not."""
    for i in range(bucket.n_parts):
        record = folder / RECORDS / f"{part_name(bucket.first_part + i)}.json"
        yield Part(**json.loads(record.read_text(encoding="utf-8"))) if record.is_file() else None


def _merge(bucket: Bucket, spills: Sequence[Spill], chunks: Sequence[Chunk]) -> _Merged:
    places, facts, names, files = [], [], [], []
    for one, chunk in zip(spills, chunks, strict=True):
        place = one.place(bucket.number)
        if place["cells"]:
            own, texts = one.keys(place)
            places.append((one, place))
            facts.append(own)
            names.append(_texts(texts, own["name"]))
            files.append(np.full(len(own), chunk.file, dtype=np.int16))
    joined = np.concatenate(facts)
    # stable, and spills stand in the order of files and rows: that settles ties
    order = np.lexsort((joined["hash"], joined["run"])).astype(np.int64)
    edges = np.cumsum([0, *(len(one) for one in facts)])
    return _Merged(places, edges, joined, np.concatenate(names), np.concatenate(files), order)


def _rows(merged: _Merged, first: int, last: int, scale: Scale) -> _Rows:
    """The rows of the places first to last of a bucket."""
    kind = "u" if scale == "counts" else "f"
    cells = merged.order[first:last]
    indptr = np.zeros(len(cells) + 1, dtype=np.int64)
    np.cumsum(merged.facts["length"][cells], out=indptr[1:])
    starts = np.full(len(merged.order), -1, dtype=np.int64)
    starts[cells] = indptr[:-1]
    here = [i for i in range(len(merged.places)) if (starts[merged.edges[i] : merged.edges[i + 1]] >= 0).any()]
    size = max(int(merged.places[i][1]["value_size"]) for i in here)
    data, indices = np.empty(indptr[-1], dtype=f"<{kind}{size}"), np.empty(indptr[-1], dtype=np.int32)
    for i in here:
        one, place = merged.places[i]
        some = slice(merged.edges[i], merged.edges[i + 1])
        lengths = merged.facts["length"][some].astype(np.int64)
        _scatter(one.data(place, kind), starts[some], lengths, data)
        _scatter(one.indices(place), starts[some], lengths, indices)
    if scale == "counts" and len(cells) < len(merged.order):
        # a spill's values are as small as all of its cells in the bucket allow, not as those of this part
        data = data.astype(smallest(data))
    return _Rows(data, indices, indptr)


def _scatter(values: npt.NDArray[Any], starts: Integers, lengths: Integers, out: npt.NDArray[Any]) -> None:
    """Put the values of cells, which lie in a row, where each is to start; -1 leaves a cell out."""
    before = np.cumsum(lengths) - lengths
    blocks = np.flatnonzero(np.diff(before // _SCATTERED, prepend=-1)).tolist()
    for first, last in zip(blocks, [*blocks[1:], len(lengths)], strict=True):
        chosen = first + np.flatnonzero(starts[first:last] >= 0)
        to = aranges(starts[chosen], lengths[chosen])
        if len(chosen) == last - first:
            out[to] = values[before[first] : before[first] + len(to)]
        else:
            out[to] = values[aranges(before[chosen], lengths[chosen])]


def _write(path: Path, merged: _Merged, cells: Integers, rows: _Rows, genes: pd.Index, scale: Scale) -> str:
    """Write a part as anndata does, and give its hash."""
    facts, names = merged.facts[cells], merged.names[cells]
    columns: dict[str, npt.NDArray[Any]] = {
        "total_counts": facts["total"],
        "name_hash": facts["hash"],
        "profile_hash": facts["profile"],
        "expressed": facts["length"],
        "file": merged.files[cells],
    }
    shown = [name for name in OBS if name != "total_counts" or scale == "counts"]
    root = zarr.open_group(path, mode="w", zarr_format=3)
    root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    matrix = root.create_group("X")
    shape = [len(cells), len(genes)]
    matrix.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})
    write_array(matrix, "data", rows.data)
    write_array(matrix, "indices", rows.indices)
    write_array(matrix, "indptr", rows.indptr)
    obs = root.create_group("obs")
    obs.attrs.update(
        {"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index", "column-order": shown}
    )
    write_array(obs, "_index", names, of_cells=True)
    for name in shown:
        write_array(obs, name, np.ascontiguousarray(columns[name]), of_cells=True)
    anndata.io.write_elem(root, "var", pd.DataFrame(index=genes))
    return content_hash([rows.data, rows.indices, rows.indptr, names, *(columns[name] for name in shown)])


def _texts(raw: bytes, lengths: npt.NDArray[np.int32]) -> Texts:
    """Names that lie in a row."""
    ends = np.cumsum(lengths).tolist()
    return np.array([raw[a:b].decode() for a, b in zip([0, *ends[:-1]], ends, strict=True)], dtype=object)
