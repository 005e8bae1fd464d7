"""What a label is, wherever it is read: the text of a value, what is no label, and which labels are one.

    1.0 of a column of floats     the text "1"
    NaN, "", "nan", "None", "NA"  no label at all
    "B+A" beside "A+B"            one label, where a recipe's grammar says that they mean the same
    "ctrl+ctrl", "non-targeting_2"  control cells, where the grammar or `control` says so

A label stays as it is written where it is the only one of its meaning. Labels that differ in case, blanks or
punctuation only stay apart, and a sentence says so once, as of other things that look like an oversight.
"""

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from perturbdiff.core.choices import COVARIATES
from perturbdiff.labels.members import same_as
from perturbdiff.recipes.dataset import Columns, Grammar
from perturbdiff.recipes.selection import control_character
from perturbdiff.spelling import nearest, spelling

NO_LABEL = ""
"""What stands for a label that is missing."""

_MISSING = {"", "nan", "none", "na", "n/a", "<na>", "null"}
_CONTROLS = {
    "control", "ctrl", "ctl", "ntc", "nt", "nontargeting", "nontargetingcontrol", "safetargeting", "safeharbor",
    "scramble", "scrambled", "mock", "vehicle", "dmso", "pbs", "untreated", "unperturbed", "unstimulated",
}  # fmt: skip
_NUMBERED = re.compile(r"[\W_]*(guide|sgrna|grna|rep)?[\W_]*\d+$", re.IGNORECASE)
_SIGNS = "+|&;_,"


def text_of(value: Any) -> str:  # noqa: ANN401 - any value of a column
    """A label as text: a whole number without the digits that floats add."""
    if isinstance(value, float | np.floating) and np.isfinite(value) and float(value).is_integer():
        return str(int(value))
    return str(value)


def plain(label: str) -> str:
    """A label that a user gives as `text_of` would write it: ``0.0`` is ``0``."""
    return label[: label.index(".")] if re.fullmatch(r"-?\d+\.0+", label) else label


def known_as(label: str, known: Container[str]) -> str:
    """A label that a user gives, as it stands among labels that are known: ``0.0`` is ``0`` where there is no 0.0."""
    return label if label in known or plain(label) not in known else plain(label)


def is_missing(text: str, controls: Sequence[str | None] = ()) -> bool:
    """Whether a text is no label; what is declared as a control label is one."""
    return text.strip().casefold() in _MISSING and text not in controls


def one_name(
    labels: Sequence[str], grammar: Grammar, control: str | None, controls: Sequence[str] = ()
) -> dict[str, str]:
    """The name of each label of perturbation that is read under another one of `labels`, sorted first, or as control.

    Args:
        labels: of all cells.
        grammar: what labels are made of.
        control: label of the control cells.
        controls: further labels of control cells.
    """
    found = same_as(labels, sorted(labels), grammar, control)
    if control is not None:
        found |= {label: control for label in labels if label in controls and label != control}
    return found


def renamed(labels: "pd.Categorical[Any]", names: Mapping[str, str]) -> "pd.Categorical[Any]":
    """Labels under other names; categories stay sorted as text."""
    old = [str(label) for label in labels.categories]
    new = [names.get(label, label) for label in old]
    known = pd.Index(sorted(set(new)), dtype=str)
    codes = np.asarray(labels.codes)
    return pd.Categorical.from_codes(np.where(codes < 0, -1, known.get_indexer(pd.Index(new, dtype=str))[codes]), known)


def texts_of(values: "pd.Series[Any]", controls: Sequence[str | None] = ()) -> "pd.Series[Any]":
    """A column as labels: texts, None where one is missing; `controls` are labels whatever their text."""
    codes, unique = pd.factorize(values)
    texts = [None if is_missing(text, controls) else text for text in map(text_of, unique)]
    return pd.Series(np.array([*texts, None], dtype=object)[codes], index=values.index, dtype=object)


def counted(labels: pd.DataFrame, cells: "np.ndarray[Any, Any] | None" = None) -> dict[str, dict[str, int]]:
    """How many cells each label of each covariate has; `cells` of each row where a row is not a cell."""
    found = {}
    for name in COVARIATES:
        own = labels[name].cat
        n_cells = np.bincount(own.codes, cells, minlength=len(own.categories)).astype(int)
        found[name] = {str(label): int(n) for label, n in zip(own.categories, n_cells, strict=True) if n}
    return found


def renaming_note(names: Mapping[str, str], counts: Mapping[str, int]) -> list[str]:
    """The sentence on labels of perturbation that are read under another name."""
    if not names:
        return []
    shown = [f"{label!r} ({counts.get(label, 0)} cells) as {name!r}" for label, name in list(names.items())[:3]]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [f"Labels of perturbation that mean the same are one: {', '.join(shown)}{more}."]


def remarks(
    counts: Mapping[str, Mapping[str, int]], columns: Columns, grammar: Grammar, control: str | None
) -> list[str]:
    """Sentences on what looks like an oversight in the labels of all cells."""
    found = []
    for name in COVARIATES:
        column = getattr(columns, name)
        if column is not None:
            found += _alike(counts[name], column)
    if control is not None:
        found += _more_controls(counts["perturbation"], control)
        if grammar.separator is None:
            found += _members_of_control(counts["perturbation"], control)
    return found


def _alike(counts: Mapping[str, int], column: str) -> list[str]:
    groups: dict[str, list[str]] = {}
    for label in counts:
        groups.setdefault(spelling(label), []).append(label)
    several = [own for own in groups.values() if len(own) > 1]
    if not several:
        return []
    shown = [" and ".join(f"{label!r} ({counts[label]} cells)" for label in own) for own in several[:3]]
    more = f", and {len(several) - 3} more such groups" if len(several) > 3 else ""
    return [
        f"Labels of column {column!r} differ only in case, blanks or punctuation, and are taken as different ones: "
        f"{'; '.join(shown)}{more}; give the same thing one name."
    ]


def _stem(label: str) -> str:
    """A label without a number at its end, and its spelling."""
    return spelling(_NUMBERED.sub("", label))


def _more_controls(counts: Mapping[str, int], control: str) -> list[str]:
    stems = {label: _stem(label) for label in counts if label != control}
    alike = [label for label, stem in stems.items() if stem and stem == _stem(control)]
    if 2 * len(alike) > len(stems) and _stem(control) not in _CONTROLS:
        alike = []  # labels that are numbered throughout
    others = [label for label, stem in stems.items() if stem in _CONTROLS or label in alike]
    if not others:
        return []
    shown = ", ".join(f"{label!r} ({counts[label]} cells)" for label in others[:4])
    listed = ", ".join(f'"{label}"' for label in (control, *others[:4]))
    more = f" and {len(others) - 4} more" if len(others) > 4 else ""
    return [
        f"{shown}{more} look like control cells too, and are taken as perturbations; if they are controls, write "
        f"control = [{listed}]."
    ]


def _members_of_control(counts: Mapping[str, int], control: str) -> list[str]:
    for sign in _SIGNS:
        found = {label: _parts(label, sign, control) for label in counts if sign in label and label != control}
        own = {label: parts for label, parts in found.items() if parts is not None}
        if len(own) > 1 or any(partner in counts for _, partner in own.values()):
            first, (member, _) = next(iter(own.items()))
            return [
                f"{len(own)} labels, such as {first!r}, have the member {member!r}, and each is taken as an agent of "
                f'its own; if {sign!r} stands between members, write separator = "{sign}" and nothing = ["{member}"] '
                "in [perturbation]."
            ]
    return []


def _parts(label: str, sign: str, control: str) -> tuple[str, str] | None:
    """The part of a label that means no perturbation, and the one beside it, which must; None for other labels."""
    parts = [part.strip() for part in label.split(sign)]
    nothing = [part for part in parts if part == control or spelling(part) in _CONTROLS]
    others = [part for part in parts if part not in nothing and part]
    # a number or a time beside the name of a control makes no member of it
    if len(parts) != 2 or len(nothing) != 1 or not others or others[0][0].isdigit() or _stem(label) in _CONTROLS:
        return None
    return nothing[0], others[0]


def check_label_texts(labels: Iterable[str], column: str, source: str) -> None:
    """Refuse a label with a newline, a tab or another control character: a label is one line of text.

    Raises:
        ValueError: naming the first such label.
    """
    for label in labels:
        sign = control_character(label)
        if sign is not None:
            raise ValueError(
                f"column {column!r} of {source} has the label {label!r} with the control character {sign!r}, and a "
                "label is one line of text; rename it."
            )


def check_control_label(control: str | None, known: pd.Index, column: str | None) -> None:
    """Refuse a label of control cells that no cell has; None is no label.

    Raises:
        ValueError: naming the nearest label.
    """
    if control is not None and control not in known:
        raise ValueError(
            f"no cell has the control label {control!r} in column {column!r}; "
            f"{nearest(control, known)}; set control to the label of the control cells."
        )


def check_control_labels(controls: Iterable[str], known: Sequence[str], column: str | None) -> None:
    """Refuse a further label of control cells that no cell has.

    Raises:
        ValueError: naming the nearest label.
    """
    for label in controls:
        check_control_label(label, pd.Index(known, dtype=str), column)


def missing_labels(column: str, source: str, n_cells: int, example: str | None) -> ValueError:
    """The error of a column that has no label for some cells, one of which is named where it is known."""
    such = "" if example is None else f", such as {example!r}"
    return ValueError(
        f"column {column!r} of {source} has no label for {n_cells} cells{such}, and every cell needs one; fill in the "
        'labels, remove these cells, or exclude them in a recipe by the label "".'
    )


def exclusion_notes(n_kept: int, n_all: int) -> list[str]:
    """The sentence on how many cells `exclude` leaves out, if it does.

    Raises:
        ValueError: it leaves no cell.
    """
    if not n_kept:
        raise ValueError(f"exclude leaves none of {n_all} cells, and some must remain; take a rule out of exclude.")
    return [f"exclude leaves out {n_all - n_kept} of {n_all} cells."] if n_kept < n_all else []
