"""What is expected of populations before a network speaks, as the network is given it.

`cells.contexts` says what change is expected of a perturbation that training has seen in a context, `core.expectation`
how labels that it has not seen are made of those that it has. A context is known by its control cells: by the name of
its cell type and assay batch where training has seen them together, and else by their mean expression.

Where cells are drawn as counts, the change is turned into that of counts which gives the drawn cells the mean that is
expected of them (`cells.counts.Curves`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from perturbdiff.cells.contexts import Changes, Context, Vector
from perturbdiff.cells.counts import Curves, whole
from perturbdiff.cells.order import Loaded, Runs, totals_of
from perturbdiff.core.population import PopulationBatch
from perturbdiff.populations.departures import Families, Hidden
from perturbdiff.populations.epochs import Draw, Populations, Slab

CELLS_OF_CURVES = 128
"""Control cells of a context by which changes of means are turned into changes of counts, at most."""

CELLS_OF_MEAN = 1 << 12
"""Control cells of a context that it is known by, at most."""

CONTEXTS_HELD = 256
"""Contexts whose control cells need not be read again, at most."""

HELD = 1 << 28
"""Bytes of what is expected that are kept for the next time, at most."""

type Weights = NDArray[np.float64]
type Expression = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Surroundings:
    """A context, as its control cells tell it.

    Attributes:
        similarity: with the contexts of training [contexts].
        cell_type: its name.
        own: its place among them; None where it is none of them.
        curves: of its control cells, where cells are drawn as counts.
    """

    similarity: Vector
    cell_type: str
    own: int | None
    curves: Curves | None


class Expectation:
    """The change that is expected of a label in a context, in units of the training scale.

    Args:
        changes: of the training conditions.
        weights: over the trained labels, the null's first, of each label at each novelty [novelties, labels,
            trained + 1], see `core.expectation`; None where labels are the trained ones alone.
        scale: what log1p counts per 10^4 are divided by.
        counts: whether cells are drawn as counts.
    """

    def __init__(self, changes: Changes, weights: Weights | None, *, scale: float, counts: bool) -> None:
        self.changes, self.weights, self.scale, self.counts = changes, weights, scale, counts
        size = max(1, HELD // (8 * changes.n_genes))
        self.families = Families(changes)
        self.of = lru_cache(size)(self._of)
        self._of_trained = lru_cache(size)(self._expected)

    def surroundings(self, context: Context, control: Expression, totals: NDArray[np.float64] | None) -> Surroundings:
        """A context by its control cells.

        Args:
            context: cell type and assay batch; "" where one is open.
            control: log1p counts per 10^4 of its control cells [cells, genes].
            totals: their total counts [cells], which counts need.
        """
        (cell_type, batch), place = context, self.changes.place
        own = next((place[name] for name in ((cell_type, batch), (cell_type, ""), ("", "")) if name in place), None)
        curves = None
        if self.counts and totals is not None:
            some = np.unique(np.linspace(0, len(control) - 1, CELLS_OF_CURVES).astype(np.int64))
            curves = Curves.of(whole(control[some], totals[some]), totals[some])
        mean = control.mean(axis=0, dtype=np.float64) if own is None else self.changes.means[own]
        return Surroundings(self.changes.similarity(mean), cell_type, own, curves)

    def _of(self, label: int, there: Surroundings, novelty: int = 0, elsewhere: bool = False) -> Expression:  # noqa: FBT001, FBT002 - kept by position
        """The change [genes] of a label by its number; `elsewhere` as if training had not seen the context."""
        return self._as_given(
            sum(
                (w * self._of_trained(k, there, elsewhere=elsewhere) for k, w in self._made_of(label, novelty)),
                np.zeros(self.changes.n_genes),
            ),
            there,
        )

    def drawn(self, label: int, there: Surroundings, hidden: Hidden, n_cells: int) -> Expression:
        """The change [genes] of a label in one of the populations that there may be, of so many cells."""
        shift = np.zeros(self.changes.n_genes)
        for k, w in self._made_of(label, 0):
            expected = self._of_trained(k, there, elsewhere=False)
            kind = there.cell_type if there.own is None else self.changes.contexts[there.own][0]
            departure = self.families.drawn(k, expected, hidden, n_cells=n_cells, cell_type=kind, own=there.own)
            shift += w * (expected + departure)
        return self._as_given(shift, there)

    def _made_of(self, label: int, novelty: int) -> list[tuple[int, float]]:
        """The trained labels that a label is made of, and their weights."""
        if self.weights is None:
            return [(label, 1.0)]
        row = self.weights[novelty, label]
        return [(int(k), float(row[k])) for k in np.flatnonzero(row)]

    def _as_given(self, shift: Vector, there: Surroundings) -> Expression:
        """A change of means as the network is given it."""
        if not shift.any():
            return shift.astype(np.float32)
        found = shift if there.curves is None else there.curves.realised(shift)
        return (found / self.scale).astype(np.float32)

    def _expected(self, label: int, there: Surroundings, *, elsewhere: bool) -> Vector:
        """The change of a trained label, log1p counts per 10^4; kept, since others are made of it."""
        return self.changes.expected(label, there.similarity, there.own, cell_type=there.cell_type, left_out=elsewhere)


class ExpectedPopulations:
    """Populations that are told what is expected of each: `Populations`, with `PopulationBatch.expected` filled.

    Args:
        populations: of which part of a split.
        expectation: of the labels of their vocabulary.
        runs: of the source, which name the contexts.
        in_all_ways: whether all six are wanted, see `core.objective`; else the first alone.
        control: the number of the control label; control cells are expected to stay as they are.
    """

    def __init__(
        self, populations: Populations, expectation: Expectation, runs: Runs, *, in_all_ways: bool, control: int
    ) -> None:
        self.populations, self.expectation = populations, expectation
        self.control = control
        ways = [(novelty, elsewhere) for elsewhere in (False, True) for novelty in range(3)]
        self._ways = ways if in_all_ways else ways[:1]
        self._runs = runs
        self._around = lru_cache(CONTEXTS_HELD)(self._surroundings)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user."""
        return self.populations.notes

    def slabs(self, first: int = 0) -> Iterator[Slab]:
        """As those of the populations."""
        return self.populations.slabs(first)

    def plan(self, epoch: int, at_most: int | None = None) -> list[Draw]:
        """As that of the populations."""
        return self.populations.plan(epoch, at_most)

    def load(self, draws: Sequence[Draw]) -> Loaded:
        """As the populations do."""
        return self.populations.load(draws)

    def batch(self, draws: Sequence[Draw], loaded: Sequence[Loaded] | None = None) -> PopulationBatch:
        """As the populations do, and what is expected of each [draws, ways, genes]."""
        expected = np.zeros((len(draws), len(self._ways), self.populations.n_genes), dtype=np.float32)
        for i, draw in enumerate(draws):
            label = draw.condition[0]
            if label not in {0, self.control}:
                there = self._around(*self._contexts[draw.group])
                for j, (novelty, elsewhere) in enumerate(self._ways):
                    expected[i, j] = self.expectation.of(label, there, novelty, elsewhere)
        return self.populations.batch(draws, loaded)._replace(expected=torch.from_numpy(expected))

    def _surroundings(self, pool: tuple[int, int], context: Context) -> Surroundings:
        """A context by its control cells, those of these numbers."""
        populations = self.populations
        numbers = np.unique(np.linspace(pool[0], pool[1] - 1, CELLS_OF_MEAN).astype(np.int64))
        positions = np.unique(populations.controls.positions(numbers))
        read = populations.reader.load(positions)
        control = read.rows(positions).toarray() * np.float32(populations.scale)
        totals = totals_of([read], positions)
        return self.expectation.surroundings(context, control, totals)

    @cached_property
    def _contexts(self) -> Mapping[tuple[int, ...], tuple[tuple[int, int], Context]]:
        """The control cells [first, last) of each group, and the names of its cell type and assay batch."""
        populations, table = self.populations, self._runs.labels.iloc[self.populations.groups.run]
        names = zip(table["cell_type"].astype(str), table["assay_batch"].astype(str), strict=True)
        pools = map(tuple, populations.pools.tolist())
        groups = map(tuple, populations.told_apart.tolist())
        return dict(zip(groups, zip(pools, names, strict=True), strict=True))
