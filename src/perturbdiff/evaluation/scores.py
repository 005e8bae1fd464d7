"""Every method on every condition: the cells are read, judged and forgotten, one condition at a time.

The conditions of a context share its control cells. In a first pass the observed cells give their means, of which the
centroid is made, and their tests of differential expression; in a second pass every method is judged. Conditions are
independent of each other and of how many are judged side by side (`jobs`), and every draw belongs to a condition, so
the numbers are the same for any number of jobs.

The genes that a label names, its targets, are left out of every metric of its condition, and stand at their control
mean where conditions are compared with each other; so who spikes them gains nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np

from perturbdiff.evaluation.pairs import Pairs, Rows
from perturbdiff.metrics.ceilings import HALVINGS, Apart, apart, averaged, halved, replicated, siblings_moved
from perturbdiff.metrics.conditions import Condition, Context
from perturbdiff.metrics.differential_expression import RankSum, rank_sum
from perturbdiff.metrics.distances import Vector
from perturbdiff.metrics.ours import CONTEXT_METRICS, METRICS, Population, Reference, judge, judge_all_genes
from perturbdiff.metrics.spread import Between, between_ratio
from perturbdiff.results.parts import OBSERVED, Test

CEILING, REPLICATES = "ceiling", "replicates"
"""The methods that are made of the observed cells, and the name of these cells where tests are kept."""

type Scores = dict[str, float]
type Track = Callable[[Sequence[Condition]], Iterable[Condition]]


class Predictions(Protocol):
    """The methods to judge, by name, and their cells of a condition over the judged genes."""

    @property
    def names(self) -> tuple[str, ...]:
        """The methods, in the order of the tables."""

    def has(self, method: str, condition: Condition) -> bool:
        """Whether a method predicts a condition."""

    def __call__(self, method: str, condition: Condition) -> Population:
        """The cells of a method under a condition that it has."""


class Centre(NamedTuple):
    """The mean of a condition's cells [genes], and the summed squared standard error of that mean."""

    mean: Vector
    noise: float

    @classmethod
    def of(cls, cells: Population, control: Population, targets: Rows) -> "Centre":
        """The centre of some cells; the genes at `targets` stand at their control mean, without noise."""
        if not targets.size:
            return cls(cells.mean, float(cells.squared_error.sum()))
        mean = cells.mean.copy()
        mean[targets] = control.mean[targets]
        return cls(mean, float(np.delete(cells.squared_error, targets).sum()))


@dataclass(frozen=True)
class Judged:
    """One condition, judged.

    Attributes:
        scores: `METRICS` by method, ceilings included; NaN for a method that does not predict the condition.
        all_genes: `OF_ALL_GENES` by method, where the label names genes that are judged; else empty.
        tests: of the observed cells and of those methods of which tests are kept, by side.
        centres: of each method's cells; those of the ceiling are pairs, in `halves`.
        observed: the centre of the observed cells.
        halves: the centres of either half, for each halving.
        total: the mean over cells of the summed counts per 10^4 of the judged genes, by side.
    """

    condition: Condition
    scores: dict[str, Scores]
    all_genes: dict[str, Scores]
    tests: dict[str, Test]
    centres: dict[str, Centre]
    observed: Centre
    halves: list[tuple[Centre, Centre]]
    total: dict[str, float]


@dataclass(frozen=True)
class Judging:
    """How conditions are judged.

    Attributes:
        seed: of the halves.
        halvings: how many are averaged.
        replicates: whether assay batches are held against each other.
        jobs: conditions judged side by side.
        kept: the methods of which the tests are kept.
        known: tests of the observed cells that were made before.
        track: draws progress.
    """

    seed: int
    halvings: int = HALVINGS
    replicates: bool = True
    jobs: int = 1
    kept: tuple[str, ...] = ()
    known: Mapping[Condition, RankSum] = field(default_factory=dict)
    track: Track = iter

    def judge(self, pairs: Pairs, predictions: Predictions) -> Iterator[Judged]:
        """Judge every condition, in the order of the pairs."""
        place = {condition: index for index, condition in enumerate(pairs.conditions)}
        todo = iter(self.track(pairs.conditions))
        for context, conditions in pairs.contexts.items():
            control = pairs.control(context)
            _ = control.sorted.ties, control.squared_error, control.zeros  # once, before jobs share them
            centroid = self._centroid(pairs, conditions)
            batches = apart(control, pairs.control_batches(context)) if self.replicates else None
            one = partial(self._one, pairs, predictions, control, centroid, batches, place)
            for judged in in_order(one, conditions, self.jobs):
                next(todo, None)
                yield judged
        next(todo, None)

    def _centroid(self, pairs: Pairs, conditions: Sequence[Condition]) -> Vector | None:
        """The mean of the observed means of a context's judged conditions; None for fewer than two."""
        if len(conditions) < 2:
            return None
        total = np.zeros(len(pairs.genes))
        for mean in in_order(lambda one: pairs.observed_cells(one).mean, conditions, self.jobs):
            total += mean
        centroid: Vector = total / len(conditions)
        return centroid

    def _one(
        self,
        pairs: Pairs,
        predictions: Predictions,
        control: Population,
        centroid: Vector | None,
        controls: Callable[[str], Apart | None] | None,
        place: Mapping[Condition, int],
        condition: Condition,
    ) -> Judged:
        """One condition, judged; `controls` are those of each assay batch, for replicates."""
        reference = Reference(pairs.observed_cells(condition), control, centroid, self.known.get(condition))
        rng = np.random.default_rng([self.seed, 1, place[condition]])
        targets = pairs.targets(condition)
        bare = reference.without(targets)
        scores, all_genes, tests, centres, total = {}, {}, {}, {}, {}
        observed = reference.observed
        tests[OBSERVED] = Test(observed.mean - control.mean, reference.test, observed.mean)
        total[OBSERVED] = observed.total
        for method in predictions.names:
            if not predictions.has(method, condition):
                scores[method] = {metric.name: float("nan") for metric in METRICS}
                continue
            cells = predictions(method, condition)
            scores[method], test = _judged(cells, bare, control, targets)
            if targets.size:
                all_genes[method] = judge_all_genes(cells, reference)
            centres[method], total[method] = Centre.of(cells, control, targets), cells.total
            if method in self.kept:
                tests[method] = Test(cells.mean - control.mean, test, cells.mean)
        pairs_of_halves = list(halved(reference, rng, halvings=self.halvings))
        scores[CEILING] = averaged(
            [_judged(one, other.without(targets), control, targets)[0] for one, other in pairs_of_halves]
        )
        if controls is not None:
            scores[REPLICATES] = averaged(
                [
                    _judged(one, other.without(targets), own, targets)[0]
                    for one, other, own in _replicates(pairs, condition, reference, controls)
                ]
            )
        halves = [
            (Centre.of(one, control, targets), Centre.of(other.observed, control, targets))
            for one, other in pairs_of_halves
        ]
        centre = Centre.of(observed, control, targets)
        return Judged(condition, scores, all_genes, tests, centres, centre, halves, total)


def _replicates(
    pairs: Pairs, condition: Condition, reference: Reference, controls: Callable[[str], Apart | None]
) -> Iterator[tuple[Population, Reference, Population]]:
    """What other assay batches say of a condition: those within it where it is pooled, else its siblings."""
    if not condition.assay_batch:
        batches = pairs.observed.labels["assay_batch"].iloc[pairs.observed_rows[condition]].astype(str).to_numpy()
        yield from replicated(reference, batches, controls)
        return
    others = pairs.siblings(condition)
    sides = ((partial(pairs.observed_cells, one), partial(pairs.control, one.context)) for one in others)
    yield from siblings_moved(reference, sides)


def _judged(cells: Population, bare: Reference, control: Population, targets: Rows) -> tuple[Scores, RankSum]:
    """The metrics without the targets, which `bare` lacks, and the test of all genes against the control cells."""
    test = rank_sum(cells.sorted, control.sorted)
    return judge(cells.without(targets), bare, test=test.without(targets)), test


def in_order[Item, Result](call: Callable[[Item], Result], items: Iterable[Item], jobs: int) -> Iterator[Result]:
    """The results of calls, `jobs` of them side by side in threads, in the order of the items and a few ahead."""
    if jobs == 1:
        yield from map(call, items)
        return
    waiting = iter(items)
    with ThreadPoolExecutor(jobs) as pool:
        ahead = [pool.submit(call, item) for item in islice(waiting, 2 * jobs)]
        while ahead:
            result = ahead.pop(0).result()
            ahead += [pool.submit(call, item) for item in islice(waiting, 1)]
            yield result


class Contexts:
    """The metrics of whole contexts, gathered from their conditions as they are judged."""

    def __init__(self) -> None:
        self._origins: dict[Context, Vector] = {}
        self._methods: dict[tuple[Context, str], tuple[Between, Between]] = {}
        self._halves: dict[Context, list[tuple[Between, Between]]] = {}

    def add(self, judged: Judged) -> None:
        """One more condition; a method is held against the observed conditions that it predicts."""
        context = judged.condition.context
        origin = self._origins.setdefault(context, judged.observed.mean)
        for method, centre in judged.centres.items():
            own, observed = self._methods.setdefault((context, method), (Between(origin), Between(origin)))
            own.add(*centre)
            observed.add(*judged.observed)
        ratios = self._halves.setdefault(context, [(Between(origin), Between(origin)) for _ in judged.halves])
        for (one, other), (first, second) in zip(ratios, judged.halves, strict=False):
            one.add(*first)
            other.add(*second)

    def scores(self) -> Iterator[tuple[str, Condition, Scores]]:
        """`CONTEXT_METRICS` of every method and context, under an empty perturbation."""
        (metric,) = CONTEXT_METRICS
        for (context, method), of_both in self._methods.items():
            yield method, Condition("", *context), {metric.name: between_ratio(*of_both)}
        for context, halvings in self._halves.items():
            ratios = [between_ratio(one, other) for one, other in halvings]
            yield CEILING, Condition("", *context), {metric.name: float(np.mean(ratios)) if ratios else float("nan")}
