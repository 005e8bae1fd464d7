"""The gene panel: which genes the model sees, chosen on training cells only, and their measured scale.

The panel keeps the order of the data's genes, so that it does not depend on the ranking. The measured scale is the
standard deviation of all values of the panel's genes in training cells, zeros included: one number.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import numpy.typing as npt
import scanpy

from perturbdiff.data.cells import Cells
from perturbdiff.data.reading import chunks
from perturbdiff.data.vocabulary import nearest

if TYPE_CHECKING:
    import scipy.sparse as sp

_BINS = 20
"""Genes are ranked by dispersion within this many bins of their mean."""

_GENES_FOR_BINS = 2000
"""With fewer genes they are ranked in one bin, since bins then hold too few genes to compare with. Of the genes that
respond most, one bin keeps 0.63, 0.96, 0.83 and 0.70 in four sets of 940, 303, 381 and 71 genes; 20 bins 0.47, 0.50,
0.45 and 0.90."""


def select_panel(cells: Cells, rows: npt.NDArray[np.integer[Any]], n_genes: int | None) -> list[str]:
    """The `n_genes` genes of highest dispersion for their mean in `rows` (training cells), in the data's order.

    None, or as many as there are, takes all genes. Ranking is scanpy's "seurat" flavour on log1p counts per 10^4; ties
    go to the gene that comes first.

    Raises:
        ValueError: there are no rows, or fewer than `n_genes` genes vary in them.
    """
    genes = [str(gene) for gene in cells.genes]
    if n_genes is None or n_genes >= len(genes):
        return genes
    if n_genes < 1 or len(rows) < 2:
        raise ValueError(
            f"n_genes={n_genes} genes cannot be chosen from {len(rows)} training cells; "
            "choose at least 1 gene from at least 2 cells."
        )
    expression = cells.log_expression(genes, rows)
    varying = _varying(expression)
    if len(varying) < n_genes:
        raise ValueError(
            f"n_genes={n_genes} is more than the {len(varying)} genes that vary in the {len(rows)} training cells; "
            "lower n_genes, or leave it out to take all genes."
        )
    ranked: Any = scanpy.pp.highly_variable_genes(
        anndata.AnnData(expression[:, varying]),
        n_top_genes=n_genes,
        n_bins=_BINS if len(varying) >= _GENES_FOR_BINS else 1,
        flavor="seurat",
        inplace=False,
    )
    dispersion = np.nan_to_num(ranked["dispersions_norm"].to_numpy(dtype=np.float64), nan=-np.inf)
    chosen = varying[np.sort(np.argsort(-dispersion, kind="stable")[:n_genes])]
    return [genes[i] for i in chosen]


def check_panel(cells: Cells, genes: Sequence[str]) -> list[str]:
    """A given panel, in its own order.

    Raises:
        ValueError: it is empty, names a gene twice, or names one that the data do not have (the nearest is named).
    """
    panel = list(genes)
    if not panel:
        raise ValueError("the panel names no genes, and a model needs some; list genes, or leave the list out.")
    if len(set(panel)) != len(panel):
        seen: set[str] = set()
        twice = next(gene for gene in panel if gene in seen or seen.add(gene))  # type: ignore[func-returns-value]
        raise ValueError(f"the panel names gene {twice!r} twice, and each is one column; name each gene once.")
    missing = _missing(panel, cells.genes)
    if missing:
        raise ValueError(
            f"{len(missing)} of the panel's {len(panel)} genes are not in the data, such as {missing[0]!r}; "
            f"{nearest(missing[0], cells.genes)}; mend the names or leave these genes out."
        )
    return panel


def measured_scale(matrix: "sp.csr_matrix[np.float32]") -> float:
    """The standard deviation of all values of [cells, genes], zeros included; log1p counts per 10^4.

    Raises:
        ValueError: all values are equal.
    """
    size = matrix.shape[0] * matrix.shape[1]
    if size == 0:
        raise ValueError(f"the scale of {matrix.shape[0]} cells and {matrix.shape[1]} genes is not defined; give some.")
    mean = float(np.add.reduce(matrix.data, dtype=np.float64)) / size
    squares = sum(float(np.sum((chunk.astype(np.float64) - mean) ** 2)) for chunk in chunks(matrix))
    scale = float(np.sqrt((squares + (size - matrix.nnz) * mean**2) / size))
    if scale == 0:
        raise ValueError(
            f"all {size} values of the panel's genes are {mean:g} in the training cells, and a scale must be above 0; "
            "choose other genes, or check the expression."
        )
    return scale


def align_genes(panel: Sequence[str], available: Sequence[str], *, min_overlap: float) -> list[str]:
    """The panel's genes that are not available, in the panel's order; what to put in their place the caller decides.

    Raises:
        ValueError: the available share of the panel is below `min_overlap` (0 to 1).
    """
    if not 0 <= min_overlap <= 1:
        raise ValueError(f"min_overlap={min_overlap} is not between 0 and 1; give the share of genes needed.")
    missing = _missing(panel, available)
    found = len(panel) - len(missing)
    if found < min_overlap * len(panel):
        raise ValueError(
            f"{found} of the panel's {len(panel)} genes are in the data, fewer than the {min_overlap:.0%} needed "
            f"(missing: {', '.join(map(repr, missing[:3]))}{', ...' if len(missing) > 3 else ''}); give data with the "
            "same gene names, or lower min_overlap."
        )
    return missing


def _missing(panel: Sequence[str], available: Sequence[str] | Any) -> list[str]:  # noqa: ANN401 - or an Index
    known = set(available)
    return [gene for gene in panel if gene not in known]


def _varying(expression: "sp.csr_matrix[np.float32]") -> npt.NDArray[np.intp]:
    """Columns whose values are not all equal."""
    highest = expression.max(axis=0).toarray().ravel()
    lowest = expression.min(axis=0).toarray().ravel()
    return np.flatnonzero(highest > lowest)
