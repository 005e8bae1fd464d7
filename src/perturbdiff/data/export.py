"""Writing files whole or not at all: under a temporary name in the same folder, then moved into place."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    import anndata

PREDICTIONS = 1
"""The format of files of predicted cells: raised with every change that a reader must know of."""


OWN_COLUMNS = ("population", "control_cell")
"""The columns of a predicted file that are ours."""


def drawn(adata: "anndata.AnnData") -> Any:  # noqa: ANN401 - a column of anndata's table
    """Which of the draws each cell of a predicted file is of; -1 for control cells."""
    return adata.obs[str(adata.uns["perturbdiff"]["own_columns"]["population"])]


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
