"""The recipes that come with the package."""

from collections import defaultdict
from itertools import product

import anndata
import numpy as np
import pandas as pd
import pytest

from perturbdiff.cells.anndata import cells_from_anndata
from perturbdiff.core.choices import COVARIATES
from perturbdiff.labels.dose import treatment_of, without_dose
from perturbdiff.recipes.catalogue import names, path
from perturbdiff.recipes.dataset import read_recipe, write_recipe
from perturbdiff.split.audit import find_leaks
from perturbdiff.split.rules import split_cells

SIZES = {
    "cellxgene": [],
    "pbmc-cytokines": [("test", 62, 4), ("validation", 4, 4)],
    "replogle-nadig": [("test", 624, 1), ("validation", 104, 1)],
    "tahoe-100m": [("test", 735, 5), ("validation", 54, 5)],
}
"""Of each rule: its part, how many perturbations, in how many contexts (donors, cell lines)."""


def contexts(rule):
    return rule.cell_type or rule.assay_batch


def test_the_package_has_the_papers_four_benchmarks():
    assert names() == sorted(SIZES)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(
        ValueError, match="'tahoe' is none of the package's recipes; the nearest is 'tahoe-100m', and a"
    ):
        path("tahoe")


@pytest.mark.parametrize("name", SIZES)
def test_a_recipe_of_the_package_is_valid_and_holds_out_the_papers_numbers(name, tmp_path):
    made = read_recipe(path(name))
    assert made.name == name
    assert made.n_genes == 2000
    assert [(rule.part, len(set(rule.perturbation)), len(set(contexts(rule)))) for rule in made.hold_out] == SIZES[name]
    assert all(len(set(labels)) == len(labels) for rule in made.hold_out for labels in rule.named().values())
    write_recipe(made, tmp_path / "again.toml")
    assert read_recipe(tmp_path / "again.toml") == made


@pytest.mark.real
@pytest.mark.parametrize("name", SIZES)
def test_a_recipe_of_the_package_says_what_the_papers_does(recipes, name):
    made = read_recipe(path(name))
    rules = tuple(rule.model_copy(update={"other_doses": "leak"}) for rule in made.hold_out)
    assert made.model_copy(update={"hold_out": rules}) == read_recipe(recipes / f"{name}.toml")


def held_out_doses(rule):
    doses = defaultdict(set)
    for label in rule.perturbation:
        ((_, amount, _),) = treatment_of(label).doses
        doses[without_dose(label)].add(int(amount))
    return doses


def test_the_drugs_of_which_a_dose_trains_are_as_many_as_the_recipe_says():
    recipe = read_recipe(path("tahoe-100m"))
    for rule, (n_drugs, n_partly) in zip(recipe.hold_out, [(268, 69), (19, 3)], strict=True):
        doses = held_out_doses(rule)
        partly = {drug for drug, amounts in doses.items() if amounts != {50, 500, 5000}}
        assert (len(doses), len(partly)) == (n_drugs, n_partly)
        assert all(doses[drug] == {50, 500} for drug in partly)
        assert rule.other_doses == "train"
    assert not set(held_out_doses(recipe.hold_out[0])) & set(held_out_doses(recipe.hold_out[1]))


def simulated(recipe, further):
    """Two cells for each perturbation and context: all that a rule names, control, and some others of both."""
    labels = dict.fromkeys(label for rule in recipe.hold_out for label in rule.perturbation)
    perturbations = [recipe.control, *dict.fromkeys([*further, *labels])]
    places = [*contexts(recipe.hold_out[0]), "elsewhere"]
    rows = list(product(perturbations, places, range(2)))
    key = "cell_type" if recipe.hold_out[0].cell_type else "assay_batch"
    columns = {
        getattr(recipe.columns, one): {"perturbation": [p for p, _, _ in rows], key: [c for _, c, _ in rows]}.get(
            one, "the same"
        )
        for one in COVARIATES
    }
    values = np.random.default_rng(0).uniform(0, 3, (len(rows), 4)).astype(np.float32)
    obs = pd.DataFrame(columns, index=[f"c{i}" for i in range(len(rows))])
    adata = anndata.AnnData(values, obs=obs)
    return key, cells_from_anndata(
        adata, columns=recipe.columns, expression=recipe.expression, control=recipe.control, exclude=recipe.exclude
    )


@pytest.mark.parametrize("name", [name for name, rules in SIZES.items() if rules])
def test_a_recipe_of_the_package_splits_data_with_its_labels_into_the_stated_parts(name):
    recipe = read_recipe(path(name))
    key, cells = simulated(recipe, further=["another", "[('Captopril', 5.0, 'uM')]"])
    split = split_cells(cells, recipe.hold_out, seed=0)
    for rule in recipe.hold_out:
        groups = split.groups(rule.part)
        assert set(zip(groups["perturbation"], groups[key], strict=True)) == set(
            product(rule.perturbation, contexts(rule))
        )
        assert (groups["cells"] == 2).all()
        assert split.table().loc[rule.part, "control cells"] == 0
    n_places = len(contexts(recipe.hold_out[0])) + 1
    n_held = sum(n_labels * n_contexts for _, n_labels, n_contexts in SIZES[name])
    n_labels = sum(n for _, n, _ in SIZES[name])
    assert len(split.groups("train")) == (n_labels + 2) * n_places - n_held
    assert split.table().loc["train", "control cells"] == 2 * n_places
    assert find_leaks(split) == []


def test_another_dose_in_training_is_a_leak_unless_the_recipe_says_that_it_trains():
    recipe = read_recipe(path("tahoe-100m"))
    _, cells = simulated(recipe, further=["[('Captopril', 5.0, 'uM')]"])
    strict = [rule.model_copy(update={"other_doses": "leak"}) for rule in recipe.hold_out]
    (leak,) = find_leaks(split_cells(cells, strict, seed=0))
    assert leak.startswith("10 perturbations held out for test train in the same cell type at another dose")
    assert find_leaks(split_cells(cells, recipe.hold_out, seed=0)) == []
