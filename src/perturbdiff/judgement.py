"""From files on disk to a comparison: predicted and observed .h5ad files, and a run or recipe for training cells.

A run also says what was held out. Observed cells that trained, known by their names, are never among the judged ones
unless they are asked for; and the judged conditions are audited against the split: a leak is a warning that comes
before all others.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from perturbdiff.cells.order import Flags, name_hashes
from perturbdiff.comparison import Comparison, Depth, Scope, compare
from perturbdiff.evaluation.cache import Cache, content_hash
from perturbdiff.evaluation.cautions import Caution
from perturbdiff.evaluation.conditions import LABELS, TOGETHER, Condition, File, Pooling, perturbed_rows
from perturbdiff.evaluation.files import IN_MEMORY, declared_by, notes_of, open_file, renamed
from perturbdiff.evaluation.suites import versions
from perturbdiff.labels.members import grammar_of, same_as
from perturbdiff.origin import Origin
from perturbdiff.recipes.dataset import PLAIN, Columns, Expression, Grammar
from perturbdiff.split.audit import find_leaks
from perturbdiff.split.rules import HELD_OUT, Split

if TYPE_CHECKING:
    from perturbdiff.checkpoint import Checkpoint

type Declared = Mapping[str, Any]
"""What a file says of itself."""

LEAK = "leak"
"""The kind of a warning that judged cells may have been trained on."""


def compare_files(
    predicted: Mapping[str, Path],
    observed: Path,
    *,
    source: Origin | None = None,
    columns: Columns | None = None,
    expression: Expression | None = None,
    predicted_expression: Expression | None = None,
    control: str | Sequence[str] | None = None,
    seed: int = 0,
    depth: Depth | None = None,
    pool_batches: bool = False,
    with_training_cells: bool = False,
    predicted_controls: bool = False,
    cache: Path | None = None,
    in_memory: int = IN_MEMORY,
    clip: bool = False,
) -> Comparison:
    """Judge predicted files beside the baselines and the ceilings.

    Args:
        predicted: files by the name that they have in the tables.
        observed: the file of observed cells.
        source: brings the training cells, says how the observed file is to be read, and what was held out.
        columns: of files that do not declare them; those of the source when absent.
        expression: layer and scale of the observed file; those of the source when absent.
        predicted_expression: layer and scale of predicted files that do not declare them.
        control: control label of files that do not declare it; of several the first names all. That of the source when
            absent.
        seed: of the comparison's draws.
        depth: how much is computed; our own metrics beside control and mean shift where None.
        pool_batches: whether conditions are judged over all assay batches together, where predictions name these.
        with_training_cells: whether observed cells that trained are judged too.
        predicted_controls: whether control cells come from a predicted file in place of the observed one.
        cache: a folder that keeps the tests of the observed cells; None keeps nothing.
        in_memory: files of more bytes are read a condition at a time.
        clip: whether values below 0 of predicted files count as 0, which a note says.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file does not say what it holds, or the files cannot be compared.
    """
    if source is not None:
        columns = columns or source.recipe.columns
        expression = expression or source.recipe.expression
        control = control or [label for label in (source.recipe.control, *source.recipe.controls) if label]
    first, *further = [control] if isinstance(control, str) else control or [""]
    declared = {name: declared_by(path) for name, path in predicted.items()}
    grammar = _grammar(source, declared)
    # totals are of counts, and predictions are log1p unless the caller says otherwise
    counted = predicted_expression is not None and predicted_expression.scale == "counts"
    labels = columns if columns is None or counted else columns.model_copy(update={"total_counts": None})
    opened = partial(open_file, control=first or None, controls=further, grammar=grammar, in_memory=in_memory)
    files = {
        name: opened(path, columns=labels, expression=predicted_expression, observed=False, clip=clip)
        for name, path in predicted.items()
    }
    counts = source is not None and expression is not None and expression.scale == "counts"
    summed = source.total_genes if counts and source is not None else None
    seen = opened(observed, columns=columns, expression=expression, summed=summed)
    said_of_files = dict.fromkeys(note for file in (*files.values(), seen) for note in notes_of(file))
    files, seen, named = _named_alike(files, seen, source, grammar)
    depth = depth or Depth()
    if cache is not None:
        parts = [observed, *(predicted.values() if predicted_controls else [])]
        said = [
            str(columns),
            str(expression),
            str(predicted_expression),
            str(control),
            str(clip),
            *map(content_hash, parts),
        ]
        depth = replace(depth, cache=Cache(cache, json.dumps([said, versions()])))
    settings = {
        "observed file": _read_as(observed, {} if expression is not None else declared_by(observed), expression),
        **{
            f"predicted file {name!r}": _read_as(path, declared[name], predicted_expression)
            for name, path in predicted.items()
        },
    }
    open_pairs = {pair for one in declared.values() for pair in _open_pairs(one)}
    known = map(str, seen.labels["perturbation"].cat.categories)
    names = same_as([label for label, _ in open_pairs], known, grammar, seen.control)
    pooled = frozenset((names.get(label, label), kind) for label, kind in open_pairs)
    scope = Scope(Pooling(pool_batches, pooled), predicted_controls=predicted_controls)
    if source is None:
        comparison = compare(files, seen, training=None, seed=seed, scope=scope, depth=depth)
        return comparison.with_settings(settings).with_notes(*named, *said_of_files)
    asked = {one.pair for file in files.values() for one in perturbed_rows(file, TOGETHER)}
    apart, note = _trained(source.split, asked, seen)
    if not with_training_cells:
        scope = replace(scope, apart=apart)
    scope = replace(scope, unit=_unit(source.split, asked))
    training = source.training_cells()
    comparison = compare(
        files,
        seen,
        training=training,
        seed=seed,
        scope=scope,
        depth=depth,
        grammar=grammar,
        features=source.features,
    ).with_settings(settings | {"training cells": f"{training.n_cells} of {source.recipe.name}"})
    named += [note] if note and not with_training_cells else []
    comparison = comparison.with_notes(*named, *said_of_files)
    facts, leaks = audit(
        source.split,
        comparison.conditions(),
        seen,
        apart,
        judged=with_training_cells,
        grammar=grammar,
    )
    leaks += _other_splits(declared, source.split)
    run = None if source.run is None or source.checkpoint is None else history_of(source.run, source.checkpoint)
    return comparison.with_run(facts | {"leaks": [leak.text for leak in leaks]}, run, tuple(leaks))


def audit(
    split: Split, conditions: Sequence[Condition], observed: File, trained: Flags, *, judged: bool, grammar: Grammar
) -> tuple[dict[str, Any], list[Caution]]:
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
    return facts, [Caution(LEAK, text) for text in leaks]


def _grammar(source: Origin | None, declared: Mapping[str, Declared]) -> Grammar:
    """What labels are made of, as the source says, or the first predicted file that says it."""
    if source is not None:
        return grammar_of(source.recipe)
    said = (one.get("grammar") for one in declared.values())
    return next((Grammar.model_validate_json(str(one)) for one in said if one is not None), PLAIN)


def _named_alike(
    files: Mapping[str, File], observed: File, source: Origin | None, grammar: Grammar
) -> tuple[dict[str, File], File, list[str]]:
    """The files with one name for each perturbation, the training cells' before others; and sentences on changes."""
    known: list[str] = []
    if source is not None:
        known += map(str, source.split.source.runs.labels["perturbation"].cat.categories)
    notes, found = [], {}
    for name, file in {"observed": observed, **files}.items():
        labels = [str(label) for label in file.labels["perturbation"].cat.categories]
        names = same_as(labels, [*known, *labels], grammar, file.control)
        known += [names.get(label, label) for label in labels]
        found[name] = renamed(file, names)
        if names:
            one, other = next(iter(names.items()))
            notes.append(
                f"{len(names)} labels of {name!r} mean the same as others and are read as these, such as {one!r} as "
                f"{other!r}."
            )
    observed = found.pop("observed")
    return found, observed, notes


def _trained(split: Split, asked: Set[tuple[str, str]], observed: File) -> tuple[Flags, str]:
    """Which observed cells of the predicted (perturbation, cell type) trained [n], by their names; and a sentence."""
    runs = split.source.runs
    pairs = runs.labels[list(LABELS[:2])].astype(str).itertuples(index=False, name=None)
    chosen = np.array([pair in asked for pair in pairs]) & ~runs.is_control
    segments = split.of("train")
    segments = segments.take(chosen[segments.run])
    hashes = [split.source.hashes(start, stop) for start, stop in segments.ranges()]
    trained = np.isin(name_hashes(observed.names), np.concatenate(hashes)) if hashes else np.zeros(0, dtype=bool)
    if not trained.any():
        return np.zeros(len(observed.names), dtype=bool), ""
    rows = perturbed_rows(observed, TOGETHER)
    n_cells = sum(own.size for one, own in rows.items() if one.pair in asked)
    return trained, (
        f"{int(trained.sum())} of the {n_cells} observed cells of the predicted perturbations and cell types "
        "trained, by their names, and are left out; --with-training-cells judges them too."
    )


def _unit(split: Split, asked: Set[tuple[str, str]]) -> str:
    """What is independent: assay batches where these are held out of perturbations that trained, else perturbations."""
    trained = set(split.groups("train")["perturbation"].astype(str))
    batches = any(rule.assay_batch is not None for rule in split.hold_out if rule.part == "test")
    return "assay_batch" if batches and {label for label, _ in asked} <= trained else "perturbation"


def _open_pairs(declared: Declared) -> set[tuple[str, str]]:
    """The (perturbation, cell type) that a file was asked to predict without an assay batch."""
    asked = json.loads(str(declared.get("conditions", "[]")))
    return {(str(row["perturbation"]), str(row["cell_type"])) for row in asked if not row.get("assay_batch")}


def history_of(run: Path, checkpoint: "Checkpoint") -> dict[str, Any]:
    """What a run recorded, step by step, and the settings that its model was trained with."""
    from perturbdiff.checkpoint import LOGS  # brings torch, which files alone do not need

    return {
        "history": list(_steps(run / LOGS)),
        "kept": dict(checkpoint.history),
        "begun_from": checkpoint.begun_from,
        "settings": checkpoint.settings.model_dump(mode="json"),
        "recipe": checkpoint.recipe.name,
        "genes": len(checkpoint.genes),
    }


def _steps(logs: Path) -> Iterator[dict[str, float]]:
    """The recorded numbers of each step, those of a resumed run after those before."""
    steps: dict[int, dict[str, float]] = {}
    for path in sorted(logs.rglob("metrics.csv"), key=lambda path: (len(path.parts), path.name)):
        for row in pd.read_csv(path).to_dict("records"):
            own = steps.setdefault(int(row["step"]), {})
            own |= {
                str(key).replace(" ", "_"): float(value)
                for key, value in row.items()
                if key not in ("step", "epoch") and math.isfinite(value)
            }
    for step in sorted(steps):
        yield {"step": step, **steps[step]}


def _read_as(path: Path, declared: Declared, expression: Expression | None) -> str:
    """A file's name, and how its values are read."""
    scale = str(declared.get("scale", "")) if expression is None else expression.scale
    layer = None if expression is None else expression.layer
    return f"{path.name}, {scale}" + (f", layer {layer}" if layer else "")


def _conditions(groups: pd.DataFrame) -> set[Condition]:
    """The conditions of some groups, by themselves and over assay batches together."""
    rows = groups[list(LABELS)].astype(str).itertuples(index=False, name=None)
    apart = {Condition(*row) for row in rows}
    return apart | {Condition(*one.pair) for one in apart}


def _other_splits(declared: Mapping[str, Declared], split: Split) -> list[Caution]:
    """A warning for each predicted file that declares another split."""
    return [
        Caution(
            LEAK,
            f"{name!r} was predicted by a model of another split than that of the training cells given here, "
            "so nothing is known of what it was trained on; give the run that made it.",
        )
        for name, said in declared.items()
        if str(said.get("split_hash", split.hash)) != split.hash
    ]
