"""From files on disk to a comparison: predicted and observed .h5ad files, and a run or recipe for training cells."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from perturbdiff.checkpoint import load_checkpoint
from perturbdiff.comparison import Comparison, compare
from perturbdiff.config import settings_of
from perturbdiff.data.cells import Cells
from perturbdiff.data.opening import open_source
from perturbdiff.data.recipe import Columns, Expression, Recipe, read_recipe
from perturbdiff.data.split import split_cells
from perturbdiff.evaluation.files import read_file

TRAINING_CELLS = 1 << 20
"""So many training cells are read for the baselines, at most: of more, an even share of every group."""


@dataclass(frozen=True)
class Origin:
    """Where the training cells of trained baselines come from.

    Attributes:
        recipe: of the data.
        folder: that its files are relative to; None where the data were in memory.
        seed: of the split.
        split_hash: that the split must have; None where any will do.
    """

    recipe: Recipe
    folder: Path | None
    seed: int
    split_hash: str | None

    @classmethod
    def of_run(cls, run: Path) -> "Origin":
        """The data that a run was trained on."""
        checkpoint = load_checkpoint(run)
        folder = None if checkpoint.folder is None else Path(checkpoint.folder)
        return cls(checkpoint.recipe, folder, checkpoint.split["seed"], checkpoint.split["hash"])

    @classmethod
    def of_recipe(cls, path: Path) -> "Origin":
        """The data that a recipe names."""
        recipe = read_recipe(path)
        return cls(recipe, path.resolve().parent, settings_of(recipe).training.seed, None)

    def training_cells(self) -> Cells:
        """The training part, perturbed and control cells.

        Raises:
            ValueError: the data were in memory only, or are no longer those that the run was trained on.
        """
        if self.folder is None:
            raise ValueError(
                "this run was trained on data in memory, so its training cells cannot be read again; give --recipe."
            )
        source = open_source(self.recipe, self.folder)
        split = split_cells(source, self.recipe.hold_out, seed=self.seed)
        if self.split_hash is not None and split.hash != self.split_hash:
            raise ValueError(
                f"the files of {self.recipe.name!r} in {str(self.folder)!r} give another split than the run was "
                "trained with, so they have changed since; restore them, or give --recipe."
            )
        return source.in_memory(split.of("train"), at_most=TRAINING_CELLS)


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
) -> Comparison:
    """Judge predicted files beside the baselines and the ceiling.

    Args:
        predicted: files by the name that they have in the tables.
        observed: the file of observed cells.
        source: brings the training cells, and says how the observed file is to be read.
        columns: of files that do not declare them; those of the source when absent.
        expression: layer and scale of the observed file; those of the source when absent.
        predicted_expression: layer and scale of predicted files that do not declare them.
        control: control label of files that do not declare it; that of the source when absent.
        seed: of the comparison's draws.

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
        name: read_file(path, columns=labels, expression=predicted_expression, control=control)
        for name, path in predicted.items()
    }
    seen = read_file(observed, columns=columns, expression=expression, control=control)
    training = None if source is None else source.training_cells()
    return compare(files, seen, training=training, seed=seed)
