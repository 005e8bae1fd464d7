r"""What measured changes prove: a change less what may be sampling noise, by itself and in sums.

Of a change d with noise V, gene by gene, the share b is trusted, the positive part of James and Stein's estimator:

    b_g(d) = 1 - V_g / d_g^2                    where d_g^2 > 3 log(G) V_g: gene g stands out
    b_g(d) = max(0, 1 - sum V / sum d^2)        where it does not, the sums over those of the G genes

A knock-out changes its own gene by far the most, and nothing follows from that for others: if that gene were in the
sums, the others' noise would be kept for its sake.

A weighted sum of changes is trusted as a sum: two weak changes in one direction prove more together than each by
itself.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

type Vector = NDArray[np.float64]

STANDS_OUT = 3.0
"""Times log G, the squared change of a gene over its noise that noise does not explain."""


class Evidence(NamedTuple):
    """What conditions say of a change, noise included; see `cells.contexts`. All but `apart` are [genes].

    Attributes:
        mean: E, in an unseen context lambda E.
        noise: V of it.
        beyond: S_o - E; 0 in an unseen context.
        noise_beyond: V of it.
        apart: T.
    """

    mean: Vector
    noise: Vector
    beyond: Vector
    noise_beyond: Vector
    apart: float

    @classmethod
    def none(cls, n_genes: int) -> "Evidence":
        """Of no change."""
        nothing = np.zeros(n_genes)
        return cls(nothing, nothing, nothing, nothing, 0.0)


def together(n_genes: int, parts: Sequence[tuple[float, Evidence]]) -> Vector:
    """The change s [genes] that a weighted sum of evidence proves, the conditions being independent."""
    mean, noise, beyond, noise_beyond = np.zeros((4, n_genes))
    apart = 0.0
    for w, part in parts:
        mean += w * part.mean
        beyond += w * part.beyond
        noise += w * w * part.noise
        noise_beyond += w * w * part.noise_beyond
        apart += w * w * part.apart
    most = apart / (apart + noise_beyond.sum()) if 0 < apart < np.inf else float(apart > 0)
    found: Vector = mean * trusted(mean, noise) + beyond * trusted(beyond, noise_beyond, most)
    return found


def trusted(change: Vector, noise: Vector, most: float = 1.0) -> Vector:
    """The share b of each gene of a change [.., genes].

    Args:
        change: d [.., genes].
        noise: V [.., genes].
        most: of a gene that does not stand out, at most.
    """
    squares = np.square(change)
    out = squares > STANDS_OUT * np.log(max(2, change.shape[-1])) * noise
    of_rest, noise_of_rest = (np.where(out, 0.0, table).sum(axis=-1, keepdims=True) for table in (squares, noise))
    rest = np.minimum(1 - _over(noise_of_rest, of_rest), most)
    found: Vector = np.where(out, 1 - _over(noise, squares), rest)
    return found


def _over(noise: Vector, squares: Vector) -> Vector:
    """Noise over squares, 1 where it is more."""
    found: Vector = np.divide(noise, squares, out=np.ones_like(squares), where=squares > noise)
    return found
