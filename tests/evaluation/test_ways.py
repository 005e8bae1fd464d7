"""A baseline stands in the tables in the way that is nearer to the observed cells, and the notes say which."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from perturbdiff.cells.memory import Cells
from perturbdiff.evaluation import evaluate as evaluation
from perturbdiff.evaluation.alignment import align
from perturbdiff.evaluation.evaluate import evaluate
from perturbdiff.evaluation.methods import Methods, fitted
from perturbdiff.evaluation.scope import Depth
from perturbdiff.evaluation.ways import as_counts, offered
from perturbdiff.metrics.conditions import Condition
from perturbdiff.results.evaluation import CONTROL, MEAN_SHIFT

GENES = pd.Index([f"g{i}" for i in range(30)])
RATES = np.random.default_rng(9).gamma(0.5, 2.0, 30) + 0.1
FOLD = {"control": 1.0, "a": np.repeat([2.5, 1.0], [10, 20]), "b": np.repeat([1.0, 0.4, 3.0], [15, 10, 5])}
BASELINES = (CONTROL, MEAN_SHIFT, "nearest cell type", "similar contexts")


def counted(groups, seed):
    """Poisson counts of (perturbation, cell type, number), whose rates the perturbation multiplies."""
    rng = np.random.default_rng(seed)
    labels = [(tau, kind, "") for tau, kind, n in groups for _ in range(n)]
    level = {"T": RATES, "B": RATES * np.linspace(0.8, 1.25, 30)}
    counts = np.stack([rng.poisson(level[kind] * FOLD[tau]) for tau, kind, _ in labels]).astype(np.float32)
    counts[:, 0] += 1
    return Cells(
        values=sp.csr_matrix(counts),
        scale="counts",
        total_counts=counts.sum(axis=1, dtype=np.float64) + 500.0,
        genes=GENES,
        names=pd.Index([f"cell{i}" for i in range(len(labels))]),
        labels=pd.DataFrame(labels, columns=["perturbation", "cell_type", "assay_batch"]).astype("category"),
        control="control",
    )


OBSERVED = counted([("control", "B", 80), ("a", "B", 50), ("b", "B", 50)], 0)
TRAINING = counted([(tau, kind, 800) for tau in FOLD for kind in "TB" if (tau, kind) != ("a", "B")], 1)
PREDICTED = counted([("a", "B", 40), ("b", "B", 40)], 2)
DEPTH = Depth(baselines=BASELINES)


def judged(observed=OBSERVED, **more):
    return evaluate({"model": PREDICTED}, observed, training=TRAINING, seed=0, depth=DEPTH, **more)


@pytest.fixture(scope="module")
def drawn():
    return judged()


def test_observed_counts_are_nearer_to_drawn_counts_and_a_note_says_so():
    found = evaluate({"model": PREDICTED}, OBSERVED, training=TRAINING, seed=0, depth=Depth(baselines=(MEAN_SHIFT,)))
    assert found.notes == (
        "control + mean shift: drawn as counts; whichever is nearer to the observed cells on the mean.",
    )


def test_each_baseline_has_the_numbers_of_the_way_with_the_smaller_mean_energy_distance(drawn, monkeypatch):
    assert list(dict.fromkeys(drawn.scores["method"])) == ["model", *BASELINES, "ceiling"]
    assert [one.name for one in drawn.methods] == ["model", *BASELINES, "ceiling"]
    ways = {}
    for way in ("log1p", "counts"):

        def only(baselines, _, way=way):
            return {name: replace(one, way=way) for name, one in baselines.items()}, []

        monkeypatch.setattr(evaluation, "offered", only)
        ways[way] = judged().summary()
    assert ways["log1p"].loc[CONTROL].equals(ways["counts"].loc[CONTROL])
    for name in BASELINES[1:]:
        nearer = min(ways, key=lambda way: ways[way].loc[name, "energy_distance"])
        assert drawn.summary().loc[name].to_dict() == ways[nearer].loc[name].to_dict()
        words = {"log1p": "added to log1p values", "counts": "drawn as counts"}[nearer]
        (note,) = drawn.notes
        assert any(name in part and words in part for part in note.split(";"))


def test_observed_cells_that_were_shifted_are_nearer_to_shifted_cells():
    logged = OBSERVED.log_expression(GENES).toarray()
    labels = OBSERVED.labels["perturbation"].astype(str).to_numpy()
    moves, start = (
        {"a": np.linspace(0.5, 1.5, 30), "b": np.linspace(1.5, 0.5, 30)},
        counted([("control", "B", 50)], 5),
    )
    for label, move in moves.items():
        logged[labels == label] = start.log_expression(GENES).toarray() + move
    observed = replace(OBSERVED, values=logged, scale="log1p", total_counts=None)
    found = evaluate({"model": PREDICTED}, observed, training=observed, seed=0, depth=Depth(baselines=(MEAN_SHIFT,)))
    (note,) = [note for note in found.notes if "whichever" in note]
    assert note == (
        "control + mean shift: added to log1p values; whichever is nearer to the observed cells on the mean."
    )


def test_where_totals_are_not_known_the_only_way_is_on_log1p_values_and_that_is_said_once():
    values = OBSERVED.log_expression(GENES)
    values.data *= np.random.default_rng(0).uniform(0.95, 1.05, values.nnz).astype(np.float32)
    found = judged(replace(OBSERVED, values=values, scale="log1p", total_counts=None))
    (note,) = [note for note in found.notes if "log1p" in note]
    assert note == (
        "Baselines move cells on log1p values only, since the total counts of 80 of 80 control cells are not known."
    )


def test_baselines_that_move_no_cells_have_no_ways():
    pairs = align({"model": PREDICTED}, OBSERVED)
    still, _ = fitted((CONTROL,), None, pairs)
    assert offered(still, pairs) == (still, [])


@pytest.mark.parametrize("scale", ["counts", "log1p"])
def test_drawn_cells_have_the_totals_of_their_own_file_where_a_panel_is_judged(scale):
    observed = OBSERVED
    if scale == "log1p":
        values = OBSERVED.log_expression(GENES)
        observed = replace(OBSERVED, values=values, scale="log1p", total_counts=None)
    panel = replace(
        PREDICTED, values=PREDICTED.log_expression(GENES[3:9]), scale="log1p", total_counts=None, genes=GENES[3:9]
    )
    pairs = align({"model": panel}, observed)
    condition = Condition("a", "B")
    assert pairs.control_totals(condition.context) == pytest.approx(OBSERVED.total_counts[:80], rel=1e-5)
    found, _ = fitted((MEAN_SHIFT,), TRAINING, pairs)
    ways, _ = offered(found, pairs)
    assert [one.way for one in ways.values()] == ["log1p", "log1p", "counts"]
    methods = Methods.of({"model": panel}, pairs, ways, 0)
    cells, totals = methods.unchanged(condition)
    counts = np.expm1(cells.log_expression(pairs.genes).toarray().astype(float)) * totals[:, None] / 1e4
    assert counts == pytest.approx(np.rint(counts), abs=1e-3)
    assert (methods(as_counts(MEAN_SHIFT), condition).cells >= 0).all()


def test_a_predicted_file_may_not_take_the_name_of_a_way():
    with pytest.raises(ValueError, match="a predicted file is named 'ridge, drawn as counts'"):
        evaluate({"ridge, drawn as counts": PREDICTED}, OBSERVED, training=None, seed=0)
