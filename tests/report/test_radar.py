"""The radar: positions read back from the drawing are those of the scores, whatever the scores are."""

import re
from xml.etree import ElementTree as ET

import numpy as np
import pandas as pd
import pytest

from perturbdiff.figures.radar import CENTRE, RIM
from perturbdiff.report.drawings import radar_of
from perturbdiff.results.evaluation import Evaluation

METRICS = ("R2", "PDCorr", "MAE", "MSE", "PDS_L1")
CENTRE_OF_DRAWING = np.array([215.0, 168.0])


@pytest.fixture
def drawn(make_folder):
    """Draw the scaled scores of a model by five metrics; the drawing, and its elements."""
    folder = make_folder(n_perturbations=3, n_genes=5, n_cells=3)
    overall = pd.read_csv(folder / "overall.csv")

    def make(scores):
        own = overall["suite"].ne("paper") | overall["metric"].isin(METRICS)
        table = overall[own].copy()
        for metric, score in zip(METRICS, scores, strict=True):
            table.loc[(table["metric"] == metric) & (table["method"] == "model"), "scaled"] = score
        table.to_csv(folder / "overall.csv", index=False, na_rep="nan")
        drawing = radar_of(Evaluation.load(folder))
        return drawing, ET.fromstring(str(drawing.panels[0].svg))  # noqa: S314

    return make


def _radii(path):
    numbers = np.array([float(one) for one in re.findall(r"-?\d+(?:\.\d+)?", path.attrib["d"])]).reshape(-1, 2)
    return np.linalg.norm(numbers - CENTRE_OF_DRAWING, axis=1)[:-1]


def _rings(svg):
    """The radius of each ring by its label."""
    lines = [one for one in svg.iter("path") if re.search(r"stroke-width:(0\.8|1\.3)(;|$)", _style(one))]
    closed = sorted(float(_radii(one).mean()) for one in lines if one.attrib["d"].count("L") == len(METRICS))
    labels = [one.text for one in svg.iter("text") if re.fullmatch(r"[\d.]+", one.text or "")]
    return dict(zip(sorted(labels, key=float), closed, strict=True))


def _style(path):
    return path.attrib.get("style", "")


def _model(svg):
    """The score of each mark of the model by its title, read back by the rings 0 and 1."""
    rings = _rings(svg)
    found = {}
    for path in svg.iter("path"):
        title = path.find("title")
        if title is not None:
            x, y = map(float, re.match(r"M(-?\d+) (-?\d+)", path.attrib["d"]).groups())
            radius = float(np.linalg.norm(np.array([x, y]) / 10 - CENTRE_OF_DRAWING))
            metric = title.text.removeprefix("model, ").partition(":")[0].replace(" ", "_")
            found[metric] = (radius - rings["0"]) / (rings["1"] - rings["0"])
    return [found[metric] for metric in METRICS]


@pytest.mark.parametrize(
    "scores",
    [
        [0.0, 0.0, 0.0, 0.0, 0.0],
        [0.02, -0.03, 0.01, 0.0, -0.01],
        [1.0, 1.0, 1.0, 1.0, 1.0],
        [0.1, 0.25, 0.5, 0.75, 0.9],
        [-0.1, -0.25, -0.4, -0.5, 0.5],
        [1.05, 1.1, 1.2, 1.25, 0.5],
    ],
)
def test_positions_read_back_from_the_drawing_are_the_scores_and_all_rings_are_there(drawn, scores):
    _, svg = drawn(scores)
    rings = _rings(svg)
    assert list(rings) == ["0", "0.5", "1"]
    unit = rings["1"] - rings["0"]
    assert rings["0.5"] == pytest.approx((rings["0"] + rings["1"]) / 2, abs=0.1)
    assert rings["0"] / unit == pytest.approx(-CENTRE, abs=0.01)
    assert _model(svg) == pytest.approx(scores, abs=0.005)
    (line,) = [one for one in svg.iter("path") if "stroke-width:2;" in _style(one) + ";" and "d" in one.attrib]
    order = [1, 2, 3, 4, 0]  # R2 stands last
    expected = [rings["0"] + unit * scores[i] for i in order]
    assert _radii(line) == pytest.approx(expected, abs=0.15)


def test_scores_beyond_the_ends_are_at_the_ends_and_crossed(drawn):
    drawing, svg = drawn([-3.0, 0.5, 1.2, 7.0, -0.51])
    assert _model(svg) == pytest.approx([CENTRE, 0.5, 1.2, RIM, CENTRE], abs=0.005)
    assert "3 values lie beyond the centre or the rim and are crossed there." in drawing.caption
    crosses = [one for one in svg.iter("path") if "stroke-width:13" in _style(one) and "--ink" in _style(one)]
    assert sum(one.attrib["d"].count("M") for one in crosses) == 3
    drawing, _ = drawn([0.0, 0.5, 1.2, 1.0, -0.5])
    assert not any("crossed" in one for one in drawing.caption)
