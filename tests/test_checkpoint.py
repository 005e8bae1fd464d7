"""A model on disk is read back as it was, or refused with a sentence; reading it runs no code."""

import hashlib
import json
import os
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from perturbdiff.checkpoint import DESCRIPTION, FORMAT, WEIGHTS, load_checkpoint
from perturbdiff.model import PerturbDiff
from perturbdiff.training.callbacks import RESUME


def change(folder, **changes):
    path = folder / DESCRIPTION
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_round_trip_is_exact(screen, tmp_path):
    first = load_checkpoint(screen.run)
    first.save(tmp_path / "again")
    second = load_checkpoint(tmp_path / "again")
    assert first.weights.keys() == second.weights.keys()
    for name, value in first.weights.items():
        assert value.dtype == second.weights[name].dtype
        assert torch.equal(value, second.weights[name])
    for name in ("settings", "genes", "scale", "vocabularies", "recipe", "folder", "split", "history"):
        assert getattr(first, name) == getattr(second, name)
    assert first.changes.facts() == second.changes.facts()
    for name, values in first.changes.arrays().items():
        assert values.dtype == second.changes.arrays()[name].dtype
        np.testing.assert_array_equal(values, second.changes.arrays()[name])
    assert (tmp_path / "again" / DESCRIPTION).read_bytes() == (screen.run / DESCRIPTION).read_bytes()
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (screen.run / WEIGHTS).read_bytes()


def test_a_model_of_before_with_former_names_is_read_and_its_run_resumed(make_model, tmp_path):
    changes = {"perturbation": {"modality": "drug"}, "training": {"max_steps": 2}}
    made = make_model(**changes).train(run=tmp_path / "run", device="cpu", show_progress=False).trained
    former = {"conditioning.told.weight" if "novelty" in name else name: value for name, value in made.weights.items()}
    assert former.keys() != made.weights.keys()
    replace(made, weights=former).save(tmp_path / "run")
    description = json.loads((tmp_path / "run" / DESCRIPTION).read_text())
    for settings in (description["settings"], description["recipe"]):
        settings["model"]["rho"] = settings["model"].pop("shared_noise", 0.5)
        settings["training"]["coins"] = settings["training"].pop("dropout_per", "population")
    change(tmp_path / "run", format=3, settings=description["settings"], recipe=description["recipe"])
    read = load_checkpoint(tmp_path / "run")
    assert read.settings == made.settings
    both = (model.denoiser().parameters() for model in (read, made))
    assert all(torch.equal(*pair) for pair in zip(*both, strict=True))
    state = torch.load(tmp_path / "run" / RESUME, weights_only=True)
    for key in ("state_dict", "current_model_state"):
        state[key] = {name.replace("novelty_embedding", "told"): value for name, value in state[key].items()}
    torch.save(state, tmp_path / "run" / RESUME)
    assert make_model(**changes).train(run=tmp_path / "run", device="cpu", show_progress=False).outcome.steps == 2


def of_format_4(model, folder, s, **head):
    """A model with a trained change of each label [labels + 1, genes] among its weights, as it was once written."""
    made = model.trained
    weights = {**made.weights, **head, "shift.weight": torch.from_numpy(s)}
    replace(made, weights=weights, changes=None).save(folder)
    path = folder / DESCRIPTION
    description = json.loads(path.read_text())
    del description["contexts"], description["total_genes"]
    for settings in (description["settings"], description["recipe"]):
        settings["training"].pop("context_dropout", None)
        settings["training"]["shrink_shifts"] = True
    path.write_text(json.dumps(description | {"format": 4}))
    return PerturbDiff.load(folder)


@pytest.mark.parametrize("label", ["stimulus_2", "control", ""])
def test_a_model_of_before_predicts_control_cells_with_its_trained_change_and_what_its_network_adds(
    make_model, adata, tmp_path, rng, label
):
    options = {"model": {"target": "residual"}, "training": {"max_steps": 1}}
    model = make_model(**options).train(device="cpu", show_progress=False)
    made = model.trained
    n_labels, n_genes = len(made.vocabularies["perturbation"]), len(made.genes)
    s = rng.normal(0, 0.3, (n_labels + 1, n_genes)).astype(np.float32)
    added = rng.normal(0, 0.1, n_genes).astype(np.float32)
    head = {
        "head.linear.weight": torch.zeros_like(made.weights["head.linear.weight"]),
        "head.linear.bias": torch.from_numpy(added),
    }
    read = of_format_4(model, tmp_path, s, **head)
    assert read.trained.settings == made.settings
    asked = {"perturbation": label or None, "cell_type": "type_2", "assay_batch": "donor_1"}
    found = read.predict(adata, device="cpu", **asked)
    own, made_of = found[found.obs["population"] >= 0], found[found.obs["population"] < 0]
    place = made.vocabularies["perturbation"].index(label)
    control = made_of[own.obs["control_cell"]].X.toarray()
    wanted = np.maximum(control + (s[place] + added) * made.scale, 0)
    np.testing.assert_allclose(own.X.toarray(), wanted, rtol=1e-4, atol=1e-4)


def test_a_model_of_before_is_saved_as_one_of_today_and_predicts_the_same(make_model, adata, tmp_path, rng):
    options = {"model": {"target": "residual"}, "training": {"max_steps": 1}}
    model = make_model(**options).train(device="cpu", show_progress=False)
    s = rng.normal(0, 0.3, (5, 40)).astype(np.float32)
    read = of_format_4(model, tmp_path / "old", s)
    np.testing.assert_allclose(read.trained.changes.changes, s * model.trained.scale, rtol=1e-6)
    read.save(tmp_path / "new")
    assert json.loads((tmp_path / "new" / DESCRIPTION).read_text())["format"] == FORMAT
    asked = {"perturbation": "stimulus_2", "cell_type": "type_2", "device": "cpu"}
    again = PerturbDiff.load(tmp_path / "new").predict(adata, **asked)
    np.testing.assert_array_equal(again.X.toarray(), read.predict(adata, **asked).X.toarray())


@pytest.mark.parametrize("target", ["counts", "residual", "cell"])
def test_a_model_predicts_the_same_once_it_is_read(make_model, adata, tmp_path, target):
    model = make_model(model={"target": target}).train(device="cpu", show_progress=False)
    assert (model.trained.changes is None) == (target == "cell")
    model.save(tmp_path)
    asked = {"perturbation": "stimulus_2", "cell_type": "type_2", "device": "cpu"}
    one, other = (each.predict(adata, **asked).X.toarray() for each in (model, PerturbDiff.load(tmp_path)))
    np.testing.assert_array_equal(one, other)


def test_changes_that_are_not_whole_are_refused(own_run):
    contexts = json.loads((own_run / DESCRIPTION).read_text())["contexts"]
    del contexts["within"]
    change(own_run, contexts=contexts)
    with pytest.raises(ValueError, match=r"is not a whole model .KeyError: 'within'"):
        load_checkpoint(own_run)


def test_what_is_loaded_is_what_was_trained(screen, make_model, tmp_path):
    model = make_model().train(device="cpu", show_progress=False)
    model.save(tmp_path / "saved")
    loaded = load_checkpoint(tmp_path / "saved")
    for name, value in model.trained.weights.items():
        assert torch.equal(value, loaded.weights[name])
    assert loaded.settings == model.trained.settings
    assert loaded.folder is None


def test_the_network_of_a_checkpoint_is_ready_to_predict_and_not_to_train(screen):
    denoiser = load_checkpoint(screen.run).denoiser()
    assert not denoiser.training
    assert not any(parameter.requires_grad for parameter in denoiser.parameters())


def test_a_damaged_weights_file_is_refused(own_run):
    path = own_run / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"model.safetensors' is damaged: its hash is not the one in model.json"):
        load_checkpoint(own_run)


def test_weights_that_are_no_safetensors_are_refused_even_where_their_hash_is_right(own_run):
    (own_run / WEIGHTS).write_bytes(b"not weights")
    change(own_run, weights=hashlib.sha256(b"not weights").hexdigest())
    with pytest.raises(ValueError, match=r"is not a whole model .SafetensorError"):
        load_checkpoint(own_run)


@pytest.mark.parametrize("content", ["{", "[]", "{}", "\x00", '{"format": "one"}'])
def test_a_damaged_description_is_refused(own_run, content):
    (own_run / DESCRIPTION).write_text(content)
    with pytest.raises(ValueError, match=r"model.json' is damaged"):
        load_checkpoint(own_run)


@pytest.mark.parametrize("key", ["settings", "genes", "scale", "vocabularies", "recipe", "split", "history"])
def test_a_description_without_one_of_its_keys_is_refused(own_run, key):
    path = own_run / DESCRIPTION
    description = json.loads(path.read_text())
    del description[key]
    path.write_text(json.dumps(description))
    with pytest.raises(ValueError, match=f"is not a whole model .KeyError: '{key}'"):
        load_checkpoint(own_run)


def test_a_description_of_other_genes_than_the_weights_have_is_refused(own_run):
    change(own_run, genes=["only-one"])
    with pytest.raises(ValueError, match="the weights do not fit the 1 genes"):
        load_checkpoint(own_run).denoiser()


def test_a_vocabulary_that_is_no_table_is_refused(own_run):
    change(own_run, vocabularies=["a", "b"])
    with pytest.raises(ValueError, match=r"is not a whole model .AttributeError"):
        load_checkpoint(own_run)


def test_a_newer_format_is_refused_with_the_remedy(own_run):
    change(own_run, format=FORMAT + 1, version="9.9")
    with pytest.raises(
        ValueError, match=rf"has format {FORMAT + 1}, written by perturbdiff 9.9, .* install a newer perturbdiff"
    ):
        load_checkpoint(own_run)


def test_a_missing_file_is_named(own_run, tmp_path):
    (own_run / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=r"model.safetensors' is missing; copy the whole folder"):
        load_checkpoint(own_run)
    with pytest.raises(FileNotFoundError, match=r"there is no model in .*: model.json is missing"):
        load_checkpoint(tmp_path)


def test_weights_and_description_of_two_runs_are_no_model(own_run, make_model, tmp_path):
    make_model(training={"seed": 1}).train(run=tmp_path / "other", device="cpu", show_progress=False)
    (own_run / WEIGHTS).write_bytes((tmp_path / "other" / WEIGHTS).read_bytes())
    with pytest.raises(ValueError, match="its hash is not the one in"):
        load_checkpoint(own_run)


def test_a_save_that_fails_leaves_the_old_model(own_run, monkeypatch):
    checkpoint = load_checkpoint(own_run)
    before = {path.name: path.read_bytes() for path in own_run.iterdir() if path.is_file()}

    def full(*_args):
        raise OSError("no space left")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="no space left"):
        checkpoint.save(own_run)
    assert {path.name: path.read_bytes() for path in own_run.iterdir() if path.is_file()} == before


def test_loading_a_model_opens_no_pickle(screen, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a pickle was opened")

    monkeypatch.setattr("pickle.loads", refuse)
    monkeypatch.setattr("pickle.load", refuse)
    monkeypatch.setattr("torch.load", refuse)
    load_checkpoint(screen.run).denoiser()


def test_the_only_zip_in_a_run_folder_is_the_resume_file_and_it_holds_plain_state(screen):
    files = [path for path in screen.run.rglob("*") if path.is_file()]
    assert [path.name for path in files if zipfile.is_zipfile(path)] == [RESUME]
    assert not any(path.suffix in {".pkl", ".pickle", ".pt", ".pth"} for path in files)
    state = torch.load(screen.run / RESUME, map_location="cpu", weights_only=True)
    assert state["global_step"] == 4


def test_a_resume_file_that_would_run_code_is_refused(own_run, tmp_path, screen, make_recipe, make_model):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    torch.save({"global_step": 1, "trap": Trap()}, own_run / RESUME)
    model = make_model(n_genes=30)
    with pytest.raises(ValueError, match=r"resume.ckpt' is damaged"):
        model.train(run=own_run, device="cpu", show_progress=False)
    assert not (tmp_path / "sprung").exists()
