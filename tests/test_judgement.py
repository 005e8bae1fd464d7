"""Files are judged as they declare themselves, with the training cells of the run that made them."""

import json

import numpy as np
import pytest

from perturbdiff.comparison import MEAN_SHIFT
from perturbdiff.data.export import write_h5ad
from perturbdiff.data.reading import read_h5ad
from perturbdiff.data.recipe import Columns, Expression, write_recipe
from perturbdiff.judgement import Origin, compare_files
from perturbdiff.model import PerturbDiff


@pytest.fixture(scope="module")
def predicted(screen, adata, tmp_path_factory):
    path = tmp_path_factory.mktemp("predicted") / "predicted.h5ad"
    model = PerturbDiff.load(screen.run)
    write_h5ad(model.predict(adata, perturbation="stimulus_1", cell_type="type_3", device="cpu"), path)
    return path


def test_a_run_brings_exactly_its_training_cells(screen):
    source = Origin.of_run(screen.run)
    cells, model = source.training_cells(), PerturbDiff.from_recipe(screen.recipe)
    assert sorted(cells.names) == sorted(model.source.names[model.split().rows("train")])
    assert cells.is_control.sum() == 72
    from_recipe = Origin.of_recipe(screen.recipe).training_cells()
    assert list(from_recipe.names) == list(cells.names)


def test_a_run_of_data_in_memory_cannot_bring_them(make_model, tmp_path):
    make_model().train(run=tmp_path, device="cpu", show_progress=False)
    with pytest.raises(ValueError, match="trained on data in memory, so its training cells cannot be read again"):
        Origin.of_run(tmp_path).training_cells()


def test_data_that_changed_since_the_training_are_refused(screen, adata, tmp_path, make_recipe):
    fewer = adata[:-1].copy()
    fewer.write_h5ad(tmp_path / "screen.h5ad")
    source = Origin.of_run(screen.run)
    moved = Origin(source.recipe, tmp_path, source.seed, source.split_hash)
    with pytest.raises(ValueError, match="give another split than the run was trained with, so they have changed"):
        moved.training_cells()


def test_with_a_run_every_method_is_judged(screen, predicted):
    found = compare_files({"model": predicted}, screen.data, source=Origin.of_run(screen.run))
    summary = found.summary()
    assert list(summary.index) == ["model", "control", MEAN_SHIFT, "ceiling"]
    assert np.isfinite(summary["energy_distance"]).all()
    again = compare_files({"model": predicted}, screen.data, source=Origin.of_recipe(screen.recipe))
    assert again.table.equals(found.table)


def test_without_a_source_the_columns_are_named_and_the_mean_shift_is_missing(screen, predicted):
    found = compare_files(
        {"model": predicted},
        screen.data,
        columns=Columns(perturbation="perturbation", cell_type="cell_type"),
        expression=Expression(scale="counts"),
        control="control",
    )
    assert np.isnan(found.summary().loc[MEAN_SHIFT]).all()
    with pytest.raises(ValueError, match=r"'screen.h5ad' does not declare its columns"):
        compare_files({"model": predicted}, screen.data)


def test_a_panel_with_total_counts_can_be_judged(adata, tmp_path, make_recipe):
    with_totals = adata.copy()
    with_totals.obs["total"] = np.asarray(adata.X.sum(axis=1)).ravel() * 1.2
    with_totals.write_h5ad(tmp_path / "screen.h5ad")
    columns = {name: name for name in ("perturbation", "cell_type", "assay_batch")} | {"total_counts": "total"}
    write_recipe(make_recipe(columns=columns), tmp_path / "recipe.toml")
    model = PerturbDiff.from_recipe(tmp_path / "recipe.toml")
    model.train(run=tmp_path / "run", device="cpu", show_progress=False)
    controls = read_h5ad(tmp_path / "screen.h5ad")
    found = model.predict(controls, perturbation="stimulus_1", cell_type="type_3", device="cpu")
    write_h5ad(found, tmp_path / "predicted.h5ad")
    judged = compare_files(
        {"model": tmp_path / "predicted.h5ad"}, tmp_path / "screen.h5ad", source=Origin.of_run(tmp_path / "run")
    )
    assert np.isfinite(judged.summary()["energy_distance"]).all()


def test_the_control_cells_against_themselves_change_nothing(screen, predicted, tmp_path):
    found = compare_files({"model": predicted}, screen.data, source=Origin.of_run(screen.run))
    found.save(tmp_path)
    content = json.loads((tmp_path / "metrics.json").read_text())
    shares = {row["method"]: row["value"] for row in content["overall"] if row["metric"] == "spread_ratio"}
    assert shares["control"] == pytest.approx(1.0, abs=0.5)
