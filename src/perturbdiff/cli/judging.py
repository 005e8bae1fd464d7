"""The command that judges predictions: evaluate."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perturbdiff.cli.options import (
    GeneNames,
    Json,
    Layer,
    Overwrite,
    Quiet,
    Seed,
    TargetSum,
    by_options,
    given,
    names,
)
from perturbdiff.cli.screen import Screen

if TYPE_CHECKING:
    from perturbdiff.metrics.conditions import Condition
    from perturbdiff.training_data import TrainingData


def evaluate(
    files: Annotated[list[Path], typer.Argument(help="One or more predicted .h5ad files, then the observed one.")],
    out: Annotated[Path, typer.Option(help="Folder for tables and figure.")],
    *,
    run: Annotated[Path | None, typer.Option(help="A trained model: brings the training cells of baselines.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="A recipe, to the same end.")] = None,
    perturbation: Annotated[str | None, typer.Option(help="Column, in files that do not declare it.")] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(help="Label, in files that do not declare it; several: the first names them all."),
    ] = None,
    cell_type: Annotated[str | None, typer.Option(help="Column, in files that do not declare it.")] = None,
    assay_batch: Annotated[str | None, typer.Option(help="Column, in files that do not declare it.")] = None,
    total_counts: Annotated[str | None, typer.Option(help="Column of total counts, for a partial panel.")] = None,
    scale: Annotated[str | None, typer.Option(help="counts or log1p, of the observed file.")] = None,
    layer: Layer = None,
    gene_names: GeneNames = None,
    target_sum: TargetSum = None,
    predicted_scale: Annotated[str | None, typer.Option(help="Of predicted files that do not declare it.")] = None,
    pool_batches: Annotated[
        bool, typer.Option("--pool-batches", help="Judge conditions over all assay batches together.")
    ] = False,
    with_training_cells: Annotated[
        bool, typer.Option("--with-training-cells", help="Judge by observed cells that trained, too.")
    ] = False,
    predicted_controls: Annotated[
        bool, typer.Option("--predicted-controls", help="Control cells of the predicted file, not the observed one.")
    ] = False,
    predicted_layer: Annotated[str | None, typer.Option(help="Layer of predicted files; X when absent.")] = None,
    clip: Annotated[bool, typer.Option("--clip", help="Judge values below 0 of predicted files as 0.")] = False,
    population: Annotated[
        str | None,
        typer.Option(help="Column that tells several populations of a condition apart, where files don't declare it."),
    ] = None,
    suites: Annotated[
        str | None,
        typer.Option(
            help="Of metrics, with commas: ours, paper, vcc2026, families; when absent ours, paper and, where a file "
            "holds several populations of a condition, families."
        ),
    ] = None,
    baselines: Annotated[str, typer.Option(help="all, none, or names with commas between them.")] = "all",
    jobs: Annotated[int, typer.Option(help="Conditions judged side by side; the numbers stay the same.", min=1)] = 1,
    bootstrap: Annotated[int, typer.Option(help="Draws of perturbations for the intervals.", min=1)] = 1000,
    umap: Annotated[
        bool, typer.Option("--umap", help="Place cells by UMAP too, for the report; takes half a minute more.")
    ] = False,
    cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps tests of the observed cells; in --out when absent.")
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Judge predicted files against observed cells, beside baselines and a ceiling."""
    from perturbdiff.evaluation.audit import LEAK
    from perturbdiff.evaluation.from_files import evaluate_files
    from perturbdiff.evaluation.scope import Depth
    from perturbdiff.figures.dot_plot import figure, save_figure
    from perturbdiff.io import check_writable
    from perturbdiff.recipes.dataset import Columns, Expression
    from perturbdiff.recipes.tables import validated

    screen = Screen(quiet=quiet)
    if len(files) < 2:
        raise ValueError(f"one file is given ({str(files[0])!r}); give one or more predicted files, then the observed.")
    check_writable(out / "metrics.json", overwrite=overwrite)
    *predicted, observed = files
    by_name = names(predicted)
    labels = {"perturbation": perturbation, "cell_type": cell_type, "assay_batch": assay_batch}
    source = _training_data(run, recipe)
    named = _named(given(labels | {"total_counts": total_counts}), source)
    read = _read_as(given({"layer": layer, "gene_names": gene_names, "scale": scale, "target_sum": target_sum}), source)
    if predicted_layer is not None and predicted_scale is None:
        raise ValueError(f"--predicted-layer {predicted_layer!r} is given without its scale; add --predicted-scale.")
    of_predicted = given({"layer": predicted_layer, "scale": predicted_scale})
    chosen, forced, said = suites_of(suites)

    def track(conditions: "Sequence[Condition]") -> "Iterator[Condition]":
        screen.say(said)  # not before all input is known to be good
        yield from screen.track(conditions, "judging")

    depth = Depth(
        suites=chosen,
        forced=forced,
        baselines=baselines_of(baselines),
        replicates=True,
        projection=True,
        umap=umap,
        resamples=bootstrap,
        jobs=jobs,
        track=track,
    )
    with by_options("evaluate"):
        found = evaluate_files(
            by_name,
            observed,
            source=source,
            columns=validated(Columns, named, "the options") if named else None,
            expression=validated(Expression, read, "--scale") if read else None,
            predicted_expression=validated(Expression, of_predicted, "--predicted-scale") if of_predicted else None,
            control=control,
            seed=seed,
            depth=depth,
            pool_batches=pool_batches,
            with_training_cells=with_training_cells,
            predicted_controls=predicted_controls,
            cache=out / "cache" if cache is None else cache,
            clip=clip,
            population=population,
        )
    found.save(out)
    save_figure(figure(found.drawn()), out / "figure.png")
    # what leads fits a terminal; a record a method with every metric fits a program
    screen.table(found.summary().reset_index() if as_json else found.headlines(), as_json=as_json)
    for one in found.warnings:
        if one.kind == LEAK:  # said however quiet
            screen.err.print(f"LEAK: {one.text}", markup=False)
        else:
            screen.say(f"warning: {one.text}")
    for note in found.notes:
        screen.say(note)
    screen.say(f"{str(out)!r} holds the tables, metrics.json and figure.png; `perturbdiff report` makes a page of it.")


def _training_data(run: Path | None, recipe: Path | None) -> "TrainingData | None":
    """What brings the training cells, if anything does."""
    from perturbdiff.training_data import TrainingData

    if run is not None and recipe is not None:
        raise ValueError("--run and --recipe both bring the training cells; give one of them.")
    if recipe is not None:
        return TrainingData.of_recipe(recipe)
    return None if run is None else TrainingData.of_run(run)


def _named(columns: dict[str, Any], source: "TrainingData | None") -> dict[str, Any]:
    """The columns that the options name: all, or total counts beside those of a run's or recipe's data."""
    if source is not None and set(columns) == {"total_counts"}:
        return source.recipe.columns.model_dump(exclude_none=True) | columns
    if columns and "perturbation" not in columns:
        raise ValueError(f"{', '.join(columns)} were given without --perturbation; name all columns, or none.")
    return columns


def _read_as(read: dict[str, Any], source: "TrainingData | None") -> dict[str, Any]:
    """How the observed file is read: as the options say, and in what they do not as a run's or recipe's data are."""
    if source is not None and read and "scale" not in read:
        read = source.recipe.expression.model_dump(exclude_none=True) | read
    if read and "scale" not in read:
        option, value = next(iter(read.items()))
        raise ValueError(f"--{option.replace('_', '-')} {value!r} is given without a scale; add --scale.")
    return read


def baselines_of(text: str) -> tuple[str, ...]:
    """The baselines of --baselines, by name."""
    from perturbdiff.evaluation.methods import BASELINES

    if text in ("all", "none"):
        return tuple(BASELINES) if text == "all" else ()
    return tuple(name.strip() for name in text.split(","))


def suites_of(text: str | None) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """The suites to compute (ours is always one), those that were asked for by name, and a sentence that says so."""
    from perturbdiff.metrics.suites import PAPER, check_suites, is_installed
    from perturbdiff.metrics.tables import FAMILIES, OURS, SUITES

    asked = tuple(name.strip() for name in text.split(",")) if text is not None else ()
    check_suites(asked)
    if text is None:
        asked = (PAPER,) if is_installed(PAPER) else ()
    suites = tuple(name for name in SUITES if name == OURS or name in asked)
    # families join by themselves where there are any
    left = [name for name in SUITES if name not in (*suites, FAMILIES)]
    more = f"; not {' and '.join(left)}, which --suites would add" if left else ""
    return suites, asked if text is not None else (), f"suites of metrics: {', '.join(suites)}{more}."
