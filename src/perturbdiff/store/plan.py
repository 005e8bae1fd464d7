"""Making a store of any number of files, of any size, in bounded memory: an external sort of their cells.

Each file is scanned (labels and names, without its matrix), then its cells are spilled in chunks, sorted and cut by
bucket; then every bucket is gathered from all spills and becomes a part of the store. Every step is a unit that is
written whole, so that whoever is interrupted goes on where it stopped, and the store is the same as if nothing had
happened: it depends on the cells alone.
"""

import logging
import resource
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perturbdiff.cells.joining import GeneTable, gene_table_of
from perturbdiff.recipes.dataset import COVARIATES, Recipe
from perturbdiff.recipes.files import is_store, resolve_files
from perturbdiff.store.buckets import Buckets
from perturbdiff.store.build import Making, Track, bucket_plan, buckets_of
from perturbdiff.store.gather import recorded
from perturbdiff.store.layout import MANIFEST
from perturbdiff.store.manifest import Manifest, read_manifest
from perturbdiff.store.measuring import keep_moments
from perturbdiff.store.spill import Chunk
from perturbdiff.store.workdir import STORE, begin, publish, room_on_disk, stat_of, work_folder

_LOG = logging.getLogger(__name__)

MEMORY = 2 << 30
"""Bytes of memory that making a store takes at most."""

_LEAST = 1 << 30
"""A part and the libraries take nearly so much."""

_SILENT = 20.0
"""Seconds between two sentences on how far it is."""

_PROBED_FILES, _PROBED_CELLS = 4, 4096
"""A plan measures so many cells of so many files."""


_MOST_FILES = 1 << 15
"""The file of a cell is kept as a number of 16 bits."""


@dataclass(frozen=True)
class Plan:
    """What making a store would take.

    Attributes:
        n_files: that it would be made of.
        n_cells: that it would hold; `n_runs` conditions and `n_genes` genes likewise.
        n_labels: how many labels of each covariate.
        file_genes: how many genes each file has.
        temporary_bytes: on disk while it is made, besides the store itself.
        store_bytes: of the store.
        free_bytes: on the disk.
        minutes: estimated from a sample of the cells.
        notes: sentences on what would be done to the data.
    """

    n_files: int
    n_cells: int
    n_runs: int
    n_genes: int
    n_labels: dict[str, int]
    file_genes: tuple[int, ...]
    temporary_bytes: int
    store_bytes: int
    free_bytes: int
    minutes: float
    notes: tuple[str, ...]


def prepare_store(
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
    room = _room(memory)
    paths, table, read = _sources(recipe, folder)
    with room_on_disk(out), work_folder(out, overwrite=overwrite) as work:
        if begin(work, recipe, read):
            _LOG.info(f"Going on with {out.name!r}, which was begun before.")
        if not (work / STORE / MANIFEST).is_file():
            _make(Making(recipe, paths, table, work, room), track)
        if read_manifest(work / STORE).moments is None:
            keep_moments(work / STORE, recipe, track)
        manifest = read_manifest(work / STORE)
        publish(work, out)
    _LOG.info(_summary(manifest, out))


def plan_store(recipe: Recipe, folder: Path, out: Path, *, memory: int = MEMORY) -> Plan:
    """Say what making a store would take: scan the files and try a sample of their cells in a temporary folder.

    Raises:
        ValueError: as `prepare_store`, as far as a scan and a sample tell.
        FileNotFoundError: a file is not there.
    """
    room = _room(memory)
    paths, table, read = _sources(recipe, folder)
    above = next(one for one in out.absolute().parents if one.is_dir())
    with room_on_disk(out), tempfile.TemporaryDirectory(prefix=f".{out.name}.plan.", dir=above) as name:
        began = time.monotonic()
        work = Path(name)
        begin(work, recipe, read)
        making = Making(recipe, paths, table, work, room)
        scans, joined = making.scan(iter)
        scanned = time.monotonic() - began
        making.chunks(scans)
        # one bucket of all runs, since a sample is small
        nowhere = np.zeros(len(joined.labels), dtype=np.int64)
        buckets = Buckets(nowhere, nowhere + 1)
        sizes = [(i, min(one.n_cells, _PROBED_CELLS)) for i, one in enumerate(scans[:_PROBED_FILES])]
        chunks = [Chunk(i, 0, n_cells) for i, n_cells in sizes]
        began = time.monotonic()
        done = list(making.spill(chunks, scans, joined, buckets))
        spills = making.spills(buckets)
        plan = bucket_plan(spills, len(buckets))
        list(making.gather(plan, spills, joined.genes))
        seconds = time.monotonic() - began
        n_probed = max(1, sum(chunk.stop - chunk.start for chunk in done))
        n_all = sum(one.n_cells for one in scans)
        spilled, stored = stat_of(work / "spills")[0], stat_of(work / STORE)[0] if plan else 0
        kept = max(1, sum(bucket.n_cells for bucket in plan))
    return Plan(
        n_files=len(paths),
        n_cells=joined.n_cells,
        n_runs=len(joined.labels),
        n_genes=len(joined.genes),
        n_labels={key: len(joined.labels[key].cat.categories) for key in COVARIATES},
        file_genes=tuple(len(one.genes) for one in scans),
        temporary_bytes=spilled * joined.n_cells // kept + 12 * n_all,
        store_bytes=stored * joined.n_cells // kept,
        free_bytes=shutil.disk_usage(above).free,
        minutes=(scanned + seconds * n_all / n_probed) / 60,
        notes=joined.notes,
    )


def _make(making: Making, track: Track) -> None:
    scans, joined = making.scan(track)
    buckets = buckets_of(joined)
    for note in joined.notes:
        _LOG.info(note)
    chunks = making.chunks(scans)
    sizes = (chunk.stop - chunk.start for chunk in chunks)
    _drain(making.spill(track(chunks), scans, joined, buckets), sizes, "Read")
    spills = making.spills(buckets)
    plan = bucket_plan(spills, len(buckets))
    left = [bucket for bucket in plan if None in recorded(bucket, making.folder)]
    _drain(making.gather(track(left), spills, joined.genes), (bucket.n_cells for bucket in left), "Wrote")
    making.finish(plan, scans, joined)


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


def _sources(recipe: Recipe, folder: Path) -> tuple[list[Path], GeneTable | None, list[Path]]:
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


def _room(memory: int) -> int:
    """Bytes that chunks and parts may take, of those that the process may."""
    if memory < _LEAST:
        raise ValueError(
            f"{memory / 2**30:.2f} GiB of memory is too little to make a store, which takes {_LEAST / 2**30:.0f} GiB; "
            "allow more."
        )
    # what the libraries take already; where it is all, the rest cannot be kept
    return max(memory - _resident(), memory // 4)


def _resident() -> int:
    """Bytes of memory that this process has."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024
    return pages * resource.getpagesize()


def sized(n_bytes: float) -> str:
    """A number of bytes for a sentence: "1.4 GiB"."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if n_bytes < 1024 or unit == "GiB":
            break
        n_bytes /= 1024
    return f"{n_bytes:.3g} {unit}"


def _summary(manifest: Manifest, out: Path) -> str:
    n_parts = len(manifest.parts)
    return (
        f"{out.name!r} holds {manifest.n_cells:,} cells x {manifest.n_genes:,} genes in {manifest.n_runs:,} "
        f"conditions, {n_parts} part{'s' * (n_parts > 1)} and {sized(stat_of(out)[0])}."
    )
