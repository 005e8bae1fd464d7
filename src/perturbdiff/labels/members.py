"""What a label of perturbation is made of: a set of members, each an agent with a modality and a dose.

    control                                 no member
    STAT1                                   {STAT1}
    KLF1+MAP2K6|CRISPRa                     {(KLF1, CRISPRa), (MAP2K6, CRISPRa)}
    A|CRISPRi+B|CRISPRa                     {(A, CRISPRi), (B, CRISPRa)}
    [('a', 0.5, 'uM'), ('b', 5.0, 'nM')]    {(a, 500 nM), (b, 5 nM)}

A recipe's grammar says which of these signs mean something; where it says nothing, a label is one agent. Members have
an order of their own (by agent, modality, dose), whatever their order in the label: equal sets are equal tuples, and
all that follows from a set is the same to the last bit. Amounts of substance are compared in nM and masses in ng/mL.

Where doses and modalities stand in columns of their own, the label of a cell is written from them, in the last form
and with ``|modality`` behind it, and `parts_of` takes it apart again.
"""

from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from perturbdiff.labels import dose as doses
from perturbdiff.labels.dose import Quantity, entries_of, quantity, written
from perturbdiff.recipes.dataset import Columns, Grammar, Recipe
from perturbdiff.spelling import spelling

MODALITY = "|"
"""Before the modality that a column gives."""

JOINED = "+"
"""Between the members of a combination whose doses stand in a column, as 0.1+1.0 beside A+B."""


class Member(NamedTuple):
    """One part of a perturbation; "" is no modality, and None no dose."""

    agent: str
    modality: str = ""
    dose: Quantity | None = None


type Members = tuple[Member, ...]


def grammar_of(recipe: Recipe) -> Grammar:
    """A recipe's grammar, with what its columns of doses and modalities add."""
    columns, grammar = recipe.columns, recipe.perturbation
    found: dict[str, Any] = {}
    if columns.dose is not None:
        found["doses"] = True
    if columns.modality is not None and grammar.modality_separator is None:
        found["modality_separator"] = MODALITY
    return grammar.model_copy(update=found)


def is_plain(grammar: Grammar) -> bool:
    """Whether every label is one agent."""
    return grammar == Grammar()


def members_of(label: str, grammar: Grammar, control: str | None) -> Members:
    """The members of a label, in their own order; none of the control label.

    Raises:
        ValueError: a member has no name, or a list of doses is none; a dose has no unit, an unknown one, or is not
            above 0.
    """
    if label == control:
        return ()
    if is_plain(grammar):
        return (Member(label),)
    nothing = {*grammar.nothing, control}
    found = _listed(label, grammar, nothing) if grammar.doses else _named(label, grammar)
    kept = [member for member in found if member.agent not in nothing]
    if any(not member.agent for member in kept):
        raise ValueError(
            f"perturbation {label!r} has a member without a name; mend the label, or the separator in [perturbation]."
        )
    return tuple(sorted(kept, key=_place))


def same_as(labels: Iterable[str], known: Iterable[str], grammar: Grammar, control: str | None) -> dict[str, str]:
    """The known label that means the same, of those labels of which there is another one.

    Two labels mean the same where their members are equal: ``B+A`` is ``A+B``, ``A+ctrl`` is A where ctrl is nothing,
    and a label of nothing only is the control label. What the grammar can't read means itself alone.

    Args:
        labels: of some cells.
        known: labels to be named by, the first of equals before the others.
        grammar: what labels are made of.
        control: label of the control cells.
    """
    if is_plain(grammar):
        return {}
    places: dict[Members, str] = {} if control is None else {(): control}
    for label in known:
        members = _read(label, grammar, control)
        if members is not None:
            places.setdefault(members, label)
    found = {}
    for label in labels:
        members = _read(label, grammar, control)
        if members is not None and (other := places.get(members, label)) != label:
            found[label] = other
    return found


def identity(label: str, grammar: Grammar, control: str | None) -> str:
    """A text that is equal for labels that mean the same perturbation, or differ in spelling only.

    Where nothing is said of what a label is made of, that may be an order of members: ``B+A`` is as ``A+B``.
    """
    members = _read(label, grammar, control)
    if members is None:
        return "+".join(sorted(map(doses.identity, label.split("+"))))
    return str(sorted((spelling(agent), spelling(modality), str(dose)) for agent, modality, dose in members))


def without_dose(label: str, grammar: Grammar, control: str | None) -> str | None:
    """A text that is equal for perturbations with the same agents at any doses; None where the label holds no doses."""
    members = _read(label, grammar, control)
    if members is None:
        return doses.without_dose(label)
    if all(member.dose is None for member in members):
        return None
    return str(sorted((spelling(agent), spelling(modality)) for agent, modality, _ in members))


def _read(label: str, grammar: Grammar, control: str | None) -> Members | None:
    """The members of a label; None where the grammar says nothing of it, or can't read it."""
    if is_plain(grammar):
        return None
    try:
        return members_of(label, grammar, control)
    except ValueError:
        return None


def _place(member: Member) -> tuple[str, str, tuple[float, str]]:
    return member.agent, member.modality, (0.0, "") if member.dose is None else member.dose


def _named(label: str, grammar: Grammar) -> list[Member]:
    """Names between separators; a name without a modality takes the next one on its right."""
    found: list[Member] = []
    modality = grammar.modality or ""
    for part in reversed(_cut(label, grammar.separator)):
        name, own = _modality(part, grammar)
        modality = own or modality
        found.append(Member(name.strip(), modality))
    return found


def _listed(label: str, grammar: Grammar, nothing: Container[str | None]) -> list[Member]:
    """The entries of ``[(drug, dose, unit), ...]``, and a modality behind them; nothing may have a dose of 0."""
    body, mark, behind = label.rpartition("]")
    rest, modality = _modality(behind, grammar)
    entries = entries_of(body + mark)
    if not entries or rest.strip():
        raise ValueError(
            f"perturbation {label!r} is not a list of (drug, dose, unit), which doses = true says of every label; "
            "mend the label, or leave doses out."
        )
    return [
        Member(
            name.strip(),
            modality or grammar.modality or "",
            None if name.strip() in nothing else quantity(amount, unit, name),
        )
        for names, amount, unit in entries
        for name in _cut(names, grammar.separator)
    ]


def _cut(text: str, separator: str | None) -> list[str]:
    return [text] if separator is None else text.split(separator)


def _modality(text: str, grammar: Grammar) -> tuple[str, str]:
    """A text, and the modality that stands behind its last separator; "" where none does."""
    if grammar.modality_separator is None or grammar.modality_separator not in text:
        return text, ""
    name, _, modality = text.rpartition(grammar.modality_separator)
    return name, modality.strip()


def composed(
    label: str, columns: Columns, modality: object, amount: object, unit: object, separator: str = MODALITY
) -> str:
    """The label of a cell whose dose or modality stands in a column of its own.

    Raises:
        ValueError: there is no dose or no unit, an unknown one, or doses that do not fit the members.
    """
    if columns.dose is not None:
        label = _with_doses(label, _text(amount), _text(unit))
    if columns.modality is None or not _text(modality):
        return label
    return f"{label}{separator}{_text(modality)}"


def _with_doses(label: str, amount: str, unit: str) -> str:
    if not amount:
        raise ValueError(
            f"perturbation {label!r} has no dose in some cells, and every perturbed cell needs one; fill in the doses, "
            "or leave these cells out."
        )
    names, amounts = [label], [amount]
    if JOINED in amount:
        names, amounts = label.split(JOINED), amount.split(JOINED)
    if len(names) != len(amounts):
        raise ValueError(
            f"perturbation {label!r} has {len(names)} members and {len(amounts)} doses, {amount!r}; give one dose, or "
            "one for each member."
        )
    entries = [(name.strip(), one.strip(), unit) for name, one in zip(names, amounts, strict=True)]
    for name, one, _ in entries:
        quantity(one, unit, name)
    return written(entries)


def _text(value: object) -> str:
    """A cell of a table as text; numbers without the digits that floats add, and "" for what is missing."""
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, np.floating):
        value = float(str(value))  # 0.1 of 32 bits is 0.1
    return f"{value:.12g}" if isinstance(value, int | float | np.number) else str(value).strip()


def labels_from(
    read: "Callable[[str, str], pd.Series[Any]]", columns: Columns, *controls: str | None
) -> "pd.Series[Any]":
    """The labels of perturbation of some cells; `read` gives a column by its name and its key in a recipe.

    Cells of the labels `controls` have no dose, and keep their label.

    Raises:
        ValueError: as in `composed`.
    """
    labels = read(str(columns.perturbation), "columns.perturbation")
    if columns.dose is None and columns.modality is None:
        return labels
    found = {"label": labels}
    for key in ("modality", "dose", "dose_unit"):
        column = getattr(columns, key)
        # a unit that is no column is the unit of all cells
        if column is not None and not (key == "dose_unit" and is_unit(column)):
            found[key] = read(column, f"columns.{key}")
    coded = {key: pd.factorize(series) for key, series in found.items()}
    rows = pd.DataFrame({key: codes for key, (codes, _) in coded.items()})
    unique = rows.drop_duplicates(ignore_index=True)
    texts = [_written(row, coded, columns, controls) for row in unique.itertuples(index=False)]
    place = pd.MultiIndex.from_frame(unique).get_indexer(pd.MultiIndex.from_frame(rows))
    return pd.Series(pd.Categorical.from_codes(*_folded(texts, place)))


def is_unit(text: str) -> bool:
    """Whether a text is a unit of doses."""
    try:
        quantity("1", text, text)
    except ValueError:
        return False
    return True


def _written(
    row: Any,  # noqa: ANN401 - a named tuple of any columns
    coded: dict[str, Any],
    columns: Columns,
    controls: Sequence[str | None],
) -> str | None:
    values = {key: coded[key][1][code] if code >= 0 else None for key, code in row._asdict().items()}
    label = values["label"]
    if label is None or not str(label).strip():
        return None
    if str(label) in controls:
        return str(label)
    return composed(
        str(label), columns, values.get("modality"), values.get("dose"), values.get("dose_unit", columns.dose_unit)
    )


def _folded(texts: Sequence[str | None], place: Any) -> tuple[Any, pd.Index]:  # noqa: ANN401 - an array
    """The codes of cells whose labels stand at `place` among texts, equal ones as one, and the labels; -1 for None."""
    known = list(dict.fromkeys(text for text in texts if text is not None))
    at = {text: i for i, text in enumerate(known)}
    return np.array([-1 if text is None else at[text] for text in texts], dtype=np.int64)[place], pd.Index(known)


def parts_of(label: str, columns: Columns) -> dict[str, str]:
    """What a composed label says, by column key: perturbation, dose, dose_unit, modality; "" where nothing."""
    parts = dict.fromkeys(("perturbation", "dose", "dose_unit", "modality"), "")
    if columns.dose is None:
        separator = MODALITY if columns.modality is not None else None
        parts["perturbation"], parts["modality"] = _modality(label, Grammar(modality_separator=separator))
        return parts
    body, mark, behind = label.rpartition("]")
    entries = entries_of(body + mark)
    if not entries:
        return parts | {"perturbation": label}
    names, amounts, units = zip(*entries, strict=True)
    return {
        "perturbation": JOINED.join(names),
        "dose": JOINED.join(amounts),
        "dose_unit": units[0],
        "modality": behind.removeprefix(MODALITY),
    }


def beside(labels: Sequence[str], columns: Columns) -> dict[str, Any]:
    """The columns that stand beside the perturbation, by name, for composed labels: doses as numbers where all are."""
    found: dict[str, Any] = {}
    unique = {label: parts_of(label, columns) for label in dict.fromkeys(labels)}
    for key in ("dose", "dose_unit", "modality"):
        column = getattr(columns, key)
        if column is None or (key == "dose_unit" and is_unit(column)):
            continue
        texts = pd.Series([unique[label][key] for label in labels], dtype=object)
        numbers = pd.to_numeric(texts.replace("", None), errors="coerce")
        is_number = key == "dose" and bool((numbers.notna() | (texts == "")).all())
        found[column] = numbers.to_numpy(dtype=float) if is_number else pd.Categorical(texts)
    return found


def at_any_dose(drug: str, labels: Iterable[str]) -> list[str]:
    """The labels that are of a drug, or a combination ``a+b``, whatever the doses."""
    entries = {label: entries_of(label[: label.rfind("]") + 1]) for label in labels}
    return [label for label, found in entries.items() if found and drug == JOINED.join(name for name, _, _ in found)]
