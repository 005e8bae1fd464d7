"""Figures as SVG that lives inside a page: drawn by matplotlib, then made small, safe and able to change its colours.

Axes, lines and texts are matplotlib's; texts stay texts. Each colour of `COLOURS` becomes a CSS variable of the page,
which has a light and a dark value for it. Ids that nothing refers to are dropped and the others get a prefix, so that
many figures share a page. Marks of a scatter, which may be thousands, become one path each: about ten bytes a mark.
"""

import io
import re
from collections.abc import Sequence
from typing import Any, Literal
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike

from perturbdiff.figures.looks import COLOURS, INK, RULE, STYLE, Look, outline, painted
from perturbdiff.figures.numbers import short

_NAMES = {colour: name for name, colour in COLOURS.items()}
_NUMBER = re.compile(r"-?\d+\.\d+")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_COLOUR = re.compile(r"#[0-9a-f]{6}")


class Panel:
    """One panel of a figure: axes with fixed margins in pixels, so that panels beside each other are aligned."""

    def __init__(
        self, width: int = 320, height: int = 280, *, margins: tuple[int, int, int, int] = (12, 12, 42, 52)
    ) -> None:
        """Make empty axes.

        Args:
            width: of the panel in pixels.
            height: of the panel in pixels.
            margins: top, right, bottom, left of the axes.
        """
        self._size = (width, height)
        top, right, bottom, left = margins
        box = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
        with mpl.rc_context(STYLE):
            self._figure = Figure(figsize=(width / 72, height / 72))  # a point of the SVG is a pixel of the page
            FigureCanvasSVG(self._figure)
            self.axes = self._figure.add_axes(box)
        self._marks: list[ET.Element] = []

    def view(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        """Set the limits of both axes, with few round ticks."""
        self.axes.set_xlim(*x)
        self.axes.set_ylim(*y)
        for axis in (self.axes.xaxis, self.axes.yaxis):
            axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
            axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))

    def labels(self, x: str, y: str) -> None:
        """Name both axes."""
        self.axes.set_xlabel(printable(x), labelpad=5)
        self.axes.set_ylabel(printable(y), labelpad=5)

    def text(self, x: float, y: float, text: str, **how: Any) -> None:  # noqa: ANN401 - as of matplotlib's text
        """Write at a point in the units of the axes."""
        settings: dict[str, Any] = {"color": INK, "fontsize": 11, "parse_math": False} | how
        self.axes.text(x, y, printable(text), **settings)

    def grid(self, axis: Literal["x", "y"]) -> None:
        """Draw pale lines at the ticks of an axis."""
        self.axes.grid(visible=True, axis=axis, color=RULE, linewidth=0.8)

    def line(self, x: ArrayLike, y: ArrayLike, look: Look, *, width: float = 2.0, above: float = 3.0) -> None:
        """Draw a line through points in the units of the axes."""
        self.axes.plot(x, y, color=look.hex, linestyle=look.dash, linewidth=width, zorder=above)

    def fill(
        self, x: ArrayLike, y: ArrayLike, look: Look, *, to: float = 0.0, opacity: float = 0.1, above: float = 2.0
    ) -> None:
        """Fill what lies between a line and a height."""
        self.axes.fill_between(x, y, to, color=look.hex, alpha=opacity, linewidth=0, zorder=above)

    def marks(
        self,
        x: ArrayLike,
        y: ArrayLike,
        look: Look,
        *,
        radius: float = 3.0,
        opacity: float = 1.0,
        titles: Sequence[str] = (),
        above: float = 3.0,
    ) -> None:
        """Put marks at points in the units of the axes, one path for all, or each with a title that shows on pointing.

        Points outside the limits that `view` has set are left out, as is what is not finite.
        """
        self.axes.add_line(Line2D([], [], gid=f"marks-{len(self._marks)}", zorder=above))
        (left, right), (low, high) = np.sort(self.axes.get_xlim()), np.sort(self.axes.get_ylim())
        places = np.column_stack([np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)])
        inside = (places >= (left, low)).all(axis=1) & (places <= (right, high)).all(axis=1)
        pixels = self.axes.transData.transform(places[inside]) * 72 / self._figure.dpi
        pixels[:, 1] = self._size[1] - pixels[:, 1]
        steps = [f"M{x} {y}{outline(look, radius)}" for x, y in np.rint(10 * pixels).astype(int).tolist()]
        how = {"style": painted(look, radius, opacity), "transform": "scale(.1)"}
        if titles:
            drawn = ET.Element("g", how)
            for step, title in zip(steps, np.array(titles, dtype=object)[inside], strict=True):
                path = ET.SubElement(drawn, "path", {"d": step})
                ET.SubElement(path, "title").text = printable(str(title))
        else:
            drawn = ET.Element("path", {"d": "".join(steps)} | how)
        self._marks.append(drawn)

    def write(self, prefix: str, label: str) -> Markup:
        """The panel as an SVG element.

        Args:
            prefix: goes before all of its ids; unique in the page.
            label: what a reader who cannot see it is told.
        """
        buffer = io.StringIO()
        with mpl.rc_context(STYLE):
            nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            self._figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
        # what is parsed was written by matplotlib
        root = ET.fromstring(re.sub(r"<!DOCTYPE[^>]*>", "", buffer.getvalue()))  # noqa: S314
        body = _strip(root)
        for number, marks in enumerate(self._marks):
            for group in body.iterfind(f".//g[@id='marks-{number}']"):
                group.append(marks)
        _compact(body, prefix)
        width, height = self._size
        body.attrib = {
            "viewBox": f"0 0 {width} {height}",
            "width": str(width),
            "height": str(height),
            "role": "img",
            "aria-label": label,
        }
        return Markup(ET.tostring(body, encoding="unicode"))  # noqa: S704 - ElementTree has escaped all labels


def limits(values: ArrayLike, *, share: float = 0.04) -> tuple[float, float]:
    """From the smallest to the largest of what is finite, with a share of room, also where there is one value alone."""
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    pad = share * (high - low) or 0.05 * abs(high) or 0.1
    return low - pad, high + pad


def tick(value: float) -> str:
    """The number at a tick, without trailing zeros."""
    if abs(value) < 1e-12:
        return "0"
    text = short(float(f"{value:.6g}"))
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def printable(text: str) -> str:
    """A text without the signs that XML cannot hold."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)


def _strip(element: ET.Element) -> ET.Element:
    """Without namespaces, which inline SVG does not need, and without matplotlib's style sheet."""
    for one in element.iter():
        one.tag = one.tag.rpartition("}")[2]
        one.attrib = {key.rpartition("}")[2]: value for key, value in one.attrib.items()}
    for parent in list(element.iter()):
        for child in list(parent):
            if child.tag in {"style", "metadata"}:
                parent.remove(child)
    return element


def _compact(root: ET.Element, prefix: str) -> None:
    """Round numbers, name colours, prefix the ids that are referred to, and drop what draws nothing."""
    used: set[str] = set()
    for one in root.iter():
        for value in one.attrib.values():
            used |= set(_REFERENCE.findall(value))
        if one.get("href", "").startswith("#"):
            used.add(one.attrib["href"][1:])
    for one in root.iter():
        one.attrib = _attributes(one, used, prefix)
        one.text = one.text.strip() if one.text and one.tag not in {"text", "title", "tspan"} else one.text
        one.tail = None
    _flatten(root)


def _attributes(one: ET.Element, used: set[str], prefix: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in one.attrib.items():
        if key == "id":
            if value in used:
                found[key] = f"{prefix}-{value}"
        elif key == "href":
            found[key] = f"#{prefix}-{value[1:]}"
        elif key == "style":
            found[key] = _restyled(value, prefix, is_text=one.tag == "text")
        elif key in {"d", "x", "y", "width", "height", "transform", "clip-path", "points"}:
            rounded = _NUMBER.sub(lambda number: _rounded(number[0]), " ".join(value.split()))
            rounded = _REFERENCE.sub(rf"url(#{prefix}-\1)", rounded)
            if not rounded.startswith("rotate(-0 "):
                found[key] = re.sub(r"\s*([MLz])\s*", r"\1", rounded) if key == "d" else rounded
    return found


def _rounded(number: str) -> str:
    text = f"{float(number):.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def _restyled(style: str, prefix: str, *, is_text: bool) -> str:
    """A style with CSS variables for colours; the font of texts is that of the page."""
    if is_text:
        style = ";".join(part for part in style.split(";") if "font-family" not in part)
        style = re.sub(r"(?<=font: )([^']*px) '.*$", r"\1", style)
    named = _COLOUR.sub(lambda found: f"var(--{_NAMES[found[0]]})" if found[0] in _NAMES else found[0], style)
    return _REFERENCE.sub(rf"url(#{prefix}-\1)", named).replace(": ", ":").replace("; ", ";")


def _flatten(element: ET.Element) -> None:
    """Replace groups without attributes by what they hold, and drop invisible paths and empty groups."""
    children: list[ET.Element] = []
    for child in list(element):
        _flatten(child)
        if child.tag in {"g", "defs"} and len(child) == 0:
            continue
        if child.tag == "g" and not child.attrib:
            children.extend(child)
        elif not (child.tag == "path" and child.get("style") == "fill:none"):
            children.append(child)
    element[:] = children
