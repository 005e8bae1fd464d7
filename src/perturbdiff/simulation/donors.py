"""How the donors of a simulated screen differ by what nobody observes."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from perturbdiff.simulation.design import Floats

TOLD, N_TOLD = 0.3, 10
"""How far a donor's own genes are moved by what its cells tell, and how many."""

type Hidden = Literal["strength", "two programmes", "two kinds"]
"""What is hidden of donors."""


@dataclass(frozen=True)
class Donors:
    """How donors differ in the interaction setting by what nobody observes: the law of log eta.

    Attributes:
        sd: the standard deviation of log eta.
        hidden: "strength": one normal log eta for a donor and perturbation; "two programmes": one for the genes of the
            shared pathway and another for the others; "two kinds": log eta is sd or -sd, of responders and
            non-responders.
        told: the share of the variance of log eta that is one number u of the donor, for all perturbations, which its
            cells tell: 10 common genes are higher or lower by 0.3 u, with or without a perturbation.
    """

    sd: float = 0.15
    hidden: Hidden = "strength"
    told: float = 0.0

    def check(self) -> None:
        """Refuse what is no law.

        Raises:
            ValueError: for a spread below 0, a share that is none, or an unknown kind.
        """
        if not (np.isfinite(self.sd) and self.sd >= 0):
            raise ValueError(f"sd={self.sd} is a standard deviation and must be at least 0; give 0 for equal donors.")
        if not 0 <= self.told <= 1:
            raise ValueError(f"told={self.told} is a share of variance and must lie between 0 and 1; give 0 for none.")
        if self.hidden not in get_args(Hidden.__value__):
            raise ValueError(
                f"hidden={self.hidden!r} is unknown; choose of {', '.join(map(repr, get_args(Hidden.__value__)))}."
            )


LIKE_DONORS = Donors()
"""Donors that differ by a sixth."""


def draw_eta(donors: Donors, n_batches: int, n_perturbations: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Draw eta [donors, perturbations, 2], and u [donors]; 0 where cells tell nothing."""
    first = rng.normal(0.0, 1.0, (n_batches, n_perturbations))
    second, u = first, np.zeros(n_batches)
    if donors.hidden == "two programmes":
        second = rng.normal(0.0, 1.0, (n_batches, n_perturbations))
    if donors.hidden == "two kinds":
        first = second = np.sign(first)
    both = np.stack([first, second], axis=-1)
    if donors.told > 0:
        u = rng.normal(0.0, 1.0, n_batches)
        both = np.sqrt(1 - donors.told) * both + np.sqrt(donors.told) * u[:, None, None]
    eta: Floats = np.exp(donors.sd * both)
    return eta, u
