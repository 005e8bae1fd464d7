"""The genes that a label names are found whatever stands between them, and never all genes."""

import pytest

from perturbdiff.metrics.conditions import gene_names, target_notes, target_places

PLACES = {
    gene: place for place, gene in enumerate(["TP53", "HLA-A", "IL6", "KLF1", "MAP2K6", "gene_1", "RP11-34P13.7"])
}


@pytest.mark.parametrize(
    ("label", "named"),
    [
        ("TP53", ["TP53"]),
        ("KLF1+MAP2K6|CRISPRa", ["KLF1", "MAP2K6"]),
        ("KLF1_MAP2K6", ["KLF1", "MAP2K6"]),
        ("knockout of gene_1", ["gene_1"]),
        ("HLA-A", ["HLA-A"]),
        ("sgRP11-34P13.7", []),
        ("RP11-34P13.7;TP53", ["RP11-34P13.7", "TP53"]),
        ("[('TP53', 0.5, 'uM')]", ["TP53"]),
        ("TP53+TP53", ["TP53"]),
        ("aspirin", []),
        ("", []),
    ],
)
def test_a_label_names_the_genes_that_are_words_of_it(label, named):
    assert [list(PLACES)[place] for place in target_places(label, PLACES)] == named


def test_the_whole_label_is_a_word_too_and_each_word_stands_once():
    assert gene_names("A b+A b")[0] == "A b+A b"
    assert len(gene_names("A+A+A")) == 2


def test_two_genes_are_left_to_be_judged():
    assert target_places("A", {"A": 0, "B": 1, "C": 2}).tolist() == [0]
    assert target_places("A+B", {"A": 0, "B": 1, "C": 2}).size == 0


def test_a_sentence_says_where_genes_are_left_out():
    assert target_notes(0, 5) == []
    assert target_notes(1, 5)[0].startswith("1 of 5 conditions has a label that names judged genes;")
    assert target_notes(2, 5)[0].startswith("2 of 5 conditions have a label that names judged genes;")
