r"""Distances between two populations of cells, X predicted and Y observed, that see means, spreads and dependence.

    energy distance   E||X - Y|| - E||X - X'|| / 2 - E||Y - Y'|| / 2
    MMD^2             E k(X, X') + E k(Y, Y') - 2 E k(X, Y),
                      k(x, y) = mean over s in {1/4, 1/2, 1, 2, 4} of exp(-||x - y||^2 / (s m)),
                      m = median of ||Y - Y'||^2 over pairs of observed cells

X', Y' are other cells. The energy distance is MMD^2 for the kernel (||x|| + ||y|| - ||x - y||) / 2: half of the
statisticians' 2E||X - Y|| - ..., with no root and no squared norms. Both are the unbiased estimate: zero on average
between two samples of one law, so they may be negative, and they need two cells a side. Cells that were made of one
control cell are no two samples, so such pairs don't count. Sums are over blocks of rows, so that memory does not grow
with the number of cells, and in float64.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

type Matrix = NDArray[Any]
type Vector = NDArray[np.float64]

SCALES = (4.0, 2.0, 1.0, 0.5, 0.25)
"""Multiples of the median squared distance, each half of the one before."""

_ROWS_AT_ONCE = 1024
_CELLS_OF_MEDIAN = 2048


class Closeness(NamedTuple):
    """Means over pairs of cells: of their distance, and of their kernel (NaN where no bandwidth is given)."""

    distance: float
    kernel: float


UNDEFINED = Closeness(float("nan"), float("nan"))


def energy_distance(between: Closeness, x: Closeness, y: Closeness) -> float:
    """E||X - Y|| - E||X - X'||/2 - E||Y - Y'||/2, unbiased; NaN where either side has fewer than two cells."""
    return float(between.distance - x.distance / 2 - y.distance / 2)


def mmd(between: Closeness, x: Closeness, y: Closeness) -> float:
    """E k(X, X') + E k(Y, Y') - 2 E k(X, Y), unbiased; NaN where the energy distance is, or without a bandwidth."""
    return float(x.kernel + y.kernel - 2 * between.kernel)


def bandwidth(observed: Matrix) -> float:
    """The median squared distance of two different cells, of 2,048 cells at most, evenly spaced; NaN where it is 0."""
    n_cells = observed.shape[0]
    if n_cells < 2:
        return float("nan")
    if n_cells > _CELLS_OF_MEDIAN:
        observed = observed[np.linspace(0, n_cells - 1, _CELLS_OF_MEDIAN).astype(np.int64)]
    centred = observed - observed.mean(axis=0, dtype=np.float64)
    found = float(np.median(_squares(centred, centred)[np.triu_indices(observed.shape[0], k=1)]))
    return found if found > 0 else float("nan")


def between(x: Matrix, y: Matrix, width: float = float("nan")) -> Closeness:
    """Over all pairs of a row of x [n, genes] and a row of y [m, genes]; `width` is the kernel's median m."""
    centre = (x.mean(axis=0, dtype=np.float64) + y.mean(axis=0, dtype=np.float64)) / 2
    total = np.zeros(2)
    for rows in _blocks(x.shape[0]):
        left = x[rows] - centre
        for columns in _blocks(y.shape[0]):
            total += _sums(_squares(left, y[columns] - centre), width)
    return Closeness(*(total / (x.shape[0] * y.shape[0])).tolist())


def within(x: Matrix, width: float = float("nan"), origins: NDArray[np.int64] | None = None) -> Closeness:
    """Over all pairs of two different rows of x [n, genes] that are not of one origin [n]; NaN where there are none."""
    n_cells = x.shape[0]
    if n_cells < 2:
        return UNDEFINED
    centre = x.mean(axis=0, dtype=np.float64)
    total = np.zeros(2)
    for rows in _blocks(n_cells):
        left = x[rows] - centre
        for columns in _blocks(n_cells):
            if columns.start < rows.start:
                continue
            if columns.start == rows.start:
                squares = _squares(left, left)
                np.fill_diagonal(squares, 0.0)  # a cell is at distance 0 of itself, whatever the rounding
                total += _sums(squares, width) - (0.0, float(left.shape[0]))
            else:
                total += 2 * _sums(_squares(left, x[columns] - centre), width)
    pairs = n_cells * (n_cells - 1)
    if origins is not None:
        alike, sums = _alike(x, origins, width)
        pairs, total = pairs - alike, total - sums
    return Closeness(*(total / pairs).tolist()) if pairs else UNDEFINED


def _alike(x: Matrix, origins: NDArray[np.int64], width: float) -> tuple[int, Vector]:
    """How many ordered pairs of rows are of one origin, and their sums."""
    order = np.argsort(origins, kind="stable")
    origins, pairs, total = origins[order], 0, np.zeros(2)
    for apart in range(1, len(order)):
        first = np.flatnonzero(origins[apart:] == origins[:-apart])
        if not first.size:
            break
        pairs += 2 * first.size
        for rows in _blocks(first.size):
            one, other = (x[order[first[rows] + step]].astype(np.float64) for step in (0, apart))
            total += 2 * _sums(np.square(one - other).sum(axis=1), width)
    return pairs, total


def _sums(squares: Vector, width: float) -> Vector:
    """The sums of the distances and of the kernels of squared distances, which are overwritten."""
    if not width > 0:
        return np.array([np.sqrt(squares, out=squares).sum(), np.nan])
    kernel = np.exp(squares / (-SCALES[0] * width))
    similar = 0.0
    for i in range(len(SCALES)):
        if i:
            kernel *= kernel  # half the scale is the square of the kernel
        similar += float(kernel.sum())
    return np.array([np.sqrt(squares, out=squares).sum(), similar / len(SCALES)])


def _squares(x: Vector, y: Vector) -> Vector:
    """||x_i - y_j||^2 [n, m] of centred rows, from ||x||^2 + ||y||^2 - 2 x.y, clamped at 0 against rounding."""
    squares: Vector = x @ y.T
    squares *= -2.0
    squares += np.einsum("ij,ij->i", x, x)[:, None]
    squares += np.einsum("ij,ij->i", y, y)[None, :]
    return np.maximum(squares, 0.0, out=squares)


def _blocks(n_rows: int) -> list[slice]:
    return [slice(start, min(start + _ROWS_AT_ONCE, n_rows)) for start in range(0, n_rows, _ROWS_AT_ONCE)]
