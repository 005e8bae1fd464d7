r"""A population: m cells that share one condition, handed to the model as one point of a Hilbert space.

A minibatch holds B populations of up to m cells each. Cells are rows of expression divided by the training scale (log1p
counts per 10^4, in units of the standard deviation over the training cells), so the empirical embedding of population b
is ``mu_b = (1/m_b) sum_j k(x_bj, .)`` over the cells that its mask keeps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NULL = 0
"""The index of a covariate's trained null: the label is unknown, absent, or dropped."""


class Condition(NamedTuple):
    """One label index per population and covariate; `NULL` (0) is the trained null, label i is i + 1."""

    perturbation: Int[Tensor, " batch"]
    cell_type: Int[Tensor, " batch"]
    assay_batch: Int[Tensor, " batch"]


class PopulationBatch(NamedTuple):
    """A minibatch of populations.

    Attributes:
        perturbed: observed cells x_0 in units of the training scale, zero where masked.
        control: as many control cells of the same cell type (and assay batch, where it has any), same units.
        mask: true for cells that exist; None where every population is full.
        condition: the label indices.
        key: the running number of each population, of which its noise is a function.
        genes: true for genes that were measured; None for all. What stands at the others is never looked at.
        totals: the total counts of the control cells, over all genes of their source, 1 where masked; None where one
            of them is unknown, or there are no control cells.
        expected: the change that is expected of each population, in the ways that training may take it, see
            `core.objective`; None for none.
    """

    perturbed: Float[Tensor, "batch cells genes"]
    control: Float[Tensor, "batch cells genes"]
    mask: Bool[Tensor, "batch cells"] | None
    condition: Condition
    key: Int[Tensor, " batch"]
    genes: Bool[Tensor, "batch genes"] | None = None
    totals: Float[Tensor, "batch cells"] | None = None
    expected: Float[Tensor, "batch ways genes"] | None = None


class Noised(NamedTuple):
    """What a denoiser is asked: populations at time t, and all it may look at.

    Attributes:
        x_t: noised perturbed cells.
        t: one time a population, 0 .. T - 1.
        control: control cells.
        condition: the label indices.
        mask: true for cells that exist; None for all.
        dropped: covariates (in the order of `COVARIATES`) to be replaced by their nulls; None for none.
        self_conditioning: an earlier estimate of x_0; None for zeros.
        novel: how new each covariate's label is to be taken, see `core.conditioning`; None for as it is.
        genes: true for genes that were measured; None for all.
        totals: total counts of the control cells, where cells are drawn as counts.
        expected: the change that is expected of each population; None for none.
        seed: of the draws of counts of each population.
    """

    x_t: Float[Tensor, "batch cells genes"]
    t: Int[Tensor, " batch"]
    control: Float[Tensor, "batch cells genes"]
    condition: Condition
    mask: Bool[Tensor, "batch cells"] | None = None
    dropped: Bool[Tensor, "batch 3"] | None = None
    self_conditioning: Float[Tensor, "batch cells genes"] | None = None
    novel: Int[Tensor, "batch 3"] | None = None
    genes: Bool[Tensor, "batch genes"] | None = None
    totals: Float[Tensor, "batch cells"] | None = None
    expected: Float[Tensor, "batch genes"] | None = None
    seed: Int[Tensor, " batch"] | None = None

    def repeated(self, n: int) -> "Noised":
        """The same populations n times over, as one minibatch."""
        return self._each(lambda x: torch.cat([x] * n))

    def rows(self, rows: Int[Tensor, " rows"]) -> "Noised":
        """Some of the populations, as a minibatch of their own."""
        return self._each(lambda x: x[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Noised":
        """With every tensor changed alike."""
        given: dict[str, Any] = {name: field for name, field in self._asdict().items() if field is not None}
        for name, field in given.items():
            given[name] = Condition(*map(change, field)) if isinstance(field, Condition) else change(field)
        return self._replace(**given)


def measured(
    cells: Float[Tensor, "batch cells genes"], genes: Bool[Tensor, "batch genes"] | None
) -> Float[Tensor, "batch cells genes"]:
    """Cells with 0 at the genes that were not measured, whatever stood there (NaN too), and no gradient to it."""
    return cells if genes is None else cells.masked_fill(~genes.unsqueeze(1), 0.0)
