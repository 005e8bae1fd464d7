"""The split: which cells train, validate and test, by one rule for every data set and every source.

A cell is held out where all covariates that a rule names match. `keep_fraction`, `keep_cells` and `keep_populations`
leave so many cells of each group that a rule matches in training, `keep_total` so many of all of them together, drawn by
seed. Control cells are held out by `hold_out_controls` only. Where no rule names a
validation part, a seeded tenth of the training groups of perturbed cells becomes it, a group being the cells of one
(perturbation, cell type, assay batch).

Rules match whole runs, so a split costs as much as there are runs. Only the runs of which some cells are kept are cut:
the kept cells are those that follow a random word among the hashes of their names, taken as a ring, which is one
stretch of each run; the word is the rule's, and how far it reaches is a matter of each group. A split depends on cell names, labels, rules
and seed, not on the cells' order or files.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd

from perturbdiff.data.cells import matches
from perturbdiff.data.recipe import HoldOut
from perturbdiff.data.source import Flags, Hashes, Integers, Runs, Segments, Source, chunks, digested, mixed

PARTS = ("train", "validation", "test")
HELD_OUT = PARTS[1:]
TRAIN, VALIDATION, TEST = range(3)

_GROUPS_NEEDED = 10
_SMALLEST_GROUP = 2
type Parts = npt.NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class Split:
    """Every cell's part.

    Attributes:
        source: of the cells.
        segments: stretches of positions that together are all cells.
        part: of each stretch, an index into `PARTS`.
        hold_out: the rules.
        seed: of what was drawn.
        hash: SHA-256 over what is in each part, by name: equal for equal splits, whatever the order of the cells.
        notes: sentences on what was drawn, and on what was not possible.
    """

    source: Source = field(repr=False)
    segments: Segments = field(repr=False)
    part: Parts = field(repr=False)
    hold_out: tuple[HoldOut, ...]
    seed: int
    hash: str
    notes: tuple[str, ...]

    def of(self, part: str) -> Segments:
        """The stretches of a part; control cells too.

        Raises:
            ValueError: there is no such part.
        """
        check_part(part)
        return self.segments.take(self.part == PARTS.index(part))

    def rows(self, part: str) -> Integers:
        """The part's cells as the source knows them: rows of cells in memory, positions in a store; ascending."""
        return self.source.rows(self.of(part))

    def groups(self, part: str) -> pd.DataFrame:
        """The groups of a part's perturbed cells: perturbation, cell_type, assay_batch and their number of `cells`."""
        cells = self.cells_of_runs(part)
        chosen = (cells > 0) & ~self.source.runs.is_control
        return self.source.runs.labels[chosen].assign(cells=cells[chosen]).reset_index(drop=True)

    def cells(self, part: str) -> Iterator[pd.DataFrame]:
        """The cells of a part in the canonical order, some at a time: cell (its name) and its three labels."""
        runs = self.source.runs
        for start, stop in chunks(self.of(part)):
            run = runs.of(np.arange(start, stop, dtype=np.int64))
            labels = {name: runs.labels[name].array[run].astype(object) for name in runs.labels}
            yield pd.DataFrame({"cell": self.source.names_at(start, stop), **labels})

    def cells_of_runs(self, part: str) -> Integers:
        """How many cells of each run are in a part [runs]."""
        segments = self.of(part)
        n_cells = np.zeros(len(self.source.runs), dtype=np.int64)
        np.add.at(n_cells, segments.run, segments.sizes)
        return n_cells

    def table(self, cells_per_population: int | None = None) -> pd.DataFrame:
        """A row for each part: its groups of perturbed cells, all its cells, and its control cells among them.

        Where it is said how many cells a population has, also how many populations the groups make.
        """
        control = self.source.runs.is_control
        rows = {}
        for part in PARTS:
            cells = self.cells_of_runs(part)
            rows[part] = {
                "groups": int(((cells > 0) & ~control).sum()),
                **_populations(cells[~control], cells_per_population),
                "cells": int(cells.sum()),
                "control cells": int(cells[control].sum()),
            }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("part")


def check_part(part: str) -> None:
    """Refuse what is no part.

    Raises:
        ValueError: it is none.
    """
    if part not in PARTS:
        raise ValueError(f"there is no part {part!r}; choose one of {', '.join(PARTS)}.")


def _populations(sizes: Integers, m: int | None) -> dict[str, int]:
    if m is None:
        return {}
    return {"populations": int((-(-sizes[sizes >= _SMALLEST_GROUP] // m)).sum())}


def split_cells(
    source: Source, hold_out: Sequence[HoldOut], *, seed: int, cells_per_population: int | None = None
) -> Split:
    """Split the cells of a source by rules.

    Args:
        source: of the cells.
        hold_out: the rules.
        seed: of what is drawn.
        cells_per_population: what rules that keep populations count in; None where there are none.

    Raises:
        ValueError: a rule names a label that no cell has (the nearest is named), or matches no cell; a test and a
            validation rule match the same cell; of a group none or all cells would be kept; nothing is left to train.
    """
    runs = source.runs
    matched = [_matched(runs, rule, i) for i, rule in enumerate(hold_out)]
    _refuse_overlap(runs, hold_out, matched)
    part = np.zeros(len(runs), dtype=np.int8)
    rings: list[Ring] = []
    for i, (rule, found) in enumerate(zip(hold_out, matched, strict=True)):
        part[found] = PARTS.index(rule.part)
        if rule.keeps:
            rings.append(Ring.of(source, found, _n_kept(rule, runs, found, i, cells_per_population), (seed, i)))
    whole = [found for i, found in enumerate(matched) if not hold_out[i].keeps]
    shared = _any(matched, runs) & ~_any(whole, runs)
    if not ((part == TRAIN) | shared).any():
        raise ValueError(
            f"the hold-out rules match all {runs.n_cells} cells, and some must be left to train; narrow the rules."
        )
    notes: tuple[str, ...] = ()
    if not any(rule.part == "validation" for rule in hold_out):
        notes = (_draw_validation(runs, part, _any(matched, runs), shared, seed),)
    segments, parts = _segments(source, part, shared, rings)
    return Split(source, segments, parts, tuple(hold_out), seed, _hash(source, segments, parts), notes)


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
            away = _hashes(source, runs.whole(matched)) - word
            distance[matched] = np.partition(away, n_kept - 1)[n_kept - 1]
            return cls(word, matched, distance)
        for run in np.flatnonzero(matched).tolist():
            away = source.hashes(int(runs.offsets[run]), int(runs.offsets[run + 1])) - word
            distance[run] = np.partition(away, n_kept[run] - 1)[n_kept[run] - 1]
        return cls(word, matched, distance)

    def leaves(self, hashes: Hashes, run: Integers) -> Flags:
        """Which cells stay in training: those that the rule does not match, and those that the ring holds."""
        return np.asarray(~self.matched[run] | (hashes - self.word <= self.distance[run]))


def _any(chosen: Sequence[Flags], runs: Runs) -> Flags:
    return np.asarray(np.any(chosen, axis=0)) if chosen else np.zeros(len(runs), dtype=bool)


def _matched(runs: Runs, rule: HoldOut, i: int) -> Flags:
    found = matches(runs.labels, rule, f"hold_out[{i}]")
    controls = found & runs.is_control
    if not rule.hold_out_controls:
        found &= ~runs.is_control
    if not found.any():
        if controls.any():
            raise ValueError(
                f"hold_out[{i}] ({rule.part}) matches {int(runs.sizes[controls].sum())} control cells only, which are "
                "never held out; name a perturbation, or set hold_out_controls = true."
            )
        wanted = "; ".join(f"{key}: {', '.join(labels[:3])}" for key, labels in rule.named().items())
        raise ValueError(
            f"hold_out[{i}] ({rule.part}) matches no cell, though each of its labels occurs ({wanted}); "
            "name a combination that is in the data, or take the rule out."
        )
    return found


def _refuse_overlap(runs: Runs, hold_out: Sequence[HoldOut], matched: list[Flags]) -> None:
    for i, first in enumerate(hold_out):
        for j in range(i + 1, len(hold_out)):
            both = matched[i] & matched[j]
            if first.part != hold_out[j].part and both.any():
                raise ValueError(
                    f"hold_out[{i}] ({first.part}) and hold_out[{j}] ({hold_out[j].part}) both match "
                    f"{int(runs.sizes[both].sum())} cells, and a cell has one part; narrow one of the two rules."
                )


def _n_kept(rule: HoldOut, runs: Runs, matched: Flags, i: int, cells_per_population: int | None) -> Integers | int:
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
    n_kept, asked = _n_kept_of_groups(rule, runs, i, cells_per_population)
    wrong = np.flatnonzero(matched & ((n_kept < 1) | (n_kept >= runs.sizes)))
    if len(wrong):
        first = int(wrong[0])
        more = f" ({len(wrong)} of {int(matched.sum())} groups are like that)" if matched.sum() > 1 else ""
        raise ValueError(
            f"{asked} of hold_out[{i}] counts in each group, and would keep {n_kept[first]} of the "
            f"{runs.sizes[first]} cells of {runs.name(first)}{more}, where some must stay in training and some be held "
            "out; change it, narrow the rule, or give keep_total for a number over all its groups."
        )
    return n_kept


def _n_kept_of_groups(rule: HoldOut, runs: Runs, i: int, cells_per_population: int | None) -> tuple[Integers, str]:
    """How many cells of each run would stay, matched or not [runs], and what asks for it."""
    if rule.keep_fraction is not None:
        return np.rint(rule.keep_fraction * runs.sizes).astype(np.int64), f"keep_fraction = {rule.keep_fraction}"
    n_kept, asked = rule.keep_cells or 0, f"keep_cells = {rule.keep_cells}"
    if rule.keep_populations is not None:
        if cells_per_population is None:
            raise ValueError(
                f"hold_out[{i}] keeps {rule.keep_populations} populations, and how many cells one has is not said; "
                "add training.cells_per_population, or write keep_cells."
            )
        n_kept = rule.keep_populations * cells_per_population
        asked = f"keep_populations = {rule.keep_populations}"
    return np.full(len(runs), n_kept, dtype=np.int64), asked


def _draw_validation(runs: Runs, part: Parts, touched: Flags, shared: Flags, seed: int) -> str:
    """Hold back a tenth of the training groups, in `part`; the sentence that says so.

    Groups that a rule touched stay as the rule left them (few-shot). Groups whose perturbation remains in another
    training group come first, so that validation asks for a perturbation nobody has seen only where it must.
    """
    training = ~runs.is_control & ((part == TRAIN) | shared)
    eligible = np.flatnonzero(training & ~touched & (runs.sizes >= _SMALLEST_GROUP))
    if len(eligible) < _GROUPS_NEEDED:
        return (
            f"No validation: no rule names one, and {len(eligible)} training groups of perturbed cells are fewer than "
            f"the {_GROUPS_NEEDED} of which a tenth could be held back; the last checkpoint is kept."
        )
    perturbation = runs.labels["perturbation"].astype(str).to_numpy(dtype=object)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
    shuffled = eligible[rng.permutation(len(eligible))]
    n_drawn = round(len(eligible) / 10)
    candidates = list(zip(shuffled.tolist(), perturbation[shuffled].tolist(), strict=True))
    drawn = np.array(_spare(candidates, Counter(perturbation[training].tolist()), n_drawn), dtype=np.int64)
    part[drawn] = VALIDATION
    training[drawn] = False
    lost = sorted(set(perturbation[drawn]) - set(perturbation[training]))
    unseen = f"; no training cell is left of {', '.join(map(repr, lost))}" if lost else ""
    return (
        f"Validation: no rule names one, so {n_drawn} of {len(eligible)} training groups of perturbed cells "
        f"({int(runs.sizes[drawn].sum())} cells) were drawn for it with seed {seed}{unseen}."
    )


def _spare(candidates: list[tuple[int, str]], n_groups: Counter[str], n_drawn: int) -> list[int]:
    """The first `n_drawn` (group, perturbation) that leave the perturbation another training group; then any others."""
    drawn: list[int] = []
    others: list[int] = []
    for group, perturbation in candidates:
        if n_groups[perturbation] > 1:
            n_groups[perturbation] -= 1
            drawn.append(group)
        else:
            others.append(group)
        if len(drawn) == n_drawn:
            break
    return (drawn + others)[:n_drawn]


def _segments(source: Source, part: Parts, shared: Flags, rings: list[Ring]) -> tuple[Segments, Parts]:
    """The stretches of every part: whole runs, but for those of which some cells train."""
    runs = source.runs
    found = [(runs.whole(~shared), part[~shared])]
    if shared.any():
        whole = runs.whole(shared)
        positions, hashes = whole.positions(), _hashes(source, whole)
        run = np.repeat(whole.run, whole.sizes)
        trains = np.ones(len(positions), dtype=bool)
        for ring in rings:
            trains &= ring.leaves(hashes, run)
        kept, held = Segments.of(runs, positions[trains]), Segments.of(runs, positions[~trains])
        found += [(kept, np.full(len(kept), TRAIN, dtype=np.int8)), (held, part[held.run])]
    joined = found[0][0]
    for more, _ in found[1:]:
        joined = joined.union(more)
    by_start = np.argsort(np.concatenate([segments.start for segments, _ in found]), kind="stable")
    return joined, np.concatenate([parts for _, parts in found])[by_start]


def _hashes(source: Source, segments: Segments) -> Hashes:
    """The hashes of the names of some stretches' cells, in their order."""
    return np.concatenate([source.hashes(start, stop) for start, stop in segments.spans()])


def _hash(source: Source, segments: Segments, part: Parts) -> str:
    """A hash of the sets of names: how many cells each part has, and the sums of two hashes of their names."""
    runs = source.runs
    whole = segments.sizes == runs.sizes[segments.run]
    digests = np.zeros((len(segments), 2), dtype=np.uint64)
    digests[whole] = source.digests[segments.run[whole]]
    for i in np.flatnonzero(~whole).tolist():
        hashes = source.hashes(int(segments.start[i]), int(segments.stop[i]))
        digests[i] = digested(hashes, np.array([0, len(hashes)]))[0]
    lines = []
    for i, name in enumerate(PARTS):
        own = part == i
        sums = digests[own].sum(axis=0, dtype=np.uint64).tolist()
        lines.append(f"{name} {int(segments.sizes[own].sum())} {sums}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
