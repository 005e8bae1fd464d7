"""Ways to read cells of a store: zarr as it comes, with zarrs' codecs, by our own reading of ranges, and by annbatch.

    python benchmarks/engines.py --cells 200000

Writes a data set as benchmarks/preparing.py does (2,000 genes, about 10 % filled) and makes a store of it. Then each
engine, in processes of their own that take turns, is asked for ranges of cells, and gives the arrays of a CSR matrix
(data, indices, lengths of the rows) of exactly these cells, in memory, as they are stored:

- sequence: all cells in order, 65,536 neighbours at a time;
- slab: 64 blocks of 1,024 neighbouring cells at random places;
- stretches: 1,000 stretches of 64 neighbouring cells at random places.

Ranges ascend and do not overlap; blocks and stretches are fewer where they would be more than half of the cells. All
files are in the page cache. Row pointers are in memory, except for ours, which reads those of each request. annbatch
gets a sampler of ours: the ranges are its requests, and its one split is all of their cells in order. It is no
dependency of the package: `pip install annbatch`, or leave it out with --engine.

All engines must give the same values, or there is no result. Ratios are of cells a second; the CPU seconds count all
threads. Results: benchmarks/results/engines.json and engines.md."""

import argparse
import asyncio
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from itertools import count, islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

HERE = Path(__file__).parent
STEP = 1 << 16
RANGES = {"slab": (64, 1024), "stretches": (1000, 64)}
KINDS = ("sequence", *RANGES)
ZARRS = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}

type Integers = npt.NDArray[np.int64]


class Rows(NamedTuple):
    """The arrays of a CSR matrix, with the lengths of its rows."""

    data: npt.NDArray[Any]
    indices: npt.NDArray[Any]
    lengths: npt.NDArray[Any]


type Read = Callable[[Integers, Integers], Rows]


def folders(store: Path) -> list[Path]:
    """X of each part."""
    return sorted((store / "parts").glob("*.zarr/X"))


def ranges(store: Path, settings: dict[str, Any]) -> Read:
    """One getitem a range and array, all of a request at the same time."""
    import zarr
    from zarr.core.sync import sync

    zarr.config.set(settings)
    groups: list[Any] = [zarr.open_group(folder, mode="r") for folder in folders(store)]
    arrays = [(group["data"].async_array, group["indices"].async_array) for group in groups]
    pointers = [group["indptr"][:] for group in groups]
    edges = np.cumsum([0, *(len(one) - 1 for one in pointers)])

    def read(start: Integers, stop: Integers) -> Rows:
        wanted, lengths = [], []
        for i, (first, last) in enumerate(pairwise(edges.tolist())):
            inside = (start < last) & (stop > first)
            bounds = np.maximum(start[inside], first) - first, np.minimum(stop[inside], last) - first
            for a, b in zip(*(one.tolist() for one in bounds), strict=True):
                wanted.append((i, slice(int(pointers[i][a]), int(pointers[i][b]))))
                lengths.append(np.diff(pointers[i][a : b + 1]))

        async def gathered() -> list[Any]:
            return await asyncio.gather(*(arrays[i][j].getitem(values) for j in range(2) for i, values in wanted))

        found = sync(gathered())
        n = len(wanted)
        return Rows(np.concatenate(found[:n]), np.concatenate(found[n:]), np.concatenate(lengths))

    return read


def ours(store: Path) -> Read:
    """All ranges at once; none are joined over small gaps, for a gap's cells would have to be left out again."""
    from perturbdiff.cells.order import aranges
    from perturbdiff.store.stored import Store

    parts = Store.open(store).parts

    def read(start: Integers, stop: Integers) -> Rows:
        found_ranges = parts.ranges(aranges(start, stop - start), gap=1)
        found = list(parts.rows(found_ranges, parts.extent(found_ranges)))
        return Rows(*(np.concatenate(one) for one in list(zip(*found, strict=True))[:3]))

    return read


def annbatch(store: Path) -> Read:
    """annbatch's loader, which asks a sampler of ours what to load next."""
    import zarr
    from annbatch import Loader
    from annbatch.abc import Sampler
    from anndata.io import sparse_dataset

    zarr.config.set(ZARRS)

    class Asked(Sampler):
        start: Integers
        stop: Integers
        batch_size = None
        shuffle = False

        def n_batches(self, n_obs: int) -> int:  # noqa: ARG002 - of the interface
            return sys.maxsize

        def validate(self, n_obs: int) -> None:
            pass

        def _sample(self, n_obs: int) -> Iterator[Any]:  # noqa: ARG002 - of the interface
            while True:
                requests = [slice(a, b) for a, b in zip(self.start.tolist(), self.stop.tolist(), strict=True)]
                yield {"requests": requests, "splits": [np.arange(int((self.stop - self.start).sum()))]}

    asked = Asked()
    loader: Any = Loader(batch_sampler=asked, preload_to_gpu=False)
    loader.add_datasets([sparse_dataset(zarr.open_group(folder, mode="r")) for folder in folders(store)])
    loaded = iter(loader)

    def read(start: Integers, stop: Integers) -> Rows:
        asked.start, asked.stop = start, stop
        found = next(loaded)["X"]
        return Rows(found.data, found.indices, np.diff(found.indptr))

    return read


OURS = "perturbdiff.store.parts (zarr + zarrs, all ranges at once)"
ANNBATCH = "annbatch + zarrs"
ENGINES: dict[str, Callable[[Path], Read]] = {
    "zarr": lambda store: ranges(store, {}),
    "zarr + zarrs, one getitem a range": lambda store: ranges(store, ZARRS),
    OURS: ours,
    ANNBATCH: annbatch,
}


def requests(kind: str, n_cells: int, rng: np.random.Generator) -> Iterator[tuple[Integers, Integers]]:
    """Starts and stops of ranges, request after request, without an end."""
    for i in count():
        if kind == "sequence":
            start = np.array([i % -(-n_cells // STEP) * STEP])
            yield start, np.minimum(start + STEP, n_cells)
        else:
            most, size = RANGES[kind]
            n = min(most, n_cells // (2 * size))
            # sorted places among the cells that are in no range, moved by the ranges before them
            start = np.sort(rng.integers(0, n_cells - n * size, n, endpoint=True)) + np.arange(n) * size
            yield start, start + size


def digest(read: Read, kind: str, n_cells: int) -> str:
    """The SHA-256 of all cells, or of those of one request that is always the same."""
    found = hashlib.sha256()
    n_requests = -(-n_cells // STEP) if kind == "sequence" else 1
    for start, stop in islice(requests(kind, n_cells, np.random.default_rng(0)), n_requests):
        rows = read(start, stop)
        for values, dtype in zip(rows, (np.float32, np.int32, np.int64), strict=True):
            found.update(np.ascontiguousarray(values, dtype=dtype).data)
    return found.hexdigest()


def timed(read: Read, kind: str, n_cells: int, seconds: float, seed: int) -> dict[str, Any]:
    """Read for so many seconds at least."""
    asked = requests(kind, n_cells, np.random.default_rng(seed))
    done, spent, start = 0, time.process_time(), time.perf_counter()
    while time.perf_counter() - start < seconds:
        first, last = next(asked)
        lengths = read(first, last).lengths
        if len(lengths) != (last - first).sum():
            raise ValueError(f"{len(lengths)} cells were read where {(last - first).sum()} were asked for.")
        done += len(lengths)
    took = time.perf_counter() - start
    return {"cells": done, "seconds": took, "cpu_seconds": time.process_time() - spent}


def engine(name: str, store: Path, seconds: float, seed: int) -> dict[str, Any]:
    """Measure one engine in this process; what the digest is of also warms it up."""
    n_cells = json.loads((store / "manifest.json").read_text())["n_cells"]
    read = ENGINES[name](store)
    return {
        kind: {"digest": digest(read, kind, n_cells), **timed(read, kind, n_cells, seconds, seed)} for kind in KINDS
    }


def write_data(folder: Path, n_cells: int) -> dict[str, Any]:
    """The source files and their store."""
    import preparing

    each = n_cells // preparing.N_FILES
    for i in range(preparing.N_FILES):
        preparing.write_file(folder / f"{i}.h5ad", i * each, each, seed=i)
    return preparing.worker(folder, 2 << 30)


def work(what: str, *rest: str) -> dict[str, Any]:
    """What a process of its own does."""
    if what == "data":
        return write_data(Path(rest[0]), int(rest[1]))
    return engine(rest[0], Path(rest[1]), float(rest[2]), int(rest[3]))


def call(*arguments: object) -> dict[str, Any]:
    """Do one thing in a process of its own."""
    command = [sys.executable, __file__, "--worker", *(str(one) for one in arguments)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def measure(store: Path, engines: list[str], seconds: float, rounds: int) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """All engines in turns: of each kind of request, of each engine, what each round found.

    Raises:
        ValueError: two engines gave different values for the same request.
    """
    found: dict[str, dict[str, list[dict[str, Any]]]] = {kind: {name: [] for name in engines} for kind in KINDS}
    for seed in range(1, rounds + 1):
        for name in engines:
            for kind, one in call("engine", name, store, seconds, seed).items():
                found[kind][name].append(one)
                print(f"{kind}, {name}:", round(one["cells"] / one["seconds"]), one, flush=True)
                if one["digest"] != found[kind][engines[0]][0]["digest"]:
                    raise ValueError(f"{name!r} gives other values than {engines[0]!r} for the same {kind}.")
    return found


def table(found: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """Medians, and how they compare."""
    lines = [
        "| what | engine | cells a second (min-max) | of ours | cells a CPU second | of ours |",
        "|---|---|---|---|---|---|",
    ]
    for kind, of_engines in found.items():
        speeds = {
            name: [statistics.median(one["cells"] / one[key] for one in many) for key in ("seconds", "cpu_seconds")]
            for name, many in of_engines.items()
        }
        for name, (wall, cpu) in speeds.items():
            each = sorted(one["cells"] / one["seconds"] for one in of_engines[name])
            of_wall, of_cpu = (f"{a / b:.2f}" for a, b in zip((wall, cpu), speeds[OURS], strict=True))
            lines.append(
                f"| {kind} | {name} | {wall:,.0f} ({each[0]:,.0f}-{each[-1]:,.0f}) | {of_wall} | {cpu:,.0f} | "
                f"{of_cpu} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--engine", action="append", choices=list(ENGINES), help="beside ours; may be given repeatedly")
    parser.add_argument("--folder", type=Path, help="for the data while they are there; 200,000 cells take 0.5 GB")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dry", action="store_true", help="write no results")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(work(*arguments.worker)))
        return
    engines = [name for name in ENGINES if name == OURS or name in (arguments.engine or ENGINES)]
    if ANNBATCH in engines and find_spec("annbatch") is None:
        parser.error("annbatch is not installed; `pip install annbatch`, or name the other engines with --engine.")
    folder = Path(tempfile.mkdtemp(prefix="engines.", dir=arguments.folder))
    try:
        call("data", folder, arguments.cells)
        store = folder / "made.store"
        manifest = json.loads((store / "manifest.json").read_text())
        found = measure(store, engines, arguments.seconds, arguments.rounds)
    finally:
        shutil.rmtree(folder)
    text = table(found)
    print(text)
    if arguments.dry:
        return
    libraries = [name for name in ("zarr", "zarrs", "annbatch") if name != "annbatch" or ANNBATCH in engines]
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {versions}"
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "engines.md").write_text(
        f"# Engines that read a store\n\n{machine}; {manifest['n_cells']:,} cells, {manifest['n_genes']:,} genes, "
        f"{manifest['n_values']:,} values, parts: {len(manifest['parts'])}; warm page cache, medians of "
        f"{arguments.rounds} rounds. All engines gave the same values.\n\n{text}\n"
    )
    content = {"machine": machine, "cells": manifest["n_cells"], "values": manifest["n_values"], "reading": found}
    (HERE / "results" / "engines.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
