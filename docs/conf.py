"""Settings of Sphinx."""

import re
from importlib.metadata import version as version_of
from typing import Any

project = "perturbdiff"
author = "The perturbdiff authors"
project_copyright = "2026, the perturbdiff authors"
version = release = version_of("perturbdiff")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
nitpicky = False

myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": False}
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = "perturbdiff"

LITERAL = re.compile(r"(``(?:[^`]|`(?!`))+``)")
CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
SIGNS = re.compile(r"(?<!\*)\*(?![*\s])|(?<=\S)\*(?!\*)|\||(?<=\w)_(?!\w)")


def plain(lines: list[str]) -> list[str]:
    """Docstring as reStructuredText: names in backquotes are code, signs of mathematics are themselves."""
    parts = LITERAL.split(CODE.sub(r"``\1``", "\n".join(lines)))
    text = "".join(part if part.startswith("``") else SIGNS.sub(lambda sign: "\\" + sign[0], part) for part in parts)
    return text.split("\n")


def formulas(lines: list[str]) -> list[str]:
    """The lines of a module's docstring, whose indented blocks are formulas: literal blocks."""
    done: list[str] = []
    text: list[str] = []
    inside = False
    for line in lines:
        indented = line.startswith("    ")
        if indented and not inside and text and not text[-1].strip():
            if len(text) > 1 and text[-2].endswith("::"):
                text[-2] = text[-2].removesuffix(":")
            done += [*plain(text), "::", ""]
            text, inside = [], True
        elif inside and line.strip() and not indented:
            inside = False
        (done if inside else text).append(line)
    return [*done, *plain(text)]


def process_docstring(_app: Any, what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:  # noqa: ANN401
    lines[:] = formulas(lines) if what == "module" else plain(lines)


def skip_member(_app: Any, _what: str, name: str, obj: Any, skip: bool, _options: Any) -> bool:  # noqa: ANN401, FBT001
    """Leave out what says nothing: the fields of named tuples, which the class describes, and pydantic's own."""
    alias = str(getattr(obj, "__doc__", "")).startswith("Alias for field")
    return skip or alias or name in {"model_config", "model_post_init"}


def setup(app: Any) -> None:  # noqa: ANN401
    app.connect("autodoc-process-docstring", process_docstring, priority=400)
    app.connect("autodoc-skip-member", skip_member)
