"""Minibatches without end, a function of the step: what makes a resumed run repeat an undisturbed one.

The populations of epoch 0, 1, 2, ... stand in one row; step s takes populations s B .. (s + 1) B - 1 of it, whatever
the epochs' borders.
"""

from collections.abc import Iterator

from torch.utils.data import Dataset, IterableDataset

from perturbdiff.core.population import PopulationBatch
from perturbdiff.data.populations import Draw, Populations


class PopulationStream(IterableDataset[PopulationBatch]):
    """The minibatches of steps first_step, first_step + 1, ...

    Args:
        populations: the training populations.
        per_batch: populations in one step.
        first_step: the step to begin with.
    """

    def __init__(self, populations: Populations, *, per_batch: int, first_step: int = 0) -> None:
        self.populations = populations
        self.per_batch = per_batch
        self.first_step = first_step

    def __iter__(self) -> Iterator[PopulationBatch]:
        """Yield without end."""
        epoch, skipped = divmod(self.first_step * self.per_batch, len(self.populations))
        waiting: list[Draw] = self.populations.plan(epoch)[skipped:]
        while True:
            while len(waiting) < self.per_batch:
                epoch += 1
                waiting += self.populations.plan(epoch)
            yield self.populations.batch(waiting[: self.per_batch])
            waiting = waiting[self.per_batch :]


class FixedPopulations(Dataset[PopulationBatch]):
    """The same minibatches each time they are asked for: up to `at_most` populations of the first epoch's plan."""

    def __init__(self, populations: Populations, *, per_batch: int, at_most: int) -> None:
        plan = populations.plan(0)[:at_most]
        self.batches = [populations.batch(plan[i : i + per_batch]) for i in range(0, len(plan), per_batch)]

    def __len__(self) -> int:
        """Count the minibatches."""
        return len(self.batches)

    def __getitem__(self, i: int) -> PopulationBatch:
        """Minibatch i."""
        return self.batches[i]
