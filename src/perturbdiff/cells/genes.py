"""The gene panel: which genes the model sees, chosen on training cells only, and their measured scale.

Both follow from sums over the training cells (`moments`), so that the cells need not be in memory. The panel keeps the
order of the data's genes, so that it does not depend on the ranking.

Genes are ranked by Seurat's dispersion. With mean m and variance v of a gene's counts per 10^4, d = log(v / m) is held
against genes of like mean: bins are of equal width in log1p(m), and a gene's rank is its d less the mean of d over its
bin, divided by their standard deviation. A gene that is alone in its bin is given 1.

The measured scale is the standard deviation of all values of the panel's genes in training cells, zeros included: one
number.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from perturbdiff.cells.moments import Moments
from perturbdiff.spelling import nearest

_BINS = 20
"""Genes are ranked by dispersion within this many bins of their mean."""

_GENES_FOR_BINS = 2000
"""With fewer genes they are ranked in one bin, since bins then hold too few genes to compare with. Of the genes that
respond most, one bin keeps 0.63, 0.96, 0.83 and 0.70 in four sets of 940, 303, 381 and 71 genes; 20 bins 0.47, 0.50,
0.45 and 0.90."""


def select_panel(moments: Moments, n_genes: int | None) -> list[str]:
    """The `n_genes` genes of highest dispersion for their mean in training cells, in the data's order.

    None, or as many as there are, takes all genes. Ties go to the gene that comes first.

    Raises:
        ValueError: fewer than two cells were measured, or fewer than `n_genes` genes vary in them.
    """
    genes = [str(gene) for gene in moments.genes]
    if n_genes is None or n_genes >= len(genes):
        return genes
    if n_genes < 1 or moments.n_cells < 2:
        raise ValueError(
            f"n_genes={n_genes} genes cannot be chosen from {moments.n_cells} training cells; "
            "choose at least 1 gene from at least 2 cells."
        )
    varying = np.flatnonzero(moments.varies)
    if len(varying) < n_genes:
        raise ValueError(
            f"n_genes={n_genes} is more than the {len(varying)} genes that vary in the {moments.n_cells} training "
            "cells; lower n_genes, or leave it out to take all genes."
        )
    order = np.argsort(-_dispersions(moments, varying), kind="stable")
    return [genes[i] for i in varying[np.sort(order[:n_genes])]]


def check_panel(known: pd.Index, genes: Sequence[str]) -> list[str]:
    """A given panel, in its own order; `known` are the genes of the data.

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
    missing = _missing(panel, known)
    if missing:
        raise ValueError(
            f"{len(missing)} of the panel's {len(panel)} genes are not in the data, such as {missing[0]!r}; "
            f"{nearest(missing[0], known)}; mend the names or leave these genes out."
        )
    return panel


def measured_scale(moments: Moments, genes: Sequence[str]) -> float:
    """The standard deviation of all values of a panel's genes, zeros included; log1p counts per 10^4.

    Raises:
        ValueError: there are no values, a gene was not measured, or all values are equal.
    """
    size = moments.n_cells * len(genes)
    if size == 0:
        raise ValueError(f"the scale of {moments.n_cells} cells and {len(genes)} genes is not defined; give some.")
    place = moments.genes.get_indexer(pd.Index(genes))
    if (place < 0).any():
        absent = str(list(genes)[int(np.argmax(place < 0))])
        raise ValueError(
            f"gene {absent!r} was not measured, and the scale is that of all genes of the panel; "
            f"{nearest(absent, moments.genes)}; measure the panel's genes."
        )
    means = moments.logs[place] / moments.n_cells
    within = moments.logs_squared[place] / moments.n_cells - means**2
    variance = np.maximum(within, 0).mean() + ((means - means.mean()) ** 2).mean()
    lowest, highest = moments.lowest[place].min(), moments.highest[place].max()
    if lowest == highest or variance == 0:
        raise ValueError(
            f"all {size} values of the panel's genes are {lowest:g} in the training cells, and a scale must be above "
            "0; choose other genes, or check the expression."
        )
    return float(np.sqrt(variance))


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


def _missing(panel: Sequence[str], available: Iterable[str]) -> list[str]:
    known = set(available)
    return [gene for gene in panel if gene not in known]


def _dispersions(moments: Moments, varying: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    """Each varying gene's dispersion against that of its bin; -inf where there is none."""
    mean = moments.counts[varying] / moments.n_cells
    variance = (moments.counts_squared[varying] - moments.counts[varying] * mean) / (moments.n_cells - 1)
    dispersion = pd.Series(np.log(np.where(variance > 0, variance, np.nan) / mean))
    bins = pd.cut(np.log1p(mean), _BINS if len(varying) >= _GENES_FOR_BINS else 1, labels=False)
    by_bin = dispersion.groupby(bins)
    centre, spread = by_bin.transform("mean"), by_bin.transform("std")
    alone = spread.isna()
    ranked = (dispersion - centre.mask(alone, 0)) / spread.mask(alone, centre)
    return np.where(ranked.isna(), -np.inf, ranked.to_numpy(dtype=np.float64))
