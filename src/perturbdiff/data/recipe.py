"""A recipe: all that the library must know of a data set, as data.

One TOML file names the columns, the control label, the scale of the expression, what is left out and what is
held out. Reading is strict: an unknown key is an error that names the nearest known one, and a value of the wrong
type is an error of one sentence. The tables [model], [training] and [sampling] pass through untouched; the settings
read them.
"""

import tomllib
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from perturbdiff.data.export import whole_file
from perturbdiff.data.vocabulary import nearest

COVARIATES = ("perturbation", "cell_type", "assay_batch")
"""The covariates of a cell, in the order of every table and condition."""

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

_CONTROL = ("Cc", "Zl", "Zp")
"""Categories of characters that break a line or are not seen."""


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


class Columns(Table):
    """The columns of `obs` that hold the labels; an absent one means that the data have no such covariate."""

    perturbation: str | None = None
    cell_type: str | None = None
    assay_batch: str | None = None
    dose: str | None = None
    total_counts: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dose is not None:
            raise ValueError(
                f"dose = {self.dose!r} is not supported by this version; join the dose into the perturbation's label"
            )
        return self


class Expression(Table):
    """Where the expression is and its scale.

    Attributes:
        scale: "counts" (checked to be integers) or "log1p" (log1p counts per 10^4); never guessed.
        layer: a layer's name, or "obsm:KEY"; None is `X`.
        gene_names: the column of `var` that names the genes; None is `var_names`. For "obsm:KEY" it may be a column
            of booleans: the genes that the matrix holds, in their order.
        gene_table: a CSV (relative to the recipe) with the columns identifier and name, which renames genes.
    """

    scale: Literal["counts", "log1p"]
    layer: str | None = None
    gene_names: str | None = None
    gene_table: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.gene_table is not None and not self.gene_table.strip():
            raise ValueError("gene_table is empty, and it is the path of a CSV; leave it out to rename no gene")
        return self


class Match(Table):
    """A cell matches where each named covariate's label is in its list; an absent covariate means any."""

    perturbation: tuple[str, ...] | None = None
    cell_type: tuple[str, ...] | None = None
    assay_batch: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        named = self.named()
        if not named:
            raise ValueError(f"it names no cells; give a list for one of {', '.join(COVARIATES)}")
        for key, labels in named.items():
            if not labels:
                raise ValueError(f"{key} = [] matches no cell; list labels, or leave the key out to mean any")
            for label in labels:
                if control_character(label) is not None:
                    raise ValueError(
                        f"{key} {label!r} holds the control character {control_character(label)!r}, and a label is one "
                        "line of text; mend the label"
                    )
        return self

    def named(self) -> dict[str, tuple[str, ...]]:
        """The covariates that are named, with their labels."""
        lists = {key: getattr(self, key) for key in COVARIATES}
        return {key: labels for key, labels in lists.items() if labels is not None}


class HoldOut(Match):
    """Matching cells are held out of training for a part, but for those that `keep_*` leaves there (few-shot).

    Attributes:
        part: what they are held out for.
        keep_fraction, keep_cells: so many of them stay in training, drawn by seed.
        hold_out_controls: whether control cells that match are held out too.
        other_doses: what training cells of the same drug in the same context at another dose are: a "leak", or meant
            to "train".
    """

    part: Literal["test", "validation"]
    keep_fraction: float | None = None
    keep_cells: int | None = None
    hold_out_controls: bool = False
    other_doses: Literal["leak", "train"] = "leak"

    @model_validator(mode="after")
    def _check_keep(self) -> Self:
        if self.keep_fraction is not None and self.keep_cells is not None:
            raise ValueError(
                f"keep_fraction = {self.keep_fraction} and keep_cells = {self.keep_cells} both say how many "
                "cells stay in training; give one of them"
            )
        if self.keep_fraction is not None and not 0 < self.keep_fraction < 1:
            raise ValueError(
                f"keep_fraction = {self.keep_fraction} is not between 0 and 1; leave it out to keep no cell"
            )
        if self.keep_cells is not None and self.keep_cells < 1:
            raise ValueError(f"keep_cells = {self.keep_cells} is below 1; leave it out to keep no cell")
        return self


class Recipe(Table):
    """A data set: its files (relative to the recipe), its columns, its panel of genes, what is held out.

    Attributes:
        control: the control cells' label of perturbation.
        join: how files with different genes are put together: their genes must be the "same" (in any order), or their
            "intersection" or "union" is taken.
        cell_names: names of cells are "unique" over all files, or each is made so "with_file": its file's name.
        n_genes: how many genes of highest variability make the panel; None takes all genes.
        genes: the panel itself, instead of `n_genes`.
        exclude: cells that are left out altogether.
        model, training, sampling: passed through to the settings.
    """

    name: str
    about: str = ""
    kind: Literal["perturb-seq", "rna-seq"] = "perturb-seq"
    control: str | None = None
    files: tuple[str, ...] = ()
    join: Literal["same", "intersection", "union"] = "same"
    cell_names: Literal["unique", "with_file"] = "unique"
    n_genes: int | None = None
    genes: tuple[str, ...] | None = None
    columns: Columns = Columns()
    expression: Expression
    exclude: tuple[Match, ...] = ()
    hold_out: tuple[HoldOut, ...] = ()
    model: dict[str, Any] = {}
    sampling: dict[str, Any] = {}
    training: dict[str, Any] = {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind == "perturb-seq" and (self.columns.perturbation is None or self.control is None):
            absent = "columns.perturbation" if self.columns.perturbation is None else "control"
            raise ValueError(
                f'{absent} is missing, which kind = "perturb-seq" needs; name it, '
                'or write kind = "rna-seq" for unperturbed cells'
            )
        if (self.columns.perturbation is None) != (self.control is None):
            raise ValueError(
                f"control = {self.control!r} and columns.perturbation = {self.columns.perturbation!r} "
                "belong together; give both or neither"
            )
        if self.control is not None and control_character(self.control) is not None:
            raise ValueError(f"control = {self.control!r} is not one line of text, which a label is; mend the label")
        if self.n_genes is not None and self.n_genes < 1:
            raise ValueError(f"n_genes = {self.n_genes} is below 1; leave it out to take all genes")
        if self.genes is not None and self.n_genes is not None:
            raise ValueError(f"n_genes = {self.n_genes} and a list of genes both choose the panel; give one of them")
        return self

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        for table in ("exclude", "hold_out"):
            for i, rule in enumerate(getattr(self, table)):
                for key in rule.named():
                    if getattr(self.columns, key) is None:
                        raise ValueError(
                            f"{table}[{i}] names {key}, for which [columns] gives no column; add {key} to [columns]"
                        )
        return self


def validated[T: BaseModel](table: type[T], mapping: Mapping[str, Any], source: str) -> T:
    """A table read from a mapping; `source` (a file's name, an argument) opens the sentence of an error.

    Raises:
        ValueError: an unknown key (the nearest is named), a missing one, a wrong type, or a broken rule.
    """
    try:
        return table.model_validate(dict(mapping))
    except ValidationError as error:
        raise ValueError(_sentence(error, source)) from None


def recipe_from_mapping(mapping: Mapping[str, Any], source: str) -> Recipe:
    """A recipe from the tables of a TOML file or the arguments of a call; errors as in `validated`."""
    return validated(Recipe, mapping, source)


def hold_outs_from(rules: Sequence[Mapping[str, Any] | HoldOut]) -> tuple[HoldOut, ...]:
    """Hold-out rules given as tables: `[{"part": "test", "cell_type": ["B"]}]`; errors as in `validated`."""
    return tuple(
        rule if isinstance(rule, HoldOut) else validated(HoldOut, rule, f"hold_out[{i}]")
        for i, rule in enumerate(rules)
    )


def read_recipe(path: Path) -> Recipe:
    """Read one TOML file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not TOML, or not a recipe.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no recipe file {str(path)!r}; give the path of a .toml file.")
    try:
        mapping = tomllib.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ValueError(f"{str(path)!r} is not text, and a recipe is a TOML file; give a .toml file.") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{str(path)!r} is not TOML: {error}; mend that line.") from None
    return recipe_from_mapping(mapping, path.name)


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe that `read_recipe` reads back equal; values that are None are left out of the file."""
    table = _without_none(recipe.model_dump(mode="json", exclude_defaults=True))
    with whole_file(Path(path)) as partial:
        partial.write_text(tomli_w.dumps(table, multiline_strings=False), encoding="utf-8")


def control_character(label: str) -> str | None:
    """The first control character of a label (a newline, a tab), which no label may hold; None where there is none."""
    return next((sign for sign in label if unicodedata.category(sign) in _CONTROL), None)


def _without_none(table: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in table.items()
        if value is not None
    }


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
