"""cell-eval2's numbers, exactly, under the settings of the challenge and a declared scale."""

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

from perturbdiff.metrics import cell_eval
from perturbdiff.metrics.sides import PERTURBATION, Side
from perturbdiff.metrics.suites import Suite
from perturbdiff.metrics.vcc import OF_CONTEXT, VCC_METRICS, differential_expression, vcc_metrics


@pytest.fixture(scope="module")
def observed(draw: Callable[..., AnnData]) -> Side:
    return Side(draw(1, share=0.5), "control")


@pytest.fixture(scope="module")
def predicted(draw: Callable[..., AnnData]) -> Side:
    return Side(draw(2, share=0.5), "control")


def theirs(predicted: Path, observed: Path, **changes: Any) -> dict[tuple[str, str], float]:
    """What cell-eval2 itself says of two files: by perturbation and metric, and by "" and metric of the whole."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import cell_eval2

        config = replace(
            cell_eval2.EvalConfig.from_preset("vcc2026"),
            pert_col=PERTURBATION,
            control="control",
            input_type="lognorm",
            target_sum=1e4,
            num_threads=1,
            **changes,
        )
        table = cell_eval2.compute_metrics(str(predicted), str(observed), config=config)
        whole = cell_eval2.aggregate_metrics(table)
    rows = {(label, name): value for label, name, value in table.iter_rows()}
    return rows | {("", name): value for name, value, how in whole.iter_rows() if how == "ratio_of_sums"}


def assert_same(numbers: dict[str, dict[str, float]], rows: dict[tuple[str, str], float]) -> None:
    ours = {(label, name): value for label, own in numbers.items() for name, value in own.items()}
    assert set(ours) == set(rows)
    for key, value in rows.items():
        assert ours[key] == value or (np.isnan(ours[key]) and np.isnan(value)), (key, ours[key], value)


def written(side: Side, path: Path) -> Path:
    side.adata.write_h5ad(path)
    return path


@pytest.mark.parametrize("which", ["predicted", "controls"])
def test_every_number_of_cell_eval2_is_reproduced_to_the_last_bit_from_the_same_files(
    which: str, observed: Side, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    side: Side = request.getfixturevalue(which)
    paths = written(side, tmp_path / "predicted.h5ad"), written(observed, tmp_path / "observed.h5ad")
    ours = vcc_metrics(*(Side(read_h5ad(path), "control") for path in paths))
    assert_same(ours, theirs(*paths))
    assert {name for own in ours.values() for name in own} == {metric.name for metric in VCC_METRICS}


def test_labels_that_name_no_gene_are_declared_to_have_none(tmp_path: Path, draw: Callable[..., AnnData]) -> None:
    sides = [Side(draw(seed, share=0.5, names="drug"), "control") for seed in (2, 1)]
    paths = written(sides[0], tmp_path / "predicted.h5ad"), written(sides[1], tmp_path / "observed.h5ad")
    assert_same(vcc_metrics(*sides), theirs(*paths, target_gene_map={"*": None}))


@pytest.mark.real
def test_cell_eval2_is_reproduced_on_knock_outs(real_data: Path, tmp_path: Path) -> None:
    adata = read_h5ad(real_data / "papalexi_eccite_thp1_303genes.h5ad")
    labels = adata.obs["perturbation"].astype(str).to_numpy()
    totals = adata.obs["total_umi"].to_numpy(dtype=np.float64)
    paths = tmp_path / "predicted.h5ad", tmp_path / "observed.h5ad"
    for path, place in zip(paths, (0, 1), strict=True):
        chosen = ("control", "STAT1", "JAK2", "IFNGR1", "SPI1")
        taken = np.concatenate([np.flatnonzero(labels == label)[place:200:2] for label in chosen])
        scaled = sp.diags_array(1e4 / totals[taken]) @ sp.csr_matrix(adata.X[taken], dtype=np.float64)
        obs = pd.DataFrame({PERTURBATION: pd.Categorical(labels[taken])}, index=adata.obs_names[taken])
        values = sp.csr_matrix(scaled.log1p(), dtype=np.float32)
        AnnData(X=values, obs=obs, var=pd.DataFrame(index=adata.var_names)).write_h5ad(path)
    ours = vcc_metrics(*(Side(read_h5ad(path), "control") for path in paths))
    assert_same(ours, theirs(*paths))
    assert ours[""]["expr_mse_unbiased_capped_norm"] < 0.5


def test_the_metrics_are_those_of_the_challenge_and_their_directions_are_its_own() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from cell_eval2.catalog import CATALOG, resolve_metrics

    names, missing = resolve_metrics("vcc2026", version="v2")
    assert missing == []
    assert {metric.name for metric in VCC_METRICS} == set(names)
    for metric in VCC_METRICS:
        policy = CATALOG[metric.name].scoring
        assert metric.meaning
        assert metric.range
        if policy.scored:
            assert metric.better == policy.direction
    assert {name for name in names if CATALOG[name].derived} == set(OF_CONTEXT)


def test_a_suite_is_made_of_this_module() -> None:
    suite = Suite.of("vcc2026")
    assert suite.metrics == VCC_METRICS
    assert (suite.side, suite.judge) == (Side, vcc_metrics)


def test_the_observed_cells_predict_themselves_perfectly(observed: Side) -> None:
    numbers = vcc_metrics(observed, observed)
    for label in observed.perturbations:
        found = numbers[label]
        assert found["pds_cosine"] == found["de_wilcoxon_sig_jaccard"] == 1
        assert found["de_wilcoxon_direction_fidelity_yield_raw"] == found["de_wilcoxon_direction_reach_raw"] == 1
        assert found["de_wilcoxon_lfc_nmae"] == 0
    assert numbers[""]["expr_mse_unbiased_capped_norm"] < 0.05


def test_control_cells_are_the_point_of_no_skill(controls: Side, observed: Side) -> None:
    numbers = vcc_metrics(controls, observed)
    for label in observed.perturbations:
        assert numbers[label]["pds_cosine"] == 0.5
        assert numbers[label]["de_wilcoxon_lfc_nmae"] == pytest.approx(1)
        assert numbers[label]["de_wilcoxon_sig_jaccard"] == 0
    assert numbers[""]["expr_mse_unbiased_capped_norm"] == pytest.approx(1, abs=0.15)


def test_without_an_observed_response_the_normalized_error_is_undefined(draw: Callable[..., AnnData]) -> None:
    cells = draw(1, share=0.5)
    control = cells.X[np.flatnonzero(cells.obs[PERTURBATION] == "control")]
    still = AnnData(
        X=sp.vstack([control] * (cells.n_obs // control.shape[0]), format="csr"), obs=cells.obs, var=cells.var
    )
    numbers = vcc_metrics(Side(draw(2, share=0.5), "control"), Side(still, "control"))
    assert np.isnan(numbers[""]["expr_mse_unbiased_capped_norm"])
    assert numbers["gene_0"]["expr_distance_unbiased"] < 0


def test_a_table_that_was_kept_gives_the_same_numbers(predicted: Side, observed: Side, tmp_path: Path) -> None:
    known = vcc_metrics(predicted, observed)
    table = differential_expression(observed)
    table.write_parquet(tmp_path / "kept.parquet")
    for kept in (table, table.to_pandas(), pd.read_parquet(tmp_path / "kept.parquet")):
        assert repr(vcc_metrics(predicted, replace(observed, de=kept))) == repr(known)


def test_a_table_that_cell_eval_would_use_is_not_used(predicted: Side, observed: Side) -> None:
    other = replace(observed, de=cell_eval.differential_expression(observed))
    assert repr(vcc_metrics(predicted, other)) == repr(vcc_metrics(predicted, observed))


def test_a_table_of_other_cells_is_refused_in_one_sentence(predicted: Side, observed: Side) -> None:
    few = Side(observed.adata[observed.adata.obs[PERTURBATION] != "gene_3"].copy(), "control")
    with pytest.raises(ValueError, match=r"^the table of differential expression and the cells differ .*'gene_3'.*\.$"):
        vcc_metrics(predicted, replace(observed, de=differential_expression(few)))


def test_the_number_of_threads_changes_no_number(predicted: Side, observed: Side) -> None:
    assert repr(vcc_metrics(predicted, observed, threads=2)) == repr(vcc_metrics(predicted, observed))


def test_cells_that_the_library_refuses_are_refused_in_one_sentence(predicted: Side, observed: Side) -> None:
    adata = predicted.adata.copy()
    adata.X.data[0] = 14.5
    with pytest.raises(ValueError, match=r"^cell-eval2 refuses the cells \([^\n]*14\.5[^\n]*\.$"):
        vcc_metrics(Side(adata, "control"), observed)
    with pytest.raises(ValueError, match=r"^the predicted and the observed genes differ [^\n]*\.$"):
        vcc_metrics(Side(predicted.adata[:, 1:].copy(), "control"), observed)


def test_judging_writes_says_and_leaves_nothing(
    controls: Side,
    observed: Side,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = state()
    with caplog.at_level(logging.DEBUG):
        vcc_metrics(controls, replace(observed, de=differential_expression(observed)))
    assert state() == before
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert [record.name for record in caplog.records if record.levelno > logging.DEBUG] == []
    assert list(observed.adata.obs) == [PERTURBATION]
    assert dict(observed.adata.uns) == {}


def state() -> dict[str, Any]:
    """What a library could leave changed in this process."""
    import numba
    import tqdm

    loggers = {name: logging.getLogger(name) for name in ("", "cell_eval2", "pdex")}
    return {
        "levels": {name: (logger.level, len(logger.handlers)) for name, logger in loggers.items()},
        "numba": numba.get_num_threads(),
        "tqdm": tqdm.tqdm.monitor_interval,
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "streams": (sys.stdout, sys.stderr),
        "filters": list(warnings.filters),
    }


def test_neither_the_module_nor_the_library_imports_torch(tmp_path: Path) -> None:
    code = (
        "import sys; import perturbdiff.metrics.vcc as own; "
        "assert not {'torch', 'cell_eval2', 'numba', 'polars'} & set(sys.modules), 'early'; "
        "import cell_eval2; assert 'torch' not in sys.modules, 'torch'"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
