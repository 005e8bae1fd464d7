"""The command that writes what a simple baseline predicts: baseline."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from perturbdiff.cli.options import GeneNames, Layer, Overwrite, Quiet, TargetSum, TotalCounts, by_options
from perturbdiff.cli.screen import Screen


def baseline(
    name: Annotated[str, typer.Argument(help='Of the baseline: ridge, additive, "nearest cell type", ...')],
    controls: Annotated[Path, typer.Argument(help="An .h5ad with control cells; other cells in it are not used.")],
    conditions: Annotated[
        Path | None, typer.Argument(help="A CSV: perturbation, cell_type, assay_batch, dose, dose_unit, modality.")
    ] = None,
    *,
    out: Annotated[Path, typer.Option(help="The .h5ad to write.")],
    run: Annotated[Path | None, typer.Option(help="A trained model: brings the training cells and the panel.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="A recipe, to the same end; no model is needed.")] = None,
    part: Annotated[
        str | None, typer.Option(help="Predict all conditions of this part: test (when absent), validation.")
    ] = None,
    way: Annotated[
        Literal["counts", "log1p"] | None,
        typer.Option(
            "--as",
            help="How cells are moved: drawn as counts (when absent, where the total counts of all control cells are "
            "known), or by adding to log1p values.",
        ),
    ] = None,
    scale: Annotated[str | None, typer.Option(help="counts or log1p, in place of the recipe's.")] = None,
    layer: Layer = None,
    gene_names: GeneNames = None,
    total_counts: TotalCounts = None,
    target_sum: TargetSum = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Predict by a simple baseline, fitted to the training cells: the same .h5ad as a model's."""
    from perturbdiff.baselines.catalogue import check_names
    from perturbdiff.baselines.files import write_prediction
    from perturbdiff.files.container import read_anndata
    from perturbdiff.io import check_writable
    from perturbdiff.prediction.conditions import check_part, labelled, read_rows
    from perturbdiff.prediction.inputs import control_cells
    from perturbdiff.training_data import TrainingData

    screen = Screen(quiet=quiet)
    check_names([name])
    check_writable(out, overwrite=overwrite)
    if conditions is not None and part is not None:
        raise ValueError("conditions come from a CSV file or from --part; give one of them.")
    check_part(part or "test")
    if run is not None and recipe is None:
        data = TrainingData.of_run(run)
    elif recipe is not None and run is None:
        data = TrainingData.of_recipe(recipe)
    else:
        raise ValueError("a baseline is fitted to the training cells of --run or of --recipe; give one of the two.")
    rows = None if conditions is None else read_rows(conditions)
    with by_options():
        cells = control_cells(
            read_anndata(controls),
            data.recipe,
            columns={"total_counts": total_counts},
            expression={"scale": scale, "layer": layer, "gene_names": gene_names, "target_sum": target_sum},
            total_genes=data.total_genes,
        )
    for note in cells.notes:
        screen.say(note)
    if rows is None:
        rows = data.split.groups(part or "test").to_dict("records")
        if not rows:
            raise ValueError(
                f"the split of {data.recipe.name!r} has no perturbed cells in its {part or 'test'} part; "
                "give a CSV of conditions."
            )
    table = labelled(rows, data.conditions, data.recipe.columns)
    kinds = sorted(set(cells.labels["cell_type"][cells.is_control].astype(str)))
    pairs = table[["perturbation", "cell_type"]].astype(str).to_numpy()
    asked = [(label, kind) for label, own in pairs for kind in ([own] if own else kinds)]
    predictor = data.baseline(name, asked)
    for note in predictor.notes:
        screen.say(note)
    write_prediction(predictor, cells, table, out, columns=data.recipe.columns, split_hash=data.split.hash, way=way)
    screen.say(f"{str(out)!r} holds what {name!r} predicts of {len(table)} conditions, and their control cells.")
