"""Populations drawn from control cells: the chunks of control cells, and the cells that the network makes of them.

The control cells of a condition are those of the file with its cell type and assay batch (any, where the condition
leaves it open), shuffled by the seed and cut into chunks of m, the populations that the network sees. Every chunk
draws from a stream of its own, a function of (seed, repeat, condition, chunk), and what the chunks of one population
have in common from another, of (seed, repeat, condition): the result does not depend on how chunks are batched.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import batched, count, groupby
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
import torch

from perturbdiff.building import build_guided, build_sampler
from perturbdiff.checkpoint import Checkpoint
from perturbdiff.core.choices import COVARIATES
from perturbdiff.core.population import Condition
from perturbdiff.core.randomness import stream
from perturbdiff.labels.conditions import Conditions
from perturbdiff.prediction.controls import Ahead, Controls, Rows
from perturbdiff.recipes.settings import Settings

NUMBERS_AT_ONCE = 8 * 256 * 2000
"""Expression values in one minibatch, which bounds the memory of a prediction."""

type Track = Callable[[Sequence[list["Chunk"]]], Iterator[list["Chunk"]]]


class Made(NamedTuple):
    """The cells of a chunk.

    Attributes:
        cells: log1p counts per 10^4 [cells, panel].
        totals: their total counts [cells], where they are drawn as counts.
    """

    cells: "sp.csr_matrix[np.float32]"
    totals: npt.NDArray[np.float64] | None


@dataclass(frozen=True)
class Chunk:
    """Up to m control cells of one condition, the start of one predicted population.

    Attributes:
        rows: of the control cells.
        condition: row in the table of conditions.
        repeat: which of the K populations.
        number: of the chunk within condition and repeat.
    """

    rows: Rows
    condition: int
    repeat: int
    number: int

    @property
    def key(self) -> tuple[int, int, int]:
        """What tells it from all others."""
        return self.condition, self.repeat, self.number


@dataclass(frozen=True)
class Asked:
    """What is to be drawn.

    Attributes:
        conditions: see `prediction.conditions`.
        rows: the control cells of each.
        m: cells of a chunk.
        populations: how often each condition is drawn.
        n_cells: of each draw; one for each control cell when None.
        seed: of all noise and of the chunks.
    """

    conditions: pd.DataFrame
    rows: Sequence[Rows]
    m: int
    populations: int
    n_cells: int | None
    seed: int

    @cached_property
    def chunks(self) -> list[Chunk]:
        """The control cells of each condition and repeat, shuffled and cut.

        A condition that is drawn once has them all, from a fresh shuffle where all were taken, and none twice in a
        chunk. Each of several populations has those of a donor of whom as many control cells could have been seen: it
        draws with replacement from as many drawn with replacement, so that draws differ by what is not known of the
        control cells.
        """
        chunks, m = [], self.m
        for condition, rows in enumerate(self.rows):
            wanted = self.n_cells or len(rows)
            for repeat in range(self.populations):
                rng, number = np.random.default_rng([self.seed, repeat, condition]), count()
                if self.populations > 1:
                    laps = [rng.choice(rng.choice(rows, len(rows)), wanted)]
                else:
                    laps = [rng.permutation(rows)[:left] for left in range(wanted, 0, -len(rows))]
                for some in laps:
                    cut = (some[at : at + m] for at in range(0, len(some), m))
                    chunks += [Chunk(own, condition, repeat, next(number)) for own in cut]
        return chunks

    @cached_property
    def used(self) -> list[Rows]:
        """The control cells of each condition that are in a chunk, ascending."""
        found: list[list[Rows]] = [[] for _ in self.rows]
        for chunk in self.chunks:
            found[chunk.condition].append(chunk.rows)
        return [np.unique(np.concatenate(own)) for own in found]


class Drawing:
    """Draws the cells of chunks by a model.

    Args:
        checkpoint: the model.
        known: what it is asked.
        settings: its own, with another sampling perhaps.
        asked: what is to be drawn, by its chunks.
        control: the control cells.
        device: of torch.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        known: Conditions,
        settings: Settings,
        asked: Asked,
        control: Controls,
        *,
        device: str,
    ) -> None:
        self._asked, self._settings, self._device, self._scale = asked, settings, device, checkpoint.scale
        conditions = asked.conditions
        self._index = np.stack([known.vocabularies[name].encode(conditions[name]) for name in COVARIATES])
        expectation = checkpoint.expectation(known)
        self._ahead = None
        if expectation is not None:
            names = list(zip(conditions["cell_type"].astype(str), conditions["assay_batch"].astype(str), strict=True))
            self._ahead = Ahead(
                expectation,
                self._index[0],
                names,
                control,
                asked.used,
                draws=asked.populations,
                n_cells=asked.n_cells,
                seed=asked.seed,
            )
        if checkpoint.recipe.control is None:  # trained without control cells: to it they express nothing
            control = control._replace(expression=sp.csr_matrix(control.expression.shape, dtype=np.float32))
        self._control = control
        self._denoiser = build_guided(settings.sampling, checkpoint.denoiser(known).to(device))
        self._per_batch = max(1, NUMBERS_AT_ONCE // (asked.m * len(checkpoint.genes)))

    def batches(self, chunks: Sequence[Chunk]) -> list[list[Chunk]]:
        """Minibatches of chunks of equal length, the longest first.

        Padding would change the numbers that a chunk's stream gives it.
        """
        order = sorted(chunks, key=lambda chunk: -len(chunk.rows))
        alike = (list(own) for _, own in groupby(order, key=lambda chunk: len(chunk.rows)))
        return [list(some) for own in alike for some in batched(own, self._per_batch)]

    def each(self, batches: Iterable[Sequence[Chunk]]) -> Iterator[tuple[Chunk, Made]]:
        """The chunks of minibatches, one after the other, with their cells."""
        for batch in batches:
            yield from zip(batch, self.of(batch), strict=True)

    def of(self, batch: Sequence[Chunk]) -> list[Made]:
        """The cells of one minibatch: those of each chunk, log1p counts per 10^4."""
        device, seed = self._device, self._asked.seed
        shape = (len(batch), len(batch[0].rows))
        labels = torch.from_numpy(self._index[:, [chunk.condition for chunk in batch]]).to(device)
        ahead = None if self._ahead is None else self._ahead.of([(c.condition, c.repeat) for c in batch])
        expression, totals = self._control.of(np.concatenate([chunk.rows for chunk in batch]))
        dense = torch.from_numpy(expression.toarray()).reshape(*shape, -1) / self._scale
        cells, after = build_sampler(self._settings)(
            self._denoiser,
            control=dense.to(device),
            condition=Condition(*labels),
            streams=[stream(seed, c.repeat, c.condition, c.number, device=device) for c in batch],
            # what the chunks of a population have in common
            shared=[stream(seed, c.repeat, c.condition, device=device) for c in batch],
            totals=None if totals is None else torch.from_numpy(totals).float().reshape(shape).to(device),
            expected=None if ahead is None else torch.from_numpy(ahead).to(device),
        )
        cells = (cells.clamp(min=0) * self._scale).float().cpu()
        sums = [None] * len(batch) if after is None else list(after.double().cpu().numpy())
        return [Made(sp.csr_matrix(own.numpy()), total) for own, total in zip(cells, sums, strict=True)]
