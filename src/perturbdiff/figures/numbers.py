"""Numbers and lists as they are read: few digits, a true minus, the same decimals down a row."""

import math
from collections.abc import Iterable

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"
"""Stands for a value that is undefined."""


def decimals(values: Iterable[float], *, digits: int = 3) -> int:
    """So many decimals show the largest of some values with `digits` digits, between 0 and 6."""
    sizes = [abs(value) for value in values if math.isfinite(value) and value != 0]
    return min(6, max(0, digits - 1 - math.floor(math.log10(max(sizes))))) if sizes else digits - 1


def fixed(value: float, places: int) -> str:
    """A number with fixed decimals; a value that rounds to zero has no sign."""
    if not math.isfinite(value):
        return NONE
    text = f"{value:.{places}f}"
    if float(text) == 0:
        return text.lstrip("-")
    return text.replace("-", MINUS)


def signed(value: float, places: int) -> str:
    """A number with fixed decimals and its sign, also a plus; none where it rounds to zero."""
    text = fixed(value, places)
    return f"+{text}" if value > 0 and float(text) > 0 else text


def short(value: float) -> str:
    """A number with three digits."""
    if not math.isfinite(value):
        return NONE
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        return power(value)
    return fixed(value, decimals([value]))


def power(value: float) -> str:
    """A small p value or a large number, as 1.2e−30."""
    return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e").replace("-", MINUS)


def listed(names: Iterable[str], *, at_most: int = 8) -> str:
    """Names as a list in words."""
    known = list(names)
    if len(known) > at_most:
        return f"{', '.join(known[:at_most])} and {len(known) - at_most} more"
    return " and ".join([", ".join(known[:-1]), known[-1]] if len(known) > 1 else known)


def quoted(name: str) -> str:
    """A name between quotation marks, since a file may be named by any word."""
    return f"“{name}”"


def condition_name(condition: tuple[str, str, str]) -> str:
    """A condition as one text: perturbation, cell type, and assay batch where there is one, with bars between them."""
    perturbation, cell_type, assay_batch = condition
    return " | ".join([perturbation, cell_type, *([assay_batch] if assay_batch else [])])
