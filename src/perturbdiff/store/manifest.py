"""The manifest of a store: what it was made from, what it holds, and the hashes that prove it."""

import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from perturbdiff.io import whole_file
from perturbdiff.recipes.dataset import Recipe, recipe_from_mapping
from perturbdiff.store.layout import FORMAT, GENES, MANIFEST, MOMENTS, RUNS, file_hash


@dataclass(frozen=True)
class File:
    """A file that cells came from.

    Attributes:
        size: in bytes.
        n_cells: cells of it that are in the store.
        n_genes: genes of the store that it has.
    """

    name: str
    size: int
    n_cells: int
    n_genes: int


@dataclass(frozen=True)
class Part:
    """Consecutive positions, start to stop; `hash` as in `layout.content_hash`."""

    name: str
    start: int
    stop: int
    n_values: int
    hash: str


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` holds.

    Attributes:
        recipe: the tables of the recipe, as JSON.
        hashes: of the other files, by their names.
        version: of the package that wrote it.
        moments: the hash of the split whose training cells the moments are of; None where there are none.
    """

    recipe: dict[str, Any]
    scale: Literal["counts", "log1p"]
    control: str | None
    n_cells: int
    n_values: int
    n_genes: int
    n_runs: int
    notes: tuple[str, ...]
    files: tuple[File, ...]
    parts: tuple[Part, ...]
    hashes: dict[str, str]
    version: str
    moments: str | None = None
    format: int = FORMAT

    def read_recipe(self) -> Recipe:
        """The recipe that the store was made by."""
        return recipe_from_mapping(self.recipe, MANIFEST)


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write it whole into the folder of a store."""
    with whole_file(folder / MANIFEST) as partial:
        partial.write_text(json.dumps(asdict(manifest), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Read what a store holds.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is not a store, of another format, or its manifest is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no store {str(folder)!r}; make it with `perturbdiff prepare`.")
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(
            f"{str(folder)!r} has no {MANIFEST}, so it is not a store; make one with `perturbdiff prepare`."
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found["format"], int) and found["format"] > FORMAT:
            raise ValueError(
                f"{str(folder)!r} is a store of format {found['format']}, written by perturbdiff {found['version']}, "
                f"and this version ({version('perturbdiff')}) reads up to {FORMAT}; install a newer perturbdiff."
            )
        if found["format"] != FORMAT:
            raise ValueError(
                f"{str(folder)!r} is a store of format {found['format']!r}, and this version reads {FORMAT}; "
                "make it again with `perturbdiff prepare --overwrite`."
            )
        found["files"] = tuple(File(**one) for one in found["files"])
        found["parts"] = tuple(Part(**one) for one in found["parts"])
        return Manifest(**{**found, "notes": tuple(found["notes"])})
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{str(path)!r} is damaged ({type(error).__name__}); make the store again with "
            "`perturbdiff prepare --overwrite`."
        ) from None


def check_tables(manifest: Manifest, folder: Path) -> None:
    """Check the tables of runs, genes and moments against their hashes.

    Raises:
        ValueError: one is missing or is not what was written.
    """
    for name in (RUNS, GENES, *([] if manifest.moments is None else [MOMENTS])):
        path = folder / name
        if not path.is_file() or file_hash(path) != manifest.hashes.get(name):
            raise ValueError(
                f"{str(path)!r} is missing or is not what was written; make the store again with "
                "`perturbdiff prepare --overwrite`."
            )
