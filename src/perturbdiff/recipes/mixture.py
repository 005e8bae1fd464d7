"""A mixture: the sources that a model is pretrained on, as data.

One TOML file names a recipe or a store for each source, its weight, and which of its cells are used; the tables
[encoders], [model], [training] and [sampling] are of the pretraining, and what the sources' recipes say of these is not
looked at. A recipe or a store by itself is a mixture of one.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from perturbdiff.recipes.dataset import Columns, Expression, Recipe
from perturbdiff.recipes.settings import Configured
from perturbdiff.recipes.tables import Table, validated
from perturbdiff.spelling import nearest


class SourceRule(Table):
    """One source of a mixture.

    Attributes:
        recipe: a recipe or a store, relative to the mixture's file.
        folder: that the recipe's files are relative to, itself relative to the mixture's file; that of the recipe when
            absent.
        name: of the source; the recipe's when absent.
        weight: its share of the populations, whatever its size.
        cells: "all" training cells, perturbed or not, or "controls" only.
    """

    recipe: str
    folder: str | None = None
    name: str | None = None
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    cells: Literal["all", "controls"] = "all"


class Mixture(Configured):
    """Sources to pretrain on, and one panel for all.

    Attributes:
        n_genes: how many genes of highest variability each source gives to the panel, which is their union; None takes
            all genes of all sources.
        genes: the panel itself, instead of `n_genes`.
        encoders, model, training, sampling: what `settings` are read from.
    """

    name: str
    about: str = ""
    n_genes: int | None = None
    genes: tuple[str, ...] | None = None
    sources: tuple[SourceRule, ...]
    encoders: dict[str, Any] = Field(default_factory=dict)
    model: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    sampling: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.sources:
            raise ValueError("sources is empty, and there is nothing to train on; add a table [[sources]]")
        if self.n_genes is not None and self.n_genes < 1:
            raise ValueError(f"n_genes = {self.n_genes} is below 1; leave it out to take all genes")
        if self.genes is not None and self.n_genes is not None:
            raise ValueError(f"n_genes = {self.n_genes} and a list of genes both choose the panel; give one of them")
        return self


@dataclass(frozen=True)
class Member:
    """A source of a mixture, found.

    Attributes:
        name: unique in the mixture.
        recipe: of its cells.
        folder: that the recipe's files are relative to; None where the cells are in memory.
        weight, cells: see `SourceRule`.
    """

    name: str
    recipe: Recipe
    folder: Path | None
    weight: float = 1.0
    cells: Literal["all", "controls"] = "all"


def mixture_of(recipe: Recipe) -> Mixture:
    """A recipe as a mixture of one source, with the settings of the recipe."""
    tables = {name: getattr(recipe, name) for name in ("encoders", "model", "training", "sampling")}
    return Mixture(
        name=recipe.name,
        about=recipe.about,
        n_genes=recipe.n_genes,
        genes=recipe.genes,
        sources=(SourceRule(recipe=recipe.name),),
        **tables,
    )


def mixture_in_memory(
    recipes: Mapping[str, Recipe],
    weights: Mapping[str, float],
    cells: Mapping[str, Any],
    tables: Mapping[str, Any],
) -> tuple[Mixture, tuple[Member, ...]]:
    """A mixture of sources whose cells are in memory, with the weights and the cells of some of them.

    Args:
        recipes: of the sources, by name.
        weights: 1 where absent.
        cells: "all" where absent.
        tables: name, panel and settings of the mixture.

    Raises:
        ValueError: a name is of no source, or a value does not fit.
    """
    for what, given in (("weights", weights), ("cells", cells)):
        check_known(what, given, recipes)
    rules = [
        validated(SourceRule, {"recipe": name, "weight": weights.get(name, 1.0), "cells": cells.get(name, "all")}, name)
        for name in recipes
    ]
    mixture = validated(Mixture, {**tables, "sources": [rule.model_dump() for rule in rules]}, "the arguments")
    members = [
        Member(name, recipe, None, rule.weight, rule.cells)
        for (name, recipe), rule in zip(recipes.items(), rules, strict=True)
    ]
    return mixture, tuple(members)


def check_known(what: str, given: Iterable[str], sources: Collection[str]) -> None:
    """Refuse a name of no source.

    Raises:
        ValueError: there is one; the nearest is named.
    """
    for name in given:
        if name not in sources:
            raise ValueError(f"{what} names {name!r}, which is no source; {nearest(name, sources)}.")


def check_names(names: list[str]) -> None:
    """Refuse two sources of one name.

    Raises:
        ValueError: there are some.
    """
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise ValueError(f"two sources are called {twice[0]!r}, and are told apart by name; give each its own name.")


def recipe_of(mixture: Mixture, members: tuple[Member, ...]) -> Recipe:
    """What a model that was pretrained on a mixture is told of cells to predict from: unperturbed ones.

    Columns and expression are those that all sources that have some agree on; else cell_type, assay_batch, and counts
    in X.
    """

    def common(values: list[Any], otherwise: Any) -> Any:  # noqa: ANN401 - columns or tables
        given = [value for value in values if value is not None]
        return given[0] if given and all(value == given[0] for value in given) else otherwise

    columns = [member.recipe.columns for member in members]
    kept = {name: common([getattr(own, name) for own in columns], name) for name in ("cell_type", "assay_batch")}
    kept["total_counts"] = columns[0].total_counts if len(members) == 1 else None
    return Recipe(
        name=mixture.name,
        about=mixture.about,
        kind="rna-seq",
        n_genes=mixture.n_genes,
        genes=mixture.genes,
        columns=Columns(**kept),
        expression=common([member.recipe.expression for member in members], Expression(scale="counts")),
        encoders=mixture.encoders,
        model=mixture.model,
        training=mixture.training,
        sampling=mixture.sampling,
    )
