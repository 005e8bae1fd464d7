"""Making a store: peak memory, speed and size on disk.

    python benchmarks/preparing.py --cells 2000000 --cells 500000

Writes a data set of sparse counts in 4 .h5ad files (2,000 genes, about 10 % filled, 200 perturbations and a control,
5 cell types, 4 assay batches, cells in random order, not compressed), makes a store of it in a process of its own, and
measures that process: its peak resident set, which includes Python and its libraries, and its time. Twice as much
memory for four times as many cells would be a fault. Results: benchmarks/results/preparing.json and preparing.md."""

import argparse
import json
import logging
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np

HERE = Path(__file__).parent
N_FILES, N_GENES, FILLED = 4, 2000, 0.1
LABELS = {"perturbation": 201, "cell_type": 5, "assay_batch": 4}
ROWS = 20_000


def write_file(path: Path, first: int, n_cells: int, seed: int) -> None:
    """Write one .h5ad, some rows at a time."""
    rng = np.random.default_rng(seed)
    p = (rng.dirichlet(np.full(N_GENES, 2.0)) * FILLED * N_GENES).clip(0.001, 0.95).astype(np.float32)
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        matrix = file.create_group("X")
        matrix.attrs.update(
            {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": np.array([n_cells, N_GENES])}
        )
        data = matrix.create_dataset("data", (0,), "f4", maxshape=(None,), chunks=(1 << 18,))
        indices = matrix.create_dataset("indices", (0,), "i4", maxshape=(None,), chunks=(1 << 18,))
        indptr = np.zeros(n_cells + 1, dtype=np.int64)
        filled = 0
        for start in range(0, n_cells, ROWS):
            stop = min(start + ROWS, n_cells)
            rows, genes = np.nonzero(rng.random((stop - start, N_GENES), dtype=np.float32) < p)
            for array, values in ((data, rng.geometric(0.4, len(genes))), (indices, genes)):
                array.resize((filled + len(genes),))
                array[filled:] = values
            np.cumsum(np.bincount(rows, minlength=stop - start), out=indptr[start + 1 : stop + 1])
            indptr[start + 1 : stop + 1] += filled
            filled += len(genes)
        matrix["indptr"] = indptr
        _write_tables(file, rng, first, n_cells)


def _write_tables(file: h5py.File, rng: np.random.Generator, first: int, n_cells: int) -> None:
    text = h5py.string_dtype()
    for name, index in (("obs", [f"cell-{i:09d}" for i in range(first, first + n_cells)]), ("var", None)):
        table = file.create_group(name)
        index = [f"GENE{i}" for i in range(N_GENES)] if index is None else index
        columns = list(LABELS) if name == "obs" else []
        table.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"})
        table.attrs["column-order"] = np.array(columns, dtype=object if columns else float)
        table.create_dataset("_index", data=index, dtype=text)
        table["_index"].attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
    for name, n_labels in LABELS.items():
        column = file["obs"].create_group(name)
        column.attrs.update({"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False})
        # a tenth is control
        codes = rng.integers(0, n_labels, n_cells) * (rng.random(n_cells) > 0.1 * (name == "perturbation"))
        column.create_dataset("codes", data=codes.astype(np.int16))
        column.create_dataset("categories", data=[f"{name}_{i}" for i in range(n_labels)], dtype=text)
        column["codes"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        column["categories"].attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})


def worker(folder: Path, memory: int) -> dict[str, Any]:
    """Make the store in this process."""
    from perturbdiff.recipes.dataset import recipe_from_mapping
    from perturbdiff.store.build import build_store

    libraries = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    mapping = {
        "name": "benchmark",
        "control": "perturbation_0",
        "files": ["*.h5ad"],
        "columns": {name: name for name in LABELS},
        "expression": {"scale": "counts"},
    }
    start = time.perf_counter()
    said: list[str] = []
    log, handler = logging.getLogger("perturbdiff"), logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    build_store(recipe_from_mapping(mapping, "benchmark"), folder, folder / "made.store", memory=memory)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "peak_bytes": peak, "libraries_bytes": libraries, "said": said}


def measure(n_cells: int, memory: int, above: Path | None) -> dict[str, Any]:
    """Write the data, make the store, remove both."""
    folder = Path(tempfile.mkdtemp(prefix="preparing.", dir=above))
    try:
        each = n_cells // N_FILES
        for i in range(N_FILES):
            write_file(folder / f"{i}.h5ad", i * each, each, seed=i)
        command = [sys.executable, __file__, "--worker", str(folder), "--memory", str(memory)]
        found: dict[str, Any] = json.loads(
            subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        )
        manifest = json.loads((folder / "made.store" / "manifest.json").read_text())
        stored = sum(one.stat().st_size for one in (folder / "made.store").rglob("*") if one.is_file())
        return {
            "cells": n_cells,
            "values": manifest["n_values"],
            "parts": len(manifest["parts"]),
            "memory": memory,
            "input_bytes": sum(one.stat().st_size for one in folder.glob("*.h5ad")),
            "store_bytes": stored,
            **found,
        }
    finally:
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, action="append", help="may be given several times")
    parser.add_argument("--memory", type=int, default=2 << 30, help="bytes that the process may take")
    parser.add_argument("--folder", type=Path, help="for the data while they are there; 2,000,000 cells take 8 GB")
    parser.add_argument("--dry", action="store_true", help="write no results")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(worker(arguments.worker, arguments.memory)))
        return
    rows = []
    for n_cells in arguments.cells or [500_000, 2_000_000]:
        rows.append(measure(n_cells, arguments.memory, arguments.folder))
        print(rows[-1], flush=True)
    lines = [
        "| cells | values | seconds | cells a second | peak memory, GiB | of it libraries | input, GiB | store, GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        sizes = (one[key] / 2**30 for key in ("peak_bytes", "libraries_bytes", "input_bytes", "store_bytes"))
        peak, libraries, read, stored = (f"{size:.2f}" for size in sizes)
        lines.append(
            f"| {one['cells']:,} | {one['values']:,} | {one['seconds']:.0f} | {one['cells'] / one['seconds']:,.0f} | "
            f"{peak} | {libraries} | {read} | {stored} |"
        )
    text = "\n".join(lines)
    if not arguments.dry:
        (HERE / "results").mkdir(exist_ok=True)
        machine = platform.processor() or platform.machine()
        (HERE / "results" / "preparing.md").write_text(
            f"# Making a store\n\n{machine}; 4 files of sparse counts, {N_GENES:,} genes, "
            f"{arguments.memory / 2**30:g} GiB of memory allowed.\n\n{text}\n"
        )
        (HERE / "results" / "preparing.json").write_text(
            json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n"
        )
    print(text)


if __name__ == "__main__":
    main()
