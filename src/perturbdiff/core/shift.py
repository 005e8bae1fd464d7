r"""The change that is expected of a perturbation before the network speaks: a trained vector for each trained label.

    s_l = sum_k w_lk S_k

S_k begins at the mean change of label k's training cells and is trained from there. For a label that training has seen
w picks its own S; what it is for the others, `core.expectation` says.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Shift(nn.Embedding):
    """Label -> s; the weight holds S, row 0 the null's.

    Args:
        n_trained: labels that training has seen, the null not counted.
        n_genes: of the panel.
        expected: w for each novelty and each label [novelties, labels + 1, n_trained + 1]; None where w picks S alone.
    """

    def __init__(
        self, n_trained: int, n_genes: int, expected: Float[Tensor, "novelties labels columns"] | None = None
    ) -> None:
        super().__init__(n_trained + 1, n_genes)
        nn.init.zeros_(self.weight)
        self.expected: Tensor | None
        self.register_buffer("expected", expected, persistent=False)

    def forward(
        self, label: Int[Tensor, " batch"], novelty: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch genes"]:
        """S of each population's label, in units of the training scale."""
        if self.expected is None:
            return super().forward(label)
        weights: Tensor = self.expected[torch.zeros_like(label) if novelty is None else novelty, label]
        return weights.to(self.weight.dtype) @ self.weight
