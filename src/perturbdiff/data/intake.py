"""From an AnnData or a recipe's files to cells in memory, checked once on the way in."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import anndata
import numpy as np
import pandas as pd

from perturbdiff.data.cells import Cells, matches
from perturbdiff.data.composition import labels_from
from perturbdiff.data.files import resolve_files
from perturbdiff.data.joining import (
    GeneTable,
    aligned,
    below,
    gene_table_of,
    join_genes,
    join_names,
    join_note,
    labels_below,
)
from perturbdiff.data.reading import (
    check_control_label,
    check_label_texts,
    check_values,
    clipped,
    column_of,
    expression_of,
    missing_labels,
    read_anndata,
)
from perturbdiff.data.recipe import COVARIATES, Columns, Expression, Match, Recipe
from perturbdiff.data.totals import check_normalised, check_totals_fit, converted, genes_summed, total_counts_of


def cells_from_anndata(
    adata: anndata.AnnData,
    *,
    columns: Columns,
    expression: Expression,
    control: str | None,
    exclude: Sequence[Match] = (),
    source: str = "the data",
    summed: tuple[str, ...] | None = None,
    observed: bool = True,
    clip: bool = False,
) -> Cells:
    """Cells of an AnnData in memory; its matrix is taken as it is, not copied, where it is CSR or dense.

    Args:
        adata: the cells.
        columns: of obs.
        expression: where it is, and its scale.
        control: label of the control cells.
        exclude: cells that are left out.
        source: opens the sentences of errors.
        summed: the genes over which each cell's total count runs; all of them when None.
        observed: whether the cells are measured ones, whose sums tell what they were normalised to.
        clip: whether values below 0 count as 0, and a note says so.

    Raises:
        ValueError: a column, the layer, the control label or a label of `exclude` is not there (the nearest is
            named); labels are missing; values are negative, not finite or not integers where counts are declared;
            gene names are repeated; there are no cells; total counts are impossible; log1p values are of counts
            normalised to another total than is declared.
    """
    cells = _load(adata, columns, expression, control, source, summed=summed, observed=observed, clip=clip)
    return _select(cells, columns, control, exclude)


def read_cells(recipe: Recipe, folder: Path) -> Cells:
    """Cells of a recipe's files, one below the other; paths are relative to `folder`.

    Genes are in the order of the first file; `data.joining` says how files with other genes or with the same names of
    cells are joined. A gene that a file lacks holds no counts in its cells.

    Raises:
        ValueError: as `cells_from_anndata`; or the files have different genes, or cells of the same name, where the
            recipe does not say what to do.
        FileNotFoundError: a file, or the table of genes, is not there.
    """
    paths = resolve_files(recipe, folder)
    table = gene_table_of(recipe.expression, folder)
    parts = [_load(read_anndata(path), recipe.columns, recipe.expression, recipe.control, path.name) for path in paths]
    cells = _join(parts, paths, recipe, table)
    return _select(cells, recipe.columns, recipe.control, recipe.exclude)


def _load(
    adata: anndata.AnnData,
    columns: Columns,
    expression: Expression,
    control: str | None,
    source: str,
    *,
    summed: tuple[str, ...] | None = None,
    observed: bool = True,
    clip: bool = False,
) -> Cells:
    values, genes, _, note = expression_of(adata, expression, source)
    notes = [note]
    labels = pd.DataFrame({key: _labels(adata, columns, key, control, source) for key in COVARIATES})
    if clip:
        values, below = clipped(values, source)
        notes.append(below)
    check_values(values, expression.scale, source)
    check_totals_fit(columns, expression.scale, source)
    totals = None
    if expression.scale == "counts":
        over = None if columns.total_counts is not None else genes_summed(genes, summed, source)
        totals = total_counts_of(adata, values, columns.total_counts, source, over)
    else:
        notes.append(check_normalised(values, expression, source) if observed else None)
        values = converted(values, expression)
    names = pd.Index(adata.obs_names.astype(str), name=None)
    said = tuple(one for one in notes if one is not None)
    return Cells(values, expression.scale, totals, genes, names, labels, control=None, notes=said)


def _labels(
    adata: anndata.AnnData, columns: Columns, key: str, control: str | None, source: str
) -> "pd.Categorical[Any]":
    column, obs = getattr(columns, key), _table(adata)
    if column is None:
        return pd.Categorical.from_codes(np.zeros(adata.n_obs, dtype=np.int8), pd.Index([""], dtype=str))

    def read(name: str, named_by: str) -> "pd.Series[Any]":
        return column_of(obs, name, named_by, source)

    labels = labels_from(read, columns, control) if key == "perturbation" else read(column, f"columns.{key}")
    codes, unique = pd.factorize(labels)
    texts = np.array([str(label) for label in unique], dtype=object)
    missing = codes < 0
    if len(texts):
        missing |= np.array([not text.strip() for text in texts])[codes]
    if missing.any():
        raise missing_labels(column, source, int(missing.sum()), adata.obs_names[int(np.argmax(missing))])
    check_label_texts(texts, column, source)
    known = sorted(set(texts))
    place = pd.Index(known, dtype=str)
    return pd.Categorical.from_codes(place.get_indexer(pd.Index(texts, dtype=str))[codes], place)


def _table(adata: anndata.AnnData) -> pd.DataFrame:
    found: Any = adata.obs
    return cast("pd.DataFrame", found)


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
    check_control_label(control, cells.labels["perturbation"].cat.categories, columns.perturbation)
    return control


def _join(parts: list[Cells], paths: list[Path], recipe: Recipe, table: GeneTable | None) -> Cells:
    """Cells of the files as one, as the recipe says."""
    files = [path.name for path in paths]
    renamed = [(part.genes, None) if table is None else table.rename(part.genes) for part in parts]
    genes = [one for one, _ in renamed]
    joined = join_genes(genes, files, recipe.join)
    names, renaming = join_names([part.names for part in parts], paths, recipe.cell_names)
    of_files = [note for part in parts for note in part.notes]
    notes = dict.fromkeys([*of_files, *(note for _, note in renamed), join_note(genes, files, joined), renaming])
    totals = [part.total_counts for part in parts if part.total_counts is not None]
    values = below([aligned(part.values, one, joined) for part, one in zip(parts, genes, strict=True)])
    return replace(
        parts[0],
        values=values,
        total_counts=np.concatenate(totals) if totals else None,
        genes=joined,
        names=names,
        labels=pd.DataFrame({key: labels_below([part.labels[key] for part in parts]) for key in COVARIATES}),
        notes=tuple(note for note in notes if note is not None),
    )
