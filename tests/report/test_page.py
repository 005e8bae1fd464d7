"""The page says what the folder holds, needs nothing else, and can be read by everyone."""

import re

import numpy as np
import pandas as pd
import pytest

from perturbdiff.report.page import prose, soft
from perturbdiff.report.writing import write_report

SUITES = ("ours", "paper", "vcc2026")


@pytest.fixture(scope="module")
def written(evaluation_folder, tmp_path_factory):
    """The page of the shared evaluation."""
    out = tmp_path_factory.mktemp("report") / "report.html"
    write_report(evaluation_folder, out)
    return out


@pytest.fixture
def page(written, elements):
    return elements(written)


def _number(text):
    """The number that is written, and half of its last digit."""
    text = text.replace("−", "-").replace("+", "").removesuffix("★ best").strip()
    return float(text), 0.500001 * 10.0 ** -len(text.partition(".")[2])


def _is(text, value):
    number, half = _number(text)
    return abs(number - value) <= half


def _ends(text):
    return re.split("–| to ", text)


def _rows(table):
    """The cells of a table by the title of the row and the name of the column."""
    header = [_name(cell) for cell in table.one("thead").all("th")]
    found = {}
    for row in table.one("tbody").all("tr"):
        title, *cells = (one for one in row.inside if not isinstance(one, str))
        found[_name(title)] = dict(zip(header[1:], cells, strict=True))
    return found


def _name(cell):
    """What a heading says, without the words on kind or direction under it."""
    words = [one if isinstance(one, str) else "" for one in cell.inside]
    return " ".join("".join(words).split())


def _checked(cell, row):
    assert _is(cell.one("span", class_="value").text, row.value)
    low, high = _ends(cell.one("span", class_="interval").text)
    assert _is(low, row.low)
    assert _is(high, row.high)
    scaled = cell.all("span", class_="scaled")
    assert bool(scaled) == np.isfinite(row.scaled)
    if scaled:
        assert _is(scaled[0].text.split()[1], row.scaled)


def test_every_number_of_the_tables_of_metrics_is_that_of_the_folder(page, evaluation_folder):
    overall = pd.read_csv(evaluation_folder / "overall.csv")
    seen = 0
    for number, suite in enumerate(SUITES, start=1):
        table = _rows(page.one("table", id=f"scores-{number}"))
        for row in overall[overall["suite"] == suite].itertuples():
            _checked(table[row.metric.replace("_", " ")][row.method], row)
            seen += 1
    assert seen == len(overall)


def test_the_star_stands_at_the_best_of_files_and_baselines(page, evaluation_folder):
    overall = pd.read_csv(evaluation_folder / "overall.csv").set_index(["metric", "method"])["value"]
    table = _rows(page.one("table", id="scores-1"))
    stars = {title: [name for name, cell in cells.items() if "best" in cell.text] for title, cells in table.items()}
    goodness = {"energy distance": -1, "mmd": -1, "pearson of change": 1}
    for title, sign in goodness.items():
        values = sign * overall[title.replace(" ", "_")].drop("ceiling")
        assert stars[title] == [values.idxmax()]
    distance = (overall["spread_ratio"].drop("ceiling") - 1).abs()
    assert stars["spread ratio"] == [distance.idxmin()]
    assert stars["zeros observed"] == []


def test_the_headline_table_shows_the_model_the_best_baseline_and_the_ceiling_of_the_folder(page, evaluation_folder):
    overall = pd.read_csv(evaluation_folder / "overall.csv").set_index(["metric", "method"])
    for title, cells in _rows(page.one("table", id="glance")).items():
        own = overall.loc[title.replace(" ", "_")]
        _checked(cells["model"], own.loc["model"])
        _checked(cells["ceiling"], own.loc["ceiling"])
        beside = cells["best baseline"]
        assert _is(beside.one("span", class_="value").text, own.loc[beside.one("span", class_="by").text, "value"])


def test_the_tables_of_cell_types_are_those_of_the_folder(page, evaluation_folder):
    contexts = pd.read_csv(evaluation_folder / "contexts.csv")
    section = next(one for one in page.all("section") if one.attributes["aria-labelledby"] == "contexts")
    titles = [one.text for one in section.all("h3")]
    assert titles == ["energy distance", "PDCorr", "PDS L1", "DEOver"]
    for number, title in enumerate(titles, start=1):
        table = _rows(page.one("table", id=f"context-{number}"))
        for row in contexts[contexts["metric"] == title.replace(" ", "_")].itertuples():
            _checked(table[row.cell_type][row.method], row)


def test_win_rates_are_those_of_the_conditions(page, evaluation_folder):
    scores = pd.read_csv(evaluation_folder / "metrics.csv", keep_default_na=False)
    wide = scores.pivot_table(index=["metric", "perturbation", "cell_type"], columns="method", values="value")
    for title, cells in _rows(page.one("table", id="wins")).items():
        metric = title.replace(" ", "_")
        own = wide.loc[metric]
        lower = metric in {"energy_distance", "MAE", "MSE"}
        rate = 100 * float(((own["model"] < own["ridge"]) == lower).mean())
        assert cells["model"].one("span", class_="value").text.startswith(f"{rate:.0f} %")


def test_tables_of_genes_begin_with_the_surest_and_hold_the_tests_of_the_folder(page, evaluation_folder):
    genes = (
        pd.read_parquet(evaluation_folder / "genes.parquet")
        .set_index(["side", "perturbation", "cell_type", "gene"])
        .sort_index()
    )
    for condition in page.all("div", class_="condition"):
        perturbation, cell_type = condition.all("h3")[0].text.split(" | ")
        for leading, table in zip(("observed", "model"), condition.all("table", class_="top"), strict=True):
            own = genes.loc[(leading, perturbation, cell_type)]
            rows = [[cell.text for cell in row.inside if not isinstance(cell, str)] for row in table.all("tr")[2:]]
            adjusted = [own.loc[row[0], "p_adjusted"] for row in rows]
            assert adjusted == sorted(adjusted)
            assert adjusted[-1] <= own.drop(index=[row[0] for row in rows])["p_adjusted"].min()
            for gene, change, p, *_ in rows:
                assert _is(change, own.loc[gene, "change"])
                assert float(p.replace("−", "-")) == pytest.approx(own.loc[gene, "p_adjusted"], rel=0.06, abs=6e-4)


def test_conditions_with_more_truly_de_genes_come_first(page, evaluation_folder):
    genes = pd.read_parquet(evaluation_folder / "genes.parquet")
    found = genes[(genes["side"] == "observed") & (genes["p_adjusted"] < 0.05)]
    n = found.groupby(["perturbation", "cell_type"]).size()
    shown = [tuple(one.text.split(" | ")) for one in page.one("select", id="condition").all("option")]
    counts = [n[condition] for condition in shown]
    assert len(counts) == 16
    assert counts == sorted(counts, reverse=True)


def test_the_chosen_condition_is_the_first(evaluation_folder, tmp_path, elements):
    write_report(evaluation_folder, tmp_path / "report.html", condition="gene 2 | B cells")
    page = elements(tmp_path / "report.html")
    assert page.one("select", id="condition").all("option")[0].text == "gene 2 | B cells"
    assert "hidden" not in page.one("div", id="condition-1").attributes
    assert "hidden" in page.one("div", id="condition-2").attributes


def test_gains_go_from_the_greatest_to_the_greatest_loss(page, evaluation_folder):
    scores = pd.read_csv(evaluation_folder / "metrics.csv", keep_default_na=False)
    wide = scores.pivot_table(index=["metric", "perturbation", "cell_type"], columns="method", values="value")
    first, _ = page.all("table", class_="gains")
    rows = first.one("tbody").all("tr")
    gains = [_number(row.all("td")[2].text)[0] for row in rows]
    assert len(gains) == 16
    assert gains == sorted(gains, reverse=True)
    for row in rows:
        own = wide.loc[("energy_distance", _name(row.one("th")), row.one("span", class_="by").text)]
        assert _is(row.all("td")[0].text, own["model"])
        assert _is(row.all("td")[2].text, own["ridge"] - own["model"])


def test_of_many_conditions_the_ends_are_listed_and_the_others_counted(make_folder, tmp_path, elements):
    write_report(make_folder(n_perturbations=30, n_genes=5, n_cells=3), tmp_path / "report.html")
    first, _ = elements(tmp_path / "report.html").all("table", class_="gains")
    rows = [row.text for row in first.one("tbody").all("tr")]
    assert len(rows) == 17
    assert rows[8] == "44 conditions between"


def test_methods_stand_as_predicted_files_then_baselines_then_ceilings(page):
    for number in (1, 2, 3):
        kinds = [one.text for one in page.one("table", id=f"scores-{number}").one("thead").all("span", class_="kind")]
        assert kinds == ["predicted", "baseline", "baseline", "baseline", "ceiling"]


def test_the_page_names_nothing_outside_itself(written, page):
    text = written.read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", text)
    for one in page.all():
        assert not {"src", "srcset", "action", "data", "xlink:href"} & set(one.attributes)
        if "href" in one.attributes:
            assert one.attributes["href"].startswith("#") or one.attributes["href"] == "data:,"
    policy = page.one("meta", **{"http-equiv": "Content-Security-Policy"}).attributes["content"]
    assert policy.startswith("default-src 'none'")


def test_every_figure_says_what_it_shows_to_a_reader_who_cannot_see_it(page):
    drawn = page.all("svg")
    named = [one.attributes.get("aria-label", "") for one in drawn if one.attributes.get("role") == "img"]
    assert len(named) == len(set(named)) > 40
    assert all(len(label) > 20 for label in named)
    others = [one for one in drawn if one.attributes.get("role") != "img"]
    assert all(one.attributes.get("aria-hidden") == "true" for one in others)


def test_ids_are_unique_and_whatever_is_referred_to_is_there(written, page):
    ids = [one.attributes["id"] for one in page.all() if "id" in one.attributes]
    assert len(ids) == len(set(ids))
    text = written.read_text(encoding="utf-8")
    named = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"|aria-labelledby="([^"]+)"|for="([^"]+)"', text)
    assert {name for group in named for name in group if name} <= set(ids)


def test_every_table_has_headings_and_scrolls_by_itself(page):
    for table in page.all("table"):
        assert all("scope" in cell.attributes for cell in table.all("th"))
    assert len(page.all("div", class_="scroll", tabindex="0", role="region")) == len(page.all("table"))


def test_labels_are_text_whatever_signs_they_hold(page, written):
    scripts = page.all("script")
    assert len(scripts) == 1
    options = [one.text for one in page.one("select", id="condition").all("option")]
    for label in ("<script>alert(1)</script>", 'A & "B"', "$x_1$", "nan"):
        assert f"{label} | T cells" in options
    assert "<script>alert" not in written.read_text(encoding="utf-8")


def test_a_report_repeats_to_the_last_byte(written, evaluation_folder, tmp_path):
    write_report(evaluation_folder, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == written.read_bytes()


def test_the_page_leads_with_warnings_and_never_with_r2(page, written):
    assert "2 warnings" in page.one("h2", id="warnings").text
    text = written.read_text(encoding="utf-8")
    assert text.index('id="warnings"') < text.index('id="summary"')
    assert "R2" not in " ".join(_rows(page.one("table", id="glance")))
    assert "R2" not in page.one("p", class_="verdict").text
    assert list(_rows(page.one("table", id="scores-2")))[-1] == "R2"


def test_a_missing_value_is_a_dash_and_never_nan(make_folder, tmp_path, elements):
    folder = make_folder(n_perturbations=3, n_genes=20, n_cells=3)
    for name in ("metrics.csv", "overall.csv", "contexts.csv"):
        table = pd.read_csv(folder / name, keep_default_na=False)
        lost = (table["metric"] == "DEOver") & (table["method"] == "model")
        numbers = table.columns.intersection(["value", "low", "high", "scaled", "scaled_low", "scaled_high"])
        table.loc[lost, list(numbers)] = np.nan
        table.to_csv(folder / name, index=False, na_rep="nan")
    write_report(folder, tmp_path / "report.html")
    page = elements(tmp_path / "report.html")
    assert _rows(page.one("table", id="scores-2"))["DEOver"]["model"].text == "–"
    words = {word for one in (*page.all("td"), *page.all("p"), *page.all("text")) for word in one.text.split()}
    assert not {"nan", "NaN", "inf", "None"} & words


def test_a_headline_metric_that_says_little_is_marked(make_folder, change, tmp_path, elements):
    folder = make_folder(n_perturbations=3, n_genes=20, n_cells=3)
    blind_metric = {"suite": "paper", "metric": "PDCorr", "baseline": 0.4, "ceiling": 0.41, "difference": 0.01}
    keen = blind_metric | {
        "metric": "DEOver",
        "ceiling": 0.7,
        "difference": 0.3,
        "low": 0.2,
        "high": 0.4,
        "apart": True,
    }
    near = keen | {"suite": "ours", "metric": "spread_ratio"}
    change(folder, dynamic_range=[blind_metric | {"low": -0.1, "high": 0.1, "apart": False}, keen, near])
    overall = pd.read_csv(folder / "overall.csv")
    lost = (overall["metric"] == "DEOver") & (overall["method"] == "model")
    overall.loc[lost, ["conditions", "undefined"]] = [6, 2]
    overall.to_csv(folder / "overall.csv", index=False, na_rep="nan")
    report = write_report(folder, tmp_path / "report.html")
    page = elements(tmp_path / "report.html")
    rows = {row.one("th").text: row for row in page.one("table", id="glance").one("tbody").all("tr")}
    marked = {title.split()[0]: [one.text for one in row.all("span", class_="caveat")] for title, row in rows.items()}
    assert marked["PDCorr"] == ["ceiling and baseline not told apart"]
    assert marked["DEOver"] == ["undefined in 2 of 6"]
    assert marked["energy"] == []
    assert "Undefined are DEOver in 2 of 6 conditions." in report.summary.sentences
    assert any(one.startswith("Ceiling and baseline are not told apart by PDCorr") for one in report.summary.sentences)
    ranges = page.one("table", class_="ranges")
    said = [[cell.text for cell in (*row.all("th"), *row.all("td"))] for row in ranges.one("tbody").all("tr")]
    assert said == [
        ["PDCorr", "0.400", "0.410", "0.010", "−0.100 to 0.100", "not told apart"],
        ["DEOver", "0.400", "0.700", "0.300", "0.200–0.400", "told apart"],
        ["spread ratio (distance from 1)", "0.400", "0.700", "0.300", "0.200–0.400", "told apart"],
    ]


def test_options_in_sentences_are_code_and_names_may_be_broken_at_their_joints():
    assert str(prose("give <it> by --run, or --recipe.")) == (
        "give &lt;it&gt; by <code>--run</code>, or <code>--recipe</code>."
    )
    assert str(soft("a_b<c>/d")) == "a_<wbr>b&lt;c&gt;/<wbr>d"


def test_cells_that_umap_placed_are_drawn_and_where_none_were_the_page_says_how(page, tmp_path, make_folder, elements):
    assert "No cells were placed by UMAP; evaluate --umap places some." in page.text
    folder = make_folder()
    cells = pd.read_parquet(folder / "cells.parquet")
    rng = np.random.default_rng(0)
    cells = cells.assign(umap1=rng.normal(size=len(cells)), umap2=rng.normal(size=len(cells)))
    cells.loc[cells.index % 4 > 0, ["umap1", "umap2"]] = np.nan
    cells.to_parquet(folder / "cells.parquet")
    write_report(folder, tmp_path / "report.html")
    drawn = elements(tmp_path / "report.html")
    assert "No cells were placed by UMAP" not in drawn.text
    labels = [one.attributes.get("aria-label", "") for one in drawn.all("svg")]
    sides = [f"Cells of {side} on UMAP 1 and UMAP 2." for side in ("control", "observed", "model")]
    assert [label for label in labels if "UMAP" in label] == sides
    notes = [one.text.strip() for one in drawn.all("p", class_="note")]
    assert f"{(cells['side'] == 'model').sum() // 4} cells" in notes
