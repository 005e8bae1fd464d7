"""Pretraining: sources by weight on one panel, audited, resumable, and predicted from without a perturbation."""

import shutil
import signal

import numpy as np
import pandas as pd
import pytest
import torch

from perturbdiff.cells.anndata import cells_from_anndata
from perturbdiff.checkpoint import load_checkpoint
from perturbdiff.model import PerturbDiff
from perturbdiff.pretraining import pretrain
from perturbdiff.recipes.dataset import read_recipe, write_recipe
from perturbdiff.store.build import build_store
from perturbdiff.training.callbacks import RESUME

UNPERTURBED = {"kind": "rna-seq", "control": None, "hold_out": [], "columns": {"cell_type": "cell_type"}}


@pytest.fixture(scope="module")
def atlas(adata):
    """Unperturbed cells that share 25 of 40 genes with the screen, of a type that it has and one that it has not."""
    cells = adata[adata.obs["perturbation"] == "control"].copy()
    cells.var_names = [*cells.var_names[:25], *(f"other_{i}" for i in range(15))]
    cells.obs_names = [f"atlas_{name}" for name in cells.obs_names]
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(str).replace({"type_3": "type_9"})
    cells.X = cells.X.copy()
    cells.X.data[:] = cells.X.data + 1
    return cells


@pytest.fixture
def sources(make_model, atlas):
    def make(**changes):
        return {"screen": make_model(**changes), "atlas": make_model(of=atlas, **UNPERTURBED)}

    return make


def run(sources, tiny, **options):
    tables = tiny(**{name: options.pop(name) for name in ("model", "training", "sampling") if name in options})
    return pretrain(sources, device="cpu", show_progress=False, **tables, **options)


@pytest.fixture(scope="module")
def pretrained(make_model, atlas, tiny, tmp_path_factory, listening):
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    sources = {"screen": make_model(), "atlas": make_model(of=atlas, **UNPERTURBED)}
    with listening() as said:
        model = run(sources, tiny, run=folder, n_genes=30, weights={"atlas": 2})
    return model, folder, said


def test_the_panel_is_the_union_of_the_sources_own_lists_in_their_order(pretrained):
    model, _, said = pretrained
    lists = [own["genes"] for own in model.trained.pretraining.sources]
    assert [len(own) for own in lists] == [30, 30]
    assert model.trained.genes == tuple(dict.fromkeys([*lists[0], *lists[1]]))
    assert any("atlas: 72 cells, weight 2; " in line and "30 were chosen on it" in line for line in said)


def test_labels_are_kept_but_for_the_perturbation(pretrained):
    known = pretrained[0].trained.vocabularies
    assert known["perturbation"].labels == ()
    assert known["cell_type"].labels == ("type_1", "type_2", "type_3", "type_9")
    assert known["assay_batch"].labels == ("atlas", "donor_1", "donor_2")


def test_held_out_cells_are_not_trained_on(make_model, tiny):
    model = make_model()
    n_training = model.split().of("train").n_cells
    (seen,) = run({"screen": model}, tiny).trained.pretraining.seen
    assert seen.n_cells == n_training < model.source.n_cells


def test_controls_alone_may_be_used(make_model, tiny, adata):
    (seen,) = run({"screen": make_model()}, tiny, cells={"screen": "controls"}).trained.pretraining.seen
    assert seen.n_cells == int((adata.obs["perturbation"] == "control").sum())


def test_a_pretraining_on_cells_that_another_source_holds_out_fails(make_model, tiny, adata, tmp_path):
    copy = adata.copy()
    copy.obs_names = [f"copy_{name}" for name in copy.obs_names]
    sources = {"screen": make_model(), "copy": make_model(of=copy, hold_out=[])}
    with pytest.raises(
        ValueError, match=r"held-out cells would be pretrained on: (screen|copy): the .* part .*\(\d more\)"
    ):
        run(sources, tiny, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_interrupted_pretraining_resumes_to_the_same_end(sources, tiny, tmp_path, signal_at, monkeypatch):
    options = {"training": {"max_steps": 6, "validate_every": 2}}
    run(sources(), tiny, run=tmp_path / "whole", **options)
    with monkeypatch.context():
        signal_at(2, signal.SIGINT)
        assert run(sources(), tiny, run=tmp_path / "parts", **options).outcome.interrupted
    monkeypatch.undo()
    assert run(sources(), tiny, run=tmp_path / "parts", **options).outcome.steps == 6
    one, other = (torch.load(tmp_path / name / RESUME, weights_only=True) for name in ("whole", "parts"))
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(value, other[key][name]) for name, value in one[key].items())


def test_other_weights_of_the_sources_are_another_run(sources, tiny, tmp_path):
    run(sources(), tiny, run=tmp_path / "run")
    with pytest.raises(ValueError, match=r"holds another run \(it differs in scale, sources\)"):
        run(sources(), tiny, run=tmp_path / "run", weights={"atlas": 3})


def test_a_saved_model_is_loaded_with_its_sources_and_the_cells_it_has_seen(pretrained):
    model, folder, _ = pretrained
    loaded = load_checkpoint(folder)
    assert loaded.pretraining.sources == model.trained.pretraining.sources
    for one, other in zip(loaded.pretraining.seen, model.trained.pretraining.seen, strict=True):
        assert (one.source, one.n_cells, one.limit) == (other.source, other.n_cells, other.limit)
        assert np.array_equal(one.names, other.names)
        assert np.array_equal(one.profiles, other.profiles)


def test_every_weight_that_reads_something_moves_from_the_first_step(sources, tiny):
    models = [run(sources(), tiny, training={"max_steps": n, "ema_decay": 0.0}).trained for n in (1, 8)]
    moved = {name: not torch.equal(value, models[1].weights[name]) for name, value in models[0].weights.items()}
    still = {name for name, changed in moved.items() if not changed}
    # nothing reads the vector of a perturbation that is not there but the null's, which moves
    assert still == set(), still


def test_sources_may_read_cells_by_their_own_maps(sources, tiny):
    trained = run(sources(), tiny, model={"projections": "per_source"}).trained
    assert trained.weights["embed.weight"].shape[0] == 2
    assert not torch.equal(*trained.weights["embed.weight"])
    assert trained.denoiser() is not None


def test_a_population_is_predicted_from_a_cell_type_alone_and_reported_as_zero_shot(pretrained, said):
    made = PerturbDiff.load(pretrained[1]).predict(cell_type="type_9", cells=13, device="cpu")
    assert made.shape == (13, len(pretrained[0].trained.genes))
    assert set(made.obs["cell_type"]) == {"type_9"}
    assert made.uns["perturbdiff"]["zero_shot"]
    assert any(line.startswith("zero-shot: this model was pretrained on cells without their perturb") for line in said)
    assert bool(np.isfinite(made.X.data).all())


def test_control_cells_say_how_many_and_nothing_else(pretrained, adata):
    model = pretrained[0]
    controls = adata[adata.obs["perturbation"] == "control"].copy()
    panel = list(model.trained.genes)
    wide = controls.to_df().reindex(columns=panel, fill_value=0).astype(np.float32)
    one, other = (type(controls)(wide * k, obs=controls.obs) for k in (1, 3))
    made = [model.predict(cells, cell_type="type_1", device="cpu") for cells in (one, other)]
    assert made[0].n_obs == 2 * int((controls.obs["cell_type"] == "type_1").sum())
    predicted = [cells[cells.obs["population"] >= 0].X.toarray() for cells in made]
    assert np.array_equal(*predicted)


@pytest.mark.parametrize("cells", [None, 0])
def test_predicting_from_nothing_is_refused(pretrained, cells):
    with pytest.raises(ValueError, match=r"give one of the two|must be at least 1"):
        pretrained[0].predict(cell_type="type_1", cells=cells, device="cpu")


def test_a_model_of_perturbations_needs_control_cells(screen):
    with pytest.raises(ValueError, match="this model predicts from control cells, and none are given"):
        PerturbDiff.load(screen.run).predict(perturbation="stimulus_1", cell_type="type_3", cells=5, device="cpu")


REFUSED = {
    "a source without the panel's genes": ({"genes": ["other_1"]}, "source 'screen' has none of the panel's 1 genes"),
    "a gene of no source": ({"genes": ["gene_x"]}, "1 of the panel's 1 genes are in no source, such as 'gene_x'"),
    "weights of no source": ({"weights": {"atlsa": 1}}, "weights names 'atlsa', which is no source; the nearest is"),
    "features of perturbations": (
        {"encoders": {"perturbation": {"kind": "loadings"}}},
        "encoders.perturbation is of kind .*pretraining has no perturbation",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_one_sentence(sources, tiny, case):
    options, sentence = REFUSED[case]
    with pytest.raises(ValueError, match=sentence):
        run(sources(), tiny, **options)


def test_a_file_says_its_own_settings(screen):
    with pytest.raises(ValueError, match=r"model was given, but .* says that; change the file instead"):
        pretrain(screen.recipe, model={"width": 8}, device="cpu")


def test_a_finished_run_is_left_as_it_is(pretrained, make_model, atlas, tiny, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(pretrained[1], folder)
    before = (folder / "model.safetensors").read_bytes()
    sources = {"screen": make_model(), "atlas": make_model(of=atlas, **UNPERTURBED)}
    run(sources, tiny, run=folder, n_genes=30, weights={"atlas": 2})
    assert (folder / "model.safetensors").read_bytes() == before


def test_cells_of_an_unlabelled_source_are_told_apart_by_its_name(make_model, atlas, tiny):
    source = cells_from_anndata(
        atlas,
        columns=make_model(of=atlas, **UNPERTURBED).recipe.columns,
        expression=make_model().recipe.expression,
        control=None,
    )
    assert set(source.runs.labels["assay_batch"]) == {""}
    model = run({"atlas": make_model(of=atlas, **UNPERTURBED)}, tiny)
    assert model.trained.vocabularies["assay_batch"].labels == ("atlas",)


def test_a_store_is_pretrained_on_as_the_cells_in_memory_are(screen, tiny, tmp_path):
    recipe = read_recipe(screen.recipe).model_copy(update={"files": (str(screen.data),)})
    write_recipe(recipe, tmp_path / "screen.toml")
    build_store(recipe, tmp_path, tmp_path / "screen.store")
    stored = recipe.model_copy(update={"files": ("screen.store",)})
    write_recipe(stored, tmp_path / "stored.toml")
    one, other = (
        pretrain(tmp_path / name, device="cpu", show_progress=False).trained for name in ("screen.toml", "stored.toml")
    )
    assert one.genes == other.genes
    assert all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())


def test_a_cell_type_that_pretraining_has_not_seen_means_something_where_features_stand_for_it(make_model, adata, tiny):
    rows = {"type_1": [1.0, 0.0, 0.2], "type_2": [0.0, 1.0, 0.1], "type_3": [0.9, 0.1, 0.3]}
    table = pd.DataFrame.from_dict(rows, orient="index")
    known = make_model(of=adata[adata.obs["cell_type"] != "type_3"].copy(), hold_out=[])
    options = tiny(training={"max_steps": 30, "learning_rate": 0.02})
    model = run({"screen": known}, lambda **_: options, features={"cell_type": table})
    made = {label: model.predict(cell_type=label, cells=6, device="cpu").X.toarray() for label in ("type_3", "none")}
    assert not np.array_equal(*made.values())
