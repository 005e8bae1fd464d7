"""The files of a recipe: single files, folders in the zarr format, stores.

A folder counts as one file where it is a zarr group (an AnnData as .zarr) or a store, which `manifest.json` marks.
Zarr reads a chunk whose file is missing as zeros, so a half-copied folder is looked through for holes before it is
believed.
"""

from pathlib import Path
from typing import Any

import numpy as np
import zarr

from perturbdiff.recipes.dataset import Recipe

_ZARR = ("zarr.json", ".zgroup", ".zattrs")
"""One of these stands in the folder of a zarr group."""

MUDATA = ".h5mu"
CELLS = (".h5ad", MUDATA, ".zarr")
"""The endings of files of cells."""

ENDINGS = ".h5ad, .h5mu or .zarr"

_RNA = ("rna", "gex", "gene expression")
"""What the modality of RNA is called, in small letters."""

_SPARSE = ("csr_matrix", "csc_matrix")


def is_store(path: Path) -> bool:
    """Whether a path is the folder of a store."""
    return (path / "manifest.json").is_file()


def rna_of(root: Any, path: Path) -> Any:  # noqa: ANN401 - groups of h5py have no types
    """The group of a file that is an AnnData: the file itself, or the modality of RNA of an .h5mu.

    Raises:
        ValueError: an .h5mu has no modalities, or several of which none is called so; they are named.
    """
    if path.suffix != MUDATA:
        return root
    found = list(root.get("mod", ()))
    rna = [name for name in found if str(name).lower() in _RNA]
    if len(rna) == 1 or len(found) == 1:
        return root["mod"][(rna or found)[0]]
    named = ", ".join(map(repr, found)) or "none"
    raise ValueError(
        f"{str(path)!r} has the modalities {named}, and that of RNA is read, which is called 'rna'; rename it, or "
        "write it as an .h5ad."
    )


def resolve_files(recipe: Recipe, folder: Path) -> list[Path]:
    """The files of a recipe: paths and globs, relative to `folder`; a glob's matches sorted, each file once.

    A folder counts as a file where it is a store or a .zarr; a glob passes over hidden files, and over what lies
    within such a folder.

    Raises:
        ValueError: the recipe names no files, or a folder that is neither a store nor a .zarr.
        FileNotFoundError: a path or glob matches nothing.
    """
    if not recipe.files:
        raise ValueError(f"recipe {recipe.name!r} names no files; add files = [...] with paths or globs.")
    found: dict[Path, None] = {}
    for entry in recipe.files:
        path = Path(folder) / Path(entry).expanduser()
        matches = [path] if _holds_cells(path) else _glob(path)
        if not matches and path.is_dir():
            raise ValueError(
                f"file {entry!r} of recipe {recipe.name!r} is a folder, and neither a .zarr nor a store; name the "
                f"files in it, such as {entry.rstrip('/') + '/*.h5ad'!r}."
            )
        if not matches:
            raise FileNotFoundError(
                f"file {entry!r} of recipe {recipe.name!r} matches nothing in {str(folder)!r}; "
                "put the file there or mend the path."
            )
        found.update(dict.fromkeys(matches))
    return list(found)


def find_hole(path: Path) -> str | None:
    """The first array of an AnnData as .zarr that cannot be whole, such as "X/data"; None where none is known.

    Stored values, sparse or dense, and names are never all zero or empty, so their chunks must be there. Labels may be
    all of the first category, and a missing chunk of those cannot be told from that.

    Raises:
        ValueError: it is not an AnnData. Whatever zarr raises for a folder that it cannot open.
    """
    group = zarr.open_group(path, mode="r")
    if group.attrs.get("encoding-type") != "anndata":
        raise ValueError("the group has no encoding-type anndata")
    for name, found in (("", group), *group.members(max_depth=None)):
        if isinstance(found, zarr.Group):
            if found.attrs.get("encoding-type") in _SPARSE and (part := _sparse_hole(found)):
                return f"{name}/{part}"
        elif _must_be_there(name, found) and _lacks(found):
            return name
    return None


def _must_be_there(name: str, array: "zarr.Array[Any]") -> bool:
    """Names have to be; and some chunk of X, of which a single one may well be all zeros."""
    return name.endswith(("_index", "_index/values")) or (name == "X" and not array.nchunks_initialized)


def _sparse_hole(group: zarr.Group) -> str | None:
    data, indices, starts = (_array(group, name) for name in ("data", "indices", "indptr"))
    offsets = np.asarray(starts[:])
    if len(offsets) == 0 or offsets[-1] != data.shape[0] or (np.diff(offsets) < 0).any():
        return "indptr"
    if _lacks(data):
        return "data"
    if _lacks(indices):
        steps = np.diff(np.asarray(indices[:]).astype(np.int64))
        steps[offsets[(offsets > 0) & (offsets < data.shape[0])] - 1] = 1
        return "indices" if (steps == 0).any() else None
    return None


def _array(group: zarr.Group, name: str) -> "zarr.Array[Any]":
    found = group[name]
    if not isinstance(found, zarr.Array):
        raise ValueError(f"{name} is not an array")
    return found


def _lacks(array: "zarr.Array[Any]") -> bool:
    """Whether a chunk is not there."""
    return array.nchunks_initialized < array.nchunks


def _holds_cells(path: Path) -> bool:
    return path.is_file() or _is_folder_of_cells(path)


def _is_folder_of_cells(path: Path) -> bool:
    if not path.is_dir():
        return False
    return path.suffix == ".zarr" or is_store(path) or any((path / name).is_file() for name in _ZARR)


def _glob(path: Path) -> list[Path]:
    parts = path.parts
    magic = [i for i, part in enumerate(parts) if any(sign in part for sign in "*?[")]
    if not magic:
        return []
    root = Path(*parts[: magic[0]])
    found = (match for match in root.glob(str(Path(*parts[magic[0] :]))) if _holds_cells(match))
    seen = (match for match in found if parts[-1].startswith(".") or not match.name.startswith("."))
    return sorted(match for match in seen if not _is_within_cells(match, root))


def _is_within_cells(match: Path, root: Path) -> bool:
    return any(_is_folder_of_cells(root / above) for above in match.relative_to(root).parents)
