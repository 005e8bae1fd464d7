"""Conditions that an evaluation keeps apart by assay batch: named with it, averaged over it first, drawn by it."""

import numpy as np
import pandas as pd
import pytest

from perturbdiff.figures.dot_plot import figure
from perturbdiff.metrics.conditions import Condition
from perturbdiff.report.ranking import AHEAD, LEVEL, UNKNOWN, Comparer, Differences
from perturbdiff.report.writing import write_report
from perturbdiff.results.evaluation import Evaluation

BATCHES = ("donor 1", "donor 2", "donor 3")


@pytest.fixture
def batched(make_folder, change):
    """A folder whose conditions are kept apart by batch, and whose intervals draw a unit."""

    def make(unit="assay_batch", batches=BATCHES):
        folder = make_folder(n_perturbations=3, n_genes=20, n_cells=6)
        table = pd.read_csv(folder / "metrics.csv", keep_default_na=False)
        parts = [table.assign(assay_batch=batch, value=table["value"] + 0.001 * i) for i, batch in enumerate(batches)]
        pd.concat(parts).to_csv(folder / "metrics.csv", index=False)
        for name in ("genes.parquet", "cells.parquet"):
            table = pd.read_parquet(folder / name)
            pd.concat([table.assign(assay_batch=batch) for batch in batches]).to_parquet(folder / name)
        change(folder, settings={"unit": unit, "seed": 0})
        return folder

    return make


def test_conditions_are_shown_with_their_batch_wherever_they_are_listed(batched, tmp_path, elements):
    report = write_report(batched(), tmp_path / "report.html")
    assert len(report.evaluation.conditions) == 18
    page = elements(tmp_path / "report.html")
    assert page.one("p", class_="subtitle").text == "18 conditions: 3 perturbations, 2 cell types, 3 assay batches"
    options = [one.text for one in page.one("select", id="condition").all("option")]
    assert len(options) == len(set(options)) == 18
    assert all(one.endswith(BATCHES) for one in options)
    gains = page.all("table", class_="gains")[0].one("tbody").all("span", class_="by")
    assert all(one.text.endswith(BATCHES) for one in gains)
    assert any("donor 3: model" in one.text for one in page.all("title"))
    assert "drawing assay batches again" in page.text
    labels = [one.attributes.get("aria-label", "") for one in page.all("svg")]
    assert sum("| donor 1, observed" in one for one in labels) == 6


def test_a_condition_is_chosen_by_its_whole_name_and_not_by_one_of_several_batches(batched, tmp_path, elements):
    folder = batched()
    name = "$x_1$ | B cells | donor 2"
    write_report(folder, tmp_path / "report.html", condition=name)
    assert elements(tmp_path / "report.html").one("select", id="condition").all("option")[0].text == name
    with pytest.raises(ValueError, match=r"--condition .* is none of the 18 conditions"):
        write_report(folder, tmp_path / "other.html", condition="$x_1$ | B cells")


def test_two_units_have_no_interval_no_star_and_no_claim(batched, tmp_path, elements):
    report = write_report(batched(batches=BATCHES[:2]), tmp_path / "report.html")
    assert {one.outcome for one in report.summary.standings} == {UNKNOWN}
    assert report.summary.sentences[0].startswith("Only 2 assay batches were judged, so there is no interval")
    page = elements(tmp_path / "report.html")
    assert not page.all("span", class_="star")
    assert not page.one("table", id="scores-1").all("span", class_="interval")
    assert "there are too few assay batches for intervals" in page.text
    assert "beyond the 95 % interval" not in page.one("p", class_="verdict").text


def _differences(rows):
    gain = np.array([value for *_, value in rows])
    return Differences(gain, 0 * gain, tuple(Condition(p, c, b) for p, c, b, _ in rows), gain)


def test_batches_are_averaged_before_conditions_and_drawn_with_all_that_they_hold():
    rows = [("p", "A", batch, value) for batch, value in (("1", 1.0), ("2", 2.0), ("3", 3.0))]
    rows += [("q", "A", "1", 10.0)]
    low, high = _differences(rows).interval("assay_batch")
    # without the first batch, q has no value and plays no part; with it alone, p is 1 and q 10
    assert low == pytest.approx(2.0, abs=0.35)
    assert high == pytest.approx((1 + 10) / 2 + 0.5, abs=0.5)
    by_pair = _differences(
        [(f"p{i}", "A", batch, value) for i in range(3) for batch, value in (("1", 0.0), ("2", 4.0))]
    )
    assert by_pair.interval("perturbation") == (2.0, 2.0)
    unequal = [("p0", "A", "1", 1.0), ("p1", "A", "1", 1.0)] + [("p2", "A", str(b), 4.0) for b in range(50)]
    low, high = _differences(unequal).interval("perturbation")
    assert (low, high) == (1.0, 4.0)
    assert _differences(rows).interval("perturbation") is None


def test_a_folder_without_batches_is_read_as_pooled(make_folder):
    evaluation = Evaluation.load(make_folder(n_perturbations=3, n_genes=5, n_cells=3))
    assert {batch for _, _, batch in evaluation.conditions} == {""}
    assert set(evaluation.projection.table["assay_batch"]) == {""}
    assert {batch for _, _, batch in evaluation.genes.conditions} == {""}
    assert (evaluation.unit, evaluation.n_units) == ("perturbation", 3)


def test_methods_that_are_level_have_no_star_and_one_that_is_ahead_of_all_has_it(make_folder, tmp_path):
    skills = {"model": 0.6, "copy": 0.6}
    evaluation = Evaluation.load(make_folder(files=skills, n_perturbations=8, n_genes=5, n_cells=3))
    comparer = Comparer(evaluation)
    (energy,) = [metric for metric in evaluation.metrics if metric.name == "energy_distance"]
    values = {one.name: evaluation.score(energy, one.name).value for one in evaluation.methods if one.kind != "ceiling"}
    assert comparer.outcome(energy, "model", "copy") == LEVEL
    assert comparer.outcome(energy, "model", "ridge") == AHEAD
    assert comparer.starred(energy, values) is None
    assert comparer.starred(energy, {name: value for name, value in values.items() if name != "copy"}) == "model"


def test_the_figure_names_batches_and_its_mean_is_over_the_batches_of_a_pair_first():
    rows = [("m", "p", "A", "1", 0.0), ("m", "p", "A", "2", 1.0), ("m", "q", "A", "1", 0.1)]
    table = pd.DataFrame(rows, columns=["method", "perturbation", "cell_type", "assay_batch", "value"])
    drawn = figure(table.assign(metric="pearson_of_change"))
    (axes,) = drawn.axes
    assert [one.get_text() for one in axes.get_yticklabels()] == ["mean of 3", "p · 1", "p · 2", "q · 1"]
    mean = axes.collections[-1].get_offsets()
    assert float(mean[0, 0]) == pytest.approx((0.5 + 0.1) / 2)
