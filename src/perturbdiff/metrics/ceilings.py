"""The ceilings: what a perfect prediction scores, measured on the observed cells themselves.

*Halves*: one half of the observed cells against the disjoint other half. A half against the whole shares cells and
flatters. One random halving is noisy, so several are drawn and each metric is their mean; where a metric is undefined
in one of them it is undefined (NaN). The halves are smaller than the populations that a prediction is judged on, so
metrics that gain with the number of cells (differential expression) are a little low.

*Replicates*: the observed cells of one assay batch against those of all others, averaged over the batches, where two
or more have enough cells. Either side's change is from the control cells of its own batches, so that the levels of
batches do not count as response: means are moved by how far these control cells are apart, and each side is tested
against its own. Distances, spreads and zeros are of the cells as they are. Batches differ by more than chance, so this
is what a repeated experiment says of the first one; it is lower than the halves'. Where assay batches are judged apart,
each of the others stands for a prediction of the condition, in the same way.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from perturbdiff.metrics.ours import METRICS, Population, Reference

HALVINGS = 5
"""How many random halvings are averaged."""

REPLICATE_CELLS = 20
"""So many observed cells of a condition make an assay batch a replicate, at least."""

REPLICATES = 5
"""So many assay batches are held against the others, at most: the largest."""

type Rows = NDArray[np.int64]
type Pair = tuple[Population, Reference]


def halves(n_cells: int, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """Two disjoint random halves of `n_cells` rows, sorted; of an odd number the second is larger by one."""
    order = rng.permutation(n_cells)
    return np.sort(order[: n_cells // 2]), np.sort(order[n_cells // 2 :])


def halved(reference: Reference, rng: np.random.Generator, *, halvings: int = HALVINGS) -> Iterator[Pair]:
    """One half of the observed cells, and a reference of the other half, so many times; never for one cell."""
    cells = reference.observed.cells
    if cells.shape[0] < 2:
        return
    for _ in range(halvings):
        first, second = halves(cells.shape[0], rng)
        yield Population(cells[first]), reference.against(Population(cells[second]))


class Apart(NamedTuple):
    """The control cells of one assay batch, and those of all others."""

    own: Population
    others: Population


def apart(control: Population, batches: NDArray[Any]) -> Callable[[str], Apart | None]:
    """A function from an assay batch to its control cells and the others; None where either are too few.

    Args:
        control: the control cells of a cell type.
        batches: the assay batch of each of them.
    """

    @lru_cache(maxsize=2 * REPLICATES)
    def of(label: str) -> Apart | None:
        own = batches == label
        if min(own.sum(), (~own).sum()) < REPLICATE_CELLS:
            return None
        return Apart(Population(control.cells[own]), Population(control.cells[~own]))

    return of


def replicated(
    reference: Reference, batches: NDArray[Any], controls: Callable[[str], Apart | None]
) -> Iterator[tuple[Population, Reference, Population]]:
    """Each assay batch that has enough cells, a reference of all others of them, and the batch's control cells.

    Args:
        reference: of one condition.
        batches: the assay batch of each observed cell.
        controls: see `apart`.

    Yields:
        Nothing for fewer than two such batches.
    """
    labels, sizes = np.unique(batches, return_counts=True)
    order = np.argsort(-sizes, kind="stable")
    large = [str(label) for label, size in zip(labels[order], sizes[order], strict=True) if size >= REPLICATE_CELLS]
    enough = {label: found for label in large if (found := controls(label)) is not None}
    if len(enough) < 2:
        return
    cells, known = reference.observed.cells, np.isin(batches, list(enough))
    for label, control in list(enough.items())[:REPLICATES]:
        own = batches == label
        moved = Population(cells[own]).moved(control.others.mean - control.own.mean)
        level = control.others.mean - reference.control.mean
        centroid = None if reference.centroid is None else reference.centroid + level
        yield moved, Reference(Population(cells[known & ~own]), control.others, centroid), control.own


def siblings_moved(
    reference: Reference, others: Iterable[tuple[Callable[[], Population], Callable[[], Population]]]
) -> Iterator[tuple[Population, Reference, Population]]:
    """The same condition in other assay batches, each with the reference it is judged by and its own control cells.

    Args:
        reference: of a condition of one assay batch.
        others: the observed and the control cells of the same perturbation and cell type in other batches.

    Yields:
        Up to `REPLICATES` of those that have enough cells on either side, the first ones.
    """
    if min(reference.observed.cells.shape[0], reference.control.cells.shape[0]) < REPLICATE_CELLS:
        return
    found = 0
    for observed, controls in others:
        cells, own = observed(), controls()
        if min(cells.cells.shape[0], own.cells.shape[0]) < REPLICATE_CELLS:
            continue
        yield cells.moved(reference.control.mean - own.mean), reference, own
        found += 1
        if found == REPLICATES:
            return


def averaged(scores: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each metric; NaN without any scores, or where one of them is."""
    if not scores:
        return {metric.name: float("nan") for metric in METRICS}
    return {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}
