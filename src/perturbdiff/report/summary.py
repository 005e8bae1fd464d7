"""The summary of a report, in sentences; R2 of means is never among what it leads with."""

import statistics
from dataclasses import dataclass

import numpy as np

from perturbdiff.figures.numbers import listed, quoted, short
from perturbdiff.metrics.intervals import LEAST, UNITS
from perturbdiff.report.drawings import names_of
from perturbdiff.report.ranking import AHEAD, BEHIND, LEVEL, UNKNOWN, Comparer, Standing, directed, score_by, strongest
from perturbdiff.results.evaluation import Evaluation

FEW = 5
"""With fewer units to draw from than this, a sentence says that the intervals are rough."""


@dataclass(frozen=True)
class Summary:
    """What is said of the best predicted file, and how it stands.

    Attributes:
        model: the predicted file that the summary is about.
        against: the strongest baseline; None where there is none.
        sentences: one paragraph.
        standings: by the headline metrics.
        everywhere: by every metric that has a direction.
    """

    model: str
    against: str | None
    sentences: tuple[str, ...]
    standings: tuple[Standing, ...]
    everywhere: tuple[Standing, ...]

    @property
    def paragraph(self) -> str:
        """The sentences as one text."""
        return " ".join(self.sentences)


def summarise(evaluation: Evaluation, comparer: Comparer) -> Summary:
    """Say how the best predicted file stands to baselines and ceiling."""
    files, baselines = names_of(evaluation, "predicted"), names_of(evaluation, "baseline")
    model = strongest(evaluation, files) or files[0]
    metrics = [metric for metric in evaluation.metrics if directed(metric)]
    standings = {name: [comparer.standing(metric, name) for metric in metrics] for name in files}
    headline = [one for one in standings[model] if one.metric in evaluation.headline]
    headline.sort(key=lambda one: evaluation.headline.index(one.metric))
    sentences = [
        *_count(model, headline, standings[model], evaluation),
        *_doubts(evaluation, model, headline),
        *_values(evaluation, model, headline),
        *_scaled(evaluation, model),
        *_others(evaluation, model, standings),
    ]
    return Summary(model, strongest(evaluation, baselines), tuple(sentences), tuple(headline), tuple(standings[model]))


def _count(model: str, headline: list[Standing], everywhere: list[Standing], evaluation: Evaluation) -> list[str]:
    """On how many metrics the model is ahead of every baseline."""
    if not evaluation.of_kind("baseline"):
        return [f"{quoted(model)} was judged beside no baseline, so nothing can be said of how good its numbers are."]
    n, over = evaluation.n_units, UNITS[evaluation.unit]
    if n < LEAST:
        judged = "Only one condition was" if len(evaluation.conditions) == 1 else f"Only {n} {over} were"
        return [
            f"{judged} judged, so there is no interval: these are values of few, and by none of them does "
            f"{quoted(model)} count as ahead of the baselines."
        ]
    if not headline:
        return [f"No headline metric has a value for {quoted(model)}."]
    ahead = [one.metric.title for one in headline if one.outcome == AHEAD]
    behind = [one.metric.title for one in headline if one.outcome == BEHIND]
    of = "the one headline metric" if len(headline) == 1 else f"the {len(headline)} headline metrics"
    first = f"{quoted(model)} is ahead of every baseline, beyond the 95 % interval over {n} {over}, on "
    first += f"{_amount(ahead, len(headline))} of {of}" + (f" ({listed(ahead)})" if ahead else "")
    first += f", and behind at least one baseline on {len(behind)} ({listed(behind)})." if behind else "."
    total = sum(one.outcome == AHEAD for one in everywhere)
    sentences = [first, f"Of all {len(everywhere)} metrics with a direction it is so on {total}."]
    if n < FEW:
        sentences.append(f"With {n} {over} such an interval is rough, and the count with it.")
    return sentences


def _doubts(evaluation: Evaluation, model: str, headline: list[Standing]) -> list[str]:
    """Which headline metrics say less than the others: undefined in some conditions, or blind."""
    scores = [(one.metric.title, score_by(evaluation, one.metric, model)) for one in headline]
    lost = [f"{title} in {own.undefined} of {own.conditions} conditions" for title, own in scores if own.undefined]
    said = [f"Undefined are {listed(lost)}."] if lost else []
    blind = [one.metric.title for one in headline if one.metric in evaluation.blind]
    if blind:
        said.append(f"Ceiling and baseline are not told apart by {listed(blind)}, so little follows from it.")
    return said


def _amount(names: list[str], of: int) -> str:
    return "none" if not names else "all" if len(names) == of and of > 1 else str(len(names))


def _values(evaluation: Evaluation, model: str, headline: list[Standing]) -> list[str]:
    """The numbers of the first three headline metrics."""
    said = []
    for one in headline[:3]:
        names = (model, one.baseline or "", evaluation.ceiling)
        own, other, top = (score_by(evaluation, one.metric, name).value for name in names)
        if not np.isfinite(own):
            continue
        beside = [] if one.baseline is None else [f"{short(other)} of the best baseline ({quoted(one.baseline)})"]
        beside += [f"{short(top)} of the ceiling"] if np.isfinite(top) else []
        said.append(f"{one.metric.title} {short(own)}" + (f", against {' and '.join(beside)}" if beside else ""))
    return [f"In numbers: {'; '.join(said)}."] if said else []


def _scaled(evaluation: Evaluation, model: str) -> list[str]:
    """How far from the baseline to the ceiling."""
    scores = [score_by(evaluation, metric, model).scaled for metric in evaluation.headline]
    values = [score for score in scores if np.isfinite(score)]
    if not values or not evaluation.baseline:
        return []
    middle = short(statistics.median(values))
    zero = quoted(evaluation.baseline)
    first = f"Its median scaled score over the {len(values)} headline metrics that have one is {middle}"
    first = first if len(values) > 1 else f"Its scaled score by the one headline metric that has one is {middle}"
    return [f"{first}, where 0 is {zero} and 1 the ceiling."]


def _others(evaluation: Evaluation, model: str, standings: dict[str, list[Standing]]) -> list[str]:
    """One sentence for the other predicted files."""
    said = []
    for name, found in standings.items():
        headline = [one for one in found if one.metric in evaluation.headline]
        if name != model and any(one.outcome in {AHEAD, BEHIND, LEVEL} for one in headline):
            ahead = sum(one.outcome == AHEAD for one in headline)
            n = len([one for one in headline if one.outcome != UNKNOWN])
            said.append(f"{quoted(name)} {ahead} of {n}")
    return [f"The same count for the other predicted files: {listed(said)}."] if said else []
