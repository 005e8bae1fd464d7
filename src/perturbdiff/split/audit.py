"""The audit of a split: every way that is looked for in which held-out cells may reach training.

Repeated names and profiles (the same cell twice, in one file or several); training cells that a rule would hold out
but for the spelling of a label it names (of perturbation also the order of members or the unit), whatever else of that
name trains elsewhere; a held-out drug that trains in the same cell type at another dose; held-out groups in training
though nothing was to be kept there; control cells in training that a rule asked to hold out. Costs a pass over hashes
of cells, never over expression, and bounded memory.
"""

from collections import defaultdict
from collections.abc import Iterator
from functools import partial

import numpy as np

from perturbdiff.cells.memory import matches
from perturbdiff.cells.order import Flags, Hashes, Integers, Runs, Segments, chunks
from perturbdiff.cells.source import Source
from perturbdiff.core.choices import COVARIATES
from perturbdiff.labels.members import at_any_dose, identity, without_dose
from perturbdiff.recipes.dataset import Grammar
from perturbdiff.recipes.selection import HoldOut, Match
from perturbdiff.spelling import spelling
from perturbdiff.split.rules import PARTS, Split

EXPRESSED = 10
"""The fewest expressed genes of a profile that two different cells do not share by chance."""

_AT_ONCE = 1 << 26
"""So many hashes are sorted at once; where there are more cells, those of a range of hashes at a time."""

LOOKED_FOR = (
    "repeated cell names",
    "held-out cells with the expression of a training cell",
    "training cells that a rule holds out but for a spelling, an order of members or a unit",
    "held-out perturbations that train at another dose",
    "held-out groups in training",
    "control cells in training that a rule holds out",
)
"""What `find_leaks` looks for, for the report."""


def find_leaks(split: Split, grammar: Grammar | None = None) -> list[str]:
    """A sentence for each leak; `grammar` says what labels are made of, that of the source when absent."""
    grammar = split.source.runs.grammar if grammar is None else grammar
    return [
        *repeated_names(split.source),
        *_shared_profiles(split),
        *_other_spellings(split, grammar),
        *_other_doses(split, grammar),
        *_held_out_groups_in_training(split),
        *_shared_controls(split),
    ]


def repeated_names(source: Source) -> Iterator[str]:
    """A sentence where cells share a name."""
    whole = source.runs.whole()
    n_ranges = -(-source.n_cells // _AT_ONCE)
    n_repeated, example = 0, ""
    for i in range(n_ranges):
        # the high bits of a hash are uniform: about as many cells in each range
        found, places = [], []
        for start, stop in chunks(whole):
            hashes = source.hashes(start, stop)
            own = (hashes >> np.uint64(40)).astype(np.int64) * n_ranges >> 24 == i
            found.append(hashes[own])
            places.append(start + np.flatnonzero(own))
        repeated = _repeated(np.concatenate(found))
        n_repeated += int(repeated.sum())
        if repeated.any() and not example:
            example = source.name(int(np.concatenate(places)[np.argmax(repeated)]))
    if n_repeated:
        yield (
            f"{n_repeated} cells share their name with another cell, such as {example!r}, so the same cell may be "
            "there twice; give every cell a name of its own, as adata.obs_names_make_unique() does."
        )


def _repeated(hashes: Hashes) -> Flags:
    order = np.argsort(hashes, kind="stable")
    same = np.diff(hashes[order]) == 0
    repeated = np.zeros(len(hashes), dtype=bool)
    repeated[order[1:]] = same
    repeated[order[:-1]] |= same
    return repeated


def _shared_profiles(split: Split) -> Iterator[str]:
    held = [_profiles(split.source, split.of(part)) for part in PARTS[1:]]
    wanted = np.unique(np.concatenate([profiles for profiles, _ in held]))
    if not len(wanted):
        return
    trains = np.zeros(len(wanted), dtype=bool)
    for start, stop in chunks(split.of("train")):
        profiles, expressed = split.source.profiles(start, stop)
        trains |= np.isin(wanted, profiles[expressed >= EXPRESSED])
    for part, (profiles, places) in zip(PARTS[1:], held, strict=True):
        shared = trains[np.searchsorted(wanted, profiles)]
        if shared.any():
            yield (
                f"{int(shared.sum())} {part} cells, such as {split.source.name(int(places[np.argmax(shared)]))!r}, "
                "have exactly the expression of a training cell; remove the copies."
            )


def _profiles(source: Source, segments: Segments) -> tuple[Hashes, Integers]:
    """The profiles of some cells that express enough genes to be told apart, and their positions."""
    found, places = [np.zeros(0, dtype=np.uint64)], [np.zeros(0, dtype=np.int64)]
    for start, stop in chunks(segments):
        profiles, expressed = source.profiles(start, stop)
        rich = expressed >= EXPRESSED
        found.append(profiles[rich])
        places.append(start + np.flatnonzero(rich))
    return np.concatenate(found), np.concatenate(places)


def _other_spellings(split: Split, grammar: Grammar) -> Iterator[str]:
    """Training cells that a rule would hold out, were their labels spelt as in the rule; at the rule's resolution."""
    runs = split.source.runs
    n_cells = split.cells_of_runs("train")
    folded = {name: _folded(runs, name, grammar) for name in COVARIATES}
    drawn, asked = ~runs.is_control, np.zeros(len(runs), dtype=bool)
    found: list[tuple[Flags, str, Flags]] = []
    for i, rule in enumerate(split.hold_out):
        place = f"hold_out[{i}]"
        literal = matches(runs.labels, rule, place, runs.grammar, runs.control)
        if rule.keeps:
            asked |= literal
        meant = np.ones(len(runs), dtype=bool)
        for name, wanted in rule.named().items():
            own = matches(runs.labels, Match(**{name: wanted}), place, runs.grammar, runs.control)
            meant &= np.isin(folded[name], np.unique(folded[name][own]))
        drawn &= ~literal
        if not rule.hold_out_controls:
            meant &= ~runs.is_control
        found.append((meant & ~literal & (n_cells > 0), f"{place} ({rule.part})", literal))
    for stray, what, literal in found:
        # what a rule keeps in training is there because it asks for it
        yield from _spelt(runs, stray & ~asked, n_cells, what, literal)
    held = np.zeros(len(runs), dtype=bool)
    for part in PARTS[1:]:
        held |= split.cells_of_runs(part) > 0
    triples = np.stack([folded[name] for name in COVARIATES], axis=1)
    kept = {tuple(row) for row in triples[held & drawn].tolist()}
    if kept:
        again = np.array([tuple(row) in kept for row in triples.tolist()]) & ~held & ~runs.is_control
        yield from _spelt(runs, again & (n_cells > 0), n_cells, "the drawn validation part", held & drawn)


def _folded(runs: Runs, name: str, grammar: Grammar) -> Integers:
    """A number for each run, equal where the labels of a covariate mean the same or differ in spelling only."""
    categories = [str(label) for label in runs.labels[name].cat.categories]
    if name == "perturbation":
        texts = [identity(label, grammar, runs.control) for label in categories]
    else:
        texts = [spelling(label) for label in categories]
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    of_category = np.array([numbers[text] for text in texts], dtype=np.int64)
    found: Integers = of_category[runs.labels[name].cat.codes.to_numpy()]
    return found


def _spelt(runs: Runs, stray: Flags, n_cells: Integers, what: str, held: Flags) -> Iterator[str]:
    """The sentence on training runs that are meant to be held out."""
    if stray.any():
        first, other = int(np.argmax(stray)), int(np.argmax(held))
        yield (
            f"{int(n_cells[stray].sum())} training cells, such as those of {runs.name(first)}, differ from what {what} "
            f"holds out, such as {runs.name(other)}, in the spelling of labels, the order of members or a unit only; "
            "give the same thing one name."
        )


def _other_doses(split: Split, grammar: Grammar) -> Iterator[str]:
    """Held-out perturbations that train in the same cell type at another dose."""
    means = partial(identity, grammar=grammar, control=split.source.control)
    at_no_dose = partial(without_dose, grammar=grammar, control=split.source.control)
    pair = ["perturbation", "cell_type"]
    training = list(split.groups("train")[pair].drop_duplicates().astype(str).itertuples(index=False, name=None))
    known = set(training)
    doses: dict[tuple[str, str], list[str]] = defaultdict(list)
    for label, cell_type in training:
        drug = at_no_dose(label)
        if drug is not None:
            doses[drug, spelling(cell_type)].append(label)
    for part in PARTS[1:]:
        rules = [rule for rule in split.hold_out if rule.part == part]
        seen: list[tuple[str, str, str]] = []
        for label, cell_type in split.groups(part)[pair].drop_duplicates().astype(str).itertuples(index=False):
            drug = at_no_dose(label)
            if drug is None or (label, cell_type) in known or _doses_may_train(rules, label):
                continue
            trained = [one for one in doses[drug, spelling(cell_type)] if means(one) != means(label)]
            if trained:
                seen.append((label, cell_type, trained[0]))
        if seen:
            label, cell_type, trained_label = seen[0]
            yield (
                f"{len(seen)} perturbations held out for {part} train in the same cell type at another dose, such as "
                f"{label!r} in {cell_type!r} as {trained_label!r}; hold all doses out, or write "
                'other_doses = "train" in the rule where that is meant.'
            )


def _doses_may_train(rules: list[HoldOut], label: str) -> bool:
    """Whether the rules that hold a label out say that its other doses train; what no rule names was drawn for it."""
    if not rules:
        return True
    own = [rule for rule in rules if rule.perturbation is None or _names(rule.perturbation, label)]
    return bool(own) and all(rule.other_doses == "train" for rule in own)


def _names(perturbations: tuple[str, ...], label: str) -> bool:
    """Whether a label is among those of a rule, which may name a drug without its dose."""
    return label in perturbations or any(at_any_dose(drug, [label]) for drug in perturbations)


def _held_out_groups_in_training(split: Split) -> Iterator[str]:
    runs = split.source.runs
    held = np.zeros(len(runs), dtype=bool)
    for part in PARTS[1:]:
        held |= split.cells_of_runs(part) > 0
    # where cells of groups that train validate, it is not the group that is held out
    held[split.held_back().run] = split.cells_of_runs("test")[split.held_back().run] > 0
    stray = held & ~runs.is_control & (split.cells_of_runs("train") > 0)
    for i, rule in enumerate(split.hold_out):
        if rule.keeps:
            stray &= ~matches(runs.labels, rule, f"hold_out[{i}]", runs.grammar, runs.control)
    if stray.any():
        n_cells = int(split.cells_of_runs("train")[stray].sum())
        yield (
            f"{n_cells} training cells are of held-out groups, such as {runs.name(int(np.argmax(stray)))}, and no "
            "keep_* key of a rule asks for it; hold the whole group out."
        )


def _shared_controls(split: Split) -> Iterator[str]:
    """Control cells of a rule's cell types and assay batches that train, though it holds control cells out."""
    runs = split.source.runs
    trains = runs.is_control & (split.cells_of_runs("train") > 0)
    for i, rule in enumerate(split.hold_out):
        if not rule.hold_out_controls or rule.keeps:
            continue
        context = trains.copy()
        if rule.cell_type is not None or rule.assay_batch is not None:
            context &= matches(runs.labels, rule.model_copy(update={"perturbation": None}), f"hold_out[{i}]")
        if context.any():
            yield (
                f"{int(split.cells_of_runs('train')[context].sum())} control cells train, such as those of "
                f"{runs.name(int(np.argmax(context)))}, though hold_out[{i}] ({rule.part}) asks to hold the control "
                "cells of its cell types and assay batches out; add a rule that names the control label."
            )
