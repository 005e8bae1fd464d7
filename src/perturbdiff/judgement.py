"""From files on disk to a comparison: predicted and observed .h5ad files, and a run or recipe for training cells.

A run also says what was held out. So the judged conditions are audited against its split: a leak is a warning that
comes before all others.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from perturbdiff.checkpoint import Checkpoint
from perturbdiff.comparison import Comparison, Depth, compare
from perturbdiff.data.audit import find_leaks
from perturbdiff.data.cells import Cells
from perturbdiff.data.composition import grammar_of
from perturbdiff.data.recipe import Columns, Expression
from perturbdiff.data.split import HELD_OUT, Split
from perturbdiff.evaluation.cache import Cache, content_hash
from perturbdiff.evaluation.cautions import Caution
from perturbdiff.evaluation.files import DECLARATION, IN_MEMORY, declared_by, notes_of, open_file
from perturbdiff.evaluation.pairs import Condition, File, has_controls
from perturbdiff.evaluation.suites import versions
from perturbdiff.origin import Origin

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
    control: str | None = None,
    seed: int = 0,
    depth: Depth | None = None,
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
        control: control label of files that do not declare it; that of the source when absent.
        seed: of the comparison's draws.
        depth: how much is computed; our own metrics beside control and mean shift where None.
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
        control = control or source.recipe.control
    # totals are of counts, and predictions are log1p unless the caller says otherwise
    counted = predicted_expression is not None and predicted_expression.scale == "counts"
    labels = columns if columns is None or counted else columns.model_copy(update={"total_counts": None})
    files = {
        name: open_file(
            path,
            columns=labels,
            expression=predicted_expression,
            control=control,
            in_memory=in_memory,
            observed=False,
            clip=clip,
        )
        for name, path in predicted.items()
    }
    counts = source is not None and expression is not None and expression.scale == "counts"
    summed = source.total_genes if counts and source is not None else None
    seen = open_file(
        observed, columns=columns, expression=expression, control=control, in_memory=in_memory, summed=summed
    )
    said_of_files = tuple(note for file in (*files.values(), seen) for note in notes_of(file))
    depth = depth or Depth()
    if cache is not None:
        parts = [observed, *([] if has_controls(seen) else predicted.values())]
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
        "observed file": _read_as(observed, expression),
        **{f"predicted file {name!r}": _read_as(path, predicted_expression) for name, path in predicted.items()},
    }
    if source is None:
        comparison = compare(files, seen, training=None, seed=seed, depth=depth)
        comparison = replace(comparison, notes=(*comparison.notes, *said_of_files))
        return comparison.with_settings(settings)
    training = source.training_cells()
    comparison = compare(
        files,
        seen,
        training=training,
        seed=seed,
        depth=depth,
        grammar=grammar_of(source.recipe),
        features=source.features,
    ).with_settings(settings | {"training cells": f"{training.n_cells} of {source.recipe.name}"})
    comparison = replace(comparison, notes=(*comparison.notes, *said_of_files))
    conditions = [Condition(*key) for key in comparison.conditions()]
    facts, leaks = audit(source.split, conditions, seen, training)
    leaks += _other_splits(predicted, source.split)
    run = None if source.run is None or source.checkpoint is None else history_of(source.run, source.checkpoint)
    return comparison.with_run(facts | {"leaks": [leak.text for leak in leaks]}, run, tuple(leaks))


def audit(
    split: Split, conditions: Sequence[Condition], observed: File, training: Cells
) -> tuple[dict[str, Any], list[Caution]]:
    """What of the judged conditions a split held out, and every way that is looked for in which they were trained on.

    Args:
        split: of the training data.
        conditions: the judged ones.
        observed: the observed file.
        training: the training cells.

    Returns:
        Facts for the record, and a warning for each leak.
    """
    parts = {part: _conditions(split.groups(part)) for part in ("train", *HELD_OUT)}
    held_out = set.union(*(parts[part] for part in HELD_OUT))
    trained = [one for one in conditions if one in parts["train"] and one not in held_out]
    validated = [one for one in conditions if one in parts["validation"] and one not in parts["test"]]
    unknown = [one for one in conditions if one not in held_out and one not in parts["train"]]
    leaks = []
    if trained:
        leaks.append(
            f"{len(trained)} of the {len(conditions)} judged conditions were in training, such as {str(trained[0])!r}: "
            "their scores say nothing of unseen conditions."
        )
    labels = pd.MultiIndex.from_frame(observed.labels[["perturbation", "cell_type"]].astype(str))
    judged = labels.isin([tuple(one) for one in conditions])
    shared = int(observed.names[judged].isin(training.names[~training.is_control]).sum())
    if shared and not trained:
        leaks.append(f"{shared} of the {int(judged.sum())} judged observed cells were trained on, by their names.")
    if validated:
        leaks.append(
            f"{len(validated)} of the {len(conditions)} judged conditions are of the validation part, such as "
            f"{str(validated[0])!r}: the kept weights were chosen by them."
        )
    leaks += find_leaks(split)
    facts = {
        "split": split.hash,
        "judged": len(conditions),
        "held_out": sum(one in held_out for one in conditions),
        "in_training": [one._asdict() for one in trained],
        "in_validation": [one._asdict() for one in validated],
        "in_neither": [one._asdict() for one in unknown],
        "trained_cells_judged": shared,
    }
    return facts, [Caution(LEAK, text) for text in leaks]


def history_of(run: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """What a run recorded, step by step, and the settings that its model was trained with."""
    from perturbdiff.training.resuming import LOGS  # brings all that trains, which files alone do not need

    return {
        "history": list(_steps(run / LOGS)),
        "kept": dict(checkpoint.history),
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


def _read_as(path: Path, expression: Expression | None) -> str:
    """A file's name, and how its values are read."""
    scale = str(declared_by(path).get("scale", "")) if expression is None else expression.scale
    layer = None if expression is None else expression.layer
    return f"{path.name}, {scale}" + (f", layer {layer}" if layer else "")


def _conditions(groups: pd.DataFrame) -> set[Condition]:
    pairs = groups[["perturbation", "cell_type"]].astype(str).drop_duplicates()
    return {Condition(*row) for row in pairs.itertuples(index=False)}


def _other_splits(predicted: Mapping[str, Path], split: Split) -> list[Caution]:
    """A warning for each predicted file that declares another split."""
    found = []
    for name, path in predicted.items():
        declared = str(declared_by(path, DECLARATION).get("split_hash", split.hash))
        if declared != split.hash:
            found.append(
                Caution(
                    LEAK,
                    f"{name!r} was predicted by a model of another split than that of the training cells given here, "
                    "so nothing is known of what it was trained on; give the run that made it.",
                )
            )
    return found
