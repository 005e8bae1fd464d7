"""An evaluation puts predictions beside baselines and a ceiling, and says what is missing."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import perturbdiff
from perturbdiff.baselines.control import groups_of, predict_control
from perturbdiff.cells.anndata import cells_from_anndata
from perturbdiff.cells.memory import Cells
from perturbdiff.evaluation.alignment import align
from perturbdiff.evaluation.evaluate import evaluate
from perturbdiff.evaluation.methods import BASELINES
from perturbdiff.evaluation.scope import Depth, Scope
from perturbdiff.evaluation.scores import CEILING
from perturbdiff.files.container import read_anndata
from perturbdiff.metrics.conditions import TOGETHER, Condition, Context
from perturbdiff.metrics.distances import within
from perturbdiff.metrics.ours import CONTEXT_METRICS, METRICS, Population
from perturbdiff.recipes.dataset import Columns, Expression
from perturbdiff.recipes.selection import Match
from perturbdiff.report.writing import write_report
from perturbdiff.results.evaluation import CONTROL, MEAN_SHIFT, Evaluation

POOLED = Scope(TOGETHER)
GENES = pd.Index([f"g{i}" for i in range(12)])
SHIFT = {"control": 0.0, "a": np.repeat([1.5, 0.0], [4, 8]), "b": np.repeat([0.0, 1.0], [9, 3])}
SHIFT["both"] = SHIFT["a"] + SHIFT["b"]


def make_cells(groups, seed, shift=1.0):
    """Cells of (perturbation, cell type, number): additive data around a level per cell type, never at zero."""
    rng = np.random.default_rng(seed)
    labels = [(perturbation, cell_type, "") for perturbation, cell_type, n in groups for _ in range(n)]
    values = np.stack(
        [{"T": 3.0, "B": 4.0}[cell_type] + shift * SHIFT[tau] + rng.normal(0, 0.3, 12) for tau, cell_type, _ in labels]
    )
    return Cells(
        values=values.astype(np.float32),
        scale="log1p",
        total_counts=None,
        genes=GENES,
        names=pd.Index([f"cell{i}" for i in range(len(labels))]),
        labels=pd.DataFrame(labels, columns=["perturbation", "cell_type", "assay_batch"]).astype("category"),
        control="control",
    )


OBSERVED = make_cells([("control", "B", 40), ("a", "B", 30), ("b", "B", 20)], 0)
TRAINING = make_cells([("control", "T", 60), ("control", "B", 40), ("a", "T", 50), ("b", "T", 30)], 1)
PREDICTED = make_cells([("control", "B", 40), ("a", "B", 30), ("b", "B", 20)], 2, shift=0.5)


@pytest.fixture(scope="module")
def compared():
    return evaluate({"model": PREDICTED}, OBSERVED, training=TRAINING, seed=0)


def test_every_method_has_every_metric_on_every_condition(compared):
    table = compared.table
    assert list(dict.fromkeys(table["method"])) == ["model", CONTROL, MEAN_SHIFT, CEILING]
    assert len(table) == 4 * 2 * len(METRICS)
    assert table["value"].notna().all()
    which = "the total counts of 40 of 40 control cells are not known"
    assert compared.notes == (f"Baselines move cells on log1p values only, since {which}.",)


def test_the_order_of_the_methods_on_additive_data_is_the_true_one(compared):
    energy = compared.summary()["energy_distance"]
    assert energy[CONTROL] > energy["model"] > energy[MEAN_SHIFT]
    assert energy[MEAN_SHIFT] == pytest.approx(0.0, abs=0.1)
    assert energy[CEILING] == pytest.approx(0.0, abs=0.05)
    assert compared.summary().loc[MEAN_SHIFT, "pearson_of_change"] > 0.95


def test_an_evaluation_repeats_with_its_seed_and_its_draws_change_with_it(compared):
    again = evaluate({"model": PREDICTED}, OBSERVED, training=TRAINING, seed=0)
    pd.testing.assert_frame_equal(again.table, compared.table)
    other = evaluate({"model": PREDICTED}, OBSERVED, training=TRAINING, seed=1).summary()
    assert other.loc[CEILING, "mae"] != compared.summary().loc[CEILING, "mae"]
    assert other.loc["model", "mae"] == compared.summary().loc["model", "mae"]


def test_without_training_cells_the_mean_shift_is_a_row_of_nan_and_a_note():
    found = evaluate({"model": PREDICTED}, OBSERVED, training=None, seed=0)
    assert found.summary().loc[MEAN_SHIFT].isna().all()
    assert found.summary().drop(MEAN_SHIFT).notna().all(axis=None)
    assert found.notes == (
        "'control + mean shift' is missing: it needs the training cells; give them with --run or --recipe.",
    )


def test_a_perturbation_that_training_never_saw_is_named():
    training = TRAINING.take(np.flatnonzero(TRAINING.labels["perturbation"] != "b"))
    note, _ = evaluate({"model": PREDICTED}, OBSERVED, training=training, seed=0).notes
    assert "1 of 2 perturbations were not in training ('b') and take the mean shift over all 1 trained" in note


def test_undefined_metrics_are_counted_and_said():
    silent = make_cells([("control", "B", 40), ("a", "B", 30)], 3, shift=0.0)
    found = evaluate({"model": PREDICTED}, silent, training=TRAINING, seed=0, conditions=[("a", "B")])
    assert math.isnan(found.summary().loc["model", "de_auroc"])
    undefined = "pearson_from_centroid, de_auroc, de_overlap, spread_between of every method are undefined in 1 of 1"
    assert any(note.startswith(undefined) for note in found.notes)


def test_several_predicted_files_stand_side_by_side(compared):
    found = evaluate({"one": PREDICTED, "two": OBSERVED}, OBSERVED, training=None, seed=0)
    assert found.summary().loc["one"].equals(compared.summary().loc["model"].rename("one"))
    assert found.summary().loc["two", "mae"] == 0.0


def test_the_baselines_use_the_observed_control_cells_where_the_predicted_file_has_none(compared):
    alone = PREDICTED.take(np.flatnonzero(~PREDICTED.is_control))
    found = evaluate({"model": alone}, OBSERVED, training=TRAINING, seed=0)
    assert found.summary().loc["model"].equals(compared.summary().loc["model"])
    assert found.summary().loc[CONTROL].notna().all()


def test_a_prediction_of_several_populations_is_judged_as_one_of_them_is_and_so_is_control():
    controls = OBSERVED.take(OBSERVED.is_control)
    groups = groups_of(OBSERVED)

    def unchanged(times):
        table = groups.assign(cells=times * 40)
        made = predict_control(table, controls, genes=GENES, control="control", rng=np.random.default_rng(0))
        found = evaluate({"model": made}, OBSERVED, training=None, seed=0).scores
        known = found[found["metric"].isin(["energy_distance", "mmd"])].set_index(["method", "perturbation", "metric"])
        return known["value"]

    once, often = unchanged(1), unchanged(4)
    for method in ("model", CONTROL):
        pd.testing.assert_series_equal(often.loc[[method]], once.loc[[method]])


def test_a_predicted_file_may_not_take_a_baselines_name_and_training_must_hold_the_judged_genes():
    with pytest.raises(ValueError, match="a predicted file is named 'ceiling'"):
        evaluate({"ceiling": PREDICTED}, OBSERVED, training=None, seed=0)
    fewer = replace(TRAINING, values=TRAINING.log_expression(GENES[:10]), genes=GENES[:10])
    with pytest.raises(ValueError, match=r"the training cells lack 2 of the 12 judged genes \(such as 'g10'\)"):
        evaluate({"model": PREDICTED}, OBSERVED, training=fewer, seed=0)


def test_saved_tables_are_read_back_and_undefined_values_are_null(tmp_path):
    found = evaluate({"model": PREDICTED}, OBSERVED, training=None, seed=0)
    found.save(tmp_path / "eval")
    names = ["contexts.csv", "genes.parquet", "metrics.csv", "metrics.json", "overall.csv"]
    assert sorted(path.name for path in (tmp_path / "eval").iterdir()) == names
    for name, table in {"metrics": found.scores, "overall": found.overall, "contexts": found.contexts}.items():
        read = pd.read_csv(tmp_path / "eval" / f"{name}.csv", keep_default_na=False, na_values={"value": "nan"})
        assert list(read.columns) == list(table.columns)
        assert read["value"].to_numpy() == pytest.approx(table["value"].to_numpy(), nan_ok=True)
    content = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert content["notes"] == list(found.notes)
    assert len(content["conditions"]) == len(found.scores)
    assert all(row["scaled_low"] is None or math.isfinite(row["scaled_low"]) for row in content["overall"])
    assert MEAN_SHIFT not in {row["method"] for row in content["overall"]}
    assert set(content["legend"]["ours"]) == {metric.name for metric in (*METRICS, *CONTEXT_METRICS)}


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, compared):
    compared.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_args, **_kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        replace(compared, notes=("changed",)).save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.fixture(scope="module")
def kang(real_data):
    """Test and training cells: IFN-beta held out in two cell types and kept for validation in a third, 500 genes."""
    path = real_data / "kang_ifnb_1kgenes.h5ad"
    if not path.is_file():
        pytest.skip(f"{path.name} is missing: this test reads files that are not part of the project")
    cells = cells_from_anndata(
        read_anndata(path),
        columns=Columns(perturbation="perturbation", cell_type="cell_type", assay_batch="batch"),
        expression=Expression(scale="counts"),
        control="control",
        exclude=(Match(assay_batch=("unknown",)),),
    )
    expression = cells.log_expression(cells.genes).toarray()
    genes = np.sort(np.argsort(expression.var(axis=0))[::-1][:500])
    cells = replace(cells, values=expression[:, genes], scale="log1p", total_counts=None, genes=cells.genes[genes])
    kind = cells.labels["cell_type"]
    held = kind.isin(["B cells", "CD14+ Monocytes"]).to_numpy() & ~cells.is_control
    validation = (kind == "CD8 T cells").to_numpy() & ~cells.is_control
    return cells.take(held | cells.is_control), cells.take(~held & ~validation)


@pytest.mark.real
def test_the_mean_shift_on_real_data_is_as_good_as_was_measured(kang):
    test, training = kang
    assert (~training.is_control).sum() == 538
    found = evaluate({"the cells themselves": test}, test, training=training, seed=0, scope=POOLED).summary()
    assert found.loc[CONTROL, "pearson_of_change"] == pytest.approx(-0.03, abs=0.04)
    assert found.loc[CONTROL, "mae"] == pytest.approx(0.352, abs=0.01)
    assert found.loc[CONTROL, "energy_distance"] == pytest.approx(2.6, abs=0.1)
    # weighted by group and compared with each donor's own controls, the shift beats the pooled one (0.82, 1.16)
    assert found.loc[MEAN_SHIFT, "pearson_of_change"] == pytest.approx(0.866, abs=0.02)
    # drawn as counts; added to log1p values it is 0.81
    assert found.loc[MEAN_SHIFT, "energy_distance"] == pytest.approx(0.74, abs=0.04)
    assert found.loc[CEILING, "pearson_of_change"] == pytest.approx(0.96, abs=0.02)
    assert found.loc[CEILING, "energy_distance"] == pytest.approx(0.0, abs=0.05)
    assert found.loc[CEILING, "de_auroc"] == pytest.approx(0.91, abs=0.03)


@pytest.mark.real
def test_a_shift_pooled_over_cell_types_gives_the_published_anchors(kang):
    test, training = kang
    expression = training.log_expression(training.genes).toarray()
    kind = training.labels["cell_type"]
    beside = training.is_control & kind.isin(set(kind[~training.is_control])).to_numpy()
    shift = expression[~training.is_control].mean(axis=0) - expression[beside].mean(axis=0)
    unchanged = predict_control(
        groups_of(test), test, genes=test.genes, control="control", rng=np.random.default_rng(0)
    )
    predicted = replace(unchanged, values=np.maximum(unchanged.log_expression(test.genes).toarray() + shift, 0.0))
    scores = evaluate({"pooled": predicted}, test, training=None, seed=0, scope=POOLED).summary().loc["pooled"]
    pairs = align({"pooled": predicted}, test, pooling=TOGETHER)
    populations = pairs.populations_of(predicted)
    bias = np.mean([_bias(populations(one)) + _bias(pairs.observed_cells(one)) for one in pairs.conditions])
    assert scores["pearson_of_change"] == pytest.approx(0.82, abs=0.015)
    assert scores["mae"] == pytest.approx(0.262, abs=0.005)
    assert scores["energy_distance"] + bias == pytest.approx(1.16, abs=0.04)  # the anchor is over all pairs
    assert scores["de_share_predicted"] == pytest.approx(0.62, abs=0.02)


def _bias(population: Population) -> float:
    """What counting each cell's pair with itself adds to the energy distance."""
    return within(population.cells).distance / (2 * population.cells.shape[0])


@pytest.fixture(scope="module")
def deep():
    depth = Depth(baselines=tuple(BASELINES), projection=True, replicates=True, suites=("ours", "paper"))
    return evaluate({"model": PREDICTED}, OBSERVED, training=TRAINING, seed=0, depth=depth)


def test_all_baselines_and_suites_stand_beside_each_other_and_every_method_is_described(deep):
    methods = {method.name: method for method in deep.methods}
    assert list(methods) == ["model", *BASELINES, CEILING]
    assert [method.kind for method in methods.values()] == ["predicted", *["baseline"] * len(BASELINES), "ceiling"]
    assert all(method.about for method in methods.values())
    assert set(deep.scores["method"]) == set(methods)
    assert list(dict.fromkeys(deep.scores["suite"])) == ["ours", "paper"]
    assert (deep.baseline, deep.ceiling) == (MEAN_SHIFT, CEILING)
    assert deep.not_made == ()


def test_a_baseline_that_has_nothing_to_say_of_a_condition_is_undefined_there_and_a_note_says_why(deep):
    # "additive" is of combinations, and the nearest cell type of B is T, which training has
    table = deep.scores.set_index(["suite", "method", "perturbation", "cell_type", "metric"])["value"]
    left_out = [note for note in deep.notes if "leaves out" in note]
    for name in BASELINES:
        undefined = math.isnan(table["ours", name, "a", "B", "mae"])
        assert undefined == any(note.startswith(repr(name)) for note in left_out), name
        assert math.isnan(table["paper", name, "a", "B", "MAE"]) == undefined


def test_the_folder_holds_tests_of_observed_and_predicted_genes_and_placed_cells(deep, tmp_path):
    deep.save(tmp_path)
    genes = pd.read_parquet(tmp_path / "genes.parquet")
    assert list(genes.columns) == [
        "side", "perturbation", "cell_type", "assay_batch", "gene", "change", "p_value", "p_adjusted", "mean",
    ]  # fmt: skip
    assert set(genes["side"]) == {"observed", "model"}
    assert len(genes) == 2 * 2 * 12
    own = genes[(genes["side"] == "model") & (genes["perturbation"] == "a")]
    pairs = align({"model": PREDICTED}, OBSERVED)
    change = pairs.populations_of(PREDICTED)(Condition("a", "B")).mean - pairs.control(Context("B")).mean
    assert own["change"].to_numpy() == pytest.approx(change)
    assert (own["p_adjusted"] >= own["p_value"]).all()
    cells = pd.read_parquet(tmp_path / "cells.parquet")
    assert list(cells.columns) == ["side", "perturbation", "cell_type", "assay_batch", "pc1", "pc2"]
    assert set(cells["side"]) == {"observed", "control", "model"}
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert {"perturbdiff", "cell-eval", "cell-eval2", "pdex", "numpy", "scipy", "anndata", "python"} <= set(
        content["versions"]
    )
    assert 0 < content["variance"][1] <= content["variance"][0] <= 1
    assert content["settings"]["seed"] == 0
    assert content["settings"]["paper: fdr_threshold"] == "0.05"
    assert content["audit"] is None
    assert {row["metric"] for row in content["dynamic_range"]} >= {"energy_distance", "MAE"}


def test_an_evaluation_that_is_loaded_is_saved_as_the_same_files_and_makes_the_same_page(deep, tmp_path):
    deep.save(tmp_path / "made")
    loaded = Evaluation.load(tmp_path / "made")
    loaded.save(tmp_path / "again")
    for name in ("metrics.csv", "overall.csv", "contexts.csv", "metrics.json", "genes.parquet"):
        assert (tmp_path / "made" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    made, again = (pd.read_parquet(tmp_path / folder / "cells.parquet") for folder in ("made", "again"))
    pd.testing.assert_frame_equal(made, again, check_dtype=False)
    assert (loaded.conditions, loaded.metrics, loaded.headline) == (deep.conditions, deep.metrics, deep.headline)
    pd.testing.assert_frame_equal(loaded.summary(), deep.summary(), check_names=False)
    write_report(deep, tmp_path / "made.html")
    write_report(tmp_path / "made", tmp_path / "loaded.html")
    for suffix in ("html", "json", "csv"):
        assert (tmp_path / f"made.{suffix}").read_text() == (tmp_path / f"loaded.{suffix}").read_text(), suffix


def test_names_of_before_are_still_found():
    assert perturbdiff.Comparison is Evaluation
    assert perturbdiff.compare is evaluate


def test_every_mean_has_an_interval_and_a_scaled_score_that_is_0_at_the_baseline_and_1_at_the_ceiling():
    groups = [(tau, kind, 30) for kind in "TB" for tau in ("control", "a", "b", "both")]
    observed, predicted = make_cells(groups, 5), make_cells(groups, 6, shift=0.5)
    deep = evaluate({"model": predicted}, observed, training=make_cells(groups, 7), seed=0)
    overall = deep.overall.set_index(["suite", "method", "metric"])
    row = overall.loc[("ours", "model", "energy_distance")]
    assert row["low"] <= row["value"] <= row["high"]
    assert not any(one.name.startswith("R2") for one in deep.headline)
    scaled = deep.overall.dropna(subset="scaled")
    assert scaled.loc[scaled["method"] == MEAN_SHIFT, "scaled"].to_numpy() == pytest.approx(0.0, abs=1e-9)
    assert scaled.loc[scaled["method"] == CEILING, "scaled"].to_numpy() == pytest.approx(1.0)


def test_each_cell_type_has_its_own_means():
    both = make_cells([(tau, kind, 20) for kind in "TB" for tau in ("control", "a", "b")], 4)
    found = evaluate({"model": both}, both, training=None, seed=0)
    contexts = found.contexts.set_index(["suite", "method", "cell_type", "metric"])
    assert list(dict.fromkeys(found.contexts["cell_type"])) == ["B", "T"]
    table = found.table
    own = table[(table["cell_type"] == "T") & (table["metric"] == "mmd") & (table["method"] == "control")]["value"]
    assert contexts.loc[("ours", "control", "T", "mmd"), "value"] == pytest.approx(own.mean())
    assert contexts.loc[("ours", "control", "T", "mmd"), "conditions"] == 2


def test_values_on_another_scale_than_declared_are_refused_or_warned_of():
    counts = replace(OBSERVED, values=np.asarray(OBSERVED.values) * 30)
    with pytest.raises(ValueError, match=r"the cells of 'observed' sum to .* counts over the judged genes"):
        evaluate({"model": PREDICTED}, counts, training=None, seed=0)
    with pytest.raises(ValueError, match=r"the cells of 'model' sum to .* declare the scale"):
        evaluate(
            {"model": replace(PREDICTED, values=np.asarray(PREDICTED.values) * 30)}, OBSERVED, training=None, seed=0
        )
    twice = replace(PREDICTED, values=np.log1p(np.asarray(PREDICTED.values)))
    found = evaluate({"model": twice}, OBSERVED, training=None, seed=0)
    assert any(caution.kind == "scale" and "'model'" in caution.text for caution in found.warnings)


def test_a_baseline_or_a_suite_that_there_is_not_is_refused_by_name():
    with pytest.raises(ValueError, match=r"there is no baseline 'rigde'; .*'ridge'"):
        evaluate({"m": PREDICTED}, OBSERVED, training=TRAINING, seed=0, depth=Depth(baselines=("rigde",)))
    with pytest.raises(ValueError, match="there is no suite 'papers'"):
        evaluate({"m": PREDICTED}, OBSERVED, training=TRAINING, seed=0, depth=Depth(suites=("papers",)))


def test_a_suite_whose_context_is_too_large_is_left_out_and_computed_where_it_is_asked_for(monkeypatch):
    monkeypatch.setattr("perturbdiff.evaluation.contexts.VALUES", 100)
    found = evaluate({"m": PREDICTED}, OBSERVED, training=None, seed=0, depth=Depth(suites=("ours", "paper")))
    assert set(found.scores["suite"]) == {"ours"}
    assert any("the suite 'paper' is left out: cell type 'B'" in note for note in found.notes)
    forced = Depth(suites=("ours", "paper"), forced=("paper",))
    asked = evaluate({"m": PREDICTED}, OBSERVED, training=None, seed=0, depth=forced)
    assert set(asked.scores["suite"]) == {"ours", "paper"}
