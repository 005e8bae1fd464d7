"""The conditions that a page shows gene by gene: the chosen one first, and a fair sample of the others."""

from dataclasses import dataclass

import numpy as np

from perturbdiff.evaluation.parts import SIGNIFICANT, Genes
from perturbdiff.evaluation.result import Evaluation
from perturbdiff.report.drawing import Drawing
from perturbdiff.report.numbers import condition_name
from perturbdiff.report.projection import condition_projection
from perturbdiff.report.sampling import evenly
from perturbdiff.report.volcano import FILES_SHOWN, MOST_GREY, MOST_MARKED, GeneTable, gene_tables, volcano
from perturbdiff.spelling import nearest

MOST = 24
"""A page holds no more conditions than this, which keeps it within a few megabytes."""


@dataclass(frozen=True)
class ShownCondition:
    """A condition as it is shown: its name, what the tests found, and its drawings and tables."""

    name: str
    volcano: Drawing
    tables: tuple[GeneTable, ...]
    cells: Drawing | None


@dataclass(frozen=True)
class ShownConditions:
    """Those that the page has, and sentences on what it does not have."""

    conditions: tuple[ShownCondition, ...]
    caption: tuple[str, ...]


def place_of(genes: Genes, name: str) -> int:
    """The place of a condition by its name; what is left out of the end of it must be of one condition alone.

    Raises:
        ValueError: there is no such condition; the nearest is named.
    """
    names = [condition_name(condition) for condition in genes.conditions]
    if name in names:
        return names.index(name)
    for parts in (2, 1):
        begun = [place for place, condition in enumerate(genes.conditions) if " | ".join(condition[:parts]) == name]
        if len(begun) == 1:
            return begun[0]
    raise ValueError(
        f"--condition {name!r} is none of the {len(names)} conditions with tests of genes; {nearest(name, names)}."
    )


def shown_conditions(evaluation: Evaluation, chosen: str | None) -> ShownConditions | str:
    """Draw the conditions of a page, or say why there are none.

    Raises:
        ValueError: the chosen condition is not among them.
    """
    genes = evaluation.genes
    if genes is None:
        if chosen is not None:
            raise ValueError(
                f"--condition {chosen!r} is given, but the evaluation has no genes.parquet; leave the "
                "option out, or run evaluate again."
            )
        return evaluation.missing.get("genes", "There are no tests of genes.")
    places = _places(genes, None if chosen is None else place_of(genes, chosen))
    files = [method.name for method in evaluation.of_kind("predicted")]
    shown, most = [], 0
    for number, place in enumerate(places):
        condition = genes.conditions[place]
        drawing, left_out = volcano(genes, place, f"volcano{number}")
        most = max(most, left_out)
        cells = evaluation.projection
        placed = None if cells is None else condition_projection(cells, condition, files, f"condition{number}")
        shown.append(ShownCondition(condition_name(condition), drawing, gene_tables(genes, place), placed))
    return ShownConditions(tuple(shown), tuple(_caption(genes, len(places), most)))


def _places(genes: Genes, chosen: int | None) -> list[int]:
    """All conditions, most DE genes first; of very many an even sample of that order; the chosen one before all."""
    order: list[int] = np.argsort(-genes.n_true, kind="stable")[evenly(len(genes.n_true), MOST)].tolist()
    if chosen is None:
        return order
    return [chosen, *(place for place in order if place != chosen)][:MOST]


def _caption(genes: Genes, n_shown: int, left_out: int) -> list[str]:
    said = [
        f"A gene is DE where its adjusted p is below {SIGNIFICANT:g}; changes are differences of mean log1p expression "
        "from control cells."
    ]
    if n_shown < len(genes.conditions):
        said.append(
            f"{n_shown} of {len(genes.conditions)} conditions are here, evenly taken from that with the most DE genes "
            "to that with the fewest; make the report with --condition for another."
        )
    if len(genes.predicted) > FILES_SHOWN:
        said.append(f"The first {FILES_SHOWN} of {len(genes.predicted)} predicted files are shown.")
    if left_out:
        said.append(
            f"Panels draw {MOST_GREY} genes of no significance and {MOST_MARKED} of each other kind at most, a random "
            "sample; counts are of all genes."
        )
    return said
