"""Cells on planes: two principal components of the observed and control cells, and UMAP where it was asked for."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

_LABELS = ("side", "perturbation", "cell_type", "assay_batch")
_COMPONENTS, _UMAP = ("pc1", "pc2"), ("umap1", "umap2")


class Plane(NamedTuple):
    """Where cells are drawn: the columns of their places, and the names of the axes."""

    columns: tuple[str, str]
    axes: tuple[str, str]


@dataclass(frozen=True)
class Cells:
    """Placed cells.

    Attributes:
        table: side ("observed", "control" or a predicted file's name), perturbation, cell_type, assay_batch, pc1, pc2,
            and perhaps umap1, umap2.

        variance: the share of variance of each component; empty where it is not known.
    """

    table: pd.DataFrame
    variance: tuple[float, ...]

    @property
    def components(self) -> Plane:
        """Two principal components, with their shares of variance."""
        shares = [f" ({100 * share:.1f} %)" for share in self.variance[:2]] or ["", ""]
        return Plane(_COMPONENTS, (f"PC 1{shares[0]}", f"PC 2{shares[-1]}"))

    @property
    def umap(self) -> Plane | None:
        """The plane of UMAP; None where no cell was placed on it."""
        there = set(_UMAP) <= set(self.table.columns) and bool(self.table[list(_UMAP)].notna().all(axis=1).any())
        return Plane(_UMAP, ("UMAP 1", "UMAP 2")) if there else None

    def on(self, plane: Plane) -> pd.DataFrame:
        """The cells that were placed on a plane: side, perturbation, cell_type, assay_batch, x, y."""
        table = self.table[[*_LABELS, *plane.columns]].dropna(subset=list(plane.columns))
        return table.set_axis([*_LABELS, "x", "y"], axis=1)


def read_cells(path: Path, variance: tuple[float, ...]) -> Cells:
    """Read cells.parquet of an evaluation.

    Raises:
        ValueError: it is no parquet file, or lacks a column.
    """
    try:
        table = pd.read_parquet(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{str(path)!r} is not a parquet file ({error}); run evaluate again.") from None
    if "assay_batch" not in table.columns:
        table["assay_batch"] = ""
    missing = [name for name in (*_LABELS, *_COMPONENTS) if name not in table.columns]
    if missing:
        raise ValueError(f"{str(path)!r} lacks the columns {missing}; run evaluate again.")
    return Cells(table.astype(dict.fromkeys(_LABELS, str)), variance)
