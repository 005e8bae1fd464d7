"""Which of very many marks are drawn: the same ones every time, so that a report repeats."""

import numpy as np
from numpy.typing import NDArray

type Places = NDArray[np.intp]


def evenly(n: int, most: int) -> Places:
    """All of n places, or `most` of them, evenly taken, both ends among them."""
    return np.arange(n) if n <= most else np.linspace(0, n - 1, most).round().astype(np.intp)


def sampled(places: Places, most: int) -> Places:
    """So many of some places at most, drawn with a fixed seed, in their order."""
    if len(places) <= most:
        return places
    return np.sort(np.random.default_rng(0).choice(places, most, replace=False))
