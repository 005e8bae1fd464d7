"""Conditions, genes and control cells of two files are matched by name, and what does not match is said."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from perturbdiff.cells.memory import Cells
from perturbdiff.evaluation.alignment import align
from perturbdiff.metrics.conditions import Condition, Context

GENES = ("g0", "g1", "g2")


def make_cells(groups, genes=GENES, control="control"):
    """Cells of (perturbation, cell type, number) whose values say their group: the group's index plus the gene's."""
    labels = [(perturbation, cell_type, "") for perturbation, cell_type, n in groups for _ in range(n)]
    group = np.repeat(np.arange(len(groups)), [n for *_, n in groups])
    values = (group[:, None] + np.array([int(gene[1:]) for gene in genes]) / 10).astype(np.float32)
    return Cells(
        values=values,
        scale="log1p",
        total_counts=None,
        genes=pd.Index(genes),
        names=pd.Index([f"cell{i}" for i in range(len(labels))]),
        labels=pd.DataFrame(labels, columns=["perturbation", "cell_type", "assay_batch"]).astype("category"),
        control=control,
    )


OBSERVED = [("control", "T", 4), ("a", "T", 3), ("b", "T", 2), ("control", "B", 5), ("a", "B", 3)]


def test_conditions_are_paired_with_the_control_cells_of_their_cell_type():
    observed = make_cells(OBSERVED)
    predicted = make_cells([("a", "B", 2), ("b", "T", 2)])
    pairs = align({"model": predicted}, observed)
    assert pairs.conditions == (Condition("a", "B"), Condition("b", "T"))
    populations = pairs.populations_of(predicted)
    means = {
        c: (pairs.observed_cells(c).mean[0], pairs.control(c.context).mean[0], populations(c).mean[0])
        for c in pairs.conditions
    }
    assert means == {Condition("a", "B"): (4.0, 3.0, 0.0), Condition("b", "T"): (2.0, 0.0, 1.0)}
    assert pairs.notes == ("1 of 3 observed conditions are not judged: not chosen, or not predicted.",)


def test_genes_are_matched_by_name_in_the_observed_order_and_counted():
    observed = make_cells(OBSERVED)
    predicted = make_cells([("a", "T", 2)], genes=("g2", "g7", "g0"))
    pairs = align({"model": predicted}, observed)
    assert pairs.genes == ("g0", "g2")
    assert pairs.populations_of(predicted)(Condition("a", "T")).mean == pytest.approx([0.0, 0.2])
    assert "2 genes are shared and judged (3 in 'model', 3 in 'observed')." in pairs.notes


def test_the_predicted_files_control_cells_serve_only_where_they_are_asked_for_and_that_is_said():
    observed = make_cells([("a", "T", 3)])
    predicted = make_cells([("a", "T", 2), ("control", "T", 2)])
    with pytest.raises(ValueError, match="take those of 'model' with --predicted-controls"):
        align({"model": predicted}, observed)
    pairs = align({"model": predicted}, observed, predicted_controls=True)
    assert pairs.control(Context("T")).mean[0] == 1.0
    assert "control cells are those of 'model', as asked; the observed file's are not used." in pairs.notes


def test_the_observed_control_cells_are_the_truth_whatever_a_predicted_file_holds_under_their_label():
    predicted = make_cells([("a", "T", 2), ("control", "T", 2)])
    pairs = align({"model": predicted}, make_cells(OBSERVED))
    assert pairs.control(Context("T")).mean[0] == 0.0


def test_only_the_conditions_of_every_predicted_file_are_judged():
    first, second = make_cells([("a", "T", 2), ("b", "T", 2)]), make_cells([("a", "T", 2)])
    pairs = align({"one": first, "two": second}, make_cells(OBSERVED))
    assert pairs.conditions == (Condition("a", "T"),)
    assert "1 of 2 predicted conditions is not judged: not chosen, or not in every file." in pairs.notes


def test_chosen_conditions_alone_are_judged():
    predicted = make_cells([("a", "T", 2), ("b", "T", 2), ("a", "B", 2)])
    pairs = align({"model": predicted}, make_cells(OBSERVED), conditions=[("b", "T"), ("b", "T")])
    assert pairs.conditions == (Condition("b", "T"),)


@pytest.mark.parametrize(
    ("predicted", "observed", "conditions", "sentence"),
    [
        (
            [("a", "T", 2), ("aa", "T", 2)],
            OBSERVED,
            None,
            "the observed file has no cells of 'aa in T'; the nearest is 'a in T'",
        ),
        ([("a", "T", 1)], OBSERVED, None, "'a in T' has one cell in 'model'"),
        ([("a", "T", 2)], [("control", "T", 2), ("a", "T", 1)], None, "'a in T' has one cell in 'observed'"),
        (
            [("a", "T", 2)],
            [("a", "T", 2)],
            None,
            "the observed file holds no control cells, .*; add them or name",
        ),
        ([("a", "B", 2)], [("control", "T", 2), ("a", "B", 2)], None, "cell type 'B' has no control cells"),
        ([("a", "B", 2)], [("control", "B", 1), ("a", "B", 2)], None, "cell type 'B' has one control cell"),
        ([("control", "T", 2)], OBSERVED, None, "'model' holds no predicted cells"),
        ([("a", "T", 2)], OBSERVED, [("b", "T")], "the predicted file 'model' has no cells of 'b in T'"),
        ([("a", "T", 2)], OBSERVED, [("c", "T")], "the observed file has no cells of 'c in T'"),
        ([("a", "T", 2)], OBSERVED, [], "no condition is left to judge"),
    ],
)
def test_what_cannot_be_paired_is_refused_in_one_sentence(predicted, observed, conditions, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        align({"model": make_cells(predicted)}, make_cells(observed), conditions=conditions)
    assert str(error.value).endswith(".")


def test_files_without_a_shared_gene_without_a_control_label_or_none_at_all_are_refused():
    observed = make_cells(OBSERVED)
    with pytest.raises(ValueError, match=r"'model' and the observed file share no gene name \(such as 'g8' and 'g0'\)"):
        align({"model": make_cells([("a", "T", 2)], genes=("g8", "g9"))}, observed)
    with pytest.raises(ValueError, match="'observed' names no perturbation column and control label"):
        align({"model": make_cells([("a", "T", 2)])}, replace(observed, control=None))
    with pytest.raises(ValueError, match="no predicted file is given"):
        align({}, observed)
    with pytest.raises(ValueError, match="the predicted files have none in common"):
        align({"one": make_cells([("a", "T", 2)]), "two": make_cells([("b", "T", 2)])}, observed)
