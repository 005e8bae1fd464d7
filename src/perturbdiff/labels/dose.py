"""Labels that hold doses: what a label means, whatever its spelling, its unit and its order.

Some data sets write a treatment as a list of (drug, dose, unit), as ``[('a', 0.5, 'uM'), ('b', 5.0, 'uM')]``. Such a
label is matched as text, and nothing in it is evaluated. Any other label, "drug_0.5uM" too, means itself: a dose is
never guessed from a name.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import NamedTuple

from perturbdiff.spelling import nearest, spelling

_MOLAR = {"pM": -3, "nM": 0, "uM": 3, "mM": 6, "M": 9}
_MASS = {"pg/mL": -3, "ng/mL": 0, "ug/mL": 3, "mg/mL": 6}
_UNITS = {unit: (power, "nM") for unit, power in _MOLAR.items()} | {
    unit: (power, "ng/mL") for unit, power in _MASS.items()
}
"""Powers of ten to the unit that doses are compared in."""

_MICRO = str.maketrans({"\u00b5": "u", "\u03bc": "u"})
"""The micro sign and the Greek letter, which look alike."""

_DIGITS = 12
"""Doses are equal where they agree in so many digits: 0.1 + 0.2 is 0.3."""

_LONGEST = 24
"""No number of a dose has more signs; a longer one is something else."""

_TENS = 30
"""No dose lies so many powers of ten from its unit."""

_TEXT = r"""'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+\""""
_TRIPLE = rf"""\( *+({_TEXT}) *+, *+([^] [(),'"]++) *+, *+({_TEXT}) *+\)"""
_ENTRY = re.compile(_TRIPLE, re.DOTALL)
_LIST = re.compile(rf" *+\[ *+{_TRIPLE}(?: *+, *+{_TRIPLE})*+ *+,? *+\] *+", re.DOTALL)
"""An entry of a list, and the list; the comma after the last entry may be left out."""

type Dose = tuple[str, Decimal, str]
"""Drug, amount, dimension."""


class Quantity(NamedTuple):
    """A dose to compute with.

    Attributes:
        amount: above 0, in the unit that stands for its dimension.
        dimension: "nM" for amounts of substance, "ng/mL" for masses: neither is converted to the other.
    """

    amount: float
    dimension: str


def quantity(amount: str, unit: str, of: str) -> Quantity:
    """A dose of `of` (a drug, for the sentence of an error) in the unit of its dimension.

    Raises:
        ValueError: the unit is unknown (the nearest is named), or the amount is not a number above 0.
    """
    dimension = _dimension(unit)
    if not unit.strip():
        raise ValueError(f"{of!r} has the dose {amount} without a unit; add one of {', '.join(_UNITS)}.")
    if dimension is None:
        raise ValueError(
            f"{of!r} has a dose in the unknown unit {unit!r}; {nearest(unit, _UNITS)}: convert it to one of "
            f"{', '.join(_UNITS)}."
        )
    number = _number(amount.strip().lower())
    if number is None or not number:
        raise ValueError(
            f"{of!r} has the dose {amount!r}, and a dose is a number above 0; mend it, and give untreated cells the "
            "control label."
        )
    power, base = dimension
    return Quantity(float(Context(prec=_DIGITS).normalize(number.scaleb(power))), base)


def written(entries: Sequence[tuple[str, str, str]]) -> str:
    """The label ``[('drug', 0.5, 'uM'), ...]`` of (drug, amount, unit), which `entries_of` reads back."""
    quoted = [f"({_quoted(drug)}, {amount}, {_quoted(unit)})" for drug, amount, unit in entries]
    return f"[{', '.join(quoted)}]"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _dimension(unit: str) -> tuple[int, str] | None:
    """Powers of ten to the unit that doses are compared in, and that unit; None for an unknown unit."""
    plain = unit.strip().translate(_MICRO)
    return _UNITS.get(f"{plain[:-2]}mL" if plain.endswith("/ml") else plain)


@dataclass(frozen=True)
class Treatment:
    """One drug or several, each at a dose.

    Attributes:
        doses: (drug, amount, dimension), sorted: the drug as `spelling` has it, the amount in the unit that stands for
            its dimension, "nM" or "ng/mL"; an unknown unit is a dimension of its own.
    """

    doses: tuple[Dose, ...]

    @property
    def drugs(self) -> tuple[str, ...]:
        """The drugs, each once."""
        return tuple(sorted({drug for drug, _, _ in self.doses}))


def treatment_of(label: str) -> Treatment | None:
    """The treatment that a label of the form ``[(drug, dose, unit), ...]`` means; None for any other label."""
    doses = []
    for drug, amount, unit in entries_of(label):
        dose = _dose(drug, amount, unit)
        if dose is None:
            return None
        doses.append(dose)
    return Treatment(tuple(sorted(doses))) if doses else None


def identity(label: str) -> str:
    """A text that is equal for labels that mean the same treatment, or differ in spelling only."""
    treatment = treatment_of(label)
    if treatment is None:
        return spelling(label)
    return str([(drug, str(amount), dimension) for drug, amount, dimension in treatment.doses])


def without_dose(label: str) -> str | None:
    """A text that is equal for treatments with the same drugs at any doses; None where the label holds no doses."""
    treatment = treatment_of(label)
    return None if treatment is None else " + ".join(treatment.drugs)


def _dose(drug: str, amount: str, unit: str) -> Dose | None:
    name, number, unit = spelling(drug), _number(amount), unit.strip().translate(_MICRO)
    if not name or number is None or not unit:
        return None
    power, dimension = _dimension(unit) or (0, unit)
    return name, Context(prec=_DIGITS).normalize(number.scaleb(power)), dimension


def _number(text: str) -> Decimal | None:
    """A dose, which is never below 0."""
    mantissa, _, exponent = text.partition("e")
    whole, _, fraction = mantissa.partition(".")
    if len(text) > _LONGEST or not _are_digits(whole + fraction):
        return None
    if "e" in text and not _are_digits(exponent.removeprefix("-").removeprefix("+")):
        return None
    number = Decimal(text)
    return number if not number or abs(number.adjusted()) <= _TENS else None


def _are_digits(text: str) -> bool:
    return text.isascii() and text.isdigit()


def entries_of(label: str) -> list[tuple[str, str, str]]:
    """The (drug, dose, unit) of a label, as text; none where the label is not such a list from end to end."""
    if _LIST.fullmatch(label) is None:
        return []
    return [(_unquoted(drug), dose.lower(), _unquoted(unit)) for drug, dose, unit in _ENTRY.findall(label)]


def _unquoted(text: str) -> str:
    """The signs of a quotation; a backslash stands for the sign after it."""
    return re.sub(r"\\(.)", r"\1", text[1:-1], flags=re.DOTALL)
