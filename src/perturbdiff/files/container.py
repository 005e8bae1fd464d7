"""An AnnData on disk, read whole: .h5ad, .zarr, or the modality of RNA of an .h5mu; old layouts too."""

import warnings
from pathlib import Path
from typing import Any

import anndata
import h5py
import pandas as pd
import zarr

from perturbdiff.recipes.files import CELLS, ENDINGS, MUDATA, find_hole, is_store, rna_of

UNREADABLE = (
    OSError,
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    IndexError,
    RuntimeError,
    zarr.errors.BaseZarrError,
)
"""What anndata, h5py and zarr raise for a file that they cannot read."""


def read_anndata(path: Path) -> anndata.AnnData:
    """Read one .h5ad, one folder in the zarr format, or the RNA of one .h5mu, into memory.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, damaged, or not an AnnData; parts of the folder are missing; it is a store.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}; give the path of an .h5ad file or a .zarr folder.")
    if is_store(path):
        raise ValueError(f"{str(path)!r} is a store and not an AnnData; name it as the only file of a recipe.")
    with warnings.catch_warnings():
        # what anndata says of names and of older files, the checks say in one sentence where it matters
        warnings.simplefilter("ignore")
        return _read_zarr(path) if path.is_dir() else _read_h5ad(path)


def _read_h5ad(path: Path) -> anndata.AnnData:
    if path.suffix == MUDATA:
        return _read_h5mu(path)
    try:
        return anndata.read_h5ad(path)
    except UNREADABLE as error:
        reason = str(error).replace("\n", " ")
        if "truncated" in reason:
            why = "is cut short; copy or download it again"
        elif "signature" in reason and path.suffix not in CELLS:
            why = (
                f"has the ending {path.suffix!r} and is not HDF5, and cells are read from {ENDINGS}; give one of these"
            )
        elif "signature" in reason:
            why = "is not an HDF5 file, which an .h5ad is; write it with anndata's write_h5ad"
        elif isinstance(error, OSError):
            why = f"cannot be read and is probably damaged ({reason[:120]}); copy or download it again"
        else:
            why = f"is HDF5 but not an AnnData ({reason[:120]}); write it with anndata's write_h5ad"
        raise ValueError(f"{str(path)!r} {why}.") from error


def _read_h5mu(path: Path) -> anndata.AnnData:
    """The modality of RNA of a MuData, with the columns of the whole that it lacks."""
    library: Any = h5py
    try:
        with library.File(path) as file:
            rna = rna_of(file, path)
            adata: Any = anndata.io.read_elem(rna)
            table: Any = anndata.io.read_elem(file["obs"])
    except ValueError:
        raise
    except UNREADABLE as error:
        raise ValueError(
            f"{str(path)!r} cannot be read as a MuData ({_reason(error)}); write it with mudata's write, or give the "
            "modality of RNA as an .h5ad."
        ) from error
    obs: pd.DataFrame = adata.obs
    if obs.index.is_unique and table.index.is_unique:
        more = table[[column for column in table.columns if column not in obs.columns]]
        adata.obs = obs.join(more)
    rna_alone: anndata.AnnData = adata
    return rna_alone


def _read_zarr(path: Path) -> anndata.AnnData:
    try:
        hole = find_hole(path)
    except UNREADABLE as error:
        raise ValueError(
            f"{str(path)!r} is a folder but not an AnnData in the zarr format ({_reason(error)}); write it with "
            "anndata's write_zarr, or copy it again."
        ) from error
    refuse_hole(path, hole)
    try:
        return anndata.read_zarr(path)
    except UNREADABLE as error:
        raise ValueError(
            f"{str(path)!r} cannot be read and is probably damaged ({_reason(error)}); copy or download it again."
        ) from error


def refuse_hole(path: Path, hole: str | None) -> None:
    """Refuse a folder from which files of an array are missing, which would be read as zeros."""
    if hole is not None:
        raise ValueError(
            f"{str(path)!r} is not whole: parts of its array {hole!r} are missing, which would be read as zeros; copy "
            "or download it again."
        )


def _reason(error: Exception) -> str:
    return str(error).replace("\n", " ")[:120].rstrip(" .") or type(error).__name__
