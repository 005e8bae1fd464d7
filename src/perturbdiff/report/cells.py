"""Cells on two principal components, of the observed and control cells and of each predicted file."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

_COLUMNS = ("side", "perturbation", "cell_type", "pc1", "pc2")


@dataclass(frozen=True)
class Cells:
    """Projected cells.

    Attributes:
        table: side ("observed", "control" or a predicted file's name), perturbation, cell_type, pc1, pc2.
        variance: the share of variance of each component; empty where it is not known.
    """

    table: pd.DataFrame
    variance: tuple[float, ...]

    def axis(self, component: int) -> str:
        """The name of an axis: component 1 or 2, with its share of variance."""
        known = len(self.variance) >= component
        return f"PC {component} ({100 * self.variance[component - 1]:.1f} %)" if known else f"PC {component}"


def read_cells(path: Path, variance: tuple[float, ...]) -> Cells:
    """Read cells.parquet of an evaluation.

    Raises:
        ValueError: it is no parquet file, or lacks a column.
    """
    try:
        table = pd.read_parquet(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{str(path)!r} is not a parquet file ({error}); run evaluate again.") from None
    missing = [name for name in _COLUMNS if name not in table.columns]
    if missing:
        raise ValueError(f"{str(path)!r} lacks the columns {missing}; run evaluate again.")
    table = table[list(_COLUMNS)]
    return Cells(table.astype(dict.fromkeys(_COLUMNS[:3], str)), variance)
