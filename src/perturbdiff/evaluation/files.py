"""Reading a file to be judged: what it declares of itself, or what the caller says of it. Nothing is guessed.

A predicted file of this library declares its columns, its control label and its scale in ``uns["perturbdiff"]``; of
any other file the caller names them. A file that is larger than `IN_MEMORY` stays on disk, where it can.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import h5py

from perturbdiff.cells.anndata import MEASURED, Made, cells_from_anndata
from perturbdiff.cells.memory import Cells
from perturbdiff.cells.on_disk import Disk, declaration, rows_can_be_read, size_in_memory
from perturbdiff.evaluation.pairs import File
from perturbdiff.files.container import read_anndata
from perturbdiff.labels.text import renamed as under_names
from perturbdiff.predicted import KEY, declared_columns
from perturbdiff.recipes.dataset import PLAIN, Columns, Expression, Grammar

IN_MEMORY = 1 << 28
"""A matrix of more bytes is read a condition at a time."""

MOST_COLUMNS = 12
"""So many columns of a file are listed where none is named."""

_LIBRARY: Any = h5py


class Description(NamedTuple):
    """What is said of a file: by itself, or by the caller."""

    columns: Columns
    expression: Expression
    control: str
    declared: bool = False
    made: Made = MEASURED


def open_file(
    path: Path,
    *,
    columns: Columns | None = None,
    expression: Expression | None = None,
    control: str | None = None,
    controls: Sequence[str] = (),
    grammar: Grammar = PLAIN,
    in_memory: int = IN_MEMORY,
    summed: tuple[str, ...] | None = None,
    observed: bool = True,
    clip: bool = False,
    draw: str | None = None,
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
            path,
            columns=columns,
            expression=expression,
            control=control,
            controls=controls,
            grammar=grammar,
            summed=summed,
            observed=observed,
            clip=clip,
            draw=draw,
        )
    said = _described(declaration(path, KEY), path, _columns(path), columns, expression, control, draw)
    return Disk.opened(
        path,
        said.columns,
        said.expression,
        said.control,
        controls=controls,
        grammar=grammar,
        summed=summed,
        observed=observed and not said.declared,
        made=said.made,
    )


def notes_of(file: File) -> tuple[str, ...]:
    """Sentences on what was done to the data of a file on the way in."""
    return file.notes if isinstance(file, Cells | Disk) else ()


def read_file(
    path: Path,
    *,
    columns: Columns | None = None,
    expression: Expression | None = None,
    control: str | None = None,
    controls: Sequence[str] = (),
    grammar: Grammar = PLAIN,
    summed: tuple[str, ...] | None = None,
    observed: bool = True,
    clip: bool = False,
    draw: str | None = None,
) -> Cells:
    """Read a predicted or observed .h5ad; a file without control cells is allowed, and has none.

    Args:
        path: the file.
        columns: its columns; None for those that it declares.
        expression: its layer and scale; None for `X` on the scale that it declares.
        control: its control label; None for the one that it declares.
        controls: further labels of its control cells.
        grammar: what its labels of perturbation are made of.
        summed: the genes over which the total counts of its cells run; all of them when None.
        observed: whether its cells are measured ones, whose sums tell what they were normalised to; a file of
            predicted cells that declares itself is none.
        clip: whether values below 0 count as 0, and a note says how many there were.
        draw: the column that tells apart several populations of a condition; None for the one that it declares.

    Raises:
        ValueError: the file does not declare what the caller leaves out, or its cells are refused (see `cells.memory`).
        FileNotFoundError: there is no such file.
    """
    adata = read_anndata(path)
    obs: Any = adata.obs
    said = _described(adata.uns.get(KEY, {}), path, list(obs.columns), columns, expression, control, draw)
    return cells_from_anndata(
        adata,
        columns=said.columns,
        expression=said.expression,
        control=said.control,
        controls=controls,
        grammar=grammar,
        source=repr(path.name),
        summed=summed,
        observed=observed and not said.declared,
        clip=clip,
        require="none",
        made=said.made,
    )


def renamed(file: File, names: Mapping[str, str]) -> File:
    """A file of whose perturbations some have other names; nothing is read or copied but the labels."""
    if not names:
        return file
    cells = file.head if isinstance(file, Disk) else cast("Cells", file)
    labels: Any = cells.labels["perturbation"].array
    changed = replace(cells, labels=cells.labels.assign(perturbation=under_names(labels, names)))
    return replace(file, head=changed) if isinstance(file, Disk) else changed


def declared_by(path: Path, key: str = KEY) -> Mapping[str, Any]:
    """What an .h5ad says of itself; nothing where it says nothing, or cannot be read, which its reader refuses."""
    try:
        return {} if path.is_dir() else declaration(path, key)
    except OSError:
        return {}


def _described(
    declared: Mapping[str, Any],
    path: Path,
    found: Sequence[object],
    columns: Columns | None,
    expression: Expression | None,
    control: str | None,
    draw: str | None,
) -> Description:
    """What the file, with the columns that are found in it, and the caller say together; the caller has the last word.

    Raises:
        ValueError: neither says all that is needed.
    """
    said = {"columns": columns, "control": control, "scale": expression}
    missing = [key for key, known in said.items() if known is None and key not in declared]
    if missing:
        named = " and ".join([", ".join(missing[:-1]), missing[-1]] if len(missing) > 1 else missing)
        raise ValueError(
            f"{path.name!r} does not declare its {named} in uns[{KEY!r}], and nothing is guessed; {_options(found)}."
        )
    if columns is None:
        columns = declared_columns(declared)
    if columns.perturbation is None:
        raise ValueError(
            f"no perturbation column is named for {path.name!r}, and its conditions are read there; {_options(found)}."
        )
    own = {name: column for name, column in declared.get("own_columns", {}).items() if column in found}
    return Description(
        columns,
        Expression(scale=declared["scale"]) if expression is None else expression,
        str(declared["control"]) if control is None else control,
        declared=bool(declared),
        made=Made(own.get("control_cell"), draw or own.get("population")),
    )


def _options(found: Sequence[object]) -> str:
    """All that a caller can say of a file, by the options of the command line, and the columns that there are to name.

    A command takes all columns from its options or none, so they are never named one by one.
    """
    known = [repr(str(name)) for name in found]
    more = f" and {len(known) - MOST_COLUMNS} more" if len(known) > MOST_COLUMNS else ""
    listed = f"of its columns {', '.join(known[:MOST_COLUMNS])}{more}" if known else "though it has no columns"
    return (
        "name them by --perturbation COLUMN --control LABEL --cell-type COLUMN --assay-batch COLUMN, with --scale "
        f"counts or log1p for the observed file and --predicted-scale for predicted ones, {listed}"
    )


def _columns(path: Path) -> list[str]:
    """The columns of the cells of an .h5ad, in their order."""
    with _LIBRARY.File(path) as file:
        return [str(name) for name in file["obs"].attrs.get("column-order", [])]
