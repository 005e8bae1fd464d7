"""What is logged is what was computed; the validation is an unbiased energy distance of held-out populations."""

import csv

import numpy as np
import pytest
import torch

from perturbdiff.building import build_objective
from perturbdiff.core.kernel import energy_distance
from perturbdiff.core.observation import Estimate
from perturbdiff.core.population import PopulationBatch
from perturbdiff.simulation.screen import simulate
from perturbdiff.training import fitting
from perturbdiff.training.module import DenoiserModule
from perturbdiff.training.streams import FixedPopulations, PopulationStream


@pytest.fixture
def parts(make_model, begins_with):
    """A module whose logs are caught, what its training begins with, and the caught logs."""

    def make(**changes):
        state = begins_with(make_model(**changes))
        module, logged = DenoiserModule(state.denoiser, state.spec.settings, scale=state.spec.scale), {}
        module.log = lambda name, value, **_: logged.__setitem__(name, float(value))
        return module, state, logged

    return make


def first_batch(state) -> PopulationBatch:
    return next(iter(PopulationStream(state.training, per_batch=4)))


def test_the_logged_mse_is_the_mse_and_the_loss_the_weighted_sum(parts):
    module, state, logged = parts(training={"mmd_weight": 2.0, "mse_weight": 0.5})
    batch = first_batch(state)
    module.training_step(batch, 0)
    draw = module.objective.draw(batch, seed=0, step=0)
    seen = []
    module.denoiser.register_forward_hook(lambda _module, _inputs, output: seen.append(output.detach()))
    with torch.no_grad():
        module.objective(module.denoiser, batch, draw)
    squares = (batch.perturbed - seen[-1]).square().mean(dim=-1)
    kept = torch.ones_like(squares) if batch.mask is None else batch.mask.float()
    mse = float(((squares * kept).sum(1) / kept.sum(1)).mean())
    assert logged["mse"] == pytest.approx(mse, rel=1e-5)
    assert logged["loss"] == pytest.approx(2.0 * logged["mmd"] + 0.5 * logged["mse"], rel=1e-5)
    assert logged["mmd"] > 0.01
    assert logged["mse"] > 0.01


def test_the_noise_of_a_step_is_a_function_of_seed_step_and_population(parts):
    module, state, _ = parts()
    batch = first_batch(state)
    draw = module.objective.draw
    torch.testing.assert_close(draw(batch, seed=0, step=3).eps, draw(batch, seed=0, step=3).eps)
    assert not torch.equal(draw(batch, seed=0, step=3).eps, draw(batch, seed=0, step=4).eps)
    assert not torch.equal(draw(batch, seed=0, step=3).eps, draw(batch, seed=1, step=3).eps)


def test_a_validation_repeats_and_is_about_zero_for_the_observed_cells_themselves(parts, monkeypatch):
    module, state, logged = parts(training={"validation_populations": 100})
    batches = FixedPopulations(state.validation, per_batch=4, at_most=100)

    def validate():
        for i in range(len(batches)):
            module.validation_step(batches[i], i)
        module.on_validation_epoch_end()
        return logged["validation energy"]

    with torch.no_grad():
        first = validate()
        assert first == validate()
        observed = iter([Estimate(batches[i].batch.perturbed) for i in range(len(batches))])
        monkeypatch.setattr("perturbdiff.core.sampler.Sampler.__call__", lambda *_args, **_kwargs: next(observed))
        # a sample held against itself: the unbiased estimate lies below zero
        assert validate() < 0 < first


def test_the_validation_energy_is_in_log1p_counts_per_ten_thousand(parts):
    module, state, logged = parts()
    batch = FixedPopulations(state.validation, per_batch=4, at_most=4)[0]
    found = []
    with torch.no_grad():
        for scale in (1.0, 3.0):
            module.scale = scale
            module.validation_step(batch, 0)
            module.on_validation_epoch_end()
            found.append(logged["validation energy"])
    assert found[1] == pytest.approx(3 * found[0], rel=1e-5)


def test_donors_that_training_has_not_seen_are_judged_apart_and_averaged_before_the_conditions(parts, monkeypatch):
    screen = simulate(
        "interaction", n_genes=40, n_cell_types=1, n_assay_batches=3, n_perturbations=2, cells_per_group=8, seed=0
    )
    # two donors without control cells, the second with one of the stimuli only
    absent = {("control", "donor_2"), ("control", "donor_3"), ("stimulus_2", "donor_3")}
    pairs = zip(screen.obs["perturbation"], screen.obs["assay_batch"], strict=True)
    screen = screen[[pair not in absent for pair in pairs]].copy()
    unseen = [{"part": "validation", "assay_batch": ["donor_2", "donor_3"]}]
    module, state, _ = parts(of=screen, hold_out=unseen)
    judged = FixedPopulations(state.validation, per_batch=4, at_most=100)
    shift = iter(range(100))
    monkeypatch.setattr(
        "perturbdiff.core.sampler.Sampler.__call__",
        lambda *_args, control, **_kwargs: Estimate(control + 0.1 * next(shift)),
    )
    cells = {}
    for i, (batch, groups) in enumerate(judged):
        assert not batch.condition.assay_batch.any()
        assert torch.equal(groups[:, :2], torch.stack(batch.condition[:2], dim=1))
        kept = torch.ones(batch.perturbed.shape[:2], dtype=bool) if batch.mask is None else batch.mask
        for j, (stimulus, _, donor) in enumerate(groups.tolist()):
            both = cells.setdefault((stimulus, donor), ([], []))
            both[0].append((batch.control[j] + 0.1 * i)[kept[j]])
            both[1].append(batch.perturbed[j][kept[j]])
        module.validation_step(judged[i], i)
    assert len(cells) == 3
    apart = {key: energy_distance(*map(torch.cat, both)) for key, both in cells.items()}
    by_stimulus = [[apart[key] for key in apart if key[0] == stimulus] for stimulus in {key[0] for key in apart}]
    expected = torch.stack([torch.stack(own).mean() for own in by_stimulus]).mean() * state.spec.scale
    energies = module.validation_energies()
    assert {(group[0], group[2]): energy for group, energy in energies.groups.items()} == {
        key: pytest.approx(float(energy) * state.spec.scale) for key, energy in apart.items()
    }
    assert len(energies.populations) == sum(len(batch.key) for batch, _ in judged)
    found = energies.mean
    assert found == pytest.approx(float(expected))
    assert found != pytest.approx(float(torch.stack(list(apart.values())).mean()) * state.spec.scale)


def test_a_loss_that_is_not_finite_ends_training_with_a_sentence(make_model, tmp_path, monkeypatch):
    original = DenoiserModule.training_step

    def break_at_2(module, batch, batch_idx):
        if module.global_step == 2:
            batch = batch._replace(perturbed=batch.perturbed * float("nan"))
        return original(module, batch, batch_idx)

    monkeypatch.setattr(DenoiserModule, "training_step", break_at_2)
    with pytest.raises(ValueError, match="the loss is nan at step 2, and training cannot go on"):
        make_model().train(run=tmp_path / "run", device="cpu", show_progress=False)


def test_weights_that_are_not_finite_are_never_kept(make_model, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "perturbdiff.training.module.DenoiserModule.on_before_optimizer_step",
        lambda module, *_: [p.data.fill_(float("nan")) for p in module.denoiser.parameters()],
        raising=False,
    )
    with pytest.raises(ValueError, match=r"the weights are not finite after step 1|the validation energy is nan"):
        make_model(hold_out=[], training={"max_steps": 1}).train(
            run=tmp_path / "run", device="cpu", show_progress=False
        )
    assert not (tmp_path / "run" / "model.json").exists()


def test_the_log_of_a_run_holds_every_part_of_the_loss(make_model, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "LOG_EVERY", 1)
    make_model(training={"mse_weight": 1.0, "mmd_weight": 1.0}).train(
        run=tmp_path / "run", device="cpu", show_progress=False
    )
    with (tmp_path / "run" / "logs" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = [row for row in rows if row["loss"]]
    assert [int(row["step"]) for row in steps] == [0, 1, 2, 3]
    total = np.array([[float(row[name]) for name in ("loss", "mmd", "mse")] for row in steps])
    np.testing.assert_allclose(total[:, 0], total[:, 1] + total[:, 2], rtol=1e-5)
    assert sum(bool(row["validation energy"]) for row in rows) == 2


def test_a_part_of_the_loss_that_is_not_computed_is_not_logged(parts):
    module, state, logged = parts(training={"mse_weight": 0.0})
    module.training_step(first_batch(state), 0)
    assert "mse" not in logged
    assert logged["loss"] == logged["mmd"]


def test_the_objective_of_a_module_is_the_one_that_the_settings_describe(parts):
    module, _, _ = parts(training={"mse_weight": 0.0, "dropout_per": "minibatch"})
    described = build_objective(module.settings)
    assert module.objective.mse_weight == described.mse_weight == 0.0
    assert module.objective.dropout_per == "minibatch"
