r"""The response to a perturbation over doses: how large it is predicted to be, and whether it grows with the dose.

At each dose d the predicted cells are held against the control cells that they are made from,

    size(d)  = |mean(predicted at d) - mean(control)|                          Euclidean, log1p counts per 10^4
    along(d) = <change at d, change at the highest dose> / |change at the highest dose|^2
    energy(d): the unbiased energy distance of predicted to control cells

`along` is 1 at the highest dose, and the share of that response which is there at a lower one. A dose at which `along`
is lower than at a smaller dose by more than `SLACK` is marked: most responses grow with the dose, and where a
prediction does not, either the biology is of another kind (toxic doses, hormesis) or the model has seen too little.
"""

from collections.abc import Sequence
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch

from perturbdiff.core.kernel import energy_distance
from perturbdiff.predicted import drawn

SLACK = 0.05
"""Of the response at the highest dose: less than this is noise of the draws."""

CELLS = 512
"""Cells that enter an energy distance, at most."""

COLUMNS = ["dose", "unit", "cells", "size", "along", "energy", "falls"]


def dose_table(predicted: Sequence[anndata.AnnData], doses: Sequence[float], unit: str) -> pd.DataFrame:
    """A row for each dose, ascending, of predictions that hold control cells (`population` -1) and predicted ones.

    Raises:
        ValueError: there are fewer than two doses, or one is not above 0 or occurs twice.
    """
    order = np.argsort(np.asarray(doses, dtype=float), kind="stable").tolist()
    changes, rows = [], []
    for i in order:
        cells, is_control = _dense(predicted[i]), (drawn(predicted[i]) < 0).to_numpy()
        changes.append(cells[~is_control].mean(axis=0) - cells[is_control].mean(axis=0))
        energy = energy_distance(
            torch.from_numpy(cells[~is_control][:CELLS]), torch.from_numpy(cells[is_control][:CELLS])
        )
        rows.append((float(doses[i]), unit, int((~is_control).sum()), float(energy)))
    top = changes[-1]
    along = np.array([float(change @ top) for change in changes]) / (float(top @ top) or 1.0)
    falls = along < np.maximum.accumulate(along) - SLACK
    return pd.DataFrame(
        [
            (dose, unit_, n, float(np.linalg.norm(change)), share, energy, bool(fall))
            for (dose, unit_, n, energy), change, share, fall in zip(rows, changes, along, falls, strict=True)
        ],
        columns=COLUMNS,
    )


def check_doses(doses: Sequence[float]) -> None:
    """Refuse what is no series of doses.

    Raises:
        ValueError: there are fewer than two, or one is not above 0 or occurs twice.
    """
    given = [float(dose) for dose in doses]
    if len(given) < 2:
        raise ValueError(f"doses={given} is no series; give two doses or more.")
    wrong = [dose for dose in given if not (np.isfinite(dose) and dose > 0)]
    if wrong:
        raise ValueError(f"dose {wrong[0]:g} is not above 0; the response at dose 0 is that of the control cells.")
    if len(set(given)) < len(given):
        twice = next(dose for dose in given if given.count(dose) > 1)
        raise ValueError(f"dose {twice:g} is given twice; give each dose once.")


def falls_sentence(table: pd.DataFrame, perturbation: str) -> str | None:
    """A sentence on doses at which the response falls; None where it grows throughout."""
    falling = table[table["falls"]]
    if falling.empty:
        return None
    named = ", ".join(f"{dose:g}" for dose in falling["dose"])
    return (
        f"the predicted response to {perturbation!r} falls at {named} {falling['unit'].iloc[0]} by more than "
        f"{SLACK:.0%} of that at the highest dose; look at these doses before relying on the series."
    )


def _dense(adata: anndata.AnnData) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
    values: Any = adata.X
    dense: np.ndarray[tuple[int, int], np.dtype[np.float32]] = np.asarray(
        values.toarray() if hasattr(values, "toarray") else values, dtype=np.float32
    )
    return dense
