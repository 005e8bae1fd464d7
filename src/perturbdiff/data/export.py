"""Writing files whole or not at all: under a temporary name in the same folder, then moved into place."""

import os
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
    """Give a temporary path to write to; it becomes `path` when the block ends well, and is removed when not."""
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_writable(path: Path, *, overwrite: bool) -> None:
    """Refuse an output that exists or cannot be written, before any long work begins.

    Raises:
        ValueError: `path` exists and is not to be overwritten, or its folder cannot be made or written to.
    """
    if path.exists() and not overwrite:
        raise ValueError(f"{str(path)!r} exists already; choose another name, or give --overwrite.")
    probe = path.parent / f".{path.name}.{os.getpid()}.probe"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"{str(path)!r} cannot be written ({error.strerror}); choose a folder that you may write to."
        ) from None


def write_h5ad(adata: "anndata.AnnData", path: Path) -> None:
    """Write a compressed .h5ad, whole or not at all."""
    with whole_file(path) as partial:
        adata.write_h5ad(partial, compression="gzip")
