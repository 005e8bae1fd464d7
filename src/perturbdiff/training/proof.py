"""Whether trained weights are better than those that training began with, by the energies of its validations.

The weights of step 0 give what is expected, which is a strong prediction. Others take their place where the validation
energy is lower by more than chance would have it: the mean over the validation's populations of the difference from
step 0, population by population, is below 0 by more than its standard error. Fewer than three populations prove
nothing.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

FEWEST = 3
"""Populations that prove something."""


class Energies(NamedTuple):
    """The energy distances of a validation.

    Attributes:
        groups: of each judged group (perturbation, cell type, assay batch), all its cells at once.
        populations: of each population of two cells and more, in their order.
    """

    groups: Mapping[tuple[int, ...], float]
    populations: Sequence[float]

    @property
    def mean(self) -> float:
        """The mean over assay batches of each (perturbation, cell type), then over these, as in an evaluation."""
        conditions = defaultdict(list)
        for (*condition, _), energy in self.groups.items():
            conditions[tuple(condition)].append(energy)
        return statistics.fmean(statistics.fmean(own) for own in conditions.values())


def proven(populations: Sequence[float], start: Sequence[float]) -> bool:
    """Whether these energies are below those of the start by more than the standard error of the difference."""
    apart = [here - there for here, there in zip(populations, start, strict=True)]
    if len(apart) < FEWEST:
        return False
    return statistics.fmean(apart) + statistics.stdev(apart) / math.sqrt(len(apart)) < 0
