"""A small training on real cells: what is learned of some cell types holds for types never seen perturbed."""

from pathlib import Path

import numpy as np
import pytest

from perturbdiff import PerturbDiff, evaluate, read_recipe
from perturbdiff.cells.anndata import cells_from_anndata
from perturbdiff.prediction.conditions import held_out_conditions
from perturbdiff.recipes.dataset import Columns, Expression

RECIPE = Path(__file__).parents[1] / "benchmarks" / "kang.toml"

pytestmark = [pytest.mark.real, pytest.mark.slow]


def test_a_short_training_on_real_cells_is_ahead_of_no_change_and_of_the_mean_shift(real_data):
    recipe = read_recipe(RECIPE)
    short = recipe.model_copy(update={"training": recipe.training | {"max_steps": 150}})
    model = PerturbDiff.from_recipe(short, folder=real_data)
    model.train(seed=0, device="cpu", show_progress=False)
    held_out = held_out_conditions(model.trained)
    predicted = model.predict_cells(model.source, held_out, seed=0, device="cpu")
    columns = Columns(perturbation="perturbation", cell_type="cell_type", assay_batch="batch")
    judged = cells_from_anndata(
        predicted, columns=columns, expression=Expression(scale="log1p"), control="control", observed=False
    )
    training = model.source.take(model.split().rows("train"))
    overall = evaluate({"model": judged}, model.source, training=training, seed=0, halvings=1).summary()
    energy = overall["energy_distance"]
    assert np.isfinite(energy).all()
    assert energy["model"] < 0.5 * energy["control"]
    assert energy["model"] < energy["control + mean shift"]
    assert overall["pearson_of_change"]["model"] > 0.8
