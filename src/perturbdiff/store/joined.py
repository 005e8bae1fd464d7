"""The scans of all files as one: the runs of the store, its genes, and the names that tell its cells apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from perturbdiff.cells.memory import matches
from perturbdiff.cells.order import Hashes, Integers
from perturbdiff.core.choices import COVARIATES
from perturbdiff.files.disk import Texts, opened
from perturbdiff.files.joining import (
    GeneTable,
    file_suffixes,
    join_genes,
    join_note,
    labels_below,
    shared_names,
    with_file_note,
)
from perturbdiff.labels.members import grammar_of
from perturbdiff.labels.text import (
    NO_LABEL,
    check_control_label,
    check_control_labels,
    counted,
    exclusion_notes,
    known_as,
    missing_labels,
    one_name,
    remarks,
    renamed,
    renaming_note,
)
from perturbdiff.recipes.dataset import Recipe
from perturbdiff.store.scan import HASHES, Scan
from perturbdiff.store.workdir import read_values


@dataclass(frozen=True, eq=False)
class Joined:
    """What all files hold together.

    Attributes:
        labels: a row a run, in the canonical order; categories sorted as text.
        cells: of each run.
        values: about so many values each run holds.
        digests: of the names of each run [runs, 2]; see `source.digested`.
        run_of: for each file, the run of each row of its `Scan.labels`; -1 where its cells are left out.
        genes: the genes of the store.
        file_genes: the genes of each file, renamed, in the file's order.
        identifiers: of each gene of the store, in the first file that has it.
        notes: sentences on what was done to the data.
        control: label of the control cells, as the store has it.
    """

    labels: pd.DataFrame
    cells: Integers
    values: Integers
    digests: Hashes
    run_of: list[npt.NDArray[np.int32]]
    genes: pd.Index
    file_genes: list[pd.Index]
    identifiers: Texts
    notes: tuple[str, ...]
    control: str | None

    @property
    def n_cells(self) -> int:
        """The cells that the store holds."""
        return int(self.cells.sum())

    def runs_table(self) -> pd.DataFrame:
        """A row a run, as the store has it."""
        starts = np.cumsum(self.cells) - self.cells
        table = self.labels.assign(start=starts, cells=self.cells)
        for i in range(self.digests.shape[1]):
            table[f"digest_{i}"] = self.digests[:, i]
        return table

    def genes_table(self) -> pd.DataFrame:
        """A row a gene, as the store has it."""
        present = {f"in:{i}": self.genes.isin(genes) for i, genes in enumerate(self.file_genes)}
        return pd.DataFrame({"name": self.genes.to_numpy(dtype=object), "identifier": self.identifiers, **present})


def join(scans: Sequence[Scan], paths: Sequence[Path], recipe: Recipe, table: GeneTable | None) -> Joined:
    """Join what was found in the files; `scans` are in the order of `paths`.

    Raises:
        ValueError: files have different genes where they must not; `exclude` or `control` names a label that no cell
            has; no cell remains.
    """
    file_genes, identifiers, genes, notes = _genes(scans, paths, recipe, table)
    if recipe.cell_names == "with_file":
        with opened(paths[0], recipe.expression) as found:
            name = str(found.names(0, 1)[0]) + file_suffixes(paths)[0]
        notes = (*notes, with_file_note(name))
    codes, known, spelt, control = _codes(scans, recipe)
    unique, first, place = np.unique(codes, axis=0, return_index=True, return_inverse=True)
    labels = pd.DataFrame({key: _categories(unique[:, i], known[key]) for i, key in enumerate(COVARIATES)})
    keep = np.ones(len(labels), dtype=bool)
    for i, rule in enumerate(recipe.exclude):
        keep &= ~matches(labels, rule, f"exclude[{i}]", grammar_of(recipe), control)
    cells, values = (_sums(place, [getattr(one, key) for one in scans], len(first)) for key in ("cells", "values"))
    digests = _sums(place, [one.digests for one in scans], len(first))
    notes = (*notes, *exclusion_notes(int(cells[keep].sum()), int(cells.sum())))
    labels = pd.DataFrame({key: labels[key].array[keep].remove_unused_categories() for key in COVARIATES})
    _check_labelled(labels, cells[keep], recipe)
    notes = (*notes, *spelt, *remarks(counted(labels, cells[keep]), recipe.columns, grammar_of(recipe), control))
    check_control_label(control, labels["perturbation"].cat.categories, recipe.columns.perturbation)
    run = np.where(keep, np.cumsum(keep) - 1, -1).astype(np.int32)[place.ravel()]
    run_of = np.split(run, np.cumsum([len(one.labels) for one in scans])[:-1])
    kept = (cells[keep], values[keep], digests[keep])
    return Joined(labels, *kept, run_of, genes, file_genes, identifiers, notes, control)


def check_names(scans: Sequence[Scan], paths: Sequence[Path], recipe: Recipe, *, room: int) -> None:
    """Check that no two files name a cell alike, a range of hashes at a time.

    Raises:
        ValueError: they do; the number of such names and one of them are named.
    """
    if len(scans) == 1:
        return
    n_cells = sum(one.n_cells for one in scans)
    n_ranges = max(1, -(-n_cells * 64 // room))
    n_shared, example = 0, None
    for i in range(n_ranges):
        hashes, files = _hashes_between(scans, i, n_ranges)
        order = np.lexsort((files, hashes))
        hashes, files = hashes[order], files[order]
        other = np.flatnonzero((hashes[1:] == hashes[:-1]) & (files[1:] != files[:-1]))
        n_shared += len(np.unique(hashes[other]))
        if len(other) and example is None:
            example = hashes[other[0]], int(files[other[0]]), int(files[other[0] + 1])
    if example is not None:
        wanted, first, second = example
        name = _name(scans[first], paths[first], recipe, wanted)
        raise shared_names(n_shared, name, paths[first], paths[second], recipe.cell_names)


def _genes(
    scans: Sequence[Scan], paths: Sequence[Path], recipe: Recipe, table: GeneTable | None
) -> tuple[list[pd.Index], Texts, pd.Index, tuple[str, ...]]:
    notes: dict[str, None] = {}
    known: dict[tuple[str, ...], pd.Index] = {}
    renamed = []
    for one in scans:
        genes = one.genes
        notes.update(dict.fromkeys([one.note] if one.note else []))
        if table is not None:
            genes, note = table.rename(genes)
            notes.update(dict.fromkeys([note] if note else []))
        # files of the same genes share one list of them
        renamed.append(known.setdefault(tuple(genes), genes))
    names = [path.name for path in paths]
    joined = join_genes(renamed, names, recipe.join)
    note = join_note(renamed, names, joined)
    identifiers = np.full(len(joined), "", dtype=object)
    for one, genes in zip(reversed(scans), reversed(renamed), strict=True):
        place = joined.get_indexer(genes)
        identifiers[place[place >= 0]] = one.genes.to_numpy(dtype=object)[place >= 0]
    return renamed, identifiers, joined, (*notes, *([note] if note else []))


def _codes(scans: Sequence[Scan], recipe: Recipe) -> tuple[Integers, dict[str, pd.Index], list[str], str | None]:
    """The labels of all files' conditions as codes of labels sorted as text [conditions, 3]; notes; the control."""
    labels = {key: labels_below([one.labels[key] for one in scans]) for key in COVARIATES}
    counts = counted(pd.DataFrame(labels), np.concatenate([one.cells for one in scans]))["perturbation"]
    control = None if recipe.control is None else known_as(recipe.control, counts)
    controls = [known_as(label, counts) for label in recipe.controls]
    check_control_labels(controls, list(counts), recipe.columns.perturbation)
    names = one_name(list(counts), grammar_of(recipe), control, controls)
    labels["perturbation"] = renamed(labels["perturbation"], names)
    columns = [np.asarray(labels[key].codes, dtype=np.int64) for key in COVARIATES]
    known = {key: labels[key].categories for key in COVARIATES}
    return np.stack(columns, axis=1), known, renaming_note(names, counts), control


def _check_labelled(labels: pd.DataFrame, cells: Integers, recipe: Recipe) -> None:
    """Refuse cells without a label that `exclude` leaves."""
    for key in COVARIATES:
        column, missing = getattr(recipe.columns, key), (labels[key] == NO_LABEL).to_numpy()
        if column is not None and missing.any():
            raise missing_labels(column, "the files", int(cells[missing].sum()), None)


def _categories(codes: Integers, known: pd.Index) -> "pd.Categorical[Any]":
    return pd.Categorical.from_codes(codes, pd.Index(known, dtype=str))


def _sums(place: Integers, parts: Sequence[npt.NDArray[Any]], n_runs: int) -> npt.NDArray[Any]:
    joined = np.concatenate(parts)
    sums = np.zeros((n_runs, *joined.shape[1:]), dtype=joined.dtype)
    np.add.at(sums, place.ravel(), joined)
    return sums


def _hashes_between(scans: Sequence[Scan], i: int, n_ranges: int) -> tuple[Hashes, npt.NDArray[np.int32]]:
    hashes, files = [], []
    for number, one in enumerate(scans):
        for start in range(0, one.n_cells, 1 << 20):
            some = read_values(one.folder / HASHES, np.uint64, start, min(start + (1 << 20), one.n_cells))
            if n_ranges > 1:
                some = some[((some >> np.uint64(32)) * np.uint64(n_ranges)) >> np.uint64(32) == i]
            hashes.append(some)
            files.append(np.full(len(some), number, dtype=np.int32))
    return np.concatenate(hashes), np.concatenate(files)


def _name(one: Scan, path: Path, recipe: Recipe, wanted: np.uint64) -> str:
    """The name of the cell that has this hash."""
    for start in range(0, one.n_cells, 1 << 20):
        some = read_values(one.folder / HASHES, np.uint64, start, min(start + (1 << 20), one.n_cells))
        here = np.flatnonzero(some == wanted)
        if len(here):
            with opened(path, recipe.expression) as found:
                return str(found.names(start + int(here[0]), start + int(here[0]) + 1)[0])
    return "?"
