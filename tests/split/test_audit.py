"""Every way in which held-out cells may reach training is found, and nothing is found where there is none."""

import itertools
from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from perturbdiff.cells import order
from perturbdiff.cells.anndata import cells_from_anndata
from perturbdiff.cells.order import Segments
from perturbdiff.recipes.dataset import Columns, Expression, Grammar
from perturbdiff.recipes.selection import HoldOut
from perturbdiff.split import audit
from perturbdiff.split.audit import find_leaks
from perturbdiff.split.rules import PARTS, split_cells

EACH = 4
TYPES = ("B", "T", "NK")
DONORS = ("d1", "d2")
TEST_A_IN_B = HoldOut(part="test", perturbation=("A",), cell_type=("B",))
VALIDATION = HoldOut(part="validation", perturbation=("C",), cell_type=("NK",))


def made(perturbations=("ctrl", "A", "B", "C"), types=TYPES, donors=DONORS, each=EACH, names=None, edit=None):
    labels = [row for row in itertools.product(perturbations, types, donors) for _ in range(each)]
    obs = pd.DataFrame(labels, columns=["perturbation", "cell_type", "assay_batch"])
    obs.index = [f"cell{i}" for i in range(len(obs))]
    counts = np.random.default_rng(0).poisson(3.0, (len(obs), 30)).astype(np.float32) + 1
    adata = anndata.AnnData(sp.csr_matrix(counts), obs=obs)
    if edit is not None:
        adata = edit(adata)
    columns = Columns(perturbation="perturbation", cell_type="cell_type", assay_batch="assay_batch")
    cells = cells_from_anndata(adata, columns=columns, expression=Expression(scale="counts"), control="ctrl")
    return cells if names is None else replace(cells, names=pd.Index(names))


def test_a_clean_split_has_no_leaks():
    cells = made()
    assert find_leaks(split_cells(cells, [TEST_A_IN_B], seed=0)) == []


def test_repeated_names_are_a_leak():
    cells = made(names=["same", "same", *(f"cell{i}" for i in range(94))])
    (leak,) = find_leaks(split_cells(cells, [TEST_A_IN_B, VALIDATION], seed=0))
    assert leak.startswith("2 cells share their name with another cell, such as 'same'")


def test_a_copy_of_a_training_cell_in_a_held_out_part_is_a_leak():
    def copied(adata):
        held = np.flatnonzero((adata.obs["perturbation"] == "A") & (adata.obs["cell_type"] == "B"))[1]
        counts = adata.X.toarray()
        counts[held] = counts[0]
        adata.X = sp.csr_matrix(counts)
        return adata

    cells = made(edit=copied)
    (leak,) = find_leaks(split_cells(cells, [TEST_A_IN_B, VALIDATION], seed=0))
    assert leak == "1 test cells, such as 'cell25', have exactly the expression of a training cell; remove the copies."


def test_nearly_empty_profiles_that_coincide_are_no_leak():
    def emptied(adata):
        counts = np.zeros(adata.shape, dtype=np.float32)
        counts[:, :3] = 1
        adata.X = sp.csr_matrix(counts)
        return adata

    cells = made(edit=emptied)
    assert find_leaks(split_cells(cells, [TEST_A_IN_B, VALIDATION], seed=0)) == []


def test_another_spelling_of_a_held_out_condition_in_training_is_a_leak():
    cells = made(perturbations=("ctrl", "IFN-beta", "ifn_beta ", "C"))
    rule = HoldOut(part="test", perturbation=("IFN-beta",), cell_type=("B",))
    (leak,) = find_leaks(split_cells(cells, [rule, VALIDATION], seed=0))
    assert leak == (
        "8 training cells, such as those of ('ifn_beta ', 'B', 'd1'), differ from what hold_out[0] (test) holds out, "
        "such as ('IFN-beta', 'B', 'd1'), in the spelling of labels, the order of members or a unit only; give the "
        "same thing one name."
    )


def _renamed(column, old, new, rows):
    def edit(adata):
        labels = adata.obs[column].astype(object)
        labels.iloc[rows(adata)] = new
        assert (adata.obs[column] == old).to_numpy()[rows(adata)].all()
        adata.obs[column] = labels
        return adata

    return edit


def _half(**labels):
    """Every second cell of these labels."""

    def rows(adata):
        own = np.logical_and.reduce([(adata.obs[name] == label).to_numpy() for name, label in labels.items()])
        return np.flatnonzero(own)[::2]

    return rows


@pytest.mark.parametrize(
    ("column", "old", "new"),
    [
        ("assay_batch", "d1", "D1 "),
        ("cell_type", "B", "b"),
        ("perturbation", "A", " a"),
        ("perturbation", "A", "A "),
    ],
)
def test_cells_that_a_rule_misses_by_a_spelling_are_a_leak_though_the_label_trains_elsewhere(column, old, new):
    held = {"perturbation": "A", "cell_type": "B", "assay_batch": "d1"}
    rule = HoldOut(part="test", **{name: (label,) for name, label in held.items()})
    cells = made(edit=_renamed(column, old, new, _half(**held)))
    (leak,) = find_leaks(split_cells(cells, [rule, VALIDATION], seed=0))
    assert leak.startswith("2 training cells, such as those of (")
    assert "differ from what hold_out[0] (test) holds out, such as ('A', 'B', 'd1')" in leak
    assert find_leaks(split_cells(made(), [rule, VALIDATION], seed=0)) == []


def test_the_same_perturbation_in_another_batch_than_the_held_out_one_is_no_leak_however_it_is_spelt():
    rule = HoldOut(part="test", perturbation=("A",), assay_batch=("d1",))
    cells = made(edit=_renamed("perturbation", "A", "a", _half(perturbation="A", assay_batch="d2")))
    assert find_leaks(split_cells(cells, [rule, VALIDATION], seed=0)) == []


def test_a_held_out_combination_that_trains_in_another_order_is_a_leak():
    cells = made(perturbations=("ctrl", "K+M", "M+K", "C"))
    rule = HoldOut(part="test", perturbation=("K+M",), cell_type=("B",))
    split = split_cells(cells, [rule, VALIDATION], seed=0)
    for grammar in (Grammar(), Grammar(separator="+")):
        (leak,) = find_leaks(split, grammar)
        assert leak.startswith("8 training cells, such as those of ('M+K', 'B', 'd1'), differ from what hold_out[0] (t")


def test_another_modality_of_a_held_out_gene_in_training_is_no_leak():
    cells = made(perturbations=("ctrl", "K|CRISPRi", "K|CRISPRa", "C|CRISPRi"))
    rule = HoldOut(part="test", perturbation=("K|CRISPRi",), cell_type=("B",))
    assert find_leaks(split_cells(cells, [rule], seed=0), Grammar(modality_separator="|")) == []


def test_another_dose_before_a_modality_is_a_leak():
    labels = ("ctrl", "[('a', 0.5, 'uM')]|oral", "[('a', 5, 'uM')]|oral", "[('a', 500, 'nM')]|inhaled")
    rule = HoldOut(part="test", perturbation=(labels[1],), cell_type=("B",))
    grammar = Grammar(doses=True, modality_separator="|")
    (leak,) = find_leaks(split_cells(made(perturbations=labels), [rule], seed=0), grammar)
    assert leak.startswith("1 perturbations held out for test train in the same cell type at another dose")
    assert labels[2] in leak


def test_a_label_that_the_grammar_cannot_read_is_compared_by_its_spelling():
    cells = made(perturbations=("ctrl", "K+", "k +", "C"))
    rule = HoldOut(part="test", perturbation=("K+",), cell_type=("B",))
    (leak,) = find_leaks(split_cells(cells, [rule, VALIDATION], seed=0), Grammar(separator="+"))
    assert "'k +'" in leak


def test_part_of_a_held_out_group_in_training_is_a_leak_unless_asked_for():
    cells = made()
    split = split_cells(cells, [TEST_A_IN_B, VALIDATION], seed=0)
    first = int(np.argmax(split.part == PARTS.index("test")))
    start, stop = split.segments.start[first], split.segments.stop[first]
    cut = Segments(
        *(
            np.insert(getattr(split.segments, key), first + 1, getattr(split.segments, key)[first])
            for key in ("run", "start", "stop")
        )
    )
    cut.stop[first] = cut.start[first + 1] = start + 1
    assert stop > start + 1
    split = replace(split, segments=cut, part=np.insert(split.part, first, 0))
    (leak,) = find_leaks(split)
    assert leak.startswith("1 training cells are of held-out groups, such as ('A', 'B', 'd1'), and no keep_* key")


def test_cells_that_a_rule_keeps_in_training_are_no_leak():
    rule = HoldOut(part="test", perturbation=("A",), cell_type=("B",), keep_cells=3)
    assert find_leaks(split_cells(made(), [rule, VALIDATION], seed=0)) == []


DRUG = ("ctrl", "[('x', 0.5, 'uM')]", "[('x', 5.0, 'uM')]", "[('x', 500.0, 'nM')]", "C")


def test_the_same_dose_in_another_unit_is_a_leak():
    cells = made(perturbations=(DRUG[0], DRUG[1], DRUG[3], DRUG[4]))
    rule = HoldOut(part="test", perturbation=(DRUG[1],), cell_type=("B",))
    (leak,) = find_leaks(split_cells(cells, [rule, VALIDATION], seed=0))
    assert leak.startswith("8 training cells, such as those of (")
    assert DRUG[3] in leak


def test_another_dose_of_a_held_out_drug_in_its_cell_type_is_a_leak_unless_the_rule_says_that_it_trains():
    cells = made(perturbations=DRUG[:3] + DRUG[4:])
    rule = HoldOut(part="test", perturbation=(DRUG[1],), cell_type=("B",))
    (leak,) = find_leaks(split_cells(cells, [rule, VALIDATION], seed=0))
    assert leak.startswith("1 perturbations held out for test train in the same cell type at another dose, such as")
    assert f"{DRUG[1]!r} in 'B' as {DRUG[2]!r}" in leak
    asked = rule.model_copy(update={"other_doses": "train"})
    assert find_leaks(split_cells(cells, [asked, VALIDATION], seed=0)) == []
    both = rule.model_copy(update={"perturbation": DRUG[1:3]})
    assert find_leaks(split_cells(cells, [both, VALIDATION], seed=0)) == []


def test_a_rule_that_names_a_drug_without_its_dose_says_of_all_its_doses_whether_they_train():
    def apart(adata):
        donor = adata.obs["perturbation"].map({DRUG[1]: "d1", DRUG[2]: "d2"})
        return adata[(donor.isna() | (donor == adata.obs["assay_batch"])).to_numpy()].copy()

    cells = made(perturbations=DRUG[:3] + DRUG[4:], edit=apart)
    rule = HoldOut(part="test", perturbation=("x",), cell_type=("B",), assay_batch=("d1",))
    (leak,) = find_leaks(split_cells(cells, [rule, VALIDATION], seed=0))
    assert f"at another dose, such as {DRUG[1]!r} in 'B' as {DRUG[2]!r}" in leak
    asked = rule.model_copy(update={"other_doses": "train"})
    assert find_leaks(split_cells(cells, [asked, VALIDATION], seed=0)) == []


def test_control_cells_that_train_though_a_rule_holds_them_out_are_a_leak():
    rule = HoldOut(part="test", perturbation=("A",), cell_type=("B",), hold_out_controls=True)
    (leak,) = find_leaks(split_cells(made(), [rule, VALIDATION], seed=0))
    assert leak.startswith(
        "8 control cells train, such as those of ('ctrl', 'B', 'd1'), though hold_out[0] (test) asks"
    )
    whole = HoldOut(part="test", cell_type=("B",), hold_out_controls=True)
    assert find_leaks(split_cells(made(), [whole, VALIDATION], seed=0)) == []


def test_the_audit_is_the_same_however_few_cells_it_looks_at_at_a_time(monkeypatch):
    def copied(adata):
        counts = adata.X.toarray()
        held = np.flatnonzero((adata.obs["perturbation"] == "A") & (adata.obs["cell_type"] == "B"))
        counts[held[:2]] = counts[0]
        adata.X = sp.csr_matrix(counts)
        return adata

    names = [f"cell{i // 2 if i < 20 else i}" for i in range(96)]
    split = split_cells(made(edit=copied, names=names), [TEST_A_IN_B, VALIDATION], seed=0)
    whole = find_leaks(split)
    assert [leak.split(" ", 1)[0] for leak in whole] == ["20", "2"]
    monkeypatch.setattr(order, "CHUNK", 7)
    monkeypatch.setattr(audit, "_AT_ONCE", 11)
    in_pieces = find_leaks(split)
    assert [leak.split(", such as")[0] for leak in in_pieces] == [leak.split(", such as")[0] for leak in whole]


def test_cells_that_a_few_shot_rule_keeps_are_no_leak_beside_a_rule_of_another_spelling():
    cells = made(perturbations=("ctrl", "A", "a ", "C"))
    kept = HoldOut(part="test", perturbation=("a ",), cell_type=("B",), keep_cells=2)
    assert find_leaks(split_cells(cells, [TEST_A_IN_B, kept, VALIDATION], seed=0)) == []
    assert len(find_leaks(split_cells(cells, [TEST_A_IN_B, VALIDATION], seed=0))) == 1
