"""The interval of what another population may show, by those that were drawn.

The central interval of level 1 - a is from the a/2 to the 1 - a/2 quantile of K values, the k-th of which is that of
k / (K + 1): one more value of their law lies in it with that probability. Of fewer than (2 - a) / a values it is their
range, which holds one more with probability (K - 1) / (K + 1).
"""

import numpy as np
from numpy.typing import NDArray


def interval(values: NDArray[np.float64], level: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The central interval of K values [K, ..] of a level."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0, method="weibull")
    return low, high


def fewest(level: float) -> int:
    """How many values an interval of a level needs to be more than their range."""
    return int(np.ceil((1 + level) / (1 - level) - 1e-9))
