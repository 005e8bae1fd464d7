"""What a prediction starts from: control cells, sampling settings and a device, checked before any work begins."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from perturbdiff.cells.anndata import cells_from_anndata
from perturbdiff.cells.genes import align_genes
from perturbdiff.cells.memory import Cells
from perturbdiff.checkpoint import Checkpoint
from perturbdiff.files.matrices import expression_of
from perturbdiff.labels.members import grammar_of, is_unit
from perturbdiff.predicted import KEY
from perturbdiff.recipes.dataset import Columns, Expression, Recipe
from perturbdiff.recipes.settings import Settings
from perturbdiff.recipes.tables import validated


def control_cells(
    adata: anndata.AnnData,
    recipe: Recipe,
    *,
    columns: Mapping[str, str | None] | None = None,
    expression: Mapping[str, Any] | None = None,
    total_genes: tuple[str, ...] | None = None,
    panel: Sequence[str] | None = None,
    min_overlap: float = 0.9,
) -> Cells:
    """The cells of an AnnData for prediction.

    Args:
        adata: control cells, and others perhaps where it has the column of perturbations.
        recipe: of the model; names columns, layer and scale.
        columns: columns in place of the recipe's, by covariate; a given one must be there.
        expression: layer, gene_names, scale and target_sum in place of the recipe's; the layer "X" is X.
        total_genes: over which the totals of the training cells ran; see `Checkpoint`.
        min_overlap: least share of the panel that must be there, which is looked at before totals are.
        panel: the model's genes; a note says where totals may run over others than in training.

    Raises:
        ValueError: a column or a value is not as declared, or the cells lack genes over which totals run.
    """
    given = {name: column for name, column in (columns or {}).items() if column is not None}
    own = recipe.columns.model_dump(exclude_none=True)
    there = {name: column for name, column in own.items() if column in adata.obs.columns} | given
    if recipe.columns.dose_unit is not None and is_unit(recipe.columns.dose_unit):
        there.setdefault("dose_unit", recipe.columns.dose_unit)
    if not {"dose", "dose_unit"} <= there.keys():
        # a dose without a unit, or a unit without a dose, says nothing of control cells
        there = {name: column for name, column in there.items() if name not in {"dose", "dose_unit"}}
    used = validated(Columns, there, "the columns")
    read = _expression(adata, recipe, expression or {})
    if read.scale == "log1p" and "total_counts" not in given:
        used = used.model_copy(update={"total_counts": None})
    elif used.total_counts is None and recipe.columns.total_counts is not None:
        raise ValueError(
            f"the control cells have no column {recipe.columns.total_counts!r}, where the model's data keep each "
            "cell's total count, and a sum over a panel of genes would be another unit; add it, or name another one "
            "in columns.total_counts."
        )
    control = recipe.control if used.perturbation is not None else None
    if panel is not None:
        genes = expression_of(adata, read, "the file of control cells").genes
        align_genes(panel, list(genes), min_overlap=min_overlap)
    # predicted cells, and control cells beside them, need not sum to anything
    cells = cells_from_anndata(
        adata,
        columns=used,
        expression=read,
        control=control,
        controls=recipe.controls if control is not None else (),
        grammar=grammar_of(recipe),
        require="any",
        source="the file of control cells",
        summed=total_genes,
        observed=KEY not in adata.uns,
    )
    unknown = read.scale == "counts" and used.total_counts is None and total_genes is None
    if unknown and panel is not None and set(panel) != set(map(str, cells.genes)):
        note = (
            f"this model does not say over which genes the total counts of its training cells ran, so those of the "
            f"control cells run over all {len(cells.genes)} genes of their file: give the genes of the training file."
        )
        cells = replace(cells, notes=(*cells.notes, note))
    return cells


def _expression(adata: anndata.AnnData, recipe: Recipe, given: Mapping[str, Any]) -> Expression:
    """The recipe's, with what is given in its place."""
    changed = {key: value for key, value in given.items() if value is not None}
    kept = recipe.expression.model_dump()
    if changed.get("scale", kept["scale"]) != kept["scale"]:
        kept["target_sum"] = None
    if changed.get("layer") == "X" and "X" not in adata.layers:
        changed["layer"] = None
    return validated(Expression, kept | changed, "the expression")


def with_sampling(settings: Settings, sampling: Mapping[str, Any] | None) -> Settings:
    """The settings with another sampling."""
    if not sampling:
        return settings
    tables = settings.model_dump()
    tables["sampling"] |= {key: value for key, value in sampling.items() if value is not None}
    return validated(Settings, tables, "the sampling settings")


def torch_device(device: str) -> str:
    """The device of torch that "auto" means here.

    Raises:
        ValueError: there is no such device.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.partition(":")[0] not in {"cpu", "cuda", "mps"}:
        raise ValueError(f"device {device!r} is not a device; choose auto, cpu or cuda.")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} is not there: torch sees no CUDA device; use 'cpu' or 'auto'.")
    return device


def no_cells(checkpoint: Checkpoint, n_cells: int, cell_type: str | None, assay_batch: str | None) -> Cells:
    """So many cells that express nothing, in the place of control cells, of a model that does not look at them.

    Raises:
        ValueError: the model looks at control cells, or there are none.
    """
    if checkpoint.recipe.control is not None:
        raise ValueError("this model predicts from control cells, and none are given; give some.")
    if n_cells < 1:
        raise ValueError(f"cells={n_cells} must be at least 1; give how many cells to predict.")
    labels = {"perturbation": "", "cell_type": cell_type or "", "assay_batch": assay_batch or ""}
    return Cells(
        values=sp.csr_matrix((n_cells, len(checkpoint.genes)), dtype=np.float32),
        scale="log1p",
        total_counts=None,
        genes=pd.Index(checkpoint.genes),
        names=pd.Index([f"cell{i}" for i in range(n_cells)]),
        labels=pd.DataFrame({name: pd.Categorical([label] * n_cells) for name, label in labels.items()}),
        control=None,
    )
