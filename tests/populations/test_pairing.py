"""Which control cells stand beside which perturbed cells."""

import itertools

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from perturbdiff.cells.anndata import cells_from_anndata
from perturbdiff.core.choices import COVARIATES
from perturbdiff.labels.vocabulary import Vocabulary
from perturbdiff.populations.epochs import Populations
from perturbdiff.populations.pairing import nearest_controls, transported_controls
from perturbdiff.recipes.dataset import Columns, Expression


@pytest.fixture
def expressions(rng):
    return rng.random((12, 5), dtype=np.float32), rng.random((12, 5), dtype=np.float32)


def test_the_nearest_control_is_at_the_smallest_distance(expressions):
    perturbed, controls = expressions
    np.testing.assert_array_equal(nearest_controls(perturbed, controls), cdist(perturbed, controls).argmin(axis=1))


def test_transport_is_the_assignment_of_least_cost(expressions):
    perturbed, controls = expressions
    cost = cdist(perturbed, controls, "sqeuclidean")
    found = transported_controls(perturbed, controls)
    assert sorted(found) == list(range(12))
    assert cost[np.arange(12), found].sum() == pytest.approx(cost[linear_sum_assignment(cost)].sum(), rel=1e-6)


def test_cells_that_are_shuffled_controls_are_brought_back_to_them(rng):
    controls = rng.random((40, 6), dtype=np.float32)
    order = rng.permutation(40)
    np.testing.assert_array_equal(transported_controls(controls[order], controls), order)
    np.testing.assert_array_equal(nearest_controls(controls[order], controls), order)


@pytest.fixture
def cells(rng):
    labels = [row for row in itertools.product(("ctrl", "A"), ("B", "T"), ("d1", "d2")) for _ in range(30)]
    obs = pd.DataFrame(labels, columns=list(COVARIATES), index=[f"c{i}" for i in range(len(labels))])
    counts = rng.poisson(3.0, (len(obs), 8)).astype(np.float32) + 1
    columns = Columns(perturbation="perturbation", cell_type="cell_type", assay_batch="assay_batch")
    adata = AnnData(sp.csr_matrix(counts), obs=obs)
    return cells_from_anndata(adata, columns=columns, expression=Expression(scale="counts"), control="ctrl")


def populations_of(cells, pairing):
    vocabularies = {name: Vocabulary.from_labels(name, cells.labels[name]) for name in COVARIATES}
    options = {"cells_per_population": 10, "control_share": 0.1, "seed": 0, "pairing": pairing}
    return Populations(cells, cells.runs.whole(), list(cells.genes), 1.0, vocabularies, **options)


def test_pairing_by_cell_type_draws_from_all_assay_batches(cells):
    batches = cells.labels["assay_batch"].to_numpy()[cells.order]
    types = cells.labels["cell_type"].to_numpy()[cells.order]
    seen = set()
    for draw in populations_of(cells, "cell_type").plan(0):
        assert set(types[draw.control_rows]) == set(types[draw.rows])
        seen |= {(batches[draw.rows[0]], other) for other in batches[draw.control_rows]}
    assert seen == set(itertools.product(("d1", "d2"), repeat=2))


def cost_of(batch):
    return float((batch.perturbed - batch.control).square().sum())


def test_nearest_and_transported_controls_are_nearer_than_drawn_ones_and_of_the_same_batch(cells):
    costs, batches = {}, cells.labels["assay_batch"].to_numpy()[cells.order]
    for pairing in ("assay_batch", "nearest", "optimal_transport"):
        populations = populations_of(cells, pairing)
        draws = [draw for draw in populations.plan(0) if draw.condition[0] == 1]
        assert all(set(batches[draw.control_rows]) == set(batches[draw.rows]) for draw in draws)
        costs[pairing] = cost_of(populations.batch(draws))
    assert costs["nearest"] < costs["optimal_transport"] < costs["assay_batch"]


def test_transport_only_rearranges_the_control_cells_that_chance_draws(cells):
    drawn, moved = (populations_of(cells, pairing) for pairing in ("assay_batch", "optimal_transport"))
    one, other = (populations.batch(populations.plan(0)) for populations in (drawn, moved))
    assert (one.perturbed == other.perturbed).all()
    np.testing.assert_array_equal(np.sort(one.control.numpy(), axis=1), np.sort(other.control.numpy(), axis=1))
