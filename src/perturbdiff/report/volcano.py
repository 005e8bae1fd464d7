"""One condition, gene by gene: how far each moved, and how sure the test is of it, observed and predicted."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perturbdiff.evaluation.parts import EVIDENCE, OBSERVED, SIGNIFICANT, THRESHOLD, Genes
from perturbdiff.report.drawing import Drawing, Drawn, Key, mark_key
from perturbdiff.report.looks import COLOURS, Look
from perturbdiff.report.numbers import NONE, condition_name, fixed, power, signed
from perturbdiff.report.sampling import sampled
from perturbdiff.report.svg import Panel

FILES_SHOWN = 3
"""A condition shows the observed cells and no more predicted files than this."""

MOST_GREY, MOST_MARKED = 800, 700
"""So many genes of no significance, and so many others of each kind, are drawn in a panel."""

NAMED = 8
"""So many genes are named in a panel."""

TOP = 12
"""So many genes are in a table."""

_BOTH, _MISSED = Look("blue", "circle"), Look("purple", "triangle", hollow=True)
_FALSE, _NEITHER = Look("vermillion", "cross"), Look("grey", "circle")

type Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class GeneRow:
    """A row of a table of genes: its texts, and whether the gene is truly differentially expressed."""

    gene: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class GeneTable:
    """The top genes of one side: columns beside the gene, in groups of two (change, adjusted p)."""

    title: str
    sides: tuple[str, ...]
    rows: tuple[GeneRow, ...]


def volcano_keys() -> tuple[Key, ...]:
    """The legend of all volcano plots."""
    return (
        mark_key(_BOTH, f"DE (adjusted p < {SIGNIFICANT:g}) in the observed cells and in the panel"),
        mark_key(_MISSED, "DE in the observed cells only"),
        mark_key(_FALSE, "DE in the prediction only"),
        mark_key(_NEITHER, "neither"),
    )


def volcano(genes: Genes, place: int, prefix: str) -> tuple[Drawing, int]:
    """Draw a condition; the second value is how many genes were left out of a panel, at most."""
    sides = [OBSERVED, *genes.predicted[:FILES_SHOWN]]
    change = {side: np.asarray(genes.change[side][place], dtype=np.float64) for side in sides}
    evidence = {side: np.asarray(genes.evidence[side][place], dtype=np.float64) for side in sides}
    reach = 1.08 * max((float(np.nanmax(np.abs(one), initial=0.0)) for one in change.values()), default=0.0) or 1.0
    truth: Mask = evidence[OBSERVED] > THRESHOLD
    panels, most = [], 0
    for number, side in enumerate(sides):
        found: Mask = evidence[side] > THRESHOLD
        top = 1.15 * max(2 * THRESHOLD, float(np.nanmax(evidence[side], initial=0.0)))
        panel = Panel(320, 280)
        panel.view((-reach, reach), (-0.02 * top, top))
        panel.labels("change, log1p from control", EVIDENCE)
        panel.axes.axhline(THRESHOLD, color=COLOURS["grey"], linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        panel.axes.axvline(0, color=COLOURS["rule"], linewidth=0.8, zorder=0)
        kinds = {_NEITHER: ~truth & ~found, _FALSE: ~truth & found, _MISSED: truth & ~found, _BOTH: truth & found}
        left_out = 0
        for look, mask in kinds.items():
            places = np.flatnonzero(mask & np.isfinite(evidence[side]) & np.isfinite(change[side]))
            kept = sampled(places, MOST_GREY if look is _NEITHER else MOST_MARKED)
            left_out += len(places) - len(kept)
            panel.marks(
                change[side][kept],
                evidence[side][kept],
                look,
                radius=1.5 if look is _NEITHER else 2.4,
                opacity=0.7 if look is _NEITHER else 0.85,
            )
        _name(panel, genes, change[side], evidence[side], top)
        most = max(most, left_out)
        if side == OBSERVED:
            note = f"{int(truth.sum())} DE genes"
        else:
            note = f"{int((truth & found).sum())} of {int(truth.sum())} found, {int((~truth & found).sum())} others"
        panels.append(
            Drawn(
                side,
                panel.write(
                    f"{prefix}-{number}",
                    f"Volcano plot of {condition_name(genes.conditions[place])}, {side}: {note}.",
                ),
                note,
            )
        )
    return Drawing(tuple(panels), (), ()), most


def _name(panel: Panel, genes: Genes, change: np.ndarray, evidence: np.ndarray, top: float) -> None:
    """Write the names of the strongest genes, none over another."""
    known = np.nan_to_num(evidence, nan=-1.0)
    order = np.lexsort((-np.abs(np.nan_to_num(change)), -known))
    written: list[tuple[float, float]] = []
    for place in order[: 3 * NAMED]:
        x, y = float(change[place]), float(known[place])
        crowded = any(abs(y - other_y) < 0.05 * top and (x > 0) == (other_x > 0) for other_x, other_y in written)
        if y <= THRESHOLD or crowded or len(written) == NAMED or not np.isfinite(x):
            continue
        written.append((x, y))
        side = "left" if x > 0 else "right"
        # towards the middle, where there is room inside the panel
        inner = -1 if abs(x) > 0.6 * panel.axes.get_xlim()[1] else 1
        if inner < 0:
            side = "right" if x > 0 else "left"
        shift = inner * np.sign(x) * 0.025 * panel.axes.get_xlim()[1]
        panel.text(x + shift, y, genes.names[place], ha=side, va="center", fontsize=10, zorder=6)


def gene_tables(genes: Genes, place: int) -> tuple[GeneTable, ...]:
    """The top genes of the observed cells, and those of each predicted file that is shown."""
    sides = [OBSERVED, *genes.predicted[:FILES_SHOWN]]
    return tuple(_table(genes, place, sides, leading) for leading in sides)


def _table(genes: Genes, place: int, sides: list[str], leading: str) -> GeneTable:
    change, evidence = genes.change[leading][place], genes.evidence[leading][place]
    order = np.lexsort((-np.abs(np.nan_to_num(change)), -np.nan_to_num(evidence, nan=-1.0)))
    top = [int(i) for i in order[:TOP] if np.isfinite(evidence[i])]
    # the first columns are those of the side whose genes these are
    columns = [leading, *(side for side in sides if side != leading)] if leading == OBSERVED else [leading, OBSERVED]
    rows = tuple(
        GeneRow(
            genes.names[i],
            tuple(
                text
                for side in columns
                for text in (_change(genes.change[side][place, i]), _adjusted(genes.evidence[side][place, i]))
            ),
        )
        for i in top
    )
    title = "in the observed cells" if leading == OBSERVED else f"in {leading}"
    return GeneTable(title, tuple(columns), rows)


def _change(value: float) -> str:
    return signed(float(value), 2)


def _adjusted(evidence: float) -> str:
    if not np.isfinite(evidence):
        return NONE
    adjusted = float(10.0 ** -float(evidence))
    return fixed(adjusted, 3) if adjusted >= 0.001 else power(adjusted)
