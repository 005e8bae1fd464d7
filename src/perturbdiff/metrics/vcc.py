"""The metrics of the Virtual Cell Challenge 2026, computed by cell-eval2 and under its names.

The challenge itself is scored on counts. Here the cells are log1p counts per 10^4, and are declared to be: cell-eval2
then runs the challenge's settings on the mean of log values in place of log sums of counts, and without its threshold
on a gene's counts. So the numbers compare predictions with each other, and not with a leaderboard.

The observed control cells stand on both sides. The gene that a label names is left out of every metric that could be
scored by it, where any label names one; a label of two genes, or of a drug, names none.
"""

from dataclasses import replace
from importlib import import_module
from typing import Any

from perturbdiff.metrics.cell_eval import Numbers, quietly
from perturbdiff.metrics.ours import Metric
from perturbdiff.metrics.sides import PERTURBATION, Side, check_sides, given_table

VCC_METRICS = (
    Metric(
        "pds_cosine",
        "higher",
        "1 - r/(n-1), r how many of n perturbations have an observed change nearer to the predicted one, by cosine",
        "0 to 1; 0.5 for one response for all",
    ),
    Metric(
        "expr_mse_unbiased_capped_norm",
        "lower",
        "summed squared error of the mean over the summed squared observed change, without the noise of the means",
        "about 0 for a perfect prediction, about 1 for control cells, no upper end",
    ),
    Metric(
        "de_wilcoxon_lfc_nmae",
        "lower",
        "absolute error of the log fold changes of the observed differentially expressed genes over their mean size",
        "0 for a perfect prediction, 1 for no change, no upper end; undefined for fewer than 10 such genes",
    ),
    Metric(
        "de_wilcoxon_direction_fidelity_yield_raw",
        "higher",
        "predicted differentially expressed genes with the right sign, over the larger number of such genes on a side",
        "0 to 1; undefined where neither side has any",
    ),
    Metric(
        "de_wilcoxon_direction_reach_raw",
        "higher",
        "share of the observed differentially expressed genes down to which the ranked prediction has 90 % right signs",
        "0 to 1; undefined where none is observed",
    ),
    Metric(
        "de_wilcoxon_sig_jaccard",
        "higher",
        "shared over all differentially expressed genes of the two sides",
        "0 to 1; 1 where neither side has any",
    ),
    Metric(
        "expr_mse_unbiased",
        "lower",
        "squared error of the mean without the noise of both means (may be negative)",
        "about 0 for a perfect prediction, no upper end",
    ),
    Metric(
        "expr_mse_unbiased_capped",
        "lower",
        "the same, with no more noise allowed to the prediction than the observed cells earn: what is summed above",
        "about 0 for a perfect prediction, no upper end",
    ),
    Metric(
        "expr_distance_unbiased",
        "none",
        "squared observed change of the mean without the noise of the means (may be negative): what is summed below",
        "about 0 for no response, no upper end",
    ),
    Metric(
        "expr_real_mass_ratio",
        "none",
        "the observed mean of log values, taken back to counts and summed, over 10^4",
        "0 to about 1; low where a cell's counts vary much",
    ),
)
"""The challenge's six scored metrics, then its four diagnostics."""

OF_CONTEXT = ("expr_mse_unbiased_capped_norm",)
"""The metrics that are one number for a whole context."""

VCC_SETTINGS: dict[str, Any] = {
    "preset": "vcc2026",
    "input_type": "lognorm",
    "target_sum": 1e4,
    "control_source": "real",
    "de.backend": "pdex",
    "device": "cpu",
}
"""The challenge's settings, and what is said in place of them or for certainty."""


def differential_expression(side: Side, *, threads: int = 1) -> Any:  # noqa: ANN401 - a DataFrame of polars
    """The test of every perturbation and gene against the control cells, as cell-eval2 makes it for the challenge.

    It differs from cell-eval's in the log fold changes, which are of arithmetic means.

    Args:
        side: the cells.
        threads: how many pdex may use.

    Returns:
        A table of polars with target, feature, log2_fold_change, p_value, p_adj and others, one row a pair.
    """
    with quietly("cell_eval2.de_compute", threads=threads) as (library,):
        config = _config(side, threads)
        return library.compute_de(
            side.adata,
            backend=config.de.backend,
            groupby=config.pert_col,
            reference=config.control,
            mean_calc=config.de.mean_calc,
            epsilon=config.de.epsilon,
            input_type=config.input_type,
            target_sum=config.target_sum,
            clip_value=config.de.clip_value,
            fdr_scope=config.de.fdr_scope,
            filter_gene_min_cpm_cell=config.filter.filter_gene_min_cpm_cell,
            threads=config.num_threads,
            device=config.device,
        )


def vcc_metrics(predicted: Side, observed: Side, *, threads: int = 1) -> Numbers:
    """`VCC_METRICS` of every perturbation by its label, and those of the whole context under "".

    What cell-eval2 leaves undefined is NaN. A table of tests is used where `differential_expression` of this module
    made it (it has a column p_adj); cell-eval's, of other fold changes, is not, and the tests are made.

    Args:
        predicted: the predicted cells.
        observed: the observed cells, with the same genes, perturbations and control label.
        threads: how many pdex may use.

    Raises:
        ValueError: the sides differ in genes, perturbations or control label, a table of tests is of others, or
            cell-eval2 refuses the cells.
    """
    check_sides(predicted, observed)
    tables = {"de_pred": _own_table(predicted), "de_real": _own_table(observed)}
    with quietly("cell_eval2", threads=threads) as (library,):
        try:
            found = library.compute_metrics(
                predicted.adata, observed.adata, config=_config(observed, threads), **tables
            )
        except ValueError as error:
            raise ValueError(f"cell-eval2 refuses the cells ({error}); leave its suite out.") from error
        try:
            whole = library.aggregate_metrics(found, metrics=list(OF_CONTEXT))
            means = dict(whole.select("metric", "mean").iter_rows())
        except ValueError:  # the observed changes are no larger than their noise, so there is nothing to divide by
            means = {}
    numbers: Numbers = {label: {} for label in observed.perturbations}
    for label, name, value in found.select("perturbation", "metric", "value").iter_rows():
        numbers[label][name] = float("nan") if value is None else float(value)
    numbers[""] = {name: float(means.get(name, float("nan"))) for name in OF_CONTEXT}
    return numbers


def _config(side: Side, threads: int) -> Any:  # noqa: ANN401 - an EvalConfig of cell-eval2
    """The challenge's settings for these cells."""
    config: Any = import_module("cell_eval2").EvalConfig.from_preset(VCC_SETTINGS["preset"])
    names_genes = not set(side.perturbations).isdisjoint(side.genes)
    return replace(
        config,
        pert_col=PERTURBATION,
        control=side.control,
        num_threads=max(1, threads),
        de=replace(config.de, backend=VCC_SETTINGS["de.backend"]),
        target_gene_map=None if names_genes else {"*": None},
        **{name: VCC_SETTINGS[name] for name in ("input_type", "target_sum", "control_source", "device")},
    )


def _own_table(side: Side) -> Any:  # noqa: ANN401 - a DataFrame of polars or None
    """The tests of a side where cell-eval2 made them."""
    if side.de is None or "p_adj" not in side.de.columns:
        return None
    return given_table(side)
