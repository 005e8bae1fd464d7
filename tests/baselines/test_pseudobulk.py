"""Pseudobulks are the means that loops over groups give, from one pass over the cells."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from perturbdiff.baselines import pseudobulk
from perturbdiff.baselines.pseudobulk import pseudobulks
from perturbdiff.cells.memory import Cells

GENES = [f"g{i}" for i in range(5)]


def random_cells(seed=0, n=400):
    rng = np.random.default_rng(seed)
    labels = pd.DataFrame(
        {
            "perturbation": rng.choice(["control", "a", "b"], n),
            "cell_type": rng.choice(["T", "B"], n),
            "assay_batch": rng.choice(["d1", "d2", "d3"], n),
        }
    )
    # B has no control cells in d3
    labels.loc[(labels == ["control", "B", "d3"]).all(axis=1), "assay_batch"] = "d1"
    return Cells(
        values=sp.csr_matrix(rng.poisson(1.0, (n, 5)).astype(np.float32)),
        scale="log1p",
        total_counts=None,
        genes=pd.Index(GENES),
        names=pd.Index([f"cell{i}" for i in range(n)]),
        labels=labels.astype("category"),
        control="control",
    )


def by_loops(cells):
    x = cells.log_expression(GENES).toarray().astype(float)
    own = cells.labels.astype(str)
    is_control = own["perturbation"] == "control"
    shifts = {}
    for condition in sorted(set(map(tuple, own.loc[~is_control, ["perturbation", "cell_type"]].to_numpy()))):
        total, n = np.zeros(x.shape[1]), 0
        for batch in ("d1", "d2", "d3"):
            here = (own["cell_type"] == condition[1]) & (own["assay_batch"] == batch)
            perturbed = here & (own["perturbation"] == condition[0])
            control = (
                here & is_control if (here & is_control).any() else is_control & (own["cell_type"] == condition[1])
            )
            total += (x[perturbed] - x[control].mean(axis=0)).sum(axis=0)
            n += int(perturbed.sum())
        shifts[condition] = (total / n, n)
    return shifts


@pytest.mark.parametrize("cells_at_once", [7, 2**15])
def test_every_condition_is_compared_with_its_own_control_cells_as_by_loops(monkeypatch, cells_at_once):
    monkeypatch.setattr(pseudobulk, "_CELLS_AT_ONCE", cells_at_once)
    cells = random_cells()
    bulks, expected = pseudobulks(cells, GENES), by_loops(cells)
    assert bulks.conditions == tuple(expected)
    assert bulks.sizes.tolist() == [n for _, n in expected.values()]
    assert bulks.shifts == pytest.approx(np.stack([shift for shift, _ in expected.values()]))
    weights = np.array([expected["a", kind][1] for kind in ("B", "T")])
    own = np.stack([expected["a", kind][0] for kind in ("B", "T")])
    assert bulks.mean_shifts[bulks.perturbations.index("a")] == pytest.approx(weights @ own / weights.sum())
    control = (cells.labels["cell_type"] == "B").to_numpy() & cells.is_control
    assert bulks.context("B") == pytest.approx(cells.log_expression(GENES)[control].toarray().mean(axis=0))
    assert bulks.context("NK") is None


def test_the_cells_are_read_once_whatever_the_number_of_groups_and_of_baselines(monkeypatch):
    monkeypatch.setattr(pseudobulk, "_CELLS_AT_ONCE", 50)
    cells, read = random_cells(), []
    original = Cells.log_expression

    def log_expression(self, genes, rows=None):
        assert rows is not None
        read.append(rows)
        return original(self, genes, rows)

    monkeypatch.setattr(Cells, "log_expression", log_expression)
    first = pseudobulks(cells, GENES)
    assert pseudobulks(cells, tuple(GENES)) is first
    assert np.concatenate(read).tolist() == list(range(400))
    assert max(map(len, read)) == 50


def test_the_noise_of_a_condition_is_that_of_its_cells_and_of_the_control_cells_beside_them():
    cells = random_cells()
    x, own = cells.log_expression(GENES).toarray().astype(float), cells.labels.astype(str)
    groups = own["perturbation"].where(own["perturbation"] != "control", "control in " + own["assay_batch"])
    group = groups + " of " + own["cell_type"]
    within = sum(np.square(x[group == one] - x[group == one].mean(axis=0)).sum(axis=0) for one in set(group))
    spread = within / (len(x) - group.nunique())
    is_control = cells.is_control
    bulks = pseudobulks(cells, GENES)
    for (label, kind), noise in zip(bulks.conditions, bulks.noise, strict=True):
        here = (own["cell_type"] == kind).to_numpy()
        mine = (own["perturbation"] == label).to_numpy() & here
        n, of_controls = mine.sum(), 0.0
        for batch in ("d1", "d2", "d3"):
            inside = here & (own["assay_batch"] == batch).to_numpy()
            n_control = (inside & is_control).sum() or (here & is_control).sum()
            of_controls += ((mine & inside).sum() / n) ** 2 / n_control
        larger = np.maximum(spread, x[mine].var(axis=0, ddof=1))
        assert noise == pytest.approx(larger / n + spread * of_controls, rel=1e-4)


def test_other_genes_are_measured_anew():
    cells = random_cells()
    every, some = pseudobulks(cells, GENES), pseudobulks(cells, ["g3", "g0"])
    assert some.shifts == pytest.approx(every.shifts[:, [3, 0]])


def test_conditions_do_not_depend_on_the_order_of_the_cells():
    cells = random_cells()
    turned = cells.take(np.random.default_rng(1).permutation(cells.n_cells))
    one, other = pseudobulks(cells, GENES), pseudobulks(turned, GENES)
    assert one.conditions == other.conditions
    assert one.shifts == pytest.approx(other.shifts)


def test_groups_of_a_cell_type_without_control_cells_are_left_out_and_counted():
    cells = random_cells()
    bulks = pseudobulks(cells.take(~(cells.is_control & (cells.labels["cell_type"] == "B").to_numpy())), GENES)
    assert {kind for _, kind in bulks.conditions} == {"T"}
    assert bulks.cell_types == ("T",)
    assert bulks.left_out == 6


def test_training_cells_of_which_no_change_can_be_measured_are_refused():
    for cells in (replace(random_cells(), control="DMSO"), replace(random_cells(), control=None)):
        with pytest.raises(ValueError, match="hold no perturbed cells beside control cells"):
            pseudobulks(cells, GENES)
