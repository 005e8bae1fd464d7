r"""The sum of what the members of a perturbation do alone.

    shift({a, b, ...}, c) = sum over members of shift({a}, c)

with shift({a}, c) measured in cell type c, else its mean over the cell types in which training has member a alone (an
agent with its modality and dose, see `labels.members`). A member that training has never seen alone leaves the
condition out. The combination itself, where training has it, is not used.
"""

import numpy as np

from perturbdiff.baselines.predictor import Response, Training
from perturbdiff.baselines.pseudobulk import Vector
from perturbdiff.labels.members import Member


class Additive(Response):
    """The sum of the members' own shifts."""

    def __init__(self, training: Training) -> None:
        self._training = training
        rows: dict[Member, list[int]] = {}
        for i, (perturbation, _) in enumerate(training.bulks.conditions):
            members = training.members(perturbation)
            if len(members) == 1:
                rows.setdefault(members[0], []).append(i)
        self._rows = rows

    def refusal(self, perturbation: str, cell_type: str) -> str:  # noqa: ARG002 - any cell type will do
        """The members that training has not seen alone."""
        absent = [member for member in self._training.members(perturbation) if member not in self._rows]
        if not absent:
            return ""
        alone = " and ".join(written(member) for member in absent)
        return f"training has no cells of {alone} alone"

    def shift(self, perturbation: str, cell_type: str, given: Vector) -> Vector:  # noqa: ARG002 - not of the cells
        """The sum over members [genes]."""
        bulks = self._training.bulks
        total = np.zeros(len(bulks.genes))
        for member in self._training.members(perturbation):
            own = self._rows[member]
            here = [i for i in own if bulks.conditions[i][1] == cell_type]
            total += bulks.average(np.array(here or own, dtype=np.int64))
        return total


def written(member: Member) -> str:
    """A member as a sentence shows it: 'KLF1', 'KLF1' by 'CRISPRa', 'drug' at 500 nM."""
    agent, modality, dose = member
    text = repr(agent) + (f" by {modality!r}" if modality else "")
    return text if dose is None else f"{text} at {dose.amount:g} {dose.dimension}"
