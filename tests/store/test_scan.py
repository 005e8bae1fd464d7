"""Labels from columns of doses and modalities: a store has those that cells in memory have, however it is read."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from perturbdiff.cells.anndata import read_cells
from perturbdiff.core.choices import COVARIATES
from perturbdiff.recipes.dataset import recipe_from_mapping
from perturbdiff.split.rules import split_cells
from perturbdiff.store import scan
from perturbdiff.store.build import build_store
from perturbdiff.store.stored import Store

DOSED = {"perturbation": "drug", "cell_type": "line", "dose": "dose", "dose_unit": "unit", "modality": "kind"}


def made(n_cells=90, *, seed=0, first=0):
    """Drugs at doses in two units and two modalities, in no order; control cells have no dose."""
    rng = np.random.default_rng(seed)
    drug = rng.choice(["a", "b", "it's", "DMSO"], n_cells)
    dose = rng.choice([0.1, 1.0, 10.0], n_cells)
    dose[drug == "DMSO"] = np.nan
    obs = pd.DataFrame(
        {
            "drug": pd.Categorical(drug),
            "dose": dose,
            "unit": rng.choice(["nM", "uM"], n_cells),
            "kind": pd.Categorical(rng.choice(["inhibitor", "agonist"], n_cells)),
            "line": rng.choice(["K562", "RPE1"], n_cells),
        },
        index=[f"cell{first + i}" for i in range(n_cells)],
    )
    obs["text"] = [f"{one:g}" for one in obs["dose"].fillna(5)]
    obs["few_bits"] = obs["dose"].astype(np.float32)
    obs["levels"] = obs["dose"].astype("category")
    counts = rng.poisson(1.0, (n_cells, 6)).astype(np.float32)
    counts[:, 0] += 1
    return anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"G{g}" for g in range(6)]))


def recipe(columns, *files):
    mapping = {"name": "x", "control": "DMSO", "files": list(files), "expression": {"scale": "counts"}}
    return recipe_from_mapping(mapping | {"columns": columns}, "x")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two files; a scan looks at a few cells at a time, so that each look has other labels."""
    monkeypatch.setattr(scan, "_CELLS", 13)
    made().write_h5ad(tmp_path / "p1.h5ad")
    made(40, seed=1, first=90).write_h5ad(tmp_path / "p2.h5ad")
    return tmp_path


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dose": "text"},
        {"dose": "few_bits"},
        {"dose": "levels"},
        {"dose_unit": "uM"},
        {"modality": None},
        {"dose": None, "dose_unit": None},
    ],
    ids=str,
)
def test_a_store_has_the_runs_of_the_cells_in_memory(folder, changes):
    columns = {name: column for name, column in (DOSED | changes).items() if column is not None}
    both = recipe(columns, "p1.h5ad", "p2.h5ad")
    build_store(both, folder, folder / "x.store")
    cells, store = read_cells(both, folder), Store.open(folder / "x.store")
    for name in COVARIATES:
        assert store.runs.labels[name].astype(str).tolist() == cells.runs.labels[name].astype(str).tolist()
    np.testing.assert_array_equal(store.runs.offsets, cells.runs.offsets)
    np.testing.assert_array_equal(store.runs.is_control, cells.runs.is_control)
    np.testing.assert_array_equal(store.hashes(0, store.n_cells), cells.hashes(0, cells.n_cells))
    # as the columns say, cell by cell
    obs = pd.concat([made().obs, made(40, seed=1, first=90).obs])
    labels = pd.Series(cells.labels["perturbation"].astype(str).to_numpy(), index=cells.names)
    for name, row in obs.iterrows():
        label = row["drug"]
        if label != "DMSO" and "dose" in columns:
            quoted = "'it\\'s'" if label == "it's" else f"'{label}'"
            unit = row["unit"] if columns["dose_unit"] == "unit" else "uM"
            label = f"[({quoted}, {float(row[columns['dose']]):g}, '{unit}')]"
        if row["drug"] != "DMSO" and "modality" in columns:
            label = f"{label}|{row['kind']}"
        assert labels[name] == label


def test_a_rule_that_names_a_drug_splits_a_store_as_cells_in_memory(folder):
    both = recipe(DOSED, "p1.h5ad", "p2.h5ad")
    build_store(both, folder, folder / "x.store")
    rules = recipe_from_mapping(
        both.model_dump(exclude_none=True) | {"hold_out": [{"part": "test", "perturbation": ["it's"]}]}, "x"
    ).hold_out
    cells = read_cells(both, folder)
    splits = [split_cells(source, rules, seed=0) for source in (cells, Store.open(folder / "x.store"))]
    assert splits[0].hash == splits[1].hash
    obs = pd.concat([made().obs, made(40, seed=1, first=90).obs])
    assert set(cells.names[splits[0].rows("test")]) == set(obs.index[obs["drug"] == "it's"])


def lose_a_dose(obs):
    obs.loc[obs["drug"] == "a", "dose"] = np.nan


def lose_a_unit(obs):
    obs.loc["cell70", ["drug", "unit"]] = ["a", "um"]


def lose_a_drug(obs):
    obs["drug"] = obs["drug"].cat.add_categories(" ")
    obs.loc[["cell50", "cell71"], "drug"] = " "


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lose_a_dose, "perturbation 'a' has no dose in some cells"),
        (lose_a_unit, "'a' has a dose in the unknown unit 'um'; the nearest is 'uM'"),
        (lose_a_drug, "column 'drug' of .* has no label for 2 cells"),
    ],
)
def test_columns_that_lack_something_are_refused_in_memory_and_in_a_store_alike(folder, change, sentence):
    adata = made()
    change(adata.obs)
    adata.write_h5ad(folder / "p1.h5ad")
    one = recipe(DOSED, "p1.h5ad")
    for read in (lambda: read_cells(one, folder), lambda: build_store(one, folder, folder / "x.store")):
        with pytest.raises(ValueError, match=sentence):
            read()


@pytest.mark.parametrize("key", ["dose", "dose_unit", "modality"])
def test_a_column_that_is_not_there_is_refused_in_memory_and_in_a_store_alike(folder, key):
    one = recipe(DOSED | {key: f"{DOSED[key]}s"}, "p1.h5ad")
    for read in (lambda: read_cells(one, folder), lambda: build_store(one, folder, folder / "x.store")):
        with pytest.raises(ValueError, match=rf"'{DOSED[key]}s', .*columns.{key}.* nearest is '{DOSED[key]}'"):
            read()
