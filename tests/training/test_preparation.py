"""Training and validation see the cells of their parts, and nothing of the test part reaches the model."""

import re

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from perturbdiff.features.tables import features_from
from perturbdiff.training.preparation import drawable, prepare


def prepared_of(model, **changes):
    split = model.split(**changes)
    return prepare(split, model.recipe, model.recipe.settings), split


def drawn(cells, populations, epochs=2):
    plans = [draw for epoch in range(epochs) for draw in populations.plan(epoch)]
    rows = np.concatenate([draw.rows for draw in plans])
    return cells.order[rows], cells.order[np.concatenate([draw.control_rows for draw in plans])]


def test_training_draws_every_training_cell_and_no_other(make_model):
    model = make_model()
    prepared, split = prepared_of(model)
    rows, controls = drawn(model.source, prepared.training)
    training = set(split.rows("train").tolist())
    perturbed = {row for row in training if not model.source.is_control[row]}
    assert perturbed <= set(rows.tolist()) <= training
    assert set(controls.tolist()) <= training
    assert model.source.is_control[controls].all()


@pytest.mark.parametrize("hold_out_controls", [False, True])
def test_validation_draws_perturbed_held_out_cells_only_beside_training_controls(make_model, hold_out_controls):
    validation = {"part": "validation", "cell_type": ["type_3"], "assay_batch": ["donor_1"]}
    model = make_model(hold_out=[validation | {"hold_out_controls": hold_out_controls}])
    prepared, split = prepared_of(model)
    rows, controls = drawn(model.source, prepared.validation)
    held_out = split.rows("validation")
    assert model.source.is_control[held_out].any() == hold_out_controls
    assert set(rows.tolist()) == set(held_out[~model.source.is_control[held_out]].tolist())
    assert set(controls.tolist()) <= set(split.rows("train").tolist())
    assert model.source.is_control[controls].all()


def test_panel_scale_and_vocabularies_come_from_training_cells_alone(make_model, adata):
    rule = [{"part": "test", "perturbation": ["stimulus_1"]}, {"part": "validation", "perturbation": ["stimulus_2"]}]
    rule += [{"part": "test", "perturbation": ["stimulus_3"], "cell_type": ["type_3"]}]
    plain, changed = make_model(hold_out=rule, n_genes=20), adata.copy()
    held_out = (adata.obs["perturbation"] == "stimulus_1").to_numpy()
    counts = changed.X.toarray()
    counts[held_out] = counts[held_out][:, ::-1]
    changed.X = csr_matrix(counts)
    prepared, split = prepared_of(plain)
    again, _ = prepared_of(make_model(of=changed, hold_out=rule, n_genes=20))
    assert again.genes == prepared.genes
    assert again.scale == prepared.scale
    assert prepared.conditions.trained["perturbation"].labels == ("control", "stimulus_3")
    training = plain.source.log_expression(prepared.genes, split.rows("train"))
    assert prepared.scale == pytest.approx(training.toarray().std(), rel=1e-5)


def test_validation_cells_of_labels_that_training_lacks_are_left_out_and_counted(make_model):
    rules = [{"part": "validation", "perturbation": ["stimulus_2"]}]
    prepared, _ = prepared_of(make_model(hold_out=rules))
    assert prepared.validation is None
    assert any("48 of 48 validation cells have a label that no training cell" in note for note in prepared.notes)


def test_a_given_panel_keeps_its_order_and_a_given_scale_its_value(make_model):
    prepared, _ = prepared_of(make_model(genes=["gene_0007", "gene_0003"], model={"scale": 10.0}))
    assert prepared.genes == ("gene_0007", "gene_0003")
    assert prepared.scale == 10.0


def logged(adata, *, deep):
    """Log1p counts per 10^4, of cells that have a gene of one count or of cells that have none."""
    cells = adata.copy()
    counts = cells.X.toarray()
    counts = counts + 5 if deep else np.minimum(counts, 40)
    counts[:, 0] = 6 if deep else 1
    cells.X = csr_matrix(np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True)))
    return cells


def test_cells_whose_counts_are_not_known_are_not_drawn_as_counts_and_that_is_said(make_model, adata, said):
    model = make_model(of=logged(adata, deep=True), expression={"scale": "log1p"})
    settings = drawable(model.split(), model.recipe.settings)
    assert (model.recipe.settings.model.target, settings.model.target) == ("counts", "residual")
    assert settings == model.recipe.settings.without_counts()
    n_controls = int(model.source.is_control[model.split().rows("train")].sum())
    assert said == [
        f"{n_controls} control cells hold log1p values that do not tell their counts (the smallest value of each cell "
        "would be one count), so predicted cells are not drawn as counts; give the counts if there are any."
    ]


def test_cells_whose_counts_are_known_or_found_are_drawn_as_counts_and_nothing_is_said(make_model, adata, said):
    for model in (make_model(), make_model(of=logged(adata, deep=False), expression={"scale": "log1p"})):
        assert drawable(model.split(), model.recipe.settings) == model.recipe.settings
    assert said == []


def test_a_model_of_another_target_has_no_need_of_counts(make_model, adata, said):
    for target in ("residual", "cell"):
        changes = {"model": {"target": target}, "expression": {"scale": "log1p"}}
        model = make_model(of=logged(adata, deep=True), **changes)
        assert drawable(model.split(), model.recipe.settings) == model.recipe.settings
    assert said == []


def test_what_cannot_be_drawn_as_counts_trains_as_log1p_values_and_keeps_that_in_the_model(make_model, adata):
    made = make_model(of=logged(adata, deep=True), expression={"scale": "log1p"})
    assert made.train(device="cpu", show_progress=False).trained.settings.model.target == "residual"


def test_a_test_part_of_which_the_model_can_be_asked_nothing_is_refused_before_training(make_model, tmp_path):
    unseen = [{"part": "test", "perturbation": ["stimulus_1"]}]
    with pytest.raises(ValueError, match=r"^1 of the 1 perturbations held out for test cannot be asked .*keep_cells"):
        make_model().train(hold_out=unseen, run=tmp_path / "run", device="cpu", show_progress=False)
    assert not (tmp_path / "run").exists()


def test_held_out_perturbations_that_the_model_cannot_be_asked_are_said_before_training(make_model):
    partly = [{"part": "test", "perturbation": ["stimulus_1"]}]
    partly += [{"part": "test", "perturbation": ["stimulus_2"], "cell_type": ["type_3"]}]
    # features may be handed in later, so nothing is refused
    table = features_from(["stimulus_2", "stimulus_3"], np.eye(2), "the test")
    for rules, features, expected in (
        (partly, {}, r"1 of the 2 perturbations held out for test .*\('stimulus_1'\).*encoders\.perturbation"),
        (partly[:1], {"perturbation": table}, "1 of the 1 perturbations held out for test .*predict --features"),
    ):
        model = make_model(hold_out=rules, encoders={"perturbation": {"kind": "table"}} if features else {})
        found = prepare(model.split(), model.recipe, model.recipe.settings, features=features)
        assert any(re.match(expected, note) for note in found.notes)
    prepared, _ = prepared_of(make_model())
    assert not any("cannot be asked" in note for note in prepared.notes)
