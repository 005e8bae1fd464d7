"""From files on disk to an evaluation: predicted and observed .h5ad files, and a run or recipe for training cells.

A run also says what was held out. Observed cells that trained, known by their names, are never among the judged ones
unless they are asked for; and the judged conditions are audited against the split (see `audit`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from perturbdiff.evaluation.audit import audit, independent_unit, other_splits, trained_cells
from perturbdiff.evaluation.cache import Cache, content_hash
from perturbdiff.evaluation.evaluate import evaluate
from perturbdiff.evaluation.families import families_of
from perturbdiff.evaluation.files import IN_MEMORY, declared_by, notes_of, open_file, renamed
from perturbdiff.evaluation.pairs import File, perturbed_rows
from perturbdiff.evaluation.scope import Depth, Scope
from perturbdiff.labels.members import grammar_of, same_as
from perturbdiff.metrics.conditions import TOGETHER, Pooling
from perturbdiff.metrics.suites import versions
from perturbdiff.metrics.tables import FAMILIES
from perturbdiff.metrics.warnings import in_order, step_zero
from perturbdiff.predicted import declared_columns
from perturbdiff.recipes.dataset import PLAIN, Columns, Expression, Grammar
from perturbdiff.results.evaluation import Evaluation
from perturbdiff.training_data import TrainingData

type Declared = Mapping[str, Any]
"""What a file says of itself."""


def evaluate_files(
    predicted: Mapping[str, Path],
    observed: Path,
    *,
    source: TrainingData | None = None,
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
    population: str | None = None,
) -> Evaluation:
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
        seed: of the evaluation's draws.
        depth: how much is computed; our own metrics beside control and mean shift where None.
        pool_batches: whether conditions are judged over all assay batches together, where predictions name these.
        with_training_cells: whether observed cells that trained are judged too.
        predicted_controls: whether control cells come from a predicted file in place of the observed one.
        cache: a folder that keeps the tests of the observed cells; None keeps nothing.
        in_memory: files of more bytes are read a condition at a time.
        clip: whether values below 0 of predicted files count as 0, which a note says.
        population: column that tells apart several populations of a condition, of predicted files that do not declare
            it; where a file holds several, they are judged as families too, unless suites were asked for by name.

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
    opened = partial(open_file, control=first or None, controls=further, grammar=grammar, in_memory=in_memory)
    files = {
        name: opened(
            path,
            columns=_columns_of(columns, declared[name], predicted_expression),
            expression=predicted_expression,
            observed=False,
            clip=clip,
            draw=population,
        )
        for name, path in predicted.items()
    }
    counts = source is not None and expression is not None and expression.scale == "counts"
    summed = source.total_genes if counts and source is not None else None
    seen = opened(observed, columns=columns, expression=expression, summed=summed)
    said_of_files = dict.fromkeys(note for file in (*files.values(), seen) for note in notes_of(file))
    files, seen, named = _named_alike(files, seen, source, grammar)
    depth = depth or Depth()
    if not depth.forced and families_of(files):
        depth = replace(depth, suites=tuple(dict.fromkeys([*depth.suites, FAMILIES])))
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
        found = evaluate(files, seen, training=None, seed=seed, scope=scope, depth=depth)
        return replace(found, settings={**found.settings, **settings}, notes=(*named, *said_of_files, *found.notes))
    asked = {one.pair for file in files.values() for one in perturbed_rows(file, TOGETHER)}
    trained, note = trained_cells(source.split, asked, seen)
    if not with_training_cells:
        scope = replace(scope, apart=trained)
        named += [note] if note else []
    scope = replace(scope, unit=independent_unit(source.split, asked))
    training = source.training_cells()
    found = evaluate(
        files,
        seen,
        training=training,
        seed=seed,
        scope=scope,
        depth=depth,
        grammar=grammar,
        features=source.features,
    )
    settings["training cells"] = f"{training.n_cells} of {source.recipe.name}"
    facts, leaks = audit(source.split, found.conditions, seen, trained, judged=with_training_cells, grammar=grammar)
    leaks += other_splits(declared, source.split)
    run = source.history
    return replace(
        found,
        settings={**found.settings, **settings},
        notes=(*named, *said_of_files, *found.notes),
        audit=facts | {"leaks": [leak.text for leak in leaks]},
        run=run,
        warnings=in_order((*leaks, *found.warnings, *step_zero(run))),
    )


def _columns_of(columns: Columns | None, declared: Declared, expression: Expression | None) -> Columns | None:
    """The columns of a predicted file: those given, but total counts are its own, and log1p values need none."""
    if columns is None:
        return None
    counted = (declared.get("scale") if expression is None else expression.scale) == "counts"
    own = declared_columns(declared).total_counts if "columns" in declared else None
    return columns.model_copy(update={"total_counts": (own or columns.total_counts) if counted else None})


def _grammar(source: TrainingData | None, declared: Mapping[str, Declared]) -> Grammar:
    """What labels are made of, as the source says, or the first predicted file that says it."""
    if source is not None:
        return grammar_of(source.recipe)
    said = (one.get("grammar") for one in declared.values())
    return next((Grammar.model_validate_json(str(one)) for one in said if one is not None), PLAIN)


def _named_alike(
    files: Mapping[str, File], observed: File, source: TrainingData | None, grammar: Grammar
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


def _open_pairs(declared: Declared) -> set[tuple[str, str]]:
    """The (perturbation, cell type) that a file was asked to predict without an assay batch."""
    asked = json.loads(str(declared.get("conditions", "[]")))
    return {(str(row["perturbation"]), str(row["cell_type"])) for row in asked if not row.get("assay_batch")}


def _read_as(path: Path, declared: Declared, expression: Expression | None) -> str:
    """A file's name, and how its values are read."""
    scale = str(declared.get("scale", "")) if expression is None else expression.scale
    layer = None if expression is None else expression.layer
    return f"{path.name}, {scale}" + (f", layer {layer}" if layer else "")
