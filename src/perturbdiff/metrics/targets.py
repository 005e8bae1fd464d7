"""The targets of a perturbation: the genes that its label names.

A label has no grammar here: it and every word of it may be the name of a gene. So ``A+B|CRISPRa`` names A, B and
CRISPRa, of which those count that are judged.
"""

import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

_BETWEEN_NAMES = (re.compile(r"[^\w.\-]+"), re.compile(r"[^A-Za-z0-9.\-]+"))
_LEFT = 2
"""So many genes must be left to be judged."""


def gene_names(label: str) -> list[str]:
    """A label of perturbation, and its words: what may be the name of a gene."""
    words = [word for between in _BETWEEN_NAMES for word in between.split(label) if word]
    return list(dict.fromkeys([label, *words]))


def target_places(label: str, places: Mapping[str, int]) -> NDArray[np.int64]:
    """The places of the genes that a label names; none where fewer than two others would be left.

    Args:
        label: of a perturbation.
        places: of the judged genes, by name.
    """
    found = [places[name] for name in gene_names(label) if name in places]
    return np.array(found if len(found) + _LEFT <= len(places) else [], dtype=np.int64)


def target_notes(named: int, conditions: int) -> list[str]:
    """A sentence where some of the conditions have labels that name judged genes."""
    if not named:
        return []
    have = "has" if named == 1 else "have"
    return [
        f"{named} of {conditions} conditions {have} a label that names judged genes; these genes are left out of "
        "our own metrics of the condition."
    ]
