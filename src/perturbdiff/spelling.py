"""How labels are spelt: one text for those that differ in spelling only, and the known one that is nearest."""

import difflib
import re
import unicodedata
from collections.abc import Iterable

_KEPT = re.compile(r"(?<=\d)[\W_](?=\d)|\+")
_DROPPED = re.compile(r"[\W_]")

_SHOWN = 5
"""So many labels are listed where none is near."""


def spelling(label: str) -> str:
    """A label without case, spaces and punctuation, but with what tells labels apart: signs + and numbers' points."""
    label = unicodedata.normalize("NFC", label).casefold()
    kept = {match.start() for match in _KEPT.finditer(label)}
    return "".join(c for i, c in enumerate(label) if i in kept or not _DROPPED.match(c))


def nearest(label: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown label: the nearest known one, or a few of those there are."""
    labels = list(dict.fromkeys(known))
    if not labels:
        return "there are none to choose from"
    folded: dict[str, str] = {}
    for one in labels:
        folded.setdefault(one.casefold(), one)
    close = difflib.get_close_matches(label.casefold(), list(folded), n=1, cutoff=0.5)
    if close:
        return f"the nearest is {folded[close[0]]!r}"
    shown = ", ".join(repr(one) for one in labels[:_SHOWN])
    more = f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
    return f"there are {shown}{more}"
