"""How the evidence that a prediction gives, -log10 of adjusted p, lies over truly DE genes and over the others."""

import numpy as np

from perturbdiff.evaluation.parts import EVIDENCE, OBSERVED, SIGNIFICANT, THRESHOLD, Genes, Values
from perturbdiff.evaluation.result import Evaluation
from perturbdiff.report.drawing import Drawing, Drawn, line_key
from perturbdiff.report.looks import COLOURS, FILES, Look
from perturbdiff.report.svg import Panel

_GRID = 256
_TRUE, _OTHER = Look("blue", dash="-"), Look("vermillion", dash="--")


def densities(evaluation: Evaluation) -> Drawing | str:
    """Draw the densities of each predicted file over the genes of all conditions, or say why not."""
    genes = evaluation.genes
    if genes is None:
        return evaluation.missing.get("genes", "There are no tests of genes.")
    sides = [side for side in genes.predicted[: len(FILES)] if np.isfinite(genes.evidence[side]).any()]
    truth = genes.evidence[OBSERVED] > THRESHOLD
    if not sides or not truth.any():
        return "No gene is differentially expressed in the observed cells, so there are no densities to compare."
    top = _top(genes, sides)
    panels = tuple(_panel(genes, side, top, number) for number, side in enumerate(sides))
    keys = (
        line_key(_TRUE, f"genes that are DE in the observed cells (adjusted p < {SIGNIFICANT:g})", marked=False),
        line_key(_OTHER, "genes that are not", marked=False),
    )
    caption = (
        "Density of −log₁₀ of the predicted adjusted p over all genes of all conditions; the upright line is p = "
        f"{SIGNIFICANT:g}. A good prediction has the solid line to the right of it and the dashed one to the left. The "
        "root shows the few genes of strong evidence beside the many of none; the axis ends at the 95th "
        "percentile of truly DE genes.",
    )
    return Drawing(panels, keys, caption)


def _top(genes: Genes, sides: list[str]) -> float:
    """Where the axis ends: at the 95th percentile of truly DE genes, well beyond the line of significance at least."""
    truth = genes.evidence[OBSERVED] > THRESHOLD
    found = np.concatenate([genes.evidence[side][truth] for side in sides])
    found = found[np.isfinite(found)]
    return float(np.ceil(max(3 * THRESHOLD, np.percentile(found, 95) if len(found) else 0.0)))


def _panel(genes: Genes, side: str, top: float, number: int) -> Drawn:
    truth, tested = genes.evidence[OBSERVED] > THRESHOLD, np.isfinite(genes.evidence[OBSERVED])
    evidence = genes.evidence[side]
    groups = {_TRUE: evidence[truth], _OTHER: evidence[tested & ~truth]}
    panel = Panel(320, 230)
    grid = np.linspace(0, top, _GRID)
    curves = {look: np.sqrt(smooth(values, top)) for look, values in groups.items()}
    most = max(float(curve.max()) for curve in curves.values())
    panel.view((0, top), (0, 1.08 * most))
    panel.axes.set_yticks([])
    panel.labels(f"{EVIDENCE}, predicted", "density (square-root scale)")
    panel.axes.axvline(THRESHOLD, color=COLOURS["grey"], linewidth=1, zorder=1)
    for look, curve in curves.items():
        panel.axes.fill_between(grid, curve, color=look.hex, alpha=0.14, linewidth=0, zorder=2)
        panel.axes.plot(grid, curve, color=look.hex, linestyle=look.dash, linewidth=2, zorder=3)
    shares = [100 * float(np.mean(known > THRESHOLD)) if len(known) else 0.0 for known in map(_finite, groups.values())]
    note = f"predicted as DE: {shares[0]:.0f} % of the truly DE genes, {shares[1]:.0f} % of the others"
    return Drawn(side, panel.write(f"density{number}", f"Densities of {side}; {note}."), note)


def _finite(values: Values) -> Values:
    return values[np.isfinite(values)]


def smooth(values: Values, top: float) -> np.ndarray:
    """A Gaussian kernel density on a grid from 0 to `top`, reflected at 0; values beyond count, but are not shown."""
    known = _finite(values)
    if not len(known):
        return np.zeros(_GRID)
    step = top / _GRID
    counts, _ = np.histogram(known, bins=2 * _GRID, range=(0, 2 * top))
    width = max(2 * step, 0.9 * min(float(known.std()), top / 8) * len(known) ** -0.2)
    reach = int(np.ceil(4 * width / step))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) * step / width) ** 2)
    padded = np.pad(counts / (len(known) * step), reach, mode="symmetric")
    return np.convolve(padded, kernel / kernel.sum(), mode="valid")[:_GRID]
