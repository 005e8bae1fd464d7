"""No room of the package is more than one can know, and none is missing from the design's tree."""

from pathlib import Path

import pytest

import perturbdiff

PACKAGE = Path(perturbdiff.__file__).parent
DESIGN = PACKAGE.parents[1] / "docs" / "design.md"
ROOMS = sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def lines_of(path):
    return len(path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_a_room_has_at_most_15_files_and_2600_lines(room):
    files = list(room.glob("*.py"))
    assert len(files) <= 15
    assert sum(map(lines_of, files)) <= 2600


def test_no_file_is_longer_than_350_lines():
    assert [path.name for path in MODULES if lines_of(path) > 350] == []


def test_the_designs_tree_names_every_room_and_every_module_outside_of_one():
    tree = DESIGN.read_text(encoding="utf-8")
    names = [f"\n      {room.name}/ " for room in ROOMS]
    names += [f"\n      {path.name} " for path in MODULES if path.parent == PACKAGE]
    assert [name.strip() for name in names if name not in tree] == []
