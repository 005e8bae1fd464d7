import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from perturbdiff.features.files import labelled_texts, read_features, write_features
from perturbdiff.features.tables import features_from, features_of_frame

LABELS = ["TP53", "NA", "Ω b", "null"]
VALUES = np.array([[1, 2.5, -3], [0.1, 0, 1e-9], [4, 5, 6], [-1, -2, 1e30]])


def refused(sentence, call, *arguments):
    """Whether a call is refused by one sentence, which ends in a remedy; `sentence` is a pattern."""
    with pytest.raises(ValueError, match=f"^(?s:.*){sentence}") as caught:
        call(*arguments)
    text = str(caught.value)
    return text.endswith(".") and "\n" not in text and not re.search(r"[.] [A-Z]", text)


@pytest.fixture
def table():
    return features_from(LABELS, VALUES, "here")


@pytest.fixture
def frame():
    frame = pd.DataFrame(VALUES, columns=["a", "b", "c"])
    frame.insert(1, "label", LABELS)
    return frame


def equal(a, b):
    return a.labels == b.labels and np.array_equal(a.values, b.values)


# the table


def test_rows_are_sorted_by_label_and_kept_as_float32(table):
    assert table.labels == ("NA", "TP53", "null", "Ω b")
    assert table.rows(LABELS).dtype == np.float32
    assert np.array_equal(table.values, VALUES[[1, 0, 3, 2]].astype(np.float32))
    assert (len(table), table.width, table.origin) == (4, 3, "here")
    assert repr(table) == "FeatureTable(4 labels x 3 features, here)"


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_the_order_of_rows_does_not_matter_to_the_last_bit(data):
    labels = data.draw(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=8, unique=True))
    numbers = st.floats(-1e30, 1e30)
    values = data.draw(hnp.arrays(np.float64, (len(labels), 2), elements=numbers))
    order = data.draw(st.permutations(range(len(labels))))
    shuffled = features_from([labels[i] for i in order], values[order], "x")
    assert equal(features_from(labels, values, "x"), shuffled)


def test_rows_come_in_the_order_asked_for_and_as_a_copy(table):
    rows = table.rows(["Ω b", "TP53", "Ω b"])
    assert np.array_equal(rows, VALUES[[2, 0, 2]].astype(np.float32))
    rows[:] = 0
    assert np.array_equal(table.rows(["TP53"])[0], VALUES[0].astype(np.float32))
    assert table.rows([]).shape == (0, 3)
    assert table.rows([]).dtype == np.float32


def test_labels_without_a_row_are_named_once_with_the_nearest_and_the_remedy(table):
    assert table.missing(["x", "NA", "tp53", "x"]) == ["x", "tp53"]
    table.require(LABELS, "genes")
    sentence = (
        r"^2 of 3 genes have no row in here \('tp53', 'x'\); for 'tp53' the nearest is 'TP53'; add rows, or set "
        r'missing = "learned" so that these labels have learned vectors only\.$'
    )
    with pytest.raises(ValueError, match=sentence):
        table.require(["tp53", "NA", "x", "x"], "genes")
    with pytest.raises(ValueError, match=r"7 of 7 genes .*\('0', '1', '2', '3', '4', \.\.\.\); for '0' there are 'NA'"):
        table.require([str(i) for i in range(7)], "genes")
    with pytest.raises(ValueError, match=r"1 of 2 labels have no row in here \('x'\)"):
        table.rows(["NA", "x"])


def test_two_tables_are_joined_whichever_comes_first():
    a = features_from(["b", "c"], [[1, 2], [3, 4]], "A")
    b = features_from(["c", "a"], [[3, 4], [5, 6]], "B")
    both = a.joined(b)
    assert equal(both, b.joined(a))
    assert equal(both, features_from("abc", [[5, 6], [1, 2], [3, 4]], ""))
    assert both.origin == "A and B"
    assert a.joined(a) is a
    assert equal(a.joined(features_from(["d"], [[0, 0]], "D")), features_from("bcd", [[1, 2], [3, 4], [0, 0]], ""))


def test_tables_that_disagree_are_not_joined():
    a = features_from(["b", "c"], [[1, 2], [3, 4]], "A")
    wider = features_from(["x"], [[1, 2, 3]], "B")
    other = features_from(["c", "a"], [[3, 5], [5, 6]], "C")
    assert refused("A has 2 features and B has 3", a.joined, wider)
    assert refused("1 labels, such as 'c', have other features in A than in C", a.joined, other)


# what cannot be a table


@pytest.mark.parametrize(
    ("labels", "values", "sentence"),
    [
        (["a", "b", "a"], np.ones((3, 2)), "X has 2 rows of label 'a', and a label has one; leave"),
        (["a", " "], np.ones((2, 2)), "X has no label in row 2, and every row needs one"),
        (["", "b"], np.ones((2, 2)), "X has no label in row 1"),
        (["a", None], np.ones((2, 2)), "X has no label in row 2"),
        (["a", float("nan")], np.ones((2, 2)), "X has no label in row 2"),
        (["a", 5], np.ones((2, 2)), "X has the label 5 in row 2, of type int, and labels are text"),
        (["a", ["b"]], np.ones((2, 2)), r"X has the label \['b'\] in row 2, of type list"),
        (["a", "b"], [[1, 2], [3, np.nan]], "X gives label 'b' the value nan, and features are finite"),
        (["b", "a"], [[1, np.inf], [3, 4]], "X gives label 'b' the value inf"),
        (["a", "b"], [[1, 2], [-1e39, 4]], r"X gives label 'b' the value -1e\+39, .* float32"),
        ([], np.empty((0, 3)), "X has 0 labels and 3 features, and a table has some of both"),
        (["a", "b"], np.empty((2, 0)), "X has 2 labels and 0 features"),
        (["a", "b"], np.ones((3, 2)), "X has 2 labels and 3 rows of features"),
        (["a", "b"], [["1", "2"], ["3", "4"]], "the features of X are of type <U1, and features are numbers"),
        (["a", "b"], np.ones((2, 2), dtype=complex), "the features of X are of type complex128"),
        (["a", "b"], np.ones((2, 2), dtype=object), "the features of X are of type object"),
        (["a", "b"], [[1, 2], [3]], "the features of X have rows of several widths"),
        (["a", "b"], [1, 2], r"the features of X have the shape \(2,\)"),
    ],
)
def test_what_is_no_table_is_refused(labels, values, sentence):
    assert refused(sentence, features_from, labels, values, "X")


# frames


def test_labels_of_a_frame_are_its_column_or_its_index(frame, table):
    assert equal(features_of_frame(frame, "x"), table)
    assert equal(features_of_frame(frame.set_index("label"), "x"), table)
    assert equal(features_of_frame(frame.set_index("label").rename_axis(None), "x"), table)
    assert equal(features_of_frame(frame.astype({"label": "category"}), "x"), table)
    assert equal(features_of_frame(frame.astype({"label": object, "a": "Float64"}), "x"), table)


def test_a_frame_holds_numbers_of_any_kind_and_vectors():
    frame = pd.DataFrame({"flag": [True, False], "count": np.array([3, 4], dtype=np.uint8)}, index=["a", "b"])
    assert np.array_equal(features_of_frame(frame, "x").values, [[1, 3], [0, 4]])
    vectors = pd.DataFrame({"label": ["b", "a"], "vector": [[1, 2], np.array([3.5, 4])]})
    assert equal(features_of_frame(vectors, "x"), features_from(["a", "b"], [[3.5, 4], [1, 2]], ""))
    one = pd.DataFrame({"label": ["b", "a"], "vector": [1, 2]})
    assert equal(features_of_frame(one, "x"), features_from(["a", "b"], [[2], [1]], ""))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda f: f.rename(columns={"label": "Label"}), "X has no column 'label', and its rows .* nearest is 'Label'"),
        (lambda f: f.assign(note="text"), "column 'note' of X is of type str, and every column but 'label' holds"),
        (lambda f: f.assign(z=1j), "column 'z' of X is of type complex128"),
        (lambda f: f.assign(label=[1, 2, 3, 4]), "X has the label 1 in row 1, of type int"),
        (lambda f: f.assign(a=pd.array([1, None, 3, 4], dtype="Int64")), "X gives label 'NA' the value nan"),
        (lambda f: f.iloc[:0], "X has 0 labels and 3 features"),
        (lambda f: f[["label"]], "X has 4 labels and 0 features"),
        (lambda f: pd.concat([f, f["a"]], axis=1), "X has the column 'a' twice"),
        (lambda f: f.set_index(["label", "a"]), "X has no column 'label'"),
        (
            lambda f: f[["label"]].assign(vector=[[1], [2], [3], [4, 5]]),
            "vector of label 'null' in X has width 2 where",
        ),
        (lambda f: f[["label"]].assign(vector=[[1], [2], None, [4]]), "vector of label 'Ω b' in X is 0-dimensional of"),
        (lambda f: f[["label"]].assign(vector=[[1], [2], [["x"]], [4]]), "vector of label 'Ω b' in X is 2-dimensional"),
        (lambda f: f[["label"]].assign(vector=[[1], [2], [[1], [2, 3]], [4]]), "vector of label 'Ω b' in X is 2-dimen"),
        (lambda f: f[["label"]].assign(vector="1 2"), "vector of label 'TP53' in X is 0-dimensional"),
    ],
)
def test_what_is_no_frame_of_features_is_refused(frame, change, sentence):
    assert refused(sentence, features_of_frame, change(frame), "X")


# files


def save(frame, path, **options):
    (frame.to_csv if path.suffix == ".csv" else frame.to_parquet)(path, **options)
    return path


def test_a_table_that_is_written_reads_back_equal(table, tmp_path):
    path = tmp_path / "genes.parquet"
    write_features(table, path)
    back = read_features(path)
    assert equal(back, table)
    assert back.origin == "genes.parquet"
    assert list(pd.read_parquet(path).columns) == ["label", "feature_0", "feature_1", "feature_2"]
    assert [one.name for one in tmp_path.iterdir()] == ["genes.parquet"]
    assert refused("genes.csv' does not end in .parquet", write_features, table, tmp_path / "genes.csv")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_all_layouts_of_a_table_read_equal(frame, table, tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    assert equal(read_features(save(frame, path, index=False)), table)
    assert equal(read_features(save(frame.set_index("label"), path)), table)
    assert equal(read_features(save(frame.set_index("label").rename_axis(None), path)), table)
    assert equal(read_features(save(frame.set_index("label").rename_axis("gene"), path)), table)


def test_lists_of_numbers_in_parquet_are_vectors(frame, table, tmp_path):
    vectors = pd.DataFrame({"label": LABELS, "vector": list(VALUES)})
    assert equal(read_features(save(vectors, tmp_path / "x.parquet")), table)
    assert equal(read_features(save(vectors.iloc[::-1], tmp_path / "x.parquet")), table)
    assert equal(read_features(save(vectors.set_index("label"), tmp_path / "x.parquet")), table)
    vectors["vector"] = [*VALUES[:2], np.ones(2), VALUES[3]]
    sentence = "vector of label 'Ω b' in x.parquet has width 2 where others have 3"
    assert refused(sentence, read_features, save(vectors, tmp_path / "x.parquet"))


def test_both_layouts_of_an_archive_read_equal(table, tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, labels=np.array(LABELS), values=VALUES)
    assert equal(read_features(path), table)
    np.savez(path, **dict(zip(LABELS, VALUES, strict=True)))
    assert equal(read_features(path), table)


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        (
            {"labels": np.array(["a", "b"], dtype=object), "values": np.ones((2, 2))},
            "x.npz' is not an archive .* or holds objects",
        ),
        ({"a": np.ones(2), "b": np.array([1, 2], dtype=object)}, "x.npz' is not an archive .* or holds objects"),
        ({"a": np.ones(3), "b": np.ones(2), "c": np.ones(3)}, "label 'b' in x.npz has width 2 where others have 3"),
        ({"a": np.ones(2), "b": np.array([1, np.nan])}, "x.npz gives label 'b' the value nan"),
        ({"a": np.ones(2), "b": np.array(["x", "y"])}, "vector of label 'b' in x.npz is 1-dimensional of type <U1"),
        ({"a": np.ones((2, 2))}, "vector of label 'a' in x.npz is 2-dimensional"),
        ({"labels": np.array(["a", "a"]), "values": np.ones((2, 2))}, "x.npz has 2 rows of label 'a'"),
        ({"labels": np.array([b"a"]), "values": np.ones((1, 2))}, "x.npz has the label b'a' in row 1, of type bytes"),
        ({"labels": np.array("ab"), "values": np.ones((2, 2))}, "x.npz has 1 labels and 2 rows"),
        ({"labels": np.array(["a"]), "values": np.ones((1, 2)), "note": np.ones(1)}, "x.npz holds 'note' beside"),
        ({}, "x.npz has 0 labels and 0 features"),
    ],
)
def test_what_is_no_archive_of_features_is_refused(arrays, sentence, tmp_path):
    np.savez(tmp_path / "x.npz", **arrays)
    assert refused(sentence, read_features, tmp_path / "x.npz")


def test_files_that_are_not_what_they_are_called_are_refused(table, tmp_path):
    for name in ("x.parquet", "x.npz"):
        (tmp_path / name).write_bytes(b"\x93 not a table")
        assert refused(f"{name}' is not a", read_features, tmp_path / name)
        (tmp_path / name).write_bytes(b"")
        assert refused(f"{name}' is not a", read_features, tmp_path / name)
    np.save(tmp_path / "x.npy", VALUES)
    (tmp_path / "x.npy").rename(tmp_path / "x.npz")
    assert refused("x.npz' is not an archive", read_features, tmp_path / "x.npz")
    (tmp_path / "x.csv").write_bytes(b"")
    assert refused("x.csv' is not a CSV table", read_features, tmp_path / "x.csv")
    (tmp_path / "x.csv").write_bytes(b"label,a\n\xff\xfe,1\n")
    assert refused("x.csv' is not a CSV table", read_features, tmp_path / "x.csv")
    with pytest.raises(
        FileNotFoundError, match=r"^there is no file of features '.*none.csv'; give the path of a .*\.$"
    ):
        read_features(tmp_path / "none.csv")
    with pytest.raises(FileNotFoundError, match="there is no file of features"):
        read_features(tmp_path)
    (tmp_path / "x.pkl").write_bytes(b"")
    sentence = "x.pkl' ends in '.pkl', and files of features are .parquet, .csv, .npz; write it as one of these"
    assert refused(sentence, read_features, tmp_path / "x.pkl")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("label,a\nx,1\nx,2\n", "x.csv has 2 rows of label 'x'"),
        ("label,a\nx,1\n,2\n", "x.csv has no label in row 2"),
        ("label,a,b\nx,1,2\ny,,3\n", "x.csv gives label 'y' the value nan"),
        ("label,a\nx,1\ny,inf\n", "x.csv gives label 'y' the value inf"),
        ("label,a,b\nx,1,2\ny,3,high\n", "column 'b' of x.csv is of type str"),
        ("1,2\n3,4\n5,6\n", "x.csv has no column 'label', and its rows are numbered and not named"),
        ("a,b\nx,1,2\ny,3,4\n", "x.csv has more values in a row than names in its first line"),
        (",label,a\n0,x,1\n1,y,2\n", "column 1 of x.csv has no name, as the numbers of rows"),
        ("label,a,label\nx,1,y\n", "column 'label.1' of x.csv is of type str"),
        ("label,a\n", "x.csv has 0 labels"),
        ("gene,a\n", "x.csv has 0 labels"),
        ("label,a\nx,1,2\ny,1\nz,1,2,3\n", "x.csv' is not a CSV table .*; mend it"),
    ],
)
def test_what_is_no_csv_of_features_is_refused(text, sentence, tmp_path):
    (tmp_path / "x.csv").write_text(text)
    assert refused(sentence, read_features, tmp_path / "x.csv")


# texts to make features of


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_texts_are_read_to_the_letter_but_for_blanks_around_them(tmp_path, suffix):
    frame = pd.DataFrame({"other": [1.5, 2.5, None], "smiles": ["N", " CCO ", "null"], "label": ["NA", "b ", "12"]})
    found = labelled_texts(save(frame, tmp_path / f"x{suffix}", index=False), ("smiles",))
    assert found == {"NA": "N", "b ": "CCO", "12": "null"}
    indexed = save(frame.set_index("label"), tmp_path / f"x{suffix}")
    assert labelled_texts(indexed, ("text", "smiles")) == found


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name,smiles\nx,C\n", "x.csv has no column 'label', which names each row; there are 'name', 'smiles'; rename"),
        ("Label,smiles\nx,C\n", "x.csv has no column 'label', .*; the nearest is 'Label'; rename"),
        ("label,smile\nx,C\n", "x.csv has no column 'smiles' or 'text', where its texts are; the nearest is 'smile'"),
        ("label,smiles,text\nx,C,C\n", "x.csv has the columns 'smiles' and 'text', and one holds the texts"),
        ("label,smiles\nx,C\ny,CC\nx,C\n", "x.csv has 2 rows of label 'x'"),
        ("label,smiles\nx,C\n,CC\n", "x.csv has no label in row 2"),
        ("label,smiles\nx,C\ny, \n", "label 'y' of x.csv has ' ' in column 'smiles', and every label has a text"),
        ("label,smiles\nx,C\ny\n", "label 'y' of x.csv has .* in column 'smiles'"),
        ("label,smiles\nx,C,1\ny,C,2\n", "x.csv has more values in a row than names"),
    ],
)
def test_what_is_no_table_of_texts_is_refused(text, sentence, tmp_path):
    (tmp_path / "x.csv").write_text(text)
    assert refused(sentence, labelled_texts, tmp_path / "x.csv", ("smiles", "text"))


def test_missing_and_numeric_texts_of_parquet_are_refused(tmp_path):
    path = tmp_path / "x.parquet"
    save(pd.DataFrame({"label": ["a", "b"], "text": ["C", None]}), path)
    assert refused("label 'b' of x.parquet has (nan|None) in column 'text'", labelled_texts, path, ("text",))
    save(pd.DataFrame({"label": ["a", "b"], "text": [1, 2]}), path)
    assert refused("label 'a' of x.parquet has 1 in column 'text'", labelled_texts, path, ("text",))
    save(pd.DataFrame({"label": [1, 2], "text": ["C", "N"]}), path)
    assert refused("x.parquet has the label 1 in row 1, of type int", labelled_texts, path, ("text",))
    with pytest.raises(FileNotFoundError, match="there is no file of texts"):
        labelled_texts(tmp_path / "none.parquet", ("text",))
    (tmp_path / "x.tsv").write_text("")
    assert refused("x.tsv' ends in '.tsv', and files of texts are", labelled_texts, tmp_path / "x.tsv", ("text",))
