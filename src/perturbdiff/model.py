"""The Python API: one object from an AnnData to predictions.

model = PerturbDiff.from_anndata(adata, perturbation="perturbation", control="control", cell_type="cell_type")
model.train(hold_out=[{"part": "test", "perturbation": ["IFN-beta"], "cell_type": ["B cells"]}])
predicted = model.predict(adata[controls], perturbation="IFN-beta", cell_type="B cells", populations=8)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import anndata

from perturbdiff.cells.anndata import cells_from_anndata
from perturbdiff.cells.source import Source
from perturbdiff.features.files import Features, tables_of
from perturbdiff.features.tables import FeatureTable
from perturbdiff.labels.members import grammar_of
from perturbdiff.recipes.dataset import Recipe, hold_outs_of, recipe_from_mapping
from perturbdiff.recipes.selection import HoldOut
from perturbdiff.split.rules import Split, split_cells
from perturbdiff.store.open import open_source, recipe_at
from perturbdiff.trained import TrainedModel
from perturbdiff.training.processes import one_at_a_time

if TYPE_CHECKING:
    from perturbdiff.checkpoint import Checkpoint
    from perturbdiff.training.fitting import TrainingResult


class PerturbDiff(TrainedModel):
    """A model of how populations of cells respond to perturbations: untrained (with data), trained, or loaded.

    It predicts as `trained.TrainedModel` does.

    Attributes:
        recipe: what is known of the data.
        checkpoint: the trained model; None before training.
        outcome: how the last training ended; None before training, and in a loaded model.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        source: Source | None = None,
        folder: Path | None = None,
        checkpoint: "Checkpoint | None" = None,
        features: Mapping[str, FeatureTable] | None = None,
    ) -> None:
        """Hold a recipe with its cells, or with a trained model; use `from_anndata`, `from_recipe` or `load`."""
        super().__init__(recipe, checkpoint=checkpoint)
        self.outcome: TrainingResult | None = None
        self._source = source
        self._folder = folder
        self._features = dict(features or {})

    @classmethod
    def from_anndata(
        cls,
        adata: anndata.AnnData,
        *,
        perturbation: str,
        control: str | Sequence[str],
        cell_type: str | None = None,
        assay_batch: str | None = None,
        dose: str | None = None,
        dose_unit: str | None = None,
        modality: str | None = None,
        total_counts: str | None = None,
        layer: str | None = None,
        scale: str = "counts",
        gene_names: str | None = None,
        target_sum: float | None = None,
        n_genes: int | None = 2000,
        genes: Sequence[str] | None = None,
        grammar: Mapping[str, Any] | None = None,
        encoders: Mapping[str, Any] | None = None,
        features: Mapping[str, Features] | None = None,
        model: Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
        sampling: Mapping[str, Any] | None = None,
        name: str = "anndata",
    ) -> Self:
        """A model of the cells of an AnnData, whose matrix is not copied.

        Args:
            adata: control and perturbed cells.
            perturbation: column of `obs`.
            control: label of the control cells in it; of several labels the first is the name of all.
            cell_type: column of `obs`, where there is one.
            assay_batch: column of `obs` (donor, plate, gem group), where there is one.
            dose: column of `obs` with the doses of perturbations.
            dose_unit: the unit of all doses ("nM", "uM", "mM", "mg/mL", ...), or the column of `obs` that holds it.
            modality: column of `obs` with the kind of each perturbation (knock-out, activation, drug, ...).
            total_counts: column of `obs` with the counts over all genes, where `adata` holds a panel of genes only.
            layer: where the expression is; X when absent, "obsm:KEY" too.
            scale: "counts" (checked to be non-negative integers) or "log1p" (log1p counts per 10^4).
            gene_names: column of `var`; the index when absent.
            target_sum: what log1p counts were normalised to, where that is not 10^4; they are converted.
            n_genes: size of the panel, chosen on training cells by their variability; None takes all genes.
            genes: the panel itself.
            grammar: what labels of perturbation are made of, as in the table [perturbation] of a recipe, such as
                {"separator": "+"}.
            encoders: what stands for labels, as in the tables [encoders.NAME] of a recipe.
            features: of labels or agents, by covariate: a table whose index is the labels, or a file.
            model: settings of the network, as in the table [model] of a recipe.
            training: settings of the training.
            sampling: settings of the sampling.
            name: of the data.

        Raises:
            ValueError: a column, label or value is not as declared; the sentence says which and what to do.
        """
        mapping = {
            "name": name,
            "control": list(control) if isinstance(control, Sequence) and not isinstance(control, str) else control,
            "n_genes": None if genes is not None else n_genes,
            "genes": None if genes is None else list(genes),
            "columns": {
                "perturbation": perturbation,
                "cell_type": cell_type,
                "assay_batch": assay_batch,
                "dose": dose,
                "dose_unit": dose_unit,
                "modality": modality,
                "total_counts": total_counts,
            },
            "perturbation": dict(grammar or {}),
            "encoders": dict(encoders or {}),
            "expression": {"layer": layer, "scale": scale, "gene_names": gene_names, "target_sum": target_sum},
            "model": dict(model or {}),
            "training": dict(training or {}),
            "sampling": dict(sampling or {}),
        }
        recipe = recipe_from_mapping(mapping, "the arguments")
        recipe.settings_with()
        cells = cells_from_anndata(
            adata,
            columns=recipe.columns,
            expression=recipe.expression,
            control=recipe.control,
            controls=recipe.controls,
            grammar=grammar_of(recipe),
        )
        return cls(_as_read(recipe, cells), source=cells, features=tables_of(features))

    @classmethod
    def from_recipe(
        cls,
        recipe: str | Path | Recipe,
        *,
        folder: str | Path | None = None,
        features: Mapping[str, Features] | None = None,
    ) -> Self:
        """A model of the cells that a recipe names; its settings are checked before any file is read.

        Args:
            recipe: a file, a store, or a recipe in memory.
            folder: that its files are relative to; that of the recipe's file, or the working folder, when absent.
            features: of labels, in place of those that the recipe names; as in `from_anndata`.

        Raises:
            FileNotFoundError: the recipe or a file of it is not there.
            ValueError: see `recipes.dataset` and `cells.memory`.
        """
        if not isinstance(recipe, Recipe):
            recipe, beside = recipe_at(Path(recipe))
            folder = folder or beside
        recipe.settings_with()
        place, tables = Path(folder or ".").resolve(), tables_of(features)
        source = open_source(recipe, place)
        return cls(_as_read(recipe, source), source=source, folder=place, features=tables)

    @property
    def source(self) -> Source:
        """The cells to train on, in memory or in a store.

        Raises:
            ValueError: a loaded model has none.
        """
        if self._source is None:
            raise ValueError("a loaded model has no data to train on; make one with from_anndata() or from_recipe().")
        return self._source

    def split(self, hold_out: Sequence[Mapping[str, Any] | HoldOut] | None = None, *, seed: int | None = None) -> Split:
        """The split that `train` would use."""
        rules = self.recipe.hold_out if hold_out is None else hold_outs_of(hold_out, self.recipe)
        training = self.recipe.settings.training
        m = training.cells_per_population
        return split_cells(self.source, rules, seed=training.seed if seed is None else seed, cells_per_population=m)

    @one_at_a_time
    def train(
        self,
        *,
        hold_out: Sequence[Mapping[str, Any] | HoldOut] | None = None,
        run: str | Path | None = None,
        max_steps: int | None = None,
        seed: int | None = None,
        pretrained: "str | Path | PerturbDiff | None" = None,
        overwrite: bool = False,
        device: str = "auto",
        show_progress: bool = True,
    ) -> Self:
        """Train, keeping the weights with the best validation energy; Ctrl-C ends it early and keeps the model.

        Args:
            hold_out: rules in place of the recipe's; each has part ("test" or "validation") and lists of labels.
            run: folder for the model, its logs and the state to resume from; the same call resumes.
            max_steps: in place of the setting.
            seed: in place of the setting.
            pretrained: a pretrained model, or its folder, to begin from; see `training.transfer`.
            overwrite: whether to begin anew where `run` holds a run.
            device: "auto", "cpu", "cuda".
            show_progress: whether to draw a bar.

        Raises:
            ValueError: a rule or a setting does not fit, `run` holds another run, or the pretrained model has seen
                cells that are held out here.
        """
        from perturbdiff.checkpoint import load_checkpoint
        from perturbdiff.prediction.inputs import torch_device

        torch_device(device)
        recipe = self.recipe
        if hold_out is not None:
            recipe = recipe.model_copy(update={"hold_out": hold_outs_of(hold_out, recipe)})
        start = pretrained.trained if isinstance(pretrained, PerturbDiff) else None
        if isinstance(pretrained, str | Path):
            start = load_checkpoint(Path(pretrained))
        changed = {"max_steps": max_steps, "seed": seed}
        if start is None:
            settings = recipe.settings_with(training=changed)
        else:
            from perturbdiff.training.transfer import fine_tuned

            settings = fine_tuned(recipe, start, training=changed)
        m = settings.training.cells_per_population
        split = split_cells(self.source, recipe.hold_out, seed=settings.training.seed, cells_per_population=m)
        # not before the input has proved sound: Lightning takes seconds
        from perturbdiff.training.run import Run
        from perturbdiff.training.trainer import train

        self.outcome = train(
            split,
            recipe,
            settings,
            run=Run(None if run is None else Path(run), overwrite, device, show_progress),
            data_folder=self._folder,
            features=self._features,
            pretrained=start,
        )
        self.recipe, self.checkpoint = recipe, self.outcome.checkpoint
        return self


def _as_read(recipe: Recipe, source: Source) -> Recipe:
    """A recipe that names the control label as the source has it: ``0`` of floats, where it was called ``0.0``."""
    return recipe if recipe.control == source.control else recipe.model_copy(update={"control": source.control})
