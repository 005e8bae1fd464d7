r"""Labels to one vector a population, with a trained null for what is unknown, absent or dropped.

Each covariate (perturbation, cell type, assay batch) is encoded by a table whose row 0 is its null. Label l is row

    e(l) = u_l + P f_l

u a learned vector and P a learned projection of features f that are given and stay as they are; either may be absent. A
label that training has not seen has no u, and can be encoded where it has features.

A perturbation may be a set of members (agent a, modality k, dose d), any number of them. Each is encoded by

    v(a, k, d) = e(a) (1 + s) + b,      (s, b) = MLP[q_k, z(d)]

with q_k a learned vector of the modality and z(d) the logarithm of the dose with its unit's dimension, so that one
agent under two modalities or at two doses shares e(a); the vector of the set is the sum of v over its members. The
control perturbation is an agent with a vector of its own.

To what extent training knows a perturbation is told to the network by a learned vector, one for each `Novelty`; a
population that is to be seen as if its label were new is encoded without the learned u of its agents.

The vectors of the covariates are concatenated, mixed by a linear map, and passed through SiLU and a second linear map
to the width of the network. Where conditions are dropped, `null` says what stands in for them:

* ``"covariate"``: each covariate has its own coin and its own null, so that an unknown donor or cell type means
  something.
* ``"joint"``: the release's way. One trained vector replaces the whole condition when all covariates are dropped at
  once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from perturbdiff.core.choices import Null
from perturbdiff.core.population import NULL, Condition


class Novelty(IntEnum):
    """To what extent training knows a label."""

    KNOWN = 0
    NEW_SET = 1
    """Its agents are known, but not together, in this modality or at this dose."""
    NEW_AGENT = 2
    """One of its agents is known by features only."""


class Members(NamedTuple):
    """The members of every label of perturbation, a row a label; row 0, the null, has the one member 0.

    Attributes:
        agent: rows of the table of agents.
        modality: 0 for none.
        dose: the logarithm of the dose, centred and scaled, and a one for its dimension; zeros without a dose.
        exists: false where a label has fewer members than there are columns.
    """

    agent: Int[Tensor, "labels members"]
    modality: Int[Tensor, "labels members"]
    dose: Float[Tensor, "labels members _"]
    exists: Bool[Tensor, "labels members"]


@dataclass(frozen=True, eq=False)
class Covariate:
    """What the labels of a covariate are, as tensors; a bare number of labels is a covariate of learned vectors.

    Attributes:
        n_trained: labels (of perturbation: agents) that training has seen, nulls not counted; they come first.
        features: [all labels + 1, width of the features], row 0 the null's; rows of zeros where there are none.
        has_features: which rows have features [all labels + 1].
        learned: whether labels with features have a learned vector too.
        members: of each label of perturbation; None where label i is agent i.
        n_modalities: that training has seen.
        novelty: for each `Novelty` that a label of perturbation is asked to be taken at, the one that it can be taken
            at [novelties, labels + 1]: a label that training has not seen is never known, and the null always is; None
            where all are known.
    """

    n_trained: int
    features: Float[Tensor, "rows _"] | None = None
    has_features: Bool[Tensor, " rows"] | None = None
    learned: bool = True
    members: Members | None = None
    n_modalities: int = 0
    novelty: Int[Tensor, "novelties labels"] | None = None


class Encoder(nn.Embedding):
    """Row -> u + P f; the weight holds u."""

    def __init__(self, covariate: Covariate, width: int) -> None:
        super().__init__(covariate.n_trained + 1, width)
        self.features: Tensor | None
        self.has_features: Tensor
        self.register_buffer("features", covariate.features, persistent=False)
        self.projection: nn.Linear | None = None
        if covariate.features is None or covariate.has_features is None:
            return
        self.register_buffer("has_features", covariate.has_features, persistent=False)
        self.learned = covariate.learned
        self.projection = nn.Linear(covariate.features.shape[1], width, bias=False)
        with torch.no_grad():
            # what features say comes first; a label's own vector is what they do not
            self.weight[self.has_features[: len(self.weight)]] = 0.0

    def forward(
        self, index: Int[Tensor, "*rows"], as_new: Bool[Tensor, "*rows"] | None = None
    ) -> Float[Tensor, "*rows width"]:
        """The vectors of some rows; those that are `as_new` without u, where they have features."""
        if self.projection is None or self.features is None:
            rows: Tensor = super().forward(index)
            return rows
        featured = self.has_features[index]
        without = featured if not self.learned else index >= len(self.weight)
        if as_new is not None:
            without = without | (as_new & featured)
        own: Tensor = super().forward(index.masked_fill(index >= len(self.weight), NULL))
        given: Tensor = self.projection(self.features[index].to(own.dtype))
        return own.masked_fill(without.unsqueeze(-1), 0.0) + given


class MemberEncoder(nn.Module):
    """(vector of the agent, modality, dose) -> v."""

    def __init__(self, n_modalities: int, dose_width: int, width: int) -> None:
        super().__init__()
        self.modality = nn.Embedding(n_modalities + 1, width) if n_modalities else None
        self.up = nn.Linear(dose_width + (width if n_modalities else 0), width)
        self.down = nn.Linear(width, 2 * width)

    def forward(
        self,
        agent: Float[Tensor, "batch members width"],
        modality: Int[Tensor, "batch members"],
        dose: Float[Tensor, "batch members _"],
    ) -> Float[Tensor, "batch members width"]:
        given = [dose.to(agent.dtype)] if self.modality is None else [dose.to(agent.dtype), self.modality(modality)]
        s, b = self.down(nn.functional.silu(self.up(torch.cat(given, dim=-1)))).chunk(2, dim=-1)
        changed: Tensor = agent * (1 + s) + b
        return changed


class SetEncoder(nn.Module):
    """Label of perturbation -> the sum of v over its members; the null and the control are themselves."""

    def __init__(self, covariate: Covariate, members: Members, width: int) -> None:
        super().__init__()
        self.agents = Encoder(covariate, width)
        dose_width = members.dose.shape[-1]
        some = covariate.n_modalities + dose_width > 0
        self.member = MemberEncoder(covariate.n_modalities, dose_width, width) if some else None
        self.agent: Tensor
        self.modality: Tensor
        self.dose: Tensor
        self.exists: Tensor
        for name, value in members._asdict().items():
            self.register_buffer(name, value, persistent=False)

    def forward(
        self, label: Int[Tensor, " batch"], as_new: Bool[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch width"]:
        """The vectors of some labels."""
        agent = self.agent[label]
        v = self.agents(agent, None if as_new is None else as_new.unsqueeze(-1).expand(agent.shape))
        if self.member is not None:
            modality, dose = self.modality[label], self.dose[label]
            plain = (modality == 0) & (dose == 0).all(dim=-1)
            v = torch.where(plain.unsqueeze(-1), v, self.member(v, modality, dose))
        total: Tensor = (v * self.exists[label].unsqueeze(-1)).sum(dim=1)
        return total


class Conditioning(nn.Module):
    """Condition -> vector of the network's width.

    Args:
        covariates: what is known of each covariate, or the number of its labels, in the order of `Condition`.
        width: of the network.
        embedding_width: of each covariate's vector.
        mixed_width: of the mixed covariates, before SiLU; the network's width when not given.
        null: what stands in for dropped covariates.
    """

    def __init__(
        self,
        covariates: Sequence[int | Covariate],
        *,
        width: int,
        embedding_width: int,
        mixed_width: int | None = None,
        null: Null = "covariate",
    ) -> None:
        super().__init__()
        mixed_width = mixed_width or width
        known = [Covariate(one) if isinstance(one, int) else one for one in covariates]
        self.tables = nn.ModuleList(
            Encoder(one, embedding_width) if one.members is None else SetEncoder(one, one.members, embedding_width)
            for one in known
        )
        first = known[0]
        self.n_perturbations = first.n_trained if first.members is None else len(first.members.agent) - 1
        self.novelty: Tensor | None
        self.register_buffer("novelty", first.novelty, persistent=False)
        self.novelty_embedding = None if first.novelty is None else nn.Embedding(len(Novelty), embedding_width)
        if self.novelty_embedding is not None:
            nn.init.zeros_(self.novelty_embedding.weight)
        self.register_load_state_dict_pre_hook(_todays_names)  # type: ignore[no-untyped-call]
        self.mix = nn.Linear(len(known) * embedding_width, mixed_width)
        self.project = nn.Linear(mixed_width, width)
        self.joint_null = nn.Parameter(torch.randn(width) * 0.02) if null == "joint" else None

    def novelty_of(self, label: Int[Tensor, " batch"], novel: Int[Tensor, " batch"] | None) -> Int[Tensor, " batch"]:
        """How new each label of perturbation is taken, when it is asked to be taken as `novel` (None: as it is)."""
        if self.novelty is None:
            return torch.zeros_like(label)
        taken: Tensor = self.novelty[torch.zeros_like(label) if novel is None else novel, label]
        return taken

    def forward(
        self,
        condition: Condition,
        dropped: Bool[Tensor, "batch 3"] | None = None,
        novel: Int[Tensor, "batch 3"] | None = None,
    ) -> Float[Tensor, "batch width"]:
        """The vector of each population's condition.

        Args:
            condition: label indices.
            dropped: covariates to replace by their nulls.
            novel: covariates to be taken as if their labels were new, see `Novelty`.
        """
        if dropped is not None and self.joint_null is None:
            condition = Condition(*(index.masked_fill(dropped[:, i], NULL) for i, index in enumerate(condition)))
        taken = self.novelty_of(condition.perturbation, None if novel is None else novel[:, 0])
        others: list[Tensor | None] = [None, None] if novel is None else [*(novel[:, 1:] == Novelty.NEW_AGENT).T]
        as_new = [taken == Novelty.NEW_AGENT, *others]
        vectors = [table(index, new) for table, index, new in zip(self.tables, condition, as_new, strict=True)]
        if self.novelty_embedding is not None:
            vectors[0] = vectors[0] + self.novelty_embedding(taken)
        mixed = self.mix(torch.cat(vectors, dim=-1))
        vector: Tensor = self.project(nn.functional.silu(mixed))
        if dropped is not None and self.joint_null is not None:
            vector = torch.where(dropped.all(dim=-1, keepdim=True), self.joint_null, vector)
        return vector


def _todays_names(module: nn.Module, weights: dict[str, Tensor], prefix: str, *_: Any) -> None:  # noqa: ARG001, ANN401
    """Read weights whose embedding of novelty was called `told`, as it was at first."""
    former = f"{prefix}told.weight"
    if former in weights:
        weights[f"{prefix}novelty_embedding.weight"] = weights.pop(former)
