"""The hidden folder in which a store is made: one process at a time, units written whole, and what to resume.

Every unit of work is written under a temporary name and moved into place, so a unit that is there is whole: whoever
resumes does what is absent. `plan.json` says what the units were made from; nothing else is remembered.
"""

import json
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from perturbdiff.io import locked
from perturbdiff.recipes.dataset import Recipe
from perturbdiff.recipes.files import is_store
from perturbdiff.store.layout import CELL_VALUES, FORMAT, PART_VALUES

SCANS, SPILLS, RECORDS, STORE = "scans", "spills", "records", "store"
"""The folders of what was scanned, of spills, of what is known of finished parts, and the store as far as it is."""

_LEAST = 1 << 30
"""A part and the libraries take nearly so much."""


@contextmanager
def work_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """The hidden folder of the store `out`, held by this process alone.

    Raises:
        ValueError: `out` exists and is not to be overwritten or is no store; its folder cannot be written to; or
            another process makes the same store.
    """
    if out.exists() and not overwrite:
        raise ValueError(f"{str(out)!r} exists already; choose another name, or give --overwrite.")
    if out.exists() and not is_store(out):
        raise ValueError(f"{str(out)!r} exists and is not a store, so it is not overwritten; choose another name.")
    folder = out.with_name(f".{out.name}.partial")
    refusal = f"another process is making {str(out)!r}; wait until it has ended, or choose another name."
    with locked(folder / "lock", refusal):
        if overwrite:
            clear(folder)
        try:
            yield folder
        except (ValueError, FileNotFoundError):
            # bad input is found before the long work; later, what is done stays
            if not (folder / SPILLS).is_dir():
                remove(folder)
            raise


def begin(folder: Path, recipe: Recipe, paths: list[Path]) -> bool:
    """Write down what the store is made from, or compare it with what was begun; True where something was.

    Raises:
        ValueError: the recipe, a file, or the version of the layout is another than when it was begun.
        FileNotFoundError: a file is not there.
    """
    plan = folder / "plan.json"
    now: dict[str, Any] = {
        "format": [FORMAT, PART_VALUES, CELL_VALUES],
        "recipe": recipe.model_dump(mode="json"),
        "files": {str(path.resolve()): list(stat_of(path)) for path in paths},
    }
    if not plan.is_file():
        clear(folder)
        write_json(plan, now)
        return False
    before = json.loads(plan.read_text(encoding="utf-8"))
    if before != now and not (folder / SPILLS).is_dir():
        # a scan is soon done again
        clear(folder)
        write_json(plan, now)
        return False
    for key, what in (("format", "the layout of stores"), ("recipe", "the recipe")):
        if before[key] != now[key]:
            raise ValueError(
                f"{what} has changed since the making of this store was begun; give --overwrite to begin anew."
            )
    changed = [name for name, stat in now["files"].items() if before["files"].get(name) != stat]
    changed += [name for name in before["files"] if name not in now["files"]]
    if changed:
        raise ValueError(
            f"{len(changed)} files have changed since the making of this store was begun, such as {changed[0]!r}; "
            "give --overwrite to begin anew."
        )
    return True


def stat_of(path: Path) -> tuple[int, int]:
    """Size in bytes and time of the last change in nanoseconds; of a folder, of all that is in it.

    Raises:
        FileNotFoundError: it is not there.
    """
    try:
        if not path.is_dir():
            return path.stat().st_size, path.stat().st_mtime_ns
        stats = [one.stat() for one in path.rglob("*") if one.is_file()]
    except FileNotFoundError:
        raise FileNotFoundError(f"file {str(path)!r} is gone; put it back and run this again.") from None
    return sum(one.st_size for one in stats), max((one.st_mtime_ns for one in stats), default=0)


def unchanged(folder: Path, path: Path) -> None:
    """Check that a file is what it was when the work was begun.

    Raises:
        ValueError: it is not.
        FileNotFoundError: it is gone.
    """
    before = json.loads((folder / "plan.json").read_text(encoding="utf-8"))["files"]
    if before[str(path.resolve())] != list(stat_of(path)):
        raise ValueError(
            f"{str(path)!r} changed while it was read; put back what it was and run this again, or give --overwrite to "
            "begin anew."
        )


def publish(folder: Path, out: Path) -> None:
    """Give a finished store its name, and remove the hidden folder."""
    # were the rest to stay behind, it must not speak of parts that are no longer there
    remove(folder / RECORDS)
    for one in (folder / STORE).glob(".*"):
        # begun by a process that was killed
        remove(one)
    if out.exists():
        out.replace(folder / "old")
    (folder / STORE).replace(out)
    shutil.rmtree(folder, ignore_errors=True)


def clear(folder: Path) -> None:
    """Remove everything but the lock."""
    for one in folder.iterdir():
        if one.name != "lock":
            remove(one)


@contextmanager
def unit(path: Path) -> Iterator[Path]:
    """Give a temporary path for a file or folder, which becomes `path` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.new")
    remove(partial)
    try:
        yield partial
        _to_disk(partial)
        remove(path)
        partial.replace(path)
    except OSError:
        # on a full disk, leave room for a second try
        remove(partial)
        raise


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there; a write that was cut short may still be removing its own files."""
    if path.is_dir():
        shutil.rmtree(path, onexc=_unless_gone)
    else:
        path.unlink(missing_ok=True)


def _unless_gone(_function: object, _path: str, error: BaseException) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def write_json(path: Path, what: Any) -> None:  # noqa: ANN401 - whatever JSON holds
    """Write a small file whole."""
    with unit(path) as partial:
        partial.write_text(json.dumps(what, ensure_ascii=False), encoding="utf-8")


def read_values(path: Path, dtype: npt.DTypeLike, start: int, stop: int) -> npt.NDArray[Any]:
    """Values start to stop of a file of plain numbers; what is read is not kept mapped in memory."""
    return np.fromfile(path, dtype=dtype, count=stop - start, offset=start * np.dtype(dtype).itemsize)


def _to_disk(path: Path) -> None:
    """Wait until what was written is on the disk, so that a unit is whole after a power failure too."""
    files = [one for one in path.rglob("*") if one.is_file()] if path.is_dir() else [path]
    for one in files:
        handle = os.open(one, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def room_of(memory: int) -> int:
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
