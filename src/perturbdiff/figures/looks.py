"""Looks: colours for colour-blind readers, each with a shape and a line of its own, so that print in grey will do."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

COLOURS = {
    "ink": "#1b1d20",
    "muted": "#63696f",
    "rule": "#dfe2e5",
    "surface": "#fffffe",
    "grey": "#9aa0a6",
    "blue": "#0072b2",
    "vermillion": "#d55e00",
    "green": "#009e73",
    "purple": "#cc79a7",
    "orange": "#e69f00",
    "sky": "#56b4e9",
}
"""The colours of figures by the name of their CSS variable; the bright ones are those of Okabe and Ito."""

INK, MUTED, RULE = COLOURS["ink"], COLOURS["muted"], COLOURS["rule"]

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "perturbdiff",
    "text.parse_math": False,  # a label is a label, also one with dollar signs
    "font.size": 11.0,
    "font.family": ["DejaVu Sans"],
    "text.color": INK,
    "axes.edgecolor": COLOURS["grey"],
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
}
"""What matplotlib is told of every figure: texts stay texts, axes are thin, ticks are their numbers alone."""

_MARKERS = {"circle": "o", "square": "s", "triangle": "^", "wedge": "v", "diamond": "D", "cross": "X", "plus": "P"}


@dataclass(frozen=True)
class Look:
    """How marks or a line are drawn.

    Attributes:
        colour: a key of `COLOURS`.
        shape: circle, square, triangle, wedge, diamond, cross or plus.
        hollow: an outline only.
        dash: matplotlib's line style.
    """

    colour: str
    shape: str = "circle"
    hollow: bool = False
    dash: Any = "-"

    @property
    def hex(self) -> str:
        """The colour as matplotlib takes it."""
        return COLOURS[self.colour]

    @property
    def marker(self) -> str:
        """The shape as matplotlib takes it."""
        return _MARKERS[self.shape]


FILES = (
    Look("blue", "circle", dash="-"),
    Look("vermillion", "triangle", dash="--"),
    Look("green", "square", dash=":"),
    Look("purple", "diamond", dash="-."),
    Look("orange", "wedge", dash=(0, (6, 2, 1, 2, 1, 2))),
)
"""Looks of predicted files; figures show no more files than there are looks."""

REFERENCE = Look("muted", "square", hollow=True, dash=(0, (4, 3)))
CEILING = Look("ink", "diamond", hollow=True, dash=(0, (1, 2)))
CONTROL = Look("grey", "plus")


def looks(files: Iterable[str]) -> dict[str, Look]:
    """How each predicted file is drawn; files beyond the looks that there are get none."""
    return dict(zip(files, FILES, strict=False))


def outline(look: Look, radius: float) -> str:
    """The path of one mark in tenths of a pixel, from its centre on."""
    r = round(10 * radius)
    if look.shape == "circle" and not look.hollow:
        return "h0"  # a line without length and with round ends
    half, most = round(r * 0.85), round(r * 1.25)
    return {
        "circle": f"m{-r} 0a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0",
        "square": f"m{-half} {-half}h{2 * half}v{2 * half}h{-2 * half}z",
        "triangle": f"m0 {-most}l{most} {2 * r}h{-2 * most}z",
        "wedge": f"m0 {most}l{most} {-2 * r}h{-2 * most}z",
        "diamond": f"m0 {-most}l{r} {most} {-r} {most} {-r} {-most}z",
        "cross": f"m{-half} {-half}l{2 * half} {2 * half}m0 {-2 * half}l{-2 * half} {2 * half}",
        "plus": f"m{-r} 0h{2 * r}m{-r} {-r}v{2 * r}",
    }[look.shape]


def painted(look: Look, radius: float, opacity: float = 1.0) -> str:
    """The style of a path of marks in tenths of a pixel."""
    colour = f"var(--{look.colour})"
    if look.shape == "circle" and not look.hollow:
        style = f"fill:none;stroke:{colour};stroke-width:{round(20 * radius)};stroke-linecap:round"
    elif look.hollow or look.shape in {"cross", "plus"}:
        style = f"fill:none;stroke:{colour};stroke-width:13"
    else:
        style = f"fill:{colour};stroke:none"
    return style if opacity == 1 else f"{style};opacity:{opacity:g}"
