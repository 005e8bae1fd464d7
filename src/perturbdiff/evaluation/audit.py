"""What of the judged conditions trained: a leak is a warning that comes before all others.

Observed cells that trained are known by their names. Validation cells that were drawn of groups that train count as
training cells: the kept weights were chosen by them, and their groups trained.
"""

from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
import pandas as pd

from perturbdiff.cells.order import Flags, name_hashes
from perturbdiff.evaluation.pairs import File, perturbed_rows
from perturbdiff.metrics.conditions import LABELS, TOGETHER, Condition, Pooling
from perturbdiff.metrics.warnings import Warned
from perturbdiff.recipes.dataset import Grammar
from perturbdiff.split.audit import find_leaks
from perturbdiff.split.rules import HELD_OUT, Split

LEAK = "leak"
"""The kind of a warning that judged cells may have been trained on."""


def audit(
    split: Split, conditions: Sequence[Condition], observed: File, trained: Flags, *, judged: bool, grammar: Grammar
) -> tuple[dict[str, Any], list[Warned]]:
    """What of the judged conditions a split held out, and every way that is looked for in which they were trained on.

    Args:
        split: of the training data.
        conditions: the judged ones.
        observed: the observed file.
        trained: which of its cells trained, by their names [n].
        judged: whether these are judged all the same.
        grammar: what labels of perturbation are made of.

    Returns:
        Facts for the record, and a warning for each leak.
    """
    parts = {part: _conditions(split.groups(part)) for part in ("train", *HELD_OUT)}
    if len(split.held_back()):
        parts["validation"] = set()
    held_out = set.union(*(parts[part] for part in HELD_OUT))
    rows = perturbed_rows(observed, Pooling(pairs=frozenset(one.pair for one in conditions if not one.assay_batch)))
    n_trained = {one: int(trained[rows[one]].sum()) for one in conditions}
    # a condition that trained, and none of whose cells is known by name: who trained cannot be told
    unknown_cells = [one for one in conditions if one in parts["train"] and not n_trained[one]]
    seen = [
        one for one in conditions if one in parts["train"] and one not in held_out and (judged or one in unknown_cells)
    ]
    few_shot = [one for one in unknown_cells if one in held_out]
    validated = [one for one in conditions if one in parts["validation"] and one not in parts["test"]]
    neither = [one for one in conditions if one not in held_out and one not in parts["train"]]
    shared = sum(n_trained.values()) if judged else 0
    leaks = []
    if seen:
        leaks.append(
            f"{len(seen)} of the {len(conditions)} judged conditions were in training, such as {str(seen[0])!r}: "
            "their scores say nothing of unseen conditions."
        )
    if shared and not seen:
        n_cells = sum(rows[one].size for one in conditions)
        leaks.append(f"{shared} of the {n_cells} judged observed cells were trained on, by their names.")
    if few_shot:
        leaks.append(
            f"cells of {len(few_shot)} of the {len(conditions)} judged conditions trained, such as of "
            f"{str(few_shot[0])!r}, and none of their names is in the observed file: they may be among the judged ones."
        )
    if validated:
        leaks.append(
            f"{len(validated)} of the {len(conditions)} judged conditions are of the validation part, such as "
            f"{str(validated[0])!r}: the kept weights were chosen by them."
        )
    leaks += find_leaks(split, grammar)
    facts = {
        "split": split.hash,
        "judged": len(conditions),
        "held_out": sum(one in held_out for one in conditions),
        "in_training": [one._asdict() for one in seen],
        "in_validation": [one._asdict() for one in validated],
        "in_neither": [one._asdict() for one in neither],
        "trained_cells_judged": shared,
    }
    return facts, [Warned(LEAK, text) for text in leaks]


def trained_cells(split: Split, asked: Set[tuple[str, str]], observed: File) -> tuple[Flags, str]:
    """Which observed cells of the predicted (perturbation, cell type) trained [n], by their names; and a sentence."""
    runs = split.source.runs
    pairs = runs.labels[list(LABELS[:2])].astype(str).itertuples(index=False, name=None)
    chosen = np.array([pair in asked for pair in pairs]) & ~runs.is_control
    held_back = split.held_back()
    segments = split.of("train").union(held_back)
    segments = segments.take(chosen[segments.run])
    hashes = [split.source.hashes(start, stop) for start, stop in segments.ranges()]
    trained = np.isin(name_hashes(observed.names), np.concatenate(hashes)) if hashes else np.zeros(0, dtype=bool)
    if not trained.any():
        return np.zeros(len(observed.names), dtype=bool), ""
    rows = perturbed_rows(observed, TOGETHER)
    n_cells = sum(own.size for one, own in rows.items() if one.pair in asked)
    did = "trained or chose the kept weights" if len(held_back) else "trained"
    return trained, (
        f"{int(trained.sum())} of the {n_cells} observed cells of the predicted perturbations and cell types "
        f"{did}, by their names, and are left out; --with-training-cells judges them too."
    )


def independent_unit(split: Split, asked: Set[tuple[str, str]]) -> str:
    """What is independent: assay batches where these are held out of perturbations that trained, else perturbations."""
    trained = set(split.groups("train")["perturbation"].astype(str))
    batches = any(rule.assay_batch is not None for rule in split.hold_out if rule.part == "test")
    return "assay_batch" if batches and {label for label, _ in asked} <= trained else "perturbation"


def other_splits(declared: Mapping[str, Mapping[str, Any]], split: Split) -> list[Warned]:
    """A warning for each predicted file that declares another split."""
    return [
        Warned(
            LEAK,
            f"{name!r} was predicted by a model of another split than that of the training cells given here, "
            "so nothing is known of what it was trained on; give the run that made it.",
        )
        for name, said in declared.items()
        if str(said.get("split_hash", split.hash)) != split.hash
    ]


def _conditions(groups: pd.DataFrame) -> set[Condition]:
    """The conditions of some groups, by themselves and over assay batches together."""
    rows = groups[list(LABELS)].astype(str).itertuples(index=False, name=None)
    apart = {Condition(*row) for row in rows}
    return apart | {Condition(*one.pair) for one in apart}
