"""The split: which cells train, validate and test, by one rule for every data set and every source.

A cell is held out where all covariates that a rule names match, but for those that the rule keeps in training (see
`keeping`). Control cells are held out by `hold_out_controls` only. Where no rule names a validation part, a seeded
tenth of the training groups of perturbed cells becomes it, a group being the cells of one (perturbation, cell type,
assay batch); where the rules leave fewer than ten groups untouched, a fifth of the cells of each group that trains.

Rules match whole runs, so a split costs as much as there are runs. Only the runs of which some cells are kept are cut.
A split depends on cell names, labels, rules and seed, not on the cells' order or files.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd

from perturbdiff.cells.memory import matches
from perturbdiff.cells.order import Flags, Integers, Runs, Segments, chunks, digested
from perturbdiff.cells.source import Source
from perturbdiff.recipes.selection import HoldOut
from perturbdiff.split.keeping import Ring, hashes_of, held_back, n_kept

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

    def held_back(self) -> Segments:
        """The validation cells of groups that train, where these were drawn; none where whole groups validate."""
        validation = self.of("validation")
        trains = self.cells_of_runs("train")[validation.run] > 0
        named = any(rule.part == "validation" for rule in self.hold_out)
        return validation.take(trains & trains.all() & (not named))

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
            rings.append(Ring.of(source, found, n_kept(rule, runs, found, i, cells_per_population), (seed, i)))
    whole = [found for i, found in enumerate(matched) if not hold_out[i].keeps]
    shared = _any(matched, runs) & ~_any(whole, runs)
    if not ((part == TRAIN) | shared).any():
        raise ValueError(
            f"the hold-out rules match all {runs.n_cells} cells, and some must be left to train; narrow the rules."
        )
    notes: tuple[str, ...] = ()
    wanted = not any(rule.part == "validation" for rule in hold_out)
    if wanted:
        notes = _draw_validation(runs, part, _any(matched, runs), shared, seed)
    segments, parts = _segments(source, part, shared, rings)
    if wanted and not notes:
        segments, parts, note = _hold_back(source, segments, parts, seed)
        notes = (note,)
    return Split(source, segments, parts, tuple(hold_out), seed, _hash(source, segments, parts), notes)


def _any(chosen: Sequence[Flags], runs: Runs) -> Flags:
    return np.asarray(np.any(chosen, axis=0)) if chosen else np.zeros(len(runs), dtype=bool)


def _matched(runs: Runs, rule: HoldOut, i: int) -> Flags:
    found = matches(runs.labels, rule, f"hold_out[{i}]", runs.grammar, runs.control)
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


def _hold_back(source: Source, segments: Segments, parts: Parts, seed: int) -> tuple[Segments, Parts, str]:
    """Hold back a fifth of the cells of each training group, where there are enough; the sentence that says so."""
    training = (parts == TRAIN) & ~source.runs.is_control[segments.run]
    back, left = held_back(source, segments.take(training), seed)
    rule = f"fewer than the {_GROUPS_NEEDED} groups that no rule touches, of which a tenth could be held back"
    if not len(back):
        note = f"No validation: no rule names one, there are {rule}, and none has cells enough to be divided."
        return segments, parts, note
    joined, found = _joined(
        [
            (segments.take(~training), parts[~training]),
            (left, np.full(len(left), TRAIN, dtype=np.int8)),
            (back, np.full(len(back), VALIDATION, dtype=np.int8)),
        ]
    )
    note = (
        f"Validation: no rule names one, and there are {rule}, so {back.n_cells} cells of {len(np.unique(back.run))} "
        f"groups that train were drawn for it with seed {seed}; it says nothing of conditions that do not train."
    )
    return joined, found, note


def _draw_validation(runs: Runs, part: Parts, touched: Flags, shared: Flags, seed: int) -> tuple[str, ...]:
    """Hold back a tenth of the training groups, in `part`; the sentence that says so, none where they are too few.

    Groups that a rule touched stay as the rule left them (few-shot). Groups whose perturbation remains in another
    training group come first, so that validation asks for a perturbation nobody has seen only where it must.
    """
    training = ~runs.is_control & ((part == TRAIN) | shared)
    eligible = np.flatnonzero(training & ~touched & (runs.sizes >= _SMALLEST_GROUP))
    if len(eligible) < _GROUPS_NEEDED:
        return ()
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
        f"({int(runs.sizes[drawn].sum())} cells) were drawn for it with seed {seed}{unseen}.",
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
        positions, hashes = whole.positions(), hashes_of(source, whole)
        run = np.repeat(whole.run, whole.sizes)
        trains = np.ones(len(positions), dtype=bool)
        for ring in rings:
            trains &= ring.leaves(hashes, run)
        kept, held = Segments.of(runs, positions[trains]), Segments.of(runs, positions[~trains])
        found += [(kept, np.full(len(kept), TRAIN, dtype=np.int8)), (held, part[held.run])]
    return _joined(found)


def _joined(found: Sequence[tuple[Segments, Parts]]) -> tuple[Segments, Parts]:
    """Stretches and their parts as one list, by their place."""
    joined = found[0][0]
    for more, _ in found[1:]:
        joined = joined.union(more)
    by_start = np.argsort(np.concatenate([segments.start for segments, _ in found]), kind="stable")
    return joined, np.concatenate([parts for _, parts in found])[by_start]


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
