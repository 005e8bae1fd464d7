"""Reading a file to be judged: what it declares of itself, or what the caller says of it. Nothing is guessed.

A predicted file of this library declares its columns, its control label and its scale in ``uns["perturbdiff"]``; of
any other file the caller names them. A file that is larger than `IN_MEMORY` stays on disk, where it can.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from perturbdiff.data.cells import Cells
from perturbdiff.data.intake import cells_from_anndata
from perturbdiff.data.reading import column_of, read_h5ad
from perturbdiff.data.recipe import Columns, Expression
from perturbdiff.evaluation.disk import Disk, declaration, rows_can_be_read, size_in_memory
from perturbdiff.evaluation.pairs import File

DECLARATION = "perturbdiff"
"""The key of `uns` under which a predicted file describes itself."""

IN_MEMORY = 1 << 28
"""A matrix of more bytes is read a condition at a time."""


class Description(NamedTuple):
    """What is said of a file: by itself, or by the caller."""

    columns: Columns
    expression: Expression
    control: str
    declared: bool = False


def open_file(
    path: Path,
    *,
    columns: Columns | None = None,
    expression: Expression | None = None,
    control: str | None = None,
    in_memory: int = IN_MEMORY,
    summed: tuple[str, ...] | None = None,
    observed: bool = True,
    clip: bool = False,
) -> File:
    """Read a predicted or observed .h5ad as `read_file`, or leave it on disk where its matrix has more bytes.

    A file whose values below 0 count as 0 (`clip`) is read whole, so that it can be said how many there are.

    Raises:
        ValueError: as `read_file`; values of a file on disk are refused when they are read.
        FileNotFoundError: there is no such file.
    """
    chosen = expression or Expression(scale="log1p")
    if clip or not rows_can_be_read(path, chosen) or size_in_memory(path, chosen) <= in_memory:
        return read_file(
            path, columns=columns, expression=expression, control=control, summed=summed, observed=observed, clip=clip
        )
    said = _described(declaration(path, DECLARATION), path, columns, expression, control)
    file = Disk.opened(
        path,
        said.columns,
        said.expression,
        lambda obs: _present(obs, said, path),
        summed=summed,
        observed=observed and not said.declared,
    )
    return replace(file, head=replace(file.head, control=said.control))


def notes_of(file: File) -> tuple[str, ...]:
    """Sentences on what was done to the data of a file on the way in."""
    return file.notes if isinstance(file, Cells | Disk) else ()


def read_file(
    path: Path,
    *,
    columns: Columns | None = None,
    expression: Expression | None = None,
    control: str | None = None,
    summed: tuple[str, ...] | None = None,
    observed: bool = True,
    clip: bool = False,
) -> Cells:
    """Read a predicted or observed .h5ad; a file without control cells is allowed, and has none.

    Args:
        path: the file.
        columns: its columns; None for those that it declares.
        expression: its layer and scale; None for `X` on the scale that it declares.
        control: its control label; None for the one that it declares.
        summed: the genes over which the total counts of its cells run; all of them when None.
        observed: whether its cells are measured ones, whose sums tell what they were normalised to; a file of
            predicted cells that declares itself is none.
        clip: whether values below 0 count as 0, and a note says how many there were.

    Raises:
        ValueError: the file does not declare what the caller leaves out, or its cells are refused (see `data.cells`).
        FileNotFoundError: there is no such file.
    """
    adata = read_h5ad(path)
    said = _described(adata.uns.get(DECLARATION, {}), path, columns, expression, control)
    obs: Any = adata.obs
    present = _present(obs, said, path)
    cells = cells_from_anndata(
        adata,
        columns=said.columns,
        expression=said.expression,
        control=present,
        source=repr(path.name),
        summed=summed,
        observed=observed and not said.declared,
        clip=clip,
    )
    return replace(cells, control=said.control)


def declared_by(path: Path, key: str = DECLARATION) -> Mapping[str, Any]:
    """What an .h5ad says of itself; nothing where it says nothing or is no such file."""
    return {} if path.is_dir() else declaration(path, key)


def _described(
    declared: Mapping[str, Any],
    path: Path,
    columns: Columns | None,
    expression: Expression | None,
    control: str | None,
) -> Description:
    """What the file and the caller say together; the caller has the last word."""
    if columns is None:
        named = _declared(declared, "columns", path).items()
        columns = Columns(**{str(key): str(value) for key, value in named if value})
    if expression is None:
        expression = Expression(scale=_declared(declared, "scale", path))
    if control is None:
        control = str(_declared(declared, "control", path))
    if columns.perturbation is None:
        raise ValueError(
            f"no perturbation column is named for {path.name!r}, and its conditions are read there; name it."
        )
    return Description(columns, expression, control, declared=bool(declared))


def _present(obs: pd.DataFrame, said: Description, path: Path) -> str:
    """The control label, or another one that the file has: its cells are read, and then have no control among them."""
    column = str(said.columns.perturbation)
    labels = column_of(obs, column, "columns.perturbation", path.name).astype(str)
    if (labels == said.control).any() or not len(labels):
        return said.control
    return str(labels.iloc[0])


def _declared(declared: Mapping[str, Any], key: str, path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    if key not in declared:
        raise ValueError(
            f"{path.name!r} does not declare its {key} in uns[{DECLARATION!r}], and nothing is guessed; name it."
        )
    return declared[key]
