"""What is judged: a condition, the context that it stands in, and the genes that its label names.

A condition is what was predicted: a (perturbation, cell type, assay batch), or a (perturbation, cell type) over all
assay batches where the prediction leaves these open (*pooled*). Its context is its cell type and assay batch.

The targets of a perturbation are the genes that its label names. A label has no grammar here: it and every word of it
may be the name of a gene. So ``A+B|CRISPRa`` names A, B and CRISPRa, of which those count that are judged.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LABELS = ("perturbation", "cell_type", "assay_batch")
"""The labels of a condition, in the order of every table."""

_BETWEEN_NAMES = (re.compile(r"[^\w.\-]+"), re.compile(r"[^A-Za-z0-9.\-]+"))
_LEFT = 2
"""So many genes must be left to be judged."""


class Context(NamedTuple):
    """The kind of cells of a condition, and their assay batch; an empty label: no such column, or any batch."""

    cell_type: str
    assay_batch: str = ""

    def __str__(self) -> str:
        """The labels that there are, as sentences show them."""
        kind = f"cell type {self.cell_type!r}" if self.cell_type else "the only cell type"
        return f"{kind} of assay batch {self.assay_batch!r}" if self.assay_batch else kind


class Condition(NamedTuple):
    """What a population was given, what kind of cells it holds, and of which assay batch (a donor, a plate).

    An empty label: no such column; an empty assay batch also: the cells of all batches together.
    """

    perturbation: str
    cell_type: str
    assay_batch: str = ""

    def __str__(self) -> str:
        """The labels that there are, as error messages show them."""
        where = f"{self.perturbation} in {self.cell_type}" if self.cell_type else self.perturbation
        return f"{where} of {self.assay_batch}" if self.assay_batch else where

    @property
    def context(self) -> Context:
        """Its cell type and assay batch."""
        return Context(self.cell_type, self.assay_batch)

    @property
    def pair(self) -> tuple[str, str]:
        """Its perturbation and cell type."""
        return self.perturbation, self.cell_type

    @property
    def place(self) -> tuple[str, str, str]:
        """What conditions are sorted by: the context, then the perturbation."""
        return self.cell_type, self.assay_batch, self.perturbation


@dataclass(frozen=True)
class Pooling:
    """Which (perturbation, cell type) are judged over all assay batches: everything, or those named.

    An empty cell type names the perturbation in every cell type.
    """

    everything: bool = False
    pairs: frozenset[tuple[str, str]] = frozenset()

    def of(self, perturbation: str, cell_type: str, assay_batch: str) -> Condition:
        """The condition that cells of these labels belong to."""
        pooled = self.everything or not self.pairs.isdisjoint({(perturbation, cell_type), (perturbation, "")})
        return Condition(perturbation, cell_type, "" if pooled else assay_batch)


APART = Pooling()
"""Every assay batch by itself."""

TOGETHER = Pooling(everything=True)
"""All assay batches together."""


def gene_names(label: str) -> list[str]:
    """A label of perturbation, and its words: what may be the name of a gene."""
    words = [word for between in _BETWEEN_NAMES for word in between.split(label) if word]
    return list(dict.fromkeys([label, *words]))


def target_places(label: str, places: Mapping[str, int]) -> NDArray[np.int64]:
    """The places of the genes that a label names; none where fewer than two others would be left.

    Args:
        label: of a perturbation.
        places: of the judged genes, by name.
    """
    found = [places[name] for name in gene_names(label) if name in places]
    return np.array(found if len(found) + _LEFT <= len(places) else [], dtype=np.int64)


def target_notes(named: int, conditions: int) -> list[str]:
    """A sentence where some of the conditions have labels that name judged genes."""
    if not named:
        return []
    have = "has" if named == 1 else "have"
    return [
        f"{named} of {conditions} conditions {have} a label that names judged genes; these genes are left out of "
        "our own metrics of the condition."
    ]
