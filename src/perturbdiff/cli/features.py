"""Commands that make features of labels: smiles, loadings, language."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perturbdiff.cli.options import Device, Overwrite, Quiet, TargetSum, by_options, given, recipe_of
from perturbdiff.cli.screen import Screen

if TYPE_CHECKING:
    from perturbdiff.cells.order import Segments
    from perturbdiff.cells.source import Source
    from perturbdiff.features.tables import FeatureTable

app = typer.Typer(no_args_is_help=True, help="Make features of genes, molecules or other labels: a vector for each.")

Out = Annotated[Path, typer.Option(help="The .parquet to write: label, feature_0, feature_1, ...")]


@app.command()
def smiles(
    molecules: Annotated[Path, typer.Argument(help="A .csv or .parquet with the columns label and smiles.")],
    *,
    out: Out,
    radius: Annotated[int, typer.Option(help="Of an atom's neighbourhood, in bonds.", min=0)] = 2,
    size: Annotated[int, typer.Option(help="So many features.", min=1)] = 1024,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Make features of molecules: Morgan count fingerprints."""
    from perturbdiff.features.molecules import fingerprints, read_smiles

    _check_out(out, overwrite=overwrite)
    table = fingerprints(read_smiles(molecules), molecules.name, radius=radius, size=size)
    _write(table, out, Screen(quiet=quiet))


@app.command()
def loadings(
    data: Annotated[Path, typer.Argument(help="A recipe (.toml), a store, or an .h5ad with the options below.")],
    *,
    out: Out,
    components: Annotated[int, typer.Option(help="So many features.", min=1)] = 32,
    scale: Annotated[str | None, typer.Option(help="counts or log1p (.h5ad); never guessed.")] = None,
    layer: Annotated[str | None, typer.Option(help="Layer of the expression (.h5ad); X when absent.")] = None,
    gene_names: Annotated[str | None, typer.Option(help="Column of var that names the genes (.h5ad).")] = None,
    total_counts: Annotated[str | None, typer.Option(help="Column of total counts, for a partial panel.")] = None,
    target_sum: TargetSum = None,
    perturbation: Annotated[str | None, typer.Option(help="Column of perturbations (.h5ad).")] = None,
    control: Annotated[
        list[str] | None, typer.Option(help="Label of control cells; several: the first names them all (.h5ad).")
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Make features of genes: loadings on the principal components of control cells, or of all where none are known.

    Cells that a recipe holds out are not looked at.
    """
    from perturbdiff.cells.loadings import expression_loadings
    from perturbdiff.recipes.files import CELLS

    screen = Screen(quiet=quiet)
    _check_out(out, overwrite=overwrite)
    columns = {"perturbation": perturbation, "total_counts": total_counts}
    expression = {"scale": scale, "layer": layer, "gene_names": gene_names, "target_sum": target_sum}
    described = {"control": control, "columns": columns, "expression": expression}
    with by_options(instead=data.suffix in CELLS):
        source, segments = _cells(data, given(described))
    for note in source.notes:
        screen.say(note)
    table = expression_loadings(source, segments, components=components)
    if same := len(source.genes) - len(table):
        screen.say(f"{same} of {len(source.genes)} genes do not vary in these cells and have no row.")
    _write(table, out, screen)


@app.command()
def language(
    texts: Annotated[Path, typer.Argument(help="A .csv or .parquet with label and text or sequence, or a .fasta.")],
    *,
    model: Annotated[str, typer.Option(help="Folder, or name on the Hugging Face hub: an ESM2, a ChemBERTa, ...")],
    out: Out,
    batch_size: Annotated[int, typer.Option(help="So many texts at once.", min=1)] = 8,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Make features of texts: means over the last hidden states of a language model."""
    from perturbdiff.features.texts import embed_texts, read_texts
    from perturbdiff.prediction.inputs import torch_device

    screen = Screen(quiet=quiet)
    _check_out(out, overwrite=overwrite)
    table = embed_texts(
        read_texts(texts),
        model,
        batch_size=batch_size,
        device=torch_device(device),
        track=screen.track,
    )
    _write(table, out, screen)


def _cells(data: Path, described: dict[str, Any]) -> "tuple[Source, Segments]":
    """The cells of a file and its options, or of a recipe; and the control cells that nothing holds out."""
    from perturbdiff.recipes.files import CELLS
    from perturbdiff.split.rules import split_cells
    from perturbdiff.store.open import open_source

    if data.suffix in CELLS:
        if "scale" not in described.get("expression", {}):
            raise ValueError(f"the scale of {str(data)!r} is not given; add --scale counts or --scale log1p.")
        perturbed = "perturbation" in described.get("columns", {})
        if perturbed != ("control" in described):
            raise ValueError(
                f"--{'perturbation' if perturbed else 'control'} is given alone, and control cells are those with a "
                "label in a column; give both --perturbation and --control, or neither to take all cells."
            )
        described["kind"] = "perturb-seq" if perturbed else "rna-seq"
    recipe, folder = recipe_of(data, described)
    source = open_source(recipe, folder)
    runs = source.runs
    if not recipe.hold_out:
        return source, runs.whole(runs.is_control)
    settings = recipe.settings.training
    split = split_cells(source, recipe.hold_out, seed=settings.seed, cells_per_population=settings.cells_per_population)
    training = split.of("train")
    return source, training.take(runs.is_control[training.run])


def _check_out(out: Path, *, overwrite: bool) -> None:
    from perturbdiff.features.files import check_target
    from perturbdiff.io import check_writable

    check_target(out)
    check_writable(out, overwrite=overwrite)


def _write(table: "FeatureTable", out: Path, screen: Screen) -> None:
    from perturbdiff.features.files import write_features

    write_features(table, out)
    screen.say(f"{str(out)!r} holds {len(table)} labels x {table.width} features: {table.origin}.")
