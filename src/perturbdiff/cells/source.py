"""Where cells come from: the same questions to cells in memory and to a store on disk, in the order of `order`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from perturbdiff.cells.order import Hashes, Integers, Loaded, Runs, Segments

if TYPE_CHECKING:
    from perturbdiff.cells.memory import Cells
    from perturbdiff.cells.moments import Moments


class Reader(Protocol):
    """Reads the expression of a panel of genes, and the total counts of its cells over all genes of the source."""

    def load(self, positions: Integers) -> Loaded:
        """At least these positions (ascending, each once); a source in memory gives all that it has at no cost."""
        ...


class Source(Protocol):
    """Cells in the canonical order; `Cells` in memory, `Store` on disk.

    Attributes:
        genes: unique names.
        scale: "counts" or "log1p", as the values are kept.
        control: label of the control cells; None where no cell is perturbed.
        notes: sentences on what was done to the data on the way in.
        runs: the runs.
        digests: of the names of each run [runs, 2]; see `digested`.
        bytes_per_cell: what holding the expression of a cell in memory takes, at most; 0 where it is there already.
    """

    @property
    def genes(self) -> pd.Index: ...
    @property
    def scale(self) -> Literal["counts", "log1p"]: ...
    @property
    def control(self) -> str | None: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    @property
    def runs(self) -> Runs: ...
    @property
    def n_cells(self) -> int: ...
    @property
    def bytes_per_cell(self) -> float: ...
    @property
    def digests(self) -> Hashes: ...

    def moments(self, split: str) -> "Moments | None":
        """What was measured already of the genes in the training cells of the split with this hash; else None."""
        ...

    def hashes(self, start: int, stop: int) -> Hashes:
        """The hashes of the cells' names at positions start to stop; ascending within a run."""
        ...

    def profiles(self, start: int, stop: int) -> tuple[Hashes, Integers]:
        """The hash of each cell's values, and its number of expressed genes; see `memory.profile_hashes`."""
        ...

    def name(self, position: int) -> str:
        """The name of a cell."""
        ...

    def names_at(self, start: int, stop: int) -> "npt.NDArray[np.object_]":
        """The names of the cells at positions start to stop, as text."""
        ...

    def rows(self, segments: Segments) -> Integers:
        """What the user knows the cells of these segments by: rows of cells in memory, positions in a store."""
        ...

    def in_memory(self, segments: Segments, at_most: int | None = None) -> "Cells":
        """The cells of these segments; of more than `at_most` an even share of every segment, and a note says so."""
        ...

    def reader(self, genes: Sequence[str], segments: Segments, scale: float = 1.0) -> Reader:
        """A reader of these segments; what it reads is divided by `scale`.

        Raises:
            ValueError: a gene is not there; the nearest is named.
        """
        ...
