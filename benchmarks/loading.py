"""Reading populations from a store, against reading cells one by one and against reading the store from end to end.

    python benchmarks/loading.py --cells 2000000

Writes a data set as benchmarks/preparing.py does (2,000 genes, about 10 % filled), with 1,010 conditions of about 1,800
cells and 10 groups of control cells, and makes a store of it. Then, in processes of their own that take turns, cells a
second of

- populations: minibatches of 8 populations of m perturbed and m control cells, dense float32, as training takes them,
  all of them read ("held 0") or the control cells held in memory, as is the default where they fit into 1 GiB;
- rows: one random row a cell from the source .h5ad, made dense, by h5py and by anndata's backed mode, the fastest ways
  to do what the release does (uncompressed, which favours it);
- sequential: all arrays of X from end to end, by zarr as it comes ("zarr"), by zarr with zarrs' codecs ("zarrs"), and
  by the latter with log1p and dense cells made of it ("dense").

"cold" is after the store's files were dropped from the page cache, "warm" after all files that are to be read were
brought into it; the bytes read from the disk are recorded. Beside
them: opening a store of 1,000,000 conditions, and the time to draw a slab of populations (none of them read) against
the number of cells. Results: benchmarks/results/loading.json and loading.md."""

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
LABELS = {"perturbation": 102, "cell_type": 5, "assay_batch": 2}
N_FILES, PER_BATCH = 4, 8
SIZES = (256, 32)


def rss() -> int:
    """The peak resident set of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read_bytes() -> int:
    """Bytes that this process had read from a disk; 0 where the system does not count them."""
    try:
        return int(Path("/proc/self/io").read_text().split("read_bytes: ")[1].split()[0])
    except (OSError, IndexError):
        return 0


def drop(folder: Path) -> None:
    """Drop the files of a folder from the page cache."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def warm(paths: list[Path]) -> None:
    """Bring files, and those of folders, into the page cache."""
    for path in paths:
        for one in path.rglob("*") if path.is_dir() else [path]:
            if one.is_file():
                with one.open("rb") as file:
                    while file.read(1 << 24):
                        pass


def timed(steps: Iterator[int], seconds: float) -> dict[str, Any]:
    """Cells a second of an iterator that says how many cells each step gave, over so many seconds at least."""
    before, start, n_cells = read_bytes(), time.perf_counter(), 0
    spent = time.process_time()
    for step in steps:
        n_cells += step
        if time.perf_counter() - start > seconds:
            break
    took = time.perf_counter() - start
    return {
        "cells": n_cells,
        "seconds": took,
        "cpu_seconds": time.process_time() - spent,
        "disk_bytes": read_bytes() - before,
    }


def populations(store: Path, m: int, held: int, seconds: float) -> dict[str, Any]:
    """Minibatches of populations, read ahead in the background."""
    from perturbdiff.core.choices import COVARIATES
    from perturbdiff.labels.vocabulary import Vocabulary
    from perturbdiff.populations.epochs import Populations
    from perturbdiff.store.stored import Store
    from perturbdiff.training.streams import PopulationStream

    source = Store.open(store)
    vocabularies = {name: Vocabulary.from_labels(name, source.runs.labels[name]) for name in COVARIATES}
    libraries, start = rss(), time.perf_counter()
    drawn = Populations(
        source,
        source.runs.whole(),
        list(source.genes),
        2.0,
        vocabularies,
        cells_per_population=m,
        control_share=0.0,
        seed=0,
        held=held,
    )
    made = time.perf_counter() - start

    def steps() -> Iterator[int]:
        for batch in PopulationStream(drawn, per_batch=PER_BATCH):
            n_cells = batch.perturbed.shape[0] * m if batch.mask is None else int(batch.mask.sum())
            yield 2 * n_cells

    return {"made": made, **timed(steps(), seconds), "libraries_bytes": libraries, "peak_bytes": rss()}


def rows(sources: list[Path], how: str, seconds: float) -> dict[str, Any]:
    """One random row a cell, made dense."""
    import anndata
    import h5py

    rng = np.random.default_rng(0)
    n_genes = 0

    def by_h5py(path: Path) -> tuple[int, Callable[[int], Any]]:
        matrix: Any = h5py.File(path)["X"]
        offsets, data, indices = matrix["indptr"][:], matrix["data"], matrix["indices"]
        width = int(matrix.attrs["shape"][1])

        def row(i: int) -> np.ndarray[Any, Any]:
            dense = np.zeros(width, np.float32)
            a, b = offsets[i], offsets[i + 1]
            dense[indices[a:b]] = data[a:b]
            return dense

        return len(offsets) - 1, row

    def by_anndata(path: Path) -> tuple[int, Callable[[int], Any]]:
        matrix: Any = anndata.read_h5ad(path, backed="r").X
        return matrix.shape[0], lambda i: matrix[i].toarray()

    opened = [(by_h5py if how == "h5py" else by_anndata)(path) for path in sources]

    def steps() -> Iterator[int]:
        nonlocal n_genes
        while True:
            n_cells, row = opened[rng.integers(len(opened))]
            n_genes = row(int(rng.integers(n_cells))).shape[-1]
            yield 1

    return timed(steps(), seconds)


def sequential(store: Path, how: str) -> dict[str, Any]:
    """All arrays of X, one after the other; "dense" makes log1p counts per 10^4 of them, 2,048 cells at a time."""
    import scipy.sparse as sp
    import zarr

    if how != "zarr":
        zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})

    def made_dense(part: Path, arrays: list[Any]) -> Iterator[int]:
        data, indices, offsets = arrays
        factor = (1e4 / np.asarray(zarr.open_array(part / "obs" / "total_counts", mode="r")[:])).astype(np.float32)
        n_genes = int(indices.max()) + 1
        for start in range(0, len(offsets) - 1, 2048):
            bounds = offsets[start : start + 2049]
            some = slice(bounds[0], bounds[-1])
            logs = np.log1p(data[some] * np.repeat(factor[start : start + 2048], np.diff(bounds)))
            yield len(sp.csr_matrix((logs, indices[some], bounds - bounds[0]), (len(bounds) - 1, n_genes)).toarray())

    def steps() -> Iterator[int]:
        for part in sorted((store / "parts").iterdir()):
            matrix: Any = zarr.open_group(part / "X", mode="r")
            arrays = [matrix[name][:] for name in ("data", "indices", "indptr")]
            if how == "dense":
                yield from made_dense(part, arrays)
            else:
                yield len(arrays[-1]) - 1

    return timed(steps(), float("inf"))


def many_runs(folder: Path, n_runs: int, per_run: int) -> None:
    """The tables of a store of so many conditions, half of them control, without its cells."""
    import pandas as pd

    from perturbdiff.recipes.dataset import recipe_from_mapping
    from perturbdiff.store.layout import GENES, RUNS, file_hash
    from perturbdiff.store.manifest import Manifest, Part, write_manifest

    types, n_perturbations = 10, max(2, n_runs // 200)
    batches = -(-n_runs // (types * n_perturbations))
    codes = np.stack(np.unravel_index(np.arange(n_runs), (n_perturbations, types, batches)))
    table = pd.DataFrame(
        {
            name: pd.Categorical.from_codes(code, [f"{name}_{i:06d}" for i in range(n)])
            for name, code, n in zip(LABELS, codes, (n_perturbations, types, batches), strict=True)
        }
    )
    table["start"], table["cells"] = np.arange(n_runs, dtype=np.int64) * per_run, np.full(n_runs, per_run)
    for i in range(2):
        table[f"digest_{i}"] = np.random.default_rng(i).integers(0, 2**64, n_runs, dtype=np.uint64)
    (folder / "parts" / "00000.zarr").mkdir(parents=True)
    table.to_parquet(folder / RUNS, index=False)
    names = [f"GENE{i}" for i in range(20_000)]
    pd.DataFrame({"name": names, "identifier": names, "in:0": True}).to_parquet(folder / GENES, index=False)
    n_cells = n_runs * per_run
    mapping = {
        "name": "benchmark",
        "control": "perturbation_000000",
        "files": ["*.h5ad"],
        "columns": {name: name for name in LABELS},
        "expression": {"scale": "counts"},
    }
    recipe = recipe_from_mapping(mapping, "benchmark")
    manifest = Manifest(
        recipe=recipe.model_dump(mode="json", exclude_none=True),
        scale="counts",
        control="perturbation_000000",
        n_cells=n_cells,
        n_values=n_cells * 200,
        n_genes=len(names),
        n_runs=n_runs,
        notes=(),
        files=(),
        parts=(Part("00000.zarr", 0, n_cells, n_cells * 200, ""),),
        hashes={name: file_hash(folder / name) for name in (RUNS, GENES)},
        version="0",
    )
    write_manifest(manifest, folder)


def opening(folder: Path) -> dict[str, Any]:
    """Open a store: time and memory, with and without those of the libraries."""
    start = time.perf_counter()
    from perturbdiff.store.stored import Store

    imported, libraries = time.perf_counter() - start, rss()
    store = Store.open(folder)
    opened = time.perf_counter() - start - imported
    return {
        "runs": len(store.runs),
        "import_seconds": imported,
        "open_seconds": opened,
        "libraries_bytes": libraries,
        "peak_bytes": rss(),
    }


def drawing(folder: Path, m: int) -> dict[str, Any]:
    """Draw slabs of populations without reading them."""
    from perturbdiff.core.choices import COVARIATES
    from perturbdiff.labels.vocabulary import Vocabulary
    from perturbdiff.populations.epochs import Populations
    from perturbdiff.store.stored import Store

    source = Store.open(folder)
    vocabularies = {name: Vocabulary.from_labels(name, source.runs.labels[name].cat.categories) for name in COVARIATES}
    start = time.perf_counter()
    drawn = Populations(
        source,
        source.runs.whole(),
        list(source.genes),
        2.0,
        vocabularies,
        cells_per_population=m,
        control_share=0.0,
        seed=0,
        held=0,
    )
    made, slabs, times = time.perf_counter() - start, drawn.slabs(), []
    first = time.perf_counter()
    next(slabs)
    first = time.perf_counter() - first
    for _ in range(20):
        start = time.perf_counter()
        slab = next(slabs)
        times.append((time.perf_counter() - start) / len(slab.draws) * PER_BATCH)
    return {
        "cells": source.n_cells,
        "runs": len(source.runs),
        "made_seconds": made,
        "first_slab_seconds": first,
        "batch_seconds": statistics.median(times),
        "peak_bytes": rss(),
    }


def write_data(folder: Path, n_cells: int) -> None:
    """The source files and their store."""
    import preparing

    preparing.LABELS = LABELS
    each = n_cells // N_FILES
    for i in range(N_FILES):
        preparing.write_file(folder / f"{i}.h5ad", i * each, each, seed=i)
    print("made", preparing.worker(folder, 2 << 30), flush=True)


def call(*arguments: object) -> dict[str, Any]:
    """Do one measurement in a process of its own."""
    command = [sys.executable, __file__, "--worker", *(str(one) for one in arguments)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def worker(arguments: list[str]) -> dict[str, Any]:
    what, *rest = arguments
    match what:
        case "data":
            write_data(Path(rest[0]), int(rest[1]))
            return {}
        case "populations":
            return populations(Path(rest[0]), int(rest[1]), int(rest[2]), float(rest[3]))
        case "rows":
            return rows([Path(one) for one in rest[2:]], rest[0], float(rest[1]))
        case "sequential":
            return sequential(Path(rest[0]), rest[1])
        case "runs":
            many_runs(Path(rest[0]), int(rest[1]), int(rest[2]))
            return {}
        case "opening":
            return opening(Path(rest[0]))
        case _:
            return drawing(Path(rest[0]), int(rest[1]))


def measure(store: Path, sources: list[Path], seconds: float, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """All measurements of reading, in turns."""
    kinds: dict[str, list[object]] = {
        f"sequential, {how}": ["sequential", store, how] for how in ("zarr", "zarrs", "dense")
    }
    kinds |= {f"populations, m={m}, held 0": ["populations", store, m, 0, seconds] for m in SIZES}
    kinds |= {f"populations, m={m}": ["populations", store, m, 1 << 30, seconds] for m in SIZES}
    todo = [(f"{name}, {label}", label == "cold", kind) for label in ("cold", "warm") for name, kind in kinds.items()]
    todo += [(f"rows, {how}, warm", False, ["rows", how, seconds, *sources]) for how in ("h5py", "anndata")]
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(rounds):
        for name, cold, arguments in todo:
            if cold:
                drop(store)
            else:
                warm(sources if name.startswith("rows") else [store])
            one = call(*arguments)
            found.setdefault(name, []).append(one)
            print(name, round(one["cells"] / one["seconds"]), one, flush=True)
    return found


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Medians, and how they compare."""
    speed = {name: statistics.median(one["cells"] / one["seconds"] for one in many) for name, many in found.items()}
    by_row = max(value for name, value in speed.items() if name.startswith("rows"))
    lines = [
        "| what | cells a second (min-max) | times one row a cell | of sequential | from disk, MB | CPU seconds |",
        "|---|---|---|---|---|---|",
    ]
    for name, many in found.items():
        each = sorted(one["cells"] / one["seconds"] for one in many)
        label = "cold" if "cold" in name else "warm"
        share = speed[name] / speed[f"sequential, zarr, {label}"]
        disk, cpu = (statistics.median(one[key] for one in many) for key in ("disk_bytes", "cpu_seconds"))
        lines.append(
            f"| {name} | {speed[name]:,.0f} ({each[0]:,.0f}-{each[-1]:,.0f}) | {speed[name] / by_row:.1f} | "
            f"{share:.2f} | {disk / 1e6:,.0f} | {cpu:.1f} |"
        )
    return "\n".join(lines)


def of_runs(folder: Path, rounds: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Opening a store of many conditions, and drawing from stores of more and more cells."""
    opened, drawn = [], []
    for n_runs, per_run in ((2_000, 100), (20_000, 100), (1_000_000, 100)):
        where = folder / f"{n_runs}.store"
        call("runs", where, n_runs, per_run)
        for _ in range(rounds):
            opened.append(call("opening", where))
            print(opened[-1], flush=True)
        drawn.extend(call("drawing", where, m) for m in SIZES)
        print(drawn[-2:], flush=True)
    return opened, drawn


def tables_of_runs(opened: list[dict[str, Any]], drawn: list[dict[str, Any]]) -> str:
    lines = ["| conditions | libraries, s | opening, s | peak memory, MiB | of it libraries |", "|---|---|---|---|---|"]
    for n_runs in sorted({one["runs"] for one in opened}):
        some = [one for one in opened if one["runs"] == n_runs]
        imported, seconds, peak, libraries = (
            statistics.median(one[key] for one in some)
            for key in ("import_seconds", "open_seconds", "peak_bytes", "libraries_bytes")
        )
        lines.append(f"| {n_runs:,} | {imported:.2f} | {seconds:.2f} | {peak / 2**20:.0f} | {libraries / 2**20:.0f} |")
    lines += [
        "",
        "| cells | conditions | m | setting up, s | first slab, s | drawing 8 populations, ms |",
        "|---|---|---|---|---|---|",
    ]
    for one, m in zip(drawn, SIZES * (len(drawn) // len(SIZES)), strict=True):
        lines.append(
            f"| {one['cells']:,} | {one['runs']:,} | {m} | {one['made_seconds']:.2f} | "
            f"{one['first_slab_seconds']:.3f} | {one['batch_seconds'] * 1e3:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=2_000_000)
    parser.add_argument("--store", type=Path, help="a store that is there, instead of one made for this")
    parser.add_argument("--source", type=Path, nargs="*", help="the .h5ad files that it was made of")
    parser.add_argument("--folder", type=Path, help="for the data while they are there; 2,000,000 cells take 4 GB")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dry", action="store_true", help="write no results")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(worker(arguments.worker)))
        return
    folder = Path(tempfile.mkdtemp(prefix="loading.", dir=arguments.folder))
    try:
        if arguments.store is None:
            call("data", folder, arguments.cells)
        store = arguments.store or folder / "made.store"
        sources = arguments.source or sorted(folder.glob("*.h5ad"))
        manifest = json.loads((store / "manifest.json").read_text())
        found = measure(store, sources, arguments.seconds, arguments.rounds)
        opened, drawn = of_runs(folder, arguments.rounds)
    finally:
        shutil.rmtree(folder)
    text = f"{table(found)}\n\n## Many conditions\n\n{tables_of_runs(opened, drawn)}"
    print(text)
    if arguments.dry:
        return
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "loading.md").write_text(
        f"# Reading populations from a store\n\n{machine}; {manifest['n_cells']:,} cells, "
        f"{manifest['n_genes']:,} genes, {manifest['n_values']:,} values, {manifest['n_runs']:,} conditions; "
        f"medians of {arguments.rounds} rounds.\n\n"
        f"{text}\n"
    )
    content = {"machine": machine, "reading": found, "opening": opened, "drawing": drawn}
    (HERE / "results" / "loading.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
