"""Cells in memory: expression, labels and names of every cell of a data set; a source, see `cells.source`.

The unit of expression everywhere is ``x = log1p(10^4 c / t)``, with c a cell's count of a gene and t the cell's total
count over all genes of its file (or the column of totals that the recipe declares, where a file holds a panel only).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from perturbdiff.cells.counts import recovered
from perturbdiff.cells.order import (
    Hashes,
    Integers,
    Loaded,
    Runs,
    Segments,
    arrange,
    digested,
    mixed,
    name_hashes,
    thinned_note,
)
from perturbdiff.core.choices import COVARIATES
from perturbdiff.files.matrices import (
    Matrix,
    Scale,
)
from perturbdiff.labels.members import at_any_dose, same_as
from perturbdiff.labels.text import NO_LABEL, is_missing, plain
from perturbdiff.labels.vocabulary import columns_of
from perturbdiff.recipes.dataset import PER, PLAIN, Grammar
from perturbdiff.recipes.selection import Match
from perturbdiff.spelling import nearest

type Rows = npt.NDArray[np.integer[Any]]

_PROFILED = 1 << 20
"""About so many values are hashed together."""


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
        grammar: what labels of perturbation are made of.
        origins: the number of the control cell that each was made of [n]; None for cells that were not made.
        draws: which of several drawn populations each is of [n]; None for cells that were not drawn.
    """

    values: Matrix
    scale: Scale
    total_counts: npt.NDArray[np.float64] | None
    genes: pd.Index
    names: pd.Index
    labels: pd.DataFrame
    control: str | None
    notes: tuple[str, ...] = ()
    grammar: Grammar = PLAIN
    origins: npt.NDArray[np.int64] | None = None
    draws: npt.NDArray[np.int64] | None = None

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

    @cached_property
    def known_totals(self) -> npt.NDArray[np.float64]:
        """The total counts of the cells [n]; of log1p values those that `counts.recovered` finds, NaN elsewhere."""
        return recovered(self.values) if self.total_counts is None else self.total_counts

    @property
    def order(self) -> Integers:
        """The canonical order: the row at each position [n]; see `cells.order`."""
        return self._arranged[0]

    @property
    def runs(self) -> Runs:
        """The runs of the canonical order."""
        return self._arranged[1]

    @property
    def bytes_per_cell(self) -> float:
        """See `Source`."""
        return 0.0

    @cached_property
    def digests(self) -> Hashes:
        """See `Source`."""
        return digested(self._hashes[self.order], self.runs.offsets)

    def moments(self, split: str) -> None:
        """See `Source`: measured when asked for."""

    def hashes(self, start: int, stop: int) -> Hashes:
        """See `Source`."""
        return self._hashes[self.order[start:stop]]

    def profiles(self, start: int, stop: int) -> tuple[Hashes, Integers]:
        """See `Source`."""
        rows = self.order[start:stop]
        hashes, expressed = self._profiles
        return hashes[rows], expressed[rows]

    def name(self, position: int) -> str:
        """See `Source`."""
        return str(self.names[self.order[position]])

    def names_at(self, start: int, stop: int) -> npt.NDArray[np.object_]:
        """See `Source`."""
        return self.names[self.order[start:stop]].astype(str).to_numpy(dtype=object)

    def rows(self, segments: Segments) -> Integers:
        """The rows of segments, ascending."""
        return np.sort(self.order[segments.positions()])

    def in_memory(self, segments: Segments, at_most: int | None = None) -> "Cells":
        """See `Source`; in the order of the rows."""
        some = segments.thinned(at_most)
        cells = self.take(self.rows(some))
        return replace(cells, notes=(*cells.notes, *thinned_note(segments, some)))

    def segments(self, rows: Rows) -> Segments:
        """The segments that rows make."""
        place = np.empty(self.n_cells, dtype=np.int64)
        place[self.order] = np.arange(self.n_cells)
        return Segments.of(self.runs, np.sort(place[rows]))

    def reader(self, genes: Sequence[str], segments: Segments, scale: float = 1.0) -> "Held":
        """See `Source`: the panel of these segments, made once and held in memory."""
        positions = segments.positions()
        rows = self.order[positions]
        expression = self.log_expression(genes, rows)
        expression.data /= np.float32(scale)
        return Held(Loaded(positions, expression, self.known_totals[rows]))

    @cached_property
    def _hashes(self) -> Hashes:
        return name_hashes(self.names)

    @cached_property
    def _arranged(self) -> tuple[Integers, Runs]:
        return arrange(self.labels, self._hashes, self.control, self.grammar)

    @cached_property
    def _profiles(self) -> tuple[Hashes, Integers]:
        return profile_hashes(self.values)

    def log_expression(self, genes: Sequence[str], rows: Rows | None = None) -> "sp.csr_matrix[np.float32]":
        """Expression of `genes`, in their order, and of `rows` (all of them when None): log1p counts per 10^4.

        Counts of 0 stay 0, so the result is as sparse as the counts. Values that are log1p already pass through.

        Raises:
            ValueError: a gene is not there; the nearest is named.
        """
        place = columns_of(genes, self.genes)
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
            origins=None if self.origins is None else self.origins[rows],
            draws=None if self.draws is None else self.draws[rows],
        )


@dataclass(frozen=True)
class Held:
    """A reader whose cells are in memory already."""

    loaded: Loaded

    def load(self, positions: Integers) -> Loaded:  # noqa: ARG002 - all of them are there
        """All cells that it holds."""
        return self.loaded


def matches(
    labels: pd.DataFrame, rule: Match, place: str | None, grammar: Grammar = PLAIN, control: str | None = None
) -> npt.NDArray[np.bool_]:
    """Which cells a rule matches [n].

    A label is found by what it means, as are all others that mean the same; a drug without its dose is meant at every
    dose, and a missing label ("", "nan") is that of the cells without one.

    Args:
        labels: a row a cell (or a run), categories.
        rule: what to look for.
        place: opens the sentence of an error ("hold_out[0]"); None where a label that no cell has matches none.
        grammar: what labels of perturbation are made of.
        control: label of the control cells.

    Raises:
        ValueError: the rule names a label that no cell has; the nearest is named.
    """
    found = np.ones(len(labels), dtype=bool)
    for covariate, wanted in rule.named().items():
        categories = labels[covariate].cat.categories
        known = list(map(str, categories))
        own = covariate == "perturbation"
        # labels of one meaning have one of them as their name
        names = same_as([*known, *wanted], [*known, *wanted], grammar, control) if own else {}
        named: list[str] = []
        for label in wanted:
            spelt = (label, plain(label), NO_LABEL if is_missing(label) else label)
            meant = {names.get(text, text) for text in next(([text] for text in spelt if text in known), [label])}
            one = [text for text in known if names.get(text, text) in meant] or at_any_dose(label, known)
            if not one and place is not None:
                raise ValueError(
                    f"{place} names {covariate} {label!r}, which no cell has; "
                    f"{nearest(label, categories)}; mend the label or leave it out."
                )
            named += one
        found &= np.isin(labels[covariate].cat.codes, categories.get_indexer(pd.Index(named, dtype=str)))
    return found


def profile_hashes(values: Matrix) -> tuple[Hashes, Integers]:
    """A 64-bit hash of every row of [n, genes], equal for equal rows, and its number of expressed genes [n].

    The hash is a sum over expressed genes of a mixed (gene, value), so it needs no sorting and one pass in chunks.
    """
    keys = mixed(np.arange(1, values.shape[1] + 1, dtype=np.uint64))
    hashes = np.zeros(values.shape[0], dtype=np.uint64)
    expressed = np.zeros(values.shape[0], dtype=np.int64)
    n_cells, per_cell = values.shape
    if not isinstance(values, np.ndarray):
        per_cell = values.nnz // max(1, n_cells)
    step = max(1, _PROFILED // max(1, per_cell))
    for start in range(0, n_cells, step):
        block = sp.csr_matrix(values[start : start + step], dtype=np.float64)
        block.eliminate_zeros()
        terms = mixed(block.data.view(np.uint64) ^ keys[block.indices])
        filled = np.flatnonzero(np.diff(block.indptr))
        if len(filled):
            hashes[start + filled] = np.add.reduceat(terms, block.indptr[filled])
        expressed[start : start + step] = np.diff(block.indptr)
    return hashes, expressed


def _float32_csr(values: Matrix, *, fresh: bool) -> "sp.csr_matrix[np.float32]":
    """A CSR matrix of its own, so that it can be changed in place; `fresh` values are nobody else's."""
    if isinstance(values, np.ndarray) or fresh:
        return sp.csr_matrix(values, dtype=np.float32)
    data = values.data.astype(np.float32)
    return sp.csr_matrix((data, values.indices.copy(), values.indptr.copy()), shape=values.shape)
