"""Commands on models: train, inspect."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from perturbdiff.cli.options import (
    INTERRUPTED,
    RULE,
    Device,
    Json,
    MaxSteps,
    OptionalSeed,
    Overwrite,
    Quiet,
    Run,
    TargetSum,
    by_options,
    given,
    recipe_of,
    rule,
)
from perturbdiff.cli.screen import Screen

if TYPE_CHECKING:
    from perturbdiff.model import PerturbDiff
    from perturbdiff.recipes.dataset import Recipe


def train(
    data: Annotated[Path, typer.Argument(help="A recipe (.toml), a store, or an .h5ad with the options below.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; the same command resumes it.")],
    *,
    perturbation: Annotated[str | None, typer.Option(help="Column of perturbations (.h5ad).")] = None,
    control: Annotated[
        list[str] | None, typer.Option(help="Label of control cells; several: the first names them all (.h5ad).")
    ] = None,
    cell_type: Annotated[str | None, typer.Option(help="Column of cell types (.h5ad).")] = None,
    assay_batch: Annotated[str | None, typer.Option(help="Column of donors, plates, lanes (.h5ad).")] = None,
    dose: Annotated[str | None, typer.Option(help="Column of doses (.h5ad).")] = None,
    dose_unit: Annotated[str | None, typer.Option(help="Unit of all doses, such as uM, or its column (.h5ad).")] = None,
    modality: Annotated[str | None, typer.Option(help="Column of modalities: knock-out, drug, ... (.h5ad).")] = None,
    separator: Annotated[str | None, typer.Option(help="Between members of a combination: + in A+B (.h5ad).")] = None,
    modality_separator: Annotated[str | None, typer.Option(help="Before a modality: | in A|CRISPRa (.h5ad).")] = None,
    features: Annotated[Path | None, typer.Option(help="Features of perturbations, a table (.h5ad).")] = None,
    total_counts: Annotated[str | None, typer.Option(help="Column of total counts, for a partial panel.")] = None,
    layer: Annotated[str | None, typer.Option(help="Layer of the expression (.h5ad); X when absent.")] = None,
    scale: Annotated[str | None, typer.Option(help="counts or log1p (.h5ad); never guessed.")] = None,
    gene_names: Annotated[str | None, typer.Option(help="Column of var that names the genes (.h5ad).")] = None,
    target_sum: TargetSum = None,
    n_genes: Annotated[int | None, typer.Option(help="Size of the gene panel (.h5ad); all genes when absent.")] = None,
    hold_out: Annotated[list[str] | None, typer.Option(help=f"A rule, such as {RULE} (.h5ad).")] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help='Cells to leave out, such as {perturbation = [""]} (.h5ad).')
    ] = None,
    preset: Annotated[str | None, typer.Option(help="tiny, small, medium or paper.")] = None,
    max_steps: MaxSteps = None,
    seed: OptionalSeed = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train a model; the same command resumes it, and Ctrl-C leaves a usable model.

    Under torchrun or srun all processes train one model together: torchrun --nproc-per-node 4 -m perturbdiff train ...
    """
    from perturbdiff.recipes.files import CELLS
    from perturbdiff.training.processes import processes

    screen = Screen(quiet=quiet or processes().rank > 0)
    columns = {
        "perturbation": perturbation,
        "cell_type": cell_type,
        "assay_batch": assay_batch,
        "dose": dose,
        "dose_unit": dose_unit,
        "modality": modality,
        "total_counts": total_counts,
    }
    described: dict[str, Any] = {
        "control": control[0] if control and len(control) == 1 else control,
        "n_genes": n_genes,
        "columns": columns,
    }
    described["perturbation"] = {"separator": separator, "modality_separator": modality_separator}
    if features is not None:
        described["encoders"] = {"perturbation": {"kind": "table", "file": str(features.resolve())}}
    described["expression"] = {"layer": layer, "scale": scale, "gene_names": gene_names, "target_sum": target_sum}
    described["hold_out"] = [rule(text) for text in hold_out or []]
    described["exclude"] = [rule(text) for text in exclude or []]
    recipe, folder = recipe_of(data, given(described))
    changed = {
        "model": recipe.model | given({"preset": preset}),
        "training": recipe.training | given({"max_steps": max_steps, "seed": seed}),
    }
    recipe = recipe.model_copy(update=changed)
    with by_options("train", instead=data.suffix in CELLS):
        model = trained(recipe, folder, out, screen, overwrite=overwrite, device=device)
    finish(model, out, screen)


def trained(recipe: "Recipe", folder: Path, out: Path, screen: Screen, **training: Any) -> "PerturbDiff":  # noqa: ANN401
    """The model of a recipe, trained in a run folder that keeps the recipe; `training` as in `PerturbDiff.train`."""
    from perturbdiff.io import check_writable, run_lock
    from perturbdiff.model import PerturbDiff
    from perturbdiff.training.processes import processes

    first = processes().rank == 0
    with run_lock(out, first=first):
        check_writable(out / "model.json", overwrite=True)
        model = PerturbDiff.from_recipe(recipe, folder=folder)
        model.train(run=out, show_progress=not screen.quiet, **training)
        if first:
            keep_recipe(model.recipe, folder, out)
    return model


def keep_recipe(recipe: "Recipe", folder: Path, out: Path) -> None:
    """Write the recipe of a run beside its model, with paths that no longer depend on a folder."""
    from perturbdiff.recipes.dataset import with_absolute_features, write_recipe

    files = tuple(str(folder / pattern) for pattern in recipe.files)
    write_recipe(with_absolute_features(recipe.model_copy(update={"files": files}), folder), out / "recipe.toml")


def finish(model: "PerturbDiff", out: Path, screen: Screen) -> None:
    """Say how a training ended; exit status 130 where a signal ended it."""
    history = model.trained.history
    energy = history["validation_energy"]
    interrupted = model.outcome is not None and model.outcome.interrupted
    outcome = "interrupted: the same command resumes" if interrupted else "done"
    measured = "no validation" if energy is None else f"validation energy {energy:.3f}"
    screen.say(f"{outcome}; {str(out)!r} holds the weights of step {history['step']} ({measured}).")
    if interrupted:
        raise typer.Exit(INTERRUPTED)


def inspect(
    run: Run,
    *,
    labels: Annotated[bool, typer.Option("--labels", help="List every label, trained or not.")] = False,
    as_json: Json = False,
) -> None:
    """Print what a model can predict, what stands for its labels, and how it was trained."""
    from perturbdiff.checkpoint import load_checkpoint
    from perturbdiff.prediction.coverage import begun, coverage, encoders, rules, summary

    checkpoint = load_checkpoint(run)
    known = checkpoint.conditions
    if as_json:
        facts = {
            "labels": {name: list(vocabulary.labels) for name, vocabulary in checkpoint.vocabularies.items()},
            "encoders": encoders(known),
            "conditions": coverage(known).to_dict(orient="records"),
            "genes": list(checkpoint.genes),
            "scale": checkpoint.scale,
            "settings": checkpoint.settings.model_dump(mode="json"),
            "split": checkpoint.split,
            "history": checkpoint.history,
            "pretraining": None if checkpoint.pretraining is None else list(checkpoint.pretraining.sources),
            "begun_from": checkpoint.begun_from,
        }
        Console().print_json(json.dumps(facts))
        return
    screen = Screen(quiet=False)
    for line in [*summary(known), *rules(known)]:
        screen.out.print(line, markup=False)
    if labels:
        screen.table(coverage(known), as_json=False)
    for line in begun(checkpoint):
        screen.out.print(line, markup=False)
    genes, scale = checkpoint.genes, checkpoint.scale
    screen.out.print(f"{len(genes)} genes ({', '.join(genes[:5])}, ...), scale {scale:.3f} log1p counts per 10^4")
    screen.out.print(f"trained on {checkpoint.recipe.name!r}; kept weights: {checkpoint.history}", markup=False)
    screen.out.print(f"split {checkpoint.split['hash']}")
