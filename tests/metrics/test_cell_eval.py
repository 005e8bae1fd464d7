"""cell-eval's numbers, exactly; ours beside them; and a library that leaves nothing behind."""

import logging
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData, read_h5ad

from perturbdiff.metrics.cell_eval import (
    LIBRARY_NAMES,
    OF_CONTEXT,
    PAPER_METRICS,
    differential_expression,
    paper_metrics,
    quietly,
)
from perturbdiff.metrics.sides import PERTURBATION, Side
from perturbdiff.metrics.suites import Suite

SLOW = ["pearson_edistance", "clustering_agreement"]


def made(values: Any, labels: Any) -> AnnData:
    obs = pd.DataFrame({PERTURBATION: pd.Categorical(labels)}, index=[f"cell_{i}" for i in range(len(labels))])
    var = pd.DataFrame(index=pd.Index([f"gene_{i}" for i in range(values.shape[1])], dtype=str))
    return AnnData(X=sp.csr_matrix(values), obs=obs, var=var)


@pytest.fixture(scope="module")
def observed(draw: Callable[..., AnnData]) -> Side:
    return Side(draw(1, share=0.3), "control")


@pytest.fixture(scope="module")
def predicted(draw: Callable[..., AnnData]) -> Side:
    return Side(draw(2, share=0.3), "control")


def theirs(predicted: Path, observed: Path, folder: Path) -> dict[str, dict[str, float]]:
    """What cell-eval itself says of two files, by perturbation and its own names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from cell_eval import MetricsEvaluator

        evaluator = MetricsEvaluator(
            str(predicted),
            str(observed),
            control_pert="control",
            pert_col=PERTURBATION,
            num_threads=1,
            outdir=str(folder),
        )
        table, _ = evaluator.compute(profile="full", skip_metrics=SLOW, write_csv=False)
    return {row["perturbation"]: row for row in table.iter_rows(named=True)}


def same(ours: float, number: float | None) -> bool:
    """Equal to the last bit; nothing, and what is no number, is NaN."""
    return ours == number or (np.isnan(ours) and (number is None or np.isnan(number)))


def assert_same(numbers: dict[str, dict[str, float]], rows: dict[str, dict[str, float]]) -> None:
    assert set(numbers) == {*rows, ""}
    for label, row in rows.items():
        for ours, name in LIBRARY_NAMES.items():
            value = numbers["" if ours in OF_CONTEXT else label][ours]
            assert same(value, row[name]), (label, ours, value, row[name])


@pytest.mark.parametrize("which", ["predicted", "controls"])
def test_every_number_of_cell_eval_is_reproduced_to_the_last_bit_from_the_same_files(
    which: str, observed: Side, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    side: Side = request.getfixturevalue(which)
    paths = tmp_path / "predicted.h5ad", tmp_path / "observed.h5ad"
    for path, one in zip(paths, (side, observed), strict=True):
        one.adata.write_h5ad(path)
    ours = paper_metrics(*(Side(read_h5ad(path), "control") for path in paths))
    assert_same(ours, theirs(*paths, tmp_path / "theirs"))
    assert any(value > 0 for value in ours["gene_1"].values())


@pytest.mark.real
def test_cell_eval_is_reproduced_on_knock_outs(real_data: Path, tmp_path: Path) -> None:
    adata = read_h5ad(real_data / "papalexi_eccite_thp1_303genes.h5ad")
    labels = adata.obs["perturbation"].astype(str)
    rng = np.random.default_rng(0)
    rows = [np.flatnonzero(labels == label)[:200] for label in ("control", "STAT1", "JAK2", "IFNGR1", "SPI1")]
    totals = adata.obs["total_umi"].to_numpy(dtype=np.float64)
    paths = [tmp_path / "predicted.h5ad", tmp_path / "observed.h5ad"]
    halves = [rng.permutation(own) for own in rows]
    for path, place in zip(paths, (0, 1), strict=True):
        taken = np.concatenate([own[place::2] for own in halves])
        scaled = sp.diags_array(1e4 / totals[taken]) @ sp.csr_matrix(adata.X[taken], dtype=np.float64)
        own = AnnData(
            X=sp.csr_matrix(scaled.log1p(), dtype=np.float32),
            obs=pd.DataFrame({PERTURBATION: pd.Categorical(labels.to_numpy()[taken])}, index=adata.obs_names[taken]),
            var=pd.DataFrame(index=adata.var_names),
        )
        own.write_h5ad(path)
    ours = paper_metrics(*(Side(read_h5ad(path), "control") for path in paths))
    assert_same(ours, theirs(*paths, tmp_path / "theirs"))
    assert ours["STAT1"]["PDCorr"] > 0.5


def test_the_metrics_are_the_papers_fourteen() -> None:
    means, ranks = ["R2", "PDCorr", "MAE", "MSE"], ["PDS_L1", "PDS_L2", "PDS_cosine"]
    names = [*means, *ranks, "DEOver", "DEPrec", "DirAgr", "LFCSpear", "AUROC", "AUPRC", "ES"]
    assert [metric.name for metric in PAPER_METRICS] == names
    assert ["R2", *LIBRARY_NAMES] == names
    assert {metric.better for metric in PAPER_METRICS} == {"lower", "higher"}
    assert all(metric.meaning and metric.range for metric in PAPER_METRICS)


def test_a_suite_is_made_of_this_module() -> None:
    suite = Suite.of("paper")
    assert suite.metrics == PAPER_METRICS
    assert (suite.side, suite.test, suite.judge) == (Side, differential_expression, paper_metrics)


def test_r2_is_the_share_of_the_variance_of_the_mean_over_genes() -> None:
    labels = np.repeat(["control", "a"], 2)
    observed = Side(made(np.array([[1, 1, 1], [1, 1, 1], [1, 2, 6], [1, 2, 6]], dtype=np.float32), labels), "control")
    predicted = Side(made(np.array([[1, 1, 1], [1, 1, 1], [2, 2, 5], [2, 2, 5]], dtype=np.float32), labels), "control")
    assert paper_metrics(predicted, observed)["a"]["R2"] == pytest.approx(1 - 2 / 14, abs=1e-12)


def test_the_observed_cells_predict_themselves_perfectly(observed: Side) -> None:
    numbers = paper_metrics(observed, observed)
    for label in observed.perturbations:
        found = numbers[label]
        assert found["MAE"] == found["MSE"] == 0
        assert found["PDCorr"] == pytest.approx(1, abs=1e-6)
        for name in ("R2", "PDS_L1", "PDS_L2", "PDS_cosine", "DEOver", "DEPrec", "DirAgr", "AUROC", "AUPRC"):
            assert found[name] == pytest.approx(1, abs=1e-12), name
    assert numbers[""]["ES"] == pytest.approx(1)


def test_control_cells_have_no_direction_and_find_no_genes(controls: Side, observed: Side) -> None:
    numbers = paper_metrics(controls, observed)
    assert all(np.isnan(numbers[label]["PDCorr"]) for label in observed.perturbations)
    assert {numbers[label]["AUROC"] for label in observed.perturbations} == {0.5}
    assert np.mean([numbers[label]["PDS_L1"] for label in observed.perturbations]) == pytest.approx(0.625)


def test_a_table_that_was_kept_gives_the_same_numbers(predicted: Side, observed: Side, tmp_path: Path) -> None:
    known = paper_metrics(predicted, observed)
    table = differential_expression(observed)
    table.write_parquet(tmp_path / "kept.parquet")
    for kept in (table, table.to_pandas(), pd.read_parquet(tmp_path / "kept.parquet")):
        assert repr(paper_metrics(predicted, replace(observed, de=kept))) == repr(known)


def test_the_number_of_threads_changes_no_number(predicted: Side, observed: Side) -> None:
    assert repr(paper_metrics(predicted, observed, threads=2)) == repr(paper_metrics(predicted, observed))


def test_whole_numbers_on_the_log_scale_are_judged_as_what_they_are_declared_to_be() -> None:
    labels = np.repeat(["control", "a"], 3)
    values = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1], [3, 1, 0], [2, 1, 1], [3, 0, 1]], dtype=np.float32)
    observed, predicted = Side(made(values, labels), "control"), Side(made(values[::-1].copy(), labels), "control")
    expected = np.abs(values[:3].mean(axis=0) - values[3:].mean(axis=0)).mean()
    assert paper_metrics(predicted, observed)["a"]["MAE"] == pytest.approx(expected, rel=1e-6)
    assert np.array_equal(observed.adata.X.toarray(), values)


def test_judging_changes_no_cell_and_writes_says_and_leaves_nothing(
    controls: Side,
    observed: Side,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    before, values = state(), [side.adata.X.toarray() for side in (controls, observed)]
    with caplog.at_level(logging.DEBUG):
        paper_metrics(controls, observed)
    assert state() == before
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert [record.name for record in caplog.records if record.levelno > logging.DEBUG] == []
    for side, known in zip((controls, observed), values, strict=True):
        assert np.array_equal(side.adata.X.toarray(), known)
        assert list(side.adata.obs) == [PERTURBATION]


def state() -> dict[str, Any]:
    """What a library could leave changed in this process."""
    import cell_eval
    import numba
    import tqdm

    loggers = {name: logging.getLogger(name) for name in ("", "cell_eval", "pdex", "cell_eval2")}
    registry = cell_eval.metrics_registry
    return {
        "levels": {name: (logger.level, len(logger.handlers)) for name, logger in loggers.items()},
        "numba": numba.get_num_threads(),
        "tqdm": tqdm.tqdm.monitor_interval,
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "streams": (sys.stdout, sys.stderr),
        "filters": list(warnings.filters),
        "metrics": {name: dict(registry.get_metric(name).kwargs or {}) for name in registry.list_metrics()},
    }


def test_what_a_library_changes_is_put_back_after_an_error_too() -> None:
    before = state()
    with pytest.raises(RuntimeError, match="in the middle"), quietly("cell_eval", threads=2):
        raise RuntimeError("in the middle")
    assert state() == before


def test_neither_the_module_nor_the_library_imports_torch(tmp_path: Path) -> None:
    code = (
        "import sys; import perturbdiff.metrics.cell_eval as own; "
        "assert not {'torch', 'cell_eval', 'numba', 'polars'} & set(sys.modules), 'early'; "
        "import cell_eval; assert 'torch' not in sys.modules, 'torch'"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def relabelled(adata: AnnData, old: str, new: str | None) -> AnnData:
    copy = adata.copy()
    labels = copy.obs[PERTURBATION].astype(object)
    copy.obs[PERTURBATION] = pd.Categorical(labels.where(labels != old, new))
    return copy


def with_value(adata: AnnData, value: float) -> AnnData:
    copy = adata.copy()
    copy.X.data[0] = value
    return copy


def lone(adata: AnnData) -> AnnData:
    rows = np.flatnonzero(adata.obs[PERTURBATION] == "gene_1")[1:]
    return adata[np.setdiff1d(np.arange(adata.n_obs), rows)].copy()


def twice(adata: AnnData) -> AnnData:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata's own, on names that are not unique
        return AnnData(X=adata.X, obs=adata.obs, var=pd.DataFrame(index=["gene_0", *adata.var_names[:-1]]))


REFUSED: dict[str, tuple[Callable[[AnnData], AnnData], str]] = {
    "no labels": (lambda adata: AnnData(X=adata.X, obs=adata.obs.drop(columns=PERTURBATION)), "has no column"),
    "a cell without a label": (lambda adata: relabelled(adata, "gene_1", None), "without a label"),
    "no controls": (lambda adata: relabelled(adata, "control", "other"), "no cell has the control label 'control'"),
    "only controls": (lambda adata: adata[adata.obs[PERTURBATION] == "control"].copy(), "all cells are control"),
    "one cell": (lone, "'gene_1' has one cell"),
    "one gene": (lambda adata: adata[:, :1].copy(), "1 gene is too few"),
    "a gene twice": (twice, "gene 'gene_0' is there twice"),
    "NaN": (lambda adata: with_value(adata, np.nan), "that are NaN"),
    "negative": (lambda adata: with_value(adata, -1.5), "has the value -1.5"),
    "counts": (lambda adata: with_value(adata, 240.0), "has the value 240"),
    "infinite": (lambda adata: with_value(adata, np.inf), "has the value inf"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_cells_that_cannot_be_judged_are_refused_in_one_sentence(name: str, observed: Side) -> None:
    change, sentence = REFUSED[name]
    with pytest.raises(ValueError, match=rf"^[^\n]*{sentence}[^\n]*\.$"):
        Side(change(observed.adata), "control")


def test_sides_that_differ_are_refused_in_one_sentence(predicted: Side, observed: Side) -> None:
    adata = predicted.adata
    other = adata.copy()
    other.var_names = ["other", *adata.var_names[1:]]
    for wrong, sentence in (
        (Side(other, "control"), "genes differ [(]'other'[)]"),
        (Side(adata[:, ::-1].copy(), "control"), "genes differ [(]their order[)]"),
        (Side(relabelled(adata, "gene_1", "else"), "control"), "perturbations differ [(]'else'[)]"),
        (Side(adata[adata.obs[PERTURBATION] != "gene_2"].copy(), "control"), "perturbations differ [(]'gene_2'[)]"),
        (Side(relabelled(adata, "control", "none"), "none"), "control label is 'none' in the predicted and 'control'"),
    ):
        with pytest.raises(ValueError, match=rf"^[^\n]*{sentence}[^\n]*\.$"):
            paper_metrics(wrong, observed)


def test_a_table_of_other_cells_is_refused_in_one_sentence(predicted: Side, observed: Side) -> None:
    few = observed.adata[observed.adata.obs[PERTURBATION] != "gene_3"].copy()
    table = differential_expression(Side(few, "control"))
    with pytest.raises(ValueError, match=r"^the table of differential expression and the cells differ .*'gene_3'.*\.$"):
        paper_metrics(predicted, replace(observed, de=table))
