"""Writing files whole or not at all: under a temporary name in the same folder, then moved into place.

A folder is made when the first file is written to it: what is refused before leaves none behind.
"""

import errno
import fcntl
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    import anndata


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; it becomes `path` when the block ends well, and is removed when not.

    Folders that are missing are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


_LOCKED: ContextVar[frozenset[Path]] = ContextVar("_LOCKED", default=frozenset())
_FULL = (errno.ENOSPC, errno.EDQUOT)
_WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


@contextmanager
def locked(lock: Path, refusal: str) -> Iterator[None]:
    """Hold a file's lock for this process alone; the system lets go of it however the process ends.

    Whoever holds it may take it again. The file, and the folders that had to be made for it, are removed in the end
    where nothing else is in them. A file system that knows no locks gives none.

    Raises:
        ValueError: another process holds it, as `refusal` says; or the folder cannot be written to.
    """
    known = lock.resolve()
    if known in _LOCKED.get():
        yield
        return
    made = [folder for folder in known.parents if not folder.exists()]
    handle = _taken(known, refusal)
    token = _LOCKED.set(_LOCKED.get() | {known})
    try:
        yield
    finally:
        _LOCKED.reset(token)
        # while it is held: whoever has opened the file that goes sees that it is no longer the one of that name
        known.unlink(missing_ok=True)
        os.close(handle)
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _taken(lock: Path, refusal: str) -> int:
    """The open file of a lock that is held."""
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise ValueError(
                f"{str(lock.parent)!r} cannot be written ({error.strerror}); choose a folder that you may write to."
            ) from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if lock.exists() and os.fstat(handle).st_ino == lock.stat().st_ino:
                return handle
        except BlockingIOError:
            os.close(handle)
            raise ValueError(refusal) from None
        except OSError as error:
            if error.errno in _WITHOUT_LOCKS:
                return handle
            os.close(handle)
            raise
        # its owner removed it meanwhile
        os.close(handle)


def run_lock(run: Path | None, *, first: bool = True) -> AbstractContextManager[None]:
    """The lock of a run folder, for the first process of a training; nothing for the others, or without a folder.

    Raises:
        ValueError: another process trains there.
    """
    if run is None or not first:
        return nullcontext()
    return locked(
        Path(run) / ".lock",
        f"another process trains in {str(run)!r}; wait until it has ended, or choose another folder.",
    )


def check_writable(path: Path, *, overwrite: bool) -> None:
    """Refuse an output that exists or cannot be written, before any long work begins; nothing is made of it yet.

    Raises:
        ValueError: `path` exists and is not to be overwritten, is a folder, or its folder cannot be made or written to.
    """
    if path.exists() and not overwrite:
        raise ValueError(f"{str(path)!r} exists already; choose another name, or give --overwrite.")
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a folder, and a file is written; name a file that is to be in it.")
    there = next(folder for folder in path.absolute().parents if folder.exists())
    try:
        # what is missing is tried under a name of its own: several processes may look at once
        with tempfile.TemporaryDirectory(dir=there, prefix=".") as trial:
            probe = Path(trial) / path.absolute().relative_to(there)
            probe.parent.mkdir(parents=True, exist_ok=True)
            probe.touch()
    except OSError as error:
        raise ValueError(
            f"{str(path)!r} cannot be written ({error.strerror}); choose a folder that you may write to."
        ) from None


def write_h5ad(adata: "anndata.AnnData", path: Path) -> None:
    """Write a compressed .h5ad, whole or not at all, with all texts as plain strings, which every reader knows."""
    plain = adata.copy() if adata.is_view else adata
    obs, var = plain.obs, plain.var
    try:
        plain.obs, plain.var = with_plain_texts(obs), with_plain_texts(var)
        with whole_file(path) as partial:
            plain.write_h5ad(partial, compression="gzip")
    finally:
        plain.obs, plain.var = obs, var


def with_plain_texts(table: Any) -> pd.DataFrame:  # noqa: ANN401 - anndata's own tables
    """A table whose names, texts and categories are plain strings and not pandas' nullable ones."""
    columns: dict[str, Any] = {}
    for name in table.columns:
        column = table[name]
        if isinstance(column.dtype, pd.CategoricalDtype):
            categories = pd.Index(column.cat.categories.to_numpy(dtype=object), dtype=object)
            texts = pd.api.types.is_string_dtype(column.cat.categories.dtype)
            columns[name] = column.cat.rename_categories(categories) if texts else column
        elif isinstance(column.dtype, pd.StringDtype):
            # a plain string cannot be missing
            columns[name] = column.fillna("").astype(object)
        else:
            columns[name] = column
    index = pd.Index(table.index.to_numpy(dtype=object), dtype=object, name=table.index.name)
    found = pd.DataFrame({name: column.array for name, column in columns.items()}, index=index)
    return found[list(table.columns)]


def free_name(wanted: str, taken: Iterable[str | None]) -> str:
    """A name of ours for a column, which is none of the user's: with "perturbdiff_" before it where it is taken."""
    known = {name for name in taken if name is not None}
    while wanted in known:
        wanted = f"perturbdiff_{wanted}"
    return wanted


@contextmanager
def room_on_disk(out: Path) -> Iterator[None]:
    """Turn a full disk into one sentence, however deep the libraries have wrapped it.

    Raises:
        ValueError: there is no space left.
    """
    try:
        yield
    except Exception as error:
        if not _is_full(error):
            raise
        raise ValueError(
            f"there is no space left on the disk of {str(out)!r}; free some and run this again, which goes on where it "
            "stopped, or choose another place."
        ) from error


def _is_full(error: BaseException | None) -> bool:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if isinstance(error, BaseExceptionGroup):
            return any(_is_full(one) for one in error.exceptions)
        if "No space left" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def sized(n_bytes: float) -> str:
    """A number of bytes for a sentence: "1.4 GiB"."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if n_bytes < 1024 or unit == "GiB":
            break
        n_bytes /= 1024
    return f"{n_bytes:.3g} {unit}"
