"""A recipe: all that the library must know of a data set, as data.

One TOML file names the columns, the control label, the scale of the expression, what is left out and what is
held out. Reading is strict: an unknown key is an error that names the nearest known one, and a value of the wrong
type is an error of one sentence. The tables [encoders], [model], [training], [sampling] and [finetuning] are kept as
they are given; `settings` reads them.
"""

import tomllib
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w
from pydantic import Field, model_validator

from perturbdiff.io import whole_file
from perturbdiff.recipes.selection import HoldOut, Match, control_character, hold_outs_from
from perturbdiff.recipes.settings import Configured
from perturbdiff.recipes.tables import Table, validated

PER = 1e4
"""The unit of expression: log1p counts per so many."""


class Columns(Table):
    """The columns of `obs` that hold the labels; an absent one means that the data have no such covariate.

    Attributes:
        dose: amounts; with them each perturbation is a drug at a dose, written ``[('drug', 0.5, 'uM')]``.
        dose_unit: the unit of all doses (nM, uM, mM, mg/mL, ...), or the column that holds it.
        modality: knock-out, activation, drug, ...; with it a perturbation is written ``label|modality``.
        total_counts: the counts over all genes, where the file holds a panel only.
    """

    perturbation: str | None = None
    cell_type: str | None = None
    assay_batch: str | None = None
    dose: str | None = None
    dose_unit: str | None = None
    modality: str | None = None
    total_counts: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dose is not None and self.dose_unit is None:
            raise ValueError(
                f"dose = {self.dose!r} has no unit, and a number alone is no dose; add dose_unit, a unit such as "
                '"uM" or the column that holds it'
            )
        if self.dose is None and self.dose_unit is not None:
            raise ValueError(f"dose_unit = {self.dose_unit!r} belongs to a column of doses; add dose, or leave it out")
        if self.perturbation is None and (self.dose is not None or self.modality is not None):
            raise ValueError("dose and modality are of a perturbation; add perturbation, or leave them out")
        return self


class Grammar(Table):
    """What a label of perturbation is made of; a label that nothing is said of is one agent, whatever its text.

    Labels are read sign by sign, see `labels.members`, and nothing in them is evaluated.

    Attributes:
        separator: between the members of a combination, as "+" in ``A+B``.
        modality_separator: before a member's modality, as "|" in ``A|CRISPRa``; in ``A+B|CRISPRa`` it is of both.
        modality: of all members that name none.
        doses: whether labels are lists ``[('drug', 0.5, 'uM'), ...]``.
        nothing: members that mean no perturbation, as "ctrl" in ``A+ctrl``.
    """

    separator: str | None = None
    modality_separator: str | None = None
    modality: str | None = None
    doses: bool = False
    nothing: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key in ("separator", "modality_separator", "modality"):
            if (given := getattr(self, key)) is not None and not given.strip():
                raise ValueError(f"{key} = {given!r} is empty; leave it out, or write what stands in the labels")
        if self.separator is not None and self.separator == self.modality_separator:
            raise ValueError(f"separator and modality_separator are both {self.separator!r}; a sign has one meaning")
        return self


PLAIN = Grammar()
"""Every label is one agent."""


class Expression(Table):
    """Where the expression is and its scale.

    Attributes:
        scale: "counts" (checked to be integers) or "log1p" (log1p counts per 10^4); never guessed.
        layer: a layer's name, "raw" for `raw.X`, or "obsm:KEY"; None is `X`.
        gene_names: the column of `var` that names the genes; None is `var_names`. For "obsm:KEY" it may be a column
            of booleans: the genes that the matrix holds, in their order.
        gene_table: a CSV (relative to the recipe) with the columns identifier and name, which renames genes.
        target_sum: what each cell's counts were normalised to before log1p; 10^4 when absent. Values of another one
            are converted to log1p counts per 10^4.
    """

    scale: Literal["counts", "log1p"]
    layer: str | None = None
    gene_names: str | None = None
    gene_table: str | None = None
    target_sum: float | None = None

    @property
    def normalised_to(self) -> float:
        """What each cell's counts were normalised to, where the scale is log1p."""
        return PER if self.target_sum is None else self.target_sum

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.target_sum is not None and self.scale == "counts":
            raise ValueError(
                f"target_sum = {self.target_sum:g} is what counts were normalised to before log1p, and the scale is "
                '"counts"; leave it out'
            )
        if self.target_sum is not None and not (isfinite(self.target_sum) and self.target_sum > 0):
            raise ValueError(f"target_sum = {self.target_sum:g} is not above 0; leave it out for log1p counts per 10^4")
        if self.gene_table is not None and not self.gene_table.strip():
            raise ValueError("gene_table is empty, and it is the path of a CSV; leave it out to rename no gene")
        return self


class Recipe(Configured):
    """A data set: its files (relative to the recipe), its columns, its panel of genes, what is held out.

    Attributes:
        control: the control cells' label of perturbation; given as a list, the first one, under which all are read.
        controls: the further labels of control cells, which are the rest of such a list.
        join: how files with different genes are put together: their genes must be the "same" (in any order), or their
            "intersection" or "union" is taken.
        cell_names: names of cells are "unique" over all files, or each is made so "with_file": its file's name.
        n_genes: how many genes of highest variability make the panel; None takes all genes.
        genes: the panel itself, instead of `n_genes`.
        exclude: cells that are left out altogether.
        perturbation: what a label of perturbation is made of.
        encoders, model, training, sampling, finetuning: what `settings` are read from.
    """

    name: str
    about: str = ""
    kind: Literal["perturb-seq", "rna-seq"] = "perturb-seq"
    control: str | None = None
    controls: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    join: Literal["same", "intersection", "union"] = "same"
    cell_names: Literal["unique", "with_file"] = "unique"
    n_genes: int | None = None
    genes: tuple[str, ...] | None = None
    columns: Columns = Columns()
    perturbation: Grammar = Grammar()
    expression: Expression
    exclude: tuple[Match, ...] = ()
    hold_out: tuple[HoldOut, ...] = ()
    encoders: dict[str, Any] = Field(default_factory=dict)
    model: dict[str, Any] = Field(default_factory=dict)
    sampling: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    finetuning: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _one_control(cls, table: Any) -> Any:  # noqa: ANN401 - whatever the file holds
        """A list of control labels, as the first one and the others; numbers as text."""
        given = table.get("control") if isinstance(table, Mapping) else None
        if not isinstance(given, list | tuple):
            return table if given is None else {**table, "control": _number_as_text(given)}
        listed = [_number_as_text(label) for label in given]
        if not listed or not all(isinstance(label, str) for label in listed):
            raise ValueError(f"control = {list(given)!r} is no label and no list of them; write texts in quotes")
        return {**table, "control": listed[0], "controls": tuple(listed[1:])}

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
    def _check_modality(self) -> Self:
        grammar = self.perturbation
        if self.columns.modality is not None and (
            grammar.separator == "|" or grammar.modality_separator not in {None, "|"}
        ):
            raise ValueError(
                'columns.modality is written behind each label as "|modality", so "|" separates modalities and nothing '
                "else does; mend [perturbation], or leave the column out"
            )
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


def recipe_from_mapping(mapping: Mapping[str, Any], source: str) -> Recipe:
    """A recipe from the tables of a TOML file or the arguments of a call; errors as in `validated`."""
    return validated(Recipe, mapping, source)


def hold_outs_of(rules: Sequence[Mapping[str, Any] | HoldOut], recipe: Recipe) -> tuple[HoldOut, ...]:
    """Hold-out rules in place of a recipe's, checked against its columns; errors as in `validated`."""
    found = hold_outs_from(rules)
    named = [rule.model_dump(exclude_none=True) for rule in found]
    recipe_from_mapping(recipe.model_dump(exclude_none=True) | {"hold_out": named}, "hold_out")
    return found


def read_recipe(path: Path) -> Recipe:
    """Read one TOML file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not TOML, or not a recipe.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no recipe file {str(path)!r}; give the path of a .toml file.")
    return recipe_from_mapping(toml_tables(path), path.name)


def toml_tables(path: Path) -> dict[str, Any]:
    """The tables of a file that is there.

    Raises:
        ValueError: it is not TOML.
    """
    if path.suffix != ".toml":
        raise ValueError(
            f"{str(path)!r} has the ending {path.suffix!r}, and a recipe ends in .toml and cells in .h5ad, .h5mu or "
            ".zarr; give one of these, or the folder of a store."
        )
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ValueError(f"{str(path)!r} is not text, and a recipe is a TOML file; give a .toml file.") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{str(path)!r} is not TOML: {error}; mend that line.") from None


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe that `read_recipe` reads back equal; values that are None are left out of the file."""
    table = _without_none(recipe.model_dump(mode="json", exclude_defaults=True))
    with whole_file(Path(path)) as partial:
        partial.write_text(tomli_w.dumps(table, multiline_strings=False), encoding="utf-8")


def with_absolute_features(recipe: Recipe, folder: Path) -> Recipe:
    """A recipe whose files of features no longer depend on the folder that it lies in."""
    encoders = dict(recipe.encoders)
    for name, table in recipe.encoders.items():
        if isinstance(table, Mapping) and "file" in table:
            encoders[name] = {**table, "file": str((folder / Path(table["file"]).expanduser()).resolve())}
    return recipe.model_copy(update={"encoders": encoders})


def _number_as_text(label: Any) -> Any:  # noqa: ANN401 - whatever the file holds
    """A label that is given as a number, as text; ``0.0`` is ``0``."""
    return f"{label:.12g}" if isinstance(label, int | float) and not isinstance(label, bool) else label


def _without_none(table: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in table.items()
        if value is not None
    }
