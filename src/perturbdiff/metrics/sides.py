"""One side of a context that another library judges: the control cells and the cells of every perturbation.

A side is on the scale that this package judges, log1p counts per 10^4, and says so; what a library could only refuse
in its own words, or would judge all the same, is refused here in one sentence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

import anndata
import numpy as np
import scipy.sparse as sp

PERTURBATION = "perturbation"
"""The column of obs that has the labels."""

HIGHEST = 15.0
"""Values of log1p counts are below this, by cell-eval's rule; log1p of 10^4 is 9.2."""


@dataclass(frozen=True)
class Side:
    """The cells of one side of a context: control cells, and two or more of each perturbation.

    Attributes:
        adata: log1p counts per 10^4 in X, at least two genes; labels in the column `PERTURBATION` of obs.
        control: the control cells' label.
        de: the perturbations' tests of differential expression against the control cells, as `differential_expression`
            makes them, in polars or pandas; None where they are still to be made.

    Raises:
        ValueError: labels, control cells or genes are missing; a label has one cell; a value is not on the scale.
    """

    adata: anndata.AnnData
    control: str
    de: Any = None

    def __post_init__(self) -> None:
        self._check_labels()
        self._check_genes()
        self._check_values()

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The number of cells of each label, control cells included, sorted by label."""
        labels, sizes = np.unique(np.asarray(self.adata.obs[PERTURBATION], dtype=str), return_counts=True)
        return dict(zip(map(str, labels), map(int, sizes), strict=True))

    @property
    def perturbations(self) -> tuple[str, ...]:
        """The labels that are not the control cells', sorted."""
        return tuple(label for label in self.sizes if label != self.control)

    @property
    def genes(self) -> tuple[str, ...]:
        """The names of the genes."""
        return tuple(map(str, self.adata.var_names))

    def _check_labels(self) -> None:
        if PERTURBATION not in self.adata.obs:
            raise ValueError(f"obs has no column {PERTURBATION!r}, where the labels are read; add it.")
        if self.adata.obs[PERTURBATION].isna().any():
            raise ValueError(f"obs[{PERTURBATION!r}] has cells without a label; label them or leave them out.")
        if self.control not in self.sizes:
            raise ValueError(
                f"no cell has the control label {self.control!r}, and changes are measured from control cells; "
                "add them or name another label."
            )
        if not self.perturbations:
            raise ValueError(f"all cells are control cells ({self.control!r}), and none can be judged; add others.")
        for label, size in self.sizes.items():
            if size < 2:
                raise ValueError(
                    f"{label!r} has one cell, and a distribution is judged on two at least; leave the label out."
                )

    def _check_genes(self) -> None:
        if self.adata.n_vars < 2:
            raise ValueError(f"{self.adata.n_vars} gene is too few for a correlation over genes; give two at least.")
        if not self.adata.var_names.is_unique:
            name = self.adata.var_names[self.adata.var_names.duplicated()][0]
            raise ValueError(f"gene {name!r} is there twice, and genes are matched by name; make the names unique.")

    def _check_values(self) -> None:
        matrix: Any = self.adata.X
        if matrix is None:
            raise ValueError("X is empty, and log1p counts per 10^4 are read there; fill it.")
        values: Any = getattr(matrix, "data", None) if sp.issparse(matrix) else np.asarray(matrix)
        lowest, highest = float(values.min(initial=0.0)), float(values.max(initial=0.0))
        if np.isnan(lowest) or np.isnan(highest):
            raise ValueError("X has values that are NaN, and every value is judged; correct or leave out these cells.")
        if lowest < 0 or highest >= HIGHEST:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(
                f"X has the value {wrong:g}, and log1p counts per 10^4 are at least 0 and below {HIGHEST:g}; "
                "declare the scale that it is on, or transform it."
            )


def check_sides(predicted: Side, observed: Side) -> None:
    """Refuse two sides that cannot be compared.

    Raises:
        ValueError: they differ in genes, perturbations or control label.
    """
    if predicted.genes != observed.genes:
        genes = predicted.genes, observed.genes
        wrong = _first_of_one(*genes) or "their order"
        raise ValueError(
            f"the predicted and the observed genes differ ({wrong}), and values are compared gene by gene; "
            "give both the same genes in the same order."
        )
    if predicted.control != observed.control:
        raise ValueError(
            f"the control label is {predicted.control!r} in the predicted and {observed.control!r} in the observed "
            "cells, and one label is read in both; name them alike."
        )
    if predicted.perturbations != observed.perturbations:
        wrong = _first_of_one(predicted.perturbations, observed.perturbations)
        raise ValueError(
            f"the predicted and the observed perturbations differ ({wrong}), and each is judged against its own; "
            "leave out what is on one side only."
        )


def given_table(side: Side) -> Any:  # noqa: ANN401 - a DataFrame of polars
    """The tests that a side was given, in polars.

    Raises:
        ValueError: they are of other perturbations than the side has; one is named.
    """
    table = side.de if hasattr(side.de, "write_parquet") else import_module("polars").from_pandas(side.de)
    labels = tuple(sorted(map(str, table["target"].unique())))
    if labels != side.perturbations:
        wrong = _first_of_one(labels, side.perturbations)
        raise ValueError(
            f"the table of differential expression and the cells differ in their perturbations ({wrong}); "
            "give the table of these cells, or none to have it made."
        )
    return table


def _first_of_one(one: Sequence[str], other: Sequence[str]) -> str:
    """The first name that only one of two has, quoted; nothing where they have the same."""
    known = set(one), set(other)
    return next((repr(name) for name in (*one, *other) if not all(name in names for names in known)), "")
