"""Tables of the page: rows a metric, columns a method, numbers with the same decimals along a row."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from perturbdiff.evaluation.folder import Method
from perturbdiff.evaluation.result import Evaluation, Metric, Score
from perturbdiff.report.numbers import MINUS, NONE, decimals, fixed
from perturbdiff.report.standing import AHEAD, BEHIND, LEVEL, UNKNOWN, Comparer, Standing, directed

MOST_CONTEXTS = 40
"""So many cell types have a row."""

MOST_ENTRIES = 12
"""So many entries of a list of settings are shown."""

SIGNS = {AHEAD: "▲", BEHIND: "▼", LEVEL: "=", UNKNOWN: "?"}
"""Beside the word, so that a column can be skimmed without colours."""

APART = "told apart"
"""Of a metric whose ceiling is better than the baseline beyond the interval of their difference."""

_DIRECTIONS = {"lower": "↓ lower is better", "higher": "↑ higher is better", "none": "", "": ""}


@dataclass(frozen=True)
class Cell:
    """A mean, its interval and its scaled score as texts; empty where there is none."""

    value: str
    interval: str = ""
    scaled: str = ""
    scaled_interval: str = ""
    best: bool = False


@dataclass(frozen=True)
class Row:
    """A row: its title, a word on its direction, and cells, one a method."""

    title: str
    direction: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """A table: methods across, rows down, and a line under its title."""

    title: str
    methods: tuple[Method, ...]
    rows: tuple[Row, ...]
    note: str = ""


@dataclass(frozen=True)
class Range:
    """How far a metric tells the ceiling from the baseline: both values, their difference, its interval, an outcome."""

    title: str
    baseline: str
    ceiling: str
    difference: str
    interval: str
    outcome: str


@dataclass(frozen=True)
class Glance:
    """A headline metric at a glance: the model, the best baseline, the ceiling, and how they stand."""

    title: str
    direction: str
    model: Cell
    baseline: Cell
    baseline_name: str
    ceiling: Cell
    outcome: str
    sign: str
    caveats: tuple[str, ...] = ()


def direction(metric: Metric) -> str:
    """Which values are better, in a few words."""
    return _DIRECTIONS.get(metric.better, f"best {metric.better}")


def glance(evaluation: Evaluation, standings: Iterable[Standing], model: str) -> list[Glance]:
    """The headline metrics, one a row."""
    rows = []
    for one in standings:
        names = (model, one.baseline or "", evaluation.ceiling)
        scores = [evaluation.score(one.metric, name) for name in names]
        places = _places(score for score in scores if score is not None)
        own, other, top = (_cell(score, places) for score in scores)
        said = (one.outcome, SIGNS[one.outcome], _caveats(evaluation, one.metric, scores[0]))
        rows.append(Glance(one.metric.title, direction(one.metric), own, other, one.baseline or "", top, *said))
    return rows


def _caveats(evaluation: Evaluation, metric: Metric, score: Score | None) -> tuple[str, ...]:
    """Where a metric is undefined, and whether it can show anything here."""
    lost = 0 if score is None else score.undefined
    said = [f"undefined in {lost} of {score.conditions}"] if lost and score is not None else []
    if metric in evaluation.blind:
        said.append("ceiling and baseline not told apart")
    return tuple(said)


def suite_table(evaluation: Evaluation, comparer: Comparer, suite: str, title: str) -> Table | None:
    """All metrics of a suite by all methods that have any of them."""
    metrics = evaluation.of_suite(suite)
    methods = [
        method for method in evaluation.methods if any(_known(evaluation.score(one, method.name)) for one in metrics)
    ]
    if not metrics or not methods:
        return None
    compared = [method.name for method in methods if method.kind != "ceiling"]
    rows = []
    for metric in metrics:
        scores = {method.name: evaluation.score(metric, method.name) for method in methods}
        rows.append(_row(metric, scores, comparer.starred(metric, _means(scores, compared))))
    return Table(title, tuple(methods), tuple(rows))


def context_tables(evaluation: Evaluation, comparer: Comparer) -> list[Table] | str:
    """A table for each headline metric, rows a cell type; or why there are none."""
    contexts = evaluation.contexts
    if contexts is None:
        return evaluation.missing.get("contexts", "There are no tables for each cell type.")
    kinds = list(dict.fromkeys(contexts["cell_type"]))
    if len(kinds) < 2:
        named = f" ({kinds[0]})" if kinds and kinds[0] else ""
        return f"There is one cell type{named}: the tables above are its own."
    tables = []
    for metric in evaluation.headline:
        own = contexts[(contexts["suite"] == metric.suite) & (contexts["metric"] == metric.name)]
        scores = {(str(row.cell_type), str(row.method)): Score.of(row) for row in own.itertuples(index=False)}
        methods = [one for one in evaluation.methods if any(_known(scores.get((kind, one.name))) for kind in kinds)]
        if methods:
            rows = [_context_row(comparer, kind, metric, methods, scores) for kind in kinds[:MOST_CONTEXTS]]
            tables.append(Table(metric.title, tuple(methods), tuple(rows), direction(metric)))
    return tables or "No headline metric has values for single cell types."


def win_table(evaluation: Evaluation, comparer: Comparer, against: str) -> Table:
    """How often each predicted file is better than one method, condition by condition."""
    files = [method for method in evaluation.of_kind("predicted") if method.name != against]
    first = [*evaluation.headline, *(one for one in evaluation.of_suite("paper") if one not in evaluation.headline)]
    rows = []
    for metric in filter(directed, first):
        found = [comparer.differences(metric, method.name, against) for method in files]
        cells = []
        for method, one in zip(files, found, strict=True):
            if one is None:
                cells.append(Cell(NONE))
            else:
                ahead = one.win_rate > 0.5 and comparer.outcome(metric, method.name, against) == AHEAD
                cells.append(Cell(f"{100 * one.win_rate:.0f} %", f"{one.wins:g} of {one.n}", best=ahead))
        if any(one is not None for one in found):
            rows.append(Row(metric.title, direction(metric), tuple(cells)))
    return Table(f"Win rates against {against}", tuple(files), tuple(rows))


def range_rows(evaluation: Evaluation) -> list[Range]:
    """The dynamic range of every metric that has one; none where the evaluation has none."""
    rows = []
    titles = {(metric.suite, metric.name): _range_title(metric) for metric in evaluation.metrics}
    for row in evaluation.ranges.to_dict("records"):
        difference, low, high = float(row["difference"]), float(row["low"]), float(row["high"])
        if not math.isfinite(difference):
            continue
        places = decimals([float(row["baseline"]), float(row["ceiling"])])
        baseline, ceiling, between = (fixed(float(row[name]), places) for name in ("baseline", "ceiling", "difference"))
        outcome = APART if row["apart"] else LEVEL if math.isfinite(low) else UNKNOWN
        title = titles.get((str(row["suite"]), str(row["metric"])), str(row["metric"]))
        rows.append(Range(title, baseline, ceiling, between, _interval(low, high, places), outcome))
    return rows


def _range_title(metric: Metric) -> str:
    """The name of a metric; where a value is best near another one, its distance from that is what has a range."""
    return (
        f"{metric.title} ({metric.better.replace('near', 'distance from')})"
        if "near" in metric.better
        else metric.title
    )


def facts(mapping: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as lines: a dotted name and a text, long lists cut."""
    lines: list[tuple[str, str]] = []
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            lines += facts(value, f"{name}.")
        else:
            lines.append((name, _text(value)))
    return lines


def _text(value: Any) -> str:  # noqa: ANN401 - whatever JSON holds
    if isinstance(value, list | tuple):
        shown = ", ".join(_text(one) for one in value[:MOST_ENTRIES])
        more = len(value) - MOST_ENTRIES
        return f"{shown} and {more} more" if more > 0 else shown or "none"
    if value is None or value in ({}, ""):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_text(one)}" for key, one in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def _context_row(
    comparer: Comparer,
    kind: str,
    metric: Metric,
    methods: Sequence[Method],
    scores: Mapping[tuple[str, str], Score],
) -> Row:
    own = {method.name: scores.get((kind, method.name)) for method in methods}
    compared = [one.name for one in methods if one.kind != "ceiling"]
    top = comparer.starred(metric, _means(own, compared), kind)
    return replace(_row(metric, own, top), title=kind or "all cells", direction="")


def _means(scores: Mapping[str, Score | None], names: Iterable[str]) -> dict[str, float]:
    found = {name: scores.get(name) for name in names}
    return {name: math.nan if score is None else score.value for name, score in found.items()}


def _row(metric: Metric, scores: Mapping[str, Score | None], top: str | None) -> Row:
    places = _places(score for score in scores.values() if score is not None)
    # beside many others the scaled score has no interval: the .csv beside the page has it
    cells = tuple(replace(_cell(score, places, best=name == top), scaled_interval="") for name, score in scores.items())
    return Row(metric.title, direction(metric), cells)


def _known(score: Score | None) -> bool:
    return score is not None and math.isfinite(score.value)


def _places(scores: Iterable[Score]) -> int:
    return decimals(score.value for score in scores)


def _cell(score: Score | None, places: int, *, best: bool = False) -> Cell:
    if score is None or not math.isfinite(score.value):
        return Cell(NONE)
    value = fixed(score.value, places)
    interval = _interval(score.low, score.high, places)
    if not math.isfinite(score.scaled):
        return Cell(value, interval, best=best)
    return Cell(value, interval, fixed(score.scaled, 2), _interval(score.scaled_low, score.scaled_high, 2), best=best)


def _interval(low: float, high: float, places: int) -> str:
    """From low to high; a dash between, or "to" where a minus stands beside it."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    ends = [fixed(low, places), fixed(high, places)]
    between = " to " if any(MINUS in end for end in ends) else "\N{EN DASH}"
    return between.join(ends)
