r"""Labels to one vector a population, with a trained null for what is unknown, absent or dropped.

Each covariate (perturbation, cell type, assay batch) has a table of learned vectors whose row 0 is its null; the
control perturbation is a label with a vector of its own. The three vectors are concatenated, mixed by a linear map,
and passed through SiLU and a second linear map to the width of the network.

Where conditions are dropped, `null` says what stands in for them:

* ``"covariate"``: each covariate has its own coin and its own null, so that an unknown donor or cell type means
  something.
* ``"joint"``: the release's way. One trained vector replaces the whole condition when all covariates are dropped at
  once.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from perturbdiff.core.population import NULL, Condition

Null = Literal["covariate", "joint"]


class Conditioning(nn.Module):
    """Condition -> vector of the network's width.

    Args:
        labels: the number of labels of each covariate, nulls not counted, in the order of `Condition`.
        width: of the network.
        embedding_width: of each covariate's table.
        mixed_width: of the mixed covariates, before SiLU; the network's width when not given.
        null: what stands in for dropped covariates.
    """

    def __init__(
        self,
        labels: tuple[int, int, int],
        *,
        width: int,
        embedding_width: int,
        mixed_width: int | None = None,
        null: Null = "covariate",
    ) -> None:
        super().__init__()
        mixed_width = mixed_width or width
        self.n_perturbations = labels[0]
        self.tables = nn.ModuleList(nn.Embedding(n_labels + 1, embedding_width) for n_labels in labels)
        self.mix = nn.Linear(len(labels) * embedding_width, mixed_width)
        self.project = nn.Linear(mixed_width, width)
        self.joint_null = nn.Parameter(torch.randn(width) * 0.02) if null == "joint" else None

    def forward(
        self, condition: Condition, dropped: Bool[Tensor, "batch 3"] | None = None
    ) -> Float[Tensor, "batch width"]:
        """The vector of each population's condition; `dropped` names covariates to replace by their nulls."""
        if dropped is not None and self.joint_null is None:
            condition = Condition(*(index.masked_fill(dropped[:, i], NULL) for i, index in enumerate(condition)))
        mixed = self.mix(torch.cat([table(index) for table, index in zip(self.tables, condition, strict=True)], dim=-1))
        vector: Tensor = self.project(nn.functional.silu(mixed))
        if dropped is not None and self.joint_null is not None:
            vector = torch.where(dropped.all(dim=-1, keepdim=True), self.joint_null, vector)
        return vector
