"""Tables of the page: rows a metric, columns a method, numbers with the same decimals along a row."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from perturbdiff.figures.numbers import MINUS, NONE, decimals, fixed
from perturbdiff.report.drawings import absent
from perturbdiff.report.ranking import AHEAD, BEHIND, LEVEL, NO_SCORE, UNKNOWN, Comparer, Standing, directed, score_by
from perturbdiff.results.evaluation import Evaluation, Metric, Score
from perturbdiff.results.folder import Method

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
    """A row: its title, what stands under it, its cells, and how many rows were left out before it."""

    title: str
    under: str
    cells: tuple[Cell, ...]
    left_out: int = 0


@dataclass(frozen=True)
class Table:
    """A table: heads across and, of methods, their kinds; rows down, and a line under its title."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""
    kinds: tuple[str, ...] = ()


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
        scores = [score_by(evaluation, one.metric, name) for name in names]
        places = decimals(score.value for score in scores)
        own, other, top = (_cell(score, places) for score in scores)
        said = (one.outcome, SIGNS[one.outcome], _caveats(evaluation, one.metric, scores[0]))
        rows.append(Glance(one.metric.title, direction(one.metric), own, other, one.baseline or "", top, *said))
    return rows


def _caveats(evaluation: Evaluation, metric: Metric, score: Score) -> tuple[str, ...]:
    """Where a metric is undefined, and whether it can show anything here."""
    said = [f"undefined in {score.undefined} of {score.conditions}"] if score.undefined else []
    if metric in evaluation.blind:
        said.append("ceiling and baseline not told apart")
    return tuple(said)


def suite_table(evaluation: Evaluation, comparer: Comparer, suite: str, title: str) -> Table | None:
    """All metrics of a suite by all methods that have any of them; None where there are none."""
    metrics = evaluation.of_suite(suite)
    scores = {
        (metric, one.name): score_by(evaluation, metric, one.name) for metric in metrics for one in evaluation.methods
    }
    methods = [one for one in evaluation.methods if any(_known(scores[metric, one.name]) for metric in metrics)]
    if not methods:
        return None
    rows = [_row(comparer, metric, [(one, scores[metric, one.name]) for one in methods]) for metric in metrics]
    return _table(title, methods, rows)


def context_tables(evaluation: Evaluation, comparer: Comparer) -> list[Table] | str:
    """A table for each headline metric, rows a cell type; or why there are none."""
    contexts = evaluation.contexts
    if contexts is None:
        return absent(evaluation, "contexts")
    kinds = list(dict.fromkeys(contexts["cell_type"]))
    if len(kinds) < 2:
        named = f" ({kinds[0]})" if kinds and kinds[0] else ""
        return f"There is one cell type{named}: the tables above are its own."
    tables = []
    for metric in evaluation.headline:
        own = contexts[(contexts["suite"] == metric.suite) & (contexts["metric"] == metric.name)]
        scores = {(str(row.cell_type), str(row.method)): Score.of(row) for row in own.itertuples(index=False)}
        named_in = {name for (_, name), score in scores.items() if _known(score)}
        methods = [one for one in evaluation.methods if one.name in named_in]
        if methods:
            rows = [
                _row(comparer, metric, [(one, scores.get((kind, one.name), NO_SCORE)) for one in methods], kind)
                for kind in kinds[:MOST_CONTEXTS]
            ]
            tables.append(_table(metric.title, methods, rows, direction(metric)))
    return tables or "No headline metric has values for single cell types."


def win_table(evaluation: Evaluation, comparer: Comparer, against: str) -> Table:
    """How often each predicted file is better than one method, condition by condition."""
    files = [method for method in evaluation.of_kind("predicted") if method.name != against]
    rows = []
    for metric in filter(directed, dict.fromkeys([*evaluation.headline, *evaluation.of_suite("paper")])):
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
    return _table(f"Win rates against {against}", files, rows)


def range_table(evaluation: Evaluation) -> Table:
    """How far every metric tells the ceiling from the baseline: both, their difference, its interval, an outcome."""
    rows = []
    titles = {(metric.suite, metric.name): _range_title(metric) for metric in evaluation.metrics}
    for row in [] if evaluation.ranges is None else evaluation.ranges.to_dict("records"):
        difference, low, high = float(row["difference"]), float(row["low"]), float(row["high"])
        if not math.isfinite(difference):
            continue
        both = [float(row["baseline"]), float(row["ceiling"])]
        places = decimals(both)
        outcome = APART if row["apart"] else LEVEL if math.isfinite(low) else UNKNOWN
        texts = [
            *(fixed(value, places) for value in (*both, difference)),
            _interval(low, high, places) or NONE,
            outcome,
        ]
        title = titles.get((str(row["suite"]), str(row["metric"])), str(row["metric"]))
        rows.append(Row(title, "", tuple(map(Cell, texts))))
    return Table("From baseline to ceiling", (), tuple(rows))


def _range_title(metric: Metric) -> str:
    """The name of a metric; where a value is best near another one, its distance from that is what has a range."""
    if "near" not in metric.better:
        return metric.title
    return f"{metric.title} ({metric.better.replace('near', 'distance from')})"


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


def _table(title: str, methods: Sequence[Method], rows: Iterable[Row], note: str = "") -> Table:
    heads, kinds = tuple(one.name for one in methods), tuple(one.kind for one in methods)
    return Table(title, heads, tuple(rows), note, kinds)


def _row(comparer: Comparer, metric: Metric, scores: Sequence[tuple[Method, Score]], kind: str | None = None) -> Row:
    """The scores of methods by a metric: over everything, or in one cell type, which is then the title."""
    places = decimals(score.value for _, score in scores)
    top = comparer.starred(metric, {one.name: score.value for one, score in scores if one.kind != "ceiling"}, kind)
    # beside many others the scaled score has no interval: the .csv beside the page has it
    cells = tuple(replace(_cell(score, places, best=one.name == top), scaled_interval="") for one, score in scores)
    return Row(metric.title, direction(metric), cells) if kind is None else Row(kind or "all cells", "", cells)


def _known(score: Score) -> bool:
    return math.isfinite(score.value)


def _cell(score: Score, places: int, *, best: bool = False) -> Cell:
    if not _known(score):
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
