"""The commands on data, as a user calls them: recipes, prepare, and a store in place of a recipe."""

import json

import numpy as np
import pytest

from perturbdiff.recipes.dataset import Grammar, read_recipe, write_recipe
from perturbdiff.recipes.selection import hold_outs_from


@pytest.fixture
def recipe(screen, tmp_path):
    """The recipe of the screen in a folder of its own."""
    path = tmp_path / "recipe.toml"
    write_recipe(read_recipe(screen.recipe).model_copy(update={"files": (str(screen.data),)}), path)
    return path


def test_recipes_lists_prints_and_copies_the_packages_recipes(cli, tmp_path):
    listed = cli("recipes")
    assert listed.status == 0
    assert "replogle-nadig" in listed.out
    copy = tmp_path / "mine.toml"
    printed, copied = cli("recipes", "replogle-nadig"), cli("recipes", "replogle-nadig", "--out", copy)
    assert (printed.status, copied.status) == (0, 0)
    assert printed.out == copy.read_text()
    assert read_recipe(copy).name == "replogle-nadig"
    assert cli("recipes", "replogle-nadig", "--out", copy).refused("exists already")
    assert cli("recipes", "replogle").refused("'replogle' is none of the package's recipes; the nearest is 'repl")
    assert cli("recipes", "--out", copy).refused("given without a recipe's name")


def test_prepare_says_what_it_would_take_and_makes_nothing(cli, recipe):
    before = sorted(recipe.parent.iterdir())
    said = cli("prepare", recipe, "--out", recipe.with_name("made.store"), "--dry-run")
    assert (said.status, said.err) == (0, "")
    for text in ("216 in 1 files", "24 (4 of perturbation, 3 of cell_type, 2 of assay_batch)", "minutes"):
        assert text in said.out
    facts = json.loads(cli("prepare", recipe, "--out", recipe.with_name("made.store"), "--dry-run", "--json").out)
    assert (facts["n_cells"], facts["n_runs"], facts["n_genes"]) == (216, 24, 40)
    assert facts["store_bytes"] > 0
    assert sorted(recipe.parent.iterdir()) == before


def test_a_prepared_store_splits_and_trains_in_place_of_the_recipe(cli, recipe, tmp_path):
    store = tmp_path / "made.store"
    made = cli("prepare", recipe, "--out", store)
    assert made.status == 0
    assert "'made.store' holds 216 cells x 40 genes in 24 conditions, 1 part and " in made.err
    assert cli("split", store).out == cli("split", recipe).out
    runs = [tmp_path / name for name in ("from-store", "from-files")]
    for data, run in zip((store, recipe), runs, strict=True):
        assert cli("train", data, "--out", run, "--device", "cpu", "--quiet").status == 0
    first, second = ((run / "model.safetensors").read_bytes() for run in runs)
    assert first == second
    assert read_recipe(runs[0] / "recipe.toml").files == (str(store),)


def test_evaluation_takes_its_training_cells_from_the_store_of_a_run(cli, recipe, screen, predicted, tmp_path):
    store, run = tmp_path / "made.store", tmp_path / "run"
    assert cli("prepare", recipe, "--out", store, "--quiet").status == 0
    assert cli("train", store, "--out", run, "--device", "cpu", "--quiet").status == 0
    tables = []
    for i, source in enumerate((run, screen.run)):
        ended = cli("evaluate", predicted, screen.data, "--run", source, "--out", tmp_path / f"eval-{i}", "--json")
        assert ended.status == 0
        tables.append(json.loads(ended.out))
    for one, other in zip(*tables, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert value == (other[name] if not isinstance(value, float) else pytest.approx(other[name], rel=1e-5))


def test_what_prepare_cannot_do_is_one_sentence(cli, recipe, tmp_path):
    store = tmp_path / "made.store"
    assert cli("prepare", recipe, "--out", store, "--memory", "0.1").refused("0.10 GiB of memory is too little")
    assert cli("prepare", recipe, "--out", store, "--json").refused("--json prints the plan of --dry-run")
    assert cli("prepare", tmp_path / "absent.toml", "--out", store).refused("there is no recipe file")
    assert cli("prepare", recipe, "--out", store, "--quiet").status == 0
    assert cli("prepare", recipe, "--out", store).refused("exists already; choose another name, or give --overwrite")
    assert cli("prepare", recipe, "--out", store, "--overwrite", "--quiet").status == 0
    (store / "runs.parquet").write_bytes(b"damaged")
    assert cli("split", store).refused("runs.parquet' is missing or is not what was written; make the store again")
    assert list(tmp_path.glob(".*")) == []


def test_the_cells_of_a_part_are_listed_as_csv_from_memory_and_from_a_store_alike(cli, screen, tmp_path):
    listed = cli("split", screen.recipe, "--cells", "test").out
    lines = listed.splitlines()
    assert lines[0] == "cell,perturbation,cell_type,assay_batch"
    assert len(lines) == 1 + 16
    assert all(",stimulus_1,type_3," in line for line in lines[1:])
    store = tmp_path / "made.store"
    cli("prepare", screen.recipe, "--out", store, "--quiet")
    assert cli("split", store, "--cells", "test").out == listed
    assert cli("split", screen.recipe, "--cells", "tset").refused("there is no part 'tset'; choose one of train,")


def _half(adata, column, new, **labels):
    """Every second cell of these labels under another label."""
    own = np.logical_and.reduce([(adata.obs[name] == label).to_numpy() for name, label in labels.items()])
    texts = adata.obs[column].astype(str).to_numpy(dtype=object)
    texts[np.flatnonzero(own)[::2]] = new
    adata.obs[column] = texts


HELD = {"perturbation": "stimulus_1", "cell_type": "type_3", "assay_batch": "donor_1"}


@pytest.mark.parametrize(
    ("column", "new"),
    [
        (None, None),
        ("assay_batch", "Donor_1 "),
        ("cell_type", "TYPE 3"),
        ("perturbation", "stimulus 1"),
        ("perturbation", " Stimulus_1"),
    ],
)
def test_a_leak_under_another_spelling_is_exit_status_1_and_a_clean_split_0(cli, changed, column, new):
    rule = hold_outs_from([{"part": "test"} | {name: [label] for name, label in HELD.items()}])
    recipe = changed(lambda adata: column and _half(adata, column, new, **HELD), hold_out=rule)
    ended = cli("split", recipe)
    assert ended.status == (0 if column is None else 1)
    assert ("in the spelling of labels, the order of members or a unit only" in ended.out) is (column is not None)
    assert ("differ only in case, blanks or punctuation" in ended.err) is (column is not None)


def test_another_order_of_members_in_training_is_one_label_and_held_out_with_it(cli, changed):
    def combined(adata):
        labels = adata.obs["perturbation"].astype(str)
        adata.obs["perturbation"] = labels.replace({"stimulus_1": "A+B", "stimulus_2": "C"})
        _half(adata, "perturbation", "B+A", perturbation="A+B", cell_type="type_3")

    rule = hold_outs_from([{"part": "test", "perturbation": ["B+A"], "cell_type": ["type_3"]}])
    ended = cli("split", changed(combined, hold_out=rule, perturbation=Grammar(separator="+")))
    assert ended.status == 0
    assert "Labels of perturbation that mean the same are one: 'B+A' (8 cells) as 'A+B'" in ended.err
    assert "no leak found" in ended.err


def test_split_ends_with_status_1_where_a_combination_trains_in_another_spelling_and_order(cli, changed):
    def change(adata):
        labels = adata.obs["perturbation"].astype(str).replace("stimulus_1", "A+B")
        own = (labels == "A+B") & (adata.obs["cell_type"] == "type_3")
        labels.iloc[np.flatnonzero(own)[::2]] = "b +a"
        adata.obs["perturbation"] = labels

    rules = hold_outs_from([{"part": "test", "perturbation": ["A+B"], "cell_type": ["type_3"]}])
    for grammar in (Grammar(), Grammar(separator="+")):  # a leak whether "+" is said to mean something or not
        ended = cli("split", changed(change, hold_out=rules, perturbation=grammar))
        assert ended.status == 1
        assert "leak: 8 training cells, such as those of ('b +a', 'type_3', 'donor_1')" in ended.out


def test_a_spelling_in_the_drawn_validation_part_is_a_leak_and_a_clean_draw_is_none(cli, changed):
    def change(adata):
        labels = adata.obs["assay_batch"].astype(str)
        labels.iloc[::2] = labels.iloc[::2].str.upper()
        adata.obs["assay_batch"] = labels

    assert cli("split", changed(lambda adata: None, hold_out=())).status == 0
    ended = cli("split", changed(change, hold_out=()))
    assert ended.status == 1
    assert "the drawn validation part" in ended.out


def test_train_and_features_take_several_control_labels(cli, adata, tmp_path):
    copy = adata.copy()
    labels = copy.obs["perturbation"].astype(str)
    labels.iloc[np.flatnonzero(labels == "control")[::2]] = "control_2"
    copy.obs["perturbation"] = labels
    copy.write_h5ad(tmp_path / "d.h5ad")
    given = ["--scale", "counts", "--perturbation", "perturbation", "--control", "control"]
    out = tmp_path / "genes.parquet"
    one = cli("features", "loadings", tmp_path / "d.h5ad", "--out", out, "--components", 2, *given)
    assert one.status == 0
    assert "'control_2' (36 cells) look like control cells too" in one.err
    several = cli(
        "features", "loadings", tmp_path / "d.h5ad", "--out", out, "--components", 2, "--overwrite", *given,
        "--control", "control_2",
    )  # fmt: skip
    assert several.status == 0
    assert "'control_2' (36 cells) as 'control'" in several.err
    assert "look like control cells" not in several.err
    run = tmp_path / "run"
    trained = cli(
        "train", tmp_path / "d.h5ad", "--out", run, "--preset", "tiny", "--max-steps", 1, "--device", "cpu", *given,
        "--control", "control_2", "--cell-type", "cell_type",
    )  # fmt: skip
    assert trained.status == 0
    assert trained.err.count("'control_2' (36 cells) as 'control'") == 1
    kept = read_recipe(run / "recipe.toml")
    assert (kept.control, kept.controls) == ("control", ("control_2",))
    held = tmp_path / "p.h5ad"
    asked = ("--perturbation", "stimulus_1", "--cell-type", "type_3", "--device", "cpu")
    assert cli("predict", run, tmp_path / "d.h5ad", "--out", held, *asked).status == 0
    judged = cli(
        "evaluate", held, tmp_path / "d.h5ad", "--run", run, "--out", tmp_path / "e", "--baselines", "none",
        "--suites", "ours", "--bootstrap", 2, "--with-training-cells",
    )  # fmt: skip
    assert judged.status == 0
    assert "'control_2' (36 cells) as 'control'" in judged.err
    assert "look like control cells" not in judged.err
