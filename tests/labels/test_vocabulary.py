import numpy as np
import pandas as pd
import pytest

from perturbdiff.labels.vocabulary import Vocabulary
from perturbdiff.spelling import nearest


def column(labels, categories=None):
    return pd.Series(pd.Categorical(labels, categories=categories))


def test_labels_are_sorted_and_start_at_one():
    vocabulary = Vocabulary.from_labels("cell_type", column(["T", "B", "T", "NK"]))
    assert vocabulary.labels == ("B", "NK", "T")
    assert [vocabulary.index(label) for label in vocabulary.labels] == [1, 2, 3]
    assert len(vocabulary) == 3


def test_the_empty_label_is_the_null_and_never_a_member():
    vocabulary = Vocabulary.from_labels("assay_batch", column(["", ""]))
    assert len(vocabulary) == 0
    assert vocabulary.index("") == 0
    assert vocabulary.encode(column(["", ""])).tolist() == [0, 0]
    with pytest.raises(ValueError, match=r"the assay_batch vocabulary holds the empty label.*leave it out"):
        Vocabulary("assay_batch", ("", "d1"))


def test_encoding_is_index_of_every_label(rng):
    labels = rng.choice(["A", "B", "C", ""], size=200)
    vocabulary = Vocabulary.from_labels("perturbation", column(labels))
    encoded = vocabulary.encode(column(labels))
    assert encoded.dtype == np.int64
    assert encoded.tolist() == [vocabulary.index(label) for label in labels]


def test_categories_that_do_not_occur_are_neither_learnt_nor_refused():
    series = column(["A", "B"], categories=["A", "B", "never"])
    vocabulary = Vocabulary.from_labels("perturbation", series)
    assert vocabulary.labels == ("A", "B")
    assert vocabulary.encode(series).tolist() == [1, 2]


def test_an_unknown_label_is_named_with_the_nearest_known_one():
    vocabulary = Vocabulary("cell_type", ("B cells", "NK cells"))
    sentence = "cell_type 'b cell' is not one of the 2 labels known here; the nearest is 'B cells', and the empty label"
    with pytest.raises(ValueError, match=sentence):
        vocabulary.index("b cell")
    with pytest.raises(ValueError, match=sentence):
        vocabulary.encode(column(["NK cells", "b cell"]))


def test_others_may_be_the_null_and_known_labels_are_what_they_were():
    vocabulary = Vocabulary("cell_type", ("B", "T"), others_are_null=True)
    assert [vocabulary.index(label) for label in ("B", "T", "b", "")] == [1, 2, 0, 0]
    assert vocabulary.encode(column(["T", "mast", "B", ""])).tolist() == [2, 0, 1, 0]
    with pytest.raises(ValueError, match=r"1 cells have no cell_type.*use the empty label"):
        vocabulary.encode(column(["B", None]))


def test_a_missing_label_is_refused():
    with pytest.raises(ValueError, match=r"1 cells have no cell_type.*use the empty label"):
        Vocabulary("cell_type", ("B",)).encode(column(["B", None]))


def test_a_repeated_label_is_refused():
    with pytest.raises(ValueError, match="cell_type 'B' is twice in the vocabulary; name each label once"):
        Vocabulary("cell_type", ("B", "T", "B"))


def test_nearest_ignores_case_first_and_lists_some_where_none_is_near():
    assert nearest("cd14+ monocytes", ["CD16+ monocytes", "CD14+ Monocytes"]) == "the nearest is 'CD14+ Monocytes'"
    assert nearest("zzz", list("abcdefg")) == "there are 'a', 'b', 'c', 'd', 'e' and 2 more"
    assert nearest("zzz", []) == "there are none to choose from"
