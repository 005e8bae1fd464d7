r"""The metrics of the PerturbDiff paper, computed by cell-eval and named as the paper names them.

cell-eval judges a whole context at once: the control cells and the cells of every perturbation of one cell type, on two
sides, predicted and observed. With the mean x_p over the predicted cells of perturbation p, y_p over the observed cells
and c over the control cells, most metrics compare x_p - c with y_p - c over genes; the others compare tests of
differential expression by pdex (Mann-Whitney U against the control cells, Benjamini-Hochberg within a perturbation, log
fold changes of geometric means). The functions are cell-eval's own, run on log1p counts per 10^4 that are declared as
such: nothing is guessed, rescaled or written. R2 alone is ours, of the same means:

    R2_p = 1 - sum_g (x_pg - y_pg)^2 / sum_g (y_pg - mean_g y_pg)^2
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from io import StringIO
from typing import Any

import numpy as np

from perturbdiff.metrics.ours import Metric
from perturbdiff.metrics.sides import PERTURBATION, Side, check_sides, given_table

PAPER_METRICS = (
    Metric(
        "R2",
        "higher",
        "share of the variance over genes of the observed mean expression that the predicted mean has",
        "1 for a perfect prediction, no lower end; near 1 for control cells too",
    ),
    Metric(
        "PDCorr",
        "higher",
        "Pearson correlation over genes of the predicted and the observed change of the mean",
        "-1 to 1; undefined where nothing changes",
    ),
    Metric(
        "MAE",
        "lower",
        "mean over genes of |mean(predicted) - mean(observed)|, log1p counts per 10^4",
        "0 for a perfect prediction, no upper end",
    ),
    Metric(
        "MSE",
        "lower",
        "mean over genes of (mean(predicted) - mean(observed))^2, squared log1p counts per 10^4",
        "0 for a perfect prediction, no upper end",
    ),
    Metric(
        "PDS_L1",
        "higher",
        "1 - r/n, r how many of n perturbations have an observed change nearer to the predicted one in L1 distance",
        "1/n to 1; about 1/2 for one response for all, 1 for a single perturbation",
    ),
    Metric("PDS_L2", "higher", "as PDS_L1, L2 distance", "1/n to 1; about 1/2 for one response for all"),
    Metric("PDS_cosine", "higher", "as PDS_L1, cosine distance", "1/n to 1; about 1/2 for one response for all"),
    Metric(
        "DEOver",
        "higher",
        "share of the N observed differentially expressed genes among the N strongest that are predicted to be",
        "0 to 1; 0 where a side has none",
    ),
    Metric(
        "DEPrec",
        "higher",
        "share of the N predicted differentially expressed genes among the N strongest observed to be",
        "0 to 1; 0 where a side has none",
    ),
    Metric(
        "DirAgr",
        "higher",
        "share of the observed differentially expressed genes that are predicted to change in the same direction",
        "0 to 1; 0.5 is chance, undefined without observed ones",
    ),
    Metric(
        "LFCSpear",
        "higher",
        "Spearman correlation of the log fold changes of the observed differentially expressed genes",
        "-1 to 1; undefined for fewer than two such genes",
    ),
    Metric(
        "AUROC",
        "higher",
        "area under the ROC of the predicted -log10 adjusted p for the observed differentially expressed genes",
        "0 to 1; 0.5 is chance, undefined without both kinds of gene",
    ),
    Metric(
        "AUPRC",
        "higher",
        "average precision of the predicted -log10 adjusted p for the observed differentially expressed genes",
        "0 to 1; the share of such genes is chance",
    ),
    Metric(
        "ES",
        "higher",
        "Spearman correlation over perturbations of the numbers of differentially expressed genes, of a whole context",
        "-1 to 1; 1 where no perturbation has any, undefined where one has",
    ),
)
"""The paper's fourteen metrics, in its order."""

LIBRARY_NAMES = {
    "PDCorr": "pearson_delta",
    "MAE": "mae",
    "MSE": "mse",
    "PDS_L1": "discrimination_score_l1",
    "PDS_L2": "discrimination_score_l2",
    "PDS_cosine": "discrimination_score_cosine",
    "DEOver": "overlap_at_N",
    "DEPrec": "precision_at_N",
    "DirAgr": "de_direction_match",
    "LFCSpear": "de_spearman_lfc_sig",
    "AUROC": "roc_auc",
    "AUPRC": "pr_auc",
    "ES": "de_spearman_sig",
}
"""What cell-eval calls the metrics that it computes, by the paper's name."""

OF_CONTEXT = ("ES",)
"""The metrics that are one number for a whole context."""

PAPER_SETTINGS: dict[str, Any] = {
    "is_log1p": True,
    "geometric_mean": True,
    "epsilon": 0.0,
    "fdr_threshold": 0.05,
    "exclude_target_gene": True,
}
"""What cell-eval and pdex are told, or do by default, as they are run here."""

type Numbers = dict[str, dict[str, float]]


def differential_expression(side: Side, *, threads: int = 1) -> Any:  # noqa: ANN401 - a DataFrame of polars
    """The test of every perturbation and gene against the control cells, as cell-eval has pdex make it.

    Args:
        side: the cells.
        threads: how many pdex may use.

    Returns:
        A table of polars with target, feature, log2_fold_change, p_value, fdr and others, one row a pair.
    """
    with quietly("pdex", threads=threads) as (pdex,):
        return pdex.pdex(
            side.adata,
            groupby=PERTURBATION,
            mode="ref",
            threads=threads,
            reference=side.control,
            **{name: PAPER_SETTINGS[name] for name in ("is_log1p", "geometric_mean", "epsilon")},
        )


def paper_metrics(predicted: Side, observed: Side, *, threads: int = 1) -> Numbers:
    """`PAPER_METRICS` of every perturbation by its label, and those of the whole context under "".

    What cell-eval leaves undefined is NaN. A side without tests of differential expression has them made.

    Args:
        predicted: the predicted cells.
        observed: the observed cells, with the same genes, perturbations and control label.
        threads: how many pdex may use.

    Raises:
        ValueError: the sides differ in genes, perturbations or control label, or a table of tests is of others.
    """
    check_sides(predicted, observed)
    tables = [_table(side, threads) for side in (predicted, observed)]
    with quietly("cell_eval", threads=threads) as (cell_eval,):
        pair = cell_eval.PerturbationAnndataPair(
            real=observed.adata, pred=predicted.adata, pert_col=PERTURBATION, control_pert=observed.control
        )
        pipeline = cell_eval.MetricPipeline(profile=None, break_on_error=True)
        pipeline.add_metrics(list(LIBRARY_NAMES.values()))
        pipeline.compute_de_metrics(cell_eval.initialize_de_comparison(pred=tables[0], real=tables[1]))
        pipeline.compute_anndata_metrics(pair)
        found = {row["perturbation"]: row for row in pipeline.get_results().iter_rows(named=True)}
        r2 = {bulk.key: _r2(bulk.pert_pred, bulk.pert_real) for bulk in pair.iter_bulk_arrays()}
    numbers: Numbers = {}
    of_context: dict[str, float] = {}
    for label in observed.perturbations:
        row = found.get(label, {})
        values = {"R2": r2[label]} | {name: _number(row.get(theirs)) for name, theirs in LIBRARY_NAMES.items()}
        numbers[label] = {name: value for name, value in values.items() if name not in OF_CONTEXT}
        of_context = {name: values[name] for name in OF_CONTEXT}
    return numbers | {"": of_context}


@contextmanager
def quietly(*libraries: str, threads: int) -> Iterator[list[Any]]:
    """Import and use libraries without their bars, logs and warnings; leave logging and numba's threads as found.

    Args:
        libraries: the names of packages; the loggers of those and of pdex are silent.
        threads: how many numba may use in the meantime, at most as many as it has.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        modules = [import_module(name) for name in libraries]
        numba: Any = import_module("numba")
        bars: Any = import_module("tqdm").tqdm
        before, watch = numba.get_num_threads(), bars.monitor_interval
        loggers = [logging.getLogger(name) for name in {*(name.partition(".")[0] for name in libraries), "pdex"}]
        levels = [logger.level for logger in loggers]
        try:
            numba.set_num_threads(max(1, min(threads, numba.config.NUMBA_NUM_THREADS)))
            bars.monitor_interval = 0  # a bar would leave a thread behind that watches it
            for logger in loggers:
                logger.setLevel(logging.CRITICAL + 1)
            with redirect_stderr(StringIO()), redirect_stdout(StringIO()):
                yield modules
        finally:
            numba.set_num_threads(before)
            bars.monitor_interval = watch
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _table(side: Side, threads: int) -> Any:  # noqa: ANN401 - a DataFrame of polars
    """The tests of a side as a table of polars."""
    if side.de is None:
        return differential_expression(side, threads=threads)
    return given_table(side)


def _r2(predicted: Any, observed: Any) -> float:  # noqa: ANN401 - means over cells, of any precision
    """The coefficient of determination over genes; NaN where the observed mean is the same for all genes."""
    x, y = np.asarray(predicted, dtype=np.float64), np.asarray(observed, dtype=np.float64)
    spread = float(((y - y.mean()) ** 2).sum())
    return 1.0 - float(((x - y) ** 2).sum()) / spread if spread > 0 else float("nan")


def _number(value: Any) -> float:  # noqa: ANN401 - a number of polars or None
    return float("nan") if value is None else float(value)
