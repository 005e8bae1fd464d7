"""A donor that is held out is judged against its own cells, from its own control cells, by cells that did not train."""

import numpy as np
import pandas as pd
import pytest

from perturbdiff.cells.memory import Cells
from perturbdiff.evaluation.alignment import align
from perturbdiff.evaluation.audit import LEAK, audit
from perturbdiff.evaluation.evaluate import evaluate
from perturbdiff.evaluation.from_files import evaluate_files
from perturbdiff.evaluation.scope import Depth, Scope
from perturbdiff.evaluation.scores import CEILING, REPLICATES
from perturbdiff.files.container import read_anndata
from perturbdiff.io import write_h5ad
from perturbdiff.metrics.conditions import TOGETHER, Condition, Context, Pooling
from perturbdiff.model import PerturbDiff
from perturbdiff.recipes.dataset import write_recipe
from perturbdiff.results.evaluation import MEAN_SHIFT
from perturbdiff.simulation.screen import simulate
from perturbdiff.split.audit import find_leaks
from perturbdiff.training_data import TrainingData

GENES = pd.Index([f"g{i}" for i in range(10)])
DONORS = [f"donor_{i}" for i in range(5)]


def make_cells(rng, donors=DONORS, drugs=("a", "b"), n_cells=30, at=1.0, prefix=""):
    """Donors with levels of their own, in each of which a drug moves other genes, by `at` of the true change."""
    labels, values = [], []
    for donor in donors:
        place = DONORS.index(donor)
        for drug in ("control", *drugs):
            change = np.zeros(10)
            if drug != "control":
                change[[place, 5 + place]] = (2.0, 1.0) if drug == "a" else (1.0, 2.0)
            values.append(3 + 0.2 * place + at * change + rng.normal(0, 0.2, (n_cells, 10)))
            labels += [(drug, "T", donor)] * n_cells
    return Cells(
        values=np.concatenate(values).astype(np.float32),
        scale="log1p",
        total_counts=None,
        genes=GENES,
        names=pd.Index([f"{prefix}{i}" for i in range(len(labels))]),
        labels=pd.DataFrame(labels, columns=["perturbation", "cell_type", "assay_batch"]).astype("category"),
        control="control",
    )


def of_donors(cells, *donors):
    return cells.take(cells.labels["assay_batch"].isin(donors).to_numpy())


@pytest.fixture(scope="module")
def observed():
    return make_cells(np.random.default_rng(0))


@pytest.fixture(scope="module")
def predicted():
    return make_cells(np.random.default_rng(1), donors=["donor_4"], at=0.8)


DEPTH = Depth(replicates=True)


def test_a_donor_is_judged_against_its_own_cells_as_if_the_file_held_no_other(observed, predicted):
    training = of_donors(observed, *DONORS[:4])
    whole = evaluate({"model": predicted}, observed, training=training, seed=0, depth=DEPTH)
    cut = evaluate({"model": predicted}, of_donors(observed, "donor_4"), training=training, seed=0, depth=DEPTH)
    assert [tuple(one) for one in whole.conditions] == [("a", "T", "donor_4"), ("b", "T", "donor_4")]
    pd.testing.assert_frame_equal(whole.scores, cut.scores, check_exact=True)
    pd.testing.assert_frame_equal(whole.overall, cut.overall, check_exact=True)
    summary = whole.summary()
    assert summary.loc["model", "pearson_of_change"] > 0.98
    assert summary.loc[MEAN_SHIFT, "pearson_of_change"] < 0.7  # other donors respond by other genes
    pooled = evaluate({"model": predicted}, observed, training=training, seed=0, scope=Scope(TOGETHER)).summary()
    assert pooled.loc["model", "pearson_of_change"] < 0.7


def test_pooled_and_apart_agree_to_the_last_digit_where_there_is_one_batch(observed, predicted):
    own = of_donors(observed, "donor_4")
    apart = evaluate({"model": predicted}, own, training=own, seed=0)
    pooled = evaluate({"model": predicted}, own, training=own, seed=0, scope=Scope(TOGETHER))
    assert apart.scores["value"].equals(pooled.scores["value"])
    assert apart.overall.equals(pooled.overall)
    assert set(apart.scores["assay_batch"]) == {"donor_4"}
    assert set(pooled.scores["assay_batch"]) == {""}


def test_baselines_move_the_control_cells_of_the_donor_itself(observed):
    predicted = make_cells(np.random.default_rng(1), donors=["donor_0", "donor_4"])
    pairs = align({"model": predicted}, observed)
    for place in (0, 4):
        context = Context("T", f"donor_{place}")
        assert set(pairs.control_batches(context)) == {context.assay_batch}
        assert pairs.control(context).mean == pytest.approx(np.full(10, 3 + 0.2 * place), abs=0.2)


def test_a_donor_with_fewer_than_two_control_cells_borrows_those_of_its_cell_type_and_that_is_said(observed, predicted):
    control = (observed.labels["perturbation"] == "control") & (observed.labels["assay_batch"] == "donor_4")
    rows = np.flatnonzero(~control)
    pairs = align({"model": predicted}, observed.take(np.append(rows, np.flatnonzero(control)[:1])))
    assert set(pairs.control_batches(Context("T", "donor_4"))) == set(DONORS)
    assert any(
        "are held against the control cells of the cell type in any batch" in note or "is held" in note
        for note in pairs.notes
    )


def test_what_one_donor_says_of_another_stands_as_replicates_beside_the_ceiling(observed):
    predicted = make_cells(np.random.default_rng(1))
    summary = evaluate({"model": predicted}, observed, training=None, seed=0, depth=DEPTH).summary()
    assert summary.loc[CEILING, "pearson_of_change"] > 0.98
    assert summary.loc[REPLICATES, "pearson_of_change"] < 0.5


def test_conditions_that_one_side_lacks_in_a_batch_are_left_out_and_said(observed):
    missing = (observed.labels["perturbation"] == "a") & (observed.labels["assay_batch"] == "donor_1")
    few = (observed.labels["perturbation"] == "b") & (observed.labels["assay_batch"] == "donor_2")
    kept = ~missing.to_numpy()
    kept[np.flatnonzero(few)[1:]] = False
    pairs = align({"model": make_cells(np.random.default_rng(1))}, observed.take(kept))
    assert len(pairs.conditions) == 8
    assert "1 of 10 predicted conditions is not judged: not among the observed cells, such as 'a in T of donor_1'." in (
        pairs.notes
    )
    assert any("fewer than 2 cells on a side, such as 'b in T of donor_2'" in note for note in pairs.notes)
    only = make_cells(np.random.default_rng(1), donors=["donor_1"], drugs=["a"])
    with pytest.raises(ValueError, match=r"of the same in 4 other assay batches, .* with --pool-batches"):
        align({"model": only}, observed.take(kept))


def test_what_was_predicted_without_a_batch_is_judged_over_all_of_them(observed):
    predicted = make_cells(np.random.default_rng(1))
    pairs = align({"model": predicted}, observed, pooling=Pooling(pairs=frozenset({("a", "T")})))
    assert [one for one in pairs.conditions if one.perturbation == "a"] == [Condition("a", "T")]
    assert pairs.observed_cells(Condition("a", "T")).cells.shape[0] == 5 * 30
    assert len([one for one in pairs.conditions if one.perturbation == "b"]) == 5
    any_type = align({"model": predicted}, observed, pooling=Pooling(pairs=frozenset({("a", "")})))
    assert any_type.conditions == pairs.conditions


def test_a_file_that_names_no_batches_pools_all_and_that_is_said(observed, predicted):
    nameless = predicted.labels.assign(assay_batch=pd.Categorical([""] * predicted.n_cells))
    pairs = align({"model": Cells(**{**vars_of(predicted), "labels": nameless})}, observed)
    assert set(pairs.conditions) == {Condition("a", "T"), Condition("b", "T")}
    assert "'model' names no assay batches, so conditions are judged over all batches together." in pairs.notes


def vars_of(cells):
    names = ("values", "scale", "total_counts", "genes", "names", "labels", "control")
    return {name: getattr(cells, name) for name in names}


@pytest.fixture(scope="module")
def donors(tmp_path_factory, make_recipe):
    """A screen of five donors, a drug held out in one of them but for some cells; the run, and what it predicts."""
    folder = tmp_path_factory.mktemp("donors")
    adata = simulate(
        "interaction",
        n_genes=40,
        n_cell_types=1,
        n_assay_batches=5,
        n_perturbations=2,
        cells_per_group=16,
        control_cells_per_group=12,
        seed=1,
    )
    adata.write_h5ad(folder / "screen.h5ad")
    donor = sorted(adata.obs["assay_batch"].unique())[-1]
    rule = {"part": "test", "perturbation": ["stimulus_1"], "assay_batch": [donor], "keep_cells": 6}
    write_recipe(make_recipe(hold_out=[rule]), folder / "recipe.toml")
    model = PerturbDiff.from_recipe(folder / "recipe.toml")
    model.train(run=folder / "run", device="cpu", show_progress=False)
    kind = str(adata.obs["cell_type"].iloc[0])
    asked = {"perturbation": "stimulus_1", "cell_type": kind, "assay_batch": donor}
    write_h5ad(model.predict(adata, **asked, device="cpu"), folder / "predicted.h5ad")
    return folder, donor


def test_cells_that_trained_are_never_among_the_judged_ones_unless_they_are_asked_for(donors):
    folder, donor = donors
    files, source = {"model": folder / "predicted.h5ad"}, TrainingData.of_run(folder / "run")
    assert find_leaks(source.split) == []
    # 12 cells of the perturbation chose the weights, and are no more judged than the 58 that were fitted
    assert source.split.held_back().n_cells == 27
    found = evaluate_files(files, folder / "screen.h5ad", source=source)
    (condition,) = found.conditions
    assert condition.assay_batch == donor
    assert found.notes[0].startswith(
        "70 of the 80 observed cells of the predicted perturbations and cell types trained or chose the kept "
        "weights, by their names, and are left out"
    )
    assert not [caution for caution in found.warnings if caution.kind == LEAK]
    split, observed = source.split, read_anndata(folder / "screen.h5ad")
    test = set(split.source.names[split.rows("test")])
    controls = (observed.obs["perturbation"] == "control").to_numpy()
    write_h5ad(observed[controls | observed.obs_names.isin(test)].copy(), folder / "held-out.h5ad")
    cut = evaluate_files(files, folder / "held-out.h5ad", source=source)
    pd.testing.assert_frame_equal(found.table, cut.table, check_exact=True)
    every = evaluate_files(files, folder / "screen.h5ad", source=source, with_training_cells=True)
    assert every.warnings[0].text.startswith("6 of the 16 judged observed cells were trained on, by their names.")
    assert not every.table["value"].equals(found.table["value"])


def test_conditions_of_which_a_fifth_of_the_cells_validated_trained_and_are_none_of_the_validation_part(donors):
    folder, donor = donors
    split = TrainingData.of_run(folder / "run").split
    cells = split.source
    (kind,) = set(cells.labels["cell_type"].astype(str))
    judged = [Condition("stimulus_1", kind, donor), Condition("stimulus_2", kind, donor)]
    unnamed = np.zeros(cells.n_cells, dtype=bool)
    facts, leaks = audit(split, judged, cells, unnamed, judged=True, grammar=split.source.runs.grammar)
    assert (facts["held_out"], facts["in_validation"], facts["in_neither"]) == (1, [], [])
    assert facts["in_training"] == [judged[1]._asdict()]
    assert "1 of the 2 judged conditions were in training" in leaks[0].text
    assert not any("validation part" in leak.text for leak in leaks)


def test_intervals_draw_donors_where_donors_are_held_out_of_perturbations_that_trained(donors):
    folder, _ = donors
    source = TrainingData.of_run(folder / "run")
    found = evaluate_files({"model": folder / "predicted.h5ad"}, folder / "screen.h5ad", source=source)
    assert found.settings["unit"] == "assay_batch"
    assert {rule.part for rule in source.split.hold_out} == {"test"}
