r"""What is expected of a label that training has not seen, as weights over those that it has (`core.shift`).

The weights are those of the strongest simple baselines, by what the label is made of:

* a set of members: the sum of its members (the additive baseline);
* an agent at a dose: between its neighbouring trained doses linear in log dose; above them the highest; below them the
  lowest, falling in proportion to the dose;
* an agent that training has seen in another modality m' only: the mean of the agents in its modality m, and its
  departure from that of m', times the ratio of such departures among agents that training has seen in both,

      S_m = mean_m + r (S_m' - mean_m'),   r = sum_a <d_a,m', d_a,m> / sum_a |d_a,m'|^2,   d = S - mean;

* an agent that training has not seen: ridge regression on the features of the agents that it has seen in that modality
  (`core.ridge`), each at that dose; without features their mean.

So that the network learns what such an expectation misses, training takes a share of its populations *as if* their
labels were new, with the weights that they would have without themselves.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perturbdiff.core.choices import PENALTIES
from perturbdiff.core.conditioning import Novelty
from perturbdiff.core.ridge import Ridge

type Weights = Tensor
"""Over the trained labels, the null's first; float64 [n + 1]."""

SMALLEST_POOL = 3
"""Agents that a regression without one of them must have."""


class Fit(NamedTuple):
    """What is fitted on the mean shifts of trained labels.

    Attributes:
        penalty: of the ridge regression, see `core.ridge`.
        ratios: r of (m', m), for modalities that share agents enough.
    """

    penalty: float = 1.0
    ratios: Mapping[tuple[int, int], float] = {}


NOTHING_FITTED = Fit()


class Part(NamedTuple):
    """A member as numbers: agent and modality, the logarithm of the dose to the base 10, its dimension (0: no dose)."""

    agent: int
    modality: int = 0
    dose: float = 0.0
    dimension: int = 0


type Parts = tuple[Part, ...]
type Kind = tuple[int, int]
"""Modality and dimension of the dose."""

type Held = tuple[tuple[int, ...], int, int, float]
"""A pool of agents, and the modality, dimension and dose that they are taken at."""


@dataclass(frozen=True, eq=False)
class Expectation:
    """The weights of labels.

    Attributes:
        parts: of each trained label, that of label k at place k - 1; () for the control.
        features: of every agent [agents, width]; None where no agent has any.
        featured: the agents that have features.
        fit: what was fitted.
    """

    parts: Sequence[Parts]
    features: Float[Tensor, "agents _"] | None = None
    featured: frozenset[int] = frozenset()
    fit: Fit = NOTHING_FITTED

    def table(
        self, asked: Sequence[Parts] = ()
    ) -> tuple[Float[Tensor, "novelties labels columns"], Int[Tensor, "novelties labels"]]:
        """The weights of the null, the trained labels and those that are `asked` besides, for each `Novelty`.

        Beside them the novelty that each label can be taken at: a trained label that cannot be taken as a new set is
        taken as one of new agents, or as known; and a label that is asked is as new as it is.
        """
        n = len(self.parts)
        weights = torch.zeros(len(Novelty), 1 + n + len(asked), n + 1)
        novelty = torch.full(weights.shape[:2], int(Novelty.KNOWN))
        weights[:, range(n + 1), range(n + 1)] = 1.0
        for label in range(1, n + 1):
            as_set, as_agents = self.as_new_set(label), self.as_new_agents(label)
            for novel, ways in ((Novelty.NEW_SET, (as_set, as_agents)), (Novelty.NEW_AGENT, (None, as_agents))):
                for taken, found in zip((Novelty.NEW_SET, Novelty.NEW_AGENT), ways, strict=True):
                    if found is not None:
                        weights[novel, label], novelty[novel, label] = found, int(taken)
                        break
        agents = {part.agent for parts in self.parts for part in parts}
        for i, parts in enumerate(asked, start=n + 1):
            weights[:, i] = self.of(parts)
            if parts not in self._sets:
                known = all(part.agent in agents for part in parts)
                novelty[:, i] = Novelty.NEW_SET if known else Novelty.NEW_AGENT
        return weights, novelty

    def of(self, parts: Parts, without: Collection[int] = ()) -> Weights:
        """The weights of a set, which training may have seen, or its members; `without` some trained labels perhaps."""
        weights = self._zeros()
        equal = [label for label in self._sets.get(parts, []) if label not in without]
        if equal:
            weights[equal] = 1 / len(equal)
            return weights
        for part in parts:
            series = self._series(part, without)
            if series:
                weights += self._between(series, part.dose)
                continue
            across = self._across(part, without)
            weights += self._unseen(part) if across is None else across
        return weights

    def as_new_set(self, label: int) -> Weights | None:
        """The weights of a trained label without itself, however spelt; None where an agent has nothing else."""
        parts = self.parts[label - 1]
        own = self._sets[parts]
        known = [bool(self._series(part, own)) or self._across(part, own) is not None for part in parts]
        return self.of(parts, own) if known and all(known) else None

    def as_new_agents(self, label: int) -> Weights | None:
        """The weights of a trained label as if its agents were known by features only; None where they have none.

        Each agent of a set is left out of its own regression, and of no other's.
        """
        weights = self._zeros()
        for part in self.parts[label - 1]:
            pool = self._pool((part.modality, part.dimension), featured=True)
            if part.agent not in pool or len(pool) < SMALLEST_POOL:
                return None
            weights += self._left_out(pool, part)[pool.index(part.agent)]
        return weights if self.parts[label - 1] else None

    def fitted(self, shifts: Float[Tensor, "columns genes"]) -> Fit:
        """The penalty that predicts left-out agents best, in squares of trained labels' `shifts`, and the ratios."""
        return Fit(self._best_penalty(shifts), self._ratios(shifts))

    def _ratios(self, shifts: Float[Tensor, "columns genes"]) -> dict[tuple[int, int], float]:
        found = {}
        for one, other in permutations(sorted(self._singles), 2):
            shared = sorted(self._singles[one].keys() & self._singles[other].keys())
            if one[1] != other[1] or len(shared) < SMALLEST_POOL:
                continue
            s, t = (self._departures(kind, shared, shifts) for kind in (one, other))
            if float(s.square().sum()) > 0:
                found[one[0], other[0]] = float((s * t).sum() / s.square().sum())
        return found

    def _departures(self, kind: Kind, agents: list[int], shifts: Tensor) -> Float[Tensor, "agents genes"]:
        """The mean shift of each agent over its doses, less that of all."""
        labels = [[k for own in self._singles[kind][agent].values() for k in own] for agent in agents]
        means = torch.stack([shifts[own].double().mean(dim=0) for own in labels])
        return means - means.mean(dim=0)

    def _across(self, part: Part, without: Collection[int]) -> Weights | None:
        """The weights of an agent that training has seen in another modality only; None where it has not."""
        for (other, modality), ratio in self.fit.ratios.items():
            there = part._replace(modality=other)
            series = self._series(there, without) if modality == part.modality else {}
            if series:
                own, others = (self._mean(one, part.agent) for one in (part, there))
                return own + ratio * (self._between(series, part.dose) - others)
        return None

    def _mean(self, part: Part, without: int) -> Weights:
        """The mean over the agents of a part's modality and kind of dose, `without` one, at its dose."""
        pool = tuple(a for a in self._pool((part.modality, part.dimension), featured=False) if a != without)
        return self._rows(pool, part).mean(dim=0) if pool else self._zeros()

    def _best_penalty(self, shifts: Float[Tensor, "columns genes"]) -> float:
        kinds: dict[Kind, set[float]] = {}
        for (part,) in (parts for parts in self.parts if len(parts) == 1):
            kinds.setdefault((part.modality, part.dimension), set()).add(part.dose)
        errors = dict.fromkeys(PENALTIES, 0.0)
        for kind, doses in kinds.items():
            pool = self._pool(kind, featured=True)
            if len(pool) < SMALLEST_POOL:
                continue
            for dose in doses:
                y = self._rows(pool, Part(0, kind[0], dose, kind[1])) @ shifts.double()
                for penalty in PENALTIES:
                    errors[penalty] += float((y - self._ridge(pool).left_out(penalty) @ y).square().sum())
        if not any(errors.values()):
            return self.fit.penalty
        return min(PENALTIES, key=lambda penalty: errors[penalty])

    def _zeros(self) -> Weights:
        return torch.zeros(len(self.parts) + 1, dtype=torch.float64)

    @cached_property
    def _sets(self) -> dict[Parts, list[int]]:
        """The trained labels of each set; several where one is spelt in several ways."""
        found: dict[Parts, list[int]] = {}
        for label, parts in enumerate(self.parts, start=1):
            found.setdefault(parts, []).append(label)
        return found

    @cached_property
    def _singles(self) -> dict[Kind, dict[int, dict[float, list[int]]]]:
        """The trained labels of one member, by kind, agent and dose."""
        found: dict[Kind, dict[int, dict[float, list[int]]]] = {}
        for label, parts in enumerate(self.parts, start=1):
            if len(parts) == 1:
                agent, modality, dose, dimension = parts[0]
                agents = found.setdefault((modality, dimension), {})
                agents.setdefault(agent, {}).setdefault(dose, []).append(label)
        return found

    def _series(self, part: Part, without: Collection[int] = ()) -> dict[float, list[int]]:
        """The trained doses of a part's agent, and their labels."""
        own = self._singles.get((part.modality, part.dimension), {}).get(part.agent, {})
        kept = {dose: [label for label in labels if label not in without] for dose, labels in own.items()}
        return {dose: labels for dose, labels in kept.items() if labels}

    def _between(self, series: dict[float, list[int]], dose: float) -> Weights:
        """The weights of an agent at a dose, among its doses."""
        doses = sorted(series)
        above = next((d for d in doses if d >= dose), None)
        below = next((d for d in reversed(doses) if d <= dose), None)
        if below is None:
            shares = {doses[0]: 10 ** (dose - doses[0])}
        elif above is None or above == below:
            shares = {below: 1.0}
        else:
            share = (dose - below) / (above - below)
            shares = {below: 1 - share, above: share}
        weights = self._zeros()
        for at, share in shares.items():
            weights[series[at]] += share / len(series[at])
        return weights

    def _unseen(self, part: Part) -> Weights:
        """The weights of an agent that training has not seen in this modality and kind of dose."""
        kind, featured = (part.modality, part.dimension), part.agent in self.featured
        pool = self._pool(kind, featured=featured) or self._pool(kind, featured=False)
        if not pool:
            return self._average(part.modality)
        shares = torch.full((len(pool),), 1 / len(pool), dtype=torch.float64)
        if featured and self.features is not None and self.featured.issuperset(pool):
            shares = self._ridge(pool).weights(self.features[part.agent].double(), self.fit.penalty)
        weights: Tensor = shares @ self._rows(pool, part)
        return weights

    def _average(self, modality: int) -> Weights:
        """The mean over trained sets of a modality, or of any, by a member's share of each."""
        sets = [(k, parts) for k, parts in enumerate(self.parts, start=1) if parts]
        alike = [(k, parts) for k, parts in sets if all(part.modality == modality for part in parts)] or sets
        weights = self._zeros()
        for label, parts in alike:
            weights[label] = 1 / (len(alike) * len(parts))
        return weights

    def _pool(self, kind: Kind, *, featured: bool) -> tuple[int, ...]:
        """The agents that training has seen by themselves, in a modality and kind of dose."""
        agents = sorted(self._singles.get(kind, {}))
        return tuple(agent for agent in agents if not featured or agent in self.featured)

    def _rows(self, pool: tuple[int, ...], part: Part) -> Float[Tensor, "agents columns"]:
        """The weights of each agent of a pool at the dose of a part."""
        key = (pool, part.modality, part.dimension, part.dose)
        if key not in self._held_rows:
            self._held_rows[key] = torch.stack(
                [self._between(self._series(part._replace(agent=agent)), part.dose) for agent in pool]
            )
        return self._held_rows[key]

    def _ridge(self, pool: tuple[int, ...]) -> Ridge:
        if pool not in self._held_ridges:
            if self.features is None:
                raise ValueError(f"{len(pool)} agents have no features to regress on; give them some.")
            self._held_ridges[pool] = Ridge(self.features[list(pool)].double())
        return self._held_ridges[pool]

    def _left_out(self, pool: tuple[int, ...], part: Part) -> Float[Tensor, "agents columns"]:
        """The weights of each agent of a pool at the dose of a part, without itself."""
        key = (pool, part.modality, part.dimension, part.dose)
        if key not in self._held_left_out:
            self._held_left_out[key] = self._ridge(pool).left_out(self.fit.penalty) @ self._rows(pool, part)
        return self._held_left_out[key]

    @cached_property
    def _held_rows(self) -> dict[Held, Tensor]:
        return {}

    @cached_property
    def _held_ridges(self) -> dict[tuple[int, ...], Ridge]:
        return {}

    @cached_property
    def _held_left_out(self) -> dict[Held, Tensor]:
        return {}
