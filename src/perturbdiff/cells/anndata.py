"""From an AnnData or a recipe's files to cells in memory, checked once on the way in."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import anndata
import numpy as np
import pandas as pd

from perturbdiff.cells.memory import Cells, matches
from perturbdiff.cells.order import Flags, Integers
from perturbdiff.core.choices import COVARIATES
from perturbdiff.files.container import read_anndata
from perturbdiff.files.joining import (
    GeneTable,
    aligned,
    below,
    gene_table_of,
    join_genes,
    join_names,
    join_note,
    labels_below,
)
from perturbdiff.files.matrices import clipped, column_of, expression_of
from perturbdiff.files.totals import check_totals_fit, checked, genes_summed
from perturbdiff.labels.members import grammar_of, labels_from
from perturbdiff.labels.text import (
    NO_LABEL,
    check_control_label,
    check_control_labels,
    check_label_texts,
    counted,
    exclusion_notes,
    known_as,
    missing_labels,
    one_name,
    remarks,
    renamed,
    renaming_note,
    texts_of,
)
from perturbdiff.recipes.dataset import PLAIN, Columns, Expression, Grammar, Recipe
from perturbdiff.recipes.files import resolve_files
from perturbdiff.recipes.selection import Match

type Required = Literal["all", "any", "none"]


class Made(NamedTuple):
    """The columns that say how cells were made.

    Attributes:
        origin: names the control cell of which each was made.
        draw: tells apart the populations that were drawn of a condition.
    """

    origin: str | None = None
    draw: str | None = None


MEASURED = Made()
"""Of cells that were measured."""


def cells_from_anndata(
    adata: anndata.AnnData,
    *,
    columns: Columns,
    expression: Expression,
    control: str | None,
    controls: Sequence[str] = (),
    grammar: Grammar = PLAIN,
    exclude: Sequence[Match] = (),
    source: str = "the data",
    summed: tuple[str, ...] | None = None,
    observed: bool = True,
    clip: bool = False,
    require: Required = "all",
    made: Made = MEASURED,
) -> Cells:
    """Cells of an AnnData in memory; its matrix is taken as it is, not copied, where it is CSR or dense.

    Labels of `controls` are control cells too, and labels that mean the same by the grammar are one; see `labels.text`.

    Args:
        adata: the cells.
        columns: of obs.
        expression: where it is, and its scale.
        control: label of the control cells.
        controls: further labels of control cells.
        grammar: what labels of perturbation are made of.
        exclude: cells that are left out.
        source: opens the sentences of errors.
        summed: the genes over which each cell's total count runs; all of them when None.
        observed: whether the cells are measured ones, whose sums tell what they were normalised to.
        clip: whether values below 0 count as 0, and a note says so.
        require: whether all labels of control cells must be there, any of them, or none.
        made: columns that say how cells were made.

    Raises:
        ValueError: a column, the layer, the control label or a label of `exclude` is not there (the nearest is
            named); labels are missing; values are negative, not finite or not integers where counts are declared;
            gene names are repeated; there are no cells; total counts are impossible; log1p values are of counts
            normalised to another total than is declared.
    """
    rules = Rules(columns, control, tuple(controls), grammar, tuple(exclude), require)
    part, seen = _load(adata, expression, rules, source, summed=summed, observed=observed, clip=clip, made=made)
    return _select(part, [seen], rules, source)


def read_cells(recipe: Recipe, folder: Path) -> Cells:
    """Cells of a recipe's files, one below the other; paths are relative to `folder`.

    Genes are in the order of the first file; `files.joining` says how files with other genes or with the same names of
    cells are joined. A gene that a file lacks holds no counts in its cells.

    Raises:
        ValueError: as `cells_from_anndata`; or the files have different genes, or cells of the same name, where the
            recipe does not say what to do.
        FileNotFoundError: a file, or the table of genes, is not there.
    """
    paths = resolve_files(recipe, folder)
    table = gene_table_of(recipe.expression, folder)
    rules = Rules(recipe.columns, recipe.control, recipe.controls, grammar_of(recipe), recipe.exclude)
    loaded = [_load(read_anndata(path), recipe.expression, rules, path.name) for path in paths]
    cells = _join([part for part, _ in loaded], paths, recipe, table)
    source = paths[0].name if len(paths) == 1 else f"the {len(paths)} files"
    return _select(cells, [seen for _, seen in loaded], rules, source)


class Rules(NamedTuple):
    """How labels are read, and which cells are left out."""

    columns: Columns
    control: str | None
    controls: tuple[str, ...]
    grammar: Grammar
    exclude: tuple[Match, ...]
    require: Required = "all"

    def check(self) -> None:
        """Refuse a column of perturbations without a control label, or the other way round."""
        if (self.columns.perturbation is None) != (self.control is None):
            raise ValueError(
                f"control = {self.control!r} and columns.perturbation = {self.columns.perturbation!r} belong together; "
                "give both or neither."
            )


class Seen(NamedTuple):
    """What a file holds: its conditions, those that are left out among them, and the number of its cells."""

    conditions: pd.DataFrame
    n_cells: int


def _load(
    adata: anndata.AnnData,
    expression: Expression,
    rules: Rules,
    source: str,
    *,
    summed: tuple[str, ...] | None = None,
    observed: bool = True,
    clip: bool = False,
    made: Made = MEASURED,
) -> tuple[Cells, Seen]:
    """The cells of a file without those that `exclude` leaves out (all of them, where it leaves none)."""
    values, genes, _, note = expression_of(adata, expression, source)
    notes = [note]
    labels = pd.DataFrame({key: _labels(adata, rules, key, source) for key in COVARIATES})
    names, obs = pd.Index(adata.obs_names.astype(str), name=None), _table(adata)
    seen = Seen(labels.drop_duplicates(ignore_index=True), len(labels))
    left = _excluded(labels, rules)
    if left.any() and not left.all():
        # what is left out need be neither labelled nor counted
        values, names, obs = values[~left], names[~left], obs[~left]
        labels = pd.DataFrame({key: labels[key].array[~left].remove_unused_categories() for key in COVARIATES})
    if clip:
        values, below = clipped(values, source)
        notes.append(below)
    check_totals_fit(rules.columns, expression.scale, source)
    own = expression.scale == "counts" and rules.columns.total_counts is None
    over = genes_summed(genes, summed, source) if own else None
    found = checked(values, obs, rules.columns, expression, source, summed=over, observed=observed)
    said = tuple(one for one in (*notes, found.note) if one is not None)
    cells = Cells(found.rows, expression.scale, found.totals, genes, names, labels, None, said, rules.grammar)
    if made.origin is not None:
        cells = replace(cells, origins=_numbered(column_of(obs, made.origin, "the control cells", source)))
    if made.draw is not None:
        cells = replace(cells, draws=_numbered(column_of(obs, made.draw, "the populations", source)))
    return cells, seen


def _numbered(origins: "pd.Series[Any]") -> Integers:
    """The numbers of what cells were made of or belong to; those of which it is not said have one each."""
    found = pd.factorize(origins)[0].astype(np.int64)
    unknown = np.flatnonzero(found < 0)
    found[unknown] = found.max(initial=-1) + 1 + np.arange(len(unknown))
    return found


def _labels(adata: anndata.AnnData, rules: Rules, key: str, source: str) -> "pd.Categorical[Any]":
    column, obs = getattr(rules.columns, key), _table(adata)
    if column is None:
        return pd.Categorical.from_codes(np.zeros(adata.n_obs, dtype=np.int8), pd.Index([NO_LABEL], dtype=str))

    def read(name: str, named_by: str) -> "pd.Series[Any]":
        found = column_of(obs, name, named_by, source)
        return texts_of(found, declared) if name == column else found

    own, declared = key == "perturbation", (rules.control, *rules.controls) if key == "perturbation" else ()
    labels = labels_from(read, rules.columns, *declared) if own else read(column, f"columns.{key}")
    codes, unique = pd.factorize(labels)
    texts = [*map(str, unique), NO_LABEL]
    check_label_texts(texts, column, source)
    place = pd.Index(sorted({texts[code] for code in np.unique(codes)}), dtype=str)
    return pd.Categorical.from_codes(place.get_indexer(pd.Index(texts, dtype=str))[codes], place)


def _table(adata: anndata.AnnData) -> pd.DataFrame:
    found: Any = adata.obs
    return cast("pd.DataFrame", found)


def _select(cells: Cells, seen: Sequence[Seen], rules: Rules, source: str) -> Cells:
    """The cells with their control label, one name for each label, and sentences on their labels."""
    rules.check()
    cells, notes = _kept(cells, seen, rules)
    for key in COVARIATES:
        column, own = getattr(rules.columns, key), cells.labels[key]
        missing = (own == NO_LABEL).to_numpy()
        if column is not None and missing.any():
            raise missing_labels(column, source, int(missing.sum()), str(cells.names[int(np.argmax(missing))]))
    before = counted(cells.labels)
    known, column = list(before["perturbation"]), rules.columns.perturbation
    control = None if rules.control is None else known_as(rules.control, known)
    controls = [known_as(label, known) for label in rules.controls]
    if rules.require == "all":
        check_control_labels(controls, known, column)
    names = one_name(known, rules.grammar, control, controls)
    if names:
        labels = cells.labels.assign(perturbation=renamed(cells.labels["perturbation"].array, names))
        cells = replace(cells, labels=labels)
    if rules.require != "none":
        check_control_label(control, cells.labels["perturbation"].cat.categories, column)
    notes += renaming_note(names, before["perturbation"])
    notes += remarks(counted(cells.labels) if names else before, rules.columns, rules.grammar, control)
    return replace(cells, control=control, notes=(*cells.notes, *notes))


def _kept(cells: Cells, seen: Sequence[Seen], rules: Rules) -> tuple[Cells, list[str]]:
    """The cells that `exclude` leaves, and the sentence on how many it leaves out.

    Raises:
        ValueError: it names a label that no cell has, or leaves no cell.
    """
    labels = pd.DataFrame({key: labels_below([one.conditions[key] for one in seen]) for key in COVARIATES})
    for i, rule in enumerate(rules.exclude):
        matches(labels, rule, f"exclude[{i}]", rules.grammar, rules.control)
    left, n_all = _excluded(cells.labels, rules), sum(one.n_cells for one in seen)
    notes = exclusion_notes(int((~left).sum()), n_all)
    return cells.take(~left) if left.any() else cells, notes


def _excluded(labels: pd.DataFrame, rules: Rules) -> Flags:
    """Which cells `exclude` leaves out; a label that the file does not have is of no cell."""
    left = np.zeros(len(labels), dtype=bool)
    for rule in rules.exclude:
        left |= matches(labels, rule, None, rules.grammar, rules.control)
    return left


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
