"""Several populations of a condition are judged as a family, beside simple families of the same control cells."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from perturbdiff.cells.memory import Cells
from perturbdiff.evaluation.evaluate import evaluate
from perturbdiff.evaluation.families import ONE, OTHERS, TRAINED, Donors
from perturbdiff.evaluation.files import open_file
from perturbdiff.evaluation.from_files import evaluate_files
from perturbdiff.evaluation.scope import Depth
from perturbdiff.files.container import read_anndata
from perturbdiff.io import write_h5ad
from perturbdiff.metrics.tables import FAMILIES
from perturbdiff.model import PerturbDiff
from perturbdiff.predicted import KEY
from perturbdiff.recipes.dataset import Columns, Expression
from perturbdiff.report.drawings import families_of
from perturbdiff.results.evaluation import Evaluation

GENES = pd.Index([f"g{i}" for i in range(8)])
RESPONSE = np.array([2.0, 1.0, -1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
SPREAD = 0.5


def cells_of(rng, strengths, n_cells=24, draws=None, prefix=""):
    """Donors of a drug's strength each, control cells beside them; `draws` populations of each donor."""
    labels, values, numbers = [], [], []
    for donor, strength in strengths.items():
        each = [strength] if draws is None else strength
        for number, one in enumerate(each):
            values.append(4 + one * RESPONSE + rng.normal(0, 0.3, (n_cells, 8)))
            labels += [("drug", "T", donor)] * n_cells
            numbers += [number] * n_cells
        if draws is None:
            values.append(4 + rng.normal(0, 0.3, (n_cells, 8)))
            labels += [("control", "T", donor)] * n_cells
            numbers += [0] * n_cells
    return Cells(
        values=np.concatenate(values).astype(np.float32),
        scale="log1p",
        total_counts=None,
        genes=GENES,
        names=pd.Index([f"{prefix}{i}" for i in range(len(labels))]),
        labels=pd.DataFrame(labels, columns=["perturbation", "cell_type", "assay_batch"]).astype("category"),
        control="control",
        draws=None if draws is None else np.array(numbers),
    )


@pytest.fixture(scope="module")
def world():
    """Observed donors, trained ones, and a family of draws for each of the observed."""
    rng = np.random.default_rng(0)
    law = lambda n: 1 + SPREAD * rng.normal(size=n)  # noqa: E731 - short
    observed = cells_of(rng, {f"d{i:02d}": one for i, one in enumerate(law(16))})
    trained = cells_of(rng, {f"t{i:02d}": one for i, one in enumerate(law(16))}, prefix="t")
    right, wide = (
        cells_of(rng, {f"d{i:02d}": 1 + scale * SPREAD * rng.normal(size=20) for i in range(16)}, draws=20)
        for scale in (1, 2)
    )
    return observed, trained, {"right": right, "wide": wide}


@pytest.fixture(scope="module")
def judged(world):
    observed, trained, files = world
    return evaluate(files, observed, training=trained, seed=0, depth=Depth(suites=("ours", FAMILIES)))


def means(judged):
    own = judged.overall[judged.overall["suite"] == FAMILIES]
    return own.pivot_table(index="method", columns="metric", values="value")


def test_the_family_of_the_right_spread_is_ahead_and_calibrated(judged):
    found = means(judged)
    assert found.loc["right", "family_score"] < min(found.loc[["wide", ONE], "family_score"])
    assert found.loc["right", "strength_variance_ratio"] == pytest.approx(1, abs=0.5)
    assert found.loc["wide", "strength_variance_ratio"] > 2.5
    assert found.loc["right", "coverage_80"] == pytest.approx(0.8, abs=0.1)
    assert found.loc["wide", "de_coverage_80"] > 0.95
    assert found.loc[ONE, "coverage_95"] < 0.2


def test_donors_changes_are_families_too_those_that_trained_and_the_other_judged_ones(judged):
    found = means(judged)
    for method in (TRAINED, OTHERS):
        assert found.loc[method, "strength_variance_ratio"] == pytest.approx(1, abs=0.6)
        assert found.loc[method, "family_score"] < found.loc[ONE, "family_score"]
    kinds = {one.name: one.kind for one in judged.methods}
    assert (kinds["right"], kinds[ONE], kinds[TRAINED]) == ("predicted", "family", "family")


def test_metrics_of_single_populations_are_the_same_beside_them(judged, world):
    observed, trained, files = world
    alone = evaluate(files, observed, training=trained, seed=0, depth=Depth())
    pd.testing.assert_frame_equal(alone.scores, judged.scores[judged.scores["suite"] == "ours"].reset_index(drop=True))


def test_the_numbers_are_a_function_of_the_seed_and_of_no_other_file(judged, world):
    observed, trained, files = world
    depth = Depth(suites=(FAMILIES, "ours"))
    again = evaluate({"right": files["right"]}, observed, training=trained, seed=0, depth=depth)
    pd.testing.assert_frame_equal(means(again).loc[["right", TRAINED]], means(judged).loc[["right", TRAINED]])
    other = evaluate({"right": files["right"]}, observed, training=trained, seed=1, depth=depth)
    assert not np.allclose(means(again).loc[TRAINED], means(other).loc[TRAINED])


def test_without_training_cells_or_other_donors_their_families_are_missing(world):
    observed, _, files = world
    one = evaluate(
        {"right": files["right"]},
        observed,
        training=None,
        seed=0,
        conditions=[("drug", "T", "d03")],
        depth=Depth(suites=("ours", FAMILIES)),
    )
    assert list(means(one).index) == [ONE, "right"]
    # of one donor there is no variance between donors
    assert "strength_variance_ratio" not in means(one).columns


def test_a_file_of_single_populations_is_refused_where_families_are_asked_for(world):
    observed, trained, _ = world
    with pytest.raises(ValueError, match=r"'families' judges several populations of a condition, and no predicted"):
        evaluate({"one": trained}, trained, training=None, seed=0, depth=Depth(suites=("ours", FAMILIES)))
    with pytest.raises(ValueError, match="named 'training donors', which is the name of a method here"):
        evaluate({TRAINED: trained}, observed, training=None, seed=0)


def test_the_changes_of_donors_are_those_of_their_own_cells(world):
    _, trained, _ = world
    changes = Donors.of(trained, list(GENES)).changes["drug", "T"]
    labels = trained.labels.astype(str)
    own, values = (labels["assay_batch"] == "t03").to_numpy(), trained.log_expression(list(GENES)).toarray()
    wanted = [
        values[own & trained.is_control].mean(axis=0),
        values[own & ~trained.is_control].mean(axis=0),
    ]
    np.testing.assert_allclose(changes["t03"], wanted[1] - wanted[0], atol=1e-5)
    assert len(changes) == 16


def test_files_of_ours_declare_their_populations_and_those_of_others_name_the_column(screen, adata, tmp_path):
    model = PerturbDiff.load(screen.run)
    made = model.predict(adata, perturbation="stimulus_1", cell_type="type_3", device="cpu", populations=4)
    write_h5ad(made, tmp_path / "ours.h5ad")
    declared = {"columns": Columns(perturbation="perturbation", cell_type="cell_type"), "control": "control"}
    named = declared | {"expression": Expression(scale="counts")}
    found = evaluate_files({"ours": tmp_path / "ours.h5ad"}, screen.data, **named)
    assert FAMILIES in set(found.scores["suite"])
    del made.uns[KEY]
    made.obs = made.obs.rename(columns={"population": "draw"})
    made.obs["draw"] = "draw " + made.obs["draw"].astype(str)
    write_h5ad(made, tmp_path / "others.h5ad")
    named |= {"predicted_expression": Expression(scale="log1p")}
    others = evaluate_files({"others": tmp_path / "others.h5ad"}, screen.data, population="draw", **named)
    score = [
        one.overall[(one.overall["metric"] == "family_score") & (one.overall["method"] == name)]["value"].item()
        for one, name in ((found, "ours"), (others, "others"))
    ]
    assert score[0] == pytest.approx(score[1], rel=1e-3)
    unnamed = evaluate_files({"others": tmp_path / "others.h5ad"}, screen.data, **named)
    assert FAMILIES not in set(unnamed.scores["suite"])
    with pytest.raises(ValueError, match=r"'dawr'"):
        evaluate_files({"others": tmp_path / "others.h5ad"}, screen.data, population="dawr", **named)
    on_disk = open_file(tmp_path / "ours.h5ad", in_memory=0)
    np.testing.assert_array_equal(np.unique(on_disk.draws[~on_disk.is_control], return_counts=True)[1], [24] * 4)
    assert read_anndata(tmp_path / "ours.h5ad").n_obs == len(on_disk.names)


def test_the_page_shows_the_intervals_of_every_file_and_the_observed_strength(judged, tmp_path):
    judged.save(tmp_path)
    read = Evaluation.load(tmp_path)
    assert [one.kind for one in read.methods] == [one.kind for one in judged.methods]
    drawing = families_of(read)
    assert [panel.heading for panel in drawing.panels] == ["right", "wide"]
    own = judged.scores[(judged.scores["method"] == "right") & (judged.scores["suite"] == FAMILIES)]
    wide = own[own["assay_batch"] != ""].pivot_table(index="assay_batch", columns="metric", values="value")
    inside = wide["strength_observed"].between(wide["strength_low"], wide["strength_high"]).sum()
    assert drawing.panels[0].note == f"{inside} of 16 observed conditions lie within their 95 % interval."
    assert all(f"drug | T | d{i:02d}" in drawing.panels[0].svg for i in range(16))
    quantiles = ["strength_low", "strength_lower", "strength_median", "strength_upper", "strength_high"]
    assert (np.diff(wide[quantiles], axis=1) >= 0).all()
    alone = replace(judged, scores=judged.scores[judged.scores["suite"] == "ours"])
    assert families_of(alone).startswith("No predicted file holds several populations")
