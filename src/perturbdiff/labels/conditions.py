"""What a model can be asked: its labels, what each is made of, and the features that stand for labels it has not seen.

Of each covariate a model knows the labels that training has seen. Of labels that it has not seen it can be asked

* a perturbation whose agents training has seen, or that have features, in a modality and kind of dose that it has seen;
* a cell type or an assay batch that has features; one that has none takes the trained null.

Everything else is an error that names the nearest known label. Agents and labels are numbered in an order of their own:
those that training has seen first, sorted as text, then those that have features only, sorted too.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from perturbdiff.core.choices import COVARIATES
from perturbdiff.core.conditioning import Covariate, Members
from perturbdiff.core.expectation import NOTHING_FITTED, Expectation, Fit, Part, Parts
from perturbdiff.features.tables import FeatureTable
from perturbdiff.labels.dose import Quantity
from perturbdiff.labels.members import Member, is_plain, members_of
from perturbdiff.labels.vocabulary import Vocabulary
from perturbdiff.recipes.dataset import Grammar
from perturbdiff.spelling import nearest

NARROWEST = 0.5
"""The least spread of log10 doses that they are divided by: a threefold range."""

PERTURBATION = COVARIATES[0]


@dataclass(frozen=True, eq=False)
class Conditions:
    """The labels of a model.

    Attributes:
        trained: labels that training has seen, by covariate.
        grammar: what labels of perturbation are made of.
        control: label of the control cells; None where no cell is perturbed.
        features: of agents (perturbation) or labels, by covariate; the covariates that have some.
        learned: the covariates whose labels with features have learned vectors too.
        fit: of what is expected of unseen perturbations, see `core.expectation`.
        asked: labels of perturbation that training has not seen.
    """

    trained: Mapping[str, Vocabulary]
    grammar: Grammar = field(default_factory=Grammar)
    control: str | None = None
    features: Mapping[str, FeatureTable] = field(default_factory=dict)
    learned: frozenset[str] = frozenset(COVARIATES)
    fit: Fit = NOTHING_FITTED
    asked: tuple[str, ...] = ()

    def asking(self, labels: Iterable[str]) -> "Conditions":
        """With labels of perturbation that may be new.

        Raises:
            ValueError: a label is neither known nor made of what is known.
        """
        known = {"", *self._trained_labels, *self.asked}
        new = [label for label in dict.fromkeys(labels) if label not in known]
        for label in new:
            self.check(label)
        return replace(self, asked=(*self.asked, *new))

    def check(self, label: str) -> None:
        """Refuse a label of perturbation that cannot be predicted.

        Raises:
            ValueError: it cannot be read, or an agent, a modality or a kind of dose is unknown.
        """
        if label == "" or label in self._trained_labels:
            return
        for member in members_of(label, self.grammar, self.control):
            if member.agent not in self._place:
                raise ValueError(self._unknown(label, member.agent))
            if (member.modality or self.modalities) and member.modality not in self._known_modalities:
                raise ValueError(
                    f"perturbation {label!r} has {_named(member.modality)}, which training has not seen; "
                    f"{nearest(member.modality, self.modalities)}."
                )
            dimension = "" if member.dose is None else member.dose.dimension
            if dimension not in self._known_dimensions:
                raise ValueError(self._wrong_dose(label, dimension))

    def _unknown(self, label: str, agent: str) -> str:
        vocabulary, agents = self.trained[PERTURBATION], [agent for agent in self.agents if agent != self.control]
        what = f"perturbation {label!r}" if agent == label else f"perturbation {label!r} has the agent {agent!r}, which"
        return (
            f"{what} is not one of the {len(vocabulary)} labels known here"
            + (", and no features stand for it; " if PERTURBATION in self.features else "; ")
            + f"{nearest(agent, agents)}"
            + (
                ", or give features of it."
                if agent != label or PERTURBATION in self.features
                else ", and the empty label stands for the trained null."
            )
        )

    def _wrong_dose(self, label: str, dimension: str) -> str:
        known = ", ".join(sorted(self._known_dimensions - {""}))
        if not dimension:
            return (
                f"perturbation {label!r} has no dose, and training has seen perturbations at doses only (in {known}); "
                "give a dose and its unit."
            )
        if not known:
            return f"perturbation {label!r} has a dose, and training has seen none; leave the dose out."
        return (
            f"perturbation {label!r} has a dose in {dimension}, and training has seen doses in {known} only, which are "
            "not converted into each other; give the dose in these."
        )

    @cached_property
    def vocabularies(self) -> dict[str, Vocabulary]:
        """Labels as the network's indices: those that training has seen, then others that it can be asked.

        A cell type or an assay batch that is none of them is the null; a perturbation is not.
        """
        found = {}
        for name in COVARIATES:
            trained = self.trained[name].labels
            if name == PERTURBATION:
                found[name] = Vocabulary(name, (*trained, *self.asked))
            else:
                found[name] = Vocabulary(name, self._with_featured(name, trained), others_are_null=True)
        return found

    @cached_property
    def compositions(self) -> tuple[tuple[Member, ...], ...]:
        """The members of every label of perturbation, trained and asked; the control is the one member of itself."""
        labels = self.vocabularies[PERTURBATION].labels
        found = [members_of(label, self.grammar, self.control) for label in labels]
        return tuple(members or (Member(self.control or ""),) for members in found)

    @property
    def _trained_members(self) -> Sequence[tuple[Member, ...]]:
        return self.compositions[: len(self.trained[PERTURBATION])]

    @cached_property
    def trained_agents(self) -> tuple[str, ...]:
        """The agents of trained perturbations, the control's label among them where control cells train."""
        if is_plain(self.grammar):
            return self.trained[PERTURBATION].labels
        return tuple(sorted({member.agent for members in self._trained_members for member in members}))

    @cached_property
    def agents(self) -> tuple[str, ...]:
        """All agents, those that training has seen first."""
        return self._with_featured(PERTURBATION, self.trained_agents)

    def _with_featured(self, name: str, trained: tuple[str, ...]) -> tuple[str, ...]:
        """Labels that training has seen, then those that have features only."""
        seen = {*trained}
        others = self.features[name].labels if name in self.features else ()
        return (*trained, *(label for label in others if label not in seen))

    @cached_property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that training has seen."""
        return tuple(sorted(self._known_modalities - {""}))

    @cached_property
    def dimensions(self) -> tuple[str, ...]:
        """The dimensions of trained doses."""
        return tuple(sorted(self._known_dimensions - {""}))

    @cached_property
    def doses(self) -> dict[str, list[Quantity]]:
        """The doses of each agent that training has seen, ascending."""
        found: dict[str, set[Quantity]] = {}
        for members in self._trained_members:
            for member in members:
                if member.dose is not None:
                    found.setdefault(member.agent, set()).add(member.dose)
        return {agent: sorted(doses, key=lambda dose: (dose.dimension, dose.amount)) for agent, doses in found.items()}

    @cached_property
    def _perturbed(self) -> list[Member]:
        return [member for members in self._trained_members for member in members if member.agent != self.control]

    @cached_property
    def _known_modalities(self) -> set[str]:
        return {member.modality for member in self._perturbed} or {""}

    @cached_property
    def _known_dimensions(self) -> set[str]:
        return {"" if member.dose is None else member.dose.dimension for member in self._perturbed} or {""}

    @cached_property
    def _trained_labels(self) -> frozenset[str]:
        return frozenset(self.trained[PERTURBATION].labels)

    @cached_property
    def _place(self) -> dict[str, int]:
        return {agent: i for i, agent in enumerate(self.agents, start=1)}

    @property
    def is_plain(self) -> bool:
        """Whether a perturbation is a learned vector and no more."""
        return is_plain(self.grammar) and PERTURBATION not in self.features

    def covariates(self) -> tuple[Covariate, Covariate, Covariate]:
        """What core needs to encode labels."""
        others = [
            self._featured(name, self.vocabularies[name].labels, self.trained[name].labels) for name in COVARIATES[1:]
        ]
        first = self._agents
        if not self.is_plain:
            first = replace(
                first,
                members=self._members(),
                n_modalities=len(self.modalities),
                novelty=self._expected[1],
            )
        return first, others[0], others[1]

    @property
    def weights(self) -> Tensor | None:
        """Of each label at each novelty over the trained labels, see `core.expectation`; None where each is its own."""
        return None if self.is_plain else self._expected[0]

    def fitted(self, shifts: Tensor) -> "Conditions":
        """With what fits the trained labels' mean shifts [labels + 1, genes] best."""
        return self if self.is_plain else replace(self, fit=self.expectation.fitted(shifts))

    @cached_property
    def expectation(self) -> Expectation:
        """The weights of labels that training has not seen."""
        trained = len(self.trained[PERTURBATION])
        known = self._agents
        has = () if known.has_features is None else known.has_features.nonzero().flatten().tolist()
        return Expectation(self._parts[:trained], known.features, frozenset(has), self.fit)

    @cached_property
    def _agents(self) -> Covariate:
        """The agents, with their features."""
        return self._featured(PERTURBATION, self.agents, self.trained_agents)

    @cached_property
    def _expected(self) -> tuple[Tensor, Tensor]:
        return self.expectation.table(self._parts[len(self.trained[PERTURBATION]) :])

    @cached_property
    def _parts(self) -> tuple[Parts, ...]:
        """The members of every label as numbers; the control has none."""
        return tuple(
            tuple(self._part(member) for member in members if member.agent != self.control)
            for members in self.compositions
        )

    def _part(self, member: Member) -> Part:
        agent, modality = self._place[member.agent], _index(member.modality, self.modalities)
        if member.dose is None:
            return Part(agent, modality)
        return Part(agent, modality, math.log10(member.dose.amount), _index(member.dose.dimension, self.dimensions))

    def _members(self) -> Members:
        """The members of the null and every label as tensors."""
        rows = [(Member(""),), *self.compositions]
        shape = (len(rows), max(map(len, rows)))
        agent, modality = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
        exists = torch.zeros(shape, dtype=torch.bool)
        dose = torch.zeros(*shape, len(self.dimensions) and 1 + len(self.dimensions))
        for i, members in enumerate(rows):
            for j, member in enumerate(members):
                agent[i, j] = self._place.get(member.agent, 0)
                modality[i, j] = _index(member.modality, self.modalities)
                exists[i, j] = True
                if member.dose is not None:
                    dose[i, j, 0] = self._scaled(member.dose)
                    dose[i, j, _index(member.dose.dimension, self.dimensions)] = 1.0
        return Members(agent, modality, dose, exists)

    @cached_property
    def _log_doses(self) -> dict[str, tuple[float, float]]:
        """The centre and spread of trained log10 doses, by dimension."""
        logs: dict[str, set[float]] = {}
        for member in self._perturbed:
            if member.dose is not None:
                logs.setdefault(member.dose.dimension, set()).add(math.log10(member.dose.amount))
        ordered = {dimension: sorted(values) for dimension, values in logs.items()}
        return {d: (float(np.mean(values)), max(float(np.std(values)), NARROWEST)) for d, values in ordered.items()}

    def _scaled(self, dose: Quantity) -> float:
        """The logarithm of a dose against those of training in its dimension."""
        centre, spread = self._log_doses[dose.dimension]
        return (math.log10(dose.amount) - centre) / spread

    def _featured(self, name: str, labels: Sequence[str], trained: Sequence[str]) -> Covariate:
        """A covariate whose labels may have features, centred on those of training and of unit mean square there."""
        if name not in self.features:
            return Covariate(len(trained))
        table = self.features[name]
        absent = {*table.missing(labels)}
        there = np.array([False, *(label not in absent for label in labels)])
        values = np.zeros((1 + len(labels), table.width), dtype=np.float64)
        values[there] = table.rows([label for label in labels if label not in absent])
        seen = values[: 1 + len(trained)][there[: 1 + len(trained)]]
        if len(seen):
            values[there] -= seen.mean(axis=0)
            values[there] /= np.sqrt(np.square(seen - seen.mean(axis=0)).mean()) or 1.0
        return Covariate(
            len(trained),
            features=torch.from_numpy(values).float(),
            has_features=torch.from_numpy(there),
            learned=name in self.learned,
        )


def _index(label: str, known: Sequence[str]) -> int:
    """Its place + 1; 0 for the empty label."""
    return known.index(label) + 1 if label else 0


def _named(modality: str) -> str:
    return f"the modality {modality!r}" if modality else "no modality"
