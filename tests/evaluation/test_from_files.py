"""Files are judged as they declare themselves, with the training cells of the run that made them."""

import json

import numpy as np
import pytest

from perturbdiff.cells.on_disk import Disk
from perturbdiff.evaluation.audit import LEAK
from perturbdiff.evaluation.cache import Cache
from perturbdiff.evaluation.from_files import evaluate_files
from perturbdiff.files.container import read_anndata
from perturbdiff.io import write_h5ad
from perturbdiff.model import PerturbDiff
from perturbdiff.recipes.dataset import Columns, Expression, Grammar, write_recipe
from perturbdiff.recipes.selection import hold_outs_from
from perturbdiff.results.evaluation import MEAN_SHIFT
from perturbdiff.split.audit import find_leaks
from perturbdiff.training_data import TrainingData


@pytest.fixture(scope="module")
def predicted(screen, adata, tmp_path_factory):
    path = tmp_path_factory.mktemp("predicted") / "predicted.h5ad"
    model = PerturbDiff.load(screen.run)
    write_h5ad(model.predict(adata, perturbation="stimulus_1", cell_type="type_3", device="cpu"), path)
    return path


def test_a_run_brings_exactly_its_training_cells(screen):
    source = TrainingData.of_run(screen.run)
    cells, model = source.training_cells(), PerturbDiff.from_recipe(screen.recipe)
    assert sorted(cells.names) == sorted(model.source.names[model.split().rows("train")])
    assert cells.is_control.sum() == 72
    from_recipe = TrainingData.of_recipe(screen.recipe).training_cells()
    assert list(from_recipe.names) == list(cells.names)


def test_a_run_that_keeps_populations_brings_the_same_cells_again(changed, tmp_path):
    keeping = {"part": "test", "perturbation": ["stimulus_1"], "cell_type": ["type_3"], "keep_populations": 1}
    recipe = changed(lambda adata: adata, hold_out=hold_outs_from([keeping]))
    model = PerturbDiff.from_recipe(recipe)
    model.train(run=tmp_path / "run", device="cpu", show_progress=False)
    split = model.split()
    kept = split.groups("train")["cells"].sum() + split.groups("validation")["cells"].sum()
    assert split.groups("test")["cells"].sum() == 16 - 2 * 6
    assert kept + 4 == 144
    for source in (TrainingData.of_run(tmp_path / "run"), TrainingData.of_recipe(recipe)):
        assert sorted(source.training_cells().names) == sorted(model.source.names[split.rows("train")])
        assert find_leaks(source.split) == []


def test_a_run_of_data_in_memory_cannot_bring_them(make_model, tmp_path):
    make_model().train(run=tmp_path, device="cpu", show_progress=False)
    with pytest.raises(ValueError, match="trained on data in memory, so its training cells cannot be read again"):
        TrainingData.of_run(tmp_path).training_cells()


def test_data_that_changed_since_the_training_are_refused(screen, adata, tmp_path, make_recipe):
    fewer = adata[:-1].copy()
    fewer.write_h5ad(tmp_path / "screen.h5ad")
    source = TrainingData.of_run(screen.run)
    moved = TrainingData(source.recipe, tmp_path, source.seed, source.split_hash)
    with pytest.raises(ValueError, match="give another split than the run was trained with, so they have changed"):
        moved.training_cells()


def test_with_a_run_every_method_is_judged(screen, predicted):
    found = evaluate_files({"model": predicted}, screen.data, source=TrainingData.of_run(screen.run))
    summary = found.summary()
    assert list(summary.index) == ["model", "control", MEAN_SHIFT, "ceiling"]
    assert np.isfinite(summary["energy_distance"]).all()
    again = evaluate_files({"model": predicted}, screen.data, source=TrainingData.of_recipe(screen.recipe))
    assert again.table.equals(found.table)


def test_without_a_source_the_columns_are_named_and_the_mean_shift_is_missing(screen, predicted):
    found = evaluate_files(
        {"model": predicted},
        screen.data,
        columns=Columns(perturbation="perturbation", cell_type="cell_type"),
        expression=Expression(scale="counts"),
        control="control",
    )
    assert np.isnan(found.summary().loc[MEAN_SHIFT]).all()
    with pytest.raises(ValueError, match=r"'screen.h5ad' does not declare its columns"):
        evaluate_files({"model": predicted}, screen.data)


def test_a_panel_with_total_counts_can_be_judged(adata, tmp_path, make_recipe):
    with_totals = adata.copy()
    with_totals.obs["total"] = np.asarray(adata.X.sum(axis=1)).ravel() * 1.2
    with_totals.write_h5ad(tmp_path / "screen.h5ad")
    columns = {name: name for name in ("perturbation", "cell_type", "assay_batch")} | {"total_counts": "total"}
    write_recipe(make_recipe(columns=columns), tmp_path / "recipe.toml")
    model = PerturbDiff.from_recipe(tmp_path / "recipe.toml")
    model.train(run=tmp_path / "run", device="cpu", show_progress=False)
    controls = read_anndata(tmp_path / "screen.h5ad")
    found = model.predict(controls, perturbation="stimulus_1", cell_type="type_3", device="cpu")
    write_h5ad(found, tmp_path / "predicted.h5ad")
    judged = evaluate_files(
        {"model": tmp_path / "predicted.h5ad"}, tmp_path / "screen.h5ad", source=TrainingData.of_run(tmp_path / "run")
    )
    assert np.isfinite(judged.summary()["energy_distance"]).all()


def test_the_control_cells_against_themselves_change_nothing(screen, predicted, tmp_path):
    found = evaluate_files({"model": predicted}, screen.data, source=TrainingData.of_run(screen.run))
    found.save(tmp_path)
    content = json.loads((tmp_path / "metrics.json").read_text())
    shares = {row["method"]: row["value"] for row in content["overall"] if row["metric"] == "spread_ratio"}
    assert shares["control"] == pytest.approx(1.0, abs=0.5)


NAMED = {
    "columns": Columns(perturbation="perturbation", cell_type="cell_type"),
    "expression": Expression(scale="counts"),
    "control": "control",
}


def test_files_on_disk_give_the_numbers_of_files_in_memory_and_are_read_a_condition_at_a_time(
    screen, predicted, monkeypatch
):
    held = evaluate_files({"model": predicted}, screen.data, **NAMED)
    read = []
    original = Disk.log_expression
    monkeypatch.setattr(
        Disk, "log_expression", lambda self, genes, rows=None: read.append(len(rows)) or original(self, genes, rows)
    )
    stored = evaluate_files({"model": predicted}, screen.data, **NAMED, in_memory=0)
    assert read
    assert max(read) <= 24  # the control cells of a type
    assert stored.table["value"].to_numpy() == pytest.approx(held.table["value"].to_numpy(), nan_ok=True, rel=1e-6)


def test_the_observed_tests_are_kept_and_found_again_for_another_prediction(screen, predicted, tmp_path, monkeypatch):
    first = evaluate_files({"model": predicted}, screen.data, **NAMED, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1
    monkeypatch.setattr(Cache, "save", lambda *_: pytest.fail("made again"))
    again = evaluate_files({"model": predicted}, screen.data, **NAMED, cache=tmp_path / "cache")
    assert again.table.equals(first.table)
    other = evaluate_files({"other name": predicted}, screen.data, **NAMED, cache=tmp_path / "cache")
    assert other.table["value"].equals(first.table["value"])
    without = evaluate_files({"model": predicted}, screen.data, **NAMED)
    assert without.table.equals(first.table)


def test_a_run_brings_its_history_and_settings_and_an_audit_without_a_leak(screen, predicted):
    found = evaluate_files({"model": predicted}, screen.data, source=TrainingData.of_run(screen.run))
    assert found.audit is not None
    assert found.audit["judged"] == found.audit["held_out"] == 1
    assert found.audit["leaks"] == found.audit["in_training"] == []
    assert not [caution for caution in found.warnings if caution.kind == LEAK]
    assert found.run is not None
    assert [row["step"] for row in found.run["history"]] == sorted(row["step"] for row in found.run["history"])
    assert any("validation_energy" in row for row in found.run["history"])
    assert found.run["settings"]["training"]["max_steps"] == 4
    assert found.settings["observed file"] == "screen.h5ad, counts"
    assert found.settings["predicted file 'model'"] == "predicted.h5ad, log1p"
    assert found.settings["training cells"].endswith(" of screen")


def test_a_judged_condition_that_was_trained_on_is_the_first_warning(screen, adata, tmp_path):
    path = tmp_path / "trained.h5ad"
    model = PerturbDiff.load(screen.run)
    write_h5ad(model.predict(adata, perturbation="stimulus_2", cell_type="type_1", device="cpu"), path)
    with pytest.raises(ValueError, match=r"all observed cells .* trained, so nothing is left to judge by"):
        evaluate_files({"model": path}, screen.data, source=TrainingData.of_run(screen.run))
    found = evaluate_files(
        {"model": path}, screen.data, source=TrainingData.of_run(screen.run), with_training_cells=True
    )
    assert found.warnings[0].kind == LEAK
    assert found.warnings[0].text.startswith("1 of the 1 judged conditions were in training, such as 'stimulus_2 in")
    assert found.audit["in_training"] == [{"perturbation": "stimulus_2", "cell_type": "type_1", "assay_batch": ""}]
    validation = tmp_path / "validation.h5ad"
    write_h5ad(model.predict(adata, perturbation="stimulus_2", cell_type="type_3", device="cpu"), validation)
    found = evaluate_files({"model": validation}, screen.data, source=TrainingData.of_run(screen.run))
    assert "are of the validation part" in found.warnings[0].text


def test_a_prediction_of_another_split_is_warned_of(screen, predicted, tmp_path):
    adata = read_anndata(predicted)
    adata.uns["perturbdiff"]["split_hash"] = "another"
    write_h5ad(adata, tmp_path / "p.h5ad")
    found = evaluate_files({"model": tmp_path / "p.h5ad"}, screen.data, source=TrainingData.of_run(screen.run))
    assert "'model' was predicted by a model of another split" in found.warnings[0].text


def _only(adata, perturbed):
    return adata[(adata.obs["perturbation"].astype(str) != "control").to_numpy() == perturbed].copy()


def _one_cell(adata):
    rows = np.flatnonzero(adata.obs["perturbation"].astype(str) != "control")
    return adata[np.setdiff1d(np.arange(adata.n_obs), rows[1:])].copy()


def _with_value(adata, value):
    copy = adata.copy()
    dense = copy.X.toarray() if hasattr(copy.X, "toarray") else np.array(copy.X)
    dense[:, 0] = value
    copy.X = dense
    return copy


def _renamed(adata, column, label):
    copy = adata.copy()
    old = copy.obs[column].astype(str)
    copy.obs[column] = old.where(old == "control", label) if column == "perturbation" else label
    return copy


def _other_genes(adata):
    copy = adata.copy()
    copy.var_names = [f"ENSG{i}" for i in range(copy.n_vars)]
    return copy


BAD = {
    "other genes": (_other_genes, None, "share no gene name"),
    "another condition": (
        lambda adata: _renamed(adata, "perturbation", "stimulus_9"),
        None,
        "the observed file has no cells of 'stimulus_9 in type_3'; the nearest is 'stimulus_",
    ),
    "another cell type": (
        lambda adata: _renamed(adata, "cell_type", "type_9"),
        None,
        "the observed file has no cells of 'stimulus_1 in type_9'",
    ),
    "one cell": (_one_cell, None, "'stimulus_1 in type_3' has one cell in 'p'"),
    "no controls": (
        lambda adata: _only(adata, perturbed=True),
        lambda adata: _only(adata, perturbed=True),
        "the observed file holds no control cells",
    ),
    "only controls": (lambda adata: _only(adata, perturbed=False), None, "'p' holds no predicted cells"),
    "NaN predicted": (lambda adata: _with_value(adata, np.nan), None, "'p.h5ad' holds the value nan"),
    "NaN observed": (None, lambda adata: _with_value(adata, np.nan), "'o.h5ad' holds the value nan"),
    "negative": (lambda adata: _with_value(adata, -2.0), None, "'p.h5ad' .*-2|negative"),
    "counts predicted": (lambda adata: _with_value(adata, 40.0), None, "sum to .*declare the scale|'p.h5ad' .*log1p"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("on_disk", [False, True])
def test_bad_input_is_refused_in_one_clear_sentence(screen, predicted, tmp_path, name, on_disk):
    of_predicted, of_observed, sentence = BAD[name]
    for path, source, change in (
        (tmp_path / "p.h5ad", predicted, of_predicted),
        (tmp_path / "o.h5ad", screen.data, of_observed),
    ):
        adata = read_anndata(source)
        write_h5ad(adata if change is None else change(adata), path)
    with pytest.raises(ValueError, match=sentence) as error:
        evaluate_files(
            {"p": tmp_path / "p.h5ad"}, tmp_path / "o.h5ad", **NAMED, **({"in_memory": 0} if on_disk else {})
        )
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(".")


def test_observed_counts_that_are_declared_as_logarithms_are_refused(screen, predicted):
    with pytest.raises(ValueError, match=r"sum to .*declare the scale|log1p"):
        evaluate_files({"p": predicted}, screen.data, **(NAMED | {"expression": Expression(scale="log1p")}))


def test_the_command_says_what_it_judges_writes_everything_and_names_what_is_missing(cli, screen, predicted, tmp_path):
    named = ["--perturbation", "perturbation", "--control", "control", "--cell-type", "cell_type", "--scale", "counts"]
    out = tmp_path / "e"
    ended = cli("evaluate", predicted, screen.data, *named, "--out", out, "--suites", "ours", "--jobs", 2)
    assert ended.status == 0, ended.err
    assert "suites of metrics: ours; not paper and vcc2026, which --suites would add." in ended.err
    assert "'nearest cell type', 'similar contexts' are missing: they need the training cells" in ended.err
    assert "warning: only 1 perturbation is judged" in ended.err
    tables = {"metrics.csv", "overall.csv", "contexts.csv", "metrics.json", "genes.parquet", "cells.parquet"}
    assert tables | {"figure.png"} <= {path.name for path in out.iterdir()}
    line = ["evaluate", predicted, screen.data, *named, "--quiet", "--out", tmp_path / "f"]
    assert cli(*line, "--suites", "papers").refused("there is no suite 'papers'; choose of ours, paper, vcc2026")
    assert cli(*line, "--baselines", "rigde").refused("there is no baseline 'rigde'; .*'ridge'")


def test_a_leak_is_said_however_quiet(cli, screen, adata, tmp_path):
    path = tmp_path / "trained.h5ad"
    model = PerturbDiff.load(screen.run)
    write_h5ad(model.predict(adata, perturbation="stimulus_2", cell_type="type_1", device="cpu"), path)
    line = ["evaluate", path, screen.data, "--run", screen.run, "--out", tmp_path / "e", "--suites", "ours"]
    line.append("--with-training-cells")
    assert cli(*line, "--quiet").err.startswith("LEAK: 1 of the 1 judged conditions were in training")


def test_labels_of_other_programs_that_mean_the_same_perturbation_are_judged_as_one(screen, tmp_path):
    observed, predicted = read_anndata(screen.data), read_anndata(screen.data)
    there = {"stimulus_1": "A+B", "stimulus_2": "C", "stimulus_3": "ctrl+ctrl"}
    other = {"stimulus_1": "B+A", "stimulus_2": "ctrl+C", "stimulus_3": "control"}
    for adata, names in ((observed, there), (predicted, other)):
        labels = adata.obs["perturbation"].astype(str)
        adata.obs["perturbation"] = labels.map(lambda label, names=names: names.get(label, label))
    grammar = Grammar(separator="+", nothing=("ctrl",))
    predicted.uns["perturbdiff"] = {"grammar": grammar.model_dump_json()}
    write_h5ad(observed, tmp_path / "observed.h5ad")
    write_h5ad(predicted, tmp_path / "p.h5ad")
    counts = Expression(scale="counts")
    found = evaluate_files({"p": tmp_path / "p.h5ad"}, tmp_path / "observed.h5ad", predicted_expression=counts, **NAMED)
    assert {one.perturbation for one in found.conditions} == {"A+B", "C"}
    asked = json.dumps([{"perturbation": "B+A", "cell_type": "type_1", "assay_batch": ""}])
    predicted.uns["perturbdiff"]["conditions"] = asked
    write_h5ad(predicted, tmp_path / "p.h5ad")
    with_batches = NAMED | {"columns": NAMED["columns"].model_copy(update={"assay_batch": "assay_batch"})}
    apart = evaluate_files(
        {"p": tmp_path / "p.h5ad"}, tmp_path / "observed.h5ad", predicted_expression=counts, **with_batches
    ).conditions
    assert {one.assay_batch for one in apart if one.pair == ("A+B", "type_1")} == {""}
    assert all(one.assay_batch for one in apart if one.pair != ("A+B", "type_1"))
    for said in ("'ctrl+ctrl' (48 cells) as 'control'", "mean the same as others and are read as these"):
        assert sum(said in note for note in found.notes) == 1
