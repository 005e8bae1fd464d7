"""Fine-tuning: exactly what is kept, fresh, frozen or slow; on another panel; audited and resumable."""

import signal

import numpy as np
import pytest
import torch

from perturbdiff.cells.anndata import cells_from_anndata
from perturbdiff.checkpoint import load_checkpoint
from perturbdiff.core.observation import observed
from perturbdiff.core.population import Noised
from perturbdiff.model import PerturbDiff
from perturbdiff.pretraining import pretrain
from perturbdiff.recipes.dataset import recipe_from_mapping
from perturbdiff.simulation.screen import simulate
from perturbdiff.training import transfer
from perturbdiff.training.callbacks import RESUME
from perturbdiff.training.module import build_optimizer
from perturbdiff.training.streams import PopulationStream


@pytest.fixture(scope="module")
def pretrained(make_model, tiny):
    """A model pretrained on the training cells of the screen."""
    return pretrain({"screen": make_model()}, device="cpu", show_progress=False, **tiny())


@pytest.fixture
def begun(make_model, monkeypatch, pretrained, listening):
    """The network at step 0 of a fine-tuning, its model and what was said."""

    def begin(*, start=None, model=None, **changes):
        kept, original = [], transfer.transferred

        def recorded(*arguments):
            found = original(*arguments)
            kept.append({name: value.clone() for name, value in found.denoiser.state_dict().items()})
            kept.append(found.denoiser)
            return found

        monkeypatch.setattr("perturbdiff.training.trainer.transferred", recorded)
        model = model or make_model(**changes)
        with listening() as said:
            model.train(pretrained=start or pretrained, device="cpu", show_progress=False)
        return kept[0], model, said, kept[1]

    return begin


def test_the_backbone_is_kept_and_the_perturbation_encoder_and_the_head_are_fresh(begun, pretrained):
    start, model, said, _ = begun()
    before = pretrained.trained.weights
    kept = [name for name in start if name.startswith(("blocks.", "time.", "embed"))]
    assert kept
    assert all(torch.equal(start[name], before[name]) for name in kept)
    for name in ("head.linear.weight", "head.linear.bias"):
        assert bool((start[name] == 0).all())
        assert bool((before[name] != 0).any())
    assert start["conditioning.tables.0.weight"].shape[0] == 1 + len(model.trained.vocabularies["perturbation"])
    for line in ("blocks: kept", "output head: fresh", "perturbations: fresh", "input projections: kept"):
        assert any(one.startswith(line) for one in said), said


@pytest.mark.parametrize("target", ["residual", "counts"])
def test_at_step_0_a_fine_tuned_model_predicts_the_cells_that_are_expected(begins_with, make_model, pretrained, target):
    state = begins_with(make_model(model={"target": target}), pretrained=pretrained)
    batch = next(iter(PopulationStream(state.training, per_batch=4)))
    expected = batch.expected[:, 0]
    assert bool(expected.any())
    made = state.denoiser.eval()(
        Noised(
            torch.zeros_like(batch.control),
            torch.zeros_like(batch.key),
            batch.control,
            batch.condition,
            batch.mask,
            totals=batch.totals,
            expected=expected,
            seed=batch.key,
        )
    )
    kept = torch.ones(made.shape[:2], dtype=torch.bool) if batch.mask is None else batch.mask
    if target == "residual":
        wanted = (batch.control + expected.unsqueeze(1)).relu()
    else:
        o = (expected * state.spec.scale).unsqueeze(1) * kept.unsqueeze(-1)
        wanted = observed(batch.control, batch.totals, o, batch.key, scale=state.spec.scale).x_0
    torch.testing.assert_close(made[kept], wanted[kept])


def test_mixing_keeps_what_reads_cell_types_and_batches(begun, pretrained):
    start, _, _, _ = begun()
    before, width = (
        pretrained.trained.weights["conditioning.mix.weight"],
        start["conditioning.mix.weight"].shape[1] // 3,
    )
    assert torch.equal(start["conditioning.mix.weight"][:, width:], before[:, width:])
    assert not torch.equal(start["conditioning.mix.weight"][:, :width], before[:, :width])


def test_a_model_of_4000_genes_keeps_exactly_the_700_columns_that_a_panel_of_940_shares(tiny, begun):
    sizes = {"n_cell_types": 2, "n_assay_batches": 1, "n_perturbations": 2, "cells_per_group": 6}
    columns = {"perturbation": "perturbation", "cell_type": "cell_type"}

    def model(names, order, **more):
        adata = simulate("additive", n_genes=len(names), control_cells_per_group=8, seed=len(names), **sizes)
        adata.var_names = names
        adata.obs_names = [f"{len(names)}_{name}" for name in adata.obs_names]
        mapping = {"name": more.pop("name"), "control": "control", "columns": columns, **tiny(), **more}
        recipe = recipe_from_mapping({**mapping, "expression": {"scale": "counts"}}, "the test")
        cells = cells_from_anndata(
            adata[:, order].copy(), columns=recipe.columns, expression=recipe.expression, control="control"
        )
        return PerturbDiff(recipe, source=cells)

    rng = np.random.default_rng(0)
    large = [f"g{i}" for i in range(4000)]
    small = [f"g{i}" for i in range(3300, 4240)]
    tables = tiny(training={"max_steps": 1, "self_conditioning": 0.5})
    start = pretrain(
        {"large": model(large, rng.permutation(4000), name="large")}, device="cpu", show_progress=False, **tables
    )
    rules = [{"part": "test", "perturbation": ["stimulus_1"], "cell_type": ["type_2"]}]
    tuned = model(
        small,
        rng.permutation(940),
        name="small",
        finetuning={"head": "kept"},
        hold_out=rules,
        training=tables["training"],
    )
    new, tuned, _, _ = begun(start=start, model=tuned)
    old, genes = start.trained, tuned.trained.genes
    assert (len(old.genes), len(genes)) == (4000, 940)
    shared = [gene for gene in genes if gene in set(old.genes)]
    assert len(shared) == 700
    to = torch.tensor([genes.index(gene) for gene in shared])
    at = torch.tensor([old.genes.index(gene) for gene in shared])
    fresh = torch.tensor([i for i, gene in enumerate(genes) if gene not in set(old.genes)])
    # the network's own estimate stands beside x_t
    for i in (0, 1):
        assert torch.equal(new["embed.weight"][:, to + 940 * i], old.weights["embed.weight"][:, at + 4000 * i])
    assert torch.equal(new["embed_control.weight"][:, to], old.weights["embed_control.weight"][:, at])
    assert torch.equal(new["head.linear.weight"][to], old.weights["head.linear.weight"][at])
    assert torch.equal(new["head.linear.bias"][to], old.weights["head.linear.bias"][at])
    assert bool((new["head.linear.weight"][fresh] == 0).all())
    assert bool((new["embed.weight"][:, fresh] != 0).any())
    for i in range(5):
        assert not (old.weights["embed.weight"][:, :4000] == new["embed.weight"][:, fresh[i : i + 1]]).any()


def test_no_gene_in_common_is_refused(make_model, pretrained, adata):
    other = adata.copy()
    other.var_names = [f"ENSG{i}" for i in range(adata.n_vars)]
    other.X = other.X.copy()
    other.X.data[:] += 1
    other.obs_names = [f"x{i}" for i in range(adata.n_obs)]
    with pytest.raises(
        ValueError, match=r"none of the panel's 40 genes, such as 'ENSG0', is among the 40 of the pretra"
    ):
        make_model(of=other).train(pretrained=pretrained, device="cpu", show_progress=False)


def test_labels_keep_their_vectors_by_name_or_begin_afresh(begun, pretrained):
    old = pretrained.trained
    for labels in ("by_name", "fresh"):
        start, model, _, _ = begun(finetuning={"labels": labels})
        for i, covariate in ((1, "cell_type"), (2, "assay_batch")):
            key = f"conditioning.tables.{i}.weight"
            assert torch.equal(start[key][0], old.weights[key][0])
            for row, label in enumerate(model.trained.vocabularies[covariate].labels, start=1):
                own = old.weights[key][old.vocabularies[covariate].labels.index(label) + 1]
                assert torch.equal(start[key][row], own) == (labels == "by_name")


def test_assay_batches_of_another_data_set_are_not_the_same_whatever_their_names(begun, pretrained, make_model):
    start, _, said, _ = begun(name="elsewhere")
    key = "conditioning.tables.2.weight"
    assert not torch.equal(start[key][1:], pretrained.trained.weights[key][1:])
    assert not any("are taken as more of" in line for line in said)
    start, _, said, _ = begun(name="elsewhere", finetuning={"source": "screen"})
    assert torch.equal(start[key][1:], pretrained.trained.weights[key][1:])
    assert any("are taken as more of 'screen'" in line for line in said)
    with pytest.raises(
        ValueError, match=r"finetuning.source = 'scren' is none of the sources .* the nearest is 'screen'"
    ):
        begun(finetuning={"source": "scren"})


def test_of_maps_for_each_source_that_of_the_same_source_is_taken_or_their_mean(begun, make_model, tiny, adata):
    copy = adata[adata.obs["perturbation"] == "control"].copy()
    copy.obs_names = [f"copy_{name}" for name in copy.obs_names]
    sources = {"screen": make_model(), "copy": make_model(of=copy, hold_out=[])}
    options = tiny(model={"projections": "per_source"})
    start = pretrain(sources, cells={"copy": "controls"}, device="cpu", show_progress=False, **options)
    before = start.trained.weights["embed.weight"]
    assert torch.equal(begun(start=start)[0]["embed.weight"], before[0])
    torch.testing.assert_close(begun(start=start, name="elsewhere")[0]["embed.weight"], before.mean(dim=0))


def test_the_control_stream_may_begin_as_the_other(begun, pretrained):
    start, _, _, _ = begun(finetuning={"control_stream": "copied"})
    before = pretrained.trained.weights
    assert torch.equal(start["embed_control.weight"], before["embed.weight"])
    assert not torch.equal(start["embed_control.weight"], before["embed_control.weight"])


def test_a_frozen_backbone_stays_as_it_was(begun, pretrained):
    _, model, said, _ = begun(finetuning={"freeze": "backbone"}, training={"learning_rate": 0.05})
    before, after = pretrained.trained.weights, model.trained.weights
    frozen = [name for name in before if name.startswith(("blocks.", "time."))]
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert bool((after["head.linear.weight"] != 0).any())
    assert any(line.startswith("blocks: kept, frozen") for line in said)


def test_adapters_change_the_blocks_by_a_low_rank_and_the_model_is_like_any_other(begun, pretrained, tmp_path, adata):
    pytest.importorskip("peft")
    _, model, said, _ = begun(finetuning={"adapter_rank": 1}, training={"learning_rate": 0.05})
    before, after = pretrained.trained.weights, model.trained.weights
    assert {name for name in after if "lora" in name or "base_layer" in name} == set()
    changes = {name: after[name] - before[name] for name in before if name.startswith("blocks.") and name in after}
    changed = {name for name, change in changes.items() if bool((change != 0).any())}
    assert changed
    assert all(int(torch.linalg.matrix_rank(changes[name], atol=1e-6)) == 1 for name in changed)
    assert any("learn by adapters of rank 1" in line for line in said)
    model.save(tmp_path)
    controls = adata[adata.obs["perturbation"] == "control"].copy()
    one, other = (
        m.predict(controls, perturbation="stimulus_1", cell_type="type_1", device="cpu")
        for m in (model, PerturbDiff.load(tmp_path))
    )
    assert np.array_equal(one.X.toarray(), other.X.toarray())


def test_layers_far_from_the_output_learn_slower(begun):
    _, model, _, denoiser = begun(finetuning={"layer_decay": 0.5})
    optimizer = build_optimizer(denoiser, model.trained.settings.training, layer_decay=0.5)
    rate = model.trained.settings.training.learning_rate
    names = {id(parameter): name for name, parameter in denoiser.named_parameters()}
    found = {names[id(p)]: group["lr"] / rate for group in optimizer.param_groups for p in group["params"]}
    assert set(found) == set(names.values())
    for name, share in found.items():
        distance = 1 if name.startswith("blocks.") else 2
        if name.startswith(("head", "conditioning.tables.0")):
            distance = 0
        assert share == pytest.approx(0.5**distance), name


def test_pretraining_on_held_out_cells_fails_the_fine_tuning_before_any_work(make_model, tiny, tmp_path):
    everything = pretrain({"screen": make_model(hold_out=[])}, device="cpu", show_progress=False, **tiny())
    with pytest.raises(
        ValueError, match=r"the validation part \(16 cells\) has 16 cells with exactly the expression of a"
    ):
        make_model().train(pretrained=everything, run=tmp_path / "run", device="cpu", show_progress=False)
    assert not (tmp_path / "run").exists()


def test_an_interrupted_fine_tuning_resumes_to_the_same_end(make_model, pretrained, tmp_path, signal_at, monkeypatch):
    options = {"training": {"max_steps": 6, "validate_every": 2}, "finetuning": {"adapter_rank": 1}}

    def run(name):
        return make_model(**options).train(
            pretrained=pretrained, run=tmp_path / name, device="cpu", show_progress=False
        )

    run("whole")
    with monkeypatch.context():
        signal_at(2, signal.SIGINT)
        assert run("parts").outcome.interrupted
    monkeypatch.undo()
    assert run("parts").outcome.steps == 6
    one, other = (torch.load(tmp_path / name / RESUME, weights_only=True) for name in ("whole", "parts"))
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(value, other[key][name]) for name, value in one[key].items())
    assert load_checkpoint(tmp_path / "parts").begun_from["name"] == "mixture"


def test_another_pretrained_model_is_another_run(make_model, pretrained, tiny, tmp_path):
    make_model().train(pretrained=pretrained, run=tmp_path, device="cpu", show_progress=False)
    other = pretrain({"screen": make_model()}, seed=1, device="cpu", show_progress=False, **tiny())
    with pytest.raises(ValueError, match=r"it differs in .*the pretrained model"):
        make_model().train(pretrained=other, run=tmp_path, device="cpu", show_progress=False)


def test_another_network_than_the_pretrained_one_is_refused(make_model, pretrained):
    with pytest.raises(ValueError, match=r"model.width = 24 is not that of the pretrained model"):
        make_model(model={"width": 24}).train(pretrained=pretrained, device="cpu")
    with pytest.raises(ValueError, match=r"training.self_conditioning = 0.5 does not fit the pretrained model's 0.0"):
        make_model(training={"self_conditioning": 0.5}).train(pretrained=pretrained, device="cpu")


def test_scale_and_process_are_those_of_the_pretrained_model(begun, pretrained):
    _, model, _, _ = begun()
    assert model.trained.scale == pretrained.trained.scale
    assert model.trained.settings.model.times == pretrained.trained.settings.model.times
