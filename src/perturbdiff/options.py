"""Options that several commands share, and how their texts are read."""

import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

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
Run = Annotated[Path, typer.Argument(help="Folder of a trained model.")]
"""Options that several commands share."""


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


def refuse(described: dict[str, Any], data: Path) -> None:
    """Refuse options that a recipe has the say of."""
    if described:
        named = ", ".join(described)
        raise ValueError(f"{named} were given, but the recipe {str(data)!r} says that; change the recipe instead.")


def names(paths: list[Path]) -> dict[str, Path]:
    """Files by their stem, or by their whole path where two stems are equal."""
    stems = [path.stem for path in paths]
    unique = len(set(stems)) == len(stems)
    return {(stem if unique else str(path)): path for stem, path in zip(stems, paths, strict=True)}
