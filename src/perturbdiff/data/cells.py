"""Cells: expression, labels and names of every cell of a data set, checked once on the way in.

The unit of expression everywhere is ``x = log1p(10^4 c / t)``, with c a cell's count of a gene and t the cell's total
count over all genes of its file (or the column of totals that the recipe declares, where a file holds a panel only).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from perturbdiff.data.reading import (
    Matrix,
    Scale,
    check_values,
    column_of,
    expression_of,
    read_h5ad,
    total_counts_of,
)
from perturbdiff.data.recipe import COVARIATES, Columns, Expression, Match, Recipe, resolve_files
from perturbdiff.data.vocabulary import nearest

PER = 1e4
"""Counts are scaled to this total before log1p."""

type Rows = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False, repr=False)
class Cells:
    """n cells in rows.

    Attributes:
        values: [n, genes] as given: integer counts, or log1p counts per 10^4; finite and not negative.
        scale: which of the two.
        total_counts: [n], float64, above 0; None where the scale is log1p.
        genes: unique names, the columns of `values`.
        names: names of the cells.
        labels: the columns perturbation, cell_type and assay_batch, categories of text; a covariate that the data
            do not have holds the single label "".
        control: the control cells' label of perturbation; None where no cell is perturbed.
        notes: sentences on what was done to the data on the way in.
    """

    values: Matrix
    scale: Scale
    total_counts: npt.NDArray[np.float64] | None
    genes: pd.Index
    names: pd.Index
    labels: pd.DataFrame
    control: str | None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """One line: how many cells and genes, and on which scale."""
        return f"Cells({self.n_cells} cells x {len(self.genes)} genes, {self.scale}, control={self.control!r})"

    @property
    def n_cells(self) -> int:
        """The number of cells."""
        return len(self.names)

    @cached_property
    def is_control(self) -> npt.NDArray[np.bool_]:
        """Which cells are control cells [n]; all of them where the data have no perturbation."""
        if self.control is None:
            return np.ones(self.n_cells, dtype=bool)
        return np.asarray(self.labels["perturbation"] == self.control)

    def log_expression(self, genes: Sequence[str], rows: Rows | None = None) -> "sp.csr_matrix[np.float32]":
        """Expression of `genes`, in their order, and of `rows` (all of them when None): log1p counts per 10^4.

        Counts of 0 stay 0, so the result is as sparse as the counts. Values that are log1p already pass through.

        Raises:
            ValueError: a gene is not there; the nearest is named.
        """
        place = self.genes.get_indexer(pd.Index(genes))
        if (place < 0).any():
            absent = str(list(genes)[int(np.argmax(place < 0))])
            raise ValueError(
                f"{int((place < 0).sum())} of {len(place)} genes are not in the data, such as {absent!r}; "
                f"{nearest(absent, self.genes)}, or align the panel to the data's genes first."
            )
        values = self.values if rows is None else self.values[rows]
        if len(place) != len(self.genes) or (place != np.arange(len(place))).any():
            values = values[:, place]
        expression = _float32_csr(values, fresh=values is not self.values)
        if self.total_counts is not None:
            totals = self.total_counts if rows is None else self.total_counts[rows]
            expression.data *= np.repeat((PER / totals).astype(np.float32), np.diff(expression.indptr))
            np.log1p(expression.data, out=expression.data)
        return expression

    def take(self, rows: Rows | npt.NDArray[np.bool_]) -> "Cells":
        """The cells of these rows, in their order; labels that no cell has any more are forgotten."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        labels = {key: self.labels[key].array[rows].remove_unused_categories() for key in COVARIATES}
        return replace(
            self,
            values=self.values[rows],
            total_counts=None if self.total_counts is None else self.total_counts[rows],
            names=self.names[rows],
            labels=pd.DataFrame(labels),
        )


def cells_from_anndata(
    adata: anndata.AnnData,
    *,
    columns: Columns,
    expression: Expression,
    control: str | None,
    exclude: Sequence[Match] = (),
) -> Cells:
    """Cells of an AnnData in memory; its matrix is taken as it is, not copied, where it is CSR or dense.

    Raises:
        ValueError: a column, the layer, the control label or a label of `exclude` is not there (the nearest is
            named); labels are missing; values are negative, not finite or not integers where counts are declared;
            gene names are repeated; there are no cells; total counts are impossible.
    """
    return _select(_load(adata, columns, expression, "the data"), columns, control, exclude)


def read_cells(recipe: Recipe, folder: Path) -> Cells:
    """Cells of a recipe's files, one below the other; paths are relative to `folder`.

    Names that occur in several files get their file's stem as a suffix, and a note says so. Genes in another order
    are brought into the order of the first file.

    Raises:
        ValueError: as `cells_from_anndata`; or the files have different genes.
        FileNotFoundError: a file is not there.
    """
    paths = resolve_files(recipe, folder)
    parts = [_load(read_h5ad(path), recipe.columns, recipe.expression, path.name) for path in paths]
    cells = parts[0] if len(parts) == 1 else _join(parts, paths)
    return _select(cells, recipe.columns, recipe.control, recipe.exclude)


def matches(labels: pd.DataFrame, rule: Match, place: str) -> npt.NDArray[np.bool_]:
    """Which cells a rule matches [n]; `place` ("hold_out[0]") opens the sentence of an error.

    Raises:
        ValueError: the rule names a label that no cell has; the nearest is named.
    """
    found = np.ones(len(labels), dtype=bool)
    for covariate, wanted in rule.named().items():
        categories = labels[covariate].cat.categories
        for label in wanted:
            if label not in categories:
                raise ValueError(
                    f"{place} names {covariate} {label!r}, which no cell has; "
                    f"{nearest(label, categories)}; mend the label or leave it out."
                )
        found &= np.isin(labels[covariate].cat.codes, categories.get_indexer(pd.Index(wanted)))
    return found


def _float32_csr(values: Matrix, *, fresh: bool) -> "sp.csr_matrix[np.float32]":
    """A CSR matrix of its own, so that it can be changed in place; `fresh` values are nobody else's."""
    if isinstance(values, np.ndarray) or fresh:
        return sp.csr_matrix(values, dtype=np.float32)
    data = values.data.astype(np.float32)
    return sp.csr_matrix((data, values.indices.copy(), values.indptr.copy()), shape=values.shape)


def _load(adata: anndata.AnnData, columns: Columns, expression: Expression, source: str) -> Cells:
    values, genes = expression_of(adata, expression, source)
    labels = pd.DataFrame({key: _labels(adata, getattr(columns, key), key, source) for key in COVARIATES})
    check_values(values, expression.scale, source)
    totals = None
    if expression.scale == "counts":
        totals = total_counts_of(adata, values, columns.total_counts, source)
    elif columns.total_counts is not None:
        raise ValueError(
            f'columns.total_counts = {columns.total_counts!r} goes with scale = "counts", and the scale of {source} '
            'is "log1p", already per 10^4; leave it out.'
        )
    names = pd.Index(adata.obs_names.astype(str), name=None)
    return Cells(values, expression.scale, totals, genes, names, labels, control=None)


def _labels(adata: anndata.AnnData, column: str | None, key: str, source: str) -> "pd.Categorical[Any]":
    if column is None:
        return pd.Categorical.from_codes(np.zeros(adata.n_obs, dtype=np.int8), pd.Index([""], dtype=str))
    obs: Any = adata.obs
    codes, unique = pd.factorize(column_of(obs, column, f"columns.{key}", source))
    texts = np.array([str(label) for label in unique], dtype=object)
    missing = codes < 0
    if len(texts):
        missing |= np.array([not text.strip() for text in texts])[codes]
    if missing.any():
        raise ValueError(
            f"column {column!r} of {source} has no label for {int(missing.sum())} cells, such as "
            f"{adata.obs_names[int(np.argmax(missing))]!r}, and every cell needs one; fill in the labels or remove "
            "these cells."
        )
    known = sorted(set(texts))
    place = pd.Index(known, dtype=str)
    return pd.Categorical.from_codes(place.get_indexer(pd.Index(texts, dtype=str))[codes], place)


def _select(cells: Cells, columns: Columns, control: str | None, exclude: Sequence[Match]) -> Cells:
    keep = np.ones(cells.n_cells, dtype=bool)
    for i, rule in enumerate(exclude):
        keep &= ~matches(cells.labels, rule, f"exclude[{i}]")
    if not keep.any():
        raise ValueError(
            f"exclude leaves none of {cells.n_cells} cells, and some must remain; take a rule out of exclude."
        )
    if not keep.all():
        left_out = f"exclude leaves out {int((~keep).sum())} of {cells.n_cells} cells."
        cells = replace(cells.take(keep), notes=(*cells.notes, left_out))
    return replace(cells, control=_control(cells, columns, control))


def _control(cells: Cells, columns: Columns, control: str | None) -> str | None:
    if (columns.perturbation is None) != (control is None):
        raise ValueError(
            f"control = {control!r} and columns.perturbation = {columns.perturbation!r} belong together; "
            "give both or neither."
        )
    known = cells.labels["perturbation"].cat.categories
    if control is not None and control not in known:
        raise ValueError(
            f"no cell has the control label {control!r} in column {columns.perturbation!r}; "
            f"{nearest(control, known)}; set control to the label of the control cells."
        )
    return control


def _join(parts: list[Cells], paths: list[Path]) -> Cells:
    """Cells of several files as one, the genes in the first file's order."""
    genes = parts[0].genes
    parts = [_reordered(part, genes, path, paths[0]) for part, path in zip(parts, paths, strict=True)]
    names, notes = _unique_names([part.names for part in parts], [path.stem for path in paths])
    labels = {
        key: pd.Categorical(pd.concat([part.labels[key].astype(object) for part in parts]).astype(str))
        for key in COVARIATES
    }
    totals = [part.total_counts for part in parts if part.total_counts is not None]
    return replace(
        parts[0],
        values=_below([part.values for part in parts]),  # noqa: PD011 - a matrix, not a table
        total_counts=np.concatenate(totals) if totals else None,
        names=names,
        labels=pd.DataFrame(labels),
        notes=notes,
    )


def _below(values: list[Matrix]) -> Matrix:
    dense = [one for one in values if isinstance(one, np.ndarray)]
    if len(dense) == len(values):
        return np.vstack(dense)
    joined: Matrix = sp.vstack([sp.csr_matrix(one) for one in values], format="csr")
    return joined


def _reordered(part: Cells, genes: pd.Index, path: Path, first: Path) -> Cells:
    place = part.genes.get_indexer(genes)
    if len(genes) != len(part.genes) or (place < 0).any():
        shared = int((place >= 0).sum())
        raise ValueError(
            f"{path.name!r} has {len(part.genes)} genes and {first.name!r} {len(genes)}, of which they share {shared}, "
            "and files of one recipe must have the same genes; keep the shared genes in every file."
        )
    if (place == np.arange(len(place))).all():
        return part
    return replace(part, values=part.values[:, place], genes=genes)  # noqa: PD011


def _unique_names(names: list[pd.Index], stems: list[str]) -> tuple[pd.Index, tuple[str, ...]]:
    joined = names[0].append(names[1:])
    origin = np.repeat(np.arange(len(names)), [len(one) for one in names])
    once = pd.DataFrame({"name": joined, "file": origin}).drop_duplicates()["name"]
    shared = joined.isin(once[once.duplicated()])
    if not shared.any():
        return joined, ()
    suffixes: Mapping[int, str] = {i: stem if stems.count(stem) == 1 else f"{stem}-{i}" for i, stem in enumerate(stems)}
    suffix = pd.Series(origin[shared]).map(suffixes).to_numpy(dtype=object)
    renamed = joined.to_numpy(dtype=object).copy()
    renamed[shared] = renamed[shared] + "-" + suffix
    note = f"{int(shared.sum())} cells have a name that occurs in several files; their file's name was added to it."
    return pd.Index(renamed, dtype=str), (note,)
