"""The command that predicts: cells of drawn populations, or what these do on the mean."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perturbdiff.cli.options import (
    Device,
    GeneNames,
    Layer,
    MinOverlap,
    Overwrite,
    Quiet,
    Run,
    Seed,
    TargetSum,
    TotalCounts,
    by_options,
    guidance_of,
)
from perturbdiff.cli.screen import Screen

if TYPE_CHECKING:
    import pandas as pd

ONE_SOURCE = "conditions come from a CSV file, from --perturbation or from --part; give one of them."
"""Said where there is none, or more than one."""

SUMMARISED = 100
"""So many populations are drawn for a summary, where it is not said."""

FAR_ABOVE = 10
"""So many times the cells that were held out are more predicted ones than anybody needs."""


def predict(
    run: Run,
    controls: Annotated[
        Path | None, typer.Argument(help="An .h5ad with control cells; other cells in it are not used.")
    ] = None,
    conditions: Annotated[
        Path | None, typer.Argument(help="A CSV: perturbation, cell_type, assay_batch, dose, dose_unit, modality.")
    ] = None,
    *,
    out: Annotated[Path, typer.Option(help="The .h5ad to write; with --summary a .csv or .parquet.")],
    perturbation: Annotated[str | None, typer.Option(help="Label of one condition.")] = None,
    cell_type: Annotated[str | None, typer.Option(help="Label of one condition.")] = None,
    assay_batch: Annotated[str | None, typer.Option(help="Label of one condition.")] = None,
    dose: Annotated[str | None, typer.Option(help="Of the condition's perturbation.")] = None,
    dose_unit: Annotated[str | None, typer.Option(help="Of the dose: nM, uM, mM, mg/mL, ...")] = None,
    modality: Annotated[str | None, typer.Option(help="Of the condition's perturbation.")] = None,
    cells: Annotated[
        int | None, typer.Option(help="So many cells of one cell type, from a pretrained model, without a file.", min=1)
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="Features of perturbations that the model has none of, a table.")
    ] = None,
    part: Annotated[str | None, typer.Option(help="Predict all conditions of this part: test, validation.")] = None,
    perturbation_column: Annotated[str | None, typer.Option(help="In place of the model's.")] = None,
    cell_type_column: Annotated[str | None, typer.Option(help="In place of the model's.")] = None,
    assay_batch_column: Annotated[str | None, typer.Option(help="In place of the model's.")] = None,
    scale: Annotated[str | None, typer.Option(help="counts or log1p, in place of the model's.")] = None,
    layer: Layer = None,
    gene_names: GeneNames = None,
    total_counts: TotalCounts = None,
    target_sum: TargetSum = None,
    min_overlap: MinOverlap = 0.9,
    cells_per_condition: Annotated[
        int | None, typer.Option(help="Predicted cells of each condition; as many as control cells when absent.", min=1)
    ] = None,
    populations: Annotated[
        int | None,
        typer.Option(help="How often each condition is drawn, each as another donor might respond.", min=1),
    ] = None,
    summary: Annotated[
        bool, typer.Option("--summary", help="Mean changes, intervals and probabilities over draws, not cells.")
    ] = False,
    level: Annotated[float, typer.Option(help="Of the summary's intervals.")] = 0.95,
    threshold: Annotated[float, typer.Option(help="Of the summary's p_changed, log1p counts per 10^4.")] = 0.5,
    top: Annotated[int, typer.Option(help="Of the summary's p_top: so many genes.", min=1)] = 50,
    programmes: Annotated[
        Path | None, typer.Option(help="A table of weights, genes down and programmes across, for the summary.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Network evaluations for each population.")] = None,
    guidance: Annotated[
        str | None, typer.Option(help="Strength of the guidance: 1.5, or perturbation=1.5,cell_type=0.5.")
    ] = None,
    counts: Annotated[
        bool, typer.Option("--counts", help="Whole numbers of counts in X, log1p values in a layer.")
    ] = False,
    seed: Seed = 0,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Predict one cell for each control cell of each condition."""
    from perturbdiff.families.summary import Reading
    from perturbdiff.files.container import read_anndata
    from perturbdiff.io import check_writable, write_h5ad
    from perturbdiff.model import PerturbDiff
    from perturbdiff.predicted import drawn, without_controls
    from perturbdiff.prediction.conditions import asked_conditions
    from perturbdiff.prediction.inputs import torch_device, with_sampling
    from perturbdiff.prediction.summary import read_programmes, summarise

    screen = Screen(quiet=quiet)
    check_writable(out, overwrite=overwrite)
    if summary and out.suffix not in {".csv", ".parquet"}:
        raise ValueError(f"--summary writes a table, and {str(out)!r} is none; name a .csv or a .parquet by --out.")
    if programmes is not None and not summary:
        raise ValueError(f"--programmes {str(programmes)!r} is of a summary; add --summary.")
    weights = None if programmes is None else read_programmes(programmes)
    sources = sum(source is not None for source in (conditions, perturbation, part))
    if sources > 1:
        raise ValueError(ONE_SOURCE)
    if (controls is None) == (cells is None):
        raise ValueError(
            "cells are predicted from a file of control cells, or so many by --cells; give one of the two."
        )
    sampling = {"steps": steps, "guidance": None if guidance is None else guidance_of(guidance)}
    model = PerturbDiff.load(run)
    if features is not None:
        model = model.with_features({"perturbation": features})
    if sources == 0 and model.trained.pretraining is None:
        raise ValueError(ONE_SOURCE)
    with_sampling(model.trained.settings, sampling)
    one = {"perturbation": perturbation, "cell_type": cell_type, "assay_batch": assay_batch}
    one |= {"dose": dose, "dose_unit": dose_unit, "modality": modality}
    table = asked_conditions(model.trained, one, table=conditions, part=part)
    columns = {"perturbation": perturbation_column, "cell_type": cell_type_column, "assay_batch": assay_batch_column}
    with by_options():
        start = model.control_cells(
            None if controls is None else read_anndata(controls),
            cells=cells,
            cell_type=cell_type,
            assay_batch=assay_batch,
            columns=columns | {"total_counts": total_counts},
            expression={"scale": scale, "layer": layer, "gene_names": gene_names, "target_sum": target_sum},
            min_overlap=min_overlap,
        )
        if summary:
            found = summarise(
                model.trained,
                start,
                table,
                populations=populations or SUMMARISED,
                reading=Reading(level, threshold, top),
                programmes=weights,
                seed=seed,
                device=torch_device(device),
                settings=with_sampling(model.trained.settings, sampling),
                min_overlap=min_overlap,
                n_cells=cells_per_condition,
                track=screen.track,
            )
            _write(found, out)
            screen.say(f"{str(out)!r} holds mean changes over {populations or SUMMARISED} populations of a condition.")
            return
        adata = model.predict_cells(
            start,
            table,
            populations=populations or 1,
            seed=seed,
            device=device,
            sampling=sampling,
            min_overlap=min_overlap,
            n_cells=cells_per_condition,
            counts=counts,
            track=screen.track,
        )
    write_h5ad(without_controls(adata) if controls is None else adata, out)
    n_predicted = int((drawn(adata) >= 0).sum())
    of = "1 condition" if len(table) == 1 else f"{len(table)} conditions"
    beside = "" if controls is None else ", and their control cells"
    screen.say(f"{str(out)!r} holds {n_predicted} predicted cells of {of}{beside}.")
    n_observed = 0 if part is None else sum(int(row["cells"]) for row in model.trained.split["conditions"][part])
    if n_observed and n_predicted > FAR_ABOVE * n_observed:
        screen.say(
            f"that is {n_predicted / n_observed:.0f} times the {n_observed} cells that are held out for {part}; "
            "--cells-per-condition says how many to predict of each condition."
        )


def _write(table: "pd.DataFrame", path: Path) -> None:
    """Write a table, whole or not at all."""
    from perturbdiff.io import whole_file

    with whole_file(path) as partial:
        if path.suffix == ".parquet":
            table.to_parquet(partial, index=False)
        else:
            table.to_csv(partial, index=False)
