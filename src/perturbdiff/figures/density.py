"""How the evidence that a prediction gives, -log10 of adjusted p, lies over truly DE genes and over the others."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from perturbdiff.figures.drawing import Drawing, Drawn, line_key
from perturbdiff.figures.looks import COLOURS, FILES, Look
from perturbdiff.figures.svg import Panel
from perturbdiff.figures.volcano import EVIDENCE

_GRID = 256
_TRUE, _OTHER = Look("blue", dash="-"), Look("vermillion", dash="--")

type Values = NDArray[np.floating]


def densities(observed: Values, predicted: Mapping[str, Values], significant: float) -> Drawing | str:
    """Draw the densities of each predicted file over the genes of all conditions, or say why not.

    Args:
        observed: the evidence of every gene in the observed cells [conditions, genes]; NaN where absent.
        predicted: the same by predicted file.
        significant: a gene is DE where its adjusted p is below this.
    """
    threshold = float(-np.log10(significant))
    sides = [side for side in [*predicted][: len(FILES)] if np.isfinite(predicted[side]).any()]
    truth, others = observed > threshold, observed <= threshold
    if not sides or not truth.any():
        return "No gene is differentially expressed in the observed cells, so there are no densities to compare."
    found = _finite(np.concatenate([predicted[side][truth] for side in sides]))
    # well beyond the line of significance at least
    top = float(np.ceil(max(3 * threshold, np.percentile(found, 95) if len(found) else 0.0)))
    groups = [{_TRUE: predicted[side][truth], _OTHER: predicted[side][others]} for side in sides]
    panels = [_panel(side, own, threshold, top, i) for i, (side, own) in enumerate(zip(sides, groups, strict=True))]
    keys = (
        line_key(_TRUE, f"genes that are DE in the observed cells (adjusted p < {significant:g})", marked=False),
        line_key(_OTHER, "genes that are not", marked=False),
    )
    caption = (
        "Density of −log₁₀ of the predicted adjusted p over all genes of all conditions; the upright line is p = "
        f"{significant:g}. A good prediction has the solid line to the right of it and the dashed one to the left. The "
        "root shows the few genes of strong evidence beside the many of none; the axis ends at the 95th "
        "percentile of truly DE genes.",
    )
    return Drawing(tuple(panels), keys, caption)


def _panel(side: str, groups: Mapping[Look, Values], threshold: float, top: float, number: int) -> Drawn:
    panel = Panel(320, 230)
    grid = np.linspace(0, top, _GRID)
    curves = {look: np.sqrt(smooth(values, top)) for look, values in groups.items()}
    panel.view((0, top), (0, 1.08 * max(float(curve.max()) for curve in curves.values())))
    panel.axes.set_yticks([])
    panel.labels(f"{EVIDENCE}, predicted", "density (square-root scale)")
    panel.axes.axvline(threshold, color=COLOURS["grey"], linewidth=1, zorder=1)
    for look, curve in curves.items():
        panel.fill(grid, curve, look, opacity=0.14)
        panel.line(grid, curve, look)
    shares = [100 * float(np.mean(known > threshold)) if len(known) else 0.0 for known in map(_finite, groups.values())]
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
