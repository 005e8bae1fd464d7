"""Cells that the suites of other libraries judge."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from perturbdiff.metrics.sides import PERTURBATION, Side

N_GENES, N_CELLS, N_PERTURBATIONS = 60, 40, 4


@pytest.fixture(scope="session")
def draw() -> Callable[..., AnnData]:
    """Counts of one truth, log1p of 10^4: control cells and perturbations, drawn anew by seed: draw(1)."""

    def drawn(seed: int, *, share: float, names: str = "gene", strength: float = 1.2) -> AnnData:
        truth, rng = np.random.default_rng(0), np.random.default_rng(seed)
        labels = np.repeat(["control", *(f"{names}_{i}" for i in range(N_PERTURBATIONS))], N_CELLS)
        shape = N_PERTURBATIONS + 1, N_GENES
        rates = truth.gamma(0.7, 3, N_GENES) * np.exp(truth.normal(0, strength, shape) * (truth.random(shape) < share))
        counts = rng.poisson(np.repeat(rates, N_CELLS, axis=0))
        values = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4).astype(np.float32)
        obs = pd.DataFrame({PERTURBATION: pd.Categorical(labels)}, index=[f"cell_{i}" for i in range(len(labels))])
        var = pd.DataFrame(index=pd.Index([f"gene_{i}" for i in range(N_GENES)], dtype=str))
        return AnnData(X=sp.csr_matrix(values), obs=obs, var=var)

    return drawn


@pytest.fixture(scope="module")
def controls(observed: Side) -> Side:
    """Control cells predicted for every perturbation of `observed`."""
    rows = np.flatnonzero(observed.adata.obs[PERTURBATION] == "control")
    values = observed.adata.X[np.tile(rows, N_PERTURBATIONS + 1)]
    return Side(AnnData(X=values, obs=observed.adata.obs.copy(), var=observed.adata.var.copy()), "control")
