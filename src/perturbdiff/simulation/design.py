r"""What all simulators share: how many cells of what there are, their labels, and how expression is counted.

A cell has a code for its perturbation (-1 is control), its cell type and its assay batch. Its counts are negative
binomial: with shares p_g of its expression, a library L and phi_g the dispersion::

    y_g ~ Poisson(L p_g gamma_g),   gamma_g ~ Gamma(mean 1, variance phi_g),   log L ~ N(log 5000, 0.3^2)
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

type Floats = np.ndarray[Any, np.dtype[np.float64]]
type Integers = np.ndarray[Any, np.dtype[np.int64]]
type Flags = np.ndarray[Any, np.dtype[np.bool_]]

CONTROL = "control"
PER = 1e4
"""The unit of expression: so many counts in all."""

_MEDIAN_COUNTS, _SD_LOG_COUNTS = 5000.0, 0.3


class Sizes(NamedTuple):
    """How much to simulate: genes, cell types, assay batches, perturbations, cells per group."""

    n_genes: int
    n_cell_types: int
    n_assay_batches: int
    n_perturbations: int
    cells_per_group: int
    control_cells_per_group: int


class Design(NamedTuple):
    """One code per cell; perturbation -1 is control."""

    perturbation: Integers
    cell_type: Integers
    assay_batch: Integers


def check_sizes(sizes: Mapping[str, int]) -> None:
    """Refuse sizes below 1; the names are those of the arguments.

    Raises:
        ValueError: a size is below 1.
    """
    small = [f"{name}={value}" for name, value in sizes.items() if value < 1]
    if small:
        raise ValueError(f"{', '.join(small)}: every size must be at least 1; raise it.")


def draw_design(sizes: Sizes, rng: np.random.Generator) -> Design:
    """Every group in full, cells in random order."""
    perturbation, cell_type, assay_batch = (
        axis.ravel()
        for axis in np.meshgrid(
            np.arange(-1, sizes.n_perturbations),
            np.arange(sizes.n_cell_types),
            np.arange(sizes.n_assay_batches),
            indexing="ij",
        )
    )
    repeats = np.where(perturbation < 0, sizes.control_cells_per_group, sizes.cells_per_group)
    order = rng.permutation(int(repeats.sum()))
    return Design(*(np.repeat(axis, repeats)[order] for axis in (perturbation, cell_type, assay_batch)))


def numbered(stem: str, n: int) -> list[str]:
    """The names "<stem>_1" and so on."""
    return [f"{stem}_{i + 1}" for i in range(n)]


def gene_names(sizes: Sizes) -> Any:  # noqa: ANN401 - an array of objects, as files of AnnData hold texts
    """The names of the genes of the panel [genes]."""
    return np.array([f"gene_{i:04d}" for i in range(sizes.n_genes)], dtype=object)


def labels_of(design: Design, perturbations: Sequence[str], sizes: Sizes) -> pd.DataFrame:
    """The table of cells: perturbation, of the names by code, which codes may share; cell_type and assay_batch."""
    place = {name: i for i, name in enumerate(dict.fromkeys([CONTROL, *perturbations]))}
    by_code = np.array([place[name] for name in (*perturbations, CONTROL)])
    columns = {
        "perturbation": (by_code[design.perturbation], list(place)),
        "cell_type": (design.cell_type, numbered("type", sizes.n_cell_types)),
        "assay_batch": (design.assay_batch, numbered("donor", sizes.n_assay_batches)),
    }
    return pd.DataFrame(
        {name: pd.Categorical.from_codes(codes.tolist(), pd.Index(names)) for name, (codes, names) in columns.items()},
        index=pd.Index([f"cell_{i:06d}" for i in range(len(design.cell_type))]),
    )


def count_cells(p: Floats, dispersion: Floats, rng: np.random.Generator) -> csr_matrix:
    """Negative-binomial counts [cells, genes] of expression shares p."""
    library = np.exp(rng.normal(np.log(_MEDIAN_COUNTS), _SD_LOG_COUNTS, len(p)))
    mean = rng.standard_gamma(1 / dispersion, p.shape)
    mean *= dispersion
    mean *= p
    mean *= library[:, None]
    return csr_matrix(rng.poisson(mean).astype(np.float32))
