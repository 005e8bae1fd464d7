"""Several sources at once: populations drawn from each by its weight, all on one panel of genes.

The populations of a mixture stand in one row, in chunks of K. Of each chunk source i has ``n_i`` of ``sum_i n_i = K``,
as near to its share of the weights as whole numbers are, in an order drawn by (seed, chunk); and what a source gives
are the populations of its own epochs, one after the other. So a source that is small is gone through more often, and
any chunk can be drawn without those before it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
import torch

from perturbdiff.cells.order import Flags, Integers, Loaded, Segments
from perturbdiff.cells.source import Reader, Source
from perturbdiff.core.population import Condition, PopulationBatch
from perturbdiff.populations.blocks import BLOCK, SLAB
from perturbdiff.populations.epochs import Draw, Populations, Slab

SMALLEST_CHUNK = 64
"""A chunk has at least so many populations, so that weights are kept to about a hundredth."""


class MixedPopulations:
    """Populations of several sources, which share panel, scale, vocabularies and cells per population.

    Args:
        members: the populations of each source.
        weights: of each, positive; shares of the populations, whatever the sources' sizes.
        seed: of the order in which the sources take turns.

    Raises:
        ValueError: there are no members, the weights do not fit them, or a member is on another panel.
    """

    def __init__(self, members: Sequence[Populations], weights: Sequence[float], *, seed: int) -> None:
        if not members or len(members) != len(weights):
            raise ValueError(f"{len(weights)} weights do not fit {len(members)} sources; give one weight a source.")
        if not all(np.isfinite(weight) and weight > 0 for weight in weights):
            raise ValueError(
                f"the weights {list(weights)} must be positive and finite; leave out a source of weight 0."
            )
        shapes = {(member.cells_per_population, member.n_genes, member.scale) for member in members}
        if len(shapes) > 1:
            raise ValueError(
                f"the sources have {len(shapes)} different (cells per population, genes, scale), such as "
                f"{sorted(shapes)[0]} and {sorted(shapes)[1]}, and a mixture has one; align them to one panel."
            )
        self.members, self.seed = tuple(members), seed
        self.chunk = max(SMALLEST_CHUNK, SLAB * BLOCK // members[0].cells_per_population)
        self.counts = _apportioned(np.asarray(weights, dtype=np.float64), self.chunk)
        if not self.counts.all():
            absent = int(np.argmin(self.counts))
            raise ValueError(
                f"weight {weights[absent]:g} of {sum(weights):g} is less than one population in {self.chunk}; raise "
                "it, or leave the source out."
            )
        self.notes = tuple(dict.fromkeys(note for member in members for note in member.notes))

    def slabs(self, first: int = 0) -> Iterator[Slab]:
        """Yield chunks without end, from the one that holds population `first` on, cut to it."""
        chunk, skipped = divmod(first, self.chunk)
        own = [self._draws(i, chunk * int(count)) for i, count in enumerate(self.counts.tolist())]
        turns = np.repeat(np.arange(len(self.members)), self.counts)
        while True:
            order = np.random.default_rng([self.seed, chunk]).permutation(turns).tolist()
            number = chunk * self.chunk
            draws = [next(own[i])._replace(key=number + place, source=i) for place, i in enumerate(order)]
            yield Slab(number + skipped, draws[skipped:])
            chunk, skipped = chunk + 1, 0

    def plan(self, epoch: int, at_most: int | None = None) -> list[Draw]:
        """Draw the populations of a chunk, or the first `at_most` of as many chunks as they take."""
        drawn = chain.from_iterable(slab.draws for slab in self.slabs(epoch * self.chunk))
        return list(islice(drawn, self.chunk if at_most is None else at_most))

    def load(self, draws: Sequence[Draw]) -> tuple[Loaded | None, ...]:
        """Read what `batch` needs for these populations; nothing of a source that has none of them."""
        own = [[draw for draw in draws if draw.source == i] for i in range(len(self.members))]
        return tuple(member.load(some) if some else None for member, some in zip(self.members, own, strict=True))

    def batch(
        self, draws: Sequence[Draw], loaded: Sequence[tuple[Loaded | None, ...]] | None = None
    ) -> PopulationBatch:
        """Fetch the expression of `draws`, as `Populations.batch` does."""
        parts = [self.load(draws)] if loaded is None else loaded
        batches, places = [], []
        for i, member in enumerate(self.members):
            own = [place for place, draw in enumerate(draws) if draw.source == i]
            if own:
                read = [one for one in (part[i] for part in parts) if one is not None]
                batches.append(member.batch([draws[place] for place in own], read))
                places += own
        return _in_order(batches, np.argsort(places))

    def _draws(self, i: int, first: int) -> Iterator[Draw]:
        return chain.from_iterable(slab.draws for slab in self.members[i].slabs(first))


@dataclass(frozen=True, eq=False)
class Aligned:
    """A source seen through a panel of which it may lack genes: these have no values, and `present` tells them apart.

    Attributes:
        source: of the cells.
        genes: the panel.
        present: which genes of the panel the source has [panel].
    """

    source: Source
    genes: pd.Index
    present: Flags

    @classmethod
    def to(cls, source: Source, panel: Sequence[str]) -> "Aligned":
        """See a source through a panel.

        Raises:
            ValueError: the source has none of its genes.
        """
        genes = pd.Index(panel)
        present = np.asarray(genes.isin(source.genes))
        if not present.any():
            raise ValueError(
                f"none of the panel's {len(genes)} genes, such as {genes[0]!r}, is in the data, whose genes are such "
                f"as {str(source.genes[0])!r}; give both the same kind of gene names."
            )
        return cls(source, genes, present)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - all else is the source's
        """All else is as in the source."""
        return getattr(self.source, name)

    def reader(self, genes: Sequence[str], segments: Segments, scale: float = 1.0) -> Reader:
        """A reader of the panel; `genes` must be of it."""
        there = pd.Index(genes).isin(self.genes[self.present])
        inner = self.source.reader([gene for gene, known in zip(genes, there, strict=True) if known], segments, scale)
        return _Widened(inner, np.flatnonzero(there).astype(np.int64), len(genes))


@dataclass(frozen=True)
class _Widened:
    """A reader whose columns are put to their places in a wider panel."""

    inner: Reader
    place: Integers
    n_genes: int

    def load(self, positions: Integers) -> Loaded:
        read = self.inner.load(positions)
        matrix = read.matrix
        columns: npt.NDArray[Any] = self.place[matrix.indices]
        return Loaded(
            read.positions,
            sp.csr_matrix((matrix.data, columns, matrix.indptr), shape=(matrix.shape[0], self.n_genes), copy=False),
            read.totals,
        )


def _apportioned(weights: npt.NDArray[np.float64], total: int) -> Integers:
    """Whole numbers in proportion to the weights, by the largest remainder."""
    quota = weights / weights.sum() * total
    counts = np.floor(quota).astype(np.int64)
    counts[np.argsort(counts - quota, kind="stable")[: total - int(counts.sum())]] += 1
    return counts


def _in_order(batches: Sequence[PopulationBatch], order: npt.NDArray[np.intp]) -> PopulationBatch:
    """The populations of several minibatches as one, rearranged."""
    by = torch.from_numpy(order)
    exists = [torch.ones(b.perturbed.shape[:2], dtype=torch.bool) if b.mask is None else b.mask for b in batches]
    mask = torch.cat(exists)[by]
    there = [torch.ones_like(b.perturbed[:, 0], dtype=torch.bool) if b.genes is None else b.genes for b in batches]
    genes = torch.cat(there)[by]
    totals = [batch.totals for batch in batches if batch.totals is not None]
    labels = (torch.cat(parts)[by] for parts in zip(*(batch.condition for batch in batches), strict=True))
    return PopulationBatch(
        perturbed=torch.cat([batch.perturbed for batch in batches])[by],
        control=torch.cat([batch.control for batch in batches])[by],
        mask=None if bool(mask.all()) else mask,
        condition=Condition(*labels),
        key=torch.cat([batch.key for batch in batches])[by],
        genes=None if bool(genes.all()) else genes,
        totals=torch.cat(totals)[by] if len(totals) == len(batches) else None,
    )
