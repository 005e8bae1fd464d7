"""Cells whose values are a function of their labels."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from perturbdiff.baselines.predictor import Training
from perturbdiff.baselines.pseudobulk import pseudobulks
from perturbdiff.cells.memory import Cells
from perturbdiff.recipes.dataset import Grammar

type Group = tuple[str, str, str, int]


def _cells(groups: Sequence[Group], value: Callable[..., Any], genes: Sequence[str]) -> Cells:
    labels = [(*names, i) for *names, n in groups for i in range(n)]
    return Cells(
        values=np.array([value(*label) for label in labels], dtype=np.float32).reshape(len(labels), len(genes)),
        scale="log1p",
        total_counts=None,
        genes=pd.Index(list(genes)),
        names=pd.Index([f"cell{i}" for i in range(len(labels))]),
        labels=pd.DataFrame(
            [label[:3] for label in labels], columns=["perturbation", "cell_type", "assay_batch"]
        ).astype("category"),
        control="control",
    )


@pytest.fixture(scope="session")
def make_cells() -> Callable[..., Cells]:
    """make_cells(groups, value, genes): groups (perturbation, cell type, assay batch, number), value(*labels, i)."""
    return _cells


@pytest.fixture(scope="session")
def make_shifted() -> Callable[..., Cells]:
    """make_shifted({(perturbation, cell type): shift}, {cell type: control mean}): two cells each, none at zero."""

    def make(shifts: dict[tuple[str, str], Any], contexts: dict[str, Any]) -> Cells:
        n_genes = len(next(iter(contexts.values())))
        groups = [("control", kind, "", 2) for kind in contexts] + [(*condition, "", 2) for condition in shifts]

        def value(perturbation: str, cell_type: str, _: str, i: int) -> Any:
            shift = 0.0 if perturbation == "control" else np.asarray(shifts[perturbation, cell_type])
            return np.asarray(contexts[cell_type]) + shift + 0.25 * (i - 0.5)

        return _cells(groups, value, [f"g{i}" for i in range(n_genes)])

    return make


@pytest.fixture(scope="session")
def trained() -> Callable[..., Training]:
    """What a baseline is fitted to: trained(cells, asked=(), grammar=..., features=...)."""

    def make(cells: Cells, asked: Sequence[str] = (), grammar: Grammar | None = None, features: Any = None) -> Training:
        bulks = pseudobulks(cells, list(cells.genes))
        return Training(bulks, cells.control, grammar or Grammar(), features, tuple(asked))

    return make
