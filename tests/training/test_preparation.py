"""Training and validation see the cells of their parts, and nothing of the test part reaches the model."""

import re

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from perturbdiff.features.tables import features_from
from perturbdiff.training.preparation import mean_shifts, prepare


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


def test_mean_shifts_are_zero_for_the_null_and_the_control_and_point_to_the_response(make_model):
    prepared, _split = prepared_of(make_model())
    shifts = mean_shifts(prepared)
    known = prepared.conditions.trained["perturbation"]
    assert shifts.shape == (len(known) + 1, len(prepared.genes))
    assert not shifts[0].any()
    assert not shifts[known.index("control")].any()
    assert all(np.abs(shifts[known.index(label)]).max() > 0.1 for label in known.labels if label != "control")


def test_a_mean_shift_is_the_mean_change_of_the_perturbations_training_groups(make_model):
    model = make_model(hold_out=[{"part": "test", "perturbation": ["stimulus_1"], "cell_type": ["type_3"]}])
    prepared, split = prepared_of(model)
    label = "stimulus_2"
    rows = np.intersect1d(split.rows("train"), np.flatnonzero(model.source.labels["perturbation"] == label))
    perturbed = model.source.log_expression(prepared.genes, rows).toarray().mean(axis=0)
    index = prepared.conditions.trained["perturbation"].index(label)
    labels, train = model.source.labels, split.rows("train")
    control = 0
    for context, cells in labels.iloc[rows].groupby(["cell_type", "assay_batch"], observed=True):
        like = (labels["cell_type"] == context[0]) & (labels["assay_batch"] == context[1])
        beside = np.intersect1d(train, np.flatnonzero(like & model.source.is_control))
        mean = model.source.log_expression(prepared.genes, beside).toarray().mean(axis=0)
        control = control + mean * len(cells) / len(rows)
    found = mean_shifts(prepared)[index]
    np.testing.assert_allclose(found * prepared.scale, perturbed - control, atol=1e-5)


def _kept(prepared):
    """The share of each label's mean shift that is kept."""
    known = prepared.conditions.trained["perturbation"]
    mean, shrunk = (np.linalg.norm(mean_shifts(prepared, shrink=shrink), axis=1) for shrink in (False, True))
    return {
        label: shrunk[known.index(label)] / mean[known.index(label)] for label in known.labels if label != "control"
    }


def test_a_shift_is_shrunk_by_its_variance_as_a_mean_of_so_many_cells(make_model):
    model = make_model()
    prepared, split = prepared_of(model)
    labels = model.source.labels.iloc[split.rows("train")].reset_index(drop=True)
    cells = model.source.log_expression(prepared.genes, split.rows("train")).toarray() / prepared.scale
    known, shifts = prepared.conditions.trained["perturbation"], mean_shifts(prepared)
    groups = labels.groupby(["perturbation", "cell_type", "assay_batch"], observed=True).indices
    spread = np.mean([cells[rows].var(axis=0, ddof=1).sum() for rows in groups.values()])
    for label, kept in _kept(prepared).items():
        own = {key[1:]: len(rows) for key, rows in groups.items() if key[0] == label}
        n = sum(own.values())
        beside = sum((size / n) ** 2 / len(groups["control", *context]) for context, size in own.items())
        variance = spread * (1 / n + beside)
        assert kept == pytest.approx(1 - variance / np.square(shifts[known.index(label)]).sum(), abs=0.05)


def test_the_shift_of_a_perturbation_that_does_nothing_is_shrunk_to_little_and_others_stay(make_model, adata):
    changed = adata.copy()
    label = changed.obs["perturbation"].astype(str).to_numpy()
    controls = np.flatnonzero(label == "control")
    label[controls[::4]] = "placebo"
    changed.obs["perturbation"] = label
    prepared, _ = prepared_of(make_model(of=changed))
    kept = _kept(prepared)
    assert kept.pop("placebo") < 0.4
    assert min(kept.values()) > 0.6


def test_shrinking_never_turns_a_shift_round_and_leaves_null_and_control_at_zero(make_model):
    prepared, _ = prepared_of(make_model(training={"control_share": 0.2}))
    mean, shrunk = (mean_shifts(prepared, shrink=shrink) for shrink in (False, True))
    share = np.divide(shrunk, mean, out=np.zeros_like(mean), where=mean != 0)
    assert (share >= 0).all()
    assert (share <= 1).all()
    assert not shrunk[0].any()
    assert not shrunk[prepared.conditions.trained["perturbation"].index("control")].any()


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
