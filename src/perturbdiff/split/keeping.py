"""Few-shot: the cells of what is held out that stay in training.

`keep_fraction`, `keep_cells` and `keep_populations` of a rule count in each group (perturbation, cell type, assay
batch) that it matches, `keep_total` over all of them together. The kept cells are those that follow a random word, the
rule's, among the hashes of their names, taken as a ring, which is one stretch of each run: fewer are some of more.
"""

from dataclasses import dataclass

import numpy as np

from perturbdiff.cells.order import Flags, Hashes, Integers, Runs, Segments, mixed
from perturbdiff.cells.source import Source
from perturbdiff.recipes.selection import HoldOut


@dataclass(frozen=True, eq=False)
class Ring:
    """The cells that follow a random word among the hashes of names, up to a distance: so many of those matched.

    Attributes:
        word: of the rule.
        matched: the runs that the rule matches [runs].
        distance: how far the ring reaches in each run [runs].
    """

    word: np.uint64
    matched: Flags
    distance: Hashes

    @classmethod
    def of(cls, source: Source, matched: Flags, n_kept: Integers | int, key: tuple[int, int]) -> "Ring":
        """The ring that holds `n_kept` cells of each run, or so many of all together where it is one number.

        More only where names repeat.
        """
        runs = source.runs
        seed, rule = (np.array([number], dtype=np.uint64) for number in key)
        word = mixed(rule + mixed(seed + np.uint64(1)))[0]
        distance = np.zeros(len(runs), dtype=np.uint64)
        if isinstance(n_kept, int):
            away = hashes_of(source, runs.whole(matched)) - word
            distance[matched] = np.partition(away, n_kept - 1)[n_kept - 1]
            return cls(word, matched, distance)
        for run in np.flatnonzero(matched).tolist():
            away = source.hashes(int(runs.offsets[run]), int(runs.offsets[run + 1])) - word
            distance[run] = np.partition(away, n_kept[run] - 1)[n_kept[run] - 1]
        return cls(word, matched, distance)

    def leaves(self, hashes: Hashes, run: Integers) -> Flags:
        """Which cells stay in training: those that the rule does not match, and those that the ring holds."""
        return np.asarray(~self.matched[run] | (hashes - self.word <= self.distance[run]))


_SHARE, _CELLS = 5, 10
"""One in five cells of a group validates where groups cannot, of groups that have ten."""


def held_back(source: Source, training: Segments, seed: int) -> tuple[Segments, Segments]:
    """A fifth of the cells of each group with ten and more, and what is left, of stretches of perturbed cells.

    Held back are those that follow a random word among the hashes of their names.
    """
    positions, run = training.positions(), np.repeat(training.run, training.sizes)
    word = mixed(np.array([seed], dtype=np.uint64) + np.uint64(_SHARE))[0]
    order = np.lexsort((hashes_of(source, training) - word, run))
    _, first, sizes = np.unique(run[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(first, sizes)
    chosen = np.zeros(len(positions), dtype=bool)
    chosen[order] = rank < np.repeat(np.where(sizes >= _CELLS, sizes // _SHARE, 0), sizes)
    return Segments.of(source.runs, positions[chosen]), Segments.of(source.runs, positions[~chosen])


def n_kept(rule: HoldOut, runs: Runs, matched: Flags, i: int, cells_per_population: int | None) -> Integers | int:
    """How many cells of each run that a rule matches stay in training [runs]; one number where it is of all together.

    Raises:
        ValueError: of a group, or of all cells, none would stay or none be held out.
    """
    if rule.keep_total is not None:
        n_matched = int(runs.sizes[matched].sum())
        if rule.keep_total >= n_matched:
            raise ValueError(
                f"keep_total = {rule.keep_total} of hold_out[{i}] keeps all of the {n_matched} cells it matches in "
                "training, and some must be held out; lower it."
            )
        return rule.keep_total
    kept, asked = _n_kept_of_groups(rule, runs, i, cells_per_population)
    wrong = np.flatnonzero(matched & ((kept < 1) | (kept >= runs.sizes)))
    if len(wrong):
        first = int(wrong[0])
        more = f" ({len(wrong)} of {int(matched.sum())} groups are like that)" if matched.sum() > 1 else ""
        raise ValueError(
            f"{asked} of hold_out[{i}] counts in each group, and would keep {kept[first]} of the "
            f"{runs.sizes[first]} cells of {runs.name(first)}{more}, where some must stay in training and some be held "
            "out; change it, narrow the rule, or give keep_total for a number over all its groups."
        )
    return kept


def _n_kept_of_groups(rule: HoldOut, runs: Runs, i: int, cells_per_population: int | None) -> tuple[Integers, str]:
    """How many cells of each run would stay, matched or not [runs], and what asks for it."""
    if rule.keep_fraction is not None:
        return np.rint(rule.keep_fraction * runs.sizes).astype(np.int64), f"keep_fraction = {rule.keep_fraction}"
    kept, asked = rule.keep_cells or 0, f"keep_cells = {rule.keep_cells}"
    if rule.keep_populations is not None:
        if cells_per_population is None:
            raise ValueError(
                f"hold_out[{i}] keeps {rule.keep_populations} populations, and how many cells one has is not said; "
                "add training.cells_per_population, or write keep_cells."
            )
        kept = rule.keep_populations * cells_per_population
        asked = f"keep_populations = {rule.keep_populations}"
    return np.full(len(runs), kept, dtype=np.int64), asked


def hashes_of(source: Source, segments: Segments) -> Hashes:
    """The hashes of the names of some stretches' cells, in their order."""
    if not len(segments):
        return np.zeros(0, dtype=np.uint64)
    return np.concatenate([source.hashes(start, stop) for start, stop in segments.ranges()])
