"""Making a store of any number of files, of any size, in bounded memory: an external sort of their cells.

Each file is scanned (labels and names, without its matrix), then its cells are spilled in chunks, sorted and cut by
bucket; then every bucket is gathered from all spills and becomes a part of the store. Every step is a unit that is
written whole, so that whoever is interrupted goes on where it stopped, and the store is the same as if nothing had
happened: it depends on the cells alone.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from perturbdiff.cells.order import Integers
from perturbdiff.files.disk import OnDisk, opened
from perturbdiff.files.joining import GeneTable, file_suffixes, gene_table_of
from perturbdiff.files.matrices import check_integers
from perturbdiff.io import room_on_disk, sized
from perturbdiff.recipes.dataset import Recipe
from perturbdiff.recipes.files import is_store, resolve_files
from perturbdiff.store.gather import Bucket, bucket_plan, gather, recorded
from perturbdiff.store.joined import Joined, check_names, join
from perturbdiff.store.layout import GENES, MANIFEST, RUNS, file_hash
from perturbdiff.store.manifest import File, Manifest, read_manifest, write_manifest
from perturbdiff.store.measuring import keep_moments
from perturbdiff.store.scan import HASHES, Scan, scan
from perturbdiff.store.scan import RUNS as CONDITIONS
from perturbdiff.store.spill import Buckets, Chunk, Spill, Target, cut, spill
from perturbdiff.store.workdir import (
    SCANS,
    SPILLS,
    STORE,
    begin,
    publish,
    read_values,
    room_of,
    stat_of,
    unchanged,
    unit,
    work_folder,
)

_LOG = logging.getLogger(__name__)

type Track = Callable[[Sequence[Any]], Iterable[Any]]

_CELLS = 1 << 18
"""A chunk has at most so many cells."""

_PER_CELL = 256
"""Bytes that a cell takes besides its values while it is spilled."""

_PER_ENTRY = 12
"""Bytes that making rows of a dense matrix sparse takes for each entry, besides the entry."""

_CHUNKS, _CSC_CHUNKS = 8, 32
"""A chunk takes this share of the room when it is read; where the whole matrix is in memory already, a smaller one."""

MEMORY = 2 << 30
"""Bytes of memory that making a store takes at most."""

_SILENT = 20.0
"""Seconds between two sentences on how far it is."""

_MOST_FILES = 1 << 15
"""The file of a cell is kept as a number of 16 bits."""


def build_store(
    recipe: Recipe,
    folder: Path,
    out: Path,
    *,
    memory: int = MEMORY,
    overwrite: bool = False,
    track: Track = iter,
) -> None:
    """Make the store `out` of a recipe's files, or go on making it.

    Args:
        recipe: names the files, their columns and what is left out.
        folder: its paths are relative to this.
        out: the folder of the store, which appears when it is finished.
        memory: bytes that the process takes at most.
        overwrite: replace a store that is there, and forget what was begun.
        track: goes over the units of a step, and may draw how far it is.

    Raises:
        ValueError: the files are not what the recipe says; `out` exists, cannot be written, or is being made by
            another process; the memory is too little; the disk is full; or a file or the recipe has changed since.
        FileNotFoundError: a file is not there.
    """
    room = room_of(memory)
    paths, table, read = sources_of(recipe, folder)
    with room_on_disk(out), work_folder(out, overwrite=overwrite) as work:
        if begin(work, recipe, read):
            _LOG.info(f"Going on with {out.name!r}, which was begun before.")
        if not (work / STORE / MANIFEST).is_file():
            Build(recipe, paths, table, work, room).run(track)
        if read_manifest(work / STORE).moments is None:
            keep_moments(work / STORE, recipe, track)
        manifest = read_manifest(work / STORE)
        publish(work, out)
    _LOG.info(_summary(manifest, out))


@dataclass(frozen=True, eq=False)
class Build:
    """The making of one store, step by step, each of which does what is not yet done.

    Attributes:
        recipe: what it is made by.
        paths: the files of its cells.
        table: new names of genes.
        folder: the working folder.
        room: bytes of memory there are.
    """

    recipe: Recipe
    paths: list[Path]
    table: GeneTable | None
    folder: Path
    room: int

    @cached_property
    def suffixes(self) -> list[str]:
        """What is added to the names of each file's cells."""
        if self.recipe.cell_names == "with_file":
            return file_suffixes(self.paths)
        return [""] * len(self.paths)

    def run(self, track: Track) -> None:
        """Do every step that is not yet done."""
        scans, joined = self.scan(track)
        buckets = buckets_of(joined)
        for note in joined.notes:
            _LOG.info(note)
        chunks = self.chunks(scans)
        sizes = (chunk.stop - chunk.start for chunk in chunks)
        _drain(self.spill(track(chunks), scans, joined, buckets), sizes, "Read")
        spills = self.spills(buckets)
        plan = bucket_plan(spills, len(buckets))
        left = [bucket for bucket in plan if None in recorded(bucket, self.folder)]
        _drain(self.gather(track(left), spills, joined.genes), (bucket.n_cells for bucket in left), "Wrote")
        self.finish(plan, scans, joined)

    def scan(self, track: Track) -> tuple[list[Scan], Joined]:
        """Scan all files; all that is wrong with them, but for single values, is found here."""
        scans = [
            scan(path, self.recipe, self.folder / SCANS / f"{i:05d}", suffix=self.suffixes[i], room=self.room)
            for i, path in track(list(enumerate(self.paths)))
        ]
        joined = join(scans, self.paths, self.recipe, self.table)
        check_names(scans, self.paths, self.recipe, room=self.room)
        return scans, joined

    def chunks(self, scans: Sequence[Scan]) -> list[Chunk]:
        """What is still to be spilled."""
        (self.folder / SPILLS).mkdir(exist_ok=True)
        done = self.spilled()
        return [chunk for i, one in enumerate(scans) for chunk in self._cut(i, one.n_cells, done)]

    def spill(
        self, chunks: Iterable[Chunk], scans: Sequence[Scan], joined: Joined, buckets: Buckets
    ) -> Iterator[Chunk]:
        """Spill chunks, which are in the order of their files; give each when it is done.

        What is read of a file that changes meanwhile may look sound, zeros above all, and is never kept.
        """
        for i, own in groupby(chunks, key=attrgetter("file")):
            path = self.paths[i]
            unchanged(self.folder, path)
            target = Target(self.recipe, joined.file_genes[i], joined.genes, self.suffixes[i], buckets)
            done, is_folder = [], path.is_dir()
            try:
                with opened(path, self.recipe.expression) as found:
                    for chunk in own:
                        self._spill(found, chunk, scans[i], joined.run_of[i], target)
                        done.append(self.folder / SPILLS / chunk.name)
                        yield chunk
                unchanged(self.folder, path)
            except (ValueError, FileNotFoundError):
                # since when a folder has changed is not known
                for one in done if is_folder else ():
                    one.unlink()
                raise

    def spilled(self) -> list[Chunk]:
        """What is spilled, in the order of files and cells."""
        names = sorted(one.name for one in (self.folder / SPILLS).iterdir() if not one.name.startswith("."))
        return [Chunk.of(name) for name in names]

    def spills(self, buckets: Buckets) -> list[Spill]:
        """The spills of `spilled`.

        Raises:
            ValueError: all values of a file declared log1p are integers, and too high.
        """
        chunks = self.spilled()
        spills = [Spill(self.folder / SPILLS / chunk.name, len(buckets)) for chunk in chunks]
        if self.recipe.expression.scale == "log1p":
            feet = [one.foot() for one in spills]
            for i, path in enumerate(self.paths):
                own = [foot for chunk, foot in zip(chunks, feet, strict=True) if chunk.file == i]
                if all(integers for integers, _ in own):
                    check_integers(max(highest for _, highest in own), "log1p", path.name)
        return spills

    def gather(self, plan: Iterable[Bucket], spills: Sequence[Spill], genes: pd.Index) -> Iterator[Bucket]:
        """Make buckets into parts; give each when it is done."""
        chunks = self.spilled()
        for bucket in plan:
            gather(bucket, spills, chunks, genes, self.recipe.expression.scale, self.folder)
            yield bucket

    def finish(self, plan: Sequence[Bucket], scans: Sequence[Scan], joined: Joined) -> Manifest:
        """Write the tables and the manifest of a store that has all its parts."""
        store = self.folder / STORE
        parts = tuple(part for bucket in plan for part in recorded(bucket, self.folder) if part is not None)
        for name, table in ((RUNS, joined.runs_table()), (GENES, joined.genes_table())):
            with unit(store / name) as partial:
                table.to_parquet(partial, index=False)
        manifest = Manifest(
            recipe=self.recipe.model_dump(mode="json", exclude_none=True),
            scale=self.recipe.expression.scale,
            control=joined.control,
            n_cells=joined.n_cells,
            n_values=sum(part.n_values for part in parts),
            n_genes=len(joined.genes),
            n_runs=len(joined.labels),
            notes=joined.notes,
            files=self._files(scans, joined),
            parts=parts,
            hashes={name: file_hash(store / name) for name in (RUNS, GENES)},
            version=version("perturbdiff"),
        )
        write_manifest(manifest, store)
        return manifest

    def _cut(self, number: int, n_cells: int, done: Sequence[Chunk]) -> Iterator[Chunk]:
        """The cells of a file that are not yet spilled, in chunks that fit into the room."""
        stops = [0, *(chunk.stop for chunk in done if chunk.file == number)]
        starts = [*(chunk.start for chunk in done if chunk.file == number), n_cells]
        gaps = [(a, b) for a, b in zip(stops, starts, strict=True) if a < b]
        if not gaps:
            return
        with opened(self.paths[number], self.recipe.expression) as found:
            for first, last in gaps:
                for start in range(first, last, _CELLS):
                    yield from self._cut_range(found, number, start, min(start + _CELLS, last))

    def _cut_range(self, found: OnDisk, number: int, start: int, stop: int) -> Iterator[Chunk]:
        budget = self.room // (_CSC_CHUNKS if found.form == "csc" else _CHUNKS)
        cost = np.cumsum(_cost(found, start, stop) + _PER_CELL)
        n_chunks = -(-int(cost[-1]) // budget)
        edges = start + np.searchsorted(cost, cost[-1] * np.arange(1, n_chunks) // n_chunks)
        edges = np.unique([start, *edges.tolist(), stop])
        yield from (Chunk(number, a, b) for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))

    def _spill(self, found: OnDisk, chunk: Chunk, one: Scan, run_of: Any, target: Target) -> None:  # noqa: ANN401
        condition = read_values(one.folder / CONDITIONS, np.int32, chunk.start, chunk.stop)
        hashes = read_values(one.folder / HASHES, np.uint64, chunk.start, chunk.stop)
        # that all of a folder is unchanged takes long to see, and is seen at its end
        check = (lambda: None) if found.path.is_dir() else (lambda: unchanged(self.folder, found.path))
        try:
            spill(found, chunk, run_of[condition], hashes, target, self.folder / SPILLS, check)
        except ValueError:
            unchanged(self.folder, found.path)
            raise

    def _files(self, scans: Sequence[Scan], joined: Joined) -> tuple[File, ...]:
        return tuple(
            File(path.name, stat_of(path)[0], int(one.cells[run >= 0].sum()), int(joined.genes.isin(genes).sum()))
            for path, one, run, genes in zip(self.paths, scans, joined.run_of, joined.file_genes, strict=True)
        )


def buckets_of(joined: Joined) -> Buckets:
    """The cut of the store's cells into buckets."""
    return cut(joined.cells, joined.values)


def _cost(found: OnDisk, start: int, stop: int) -> Integers:
    """Bytes of memory that reading each of the cells start to stop takes."""
    lengths = found.lengths(start, stop)
    if lengths is not None:
        return lengths * found.bytes_per_value
    per_cell = found.n_bytes // max(1, found.shape[0])
    if found.n_stored is None:
        per_cell += per_cell // found.bytes_per_value * _PER_ENTRY
    return np.full(stop - start, per_cell, dtype=np.int64)


def sources_of(recipe: Recipe, folder: Path) -> tuple[list[Path], GeneTable | None, list[Path]]:
    """The files of the cells, the table of genes, and all files that are read."""
    paths = resolve_files(recipe, folder)
    for path in paths:
        if is_store(path):
            raise ValueError(f"{str(path)!r} is a store already, and a store is made of other files; name those.")
    if len(paths) > _MOST_FILES:
        raise ValueError(
            f"recipe {recipe.name!r} names {len(paths)} files, and a store is made of {_MOST_FILES} at most; join some."
        )
    name = recipe.expression.gene_table
    also = [] if name is None else [Path(folder) / Path(name).expanduser()]
    return paths, gene_table_of(recipe.expression, Path(folder)), [*paths, *also]


def _drain(done: Iterator[Any], sizes: Iterable[int], verb: str) -> None:
    """Do all units of a step, and say now and then how far it is."""
    counts = list(sizes)
    total, n_cells = sum(counts), 0
    began = last = time.monotonic()
    for count, _ in zip(counts, done, strict=True):
        n_cells += count
        now = time.monotonic()
        if now - last >= _SILENT and n_cells < total:
            speed = n_cells / (now - began)
            minutes = (total - n_cells) / speed / 60
            _LOG.info(
                f"{verb} {n_cells:,} of {total:,} cells, {speed:,.0f} a second; about {minutes:.1f} minutes to go."
            )
            last = now
    seconds = time.monotonic() - began
    if total:
        _LOG.info(f"{verb} {total:,} cells, {total / max(seconds, 1e-3):,.0f} a second.")


def _summary(manifest: Manifest, out: Path) -> str:
    n_parts = len(manifest.parts)
    return (
        f"{out.name!r} holds {manifest.n_cells:,} cells x {manifest.n_genes:,} genes in {manifest.n_runs:,} "
        f"conditions, {n_parts} part{'s' * (n_parts > 1)} and {sized(stat_of(out)[0])}."
    )
