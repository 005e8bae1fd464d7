"""What validations decide: when a training that finds nothing better ends, and whether what it found is better.

Let the best validation be that of step b. It ends at a validation after step s where ``s - b >= max(p v, b)``, with
p the patience in validations and v the steps between two of them: p validations in a row were no better, and they took
as long as the best one. So what is slow to improve is given time in proportion, and the rule does not depend on
max_steps. The learning rate falls with max_steps, so a training that ends by patience may never have lowered it.

The weights of step 0 give what is expected, which is a strong prediction. Others take their place where the validation
energy is lower by more than chance would have it: the mean over units of the difference from step 0, population by
population, is below 0 by more than its standard error. Populations of one perturbation are no independent witnesses
where several perturbations validate, and what helps one of them may harm others: the units are perturbations where
there are three or more, else cell types, else assay batches, else populations. Fewer than three units prove nothing.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

FEWEST = 3
"""Units that prove something."""


class Energies(NamedTuple):
    """The energy distances of a validation.

    Attributes:
        groups: of each judged group (perturbation, cell type, assay batch), all its cells at once.
        populations: of each population of two cells and more, in their order.
        keys: the group of each population; none where they are the units.
    """

    groups: Mapping[tuple[int, ...], float]
    populations: Sequence[float]
    keys: Sequence[tuple[int, ...]] = ()

    @property
    def mean(self) -> float:
        """The mean over assay batches of each (perturbation, cell type), then over these, as in an evaluation."""
        conditions = defaultdict(list)
        for (*condition, _), energy in self.groups.items():
            conditions[tuple(condition)].append(energy)
        return statistics.fmean(statistics.fmean(own) for own in conditions.values())


def proven(energies: Energies, start: Sequence[float]) -> bool:
    """Whether energies are below those of the start's populations by more than the standard error of the difference."""
    units = defaultdict(list)
    for unit, here, there in zip(_units(energies), energies.populations, start, strict=True):
        units[unit].append(here - there)
    apart = [statistics.fmean(own) for own in units.values()]
    if len(apart) < FEWEST:
        return False
    return statistics.fmean(apart) + statistics.stdev(apart) / math.sqrt(len(apart)) < 0


def _units(energies: Energies) -> Sequence[int]:
    """The unit of each population: a label of its group, or its own number."""
    for labels in zip(*energies.keys, strict=True):
        if len(set(labels)) >= FEWEST:
            return labels
    return range(len(energies.populations))


class Patience:
    """The validations of a training, as a resumed run knows them too.

    Only those of every v-th step count: a signal is followed by one more, which an undisturbed run does not have.

    Args:
        validations: p; 0 for a training that goes on to its last step.
        every: v.
    """

    def __init__(self, validations: int, every: int) -> None:
        self.validations = validations
        self.every = every
        self.best = math.inf
        self.best_step = self.last_step = 0

    def see(self, step: int, energy: float) -> None:
        """Take note of a validation."""
        if step % self.every:
            return
        self.last_step = step
        if energy < self.best:
            self.best, self.best_step = energy, step

    @property
    def is_over(self) -> bool:
        """Whether training ends with the last validation."""
        waited = self.last_step - self.best_step
        return self.validations > 0 and waited >= max(self.validations * self.every, self.best_step)

    def sentence(self, max_steps: int) -> str:
        """What a user is told of it."""
        return (
            f"training ended at step {self.last_step} of {max_steps}: no validation has been better since step "
            f"{self.best_step} (training.patience = {self.validations}; 0 trains on to the last step)."
        )

    def state_dict(self) -> dict[str, Any]:
        """The validations so far, for resuming."""
        return {"best": self.best, "best_step": self.best_step, "last_step": self.last_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The validations so far, when resuming."""
        self.best, self.best_step, self.last_step = state["best"], state["best_step"], state["last_step"]
