"""Whether trained weights are better than those that training began with, by the energies of its validations.

The weights of step 0 give what is expected, which is a strong prediction. Others take their place where the validation
energy is lower by more than chance would have it: the mean over the judged groups of the difference from step 0, group
by group, is below 0 by more than its standard error. Of one group there is no standard error, and the mean decides.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping

type Energies = Mapping[tuple[int, ...], float]
"""The energy distance of each judged group (perturbation, cell type, assay batch)."""


def mean_energy(energies: Energies) -> float:
    """The mean over assay batches of each (perturbation, cell type) first, then over these, as in an evaluation."""
    conditions = defaultdict(list)
    for (*condition, _), energy in energies.items():
        conditions[tuple(condition)].append(energy)
    return statistics.fmean(statistics.fmean(own) for own in conditions.values())


def proven(energies: Energies, start: Energies) -> bool:
    """Whether these energies are below those of the start by more than the standard error of the difference."""
    apart = [energies[group] - start[group] for group in energies if group in start]
    if not apart:
        return True
    error = statistics.stdev(apart) / math.sqrt(len(apart)) if len(apart) > 1 else 0.0
    return statistics.fmean(apart) + error < 0
