"""One condition, gene by gene: how far each moved, and how sure the test is of it, observed and predicted."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from perturbdiff.figures.drawing import Drawing, Drawn, Key, mark_key
from perturbdiff.figures.looks import COLOURS, Look
from perturbdiff.figures.sampling import sampled
from perturbdiff.figures.svg import Panel

EVIDENCE = "\N{MINUS SIGN}log\N{SUBSCRIPT ONE}\N{SUBSCRIPT ZERO} adjusted p"
"""The name of the axis of evidence."""

MOST_GREY, MOST_MARKED = 800, 700
"""So many genes of no significance, and so many others of each kind, are drawn in a panel."""

NAMED = 8
"""So many genes are named in a panel."""

_BOTH, _MISSED = Look("blue", "circle"), Look("purple", "triangle", hollow=True)
_FALSE, _NEITHER = Look("vermillion", "cross"), Look("grey", "circle")

type Values = NDArray[np.float64]


def volcano_keys(significant: float) -> tuple[Key, ...]:
    """The legend of all volcano plots; a gene is DE where its adjusted p is below `significant`."""
    return (
        mark_key(_BOTH, f"DE (adjusted p < {significant:g}) in the observed cells and in the panel"),
        mark_key(_MISSED, "DE in the observed cells only"),
        mark_key(_FALSE, "DE in the prediction only"),
        mark_key(_NEITHER, "neither"),
    )


def volcano(
    names: Sequence[str],
    sides: Mapping[str, tuple[Values, Values]],
    significant: float,
    *,
    condition: str,
    prefix: str,
) -> tuple[Drawing, int]:
    """Draw a condition; the second value is how many genes were left out of a panel, at most.

    Args:
        names: of the genes.
        sides: change and evidence of each gene [genes], NaN where absent, by side; the first is the truth.
        significant: a gene is DE where its adjusted p is below this.
        condition: its name.
        prefix: of the panels' ids; unique in the page.
    """
    threshold = float(-np.log10(significant))
    reach = 1.08 * max(float(np.nanmax(np.abs(change), initial=0.0)) for change, _ in sides.values()) or 1.0
    panels: list[Drawn] = []
    most = 0
    truth = next(iter(sides.values()))[1] > threshold
    for side, (change, evidence) in sides.items():
        found = evidence > threshold
        top = 1.15 * max(2 * threshold, float(np.nanmax(evidence, initial=0.0)))
        panel = Panel(320, 280)
        panel.view((-reach, reach), (-0.02 * top, top))
        panel.labels("change, log1p from control", EVIDENCE)
        panel.axes.axhline(threshold, color=COLOURS["grey"], linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        panel.axes.axvline(0, color=COLOURS["rule"], linewidth=0.8, zorder=0)
        kinds = {_NEITHER: ~truth & ~found, _FALSE: ~truth & found, _MISSED: truth & ~found, _BOTH: truth & found}
        left_out = 0
        for look, mask in kinds.items():
            places = np.flatnonzero(mask & np.isfinite(evidence) & np.isfinite(change))
            how, at_most = ((1.5, 0.7), MOST_GREY) if look is _NEITHER else ((2.4, 0.85), MOST_MARKED)
            kept = sampled(places, at_most)
            left_out += len(places) - len(kept)
            panel.marks(change[kept], evidence[kept], look, radius=how[0], opacity=how[1])
        _name(panel, names, change, evidence, threshold)
        most = max(most, left_out)
        note = f"{int(truth.sum())} DE genes"
        if panels:
            note = f"{int(kinds[_BOTH].sum())} of {int(truth.sum())} found, {int(kinds[_FALSE].sum())} others"
        label = f"Volcano plot of {condition}, {side}: {note}."
        panels.append(Drawn(side, panel.write(f"{prefix}-{len(panels)}", label), note))
    return Drawing(tuple(panels), (), ()), most


def surest(change: NDArray[np.floating], evidence: NDArray[np.floating]) -> NDArray[np.intp]:
    """The places of genes, those of the strongest evidence first; among equals those that moved most."""
    return np.lexsort((-np.abs(np.nan_to_num(change)), -np.nan_to_num(evidence, nan=-1.0)))


def _name(panel: Panel, names: Sequence[str], change: Values, evidence: Values, threshold: float) -> None:
    """Write the names of the strongest genes, none over another."""
    (_, reach), (_, top) = panel.axes.get_xlim(), panel.axes.get_ylim()
    written: list[tuple[float, float]] = []
    for place in surest(change, evidence)[: 3 * NAMED]:
        x, y = float(change[place]), float(evidence[place])
        crowded = any(abs(y - other_y) < 0.05 * top and (x > 0) == (other_x > 0) for other_x, other_y in written)
        if not y > threshold or crowded or len(written) == NAMED or not np.isfinite(x):
            continue
        written.append((x, y))
        # away from the axis, or towards the middle where there is more room inside the panel
        outward = abs(x) <= 0.6 * reach
        side = "left" if (x > 0) == outward else "right"
        shift = (1 if outward else -1) * np.sign(x) * 0.025 * reach
        panel.text(x + shift, y, names[place], ha=side, va="center", fontsize=10, zorder=6)
