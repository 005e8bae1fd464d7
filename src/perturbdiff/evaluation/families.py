"""Files with several populations of a condition, judged as families, beside simple families of the same control cells.

    one population    the first of the drawn populations, as often: what is said without any spread
    training donors   the control cells moved by the change that a trained donor showed, drawn at random: the strongest
                      simple family; it needs training cells of two assay batches, or more
    other donors      the same by the changes of the other judged donors: how well real donors stand for one another

All have as many populations as the file, and as many cells as were observed. Control cells are drawn with replacement
for each population, and moved as counts where their totals are known.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from perturbdiff.baselines.pseudobulk import sums_of
from perturbdiff.cells.controls import ControlRows
from perturbdiff.cells.counts import Curves, changed, logs, whole
from perturbdiff.cells.memory import Cells
from perturbdiff.evaluation.pairs import File, Pairs, Rows
from perturbdiff.families.scores import Between, Projected, projected, scores, strength_variance_ratio, strengths
from perturbdiff.metrics.conditions import LABELS, Condition, Context
from perturbdiff.metrics.differential_expression import rank_sum
from perturbdiff.metrics.distances import Matrix, Vector
from perturbdiff.metrics.tables import FAMILIES

ONE, TRAINED, OTHERS = "one population", "training donors", "other donors"
SIMPLE_FAMILIES = {
    ONE: "the first drawn population of the file before it, as often as that has populations",
    TRAINED: "control cells moved by the changes of trained donors, drawn at random",
    OTHERS: "control cells moved by the changes of the other judged donors, drawn at random",
}
"""The families beside those of files, and what they are."""

CELLS = 128
"""So many cells of a population enter distances, at most."""

CELLS_JUDGED = 512
"""So many cells of a population are judged, at most."""

POPULATIONS = 64
"""So many populations of a condition are judged, at most."""

CURVE_CELLS = 128
"""Of so many control cells, at most, it is computed what changes make of the mean."""

type Scored = Iterator[tuple[str, Condition, dict[str, float]]]


def families_of(predicted: Mapping[str, File]) -> list[str]:
    """The files that hold several populations."""
    return [name for name, file in predicted.items() if file.draws is not None and len(np.unique(file.draws)) > 1]


def judge_families(predicted: Mapping[str, File], pairs: Pairs, training: Cells | None, *, seed: int) -> Scored:
    """The scores of the family of every file, and of the simple ones, by condition.

    Raises:
        ValueError: no file holds several populations.
    """
    names = families_of(predicted)
    if not names:
        raise ValueError(
            f"the suite {FAMILIES!r} judges several populations of a condition, and no predicted file holds any: "
            "predict with --populations, or name the column that tells them apart by --population."
        )
    judging = _Judging(pairs, {name: predicted[name] for name in names}, training, seed)
    donors: dict[tuple[str, str], list[Condition]] = {}
    for condition in pairs.conditions:
        donors.setdefault(condition.pair, []).append(condition)
    along: dict[tuple[str, tuple[str, str]], list[tuple[list[Projected], Projected]]] = {}
    for number, condition in enumerate(pairs.conditions):
        direction = judging.direction(tuple(donors[condition.pair]))
        for method, found, own in judging.judged(condition, number, direction):
            yield method, condition, found
            along.setdefault((method, condition.pair), []).append(own)
    of_type: dict[tuple[str, str], list[Between]] = {}
    for (method, (_, cell_type)), both in along.items():
        between = Between.of([drawn for drawn, _ in both], [observed for _, observed in both])
        of_type.setdefault((method, cell_type), []).append(between)
    for (method, cell_type), pairs_of_it in of_type.items():
        yield method, Condition("", cell_type), {"strength_variance_ratio": strength_variance_ratio(pairs_of_it)}


@dataclass(frozen=True, eq=False)
class Donors:
    """The mean changes that assay batches showed, by (perturbation, cell type), from one pass over their cells."""

    changes: Mapping[tuple[str, str], Mapping[str, Vector]]

    @classmethod
    def of(cls, cells: Cells, genes: Sequence[str]) -> "Donors":
        """Of training cells; groups without control cells of their cell type say nothing."""
        grouped = cells.labels.groupby(list(LABELS), observed=True, sort=True)
        keys = [tuple(map(str, key)) for key in grouped.size().index]
        group = grouped.ngroup().to_numpy().astype(np.int64)
        sums, _ = sums_of(cells, genes, group, len(keys))
        means = sums / np.bincount(group, minlength=len(keys))[:, None]
        place = {key: i for i, key in enumerate(keys)}
        controls = ControlRows.of(cells.labels, cells.is_control)
        mean_of = lru_cache(None)(lambda kind, batch: _mean(cells, genes, controls.beside(kind, batch)[0]))
        found: dict[tuple[str, str], dict[str, Vector]] = {}
        for label, kind, batch in keys:
            if label != cells.control and len(controls.beside(kind, batch)[0]):
                change = means[place[label, kind, batch]] - mean_of(kind, batch)
                found.setdefault((label, kind), {})[batch] = change
        return cls(found)


def _mean(cells: Cells, genes: Sequence[str], rows: Rows) -> Vector:
    return np.asarray(cells.log_expression(genes, rows).mean(axis=0), dtype=np.float64).ravel()


class _Judging:
    """What the conditions of an evaluation share."""

    def __init__(self, pairs: Pairs, files: Mapping[str, File], training: Cells | None, seed: int) -> None:
        self.pairs, self.files, self.seed = pairs, files, seed
        self.rows = {name: pairs.rows_of(file) for name, file in files.items()}
        self.trained = Donors.of(training, pairs.genes).changes if training is not None else {}
        self.control = lru_cache(2)(pairs.control)
        self.change = lru_cache(None)(self._change)
        self.moving = lru_cache(1)(self._moving)

    def direction(self, donors: tuple[Condition, ...]) -> Vector:
        """The mean change of the donors of a (perturbation, cell type): those that trained, or the judged ones."""
        trained = self.trained.get(donors[0].pair, {})
        known = list(trained.values()) or [self.change(one) for one in donors]
        found: Vector = np.mean(known, axis=0)
        return found

    def judged(
        self, condition: Condition, number: int, direction: Vector
    ) -> Iterator[tuple[str, dict[str, float], tuple[list[Projected], Projected]]]:
        """The scores of every family of a condition, and the strengths of its populations and the observed one."""
        observed, control = self.pairs.observed_cells(condition), self.control(condition.context)
        significant = rank_sum(observed.sorted, control.sorted).significant
        cells = np.random.default_rng([self.seed, 7, number]).permutation(observed.cells)[:CELLS_JUDGED]
        of_observed = projected(cells, control.mean, direction)
        for method, drawn in self._families(condition, number, len(cells)):
            rng = np.random.default_rng([self.seed, 6, number, crc32(method.encode())])
            found = scores(drawn, cells, control.mean, significant, rng, cells_of_distances=CELLS)
            along = [projected(one, control.mean, direction) for one in drawn]
            yield method, found | strengths(along, of_observed), (along, of_observed)

    def _families(self, condition: Condition, number: int, n_cells: int) -> Iterator[tuple[str, list[Matrix]]]:
        most = 0
        for name, file in self.files.items():
            rng = np.random.default_rng([self.seed, 4, number])
            own = self._drawn(file, self.rows[name][condition], n_cells, rng)
            if len(own) > 1:
                most = max(most, len(own))
                yield name, own
                if name == next(iter(self.files)):
                    yield ONE, own[:1] * len(own)
        others = {one.assay_batch: self.change(one) for one in self.pairs.siblings(condition)}
        for place, (method, known) in enumerate(
            ((TRAINED, self.trained.get(condition.pair, {})), (OTHERS, others)), start=1
        ):
            shifts = [change for batch, change in known.items() if batch != condition.assay_batch]
            if most and len(shifts) > 1:
                rng = np.random.default_rng([self.seed, 5, number, place])
                yield method, self._moved(condition.context, shifts, most, n_cells, rng)

    def _drawn(self, file: File, rows: Rows, n_cells: int, rng: np.random.Generator) -> list[Matrix]:
        """The populations of a file, each of as many cells: some of it, or some of it again."""
        draws: NDArray[np.int64] = np.zeros(0, dtype=np.int64) if file.draws is None else file.draws[rows]
        found = []
        for draw in np.unique(draws)[:POPULATIONS]:
            own = rows[draws == draw]
            chosen = rng.permutation(own)[:n_cells] if len(own) >= n_cells else rng.choice(own, n_cells)
            distinct, again = np.unique(chosen, return_inverse=True)
            found.append(file.log_expression(self.pairs.genes, distinct).toarray()[again])
        return found

    def _moved(
        self, context: Context, shifts: Sequence[Vector], n: int, n_cells: int, rng: np.random.Generator
    ) -> list[Matrix]:
        """So many populations of control cells, each moved by one of the changes."""
        values, totals, counts, curves = self.moving(context)
        found = []
        for which in rng.integers(len(shifts), size=n):
            rows = rng.choice(rng.integers(len(values), size=len(values)), n_cells)
            shift = shifts[which]
            if curves is None or counts is None:
                found.append(np.maximum(values[rows] + shift, 0.0).astype(np.float32))
            else:
                change = curves.realised(shift)
                found.append(logs(*changed(counts[rows], totals[rows], change, rng)).astype(np.float32))
        return found

    def _moving(self, context: Context) -> tuple[Matrix, Vector, Matrix | None, Curves | None]:
        values, totals = self.control(context).cells, self.pairs.control_totals(context)
        if np.isnan(totals).any():
            return values, totals, None, None
        counts = whole(values, totals)
        return values, totals, counts, Curves.of_some(counts, totals, CURVE_CELLS)

    def _change(self, condition: Condition) -> Vector:
        found: Vector = self.pairs.observed_cells(condition).mean - self.control(condition.context).mean
        return found
