"""What making a store would take, measured on a sample of its cells."""

import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from perturbdiff.core.choices import COVARIATES
from perturbdiff.io import room_on_disk
from perturbdiff.recipes.dataset import Recipe
from perturbdiff.store.build import MEMORY, Build, sources_of
from perturbdiff.store.gather import bucket_plan
from perturbdiff.store.spill import Buckets, Chunk
from perturbdiff.store.workdir import STORE, begin, room_of, stat_of

_PROBED_FILES, _PROBED_CELLS = 4, 4096
"""A plan measures so many cells of so many files."""


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


def plan_store(recipe: Recipe, folder: Path, out: Path, *, memory: int = MEMORY) -> Plan:
    """Say what making a store would take: scan the files and try a sample of their cells in a temporary folder.

    Raises:
        ValueError: as `build_store`, as far as a scan and a sample tell.
        FileNotFoundError: a file is not there.
    """
    room = room_of(memory)
    paths, table, read = sources_of(recipe, folder)
    above = next(one for one in out.absolute().parents if one.is_dir())
    with room_on_disk(out), tempfile.TemporaryDirectory(prefix=f".{out.name}.plan.", dir=above) as name:
        began = time.monotonic()
        work = Path(name)
        begin(work, recipe, read)
        build = Build(recipe, paths, table, work, room)
        scans, joined = build.scan(iter)
        scanned = time.monotonic() - began
        build.chunks(scans)
        # one bucket of all runs, since a sample is small
        nowhere = np.zeros(len(joined.labels), dtype=np.int64)
        buckets = Buckets(nowhere, nowhere + 1)
        sizes = [(i, min(one.n_cells, _PROBED_CELLS)) for i, one in enumerate(scans[:_PROBED_FILES])]
        chunks = [Chunk(i, 0, n_cells) for i, n_cells in sizes]
        began = time.monotonic()
        done = list(build.spill(chunks, scans, joined, buckets))
        spills = build.spills(buckets)
        plan = bucket_plan(spills, len(buckets))
        list(build.gather(plan, spills, joined.genes))
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
