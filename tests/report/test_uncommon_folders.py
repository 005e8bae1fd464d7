"""Folders that lack a part, hold little or hold much make a page too."""

import json

import pandas as pd
import pytest

from perturbdiff.report.writing import write_report


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ("contexts.csv", "contexts.csv is missing, so there are no tables for each cell type."),
        ("genes.parquet", "genes.parquet is missing, so there are no densities, no volcano plots"),
        ("cells.parquet", "cells.parquet is missing, so there is no projection of the cells."),
        ("run", "names no training run, so there is no training curve; give evaluate the model by --run."),
        ("audit", "names no split, so leakage was not audited; give evaluate the model by --run."),
    ],
)
def test_what_the_folder_lacks_is_named_and_all_else_is_shown(make_folder, change, tmp_path, elements, part, sentence):
    folder = make_folder(n_perturbations=3, n_genes=20, n_cells=3)
    if "." in part:
        (folder / part).unlink()
    else:
        change(folder, **{part: None})
    report = write_report(folder, tmp_path / "report.html")
    page = elements(tmp_path / "report.html")
    assert any(sentence in one.text for one in page.all("p", class_="absent"))
    assert [sentence in text for text in report.evaluation.missing.values()] == [True]
    assert [sentence in text for text in json.loads((tmp_path / "report.json").read_text())["not_shown"].values()]
    assert page.one("table", id="glance").all("tr")


def test_a_folder_of_our_metrics_alone_says_that_there_is_no_radar(make_folder, tmp_path, elements):
    folder = make_folder(n_perturbations=3, n_genes=20, n_cells=3)
    for name in ("metrics.csv", "overall.csv", "contexts.csv"):
        table = pd.read_csv(folder / name, keep_default_na=False)
        table[table["suite"] == "ours"].to_csv(folder / name, index=False)
    write_report(folder, tmp_path / "report.html")
    absent = " ".join(one.text for one in elements(tmp_path / "report.html").all("p", class_="absent"))
    assert "The paper's metrics are missing from the evaluation, so there is no radar of them." in absent
    assert "The metrics of vcc2026 are missing from the evaluation." in absent


def test_one_condition_no_baseline_and_no_de_gene_make_a_page_too(make_folder, tmp_path, elements):
    folder = make_folder(baselines={}, n_perturbations=1, cell_types=("",), n_genes=5, n_cells=3)
    genes = pd.read_parquet(folder / "genes.parquet").assign(p_adjusted=1.0)
    genes.to_parquet(folder / "genes.parquet")
    content = json.loads((folder / "metrics.json").read_text()) | {"baseline": "", "warnings": [], "notes": []}
    (folder / "metrics.json").write_text(json.dumps(content))
    write_report(folder, tmp_path / "report.html")
    page = elements(tmp_path / "report.html")
    assert page.one("p", class_="verdict").text.startswith("“model” was judged beside no baseline")
    assert not page.all("h2", id="warnings")


def test_many_files_keep_colours_and_shapes_apart(make_folder, tmp_path, elements):
    files = {f"file {i}": 0.1 * i for i in range(7)}
    write_report(make_folder(files=files, n_perturbations=3, n_genes=20, n_cells=3), tmp_path / "report.html")
    page = elements(tmp_path / "report.html")
    section = next(one for one in page.all("section") if one.attributes["aria-labelledby"] == "radar")
    samples = [key.one("svg") for key in section.one("ul", class_="legend").all("li")]
    styles = [[(one.attributes["d"], one.attributes["style"]) for one in sample.all("path")] for sample in samples]
    assert len({str(style) for style in styles}) == len(samples) == 7
