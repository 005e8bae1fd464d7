"""Conditions are labels that the model knows, each once, whatever table they come from."""

import pandas as pd
import pytest

from perturbdiff.checkpoint import load_checkpoint
from perturbdiff.labels.conditions import Conditions
from perturbdiff.labels.vocabulary import Vocabulary
from perturbdiff.prediction.conditions import COLUMNS, conditions_of, held_out_conditions, read_conditions

LABELS = {
    "perturbation": Vocabulary("perturbation", ("control", "IFN-beta", "TNF")),
    "cell_type": Vocabulary("cell_type", ("B cells", "NK cells")),
    "assay_batch": Vocabulary("assay_batch", ("101", "102")),
}
KNOWN = Conditions(LABELS, control="control")


def test_labels_that_are_absent_empty_or_nan_are_the_null():
    rows = [{"perturbation": "TNF"}, {"perturbation": "IFN-beta", "cell_type": None, "assay_batch": float("nan")}]
    table = conditions_of(rows, KNOWN)
    assert list(table.columns) == COLUMNS
    assert table.to_numpy().tolist() == [["TNF", "", ""], ["IFN-beta", "", ""]]


def test_numbers_are_labels_and_blanks_around_a_label_do_not_count():
    table = conditions_of([{"perturbation": " TNF ", "assay_batch": 101}], KNOWN)
    assert table.to_numpy().tolist() == [["TNF", "", "101"]]
    blank = Conditions(LABELS | {"perturbation": Vocabulary("perturbation", ("TNF ",))})
    assert conditions_of([{"perturbation": "TNF "}], blank).loc[0, "perturbation"] == "TNF "


def test_a_condition_given_twice_is_one():
    rows = [{"perturbation": "TNF"}, {"perturbation": "TNF", "cell_type": ""}, {"perturbation": "IFN-beta"}]
    assert list(conditions_of(rows, KNOWN)["perturbation"]) == ["TNF", "IFN-beta"]


def test_an_unknown_label_names_the_nearest():
    with pytest.raises(ValueError, match=r"perturbation 'IFN-bta' is not one of the 3 .* the nearest is 'IFN-beta'"):
        conditions_of([{"perturbation": "IFN-bta"}], KNOWN)


def test_a_new_cell_type_or_assay_batch_keeps_its_name():
    table = conditions_of([{"perturbation": "TNF", "cell_type": "NK", "assay_batch": "999"}], KNOWN)
    assert table.to_numpy().tolist() == [["TNF", "NK", "999"]]


def test_no_condition_is_an_error():
    with pytest.raises(ValueError, match="no condition is given; name a perturbation"):
        conditions_of([], KNOWN)


def test_a_csv_file_is_read_as_text(tmp_path):
    path = tmp_path / "conditions.csv"
    path.write_text("perturbation,assay_batch\nTNF,101\nIFN-beta,\n")
    assert read_conditions(path, KNOWN).to_numpy().tolist() == [["TNF", "", "101"], ["IFN-beta", "", ""]]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "perturbation,celltype\nTNF,NK cells\n",
            "has a column 'celltype', and conditions are .*nearest is 'cell_type'",
        ),
        ("cell_type\nNK cells\n", "has no column 'perturbation'; add it"),
        ("", "is not a CSV table"),
        ("perturbation\n", "no condition is given"),
        ('perturbation,cell_type\n"TNF,NK\n', "is not a CSV table"),
    ],
)
def test_a_csv_file_that_is_no_table_of_conditions_is_refused(tmp_path, text, sentence):
    path = tmp_path / "conditions.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=sentence):
        read_conditions(path, KNOWN)


def test_a_csv_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no table of conditions"):
        read_conditions(tmp_path / "none.csv", KNOWN)


def test_the_held_out_conditions_are_the_groups_of_the_part_that_training_never_saw(screen):
    table = held_out_conditions(load_checkpoint(screen.run))
    expected = [["stimulus_1", "type_3", "donor_1"], ["stimulus_1", "type_3", "donor_2"]]
    assert table.to_numpy().tolist() == expected
    validation = held_out_conditions(load_checkpoint(screen.run), "validation")
    assert set(validation["perturbation"]) == {"stimulus_2"}


def test_an_unknown_or_empty_part_is_named(screen, make_model):
    with pytest.raises(ValueError, match="'tset' is not a held-out part; choose one of validation, test"):
        held_out_conditions(load_checkpoint(screen.run), "tset")
    model = make_model(hold_out=[]).train(device="cpu", show_progress=False)
    with pytest.raises(ValueError, match="the split of this model has no cells in its test part"):
        held_out_conditions(model.trained)


def test_a_table_of_conditions_may_be_a_frame_of_other_columns_only_where_it_is_refused(screen):
    from perturbdiff.model import PerturbDiff

    model = PerturbDiff.load(screen.run)
    frame = pd.DataFrame({"perturbatoin": ["stimulus_1"]})
    with pytest.raises(ValueError, match=r"has a column 'perturbatoin', .* the nearest is 'perturbation'"):
        model.predict(None, conditions=frame)
    with pytest.raises(ValueError, match="conditions come from a table or from the labels"):
        model.predict(None, conditions=frame, perturbation="stimulus_1")
