"""What a label is, is decided in one place: for cells in memory and in a store, whatever program wrote their files."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from perturbdiff.cells.anndata import cells_from_anndata, read_cells
from perturbdiff.cells.controls import controls_of
from perturbdiff.model import PerturbDiff
from perturbdiff.recipes.dataset import (
    Columns,
    Expression,
    Grammar,
    Match,
    read_recipe,
    recipe_from_mapping,
    write_recipe,
)
from perturbdiff.split.rules import split_cells
from perturbdiff.store.build import build_store
from perturbdiff.store.stored import Store

COLUMNS = {"perturbation": "guide", "cell_type": "line", "assay_batch": "plate"}


def made(guides, lines=None, plates=None, *, empty=(), first=0):
    """A cell a label; those of `empty` have no counts."""
    obs = pd.DataFrame(
        {
            "guide": pd.Series(guides),
            "line": pd.Series(lines if lines is not None else ["K562"] * len(guides)),
            "plate": pd.Series(plates if plates is not None else ["p1"] * len(guides)),
        }
    )
    obs.index = [f"cell{first + i}" for i in range(len(obs))]
    counts = np.random.default_rng(first).poisson(3.0, (len(obs), 5)).astype(np.float32) + 1
    counts[list(empty)] = 0
    return anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(5)]))


def recipe_of(control="ctrl", **more):
    table = {"name": "x", "control": control, "files": ["*.h5ad"], "columns": COLUMNS}
    return recipe_from_mapping(table | {"expression": {"scale": "counts"}} | more, "the test")


@pytest.fixture(params=["memory", "store"])
def read(request, tmp_path):
    """Cells of AnnData as a recipe says, in memory and from a store."""

    def cells_of(*parts, control="ctrl", **more):
        recipe = recipe_of(control, **more)
        for i, adata in enumerate(parts):
            adata.write_h5ad(tmp_path / f"f{i}.h5ad")
        if request.param == "memory":
            return read_cells(recipe, tmp_path)
        build_store(recipe, tmp_path, tmp_path / "x.store", overwrite=True)
        store = Store.open(tmp_path / "x.store")
        return store.in_memory(store.runs.whole())

    return cells_of


def labels_of(cells, name="perturbation"):
    """The label of each cell by its name."""
    return dict(zip(map(str, cells.names), cells.labels[name].astype(str), strict=True))


def counts_of(cells, name="perturbation"):
    found = cells.labels[name].astype(str).value_counts().to_dict()
    assert sorted(cells.labels[name].cat.categories) == list(cells.labels[name].cat.categories) == sorted(found)
    return found


@pytest.mark.parametrize("missing", [None, "", "  ", "nan", "NaN", "None", "NA", "<NA>", "null"])
@pytest.mark.parametrize("covariate", ["perturbation", "cell_type", "assay_batch"])
def test_a_missing_label_is_refused_with_the_remedy_however_it_is_written(read, covariate, missing):
    labels = {"guides": ["ctrl", "A", "A", "B"], "lines": ["K", "K", "L", "L"], "plates": ["p", "q", "p", "q"]}
    key = {"perturbation": "guides", "cell_type": "lines", "assay_batch": "plates"}[covariate]
    labels[key] = [*labels[key][:2], missing, labels[key][3]]
    column = COLUMNS[covariate]
    with pytest.raises(ValueError, match=f"column '{column}' of .* has no label for 1 cells.*exclude them in a recipe"):
        read(made(**labels))


@pytest.mark.parametrize("named", ["", "nan", "NA"])
def test_cells_without_a_label_can_be_excluded_by_it(read, named):
    cells = read(made(["ctrl", None, "nan", "A", "A"]), exclude=[{"perturbation": [named]}])
    assert counts_of(cells) == {"A": 2, "ctrl": 1}
    assert "exclude leaves out 2 of 5 cells." in cells.notes


def test_cells_that_a_rule_excludes_need_neither_other_labels_nor_counts(read):
    adata = made(["ctrl", "A", "debris", "debris"], ["K", "K", None, "L"], ["p", "p", "", "p"], empty=[3])
    cells = read(adata, exclude=[{"perturbation": ["debris"]}])
    assert labels_of(cells) == {"cell0": "ctrl", "cell1": "A"}
    with pytest.raises(ValueError, match=r"has no label for 1 cells|no counts at all"):
        read(adata)


def test_a_label_that_is_declared_as_the_control_is_a_label_whatever_its_text(read):
    cells = read(made(["None", "None", "A"]), control="None")
    assert counts_of(cells) == {"A": 1, "None": 2}


@pytest.mark.parametrize("control", ["0", "0.0", 0, 0.0])
def test_whole_numbers_of_a_column_of_floats_are_read_without_the_digits_that_floats_add(read, control):
    cells = read(made([0.0, 1.0, 1.0, 12.0], plates=[1.0, 2.0, 1.0, 2.0]), control=control)
    assert counts_of(cells) == {"0": 1, "1": 2, "12": 1}
    assert counts_of(cells, "assay_batch") == {"1": 2, "2": 2}
    assert cells.is_control.sum() == 1
    assert cells.control == "0"


def test_a_column_of_floats_and_one_of_texts_or_integers_hold_the_same_labels(read):
    parts = [made([0.0, 1.0], plates=[1.0, 1.0]), made(["0", "1"], plates=[1, 1], first=2), made([0, 1], first=4)]
    parts[2].obs["plate"] = pd.Categorical([1.0, 1.0])
    cells = read(*parts, control="0")
    assert (counts_of(cells), counts_of(cells, "assay_batch")) == ({"0": 3, "1": 3}, {"1": 6})


def test_numbers_that_are_not_whole_keep_their_digits(read):
    assert counts_of(read(made([0.5, 1.5, 1.5, 0.5]), control="0.5")) == {"0.5": 2, "1.5": 2}


GEARS = {"perturbation": {"separator": "+", "nothing": ["ctrl"]}}


def test_labels_that_mean_the_same_are_one_and_a_note_says_so_with_counts(read):
    labels = ["ctrl", "ctrl+ctrl", "KLF1", "KLF1+ctrl", "ctrl+KLF1", "A+B", "B+A", "B+A", "ctrl+Z"]
    cells = read(made(labels), **GEARS)
    assert counts_of(cells) == {"A+B": 3, "KLF1": 3, "ctrl": 2, "ctrl+Z": 1}
    assert cells.is_control.sum() == 2
    (note,) = [note for note in cells.notes if note.startswith("Labels of perturbation that mean the same are one:")]
    assert "'B+A' (2 cells) as 'A+B'" in note


def test_a_label_stays_as_it_is_written_where_it_is_the_only_one_of_its_meaning(read):
    cells = read(made(["ctrl", "KLF1+ctrl", "B+A"]), **GEARS)
    assert counts_of(cells) == {"B+A": 1, "KLF1+ctrl": 1, "ctrl": 1}
    assert cells.notes == ()


def test_labels_that_mean_the_same_are_one_over_several_files(read):
    cells = read(made(["ctrl", "A+B"]), made(["ctrl+ctrl", "B+A"], first=2), **GEARS)
    assert counts_of(cells) == {"A+B": 2, "ctrl": 2}


def test_doses_in_other_units_are_one_label(read):
    labels = ["ctrl", "[('a', 0.5, 'uM')]", "[('a', 500, 'nM')]"]
    assert len(counts_of(read(made(labels), perturbation={"doses": True}))) == 2


@pytest.mark.parametrize("named", ["A+B", "B+A", "ctrl+B+A"])
def test_rules_find_labels_by_their_meaning_and_all_that_have_it(read, named):
    labels = ["ctrl", "C", "C", "A+B", "B+A"]
    left = read(made(labels), exclude=[{"perturbation": [named]}], **GEARS)
    assert counts_of(left) == {"C": 2, "ctrl": 1}
    cells = read(made(labels), **GEARS)
    rule = recipe_of(hold_out=[{"part": "test", "perturbation": [named]}]).hold_out
    assert split_cells(cells, rule, seed=0).of("test").n_cells == 2


@pytest.mark.parametrize("control", [["nt_1", "nt_2"], ("nt_1", "nt_2")])
def test_cells_of_every_control_label_of_a_list_are_control_cells_under_the_first(read, control):
    cells = read(made(["nt_1", "nt_2", "nt_2", "A"]), control=list(control))
    assert (cells.control, counts_of(cells), int(cells.is_control.sum())) == ("nt_1", {"A": 1, "nt_1": 3}, 3)
    assert any("'nt_2' (2 cells) as 'nt_1'" in note for note in cells.notes)
    one = PerturbDiff.from_anndata(made(["nt_1", "nt_2", "nt_2", "A"]), perturbation="guide", control=control)
    assert counts_of(one.source) == {"A": 1, "nt_1": 3}


def test_a_list_of_control_labels_survives_writing_and_names_only_labels_that_there_are(read, tmp_path):
    recipe = recipe_of(["nt_1", "nt_2"])
    write_recipe(recipe, tmp_path / "r.toml")
    assert read_recipe(tmp_path / "r.toml") == recipe
    with pytest.raises(ValueError, match="no cell has the control label 'nt_3' in column 'guide'; the nearest is 'nt"):
        read(made(["nt_1", "nt_2", "A"]), control=["nt_1", "nt_3"])


def remarks_of(cells):
    return [note for note in cells.notes if "look like control cells" in note or "have the member" in note]


def test_other_labels_that_look_like_controls_are_named_with_the_list_to_write(read):
    labels = ["non-targeting_1", "non-targeting_2", "non-targeting_2", "DMSO", "A", "A2", "B"]
    (note,) = remarks_of(read(made(labels), control="non-targeting_1"))
    assert "'DMSO' (1 cells), 'non-targeting_2' (2 cells) look like control cells too" in note
    assert 'control = ["non-targeting_1", "DMSO", "non-targeting_2"]' in note


@pytest.mark.parametrize(
    "labels",
    [
        ["ctrl", "STAT1", "STAT2", "JAK2", "CTRC"],
        ["0", "1", "2", "3"],
        ["sg0", "sg1", "sg2", "sg3", "sg4"],
        ["ctrl", "ctrl-like", "drug_1", "drug_2"],
    ],
)
def test_numbered_perturbations_are_not_taken_for_controls(read, labels):
    assert remarks_of(read(made(labels), control=labels[0])) == []


@pytest.mark.parametrize("labels", [["ctrl", "A+ctrl", "ctrl+B"], ["ctrl", "A_ctrl", "B_ctrl"], ["0", "A;ctrl", "A"]])
def test_members_that_are_the_control_suggest_a_separator(read, labels):
    sign = next(sign for sign in "+_;" if any(sign in label for label in labels))
    (note,) = remarks_of(read(made(labels), control=labels[0]))
    assert f'write separator = "{sign}" and nothing = ["ctrl"]' in note


def test_numbered_controls_suggest_a_list_and_no_separator(read):
    (note,) = remarks_of(read(made(["control", "control_1", "control_2", "A"]), control="control"))
    assert "look like control cells too" in note


def test_no_separator_is_suggested_where_one_is_declared(read):
    assert remarks_of(read(made(["ctrl", "A+ctrl", "ctrl+B"]), **GEARS)) == []


def test_labels_that_differ_in_spelling_only_are_said_once_for_each_column_with_counts(read):
    cells = read(made(["ctrl", "A", "a ", "A", "B"], ["T cells", "t cells ", "T cells", "B", "B"]))
    notes = [note for note in cells.notes if "differ only in case, blanks or punctuation" in note]
    assert len(notes) == len(set(notes)) == 2
    assert "column 'guide'" in notes[0]
    assert "'A' (2 cells) and 'a ' (1 cells)" in notes[0]
    assert "'T cells' (2 cells) and 't cells ' (1 cells)" in notes[1]
    assert counts_of(cells)["a "] == 1


def test_cells_given_in_memory_are_read_by_the_same_rules():
    cells = cells_from_anndata(
        made(["ctrl", "ctrl2", "A+B", "B+A", None]),
        columns=Columns(**COLUMNS),
        expression=Expression(scale="counts"),
        control="ctrl",
        controls=("ctrl2",),
        grammar=Grammar(separator="+"),
        exclude=[Match(perturbation=("",))],
    )
    assert counts_of(cells) == {"A+B": 2, "ctrl": 2}


def test_a_condition_with_a_number_as_floats_write_it_finds_its_control_cells():
    cells = cells_from_anndata(
        made([0.0, 0.0, 0.0, 1.0], plates=[1.0, 1.0, 2.0, 1.0]),
        columns=Columns(**COLUMNS),
        expression=Expression(scale="counts"),
        control="0.0",
    )
    (rows,), _ = controls_of(cells, [{"cell_type": "K562", "assay_batch": "1.0"}])
    assert rows.tolist() == [0, 1]


def test_a_judged_file_may_lack_control_labels_and_no_other_label_stands_in_for_them():
    read = {"columns": Columns(**COLUMNS), "expression": Expression(scale="counts"), "grammar": Grammar(separator="+")}
    adata = made(["A", "A+B", "B", "B"])
    judged = cells_from_anndata(adata, control="ctrl", controls=("ctrl2",), require="none", **read)
    assert counts_of(judged) == {"A": 1, "A+B": 1, "B": 2}
    assert (judged.control, judged.is_control.sum()) == ("ctrl", 0)
    with pytest.raises(ValueError, match="no cell has the control label 'ctrl' in column 'guide'"):
        cells_from_anndata(adata, control="ctrl", controls=("ctrl2",), require="any", **read)
    some = made(["ctrl2", "A"])
    assert cells_from_anndata(some, control="ctrl", controls=("ctrl2",), require="any", **read).is_control.sum() == 1
    with pytest.raises(ValueError, match="no cell has the control label 'ctrl3'"):
        cells_from_anndata(some, control="ctrl", controls=("ctrl2", "ctrl3"), **read)


def test_beside_a_column_of_doses_labels_are_missing_numbers_and_controls_by_the_same_rules(read):
    adata = made([0.0, 7.0, 8.0, 8.0])
    adata.obs["amount"] = [np.nan, np.nan, 1.0, 1.0]
    columns = COLUMNS | {"dose": "amount", "dose_unit": "uM"}
    cells = read(adata, control=["0", "7"], columns=columns)
    assert counts_of(cells) == {"0": 2, "[('8', 1, 'uM')]": 2}
    adata.obs["guide"] = ["0", "7", "8", "nan"]
    with pytest.raises(ValueError, match=r"column 'guide' of .* has no label for 1 cells"):
        read(adata, control=["0", "7"], columns=columns)
