"""The first look at every file, without its matrix: whose cell is whose, and all that is wrong with labels and names.

A scan writes two facts of every cell, the condition that it belongs to and the hash of its name, as plain numbers
beside the store; what it gives back has the size of the conditions.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from perturbdiff.cells.memory import matches
from perturbdiff.cells.order import Flags, Hashes, Integers, mixed, name_hashes
from perturbdiff.core.choices import COVARIATES
from perturbdiff.files.disk import OnDisk, check_whole, opened
from perturbdiff.files.matrices import check_column, check_integers
from perturbdiff.files.totals import Checked, check_totals_fit, checked
from perturbdiff.labels.members import grammar_of, labels_from
from perturbdiff.labels.text import NO_LABEL, check_label_texts, texts_of
from perturbdiff.recipes.dataset import Recipe
from perturbdiff.store.workdir import unit

_CELLS = 1 << 18
"""So many cells are looked at together."""

_PLACES, _SAMPLED = 16, 64
"""Values are looked at in so many places of a file, of so many cells each, before the long work."""

_SEARCHED = 1 << 24
"""A .zarr of more cells is not searched for missing files, since that takes the ends of all rows at once."""

_BITS = 21
"""A file has fewer than 2^21 labels of a covariate."""

RUNS, HASHES = "runs.int32", "hashes.uint64"
"""The facts of a file's cells: the row of `Scan.labels` of each, and the hash of its name."""


@dataclass(frozen=True, eq=False)
class Scan:
    """What a file holds.

    Attributes:
        folder: where the facts of its cells are.
        genes: as the file names them.
        labels: a row for each (perturbation, cell_type, assay_batch) that the file has; categories of text.
        cells: of each row of `labels`.
        values: about so many values its cells hold.
        digests: sums over the cells of each row; see `source.digested`.
        note: a sentence on features that are no genes.
    """

    folder: Path
    n_cells: int
    genes: pd.Index
    labels: pd.DataFrame
    cells: Integers
    values: Integers
    digests: Hashes
    note: str | None = None


def scan(path: Path, recipe: Recipe, folder: Path, *, suffix: str, room: int) -> Scan:
    """Scan one file into `folder`, or read what was written there before.

    Args:
        path: of the file.
        recipe: what to look for.
        folder: for the facts of its cells.
        suffix: is added to the names of its cells.
        room: bytes of memory there are.

    Raises:
        ValueError: a column, layer or gene names are not there; labels hold control characters; values
            in a sample of its cells are not what the recipe says; a matrix stored by genes is too large;
            parts of a .zarr are missing.
    """
    if not folder.is_dir():
        with opened(path, recipe.expression) as found:
            found.check_room(room)
            if path.is_dir() and found.shape[0] <= _SEARCHED:
                check_whole(path)
            per_cell = _look(found, recipe)
            with unit(folder) as partial:
                partial.mkdir()
                _write(found, recipe, suffix, per_cell, partial)
    return _read(folder)


def checked_rows(found: OnDisk, recipe: Recipe, start: int, stop: int, kept: Flags) -> Checked:
    """Read the cells start to stop that are kept; the others need not be expression, nor have counts.

    Raises:
        ValueError: as in `totals.checked`, but for what takes the whole file.
    """
    rows, column, obs = found.rows(start, stop), recipe.columns.total_counts, dict[str, Any]()
    if not kept.all():
        rows = rows[kept]
    if column is not None:
        check_column(found.obs.columns, column, "columns.total_counts", found.source)
        obs[column] = found.column(column, start, stop)[kept].reset_index(drop=True)
    return checked(rows, pd.DataFrame(obs), recipe.columns, recipe.expression, found.source, whole=False)


def _look(found: OnDisk, recipe: Recipe) -> float:
    """Refuse a file by a sample of its values, before any long work; else give a cell's mean number of values."""
    scale, n_cells = recipe.expression.scale, found.shape[0]
    check_totals_fit(recipe.columns, scale, found.source)
    if found.form == "csc":
        return (found.n_stored or 0) / n_cells
    starts = np.unique(np.linspace(0, max(0, n_cells - _SAMPLED), _PLACES).astype(np.int64)).tolist()
    n_rows, n_values, integers, highest = 0, 0, True, 0.0
    for start in starts:
        stop = min(start + _SAMPLED, n_cells)
        some = checked_rows(found, recipe, start, stop, _Conditions(recipe).kept(found, start, stop))
        n_rows, n_values = n_rows + some.rows.shape[0], n_values + int(np.count_nonzero(some.rows.data))
        integers, highest = integers and some.integers, max(highest, some.highest)
    if integers:
        check_integers(highest, scale, found.source)
    return n_values / max(1, n_rows)


class _Conditions:
    """The rows of `Scan.labels`, as they are met."""

    def __init__(self, recipe: Recipe) -> None:
        self.columns, self.control = recipe.columns, recipe.control
        self.exclude, self.grammar = recipe.exclude, grammar_of(recipe)
        self.declared = (recipe.control, *recipe.controls)
        self.codes: dict[str, dict[str, int]] = {key: {} for key in COVARIATES}
        self.keys = pd.Index([], dtype=np.int64)
        self.cells, self.values = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self.digests = np.zeros((0, 2), np.uint64)

    def meet(self, found: OnDisk, start: int, stop: int) -> Integers:
        """The condition of each of the cells start to stop."""
        key = np.zeros(stop - start, dtype=np.int64)
        for covariate in COVARIATES:
            key = (key << _BITS) | self._codes(found, covariate, start, stop)
        unique, place = np.unique(key, return_inverse=True)
        self.keys = self.keys.append(pd.Index(unique[self.keys.get_indexer(pd.Index(unique)) < 0]))
        return np.asarray(self.keys.get_indexer(pd.Index(unique)), dtype=np.int64)[place]

    def kept(self, found: OnDisk, start: int, stop: int) -> Flags:
        """Which of the cells start to stop no rule of `exclude` leaves out."""
        codes = {key: self._codes(found, key, start, stop) for key in COVARIATES}
        labels: dict[str, Any] = {
            key: pd.Categorical.from_codes(own, pd.Index(list(self.codes[key]), dtype=str))
            for key, own in codes.items()
        }
        left = np.zeros(stop - start, dtype=bool)
        for rule in self.exclude:
            left |= matches(pd.DataFrame(labels), rule, None, self.grammar, self.control)
        return ~left

    def count(self, met: Integers, hashes: Hashes, lengths: Integers) -> None:
        """Add to the sums of cells, values and digests."""
        grown = len(self.keys) - len(self.cells)
        self.cells, self.values = np.pad(self.cells, (0, grown)), np.pad(self.values, (0, grown))
        self.digests = np.pad(self.digests, ((0, grown), (0, 0)))
        order = np.argsort(met, kind="stable")
        rows, first = np.unique(met[order], return_index=True)
        self.cells[rows] += np.add.reduceat(np.ones_like(met), first)
        self.values[rows] += np.add.reduceat(lengths[order], first)
        for i, words in enumerate((mixed(hashes), mixed(~hashes))):
            self.digests[rows, i] += np.add.reduceat(words[order], first)

    def labels(self) -> dict[str, tuple[Integers, list[str]]]:
        """The codes of each condition's labels, and what they stand for."""
        keys, mask = self.keys.to_numpy(), (1 << _BITS) - 1
        shifts = {key: _BITS * (len(COVARIATES) - 1 - i) for i, key in enumerate(COVARIATES)}
        return {key: ((keys >> shifts[key]) & mask, list(self.codes[key])) for key in COVARIATES}

    def _codes(self, found: OnDisk, covariate: str, start: int, stop: int) -> Integers:
        column, known = getattr(self.columns, covariate), self.codes[covariate]
        if column is None:
            known.setdefault("", 0)
            return np.zeros(stop - start, dtype=np.int64)

        def read(name: str, named_by: str) -> "pd.Series[Any]":
            check_column(found.obs.columns, name, named_by, found.source)
            values = found.column(name, start, stop)
            return texts_of(values, declared) if name == column else values

        own, declared = covariate == "perturbation", self.declared if covariate == "perturbation" else ()
        labels = labels_from(read, self.columns, *declared) if own else read(column, f"columns.{covariate}")
        codes, unique = pd.factorize(labels)
        texts = [*map(str, unique)]
        if (codes < 0).any():
            texts.append(NO_LABEL)  # where code -1 points
        check_label_texts(texts, column, found.source)
        place = [known.setdefault(text, len(known)) for text in texts]
        if len(known) >= 1 << _BITS:
            raise ValueError(
                f"column {column!r} of {found.source} has more than {1 << _BITS} labels, and cells share labels; "
                f"name another column in columns.{covariate}."
            )
        return np.array(place, dtype=np.int64)[codes]


def _write(found: OnDisk, recipe: Recipe, suffix: str, per_cell: float, folder: Path) -> None:
    conditions = _Conditions(recipe)
    n_cells = found.shape[0]
    with (folder / RUNS).open("wb") as runs, (folder / HASHES).open("wb") as hashes:
        for start in range(0, n_cells, _CELLS):
            stop = min(start + _CELLS, n_cells)
            met = conditions.meet(found, start, stop)
            names = found.names(start, stop)
            hashed = name_hashes(names + suffix if suffix else names)
            lengths = found.lengths(start, stop)
            if lengths is None:
                lengths = np.full(stop - start, round(per_cell), dtype=np.int64)
            conditions.count(met, hashed, lengths)
            runs.write(met.astype(np.int32).data)
            hashes.write(hashed.data)
    np.savez(folder / "sums.npz", cells=conditions.cells, values=conditions.values, digests=conditions.digests)
    labels = {key: [codes.tolist(), texts] for key, (codes, texts) in conditions.labels().items()}
    facts = {"n_cells": n_cells, "genes": list(found.genes), "labels": labels, "note": found.note}
    (folder / "facts.json").write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")


def _read(folder: Path) -> Scan:
    facts: dict[str, Any] = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    labels = {key: pd.Categorical.from_codes(codes, pd.Index(texts)) for key, (codes, texts) in facts["labels"].items()}
    with np.load(folder / "sums.npz", allow_pickle=False) as sums:
        arrays: dict[str, npt.NDArray[Any]] = {key: sums[key] for key in ("cells", "values", "digests")}
    return Scan(
        folder,
        facts["n_cells"],
        pd.Index(facts["genes"], dtype=str),
        pd.DataFrame(labels),
        **arrays,
        note=facts.get("note"),
    )
