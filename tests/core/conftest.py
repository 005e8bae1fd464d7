"""Tiny models and minibatches in float64, with every gate open, for the tests of core."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from perturbdiff.core.conditioning import Conditioning
from perturbdiff.core.denoiser import Denoiser
from perturbdiff.core.population import Condition, Noised, PopulationBatch

N_GENES, WIDTH, HEADS, LABELS = 5, 8, 2, (4, 3, 2)


def _normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _randomise(module: nn.Module, seed: int = 1) -> nn.Module:
    """Every weight drawn afresh, those that start at zero too: adaLN-Zero's gates are open."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.4 if parameter.ndim == 1 else parameter.shape[1] ** -0.5, generator=generator)
    return module


def _make_denoiser(*, null: str = "covariate", depth: int = 2, seed: int = 1, **options: Any) -> Denoiser:
    conditioning = Conditioning(LABELS, width=WIDTH, embedding_width=3, mixed_width=6, null=null)
    model = Denoiser(conditioning, n_genes=N_GENES, width=WIDTH, depth=depth, heads=HEADS, **options)
    return _randomise(model.double(), seed)


def _make_mask(lengths: Sequence[int], n_cells: int) -> Tensor:
    return torch.arange(n_cells) < torch.tensor(lengths)[:, None]


def _make_condition(n_populations: int) -> Condition:
    rows = torch.arange(n_populations)
    return Condition(*(1 + (rows + i) % n_labels for i, n_labels in enumerate(LABELS)))


def _make_totals(n_populations: int, n_cells: int) -> Tensor:
    """Whole numbers of some thousands."""
    return (4000 + 1000 * _normal(n_populations, n_cells, seed=7).abs()).round()


def _make_batch(
    n_populations: int = 3, n_cells: int = 6, *, lengths: Sequence[int] | None = None, n_genes: int = N_GENES
) -> PopulationBatch:
    """Half of the expression is exactly 0, as in data; padding is 0, and 1 in totals."""
    perturbed, control = (_normal(n_populations, n_cells, n_genes, seed=i).relu() for i in (2, 3))
    mask = None if lengths is None else _make_mask(lengths, n_cells)
    if mask is not None:
        perturbed, control = (x.masked_fill(~mask.unsqueeze(-1), 0.0) for x in (perturbed, control))
    totals = _make_totals(n_populations, n_cells)
    return PopulationBatch(
        perturbed,
        control,
        mask,
        _make_condition(n_populations),
        100 + torch.arange(n_populations),
        totals=totals if mask is None else totals.masked_fill(~mask, 1.0),
        expected=_normal(n_populations, 1, n_genes, seed=6),
    )


def _make_noised(n_populations: int = 3, n_cells: int = 6, *, lengths: Sequence[int] | None = None) -> Noised:
    batch = _make_batch(n_populations, n_cells, lengths=lengths)
    return Noised(
        x_t=_normal(n_populations, n_cells, N_GENES, seed=4),
        t=7 * torch.arange(n_populations),
        control=batch.control,
        condition=batch.condition,
        mask=batch.mask,
        self_conditioning=_normal(n_populations, n_cells, N_GENES, seed=5).relu(),
        totals=batch.totals,
        expected=_normal(n_populations, N_GENES, seed=6),
        seed=1000 + torch.arange(n_populations),
    )


@pytest.fixture(scope="session")
def normal() -> Callable[..., Tensor]:
    """Shape, seed -> standard normal numbers."""
    return _normal


@pytest.fixture(scope="session")
def randomise() -> Callable[..., nn.Module]:
    return _randomise


@pytest.fixture(scope="session")
def make_denoiser() -> Callable[..., Denoiser]:
    return _make_denoiser


@pytest.fixture(scope="session")
def make_mask() -> Callable[..., Tensor]:
    return _make_mask


@pytest.fixture(scope="session")
def make_condition() -> Callable[..., Condition]:
    return _make_condition


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., PopulationBatch]:
    return _make_batch


@pytest.fixture(scope="session")
def make_noised() -> Callable[..., Noised]:
    return _make_noised
