"""The recipes that come with the package: the benchmarks of the paper, to be copied beside the data and changed."""

from importlib import resources
from pathlib import Path

from perturbdiff.spelling import nearest

_FOLDER = "recipes"
_SUFFIX = ".toml"


def names() -> list[str]:
    """The names of the recipes, sorted."""
    return sorted(path.stem for path in _folder().iterdir() if path.suffix == _SUFFIX)


def path(name: str) -> Path:
    """The file of a recipe.

    Raises:
        ValueError: there is no such recipe; the nearest is named.
    """
    known = names()
    if name not in known:
        raise ValueError(
            f"{name!r} is none of the package's recipes; {nearest(name, known)}, and a recipe of your own is a file."
        )
    return _folder() / f"{name}{_SUFFIX}"


def _folder() -> Path:
    return Path(str(resources.files("perturbdiff") / _FOLDER))
