"""The command line: parse, call, print. Bad input is one sentence on standard error and exit status 2."""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from rich.console import Console

from perturbdiff.options import (
    RULE,
    Device,
    Json,
    OptionalSeed,
    Overwrite,
    Quiet,
    Run,
    Seed,
    given,
    names,
    refuse,
    rule,
)
from perturbdiff.screen import Screen, sentence

INTERRUPTED = 130
"""The exit status of a training that a signal ended early: as of a program ended by Ctrl-C."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Predict how a population of single cells responds to a perturbation.",
)


def main() -> None:
    """Run the command line; the entry point of `perturbdiff`."""
    try:
        app()
    except (ValueError, OSError) as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {sentence(error)}", markup=False)
        sys.exit(2)


def _print_version(value: bool) -> None:  # noqa: FBT001 - typer's callback
    if value:
        typer.echo(f"perturbdiff {version('perturbdiff')}")
        raise typer.Exit


@app.callback()
def root(
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of the program itself."""


@app.command()
def split(
    recipe: Annotated[Path, typer.Argument(help="A recipe (.toml).")],
    *,
    seed: OptionalSeed = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Print what a recipe holds out, and every leak found; exit status 1 on a leak."""
    from perturbdiff.data.split import find_leaks
    from perturbdiff.model import PerturbDiff

    screen = Screen(quiet=quiet)
    model = PerturbDiff.from_recipe(recipe)
    found = model.split(seed=seed)
    leaks = find_leaks(model.cells, found)
    if as_json:
        held_out = {part: found.groups(part).to_dict(orient="records") for part in ("validation", "test")}
        parts = found.table().reset_index().to_dict(orient="records")
        facts = {"hash": found.hash, "parts": parts, "held_out": held_out, "notes": found.notes, "leaks": leaks}
        screen.out.print_json(json.dumps(facts))
    else:
        screen.table(found.table().reset_index(), as_json=False)
        for part in ("validation", "test"):
            groups = found.groups(part)
            if len(groups):
                screen.out.print(f"held out for {part}:")
                screen.table(groups, as_json=False)
        screen.out.print(f"hash {found.hash}")
        for note in found.notes:
            screen.say(note)
        for leak in leaks:
            screen.out.print(f"leak: {leak}", markup=False)
        screen.say("no leak found." if not leaks else f"{len(leaks)} leaks found.")
    if leaks:
        raise typer.Exit(1)


@app.command()
def train(
    data: Annotated[Path, typer.Argument(help="A recipe (.toml), or an .h5ad with the options below.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; the same command resumes it.")],
    *,
    perturbation: Annotated[str | None, typer.Option(help="Column of perturbations (.h5ad).")] = None,
    control: Annotated[str | None, typer.Option(help="Label of control cells (.h5ad).")] = None,
    cell_type: Annotated[str | None, typer.Option(help="Column of cell types (.h5ad).")] = None,
    assay_batch: Annotated[str | None, typer.Option(help="Column of donors, plates, lanes (.h5ad).")] = None,
    total_counts: Annotated[str | None, typer.Option(help="Column of total counts, for a partial panel.")] = None,
    layer: Annotated[str | None, typer.Option(help="Layer of the expression (.h5ad); X when absent.")] = None,
    scale: Annotated[str | None, typer.Option(help="counts or log1p (.h5ad); never guessed.")] = None,
    n_genes: Annotated[int | None, typer.Option(help="Size of the gene panel (.h5ad); all genes when absent.")] = None,
    hold_out: Annotated[list[str] | None, typer.Option(help=f"A rule, such as {RULE} (.h5ad).")] = None,
    preset: Annotated[str | None, typer.Option(help="tiny, small, medium or paper.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    seed: OptionalSeed = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train a model; the same command resumes it, and Ctrl-C leaves a usable model."""
    from perturbdiff.data.export import check_writable
    from perturbdiff.data.recipe import read_recipe, recipe_from_mapping, write_recipe
    from perturbdiff.model import PerturbDiff

    screen = Screen(quiet=quiet)
    columns = {
        "perturbation": perturbation,
        "cell_type": cell_type,
        "assay_batch": assay_batch,
        "total_counts": total_counts,
    }
    described: dict[str, Any] = {"control": control, "n_genes": n_genes, "columns": columns}
    described |= {"expression": {"layer": layer, "scale": scale}, "hold_out": [rule(text) for text in hold_out or []]}
    if data.suffix == ".h5ad":
        mapping = {"name": data.stem, "files": [str(data.resolve())], **described}
        recipe = recipe_from_mapping(given(mapping), "the options")
    else:
        refuse(given(described), data)
        recipe = read_recipe(data)
    changed = {
        "model": recipe.model | given({"preset": preset}),
        "training": recipe.training | given({"max_steps": max_steps, "seed": seed}),
    }
    recipe = recipe.model_copy(update=changed)
    check_writable(out / "model.json", overwrite=True)
    model = PerturbDiff.from_recipe(recipe, folder=data.resolve().parent)
    model.train(run=out, overwrite=overwrite, device=device, show_progress=not quiet, say=screen.say)
    paths = [str(data.resolve().parent / pattern) for pattern in recipe.files]
    write_recipe(model.recipe.model_copy(update={"files": tuple(paths)}), out / "recipe.toml")
    history = model.trained.history
    energy = history["validation_energy"]
    interrupted = model.outcome is not None and model.outcome.interrupted
    outcome = "interrupted: the same command resumes" if interrupted else "done"
    measured = "no validation" if energy is None else f"validation energy {energy:.3f}"
    screen.say(f"{outcome}; {str(out)!r} holds the weights of step {history['step']} ({measured}).")
    if interrupted:
        raise typer.Exit(INTERRUPTED)


@app.command()
def inspect(run: Run, *, as_json: Json = False) -> None:
    """Print what a model can predict, and how it was trained."""
    from perturbdiff.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(run)
    if as_json:
        labels = {name: list(known.labels) for name, known in checkpoint.vocabularies.items()}
        facts = {
            "labels": labels,
            "genes": list(checkpoint.genes),
            "scale": checkpoint.scale,
            "settings": checkpoint.settings.model_dump(),
            "split": checkpoint.split,
            "history": checkpoint.history,
        }
        Console().print_json(json.dumps(facts))
        return
    screen = Screen(quiet=False)
    rows = [(name, len(known), ", ".join(known.labels)) for name, known in checkpoint.vocabularies.items()]
    screen.table(pd.DataFrame(rows, columns=["covariate", "labels", "known"]), as_json=False)
    genes, scale = checkpoint.genes, checkpoint.scale
    screen.out.print(f"{len(genes)} genes ({', '.join(genes[:5])}, ...), scale {scale:.3f} log1p counts per 10^4")
    screen.out.print(f"trained on {checkpoint.recipe.name!r}; kept weights: {checkpoint.history}", markup=False)
    screen.out.print(f"split {checkpoint.split['hash']}")


@app.command()
def predict(
    run: Run,
    controls: Annotated[Path, typer.Argument(help="An .h5ad with control cells; other cells in it are not used.")],
    conditions: Annotated[Path | None, typer.Argument(help="A CSV: perturbation, cell_type, assay_batch.")] = None,
    *,
    out: Annotated[Path, typer.Option(help="The .h5ad to write.")],
    perturbation: Annotated[str | None, typer.Option(help="Label of one condition.")] = None,
    cell_type: Annotated[str | None, typer.Option(help="Label of one condition.")] = None,
    assay_batch: Annotated[str | None, typer.Option(help="Label of one condition.")] = None,
    part: Annotated[str | None, typer.Option(help="Predict all conditions of this part of the split: test.")] = None,
    perturbation_column: Annotated[str | None, typer.Option(help="In place of the model's.")] = None,
    cell_type_column: Annotated[str | None, typer.Option(help="In place of the model's.")] = None,
    assay_batch_column: Annotated[str | None, typer.Option(help="In place of the model's.")] = None,
    scale: Annotated[str | None, typer.Option(help="counts or log1p, in place of the model's.")] = None,
    populations: Annotated[int, typer.Option(help="How often each condition is drawn.", min=1)] = 1,
    steps: Annotated[int | None, typer.Option(help="Network evaluations for each population.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Strength of the guidance.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Predict one cell for each control cell of each condition."""
    from perturbdiff.data.export import check_writable, write_h5ad
    from perturbdiff.data.reading import read_h5ad
    from perturbdiff.model import PerturbDiff
    from perturbdiff.prediction.conditions import conditions_of, held_out_conditions, read_conditions
    from perturbdiff.prediction.inputs import control_cells, with_sampling

    screen = Screen(quiet=quiet)
    check_writable(out, overwrite=overwrite)
    if sum(source is not None for source in (conditions, perturbation, part)) != 1:
        raise ValueError("conditions come from a CSV file, from --perturbation or from --part; give one of them.")
    model = PerturbDiff.load(run)
    checkpoint, sampling = model.trained, {"steps": steps, "guidance": guidance}
    with_sampling(checkpoint.settings, sampling)
    if conditions is not None:
        table = read_conditions(conditions, checkpoint.vocabularies)
    elif part is not None:
        table = held_out_conditions(checkpoint, part)
    else:
        row = {"perturbation": perturbation, "cell_type": cell_type, "assay_batch": assay_batch}
        table = conditions_of([row], checkpoint.vocabularies)
    columns = {"perturbation": perturbation_column, "cell_type": cell_type_column, "assay_batch": assay_batch_column}
    cells = control_cells(read_h5ad(controls), checkpoint.recipe, columns=columns, scale=scale)
    adata = model.predict_cells(
        cells,
        table,
        populations=populations,
        seed=seed,
        device=device,
        sampling=sampling,
        say=screen.say,
        track=screen.track,
    )
    write_h5ad(adata, out)
    n_predicted = int((adata.obs["population"] >= 0).sum())
    of = "1 condition" if len(table) == 1 else f"{len(table)} conditions"
    screen.say(f"{str(out)!r} holds {n_predicted} predicted cells of {of}, and their control cells.")


@app.command()
def evaluate(
    files: Annotated[list[Path], typer.Argument(help="One or more predicted .h5ad files, then the observed one.")],
    out: Annotated[Path, typer.Option(help="Folder for tables and figure.")],
    *,
    run: Annotated[Path | None, typer.Option(help="A trained model: brings the training cells of baselines.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="A recipe, to the same end.")] = None,
    perturbation: Annotated[str | None, typer.Option(help="Column, in files that do not declare it.")] = None,
    control: Annotated[str | None, typer.Option(help="Label, in files that do not declare it.")] = None,
    cell_type: Annotated[str | None, typer.Option(help="Column, in files that do not declare it.")] = None,
    assay_batch: Annotated[str | None, typer.Option(help="Column, in files that do not declare it.")] = None,
    total_counts: Annotated[str | None, typer.Option(help="Column of total counts, for a partial panel.")] = None,
    scale: Annotated[str | None, typer.Option(help="counts or log1p, of the observed file.")] = None,
    predicted_scale: Annotated[str | None, typer.Option(help="Of predicted files that do not declare it.")] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Judge predicted files against observed cells, beside baselines and a ceiling."""
    from perturbdiff.data.export import check_writable
    from perturbdiff.data.recipe import Columns, Expression, validated
    from perturbdiff.judgement import Source, compare_files
    from perturbdiff.report.figure import figure, save_figure

    screen = Screen(quiet=quiet)
    if len(files) < 2:
        raise ValueError(f"one file is given ({str(files[0])!r}); give one or more predicted files, then the observed.")
    if run is not None and recipe is not None:
        raise ValueError("--run and --recipe both bring the training cells; give one of them.")
    check_writable(out / "metrics.json", overwrite=overwrite)
    *predicted, observed = files
    by_name = names(predicted)
    source = Source.of_run(run) if run is not None else Source.of_recipe(recipe) if recipe is not None else None
    columns = {
        "perturbation": perturbation,
        "cell_type": cell_type,
        "assay_batch": assay_batch,
        "total_counts": total_counts,
    }
    named = given(columns)
    if named and perturbation is None:
        raise ValueError(f"{', '.join(named)} were given without --perturbation; name all columns, or none.")
    comparison = compare_files(
        by_name,
        observed,
        source=source,
        columns=validated(Columns, named, "the options") if named else None,
        expression=None if scale is None else validated(Expression, {"scale": scale}, "--scale"),
        predicted_expression=(
            None if predicted_scale is None else validated(Expression, {"scale": predicted_scale}, "--predicted-scale")
        ),
        control=control,
        seed=seed,
    )
    comparison.save(out)
    save_figure(figure(comparison.table), out / "figure.png")
    summary = comparison.summary()
    # a row a metric fits a terminal; a record a method fits a program
    screen.table((summary if as_json else summary.T).reset_index(), as_json=as_json)
    for note in comparison.notes:
        screen.say(note)
    screen.say(f"{str(out)!r} holds metrics.csv, overall.csv, metrics.json and figure.png.")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path("demo"),
    *,
    seed: Seed = 0,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Simulate, train, predict held-out conditions, evaluate: with no data and no network."""
    from perturbdiff.demo import SETTINGS, run_demo

    screen = Screen(quiet=quiet)
    n_judged = 0
    for setting, comparison in run_demo(out, seed=seed, device=device, say=screen.say, show_progress=not quiet):
        n_judged += 1
        screen.out.print(f"{setting}:", markup=False)
        screen.table(comparison.summary().T.reset_index(), as_json=False)
        for note in comparison.notes:
            screen.say(note)
    if n_judged < len(SETTINGS):
        raise typer.Exit(INTERRUPTED)
    screen.say(f"{str(out)!r} holds the data, the models, the predictions, the tables and the figures.")
