"""Which cells a pretraining has seen, so that a later training can prove that its held-out cells are not among them.

Of each source the hashes of the training cells' names and profiles are kept: all of them, or those below a limit that
a share of all cells lies under, since hashes are uniform. A held-out cell whose hash lies under the limit is looked up
exactly; the others are not looked at, and of many held-out cells some always are.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from perturbdiff.cells.order import Hashes, Segments, chunks
from perturbdiff.cells.source import Source
from perturbdiff.split.audit import EXPRESSED
from perturbdiff.split.rules import HELD_OUT, Split

AT_MOST = 1 << 20
"""Hashes that are kept of a source."""

BY_CHANCE = 0.1
"""Barcodes of different experiments coincide now and then; where more of the names than this do, they are the same."""


@dataclass(frozen=True, eq=False)
class Seen:
    """The training cells of one source.

    Attributes:
        source: its name.
        n_cells: that it had.
        limit: hashes up to it were kept.
        names: hashes of names, ascending.
        profiles: hashes of the values of cells that express enough genes, ascending.
    """

    source: str
    n_cells: int
    limit: int
    names: Hashes
    profiles: Hashes

    @classmethod
    def of(cls, name: str, source: Source, segments: Segments, at_most: int = AT_MOST) -> "Seen":
        """The cells of some stretches of a source."""
        n_cells = segments.n_cells
        limit = (1 << 64) - 1 if n_cells <= at_most else (1 << 64) // n_cells * at_most
        names, profiles = [], []
        for start, stop in chunks(segments):
            found, expressed = source.profiles(start, stop)
            names.append(_under(source.hashes(start, stop), limit))
            profiles.append(_under(found[expressed >= EXPRESSED], limit))
        return cls(name, n_cells, limit, _sorted(names), _sorted(profiles))

    def leaks(self, split: Split) -> Iterator[str]:
        """A sentence for each part of a split that has cells among these."""
        for part in HELD_OUT:
            names, profiles, n_cells = [], [], 0
            for start, stop in chunks(split.of(part)):
                found, expressed = split.source.profiles(start, stop)
                names.append(_under(split.source.hashes(start, stop), self.limit))
                profiles.append(_under(found[expressed >= EXPRESSED], self.limit))
                n_cells += stop - start
            same, asked = _among(_sorted(names), self.names), sum(map(len, names))
            equal = _among(_sorted(profiles), self.profiles)
            if equal:
                what = f"{equal} cells with exactly the expression of"
            elif same > BY_CHANCE * asked:
                what = f"{same} cells with the name of"
            else:
                continue
            sampled = "" if self.limit == (1 << 64) - 1 else f", of {asked} of them that were looked at"
            yield (
                f"the {part} part ({n_cells} cells) has {what} a cell that pretraining on {self.source!r} has "
                f"seen{sampled}; pretrain with the same cells held out."
            )


def _under(hashes: Hashes, limit: int) -> Hashes:
    return hashes[hashes <= np.uint64(limit)]


def _sorted(parts: list[Hashes]) -> Hashes:
    return np.sort(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.uint64)


def _among(asked: Hashes, known: Hashes) -> int:
    if not len(known):
        return 0
    place = np.minimum(np.searchsorted(known, asked), len(known) - 1)
    return int((known[place] == asked).sum())
