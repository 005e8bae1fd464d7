"""The training data of a run or of a recipe: its cells, panel and features, to which baselines are fitted."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from perturbdiff.baselines import catalogue
from perturbdiff.baselines.predictor import Predictor
from perturbdiff.cells.memory import Cells
from perturbdiff.features.tables import FeatureTable
from perturbdiff.files.totals import total_genes
from perturbdiff.labels.members import grammar_of
from perturbdiff.recipes.dataset import Recipe, read_recipe
from perturbdiff.recipes.settings import Settings
from perturbdiff.split.rules import Split, split_cells
from perturbdiff.store.open import open_source

if TYPE_CHECKING:
    import perturbdiff.labels.conditions
    from perturbdiff.checkpoint import Checkpoint

TRAINING_CELLS = 1 << 20
"""So many training cells are read for the baselines, at most: of more, an even share of every group."""


@dataclass(frozen=True)
class TrainingData:
    """Where the training cells of trained baselines come from.

    Attributes:
        recipe: of the data.
        folder: that its files are relative to; None where the data were in memory.
        seed: of the split.
        split_hash: that the split must have; None where any will do.
        run: the folder of the run; None where there is none.
        checkpoint: the trained model of the run.
    """

    recipe: Recipe
    folder: Path | None
    seed: int
    split_hash: str | None
    run: Path | None = None
    checkpoint: "Checkpoint | None" = None

    @classmethod
    def of_run(cls, run: Path) -> "TrainingData":
        """The data that a run was trained on."""
        from perturbdiff.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(run)
        folder = None if checkpoint.folder is None else Path(checkpoint.folder)
        return cls(checkpoint.recipe, folder, checkpoint.split["seed"], checkpoint.split["hash"], run, checkpoint)

    @classmethod
    def of_recipe(cls, path: Path) -> "TrainingData":
        """The data that a recipe names."""
        recipe = read_recipe(path)
        return cls(recipe, path.resolve().parent, recipe.settings.training.seed, None)

    def training_cells(self) -> Cells:
        """The training part, perturbed and control cells.

        Raises:
            ValueError: the data were in memory only, or are no longer those that the run was trained on.
        """
        split = self.split
        return split.source.in_memory(split.of("train"), at_most=TRAINING_CELLS)

    @cached_property
    def split(self) -> Split:
        """The split of the data.

        Raises:
            ValueError: as `training_cells`.
        """
        if self.folder is None:
            raise ValueError(
                "this run was trained on data in memory, so its training cells cannot be read again; give --recipe."
            )
        m = self._settings.training.cells_per_population
        source = open_source(self.recipe, self.folder)
        split = split_cells(source, self.recipe.hold_out, seed=self.seed, cells_per_population=m)
        if self.split_hash is not None and split.hash != self.split_hash:
            raise ValueError(
                f"the files of {self.recipe.name!r} in {str(self.folder)!r} give another split than the run was "
                "trained with, so they have changed since; restore them, or give --recipe."
            )
        return split

    @cached_property
    def conditions(self) -> "perturbdiff.labels.conditions.Conditions":
        """The labels of the training cells, and features where the run has or the recipe names some.

        Raises:
            FileNotFoundError: a file of features that the recipe names is not there.
            ValueError: as `training_cells`; or as `training.encoders.trained_conditions`.
        """
        if self.checkpoint is not None:
            return self.checkpoint.conditions
        from perturbdiff.training.encoders import trained_conditions

        return trained_conditions(self.split, self.recipe, self._settings, folder=self.folder)

    @property
    def features(self) -> FeatureTable | None:
        """Of the agents of perturbations; None where there are none. Raises as `conditions`."""
        from perturbdiff.labels.conditions import PERTURBATION

        return self.conditions.features.get(PERTURBATION)

    @cached_property
    def panel(self) -> tuple[str, ...]:
        """The genes of the run, or those that a training by the recipe would choose. Raises as `training_cells`."""
        if self.checkpoint is not None:
            return self.checkpoint.genes
        from perturbdiff.training.preparation import panel_of

        return tuple(panel_of(self.split, self.recipe)[0])

    @property
    def total_genes(self) -> tuple[str, ...] | None:
        """Over which the total counts of the training cells run; see `Checkpoint`. Raises as `training_cells`."""
        if self.checkpoint is not None and self.checkpoint.total_genes is not None:
            return self.checkpoint.total_genes
        return total_genes(self.split.source.genes, self.recipe) if self.folder is not None else None

    @property
    def history(self) -> dict[str, Any] | None:
        """What the run recorded, step by step, and the settings that its model was trained with; None without a run."""
        if self.run is None or self.checkpoint is None:
            return None
        from perturbdiff.checkpoint import LOGS

        return {
            "history": list(_steps(self.run / LOGS)),
            "kept": dict(self.checkpoint.history),
            "begun_from": self.checkpoint.begun_from,
            "settings": self.checkpoint.settings.model_dump(mode="json"),
            "recipe": self.checkpoint.recipe.name,
            "genes": len(self.checkpoint.genes),
        }

    def baseline(self, name: str, conditions: Sequence[tuple[str, str]]) -> Predictor:
        """A baseline, fitted to the training cells for these (perturbation, cell type).

        Raises:
            ValueError: there is no such baseline; as `training_cells`; or as `baselines.catalogue.Baseline.fit`.
        """
        found, _ = catalogue.fitted(
            (name,),
            self.training_cells(),
            self.panel,
            conditions=conditions,
            grammar=grammar_of(self.recipe),
            features=self.features,
        )
        return found[name]

    @property
    def _settings(self) -> Settings:
        return self.recipe.settings


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
