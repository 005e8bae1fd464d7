"""From a mixture to a prediction by commands: pretrain, finetune, inspect, predict."""

import json
import shutil

import pytest

from perturbdiff.cli import main
from perturbdiff.files.container import read_anndata


@pytest.fixture(scope="module")
def folder(screen, adata, tmp_path_factory):
    """A folder with a mixture of the screen and of unperturbed cells, and the model pretrained on it."""
    folder = tmp_path_factory.mktemp("mixture")
    shutil.copy(screen.data, folder / "screen.h5ad")
    shutil.copy(screen.recipe, folder / "screen.toml")
    atlas = adata[adata.obs["perturbation"] == "control"].copy()
    atlas.obs_names = [f"atlas_{name}" for name in atlas.obs_names]
    atlas.X = atlas.X.copy()
    atlas.X.data[:] += 1
    atlas.write_h5ad(folder / "atlas.h5ad")
    (folder / "atlas.toml").write_text(
        'name = "atlas"\nkind = "rna-seq"\nfiles = ["atlas.h5ad"]\n[columns]\ncell_type = "cell_type"\n'
        '[expression]\nscale = "counts"\n'
    )
    tables = {
        "model": {"preset": "tiny", "width": 16, "depth": 1, "heads": 2, "embedding_width": 4, "times": 20},
        "training": {"max_steps": 3, "cells_per_population": 6, "populations_per_batch": 4, "warmup_steps": 1},
    }
    lines = ['name = "both"', "n_genes = 35"]
    lines += ['[[sources]]\nrecipe = "screen.toml"', '[[sources]]\nrecipe = "atlas.toml"\nweight = 0.5']
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    (folder / "both.toml").write_text("\n".join(lines))
    return folder


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*arguments, status=0):
        monkeypatch.setattr("sys.argv", ["perturbdiff", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert (ended.value.code or 0) == status
        return capsys.readouterr()

    return run


@pytest.fixture
def pretrained(command, folder):
    out = folder / "runs" / "pretrained"
    said = command("pretrain", folder / "both.toml", "--out", out, "--device", "cpu").err
    return out, said


def test_pretraining_says_what_each_source_gave_and_resumes(pretrained, command, folder):
    out, said = pretrained
    if "resuming" not in said:
        assert "the audit of 2 sources found no held-out cell among the training cells." in said
        assert "atlas: 72 cells, weight 0.5; " in said
    again = command("pretrain", folder / "both.toml", "--out", out, "--device", "cpu").err
    assert f"resuming from {str(out / 'resume.ckpt')!r}." in again


def test_a_fine_tuned_model_predicts_perturbations(pretrained, command, folder, screen, tmp_path):
    out, _ = pretrained
    said = command("finetune", out, folder / "screen.toml", "--out", tmp_path / "tuned", "--device", "cpu").err
    assert "begins from a model pretrained on 'screen', 'atlas'; these cells are taken as more of 'screen'." in said
    assert "output head: fresh" in said
    assert (tmp_path / "tuned" / "recipe.toml").is_file()
    command(
        "predict", tmp_path / "tuned", screen.data, "--part", "test", "--out", tmp_path / "p.h5ad", "--device", "cpu"
    )
    made = read_anndata(tmp_path / "p.h5ad")
    assert "stimulus_1" in set(made.obs["perturbation"])
    assert not made.uns["perturbdiff"]["zero_shot"]
    again = command("finetune", out, folder / "screen.toml", "--out", tmp_path / "tuned", "--device", "cpu").err
    assert "resuming from" in again


def test_inspecting_a_pretrained_model_names_its_sources(pretrained, command):
    said = command("inspect", pretrained[0]).out
    assert "cells of 'screen', weight 1; 35 genes were chosen on it." in said
    assert "pretrained on 72 cells of 'atlas', weight 0.5; 35 genes were chosen on it." in said
    assert "it knows no perturbation" in said


def test_a_pretrained_model_predicts_a_cell_type_alone(pretrained, command, tmp_path):
    said = command(
        "predict", pretrained[0], "--cells", 9, "--cell-type", "type_1", "--out", tmp_path / "z.h5ad", "--device", "cpu"
    ).err
    assert "zero-shot" in said
    assert read_anndata(tmp_path / "z.h5ad").n_obs == 9


def test_what_is_not_there_is_named_before_any_work(command, folder, tmp_path):
    said = command("finetune", tmp_path / "none", folder / "screen.toml", "--out", tmp_path / "x", status=2).err
    assert "there is no model in" in said
    said = command("pretrain", folder / "nothing.toml", "--out", tmp_path / "x", status=2).err
    assert "there is no file" in said
    assert not (tmp_path / "x" / "model.json").exists()
