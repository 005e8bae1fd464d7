"""Minibatches without end, a function of the step and of the process's rank: what makes a resumed run repeat another.

The populations of epoch 0, 1, 2, ... stand in one row; step s takes populations s B .. (s + 1) B - 1 of it, whatever
the epochs' borders. Of several processes each takes an equal share of every step's populations: sorted by where they
lie in the source, so that a process reads few blocks, and cut into as many parts as there are processes. All processes
together see what one process would, whatever their number.

While the minibatches of one slab are trained on, the next is read in the background.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from perturbdiff.core.population import PopulationBatch
from perturbdiff.populations.epochs import Draw, Slab
from perturbdiff.training.processes import Processes


class Epochs(Protocol):
    """What a stream draws from: `Populations`, or `MixedPopulations` of several sources."""

    def slabs(self, first: int = 0) -> Iterator[Slab]:
        """The slabs without end, from population `first` on."""
        ...

    def plan(self, epoch: int, at_most: int | None = None) -> list[Draw]:
        """The first populations of an epoch."""
        ...

    def load(self, draws: Sequence[Draw]) -> Any:  # noqa: ANN401 - each its own
        """Read the cells of some populations."""
        ...

    def batch(self, draws: Sequence[Draw], loaded: Any = None) -> PopulationBatch:  # noqa: ANN401 - what `load` gave
        """A minibatch of populations whose cells were read, or are read now."""
        ...


def check_share(per_batch: int, share: Processes) -> None:
    """Refuse steps that cannot be shared out.

    Raises:
        ValueError: the populations of a step are no multiple of the processes.
    """
    if per_batch % share.world:
        raise ValueError(
            f"populations_per_batch = {per_batch} cannot be shared out evenly among {share.world} processes; make it a "
            f"multiple of {share.world}."
        )


class PopulationStream(IterableDataset[PopulationBatch]):
    """The minibatches of steps first_step, first_step + 1, ...

    Args:
        populations: the training populations.
        per_batch: populations in one step, over all processes.
        first_step: the step to begin with.
        share: this process among those that share every step's populations out; one alone when absent.

    Raises:
        ValueError: the populations of a step cannot be shared out evenly.
    """

    def __init__(
        self, populations: Epochs, *, per_batch: int, first_step: int = 0, share: Processes | None = None
    ) -> None:
        self.populations = populations
        self.per_batch = per_batch
        self.first_step = first_step
        self.share = share or Processes()
        check_share(per_batch, self.share)

    def __iter__(self) -> Iterator[PopulationBatch]:
        """Yield without end."""
        waiting: list[tuple[list[Draw], Any]] = []
        for steps, loaded in self._read_ahead():
            for own in steps:
                waiting.append((own, loaded))
                draws = [draw for part, _ in waiting for draw in part]
                if len(draws) == self.per_batch // self.share.world:
                    yield self.populations.batch(draws, [read for _, read in waiting])
                    waiting = []

    def _read_ahead(self) -> Iterator[tuple[list[list[Draw]], Any]]:
        """This process's part of each slab, step by step, and its cells; the next is read meanwhile."""
        slabs = self.populations.slabs(self.first_step * self.per_batch)

        def read() -> tuple[list[list[Draw]], Any]:
            while True:
                own = shared_out(next(slabs), self.per_batch, self.share)
                if own:
                    return own, self.populations.load([draw for draws in own for draw in draws])

        with ThreadPoolExecutor(1, thread_name_prefix="populations") as background:
            ahead: Future[tuple[list[list[Draw]], Any]] = background.submit(read)
            while True:
                here = ahead.result()
                ahead = background.submit(read)
                yield here


def shared_out(slab: Slab, per_batch: int, share: Processes) -> list[list[Draw]]:
    """A process's populations of a slab, one list for each step that it has a part in.

    A step may begin in the slab before: its populations there come first, whatever their places.
    """
    begun, part = slab.first % per_batch, per_batch // share.world
    own = []
    for start in range(-begun, len(slab.draws), per_batch):
        step = sorted(
            slab.draws[max(0, start) : start + per_batch], key=lambda draw: (draw.source, int(draw.rows.min()))
        )
        taken = begun if start < 0 else 0
        mine = step[max(0, share.rank * part - taken) : max(0, (share.rank + 1) * part - taken)]
        if mine:
            own.append(mine)
    return own


class ValidationBatch(NamedTuple):
    """A minibatch of validation, and which (perturbation, cell type, assay batch) each population is a sample of."""

    batch: PopulationBatch
    groups: Int[Tensor, "batch 3"]


class FixedPopulations(Dataset[ValidationBatch]):
    """The same minibatches each time they are asked for: up to `at_most` populations of the first epoch's plan."""

    def __init__(self, populations: Epochs, *, per_batch: int, at_most: int) -> None:
        plan = populations.plan(0, at_most)
        minibatches = [plan[i : i + per_batch] for i in range(0, len(plan), per_batch)]
        self.batches = [
            ValidationBatch(populations.batch(draws), torch.tensor([draw.group for draw in draws]))
            for draws in minibatches
        ]

    def __len__(self) -> int:
        """Count the minibatches."""
        return len(self.batches)

    def __getitem__(self, i: int) -> ValidationBatch:
        """Minibatch i."""
        return self.batches[i]
