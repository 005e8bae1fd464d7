import re

import pytest

from perturbdiff.recipes.dataset import (
    HoldOut,
    Match,
    hold_outs_from,
    read_recipe,
    recipe_from_mapping,
    write_recipe,
)

BASE = {
    "name": "screen",
    "control": "ctrl",
    "files": ["cells.h5ad"],
    "columns": {"perturbation": "guide", "cell_type": "line"},
    "expression": {"scale": "counts"},
}


def recipe(**changes):
    return recipe_from_mapping(BASE | changes, "screen.toml")


def test_a_recipe_takes_its_defaults_where_a_key_is_absent():
    made = recipe()
    assert made.kind == "perturb-seq"
    assert made.columns.assay_batch is None
    assert made.n_genes is None
    assert (made.join, made.cell_names, made.expression.gene_table) == ("same", "unique", None)
    assert made.exclude == made.hold_out == ()
    assert made.model == made.training == {}


def test_a_recipe_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        recipe().name = "another"


def test_writing_and_reading_gives_the_same_recipe(tmp_path):
    made = recipe(
        about='says "all", in one\nsentence',
        n_genes=500,
        join="union",
        cell_names="with_file",
        expression={"scale": "counts", "gene_table": "genes.csv"},
        exclude=[{"cell_type": ["dead"]}],
        hold_out=[{"part": "test", "perturbation": ["A", "B+C"], "keep_fraction": 0.25, "other_doses": "train"}],
        model={"width": 128, "layers": [1, 2], "block": {"heads": 4, "bias": None}},
        training={"lr": 1e-3},
    )
    write_recipe(made, tmp_path / "again.toml")
    again = read_recipe(tmp_path / "again.toml")
    assert again.model == {"width": 128, "layers": [1, 2], "block": {"heads": 4}}
    assert again.model_copy(update={"model": {}}) == made.model_copy(update={"model": {}})


def test_the_free_tables_pass_through_untouched():
    made = recipe(model={"anything": [1, {"deep": [2]}]}, training={"x": "y"})
    assert made.model == {"anything": [1, {"deep": [2]}]}
    assert made.training == {"x": "y"}


BAD = {
    "unknown key": ({"n_gene": 3}, "screen.toml: 'n_gene' is not a key here; the nearest is 'n_genes'"),
    "unknown nested key": (
        {"hold_out": [{"prt": "test", "perturbation": ["A"]}]},
        "hold_out[0]: 'prt' is not a key here; the nearest is 'part'",
    ),
    "unknown column": ({"columns": {"perturbations": "x"}}, "the nearest is 'perturbation'"),
    "wrong type": ({"n_genes": "many"}, "n_genes is 'many', which should be a valid integer"),
    "boolean for integer": ({"n_genes": True}, "n_genes is True, which should be a valid integer"),
    "text for list": ({"files": "x.h5ad"}, "files is 'x.h5ad', which should be a list"),
    "number for label": (
        {"hold_out": [{"part": "test", "perturbation": [3]}]},
        "hold_out[0].perturbation[0] is 3, which should be text in quotes",
    ),
    "number for table": ({"columns": 3}, "columns is 3, which should be a table"),
    "unknown part": (
        {"hold_out": [{"part": "tests", "perturbation": ["A"]}]},
        "hold_out[0].part is 'tests', which should be 'test' or 'validation'",
    ),
    "unknown kind": ({"kind": "bulk"}, "kind is 'bulk', which should be 'perturb-seq' or 'rna-seq'"),
    "no scale": ({"expression": {}}, 'expression.scale is missing; write scale = "counts"'),
    "unknown scale": (
        {"expression": {"scale": "tpm"}},
        "expression.scale is 'tpm', which should be 'counts' or 'log1p'",
    ),
    "unknown join": (
        {"join": "outer"},
        "join is 'outer', which should be 'same', 'intersection' or 'union'",
    ),
    "unknown cell names": ({"cell_names": "file"}, "cell_names is 'file', which should be 'unique' or 'with_file'"),
    "empty gene table": (
        {"expression": {"scale": "counts", "gene_table": " "}},
        "expression: gene_table is empty, and it is the path of a CSV; leave it out",
    ),
    "unknown other doses": (
        {"hold_out": [{"part": "test", "perturbation": ["A"], "other_doses": "keep"}]},
        "hold_out[0].other_doses is 'keep', which should be 'leak' or 'train'",
    ),
    "label of two lines": (
        {"hold_out": [{"part": "test", "perturbation": ["A", "B\nC"]}]},
        r"hold_out[0]: perturbation 'B\nC' holds the control character '\n', and a label is one line of text; mend",
    ),
    "label with a tab": ({"exclude": [{"cell_type": ["B\tC"]}]}, r"cell_type 'B\tC' holds the control character '\t'"),
    "control of two lines": ({"control": "ctrl\n"}, r"control = 'ctrl\n' is not one line of text"),
    "dose without unit": (
        {"columns": BASE["columns"] | {"dose": "uM"}},
        "columns: dose = 'uM' has no unit, and a number alone is no dose; add dose_unit, a unit such as \"uM\" or the",
    ),
    "unit without dose": (
        {"columns": BASE["columns"] | {"dose_unit": "uM"}},
        "columns: dose_unit = 'uM' belongs to a column of doses; add dose",
    ),
    "modality of nothing": (
        {"kind": "rna-seq", "control": None, "columns": {"modality": "kind"}},
        "columns: dose and modality are of a perturbation; add perturbation",
    ),
    "no sign": ({"perturbation": {"separator": " "}}, "perturbation: separator = ' ' is empty; leave it out"),
    "one sign for two things": (
        {"perturbation": {"separator": "+", "modality_separator": "+"}},
        "perturbation: separator and modality_separator are both '+'; a sign has one meaning",
    ),
    "modality of a column behind another sign": (
        {"columns": BASE["columns"] | {"modality": "kind"}, "perturbation": {"modality_separator": "@"}},
        'columns.modality is written behind each label as "|modality", so "|" separates modalities and nothing else',
    ),
    "sign of modalities between members": (
        {"columns": BASE["columns"] | {"modality": "kind"}, "perturbation": {"separator": "|"}},
        'columns.modality is written behind each label as "|modality", so "|" separates modalities and nothing else',
    ),
    "empty rule": ({"hold_out": [{"part": "test"}]}, "hold_out[0]: it names no cells; give a list for one of"),
    "empty exclusion": ({"exclude": [{}]}, "exclude[0]: it names no cells"),
    "empty list": (
        {"hold_out": [{"part": "test", "cell_type": []}]},
        "cell_type = [] matches no cell; list labels, or leave the key out",
    ),
    "rule without column": (
        {"hold_out": [{"part": "test", "assay_batch": ["d1"]}]},
        "hold_out[0] names assay_batch, for which [columns] gives no column; add assay_batch",
    ),
    "both keeps": (
        {"hold_out": [{"part": "test", "perturbation": ["A"], "keep_cells": 5, "keep_fraction": 0.5}]},
        "keep_fraction = 0.5 and keep_cells = 5 both say how many cells stay in training; give one",
    ),
    "all kept": (
        {"hold_out": [{"part": "test", "perturbation": ["A"], "keep_fraction": 1.0}]},
        "keep_fraction = 1.0 is not between 0 and 1",
    ),
    "none kept": (
        {"hold_out": [{"part": "test", "perturbation": ["A"], "keep_cells": 0}]},
        "keep_cells = 0 is below 1; leave it out",
    ),
    "no control": ({"control": None}, 'control is missing, which kind = "perturb-seq" needs; name it'),
    "no perturbation": ({"columns": {}}, "columns.perturbation is missing"),
    "half of a pair": ({"kind": "rna-seq", "control": None}, "belong together; give both or neither"),
    "no genes": ({"n_genes": 0}, "n_genes = 0 is below 1; leave it out"),
    "two panels": ({"n_genes": 2, "genes": ["A", "B"]}, "both choose the panel; give one of them"),
}


@pytest.mark.parametrize(("changes", "sentence"), BAD.values(), ids=BAD.keys())
def test_a_bad_recipe_is_refused_in_one_sentence(changes, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        recipe(**changes)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_a_missing_name_is_asked_for():
    with pytest.raises(ValueError, match="the key name is missing; write a short name"):
        recipe_from_mapping({"expression": {"scale": "log1p"}, "kind": "rna-seq"}, "screen.toml")


def test_unperturbed_data_need_neither_perturbation_nor_control():
    made = recipe_from_mapping({"name": "atlas", "kind": "rna-seq", "expression": {"scale": "log1p"}}, "atlas.toml")
    assert made.control is None


def test_hold_outs_are_taken_as_tables_or_as_rules():
    rule = HoldOut(part="test", perturbation=("A",))
    assert hold_outs_from([rule, {"part": "test", "perturbation": ["A"]}]) == (rule, rule)
    with pytest.raises(ValueError, match=r"hold_out\[0\]: 'cell_typ' is not a key here; the nearest is 'cell_type'"):
        hold_outs_from([{"part": "test", "cell_typ": ["B"]}])


def test_a_match_lists_only_what_it_names():
    assert Match(cell_type=("B", "T")).named() == {"cell_type": ("B", "T")}


def test_reading_says_what_is_wrong_with_a_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no recipe file .*none.toml.*give the path of a .toml file"):
        read_recipe(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("name = \n")
    with pytest.raises(ValueError, match=r"broken.toml' is not TOML: .*line 1.*mend that line"):
        read_recipe(tmp_path / "broken.toml")
    (tmp_path / "cells.h5ad").write_bytes(b"\x89HDF\r\n\x1a\n\xff\xfe")
    with pytest.raises(ValueError, match=r"cells.h5ad' has the ending '.h5ad', and a recipe ends in .toml"):
        read_recipe(tmp_path / "cells.h5ad")
    (tmp_path / "cells.h5ad").rename(tmp_path / "cells.toml")
    with pytest.raises(ValueError, match=r"cells.toml' is not text.*give a .toml file"):
        read_recipe(tmp_path / "cells.toml")
