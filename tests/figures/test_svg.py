"""Figures inside the page: small, safe, of named colours that everyone can tell apart."""

import re
from importlib.resources import files
from xml.etree import ElementTree as ET

import numpy as np
import pandas as pd
import pytest

from perturbdiff.figures import density, numbers
from perturbdiff.figures.looks import CEILING, COLOURS, FILES, REFERENCE, Look
from perturbdiff.figures.svg import Panel, tick
from perturbdiff.results.parts import Genes

OKABE_ITO = {"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"}


def _drawn(prefix="one"):
    panel = Panel()
    panel.view((0, 10), (0, 10))
    panel.labels("$x_1$ & <b>", "up\x00")
    panel.axes.plot([-5, 15], [2, 3], color=COLOURS["blue"])
    panel.marks([1, 20, np.nan], [1, 1, 1], Look("green", "square"), titles=["in <here>", "far", "nowhere"])
    return panel.write(prefix, 'a "label"')


def test_a_panel_is_an_image_with_a_name_and_its_texts_stay_texts():
    root = ET.fromstring(_drawn())  # noqa: S314 - written by the line before
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == 'a "label"'
    texts = [one.text for one in root.iter("text")]
    assert "$x_1$ & <b>" in texts
    assert "up\N{REPLACEMENT CHARACTER}" in texts


def test_colours_are_variables_of_the_page_and_fonts_are_its_own():
    text = str(_drawn())
    assert "var(--blue)" in text
    assert "var(--green)" in text
    assert not re.search(r"#[0-9a-f]{6}|font-family|DejaVu|xmlns", text)


def test_marks_outside_are_left_out_and_the_others_say_what_they_are():
    titles = [one.text for one in ET.fromstring(_drawn()).iter("title")]  # noqa: S314 - our own
    assert titles == ["in <here>"]


def test_panels_share_a_page_without_sharing_ids():
    found = [set(re.findall(r' id="([^"]+)"', str(_drawn(prefix)))) for prefix in ("one", "two")]
    assert found[0]
    assert found[1]
    assert not found[0] & found[1]


def test_looks_differ_in_colour_in_shape_and_in_line_and_bright_colours_are_those_of_okabe_and_ito():
    for part in ("colour", "shape"):
        assert len({getattr(look, part) for look in FILES}) == len(FILES)
    assert len({str(look.dash) for look in (*FILES, REFERENCE, CEILING)}) == len(FILES) + 2
    assert {look.hex for look in FILES} <= OKABE_ITO


def _palettes():
    style = (files("perturbdiff.report") / "style.css").read_text()
    light, dark = (dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", part)) for part in style.split("@media", 2)[:2])
    return {"light": light, "dark": dark}


def _contrast(one, other):
    def luminance(colour):
        channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_from_every_surface_in_light_and_in_dark(scheme):
    palette = _palettes()[scheme]
    assert set(COLOURS) <= set(palette)
    for text in ("ink", "muted"):
        for surface in ("surface", "raised", "warn", "best"):
            assert _contrast(palette[text], palette[surface]) >= 4.5, (text, surface)
    assert _contrast(palette["blue"], palette["surface"]) >= 4.5
    assert all(_contrast(palette[look.colour], palette["surface"]) >= 2.2 for look in FILES)


def test_ticks_and_numbers_have_few_digits_and_a_true_minus():
    assert [tick(value) for value in (0.0, 1e-15, 0.25, -2.0, 1500.0)] == ["0", "0", "0.25", "−2", "1500"]
    assert numbers.fixed(-0.0001, 2) == "0.00"
    assert numbers.short(-0.01234) == "−0.0123"
    assert numbers.short(3e-9) == "3.0e−9"
    assert numbers.power(1.2e-30) == "1.2e−30"
    assert numbers.decimals([0.0123, 1.5]) == 2
    assert numbers.listed("abc") == "a, b and c"
    assert numbers.listed(map(str, range(10))) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"


def test_a_density_holds_all_its_mass_and_is_that_of_the_law():
    values = np.random.default_rng(0).exponential(1.0, 200_000)
    curve = density.smooth(values.astype(np.float32), 8.0)
    step = 8.0 / len(curve)
    assert curve.sum() * step == pytest.approx(1 - np.exp(-8), abs=0.01)
    grid = step * (np.arange(len(curve)) + 0.5)
    away = grid > 0.5  # at 0 the kernel rounds the corner off
    assert np.allclose(curve[away], np.exp(-grid[away]), atol=0.03)


def test_genes_are_read_as_they_stand_in_whatever_order_and_rows_may_be_missing(tmp_path):
    rng = np.random.default_rng(0)
    labels = [
        (side, perturbation, cell_type, gene)
        for side in ("observed", "model")
        for perturbation in ("p", "q")
        for cell_type in ("A", "B")
        for gene in ("g", "h", "i")
    ]
    table = pd.DataFrame(labels, columns=["side", "perturbation", "cell_type", "gene"])
    table = table.assign(change=rng.normal(size=24), p_adjusted=rng.random(24) ** 8, p_value=0.0, mean=0.0)
    table = table.sample(frac=1, random_state=0).iloc[:-1]
    table.to_parquet(tmp_path / "genes.parquet", row_group_size=5)
    genes = Genes.read(tmp_path / "genes.parquet")
    assert np.isnan(list(genes.change.values())).sum() == 1
    for row in table.itertuples():
        place = genes.conditions.index((row.perturbation, row.cell_type, "")), genes.names.index(row.gene)
        assert genes.change[row.side][place] == pytest.approx(row.change, rel=1e-6)
        assert genes.evidence[row.side][place] == pytest.approx(-np.log10(row.p_adjusted), rel=1e-5)
