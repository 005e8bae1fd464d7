"""The files beside the page hold the folder's numbers, and bad input is one sentence."""

import json

import numpy as np
import pandas as pd
import pytest

from perturbdiff.report.writing import write_report


@pytest.fixture
def small(make_folder):
    return make_folder(n_perturbations=3, n_genes=20, n_cells=3)


def test_the_csv_is_the_overall_table_with_kind_best_and_win_rate(small, tmp_path):
    write_report(small, tmp_path / "report.html", against="control")
    overall, found = pd.read_csv(small / "overall.csv"), pd.read_csv(tmp_path / "report.csv")
    pd.testing.assert_frame_equal(found[list(overall.columns)], overall)
    assert list(found.columns[len(overall.columns) :]) == ["kind", "best", "against", "win_rate"]
    assert (found["against"] == "control").all()
    best = found[found["best"] & (found["metric"] == "energy_distance")]
    assert list(best["method"]) == ["model"]
    scores = pd.read_csv(small / "metrics.csv", keep_default_na=False)
    wide = scores[scores["metric"] == "energy_distance"].pivot_table(
        index=["perturbation", "cell_type"], columns="method", values="value"
    )
    row = found[(found["metric"] == "energy_distance") & (found["method"] == "ridge")]
    assert row["win_rate"].item() == (wide["ridge"] < wide["control"]).mean()
    assert found.loc[found["method"] == "control", "win_rate"].isna().all()


def test_the_json_holds_the_tables_the_verdict_and_what_is_not_shown(small, tmp_path):
    (small / "cells.parquet").unlink()
    report = write_report(small, tmp_path / "report.html")
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    overall = pd.read_csv(small / "overall.csv")
    summary = pd.DataFrame(content["summary"])[list(overall.columns)]
    pd.testing.assert_frame_equal(summary.fillna(np.nan), overall, check_dtype=False)
    assert len(content["contexts"]) == len(pd.read_csv(small / "contexts.csv"))
    assert content["verdict"] == report.summary.paragraph
    assert content["against"] == "ridge"
    assert [one["metric"] for one in content["headline"]] == ["energy_distance", "PDCorr", "PDS_L1", "DEOver"]
    assert set(content["not_shown"]) == {"cells"}
    assert [one["kind"] for one in content["warnings"]] == ["metric", "collapse"]


def test_files_are_written_whole_and_none_beside_them(small, tmp_path):
    out = tmp_path / "new" / "folder" / "page.htm"
    write_report(small, out)
    assert sorted(path.name for path in out.parent.iterdir()) == ["page.csv", "page.htm", "page.json"]


def test_a_file_that_exists_is_kept_unless_told_otherwise(small, tmp_path):
    (tmp_path / "report.csv").write_text("mine")
    with pytest.raises(ValueError, match=r"report.csv' exists already; choose another name, or give --overwrite."):
        write_report(small, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
    write_report(small, tmp_path / "report.html", overwrite=True)
    assert (tmp_path / "report.csv").read_text() != "mine"


def test_what_is_asked_for_must_be_there(small, tmp_path):
    out = tmp_path / "report.html"
    with pytest.raises(ValueError, match=r"report.txt' does not end in .html"):
        write_report(small, tmp_path / "report.txt")
    with pytest.raises(ValueError, match=r"--against 'rigde' is none of the 5 methods; .*'ridge'"):
        write_report(small, out, against="rigde")
    with pytest.raises(ValueError, match="--against 'model' is the only predicted file; name a baseline"):
        write_report(small, out, against="model")
    with pytest.raises(ValueError, match="--condition 'nobody' is none of the 6 conditions with tests of genes; "):
        write_report(small, out, condition="nobody")
    (small / "genes.parquet").unlink()
    with pytest.raises(ValueError, match=r"--condition 'nobody' is given, but the evaluation has no genes.parquet"):
        write_report(small, out, condition="nobody")
    assert not out.exists()


def _write(text):
    return lambda path: path.write_text(text)


@pytest.mark.parametrize(
    ("name", "spoil", "sentence"),
    [
        ("metrics.json", lambda path: path.unlink(), "has no metrics.json, so it is not the folder of an evaluation"),
        ("overall.csv", lambda path: path.unlink(), "has no overall.csv, so it is not the folder of an evaluation"),
        ("metrics.json", _write("{"), "is not JSON"),
        ("metrics.json", _write("[]"), "names no methods, as older versions wrote it; run evaluate again"),
        ("metrics.json", _write('{"methods": [{"name": "a", "kind": "b"}]}'), "which metrics.json does not name"),
        ("overall.csv", _write("suite,method\n"), "lacks the columns"),
        ("metrics.csv", _write("method,metric,value\n"), "lacks the columns"),
        ("metrics.csv", _write("suite,method,perturbation,cell_type,metric,value\n"), "has no condition"),
        (
            "metrics.csv",
            _write("suite,method,perturbation,cell_type,metric,value\nours,model,p,c,mmd,high\n"),
            "holds a value that is no number",
        ),
        ("contexts.csv", _write("suite,method\n"), "lacks the columns"),
        ("genes.parquet", _write("nothing"), "is not a parquet file"),
        ("cells.parquet", _write("nothing"), "is not a parquet file"),
        ("genes.parquet", lambda path: pd.DataFrame({"side": ["a"]}).to_parquet(path), "lacks the columns"),
        ("cells.parquet", lambda path: pd.DataFrame({"side": ["a"]}).to_parquet(path), "lacks the columns"),
    ],
)
def test_a_spoiled_folder_is_refused_in_one_sentence(small, tmp_path, name, spoil, sentence):
    spoil(small / name)
    with pytest.raises(ValueError, match=sentence) as refused:
        write_report(small, tmp_path / "report.html")
    assert "\n" not in str(refused.value)
    assert str(refused.value).endswith(".")
    assert not list(tmp_path.glob("report*"))


def test_a_folder_without_a_predicted_file_or_with_a_strange_kind_is_refused(small, change, tmp_path):
    methods = json.loads((small / "metrics.json").read_text())["methods"]
    change(small, methods=[one | {"kind": "baseline"} for one in methods])
    with pytest.raises(ValueError, match="holds no predicted file; give evaluate at least one"):
        write_report(small, tmp_path / "report.html")
    change(small, methods=[one | {"kind": "oracle"} for one in methods])
    with pytest.raises(ValueError, match="is of the kind 'oracle', which is none of"):
        write_report(small, tmp_path / "report.html")
