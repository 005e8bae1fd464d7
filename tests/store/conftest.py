"""A store written by hand, cell by cell and with anndata alone: what making and reading one are held against."""

import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from perturbdiff.cells.memory import Cells
from perturbdiff.cells.order import name_hashes
from perturbdiff.core.choices import COVARIATES
from perturbdiff.recipes.dataset import Recipe


def write_by_hand(cells: Cells, recipe: Recipe, folder: Path, *, n_parts: int = 4) -> Path:
    """Write a store of cells, sorted cell by cell and cut into parts of the same number of cells."""
    labels = [tuple(row) for row in cells.labels[list(COVARIATES)].astype(str).itertuples(index=False)]
    hashes = [int(word) for word in name_hashes(cells.names)]
    order = sorted(range(cells.n_cells), key=lambda i: (labels[i], hashes[i]))
    starts = [p for p in range(cells.n_cells) if p == 0 or labels[order[p]] != labels[order[p - 1]]]
    sizes = [b - a for a, b in zip(starts, [*starts[1:], cells.n_cells], strict=True)]
    runs = pd.DataFrame([labels[order[p]] for p in starts], columns=list(COVARIATES))
    for name in COVARIATES:
        runs[name] = pd.Categorical(runs[name], categories=sorted(set(runs[name])))
    runs["start"], runs["cells"] = np.array(starts, np.int64), np.array(sizes, np.int64)
    for i in range(2):
        runs[f"digest_{i}"] = np.zeros(len(starts), np.uint64)
    folder.mkdir(parents=True)
    runs.to_parquet(folder / "runs.parquet", index=False)
    genes = [str(gene) for gene in cells.genes]
    pd.DataFrame({"name": genes, "identifier": genes, "in:0": True}).to_parquet(folder / "genes.parquet", index=False)
    matrix = sp.csr_matrix(cells.values)
    edges = [cells.n_cells * i // n_parts for i in range(n_parts + 1)]
    parts = [
        _write_part(cells, matrix, order[a:b], folder / "parts" / f"{i:05d}.zarr", a)
        for i, (a, b) in enumerate(itertools.pairwise(edges))
    ]
    manifest = {
        "format": 1,
        "version": "0",
        "recipe": recipe.model_dump(mode="json", exclude_none=True),
        "scale": cells.scale,
        "control": cells.control,
        "n_cells": cells.n_cells,
        "n_values": int((matrix.data != 0).sum()),
        "n_genes": len(genes),
        "n_runs": len(starts),
        "notes": list(cells.notes),
        "files": [{"name": "by hand", "size": 0, "n_cells": cells.n_cells, "n_genes": len(genes)}],
        "parts": parts,
        "hashes": {name: _sha256((folder / name).read_bytes()) for name in ("runs.parquet", "genes.parquet")},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def _write_part(cells: Cells, matrix: sp.csr_matrix, rows: list[int], path: Path, start: int) -> dict[str, object]:
    some = matrix[rows].copy()
    some.eliminate_zeros()
    some.sort_indices()
    some.indices, some.indptr = some.indices.astype(np.int32), some.indptr.astype(np.int64)
    kind = np.min_scalar_type(int(some.data.max(initial=1))) if cells.scale == "counts" else np.float32
    some.data = some.data.astype(kind)
    columns = {
        "name_hash": name_hashes(cells.names[rows]),
        "profile_hash": np.arange(start + 1, start + 1 + len(rows), dtype=np.uint64),
        "expressed": np.diff(some.indptr).astype(np.int32),
        "file": np.zeros(len(rows), np.int16),
    }
    if cells.total_counts is not None:
        columns = {"total_counts": cells.total_counts[rows], **columns}
    names = [str(name) for name in cells.names[rows]]
    obs = pd.DataFrame(columns, index=names)
    anndata.AnnData(some, obs=obs, var=pd.DataFrame(index=list(cells.genes))).write_zarr(path)
    # as an array of strings, and not one that may have gaps
    anndata.io.write_elem(zarr.open_group(path / "obs"), "_index", np.array(names, dtype=object))
    encoded = [name.encode() for name in names]
    arrays = [some.data, some.indices, some.indptr, np.array([len(one) for one in encoded], "<i8"), b"".join(encoded)]
    words = [one if isinstance(one, bytes) else one.tobytes() for one in [*arrays, *columns.values()]]
    found = _sha256(b"".join(words))
    return {
        "name": path.name,
        "start": start,
        "stop": start + len(rows),
        "n_values": int(some.nnz),
        "hash": found,
    }


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="session")
def by_hand() -> Callable[..., Path]:
    """Write a store by hand; see `write_by_hand`."""
    return write_by_hand
