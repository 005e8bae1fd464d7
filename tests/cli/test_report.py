"""perturbdiff report: from the folder of an evaluation to a page, or one sentence."""

import json
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from perturbdiff.cli import main


@pytest.fixture
def folder(tmp_path):
    """The least that the folder of an evaluation holds."""
    keys = {"suite": "ours", "metric": "energy_distance"}
    values = {"mine": [0.1, 0.2, 0.1], "control": [0.4, 0.5, 0.6], "ceiling": [0.0, 0.01, 0.0]}
    table = pd.DataFrame(
        [
            keys | {"method": name, "perturbation": f"p{i}", "cell_type": "T", "value": value}
            for name, own in values.items()
            for i, value in enumerate(own)
        ]
    )
    means = table.groupby("method", sort=False)["value"].mean()
    overall = pd.DataFrame([keys | {"method": name, "value": value} for name, value in means.items()])
    scores = ["low", "high", "scaled", "scaled_low", "scaled_high"]
    overall = overall.assign(**dict.fromkeys(scores, float("nan")), conditions=3, undefined=0)
    (tmp_path / "eval").mkdir()
    table.to_csv(tmp_path / "eval" / "metrics.csv", index=False)
    overall.to_csv(tmp_path / "eval" / "overall.csv", index=False, na_rep="nan")
    kinds = {"mine": "predicted", "control": "baseline", "ceiling": "ceiling"}
    content = {
        "methods": [{"name": name, "kind": kind, "about": ""} for name, kind in kinds.items()],
        "legend": {"ours": {"energy_distance": {"better": "lower", "meaning": "", "range": ""}}},
        "headline": ["energy_distance"],
        "warnings": [{"kind": "few", "text": "only 3 perturbations are judged."}],
    }
    (tmp_path / "eval" / "metrics.json").write_text(json.dumps(content))
    return tmp_path / "eval"


@pytest.fixture
def perturbdiff(monkeypatch, capsys):
    """Call the program; gives its exit status, what it prints, and what it says."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["perturbdiff", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    return call


def test_report_writes_page_json_and_csv_and_prints_the_verdict(perturbdiff, folder, tmp_path):
    status, out, err = perturbdiff("report", folder, "--out", tmp_path / "report.html", "--against", "control")
    assert status == 0
    assert out.startswith("“mine” is ahead of every baseline, beyond the 95 % interval over 3 perturbations")
    assert "only 3 perturbations are judged." in " ".join(err.split())
    assert "genes.parquet is missing" in " ".join(err.split())
    assert {path.suffix for path in tmp_path.glob("report.*")} == {".html", ".json", ".csv"}


def test_a_quiet_report_prints_the_verdict_alone(perturbdiff, folder, tmp_path):
    status, out, err = perturbdiff("report", folder, "--out", tmp_path / "report.html", "--quiet")
    assert (status, err) == (0, "")
    assert out.startswith("“mine” is ahead")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--out", "report.txt"], "does not end in .html"),
        (["--out", "report.html", "--against", "contrl"], "--against 'contrl' is none of the 3 methods"),
        (["--out", "report.html", "--condition", "p0 | T"], "the evaluation has no genes.parquet"),
    ],
)
def test_bad_options_are_one_sentence_and_exit_status_2(perturbdiff, folder, tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    status, out, err = perturbdiff("report", folder, *words)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert sentence in err
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("report*"))


def test_a_folder_that_is_none_of_an_evaluation_is_refused(perturbdiff, tmp_path):
    status, _, err = perturbdiff("report", tmp_path, "--out", tmp_path / "report.html")
    assert status == 2
    assert "has no metrics.json, so it is not the folder of an evaluation; give the folder that" in err


def test_a_page_is_not_replaced_unasked(perturbdiff, folder, tmp_path):
    (tmp_path / "report.html").write_text("mine")
    status, _, err = perturbdiff("report", folder, "--out", tmp_path / "report.html")
    assert status == 2
    assert "exists already" in err
    assert perturbdiff("report", folder, "--out", tmp_path / "report.html", "--overwrite")[0] == 0


def test_report_reads_what_evaluate_writes(perturbdiff, tmp_path):
    rng = np.random.default_rng(0)
    genes = pd.DataFrame(index=[f"G{i}" for i in range(20)])
    labels = np.repeat(["control", "A", "B", "C"], 16)
    rates = 1.0 + 5.0 * rng.random((4, 20))
    for name, kept in (("observed", slice(None)), ("mine", labels != "control")):
        counts = rng.poisson(np.repeat(rates, 16, axis=0)).astype(np.float32)[kept]
        cells = pd.DataFrame({"gene": labels[kept], "kind": "T"}, index=[f"{name}{i}" for i in range(len(counts))])
        ad.AnnData(sp.csr_matrix(counts), obs=cells, var=genes).write_h5ad(tmp_path / f"{name}.h5ad")
    columns = ["--perturbation", "gene", "--control", "control", "--cell-type", "kind"]
    scales = ["--scale", "counts", "--predicted-scale", "counts", "--suites", "ours", "--bootstrap", 50]
    files = [tmp_path / "mine.h5ad", tmp_path / "observed.h5ad"]
    status, _, err = perturbdiff("evaluate", *files, "--out", tmp_path / "eval", *columns, *scales)
    assert status == 0, err
    status, out, err = perturbdiff("report", tmp_path / "eval", "--out", tmp_path / "report.html")
    assert (status, out.startswith("“mine” is ")) == (0, True), err
    overall, found = pd.read_csv(tmp_path / "eval" / "overall.csv"), pd.read_csv(tmp_path / "report.csv")
    pd.testing.assert_frame_equal(found[list(overall.columns)], overall)
    content = json.loads((tmp_path / "report.json").read_text())
    assert set(content["not_shown"]) == {"paper", "vcc2026", "history", "audit"}
    assert content["headline"]
    assert content["legend"][0]["meaning"]
