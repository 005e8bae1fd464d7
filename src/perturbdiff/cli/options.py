"""Options that several commands share, and how their texts are read."""

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from perturbdiff.recipes.dataset import Recipe

RULE = """'{part="test", perturbation=["IFN-beta"], cell_type=["B cells"]}'"""
"""A hold-out rule, as an example."""

GUIDANCE_RULE = "write for example 1.5, or perturbation=1.5,cell_type=0.5 for a strength of each covariate"
"""What a strength of the guidance looks like, as an example."""

INTERRUPTED = 130
"""The exit status of long work that a signal ended early: as of a program ended by Ctrl-C."""

Seed = Annotated[int, typer.Option(help="Seed of all randomness.", min=0)]
OptionalSeed = Annotated[int | None, typer.Option(help="Seed of all randomness; the recipe's when absent.", min=0)]
MaxSteps = Annotated[int | None, typer.Option(help="Optimiser steps.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print results and errors only.")]
Json = Annotated[bool, typer.Option("--json", help="Print the table as JSON.")]
Layer = Annotated[
    str | None, typer.Option(help="Layer of the expression, X, raw or obsm:KEY, in place of the recipe's.")
]
GeneNames = Annotated[str | None, typer.Option(help="Column of var that names the genes, in place of the recipe's.")]
TotalCounts = Annotated[str | None, typer.Option(help="Column of each cell's total count, where genes are missing.")]
TargetSum = Annotated[float | None, typer.Option(help="What log1p counts were normalised to, where that is not 10^4.")]
MinOverlap = Annotated[
    float, typer.Option(help="Least share of the panel's genes that must be there; missing ones count as 0.")
]
Run = Annotated[Path, typer.Argument(help="Folder of a trained model.")]
"""Options that several commands share."""


REMEDIES = {
    "expression.layer": "--layer",
    "expression.gene_names": "--gene-names",
    "expression.target_sum": "--target-sum",
    "columns.total_counts": "--total-counts",
    "min_overlap": "--min-overlap",
    'declare scale = "': 'give --scale "',
    'with scale = "': 'with --scale "',
}
"""What an error calls the keys of a recipe, and the options that stand for them in a command without one."""

REMEDIES_OF = {
    "train": {
        "name features in [encoders.perturbation]": "give --features",
        "(exclude)": "(--exclude)",
        "exclude them in a recipe by the label": "leave them out by --exclude with the label",
    },
    "evaluate": {
        "--layer": "--layer (of a predicted file --predicted-layer)",
        "or clip predicted ones": "or judge those of predicted files as 0 by --clip",
    },
}
"""Those of one command besides."""


@contextmanager
def by_options(command: str = "", *, instead: bool = True) -> Iterator[None]:
    """Name options in place of a recipe's keys in errors, so that every remedy is open in the command.

    Args:
        command: whose remedies there are besides.
        instead: false where there is a recipe, whose keys are the remedies.
    """
    try:
        yield
    except ValueError as error:
        if not instead:
            raise
        text = str(error)
        for key, option in (REMEDIES | REMEDIES_OF.get(command, {})).items():
            text = text.replace(key, option)
        raise ValueError(text) from error


def rule(text: str) -> dict[str, Any]:
    """One hold-out rule, written as an inline table of TOML."""
    try:
        table: dict[str, Any] = tomllib.loads(f"rule = {text}")["rule"]
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"--hold-out {text!r} is not an inline table ({error}); write for example {RULE}.") from None
    return table


def guidance_of(text: str) -> float | dict[str, float]:
    """A strength of the guidance, `1.5`, or one for each covariate, `perturbation=1.5,cell_type=0.5`.

    Raises:
        ValueError: it is neither; what numbers and covariates there may be is said by the settings.
    """
    try:
        if "=" not in text:
            return float(text)
        pairs = [part.partition("=") for part in text.split(",")]
        strengths = {name.strip(): float(number) for name, _, number in pairs}
    except ValueError:
        raise ValueError(f"--guidance {text!r} is no number and no list of them; {GUIDANCE_RULE}.") from None
    if len(strengths) < len(pairs):
        raise ValueError(f"--guidance {text!r} names a covariate twice; {GUIDANCE_RULE}.")
    return strengths


def given(mapping: dict[str, Any]) -> dict[str, Any]:
    """What was given: without the options that are absent."""
    nested = {key: given(value) if isinstance(value, dict) else value for key, value in mapping.items()}
    return {key: value for key, value in nested.items() if value not in (None, [], {})}


def recipe_of(data: Path, described: dict[str, Any]) -> "tuple[Recipe, Path]":
    """The recipe of a command's data, and the folder of its files: a file of cells with options, a recipe or a store.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: an option is given of what a recipe has the say of; or as `recipes.dataset`.
    """
    from perturbdiff.recipes.dataset import recipe_from_mapping
    from perturbdiff.recipes.files import CELLS
    from perturbdiff.store.open import recipe_at

    if data.suffix in CELLS:
        mapping = {"name": data.stem, "files": [str(data.resolve())], **described}
        return recipe_from_mapping(mapping, "the options"), data.resolve().parent
    if described:
        named = ", ".join(described)
        raise ValueError(f"{named} were given, but the recipe {str(data)!r} says that; change the recipe instead.")
    return recipe_at(data)


def names(paths: list[Path]) -> dict[str, Path]:
    """Files by their stem, or by their whole path where two stems are equal."""
    stems = [path.stem for path in paths]
    unique = len(set(stems)) == len(stems)
    return {(stem if unique else str(path)): path for stem, path in zip(stems, paths, strict=True)}
