"""A report as three files beside each other: the page, and what it says as JSON and as CSV."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from perturbdiff.io import check_writable, whole_file
from perturbdiff.report.drawings import names_of
from perturbdiff.report.page import Report, page, report_of
from perturbdiff.report.ranking import Standing, directed, score_by
from perturbdiff.results.evaluation import Evaluation

_SUFFIXES = {".html", ".htm"}


def write_report(
    source: Path | Evaluation,
    out: Path,
    *,
    against: str | None = None,
    condition: str | None = None,
    overwrite: bool = False,
) -> Report:
    """Report on an evaluation: write `out`, and beside it the same name with .json and .csv.

    Args:
        source: the evaluation, or the folder that `perturbdiff evaluate` wrote.
        out: the page (.html).
        against: the method that predicted files are compared with condition by condition; the strongest baseline
            when None.
        condition: "perturbation | cell type", the one that is shown first; that with the most DE genes when None.
        overwrite: replace files that exist.

    Raises:
        ValueError: the folder is not that of an evaluation, `against` or `condition` is not in it, or a file exists.
    """
    if out.suffix.lower() not in _SUFFIXES:
        raise ValueError(
            f"--out {str(out)!r} does not end in .html, which a page does; name it for example report.html."
        )
    for path in files_of(out):
        check_writable(path, overwrite=overwrite)
    evaluation = Evaluation.load(source) if isinstance(source, Path) else source
    report = report_of(evaluation, against)
    texts = (page(report, condition), _json(report), score_table(report).to_csv(index=False, na_rep="nan"))
    for path, text in zip(files_of(out), texts, strict=True):
        with whole_file(path) as partial:
            # a label may hold half of a surrogate pair, which no file can
            partial.write_text(text, encoding="utf-8", errors="replace", newline="\n")
    return report


def files_of(out: Path) -> tuple[Path, Path, Path]:
    """The page, the JSON and the CSV."""
    return out, out.with_suffix(".json"), out.with_suffix(".csv")


def score_table(report: Report) -> pd.DataFrame:
    """A row per suite, metric and method: overall.csv, with the kind, whether it is ahead of all others, win rate."""
    evaluation = report.evaluation
    metrics = {(metric.suite, metric.name): metric for metric in evaluation.metrics}
    kinds = {method.name: method.kind for method in evaluation.methods}
    compared = names_of(evaluation, "predicted", "baseline")
    means = {
        key: {name: score_by(evaluation, metric, name).value for name in compared} for key, metric in metrics.items()
    }
    top = {key: report.comparer.starred(metric, means[key]) for key, metric in metrics.items()}
    extra = []
    for row in evaluation.overall.itertuples(index=False):
        key, method = (str(row.suite), str(row.metric)), str(row.method)
        pairs = None
        if report.against not in {None, method} and directed(metrics[key]):
            pairs = report.comparer.differences(metrics[key], method, str(report.against))
        rate = math.nan if pairs is None else pairs.win_rate
        extra.append((kinds[method], method == top[key], report.against or "", rate))
    columns = ["kind", "best", "against", "win_rate"]
    return pd.concat([evaluation.overall, pd.DataFrame(extra, columns=columns)], axis=1)


def _json(report: Report) -> str:
    evaluation, said = report.evaluation, report.summary
    content = {
        "verdict": said.paragraph,
        "model": said.model,
        "against": report.against,
        "baseline": evaluation.baseline,
        "ceiling": evaluation.ceiling,
        "headline": _outcomes(said.standings),
        "standings": _outcomes(said.everywhere),
        "warnings": [{"kind": kind, "text": text} for kind, text in evaluation.warnings],
        "notes": evaluation.notes,
        "not_shown": evaluation.missing,
        "methods": [asdict(method) for method in evaluation.methods],
        "legend": [asdict(metric) for metric in evaluation.metrics],
        "summary": score_table(report),
        "contexts": [] if evaluation.contexts is None else evaluation.contexts,
        "history": [] if evaluation.history is None else evaluation.history,
        "settings": evaluation.settings,
        "run_settings": evaluation.run_settings,
        "versions": evaluation.versions,
        "audit": evaluation.audit,
    }
    return json.dumps(_plain(content), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _outcomes(standings: Iterable[Standing]) -> list[dict[str, Any]]:
    return [
        {"suite": one.metric.suite, "metric": one.metric.name, "outcome": one.outcome, "best_baseline": one.baseline}
        for one in standings
    ]


def _plain(value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    """What JSON can hold: tables become lists of rows, and numbers that are not finite null."""
    if isinstance(value, pd.DataFrame):
        value = value.to_dict("records")
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
