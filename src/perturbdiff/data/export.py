"""Writing files whole or not at all: under a temporary name in the same folder, then moved into place.

A folder is made when the first file is written to it: what is refused before leaves none behind.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import anndata

PREDICTIONS = 1
"""The format of files of predicted cells: raised with every change that a reader must know of."""


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
    """Write a compressed .h5ad, whole or not at all."""
    with whole_file(path) as partial:
        adata.write_h5ad(partial, compression="gzip")
