"""The split: which cells train, validate and test, by one rule for every data set; and the leaks it may have.

A cell is held out where all covariates that a rule names match. `keep_fraction` and `keep_cells` leave so many of a
rule's cells in training, drawn by seed. Control cells are held out by `hold_out_controls` only. Where no rule names a
validation part, a seeded tenth of the training groups of perturbed cells becomes it, a group being the cells of one
(perturbation, cell type, assay batch). A split depends on cell names, labels, rules and seed, not on the cells' order.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd

from perturbdiff.data.cells import Cells, matches
from perturbdiff.data.duplicates import profile_hashes, spelling
from perturbdiff.data.recipe import COVARIATES, HoldOut

PARTS = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)

_GROUPS_NEEDED = 10
_SMALLEST_GROUP = 2

EXPRESSED = 10
"""The fewest expressed genes of a profile that two different cells do not share by chance."""

type Flags = npt.NDArray[np.bool_]
type Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Split:
    """Every cell's part.

    Attributes:
        part: [n], an index into `PARTS`.
        hold_out: the rules.
        seed: of what was drawn.
        hash: SHA-256 over the sorted cell names with their parts: equal for equal splits, in any order of the cells.
        notes: sentences on what was drawn, and on what was not possible.
        labels: the cells' labels, as in `Cells.labels`.
        is_control: [n], which cells are control cells.
    """

    part: npt.NDArray[np.int8]
    hold_out: tuple[HoldOut, ...]
    seed: int
    hash: str
    notes: tuple[str, ...]
    labels: pd.DataFrame = field(repr=False)
    is_control: Flags = field(repr=False)

    def rows(self, part: str) -> Indices:
        """The rows of a part's cells, ascending; control cells too.

        Raises:
            ValueError: there is no such part.
        """
        return np.flatnonzero(self._of(part)).astype(np.int64)

    def groups(self, part: str) -> pd.DataFrame:
        """The groups of a part's perturbed cells: perturbation, cell_type, assay_batch and their number of `cells`."""
        return _groups(self.labels, self._of(part) & ~self.is_control)

    def table(self) -> pd.DataFrame:
        """A row for each part: its groups of perturbed cells, all its cells, and its control cells among them."""
        rows = {
            part: {
                "groups": len(self.groups(part)),
                "cells": int(self._of(part).sum()),
                "control cells": int((self._of(part) & self.is_control).sum()),
            }
            for part in PARTS
        }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("part")

    def _of(self, part: str) -> Flags:
        if part not in PARTS:
            raise ValueError(f"there is no part {part!r}; choose one of {', '.join(PARTS)}.")
        return np.asarray(self.part == PARTS.index(part))


def split_cells(cells: Cells, hold_out: Sequence[HoldOut], *, seed: int) -> Split:
    """Split cells by rules.

    Raises:
        ValueError: a rule names a label that no cell has (the nearest is named), or matches no cell; a test and a
            validation rule match the same cell; as many cells are to be kept as there are; nothing is left to train.
    """
    order = np.argsort(cells.names.to_numpy(dtype=object), kind="stable")
    part = np.zeros(cells.n_cells, dtype=np.int8)
    matched = [_matched(cells, rule, i) for i, rule in enumerate(hold_out)]
    _refuse_overlap(hold_out, matched)
    for i, (rule, found) in enumerate(zip(hold_out, matched, strict=True)):
        held = order[found[order]]
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1, i)))
        kept = rng.permutation(len(held))[: _n_kept(rule, len(held), i)]
        part[np.delete(held, kept)] = PARTS.index(rule.part)
    if not (part == TRAIN).any():
        raise ValueError(
            f"the hold-out rules match all {cells.n_cells} cells, and some must be left to train; narrow the rules."
        )
    notes: tuple[str, ...] = ()
    if not any(rule.part == "validation" for rule in hold_out):
        touched = np.any(matched, axis=0) if matched else np.zeros(cells.n_cells, dtype=bool)
        notes = (_draw_validation(cells, part, touched, seed),)
    digest = _hash(cells.names, part, order)
    return Split(part, tuple(hold_out), seed, digest, notes, cells.labels, cells.is_control)


def find_leaks(cells: Cells, split: Split) -> list[str]:
    """A sentence for each leak: repeated names, shared profiles, other spellings, held-out groups in training."""
    return [
        *_repeated_names(cells),
        *_shared_profiles(cells, split),
        *_other_spellings(split),
        *_held_out_groups_in_training(cells, split),
    ]


def _matched(cells: Cells, rule: HoldOut, i: int) -> Flags:
    found = matches(cells.labels, rule, f"hold_out[{i}]")
    controls = found & cells.is_control
    if not rule.hold_out_controls:
        found &= ~cells.is_control
    if not found.any():
        if controls.any():
            raise ValueError(
                f"hold_out[{i}] ({rule.part}) matches {int(controls.sum())} control cells only, which are never held "
                "out; name a perturbation, or set hold_out_controls = true."
            )
        wanted = "; ".join(f"{key}: {', '.join(labels[:3])}" for key, labels in rule.named().items())
        raise ValueError(
            f"hold_out[{i}] ({rule.part}) matches no cell, though each of its labels occurs ({wanted}); "
            "name a combination that is in the data, or take the rule out."
        )
    return found


def _refuse_overlap(hold_out: Sequence[HoldOut], matched: list[Flags]) -> None:
    for i, first in enumerate(hold_out):
        for j in range(i + 1, len(hold_out)):
            both = matched[i] & matched[j]
            if first.part != hold_out[j].part and both.any():
                raise ValueError(
                    f"hold_out[{i}] ({first.part}) and hold_out[{j}] ({hold_out[j].part}) both match "
                    f"{int(both.sum())} cells, and a cell has one part; narrow one of the two rules."
                )


def _n_kept(rule: HoldOut, n_matched: int, i: int) -> int:
    """How many of a rule's cells stay in training."""
    if rule.keep_cells is None and rule.keep_fraction is None:
        return 0
    if rule.keep_cells is not None:
        n_kept, asked = rule.keep_cells, f"keep_cells = {rule.keep_cells}"
    else:
        n_kept, asked = round((rule.keep_fraction or 0) * n_matched), f"keep_fraction = {rule.keep_fraction}"
    if not 0 < n_kept < n_matched:
        raise ValueError(
            f"{asked} of hold_out[{i}] keeps {n_kept} of the {n_matched} cells it matches in training, and some must "
            "stay and some be held out; change it, or leave it out to hold out all."
        )
    return n_kept


def _draw_validation(cells: Cells, part: npt.NDArray[np.int8], touched: Flags, seed: int) -> str:
    """Hold back a tenth of the training groups, in `part`; the sentence that says so.

    Groups that a rule touched stay as the rule left them (few-shot). Groups whose perturbation remains in another
    training group come first, so that validation asks for a perturbation nobody has seen only where it must.
    """
    perturbed = ~cells.is_control
    number = group_numbers(cells.labels)
    training = perturbed & (part == TRAIN)
    sizes = np.bincount(number[training], minlength=int(number.max()) + 1)
    sizes[np.unique(number[perturbed & touched])] = 0
    eligible = np.flatnonzero(sizes >= _SMALLEST_GROUP)
    if len(eligible) < _GROUPS_NEEDED:
        return (
            f"No validation: no rule names one, and {len(eligible)} training groups of perturbed cells are fewer than "
            f"the {_GROUPS_NEEDED} of which a tenth could be held back; the last checkpoint is kept."
        )
    first_row = np.full(len(sizes), -1)
    first_row[number[training][::-1]] = np.flatnonzero(training)[::-1]
    names = cells.labels.iloc[first_row[eligible]].reset_index(drop=True).astype(str)
    names = names.sort_values(list(COVARIATES), kind="stable")
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
    shuffled = names["perturbation"].iloc[rng.permutation(len(names))]
    candidates = list(zip(shuffled.index.tolist(), shuffled.tolist(), strict=True))
    everywhere = cells.labels["perturbation"].iloc[first_row[np.unique(number[training])]].astype(str)
    n_drawn = round(len(eligible) / 10)
    drawn = _spare(candidates, Counter(everywhere), n_drawn)
    held = np.isin(number, eligible[drawn]) & training
    part[held] = VALIDATION
    lost = sorted(set(names.loc[drawn, "perturbation"]) - set(cells.labels["perturbation"][training & ~held]))
    unseen = f"; no training cell is left of {', '.join(map(repr, lost))}" if lost else ""
    return (
        f"Validation: no rule names one, so {n_drawn} of {len(eligible)} training groups of perturbed cells "
        f"({int(held.sum())} cells) were drawn for it with seed {seed}{unseen}."
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


def group_numbers(labels: pd.DataFrame) -> Indices:
    """The number of each cell's (perturbation, cell type, assay batch) [n]; equal for cells of one group."""
    number = np.zeros(len(labels), dtype=np.int64)
    for covariate in COVARIATES:
        column = labels[covariate].cat
        number = number * len(column.categories) + column.codes.to_numpy(dtype=np.int64)
    return np.unique(number, return_inverse=True)[1].astype(np.int64)


def _groups(labels: pd.DataFrame, chosen: Flags) -> pd.DataFrame:
    counted = labels[chosen].groupby(list(COVARIATES), observed=True, sort=True).size()
    return counted.rename("cells").reset_index()


def _hash(names: pd.Index, part: npt.NDArray[np.int8], order: npt.NDArray[np.intp]) -> str:
    lines = names.to_numpy(dtype=object)[order] + np.array([f"\t{name}\n" for name in PARTS], dtype=object)[part[order]]
    if names.has_duplicates:
        lines = np.sort(lines)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _repeated_names(cells: Cells) -> Iterator[str]:
    repeated = cells.names[cells.names.duplicated()]
    if len(repeated):
        yield (
            f"{repeated.nunique()} cell names occur more than once, such as {str(repeated[0])!r}, so a split cannot "
            "tell the cells apart; make the names unique."
        )


def _shared_profiles(cells: Cells, split: Split) -> Iterator[str]:
    profile, expressed = profile_hashes(cells)
    rich = expressed >= EXPRESSED
    training = np.unique(profile[rich & (split.part == TRAIN)])
    for i, part in enumerate(PARTS):
        shared = rich & (split.part == i) & np.isin(profile, training)
        if i != TRAIN and shared.any():
            yield (
                f"{int(shared.sum())} {part} cells, such as {str(cells.names[int(np.argmax(shared))])!r}, have exactly "
                "the expression of a training cell; remove the copies."
            )


def _other_spellings(split: Split) -> Iterator[str]:
    pair = ["perturbation", "cell_type"]
    training = split.groups("train")[pair].drop_duplicates().astype(str)
    spelt = {(spelling(a), spelling(b)): (a, b) for a, b in training.itertuples(index=False)}
    known = set(spelt.values())
    for part in PARTS[1:]:
        for a, b in split.groups(part)[pair].drop_duplicates().astype(str).itertuples(index=False):
            other = spelt.get((spelling(a), spelling(b)))
            if other is not None and (a, b) not in known:
                yield (
                    f"the {part} cells of perturbation {a!r} in cell type {b!r} may be in training too, spelt "
                    f"{other[0]!r} in {other[1]!r}; give the same thing one name."
                )


def _held_out_groups_in_training(cells: Cells, split: Split) -> Iterator[str]:
    number = group_numbers(split.labels)
    perturbed = ~split.is_control
    held = np.unique(number[perturbed & (split.part != TRAIN)])
    stray = perturbed & (split.part == TRAIN) & np.isin(number, held)
    for i, rule in enumerate(split.hold_out):
        if rule.keep_cells is not None or rule.keep_fraction is not None:
            stray &= ~matches(cells.labels, rule, f"hold_out[{i}]")
    if stray.any():
        first = ", ".join(repr(label) for label in split.labels.iloc[int(np.argmax(stray))])
        yield (
            f"{int(stray.sum())} training cells are of held-out groups, such as ({first}), and no keep_cells or "
            "keep_fraction asks for it; hold the whole group out."
        )
