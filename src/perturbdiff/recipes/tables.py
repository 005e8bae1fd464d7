"""Strict tables: read from TOML or from arguments, where an unknown key is an error that names the nearest known one.

A value of the wrong type, a missing key or a broken rule is an error of one sentence, too.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from perturbdiff.spelling import nearest

_REMEDY = {
    "expression": 'add a table [expression] with scale = "counts" or scale = "log1p"',
    "scale": 'write scale = "counts" for integer counts or scale = "log1p" for log1p counts per 10^4',
    "name": 'write a short name, such as name = "my-screen"',
    "part": 'write part = "test" or part = "validation"',
}

_RULE = {
    "tuple_type": "should be a list",
    "model_type": "should be a table",
    "dict_type": "should be a table",
    "string_type": "should be text in quotes",
}

FORMERLY: Mapping[str, Mapping[str, str | None]] = {
    "model": {"rho": "shared_noise"},
    "training": {"coins": "dropout_per", "shrink_shifts": None},
}
"""What settings were called at first, by table, None of those that are gone: recipes and models of before are read."""


class Table(BaseModel):
    """A strict, frozen table: lists become tuples, an unknown key is named with the nearest known one."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _read(cls, table: Any) -> Any:  # noqa: ANN401 - whatever the file holds
        if not isinstance(table, Mapping):
            return table
        for key in table:
            if key not in cls.model_fields:
                raise ValueError(f"{key!r} is not a key here; {nearest(str(key), cls.model_fields)}")
        return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}


def todays_names(tables: Any) -> Any:  # noqa: ANN401 - whatever the file holds
    """Tables of settings by the names that they have today."""
    if not isinstance(tables, Mapping):
        return tables
    found = dict(tables)
    for name, renamed in FORMERLY.items():
        table = found.get(name)
        if not isinstance(table, Mapping):
            continue
        for former, today in renamed.items():
            if today is not None and former in table and today in table:
                raise ValueError(f"{name}.{former} is the former name of {name}.{today}; leave it out")
        called = {key: renamed.get(key, key) for key in table}
        found[name] = {called[key]: value for key, value in table.items() if called[key] is not None}
    return found


def validated[T: BaseModel](table: type[T], mapping: Mapping[str, Any], source: str) -> T:
    """A table read from a mapping; `source` (a file's name, an argument) opens the sentence of an error.

    Raises:
        ValueError: an unknown key (the nearest is named), a missing one, a wrong type, or a broken rule.
    """
    try:
        return table.model_validate(dict(mapping))
    except ValidationError as error:
        raise ValueError(_sentence(error, source)) from None


def _sentence(error: ValidationError, source: str) -> str:
    first = error.errors(include_url=False)[0]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    if first["type"] == "value_error":
        where = f"{source}, {place}" if place else source
        return f"{where}: {first['ctx']['error']}."
    if first["type"] == "missing":
        remedy = _REMEDY.get(str(first["loc"][-1]), "add it")
        return f"{source}: the key {place} is missing; {remedy}."
    rule = _RULE.get(first["type"], first["msg"].removeprefix("Input "))
    return f"{source}: {place} is {first['input']!r}, which {rule}."
