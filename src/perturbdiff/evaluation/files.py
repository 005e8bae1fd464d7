"""Reading a file to be judged: what it declares of itself, or what the caller says of it. Nothing is guessed.

A predicted file of this library declares its columns, its control label and its scale in ``uns["perturbdiff"]``; of
any other file the caller names them.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from perturbdiff.data.cells import Cells
from perturbdiff.data.intake import cells_from_anndata
from perturbdiff.data.reading import column_of, read_h5ad
from perturbdiff.data.recipe import Columns, Expression

DECLARATION = "perturbdiff"
"""The key of `uns` under which a predicted file describes itself."""


def read_file(
    path: Path, *, columns: Columns | None = None, expression: Expression | None = None, control: str | None = None
) -> Cells:
    """Read a predicted or observed .h5ad; a file without control cells is allowed, and has none.

    Args:
        path: the file.
        columns: its columns; None for those that it declares.
        expression: its layer and scale; None for `X` on the scale that it declares.
        control: its control label; None for the one that it declares.

    Raises:
        ValueError: the file does not declare what the caller leaves out, or its cells are refused (see `data.cells`).
        FileNotFoundError: there is no such file.
    """
    adata = read_h5ad(path)
    declared: Mapping[str, Any] = adata.uns.get(DECLARATION, {})
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
    obs: Any = adata.obs
    labels = column_of(obs, columns.perturbation, "columns.perturbation", path.name).astype(str)
    present = control if (labels == control).any() else str(labels.iloc[0]) if len(labels) else control
    cells = cells_from_anndata(adata, columns=columns, expression=expression, control=present)
    return replace(cells, control=control)


def _declared(declared: Mapping[str, Any], key: str, path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    if key not in declared:
        raise ValueError(
            f"{path.name!r} does not declare its {key} in uns[{DECLARATION!r}], and nothing is guessed; name it."
        )
    return declared[key]
