"""A figure of the page: panels beside each other, a legend in words and marks, and a caption."""

from dataclasses import dataclass

from markupsafe import Markup

from perturbdiff.figures.looks import Look, outline, painted

_DASHES = {"-": "", "--": "6 3", ":": "1.5 3", "-.": "7 3 1.5 3"}


@dataclass(frozen=True)
class Drawn:
    """A panel: its heading, the drawing, and a line under it."""

    heading: str
    svg: Markup
    note: str = ""


@dataclass(frozen=True)
class Key:
    """An entry of a legend: a drawn sample and what it stands for."""

    sample: Markup
    text: str


@dataclass(frozen=True)
class Drawing:
    """A figure.

    Attributes:
        panels: beside each other where there is room, else below each other.
        keys: the legend.
        caption: how to read it, and what was left out or sampled.
        size: small, medium or large: the least width of a panel.
    """

    panels: tuple[Drawn, ...]
    keys: tuple[Key, ...]
    caption: tuple[str, ...]
    size: str = "small"


def mark_key(look: Look, text: str) -> Key:
    """A legend's entry for marks."""
    path = f'<path d="M80 80{outline(look, 4)}" style="{painted(look, 4)}" transform="scale(.1)"/>'
    return Key(_sample(path, 16), text)


def line_key(look: Look, text: str, *, marked: bool = True) -> Key:
    """A legend's entry for a line, with its marks."""
    dash = look.dash if isinstance(look.dash, str) else " ".join(map(str, look.dash[1]))
    dash = _DASHES.get(dash, dash)
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    line = f'<path d="M0 8h36" style="fill:none;stroke:var(--{look.colour});stroke-width:2"{dashed}/>'
    mark = f'<path d="M180 80{outline(look, 4)}" style="{painted(look, 4)}" transform="scale(.1)"/>' if marked else ""
    return Key(_sample(line + mark, 36), text)


def _sample(inside: str, width: int) -> Markup:
    # of numbers and names of colours only
    return Markup(  # noqa: S704
        f'<svg class="sample" viewBox="0 0 {width} 16" width="{width}" height="16" aria-hidden="true">{inside}</svg>'
    )
