import itertools
import re
from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from perturbdiff.cells.anndata import cells_from_anndata, read_cells
from perturbdiff.cells.order import Segments
from perturbdiff.recipes.dataset import Columns, Expression, recipe_from_mapping
from perturbdiff.recipes.selection import HoldOut
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


def part_of(split):
    part = np.full(split.source.n_cells, -1)
    for i, name in enumerate(PARTS):
        part[split.rows(name)] = i
    return part


def parts_by_name(cells, split):
    return dict(zip(cells.names, part_of(split).tolist(), strict=True))


def test_a_cell_is_held_out_where_all_named_covariates_match():
    cells = made()
    split = split_cells(cells, [TEST_A_IN_B, VALIDATION], seed=0)
    labels = cells.labels.astype(str)
    expected = (labels["perturbation"] == "A") & (labels["cell_type"] == "B")
    np.testing.assert_array_equal(split.rows("test"), np.flatnonzero(expected))
    assert split.notes == ()


DOSES = ("ctrl", "[('x', 0.5, 'uM')]", "[('x', 5, 'uM')]|KO", "[('y', 0.5, 'uM')]", "[('x', 5, 'uM'), ('y', 5, 'uM')]")


def test_a_rule_that_names_a_drug_holds_out_every_dose_of_it_and_no_combination_with_others():
    cells = made(perturbations=DOSES)
    rule = {"part": "test", "cell_type": ("B",)}
    by_drug, by_label, combined = (
        split_cells(
            cells, [HoldOut(perturbation=labels, **rule), HoldOut(part="validation", cell_type=("NK",))], seed=0
        )
        for labels in (("x",), DOSES[1:3], ("x+y",))
    )
    assert by_drug.hash == by_label.hash
    assert set(by_drug.groups("test")["perturbation"]) == set(DOSES[1:3])
    assert set(combined.groups("test")["perturbation"]) == {DOSES[4]}
    assert find_leaks(by_drug) == []


def test_every_cell_has_exactly_one_part():
    cells = made()
    split = split_cells(cells, [TEST_A_IN_B], seed=3)
    rows = np.concatenate([split.rows(part) for part in PARTS])
    assert sorted(rows.tolist()) == list(range(cells.n_cells))


def test_control_cells_train_unless_a_rule_holds_them_out():
    cells = made()
    rule = {"part": "test", "cell_type": ("B",)}
    kept = split_cells(cells, [HoldOut(**rule), VALIDATION], seed=0)
    assert not cells.is_control[kept.rows("test")].any()
    held = split_cells(cells, [HoldOut(**rule, hold_out_controls=True), VALIDATION], seed=0)
    assert cells.is_control[held.rows("test")].sum() == 2 * EACH


def test_the_table_and_the_groups_count_perturbed_cells():
    split = split_cells(made(), [TEST_A_IN_B, VALIDATION], seed=0)
    groups = split.groups("test")
    assert groups.to_numpy().tolist() == [["A", "B", "d1", EACH], ["A", "B", "d2", EACH]]
    assert list(groups) == ["perturbation", "cell_type", "assay_batch", "cells"]
    table = split.table()
    assert table.loc["test"].tolist() == [2, 2 * EACH, 0]
    assert table.loc["train", "control cells"] == 6 * EACH
    assert table["cells"].sum() == 24 * EACH
    assert split.table(EACH - 1).loc["test", "populations"] == 4
    with pytest.raises(ValueError, match="there is no part 'tests'; choose one of train, validation, test"):
        split.rows("tests")


def test_a_later_rule_does_not_change_what_an_earlier_one_keeps():
    cells = made()
    rule = HoldOut(part="test", perturbation=("A",), cell_type=("B",), keep_cells=3)
    alone = split_cells(cells, [rule, VALIDATION], seed=0).rows("test")
    more = split_cells(cells, [rule, VALIDATION, HoldOut(part="validation", perturbation=("B",))], seed=0)
    np.testing.assert_array_equal(alone, more.rows("test"))


def test_the_order_of_the_cells_does_not_change_the_split(rng):
    cells = made()
    rules = [HoldOut(part="test", perturbation=("A",), cell_type=("B",), keep_cells=3)]
    shuffled = cells.take(rng.permutation(cells.n_cells))
    first, second = split_cells(cells, rules, seed=5), split_cells(shuffled, rules, seed=5)
    assert parts_by_name(cells, first) == parts_by_name(shuffled, second)
    assert first.hash == second.hash


def test_the_hash_changes_with_the_rules_and_not_with_an_idle_seed():
    cells = made()
    base = split_cells(cells, [TEST_A_IN_B, VALIDATION], seed=0).hash
    assert base == split_cells(cells, [TEST_A_IN_B, VALIDATION], seed=1).hash
    assert base != split_cells(cells, [VALIDATION], seed=0).hash
    assert base != split_cells(made(names=[f"x{i}" for i in range(96)]), [TEST_A_IN_B, VALIDATION], seed=0).hash
    assert re.fullmatch("[0-9a-f]{64}", base)


def test_a_seeded_tenth_of_the_training_groups_validates_where_no_rule_names_any():
    cells = made()
    split = split_cells(cells, [TEST_A_IN_B], seed=0)
    assert len(split.groups("validation")) == 2
    assert (split.groups("validation")["cells"] == EACH).all()
    assert split.notes == (
        "Validation: no rule names one, so 2 of 16 training groups of perturbed cells (8 cells) were drawn for it with "
        "seed 0.",
    )
    drawn = {tuple(split_cells(cells, [TEST_A_IN_B], seed=seed).rows("validation")) for seed in range(8)}
    assert len(drawn) > 1


def test_no_validation_is_drawn_where_a_rule_names_it():
    split = split_cells(made(), [VALIDATION], seed=0)
    assert set(split.groups("validation")["perturbation"]) == {"C"}
    assert split.notes == ()


def test_of_fewer_than_ten_groups_that_are_too_small_to_be_divided_none_validate_and_a_note_says_so():
    split = split_cells(made(perturbations=("ctrl", "A")), [TEST_A_IN_B], seed=0)
    assert len(split.rows("validation")) == 0
    assert split.notes == (
        "No validation: no rule names one, there are fewer than the 10 groups that no rule touches, of which a tenth "
        "could be held back, and none has cells enough to be divided.",
    )


def test_groups_of_one_cell_do_not_count_for_validation():
    split = split_cells(made(each=1), [TEST_A_IN_B], seed=0)
    assert len(split.rows("validation")) == 0
    assert "fewer than the 10 groups that no rule touches" in split.notes[0]


# a fifth of the cells of groups that train


@pytest.mark.parametrize(("each", "n_back"), [(9, 0), (10, 2), (14, 2), (15, 3), (101, 20)])
def test_where_groups_are_few_a_fifth_of_the_cells_of_each_validates_where_it_has_ten(each, n_back):
    cells = made(perturbations=("ctrl", "A"), each=each)
    split = split_cells(cells, [TEST_A_IN_B], seed=0)
    assert split.groups("validation")["cells"].tolist() == [n_back] * (4 if n_back else 0)
    assert split.groups("train")["cells"].tolist() == [each - n_back] * 4
    assert split.groups("test")["cells"].tolist() == [each] * 2
    assert sorted(np.concatenate([split.rows(part) for part in PARTS])) == list(range(cells.n_cells))
    # control cells train
    assert split.table()["control cells"].tolist() == [6 * each, 0, 0]
    assert find_leaks(split) == []


def uneven(adata):
    """9 cells are left of A in T in the first donor, 25 of all others."""
    few = (adata.obs["perturbation"] == "A") & (adata.obs["cell_type"] == "T") & (adata.obs["assay_batch"] == "d1")
    return adata[~few.to_numpy() | (few.cumsum() <= 9).to_numpy()].copy()


def test_of_groups_with_fewer_than_ten_cells_none_is_held_back_beside_larger_ones():
    split = split_cells(made(perturbations=("ctrl", "A"), each=25, edit=uneven), [TEST_A_IN_B], seed=0)
    assert split.groups("validation").to_numpy().tolist() == [
        ["A", "NK", "d1", 5],
        ["A", "NK", "d2", 5],
        ["A", "T", "d2", 5],
    ]
    assert split.groups("train")["cells"].tolist() == [20, 20, 9, 20]


def test_what_is_held_back_is_said_in_one_sentence():
    split = split_cells(made(perturbations=("ctrl", "A"), each=25, edit=uneven), [TEST_A_IN_B], seed=3)
    assert split.notes == (
        "Validation: no rule names one, and there are fewer than the 10 groups that no rule touches, of which a tenth "
        "could be held back, so 15 cells of 3 groups that train were drawn for it with seed 3; it says nothing of "
        "conditions that do not train.",
    )


def test_what_is_held_back_depends_on_names_and_the_seed_and_not_on_the_order_of_the_cells(rng):
    cells = made(perturbations=("ctrl", "A"), each=20)
    shuffled = cells.take(rng.permutation(cells.n_cells))
    for seed in range(3):
        first, second = (split_cells(own, [TEST_A_IN_B], seed=seed) for own in (cells, shuffled))
        assert parts_by_name(cells, first) == parts_by_name(shuffled, second)
        assert first.hash == second.hash
    drawn = {tuple(split_cells(cells, [TEST_A_IN_B], seed=seed).rows("validation")) for seed in range(8)}
    assert len(drawn) > 4
    renamed = made(perturbations=("ctrl", "A"), each=20, names=[f"x{i}" for i in range(240)])
    again = split_cells(renamed, [TEST_A_IN_B], seed=0)
    assert len(again.rows("validation")) == 16
    assert set(again.rows("validation")) != set(split_cells(cells, [TEST_A_IN_B], seed=0).rows("validation"))


@pytest.mark.parametrize("keep", [{"keep_cells": 15}, {"keep_fraction": 0.375}, {"keep_total": 90}])
def test_of_what_few_shot_keeps_a_fifth_is_held_back_and_no_test_cell(keep):
    cells = made(perturbations=("ctrl", "A"), each=40)
    rule = HoldOut(part="test", perturbation=("A",), **keep)
    split, named = (
        split_cells(cells, rules, seed=0)
        for rules in (
            [rule],
            [
                rule,
                HoldOut(
                    part="validation",
                    perturbation=("ctrl",),
                    cell_type=("B",),
                    assay_batch=("d1",),
                    hold_out_controls=True,
                ),
            ],
        )
    )
    # the test cells are those of a split that holds nothing back
    np.testing.assert_array_equal(split.rows("test"), named.rows("test"))
    assert split.groups("test")["cells"].sum() == 240 - 90
    back, left = (
        split.groups(part).set_index(["cell_type", "assay_batch"])["cells"] for part in ("validation", "train")
    )
    kept = back + left
    assert kept.sum() == 90
    assert (back == kept // 5).all()
    parts = [set(split.rows(part)) for part in PARTS]
    assert sum(map(len, parts)) == len(set.union(*parts)) == cells.n_cells
    assert find_leaks(split) == []


def test_cells_of_a_held_out_group_that_train_are_a_leak_though_cells_of_groups_that_train_validate():
    split = split_cells(made(perturbations=("ctrl", "A"), each=20), [TEST_A_IN_B], seed=0)
    rows = split.segments.run[split.part == PARTS.index("test")]
    assert len(rows) == 2
    part = split.part.copy()
    # nothing else may change: the test group gives its first stretch of cells to training
    (first, _) = np.flatnonzero(part == PARTS.index("test"))
    start = split.segments.start[first]
    cut = {
        key: np.insert(getattr(split.segments, key), first + 1, getattr(split.segments, key)[first])
        for key in ("run", "start", "stop")
    }
    cut["stop"][first] = cut["start"][first + 1] = start + 3
    stray = replace(split, segments=Segments(**cut), part=np.insert(part, first, PARTS.index("train")))
    (leak,) = find_leaks(stray)
    assert leak.startswith("3 training cells are of held-out groups, such as ('A', 'B', 'd1')")


def test_nothing_is_held_back_of_groups_where_a_rule_names_a_validation_or_ten_groups_are_there():
    cells = made(each=20)
    drawn = split_cells(cells, [TEST_A_IN_B], seed=0)
    assert drawn.groups("validation")["cells"].tolist() == [20, 20]
    few = made(perturbations=("ctrl", "A"), each=20)
    for rules in (
        [HoldOut(part="validation", perturbation=("A",), cell_type=("NK",))],
        [TEST_A_IN_B, HoldOut(part="validation", perturbation=("A",), cell_type=("NK",), assay_batch=("d1",))],
        [HoldOut(part="validation", perturbation=("A",), cell_type=("NK",), keep_cells=12)],
    ):
        split = split_cells(few, rules, seed=0)
        assert split.notes == ()
        assert not len(split.held_back())
        assert set(split.groups("validation")["cell_type"]) == {"NK"}
    assert not len(drawn.held_back())
    held_back = split_cells(few, [TEST_A_IN_B], seed=0)
    np.testing.assert_array_equal(held_back.held_back().positions(), held_back.of("validation").positions())


@pytest.mark.parametrize("n_groups", [9, 10])
def test_ten_groups_are_enough_for_one_of_them_to_validate_as_a_whole(n_groups):
    perturbations = ("ctrl", *(f"P{i}" for i in range(n_groups)))
    split = split_cells(made(perturbations=perturbations, types=("B",), donors=("d1",), each=20), [], seed=0)
    assert split.groups("validation")["cells"].tolist() == ([4] * 9 if n_groups == 9 else [20])


def test_validation_is_never_drawn_from_what_a_rule_keeps_in_training():
    rule = HoldOut(part="test", perturbation=("A",), keep_total=12)
    for seed in range(10):
        split = split_cells(made(), [rule], seed=seed)
        assert set(split.groups("validation")["perturbation"]) <= {"B", "C"}


def test_validation_spares_a_perturbation_its_only_group():
    def once(adata):
        rare = (adata.obs["perturbation"] == "A") & ~(
            (adata.obs["cell_type"] == "B") & (adata.obs["assay_batch"] == "d1")
        )
        return adata[~rare.to_numpy()].copy()

    for seed in range(20):
        split = split_cells(made(edit=once), [], seed=seed)
        assert len(split.groups("validation")) == 1
        assert "A" not in set(split.groups("validation")["perturbation"])


def test_validation_says_which_perturbation_it_leaves_unseen():
    perturbations = ("ctrl", *(f"P{i}" for i in range(12)))
    split = split_cells(made(perturbations=perturbations, types=("B",), donors=("d1",)), [], seed=0)
    (unseen,) = split.groups("validation")["perturbation"]
    assert f"no training cell is left of {unseen!r}" in split.notes[0]


@pytest.mark.parametrize(
    ("rules", "sentence"),
    [
        (
            [HoldOut(part="test", cell_type=("b",))],
            "hold_out[0] names cell_type 'b', which no cell has; the nearest is 'B'; mend the label",
        ),
        (
            [TEST_A_IN_B, HoldOut(part="validation", perturbation=("A",))],
            "hold_out[0] (test) and hold_out[1] (validation) both match 8 cells, and a cell has one part; narrow one",
        ),
        (
            [HoldOut(part="test", perturbation=("ctrl",))],
            "hold_out[0] (test) matches 24 control cells only, which are never held out; name a perturbation, or set",
        ),
        (
            [HoldOut(part="test", perturbation=("A",), keep_cells=4)],
            "keep_cells = 4 of hold_out[0] counts in each group, and would keep 4 of the 4 cells of ('A', 'B', 'd1') "
            "(6 of 6 groups are like that), where some must stay in training and some be held out; change it,",
        ),
        (
            [HoldOut(part="test", perturbation=("A",), keep_total=24)],
            "keep_total = 24 of hold_out[0] keeps all of the 24 cells it matches in training, and some must be held",
        ),
        (
            [HoldOut(part="test", perturbation=("A",), keep_fraction=0.001)],
            "keep_fraction = 0.001 of hold_out[0] counts in each group, and would keep 0 of the 4 cells of",
        ),
        (
            [HoldOut(part="test", cell_type=TYPES, hold_out_controls=True)],
            "the hold-out rules match all 96 cells, and some must be left to train; narrow the rules",
        ),
    ],
)
def test_a_rule_that_cannot_be_followed_is_refused(rules, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        split_cells(made(), rules, seed=0)


def test_a_combination_that_is_not_in_the_data_is_refused():
    cells = made(
        edit=lambda adata: adata[~((adata.obs["perturbation"] == "A") & (adata.obs["cell_type"] == "B"))].copy()
    )
    sentence = (
        r"hold_out\[0\] \(test\) matches no cell, though each of its labels occurs \(perturbation: A; cell_type: B\)"
    )
    with pytest.raises(ValueError, match=sentence):
        split_cells(cells, [TEST_A_IN_B], seed=0)


def test_the_hash_of_cells_of_one_name_does_not_depend_on_their_order(rng):
    cells = made(names=["same"] * 96)
    shuffled = cells.take(rng.permutation(96))
    rules = [TEST_A_IN_B, VALIDATION]
    assert split_cells(cells, rules, seed=0).hash == split_cells(shuffled, rules, seed=0).hash


@pytest.mark.parametrize(
    ("keep", "n_kept"), [({"keep_cells": 3}, 6), ({"keep_fraction": 0.25}, 2), ({"keep_total": 3}, 3)]
)
def test_so_many_matching_cells_stay_in_training_as_asked(keep, n_kept):
    cells = made()
    rule = HoldOut(part="test", perturbation=("A",), cell_type=("B",), **keep)
    split = split_cells(cells, [rule, VALIDATION], seed=0)
    assert len(split.rows("test")) == 2 * EACH - n_kept
    again = split_cells(cells, [rule, VALIDATION], seed=0)
    np.testing.assert_array_equal(split.part, again.part)
    drawn = {tuple(split_cells(cells, [rule, VALIDATION], seed=seed).rows("test")) for seed in range(8)}
    assert len(drawn) > 1
    assert find_leaks(split) == []


@pytest.fixture(scope="module")
def stimulated(real_data):
    table = {
        "name": "interferon",
        "control": "control",
        "files": ["kang_ifnb_1kgenes.h5ad"],
        "columns": {"perturbation": "perturbation", "cell_type": "cell_type", "assay_batch": "batch"},
        "expression": {"scale": "counts"},
        "exclude": [{"assay_batch": ["unknown"]}],
        "hold_out": [
            {"part": "test", "perturbation": ["IFN-beta"], "cell_type": ["B cells", "CD14+ Monocytes"]},
            {"part": "validation", "perturbation": ["IFN-beta"], "cell_type": ["CD8 T cells"]},
        ],
    }
    recipe = recipe_from_mapping(table, "interferon.toml")
    return recipe, read_cells(recipe, real_data)


@pytest.mark.real
def test_a_real_hold_out_by_recipe_leaves_the_recorded_cells(stimulated):
    recipe, cells = stimulated
    assert (~cells.is_control).sum() == 2117 - 917
    with_validation = split_cells(cells, recipe.hold_out, seed=0)
    assert len(with_validation.rows("validation")) == 134
    test_only = split_cells(cells, recipe.hold_out[:1], seed=0)
    assert (~cells.is_control & (part_of(with_validation) == 0)).sum() == 538
    assert set(test_only.groups("test")["assay_batch"]) == {"101", "107", "1015"}
    assert find_leaks(with_validation) == []
    assert find_leaks(test_only) == []


@pytest.mark.real
def test_a_real_misspelt_cell_type_is_told_the_right_one(stimulated):
    _, cells = stimulated
    rule = HoldOut(part="test", cell_type=("CD14+ monocytes",))
    with pytest.raises(ValueError, match=re.escape("the nearest is 'CD14+ Monocytes'")):
        split_cells(cells, [rule], seed=0)


def test_populations_that_are_kept_are_so_many_cells_and_need_to_be_said_in_cells():
    rule = {"part": "test", "perturbation": ("A",), "keep_populations": 1}
    cells = made()
    of_populations = split_cells(cells, [HoldOut(**rule), VALIDATION], seed=0, cells_per_population=2)
    of_cells = split_cells(cells, [HoldOut(part="test", perturbation=("A",), keep_cells=2), VALIDATION], seed=0)
    assert of_populations.hash == of_cells.hash
    sentence = r"hold_out\[0\] keeps 1 populations, and how many cells one has is not said; add training.cells_per_pop"
    with pytest.raises(ValueError, match=sentence):
        split_cells(cells, [HoldOut(**rule), VALIDATION], seed=0)


def test_cells_are_kept_of_each_group_and_a_total_of_all_of_them_together():
    cells = made(each=8)
    whole = {"part": "test", "perturbation": ("A", "B")}
    each = split_cells(cells, [HoldOut(**whole, keep_cells=3), VALIDATION], seed=0)
    assert each.groups("test")["cells"].tolist() == [5] * 12
    total = split_cells(cells, [HoldOut(**whole, keep_total=3), VALIDATION], seed=0)
    assert total.groups("test")["cells"].sum() == 12 * 8 - 3
    assert find_leaks(each) == []


@pytest.mark.parametrize("keep", ["keep_cells", "keep_total"])
def test_what_is_kept_of_one_group_is_what_was_kept_when_rules_counted_over_all_groups(keep):
    rule = HoldOut(part="test", perturbation=("A",), cell_type=("B",), assay_batch=("d1",), **{keep: 3})
    split = split_cells(made(each=8), [VALIDATION, rule], seed=7)
    assert split.hash == "c848b5859113fc0aeb4df59c4eda8271d8799a4ae57e034bad2d7bd28df007ad"


def test_the_cells_of_a_part_are_listed_with_their_labels():
    cells = made()
    split = split_cells(cells, [TEST_A_IN_B, VALIDATION], seed=0)
    table = pd.concat(split.cells("test"))
    assert sorted(table["cell"]) == sorted(cells.names[split.rows("test")])
    assert set(table["assay_batch"]) == {"d1", "d2"}
    assert [set(table[name]) for name in ("perturbation", "cell_type")] == [{"A"}, {"B"}]
