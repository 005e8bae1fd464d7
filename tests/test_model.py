"""The Python interface: one object from an AnnData to predictions."""

import inspect

import numpy as np
import pandas as pd
import pytest

import perturbdiff
from perturbdiff import PerturbDiff

TEST = {"part": "test", "perturbation": ["stimulus_1"], "cell_type": ["type_3"]}


def from_anndata(adata, tiny, **changes):
    given = {"perturbation": "perturbation", "control": "control", "cell_type": "cell_type", "n_genes": 30}
    return PerturbDiff.from_anndata(adata, **(given | {"assay_batch": "assay_batch"} | tiny() | changes))


def test_every_public_name_is_there():
    for name in perturbdiff.__all__:
        assert getattr(perturbdiff, name) is not None
    assert perturbdiff.__version__


def test_from_an_anndata_to_predictions_and_back_from_disk(adata, tiny, tmp_path):
    model = from_anndata(adata, tiny)
    assert model.train(hold_out=[TEST], device="cpu", show_progress=False) is model
    controls = adata[(adata.obs["perturbation"] == "control").to_numpy()]
    asked = {"perturbation": "stimulus_1", "cell_type": "type_3", "populations": 2, "device": "cpu"}
    predicted = model.predict(controls, **asked)
    assert (predicted.obs["population"] >= 0).sum() == 48
    model.save(tmp_path / "run")
    loaded = PerturbDiff.load(tmp_path / "run")
    again = loaded.predict(controls, **asked)
    assert np.array_equal(again.X.toarray(), predicted.X.toarray())
    pd.testing.assert_frame_equal(again.obs, predicted.obs)
    assert loaded.recipe.hold_out == model.recipe.hold_out


def test_the_matrix_of_the_anndata_is_neither_copied_nor_changed(adata, tiny):
    before = adata.X.copy()
    model = from_anndata(adata, tiny)
    assert model.source.values is adata.X  # noqa: PD011 - a matrix
    model.train(hold_out=[TEST], device="cpu", show_progress=False)
    assert np.array_equal(adata.X.data, before.data)
    assert np.array_equal(adata.X.indices, before.indices)


def test_the_split_that_is_shown_is_the_split_that_is_trained_on(make_model):
    model = make_model()
    shown = model.split([TEST], seed=4)
    model.train(hold_out=[TEST], seed=4, device="cpu", show_progress=False)
    assert model.trained.split["hash"] == shown.hash
    assert model.split(seed=4).hash == shown.hash
    assert model.trained.split["conditions"]["test"] == shown.groups("test").to_dict(orient="records")


def test_the_groups_of_a_split_can_be_predicted(make_model, adata):
    model = make_model().train(device="cpu", show_progress=False)
    predicted = model.predict(adata, conditions=model.split().groups("test"), device="cpu")
    made = predicted.obs[predicted.obs["population"] >= 0]
    assert set(made["perturbation"]) == {"stimulus_1"}
    assert list(made["assay_batch"].value_counts().sort_index()) == [12, 12]


def test_what_a_model_knows_is_its_training_labels(screen):
    table = PerturbDiff.load(screen.run).conditions()
    assert table.groupby("covariate", sort=False)["label"].agg(tuple).to_dict() == {
        "perturbation": ("control", "stimulus_1", "stimulus_2", "stimulus_3"),
        "cell_type": ("type_1", "type_2", "type_3"),
        "assay_batch": ("donor_1", "donor_2"),
    }
    assert table["trained"].all()
    assert set(table["encoder"]) == {"learned"}


def test_a_loaded_model_has_no_data_and_an_untrained_one_no_weights(screen, make_model, tmp_path):
    with pytest.raises(ValueError, match="a loaded model has no data to train on"):
        PerturbDiff.load(screen.run).train()
    with pytest.raises(ValueError, match="this model is not trained"):
        make_model().save(tmp_path)
    with pytest.raises(ValueError, match="this model is not trained"):
        make_model().conditions()


def test_settings_are_checked_before_any_cell_is_read(adata, tiny, tmp_path):
    with pytest.raises(ValueError, match="'widht' is not a key here"):
        from_anndata(None, tiny, model={"widht": 3})
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'name = "r"\ncontrol = "c"\nfiles = ["none.h5ad"]\n[columns]\nperturbation = "p"\n'
        '[expression]\nscale = "counts"\n[training]\nmax_stps = 3\n'
    )
    with pytest.raises(ValueError, match="'max_stps' is not a key here; the nearest is 'max_steps'"):
        PerturbDiff.from_recipe(recipe)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"perturbation": "perturbaton"}, "has no column 'perturbaton', .* the nearest is 'perturbation'"),
        ({"control": "contrl"}, "no cell has the control label 'contrl' .* the nearest is 'control'"),
        ({"layer": "counts"}, "has no 'counts' in layers"),
        ({"scale": "raw"}, "expression.scale is 'raw', which should be 'counts' or 'log1p'"),
        ({"genes": ["gene_0000", "gene_x"]}, None),
    ],
)
def test_a_description_that_does_not_fit_the_cells_is_an_error_of_one_sentence(adata, tiny, changes, sentence):
    if sentence is None:
        model = from_anndata(adata, tiny, **changes)
        with pytest.raises(ValueError, match="1 of the panel's 2 genes are not in the data, such as 'gene_x'"):
            model.train(device="cpu", show_progress=False)
        return
    with pytest.raises(ValueError, match=sentence) as error:
        from_anndata(adata, tiny, **changes)
    assert "\n" not in str(error.value)


def test_hold_out_rules_are_checked_like_those_of_a_recipe(make_model):
    with pytest.raises(ValueError, match="'celltype' is not a key here; the nearest is 'cell_type'"):
        make_model().train(hold_out=[{"part": "test", "celltype": ["type_3"]}])
    with pytest.raises(ValueError, match="names cell_type 'type_4', which no cell has; the nearest is"):
        make_model().train(hold_out=[{"part": "test", "cell_type": ["type_4"]}])
    plain = {"perturbation": "perturbation"}
    with pytest.raises(ValueError, match=r"names cell_type, for which .columns. gives no column"):
        make_model(columns=plain, hold_out=[]).train(hold_out=[TEST])


def test_a_recipes_files_are_relative_to_it_and_a_panel_is_as_given(screen):
    model = PerturbDiff.from_recipe(screen.recipe)
    assert model.source.n_cells == 216
    assert PerturbDiff.from_recipe(model.recipe, folder=screen.recipe.parent).source.n_cells == 216
    with pytest.raises(FileNotFoundError, match=r"matches nothing in"):
        PerturbDiff.from_recipe(model.recipe, folder=screen.run)


def test_every_argument_of_the_interface_is_documented():
    for name in ("from_anndata", "train", "predict"):
        function = getattr(PerturbDiff, name)
        for parameter in inspect.signature(function).parameters:
            if parameter not in {"self", "cls"}:
                assert f"\n    {parameter}: " in inspect.getdoc(function), parameter
