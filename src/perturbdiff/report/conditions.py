"""The conditions that a page shows gene by gene: the chosen one first, and a fair sample of the others."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from perturbdiff.figures.drawing import Drawing
from perturbdiff.figures.numbers import condition_name, fixed, power, signed
from perturbdiff.figures.projection import condition_projection
from perturbdiff.figures.sampling import evenly
from perturbdiff.figures.volcano import MOST_GREY, MOST_MARKED, surest, volcano
from perturbdiff.metrics.conditions import Condition
from perturbdiff.report.drawings import absent, names_of
from perturbdiff.report.tables import Cell, Row, Table
from perturbdiff.results.evaluation import Evaluation
from perturbdiff.results.parts import OBSERVED, SIGNIFICANT, Genes, Projection
from perturbdiff.spelling import nearest

MOST = 24
"""A page holds no more conditions than this, which keeps it within a few megabytes."""

FILES_SHOWN = 3
"""A condition shows the observed cells and no more predicted files than this."""

TOP = 12
"""So many genes are in a table."""


@dataclass(frozen=True)
class ShownCondition:
    """A condition as it is shown: its name, its drawings, and tables of genes with two cells a side: change, p."""

    name: str
    volcano: Drawing
    tables: tuple[Table, ...]
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
        return absent(evaluation, "genes")
    places = _places(genes, None if chosen is None else place_of(genes, chosen))
    files, cells = names_of(evaluation, "predicted")[:FILES_SHOWN], evaluation.projection
    sides = [OBSERVED, *genes.predicted[:FILES_SHOWN]]
    shown, most = [], 0
    for number, place in enumerate(places):
        tests = {
            side: (genes.change[side][place].astype(np.float64), genes.evidence[side][place].astype(np.float64))
            for side in sides
        }
        name = condition_name(genes.conditions[place])
        drawing, left_out = volcano(genes.names, tests, SIGNIFICANT, condition=name, prefix=f"volcano{number}")
        most = max(most, left_out)
        placed = None if cells is None else _projection(cells, genes.conditions[place], files, f"condition{number}")
        tables = tuple(_top_genes(genes, place, sides, leading) for leading in sides)
        shown.append(ShownCondition(name, drawing, tables, placed))
    return ShownConditions(tuple(shown), tuple(_caption(genes, len(places), most)))


def _places(genes: Genes, chosen: int | None) -> list[int]:
    """All conditions, most DE genes first; of very many an even sample of that order; the chosen one before all."""
    order: list[int] = np.argsort(-genes.n_true, kind="stable")[evenly(len(genes.n_true), MOST)].tolist()
    if chosen is None:
        return order
    return [chosen, *(place for place in order if place != chosen)][:MOST]


def _projection(cells: Projection, condition: Condition, files: Sequence[str], prefix: str) -> Drawing | None:
    """The cells of one condition, beside the control cells of its type; None where either side has none.

    Control cells of its assay batch, where it has one that there are control cells of.
    """
    table, (perturbation, cell_type, batch) = cells.on(cells.components), condition
    table = table[table["cell_type"] == cell_type]
    is_control, in_batch = table["side"] == "control", table["assay_batch"] == batch
    own = (table["perturbation"] == perturbation) & (in_batch | (batch == ""))
    near = is_control & in_batch
    kept = table[own | (near if batch and near.any() else is_control)]
    known = set(kept["side"])
    shown = [name for name in files if name in known]
    if OBSERVED not in known or not shown:
        return None
    axes = cells.components.axes
    return condition_projection(kept, shown, axes, condition=condition_name(condition), prefix=prefix)


def _top_genes(genes: Genes, place: int, sides: Sequence[str], leading: str) -> Table:
    """The surest genes of one side, and what they are in the others, or in the observed cells alone."""
    change, evidence = genes.change[leading][place], genes.evidence[leading][place]
    columns = list(sides) if leading == OBSERVED else [leading, OBSERVED]
    rows = []
    for gene in surest(change, evidence)[:TOP]:
        if np.isfinite(evidence[gene]):
            moved = [signed(float(genes.change[side][place, gene]), 2) for side in columns]
            sure = [_adjusted(float(genes.evidence[side][place, gene])) for side in columns]
            texts = [text for both in zip(moved, sure, strict=True) for text in both]
            rows.append(Row(genes.names[gene], "", tuple(map(Cell, texts))))
    title = "in the observed cells" if leading == OBSERVED else f"in {leading}"
    return Table(title, tuple(columns), tuple(rows))


def _adjusted(evidence: float) -> str:
    adjusted = 10.0**-evidence
    return fixed(adjusted, 3) if not adjusted < 0.001 else power(adjusted)


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
