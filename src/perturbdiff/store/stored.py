"""A store on disk as a source of cells: opened at once, whatever its size, and read where it is asked for.

Memory holds the runs and the genes, and nothing for each cell. What is read is restricted to the panel before it is
kept.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from perturbdiff.cells.counts import recovered_of
from perturbdiff.cells.order import Flags, Hashes, Integers, Loaded, Runs, Segments, thinned_note
from perturbdiff.core.choices import COVARIATES
from perturbdiff.labels.members import grammar_of
from perturbdiff.labels.vocabulary import columns_of
from perturbdiff.recipes.dataset import Recipe
from perturbdiff.store.layout import GENES, MOMENTS, OBS, PARTS, RUNS
from perturbdiff.store.manifest import File, Manifest, Part, check_tables, read_manifest
from perturbdiff.store.parts import Parts, Rows

if TYPE_CHECKING:
    from perturbdiff.cells.memory import Cells
    from perturbdiff.cells.moments import Moments

type Track = Callable[[Sequence[Part]], Iterable[Part]]


@dataclass(frozen=True, eq=False, repr=False)
class Store:
    """A store; a `Source`, which several threads may read at once.

    Attributes:
        path: its folder.
        manifest: what it holds.
        genes: unique names.
        runs: the runs.
        digests: of the names of each run [runs, 2]; see `source.digested`.
        parts: where its cells are.
    """

    path: Path
    manifest: Manifest
    genes: pd.Index
    runs: Runs
    digests: Hashes
    parts: Parts

    @classmethod
    def open(cls, path: Path) -> "Store":
        """Open a store, reading its tables only.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: it is not a store, of another format, its tables are damaged, or a part is missing.
        """
        path = Path(path)
        manifest = read_manifest(path)
        check_tables(manifest, path)
        parts = Parts.of(path / PARTS, manifest.parts, n_cells=manifest.n_cells, n_values=manifest.n_values)
        table = pd.read_parquet(path / RUNS)
        labels: dict[str, Any] = {key: table[key].array for key in COVARIATES}
        offsets = np.append(table["start"].to_numpy(), manifest.n_cells).astype(np.int64)
        digests = np.stack([table[f"digest_{i}"].to_numpy(dtype=np.uint64) for i in range(2)], axis=1)
        genes = pd.Index(pd.read_parquet(path / GENES, columns=["name"])["name"], name=None, dtype=str)
        grammar = grammar_of(manifest.read_recipe())
        runs = Runs(pd.DataFrame(labels), offsets, manifest.control, grammar)
        return cls(path, manifest, genes, runs, digests, parts)

    def __repr__(self) -> str:
        """One line: how many cells and genes, and where."""
        return f"Store({str(self.path)!r}, {self.n_cells} cells x {len(self.genes)} genes, {self.scale})"

    @property
    def scale(self) -> Literal["counts", "log1p"]:
        """As the values are kept."""
        return self.manifest.scale

    @property
    def control(self) -> str | None:
        """Label of the control cells."""
        return self.manifest.control

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on what was done to the data when the store was made."""
        return self.manifest.notes

    @property
    def n_cells(self) -> int:
        """The number of cells."""
        return self.manifest.n_cells

    @property
    def n_values(self) -> int:
        """The number of stored values, none of which is 0."""
        return self.manifest.n_values

    @property
    def files(self) -> tuple[File, ...]:
        """The files that it was made of."""
        return self.manifest.files

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe that it was made by."""
        return self.manifest.read_recipe()

    @property
    def bytes_per_cell(self) -> float:
        """See `Source`: with all genes in the panel."""
        return 8 * (self.n_values / self.n_cells + 1)

    def moments(self, split: str) -> "Moments | None":
        """See `Source`."""
        from perturbdiff.cells.moments import Moments

        if split != self.manifest.moments:
            return None
        return Moments.from_table(pd.read_parquet(self.path / MOMENTS).set_index("gene").rename_axis(None))

    def hashes(self, start: int, stop: int) -> Hashes:
        """See `Source`."""
        return self._column("name_hash", start, stop)

    def profiles(self, start: int, stop: int) -> tuple[Hashes, Integers]:
        """See `Source`."""
        return self._column("profile_hash", start, stop), self._column("expressed", start, stop).astype(np.int64)

    def name(self, position: int) -> str:
        """See `Source`."""
        return str(self.parts.names(np.array([position]))[0])

    def names_at(self, start: int, stop: int) -> npt.NDArray[np.object_]:
        """See `Source`."""
        return np.asarray(self.parts.names(np.arange(start, stop, dtype=np.int64)), dtype=object)

    def rows(self, segments: Segments) -> Integers:
        """See `Source`: positions."""
        return segments.positions()

    def reader(
        self,
        genes: Sequence[str],
        segments: Segments,  # noqa: ARG002 - of the protocol
        scale: float = 1.0,
    ) -> "PanelReader":
        """See `Source`: nothing is read before it is asked for, and nothing is kept."""
        place = columns_of(genes, self.genes)
        columns = np.full(len(self.genes), -1, dtype=np.int32)
        columns[place] = np.arange(len(place), dtype=np.int32)
        return PanelReader(self.parts, columns, len(place), has_totals=self.scale == "counts", scale=scale)

    def in_memory(self, segments: Segments, at_most: int | None = None) -> "Cells":
        """See `Source`; in the order of the store."""
        import scipy.sparse as sp

        from perturbdiff.cells.memory import Cells

        some = segments.thinned(at_most)
        positions = some.positions()
        data, indices, indptr = self._values(positions)
        run = np.repeat(some.run, some.sizes)
        labels: dict[str, Any] = {
            key: self.runs.labels[key].array[run].remove_unused_categories() for key in COVARIATES
        }
        totals = None
        if self.scale == "counts":
            totals = self.parts.column("total_counts", self.parts.ranges(positions))
        return Cells(
            values=sp.csr_matrix((data, indices, indptr), shape=(len(positions), len(self.genes))),
            scale=self.scale,
            total_counts=totals,
            genes=self.genes,
            names=pd.Index(self.parts.names(positions), dtype=str),
            labels=pd.DataFrame(labels),
            control=self.control,
            notes=(*self.notes, *thinned_note(segments, some)),
            grammar=self.runs.grammar,
        )

    def verify(self, track: Track = iter) -> None:
        """Read all parts and compare their contents with what was written; `track` may draw how far it is.

        Raises:
            ValueError: a part is damaged; it is named.
        """
        columns = [name for name in OBS if name != "total_counts" or self.scale == "counts"]
        number = {part.name: i for i, part in enumerate(self.manifest.parts)}
        damaged = [
            part.name for part in track(self.manifest.parts) if not self.parts.is_whole(number[part.name], columns)
        ]
        if damaged:
            raise ValueError(
                f"{len(damaged)} of {len(number)} parts of {str(self.path)!r} are not what was written, such as "
                f"{damaged[0]!r}; copy the store again, or make it again with `perturbdiff prepare --overwrite`."
            )

    def _column(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        start, stop, _ = slice(start, stop).indices(self.n_cells)
        return self.parts.column(name, self.parts.ranges(np.arange(start, stop, dtype=np.int64)))

    def _values(self, positions: Integers) -> tuple[npt.NDArray[Any], npt.NDArray[np.int32], Integers]:
        """Values as they are stored: data, indices, indptr of a CSR matrix."""
        ranges = self.parts.ranges(positions)
        extent = self.parts.extent(ranges)
        indptr = np.append(0, np.cumsum(extent.lengths[ranges.asked]))
        data = np.empty(indptr[-1], dtype=np.result_type(*self.parts.kinds(ranges)))
        indices, filled = np.empty(indptr[-1], dtype=np.int32), 0
        for rows in self.parts.rows(ranges, extent):
            kept = slice(None) if rows.asked.all() else np.repeat(rows.asked, rows.lengths)
            found = rows.data[kept]
            data[filled : filled + len(found)] = found
            indices[filled : filled + len(found)] = rows.indices[kept]
            filled += len(found)
        return data, indices, indptr


@dataclass(frozen=True, eq=False)
class PanelReader:
    """A reader of some genes of a store.

    Attributes:
        parts: where the cells are.
        columns: the column of each gene of the store, -1 where it is not in the panel.
        n_columns: genes of the panel.
        has_totals: whether the values are counts, beside which stand the totals of the cells; else they are recovered.
        scale: what log1p counts per 10^4 are divided by.
    """

    parts: Parts
    columns: npt.NDArray[np.int32]
    n_columns: int
    has_totals: bool
    scale: float = 1.0

    def load(self, positions: Integers) -> Loaded:
        """These positions, ascending, each given once; genes ascend within a cell."""
        import scipy.sparse as sp

        ranges = self.parts.ranges(positions)
        extent = self.parts.extent(ranges)
        totals = self.parts.column("total_counts", ranges) if self.has_totals else None
        # as much as there can be; what is not filled takes no memory
        room = int(extent.lengths.sum())
        data, indices = np.empty(room, dtype=np.float32), np.empty(room, dtype=np.int32)
        lengths, filled, n_cells = [np.zeros(0, dtype=np.int64)], 0, 0
        recovered = [np.zeros(0)]
        for rows in self.parts.rows(ranges, extent):
            kept = self._restrict(rows, data[filled:], indices[filled:])
            values = data[filled : filled + int(kept.sum())]
            if totals is not None:
                _to_log1p(values, kept, totals[n_cells : n_cells + len(kept)])
            else:
                # of all genes, whatever the panel: the smallest count may be of any
                recovered.append(recovered_of(rows.data, rows.lengths)[rows.asked])
            lengths.append(kept)
            filled, n_cells = filled + len(values), n_cells + len(kept)
        data, indices = data[:filled], indices[:filled]
        data /= np.float32(self.scale)
        indptr = np.append(0, np.cumsum(np.concatenate(lengths)))
        kind: Any = np.int32 if len(data) <= np.iinfo(np.int32).max else np.int64
        arrays: Any = (data, indices.astype(kind, copy=False), indptr.astype(kind))
        matrix: sp.csr_matrix[np.float32] = sp.csr_matrix(arrays, shape=(len(positions), self.n_columns), copy=False)
        if not self._is_ascending:
            matrix.sort_indices()
        return Loaded(positions, matrix, np.concatenate(recovered) if totals is None else totals)

    @cached_property
    def _in_panel(self) -> Flags:
        return self.columns >= 0

    @cached_property
    def _is_ascending(self) -> bool:
        """Whether the panel has its genes in the order of the store."""
        return bool((np.diff(self.columns[self._in_panel]) > 0).all())

    @cached_property
    def _is_everything(self) -> bool:
        return self._is_ascending and bool(self._in_panel.all())

    def _restrict(self, rows: Rows, data: npt.NDArray[np.float32], indices: npt.NDArray[np.int32]) -> Integers:
        """Put the panel's values of the cells asked for where there is room, and give the lengths of their rows."""
        if self._is_everything and rows.asked.all():
            data[: len(rows.data)], indices[: len(rows.data)] = rows.data, rows.indices
            return rows.lengths
        kept = self._in_panel.take(rows.indices)
        if not rows.asked.all():
            kept &= np.repeat(rows.asked, rows.lengths)
        # places of what is kept: several times as fast as a mask
        place = np.flatnonzero(kept)
        data[: len(place)] = rows.data.take(place)
        self.columns.take(rows.indices.take(place), out=indices[: len(place)], mode="clip")
        ends = np.searchsorted(place, np.cumsum(rows.lengths))
        return np.diff(ends, prepend=0)[rows.asked]


def _to_log1p(counts: npt.NDArray[np.float32], lengths: Integers, totals: npt.NDArray[np.float64]) -> None:
    """Make counts of cells into log1p counts per 10^4, in place, bit by bit as `Cells.log_expression` does."""
    from perturbdiff.recipes.dataset import PER

    counts *= np.repeat((PER / totals).astype(np.float32), lengths)
    np.log1p(counts, out=counts)
