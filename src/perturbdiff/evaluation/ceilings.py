"""The ceiling: what a perfect prediction scores, measured as one half of the observed cells against the other half.

A half against the whole shares cells and flatters. One random halving is noisy, so several are drawn and each
metric is their mean; where a metric is undefined in one of them it is undefined (NaN). The halves are smaller
than the populations that a prediction is judged on, so metrics that gain with the number of cells (differential
expression) are a little low.
"""

import numpy as np
from numpy.typing import NDArray

from perturbdiff.evaluation.metrics import METRICS, Population, Reference, judge

HALVINGS = 5
"""How many random halvings are averaged."""

type Rows = NDArray[np.int64]


def halves(n_cells: int, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """Two disjoint random halves of `n_cells` rows, sorted; of an odd number the second is larger by one."""
    order = rng.permutation(n_cells)
    return np.sort(order[: n_cells // 2]), np.sort(order[n_cells // 2 :])


def ceiling(reference: Reference, rng: np.random.Generator, *, halvings: int = HALVINGS) -> dict[str, float]:
    """Judge one half of the observed cells against the other, `halvings` times, and average each metric.

    Fewer than two cells in a half (fewer than four observed) leave what needs two cells NaN; one observed cell
    leaves all NaN.
    """
    cells = reference.observed.cells
    if cells.shape[0] < 2:
        return {metric.name: float("nan") for metric in METRICS}
    scores = []
    for _ in range(halvings):
        first, second = halves(cells.shape[0], rng)
        other = Reference(observed=Population(cells[second]), control=reference.control)
        scores.append(judge(Population(cells[first]), other))
    return {metric.name: float(np.mean([score[metric.name] for score in scores])) for metric in METRICS}
