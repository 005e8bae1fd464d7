"""Cells are placed on the principal components of observed and control cells, and no others move them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from perturbdiff.cells.memory import Cells
from perturbdiff.evaluation import projection
from perturbdiff.evaluation.alignment import align
from perturbdiff.evaluation.projection import COLUMNS, UMAP_COLUMNS, project

N_GENES = 8


def _cells(seed, sizes, scale=1.0):
    rng = np.random.default_rng(seed)
    labels = [(label, "T", "") for label, n in sizes.items() for _ in range(n)]
    spread = np.array([4.0, 2.0, *np.full(N_GENES - 2, 0.3)])
    return Cells(
        values=(5.0 + scale * rng.uniform(-1, 1, (len(labels), N_GENES)) * spread).astype(np.float32),
        scale="log1p",
        total_counts=None,
        genes=pd.Index([f"g{i}" for i in range(N_GENES)]),
        names=pd.Index([f"c{i}" for i in range(len(labels))]),
        labels=pd.DataFrame(labels, columns=["perturbation", "cell_type", "assay_batch"]).astype("category"),
        control="control",
    )


OBSERVED = _cells(0, {"control": 40, "a": 30, "b": 20})
PREDICTED = _cells(1, {"a": 25, "b": 20}, scale=0.5)


def test_components_and_shares_are_those_of_a_singular_value_decomposition():
    found = project(align({"model": PREDICTED}, OBSERVED), {"model": PREDICTED}, seed=0)
    cells = OBSERVED.log_expression(OBSERVED.genes).toarray().astype(float)
    _, singular, vectors = np.linalg.svd(cells - cells.mean(axis=0), full_matrices=False)
    assert found.variance == pytest.approx(tuple(singular[:2] ** 2 / (singular**2).sum()), rel=1e-6)
    placed = found.table[found.table["side"].isin(["observed", "control"])]
    for i, name in enumerate(("pc1", "pc2")):
        axis = vectors[i] * np.sign(vectors[i][np.argmax(np.abs(vectors[i]))])
        assert np.sort(placed[name]) == pytest.approx(np.sort((cells - cells.mean(axis=0)) @ axis), abs=1e-4)


def test_fewer_cells_than_genes_are_placed_too():
    few = _cells(3, {"control": 3, "a": 3})
    found = project(align({"model": few}, few), {"model": few}, seed=0)
    cells = few.log_expression(few.genes).toarray().astype(float)
    singular = np.linalg.svd(cells - cells.mean(axis=0), compute_uv=False)
    assert found.variance == pytest.approx(tuple(singular[:2] ** 2 / (singular**2).sum()), rel=1e-6)


def test_every_side_and_condition_has_its_cells_under_its_labels():
    table = project(align({"model": PREDICTED}, OBSERVED), {"model": PREDICTED}, seed=0).table
    assert tuple(table.columns) == COLUMNS
    sizes = table.groupby(["side", "perturbation"]).size().to_dict()
    assert sizes == {
        ("observed", "a"): 30,
        ("observed", "b"): 20,
        ("control", "control"): 40,
        ("model", "a"): 25,
        ("model", "b"): 20,
    }
    assert set(table["cell_type"]) == {"T"}


def test_a_predicted_file_moves_no_observed_cell():
    one = project(align({"model": PREDICTED}, OBSERVED), {"model": PREDICTED}, seed=0)
    other = _cells(2, {"a": 25, "b": 20}, scale=3.0)
    two = project(align({"model": other}, OBSERVED), {"model": other}, seed=0)
    observed = one.table["side"] != "model"
    pd.testing.assert_frame_equal(one.table[observed], two.table[observed])
    assert one.variance == two.variance


def test_at_most_so_many_cells_of_a_condition_and_in_all_are_drawn_by_seed(monkeypatch):
    monkeypatch.setattr(projection, "CELLS_OF_CONDITION", 10)
    pairs = align({"model": PREDICTED}, OBSERVED)
    table = project(pairs, {"model": PREDICTED}, seed=0).table
    assert set(table.groupby(["side", "perturbation"]).size()) == {10}
    pd.testing.assert_frame_equal(table, project(pairs, {"model": PREDICTED}, seed=0).table)
    assert not table.equals(project(pairs, {"model": PREDICTED}, seed=1).table)
    monkeypatch.setattr(projection, "CELLS", 15)
    assert len(project(pairs, {"model": PREDICTED}, seed=0).table) <= 15


def test_cells_that_are_all_alike_lie_on_one_point():
    alike = _cells(0, {"control": 5, "a": 5}, scale=0.0)
    found = project(align({"model": alike}, alike), {"model": alike}, seed=0)
    assert found.table[["pc1", "pc2"]].to_numpy() == pytest.approx(0.0, abs=1e-5)
    assert found.variance == pytest.approx((0.0, 0.0), abs=1e-6)


FILES = {
    "model": PREDICTED,
    "apart": replace(PREDICTED, values=PREDICTED.log_expression(PREDICTED.genes).toarray() + np.float32(3.0)),
}


@pytest.fixture(scope="module")
def by_umap():
    return project(align(FILES, OBSERVED), FILES, seed=0, umap=True).table


def test_umap_sees_all_sides_together_so_that_wrong_cells_lie_apart(by_umap):
    places = by_umap.set_index("side")[list(UMAP_COLUMNS)]
    assert np.isfinite(places.to_numpy()).all()
    real = places.loc[["observed", "control"]].to_numpy()

    def nearest_real(side):
        return np.linalg.norm(places.loc[side].to_numpy()[:, None] - real, axis=2).min(axis=1)

    assert nearest_real("apart").min() > 3 * np.quantile(nearest_real("model"), 0.9)


def test_umap_gives_the_same_places_again_and_leaves_the_components_alone(by_umap):
    pairs = align(FILES, OBSERVED)
    pd.testing.assert_frame_equal(project(pairs, FILES, seed=0, umap=True).table, by_umap)
    pd.testing.assert_frame_equal(project(pairs, FILES, seed=0).table, by_umap[list(COLUMNS)])


def test_umap_places_some_cells_of_each_side_where_there_are_many(monkeypatch):
    monkeypatch.setattr(projection, "UMAP_CELLS", 20)
    table = project(align({"model": PREDICTED}, OBSERVED), {"model": PREDICTED}, seed=0, umap=True).table
    placed = table[table["umap1"].notna()]
    assert placed.groupby("side").size().to_dict() == {"observed": 20, "control": 20, "model": 20}
    assert set(placed.loc[placed["side"] == "model", "perturbation"]) == {"a", "b"}


def test_umap_leaves_a_handful_of_cells_unplaced():
    few = _cells(3, {"control": 3, "a": 3})
    table = project(align({"model": few}, few), {"model": few}, seed=0, umap=True).table
    assert table[list(UMAP_COLUMNS)].isna().to_numpy().all()
    assert np.isfinite(table[["pc1", "pc2"]].to_numpy()).all()
