"""A mixture names sources that are recipes or stores; a recipe by itself is a mixture of one."""

import pytest

from perturbdiff.recipes.mixture import recipe_of
from perturbdiff.store.open import mixture_at


@pytest.fixture
def mixture(screen, tmp_path):
    def write(text, **more):
        path = tmp_path / "mixture.toml"
        path.write_text(text.format(recipe=screen.recipe, **more))
        return path

    return write


def test_sources_have_names_weights_and_folders(mixture, screen):
    found, members = mixture_at(
        mixture(
            'name = "two"\nn_genes = 10\n[[sources]]\nrecipe = "{recipe}"\nweight = 3\n'
            '[[sources]]\nrecipe = "{recipe}"\nname = "again"\ncells = "controls"\n'
        )
    )
    assert (found.name, found.n_genes) == ("two", 10)
    assert [(m.name, m.weight, m.cells) for m in members] == [("screen", 3.0, "all"), ("again", 1.0, "controls")]
    assert all(m.folder == screen.recipe.parent for m in members)


def test_a_recipe_is_a_mixture_of_one(screen):
    found, (member,) = mixture_at(screen.recipe)
    assert (found.name, found.n_genes, member.name) == ("screen", 30, "screen")
    assert found.training == member.recipe.training


def test_columns_that_all_sources_agree_on_are_asked_of_cells_to_predict_from(screen):
    found, members = mixture_at(screen.recipe)
    recipe = recipe_of(found, members)
    assert recipe.control is None
    assert recipe.kind == "rna-seq"
    assert (recipe.columns.cell_type, recipe.columns.perturbation) == ("cell_type", None)


REFUSED = {
    "no sources": ('name = "x"\nsources = []\n', "sources is empty"),
    "an unknown key": ('name = "x"\nwieght = 1\n[[sources]]\nrecipe = "{recipe}"\n', "wieght"),
    "a weight of nothing": ('name = "x"\n[[sources]]\nrecipe = "{recipe}"\nweight = 0\n', "weight"),
    "an unknown kind of cells": ('name = "x"\n[[sources]]\nrecipe = "{recipe}"\ncells = "some"\n', "cells is 'some'"),
    "two of one name": (
        'name = "x"\n[[sources]]\nrecipe = "{recipe}"\n[[sources]]\nrecipe = "{recipe}"\n',
        "two sources are called 'screen'",
    ),
    "two panels": (
        'name = "x"\nn_genes = 3\ngenes = ["a"]\n[[sources]]\nrecipe = "{recipe}"\n',
        "both choose the panel",
    ),
    "not TOML": ('name = "x\n', "not TOML"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_mixture_is_one_sentence(mixture, case):
    text, sentence = REFUSED[case]
    with pytest.raises(ValueError, match=sentence):
        mixture_at(mixture(text))


def test_a_missing_file_is_named(tmp_path, mixture):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nothing.toml"):
        mixture_at(tmp_path / "nothing.toml")
    with pytest.raises(FileNotFoundError, match=r"there is no recipe file .*absent.toml"):
        mixture_at(mixture('name = "x"\n[[sources]]\nrecipe = "absent.toml"\n'))
