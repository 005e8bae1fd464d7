"""What a path means (a recipe, a mixture, a store) and where its cells are: files read into memory, or a store."""

from pathlib import Path

from perturbdiff.cells.anndata import read_cells
from perturbdiff.cells.source import Source
from perturbdiff.recipes.dataset import Recipe, read_recipe, toml_tables
from perturbdiff.recipes.files import is_store
from perturbdiff.recipes.mixture import Member, Mixture, check_names, mixture_of
from perturbdiff.recipes.tables import validated
from perturbdiff.store.stored import Store

BOUND = ("kind", "control", "controls", "columns", "expression", "exclude")
"""What a store has been made with, and a recipe that reads it must agree on."""


def recipe_at(path: Path) -> tuple[Recipe, Path]:
    """The recipe of a file or a store, and the folder that its files are relative to.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a recipe, or the store is damaged.
    """
    folder = path.resolve().parent
    if is_store(path):
        return Store.open(path).recipe.model_copy(update={"files": (path.resolve().name,)}), folder
    return read_recipe(path), folder


def mixture_at(path: Path) -> tuple[Mixture, tuple[Member, ...]]:
    """Read a mixture, and the recipes that it names; a recipe or a store is a mixture of one.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: it is not TOML, or neither a mixture nor a recipe; or two sources have one name.
    """
    path = Path(path)
    if not is_store(path) and not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}; give a mixture or a recipe (.toml), or a store.")
    tables = {} if is_store(path) else toml_tables(path)
    if "sources" not in tables:
        recipe, folder = recipe_at(path)
        return mixture_of(recipe), (Member(recipe.name, recipe, folder),)
    mixture = validated(Mixture, tables, path.name)
    folder, members = path.resolve().parent, []
    for rule in mixture.sources:
        recipe, beside = recipe_at(folder / Path(rule.recipe).expanduser())
        own = beside if rule.folder is None else (folder / Path(rule.folder).expanduser()).resolve()
        members.append(Member(rule.name or recipe.name, recipe, own, rule.weight, rule.cells))
    check_names([member.name for member in members])
    return mixture, tuple(members)


def open_source(recipe: Recipe, folder: Path) -> Source:
    """The cells of a recipe; its files are relative to `folder`. One file that is a store is opened, not read.

    Raises:
        ValueError: the files do not hold what the recipe says, a store stands among other files, or it was made by a
            recipe that says otherwise.
        FileNotFoundError: a file is not there.
    """
    stores = [entry for entry in recipe.files if is_store(Path(folder) / Path(entry).expanduser())]
    if not stores:
        return read_cells(recipe, folder)
    if len(recipe.files) > 1:
        raise ValueError(
            f"recipe {recipe.name!r} names the store {stores[0]!r} among {len(recipe.files)} files, and a store stands "
            "alone; prepare all files as one store."
        )
    store = Store.open(Path(folder) / Path(stores[0]).expanduser())
    differing = [key for key in BOUND if getattr(recipe, key) != getattr(store.recipe, key)]
    if "control" in differing and recipe.control == store.control:
        differing.remove("control")  # a number, named as the store reads it
    if differing:
        raise ValueError(
            f"recipe {recipe.name!r} differs from the one that the store {stores[0]!r} was made with in "
            f"{', '.join(differing)}; prepare it again, or take these from the store's own recipe."
        )
    return store
