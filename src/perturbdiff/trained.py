"""A trained model as programs use it, the half of `model.PerturbDiff` that needs no training data."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import anndata
import pandas as pd

from perturbdiff.cells.memory import Cells
from perturbdiff.features.files import Features, tables_of
from perturbdiff.predicted import without_controls
from perturbdiff.recipes.dataset import Recipe

if TYPE_CHECKING:
    from perturbdiff.checkpoint import Checkpoint
    from perturbdiff.prediction.drawing import Track

_LOG = logging.getLogger(__name__)


class TrainedModel:
    """A model that is trained, or will be; what it is asked before is refused.

    Attributes:
        recipe: what is known of the data.
        checkpoint: the trained model; None before training.
    """

    def __init__(self, recipe: Recipe, *, checkpoint: "Checkpoint | None" = None) -> None:
        """Hold a recipe, with a trained model perhaps; use `load`."""
        self.recipe = recipe
        self.checkpoint = checkpoint

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """A trained model from its folder.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, or a newer version wrote it.
        """
        from perturbdiff.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(Path(folder))
        return cls(checkpoint.recipe, checkpoint=checkpoint)

    def save(self, folder: str | Path) -> None:
        """Write the trained model: model.safetensors and model.json."""
        self.trained.save(Path(folder))

    @property
    def trained(self) -> "Checkpoint":
        """The trained model.

        Raises:
            ValueError: it is not trained yet.
        """
        if self.checkpoint is None:
            raise ValueError("this model is not trained; call train() first, or load() a trained one.")
        return self.checkpoint

    def predict(
        self,
        controls: anndata.AnnData | None = None,
        *,
        perturbation: str | None = None,
        cell_type: str | None = None,
        assay_batch: str | None = None,
        cells: int | None = None,
        dose: float | None = None,
        dose_unit: str | None = None,
        modality: str | None = None,
        conditions: pd.DataFrame | None = None,
        features: Mapping[str, Features] | None = None,
        populations: int = 1,
        seed: int = 0,
        device: str = "auto",
        sampling: Mapping[str, Any] | None = None,
        columns: Mapping[str, str | None] | None = None,
        expression: Mapping[str, Any] | None = None,
        min_overlap: float = 0.9,
        n_cells: int | None = None,
        counts: bool = False,
    ) -> anndata.AnnData:
        """Predict one cell for each control cell of each condition.

        Args:
            controls: cells with the columns of the training data; where it has the perturbation column, only control
                cells are used. Not needed by a pretrained model, which does not look at them.
            perturbation: label of one condition.
            cell_type: of the condition, and of the control cells that are used.
            assay_batch: likewise; one that training has not seen, as a cell type, takes the trained null.
            cells: how many cells to predict, where no control cells are given.
            dose: of the perturbation, where the model was trained with doses.
            dose_unit: of the dose; that of the training data when absent, where they have one.
            modality: of the perturbation, where the model was trained with several.
            conditions: a table of conditions (perturbation, cell_type, assay_batch, dose, dose_unit, modality) in place
                of all of these.
            features: of labels that the model has no features of, as in `from_anndata`.
            populations: how many populations to draw for each condition.
            seed: of all noise; the same seed gives the same cells.
            device: "auto", "cpu", "cuda".
            sampling: settings in place of the model's, as in the table [sampling] of a recipe.
            columns: of `controls.obs`, in place of those of the training data, as in the table [columns] of a recipe.
            expression: where and on which scale `controls` holds its expression, in place of what the training data
                say, as in the table [expression] of a recipe.
            min_overlap: least share of the panel's genes that `controls` must have; missing ones count as 0.
            n_cells: predicted cells of each condition and draw; one for each of its control cells when absent.
            counts: whole numbers of counts in X, and log1p counts per 10^4 in a layer.

        Returns:
            Control and predicted cells: log1p counts per 10^4 in X; `population` is -1 for control cells.

        Raises:
            ValueError: a label is unknown (the nearest is named), genes do not match, or there are no control cells.
        """
        from perturbdiff.prediction.conditions import asked_conditions

        one: dict[str, Any] = {"perturbation": perturbation, "cell_type": cell_type, "assay_batch": assay_batch}
        one |= {"dose": dose, "dose_unit": dose_unit, "modality": modality}
        if conditions is not None and any(label is not None for label in one.values()):
            raise ValueError("conditions come from a table or from the labels; give one of them.")
        model = self.with_features(features) if features else self
        table = asked_conditions(model.trained, one, table=conditions)
        if (controls is None) == (cells is None) or (cells is not None and conditions is not None):
            raise ValueError(
                "cells are predicted from control cells, or so many (cells) of one cell type by a pretrained model; "
                "give one of the two."
            )
        made = model.predict_cells(
            model.control_cells(
                controls,
                cells=cells,
                cell_type=cell_type,
                assay_batch=assay_batch,
                columns=columns,
                expression=expression,
                min_overlap=min_overlap,
            ),
            table,
            populations=populations,
            seed=seed,
            device=device,
            sampling=sampling,
            min_overlap=min_overlap,
            n_cells=n_cells,
            counts=counts,
        )
        return without_controls(made) if controls is None else made

    def control_cells(
        self,
        controls: anndata.AnnData | None,
        *,
        cells: int | None = None,
        cell_type: str | None = None,
        assay_batch: str | None = None,
        columns: Mapping[str, str | None] | None = None,
        expression: Mapping[str, Any] | None = None,
        min_overlap: float = 0.9,
    ) -> Cells:
        """The cells of an AnnData as `predict` reads them; see `prediction.inputs.control_cells`.

        Without an AnnData so many `cells` of one cell type and assay batch, see `prediction.inputs.no_cells`.
        """
        from perturbdiff.prediction.inputs import control_cells, no_cells

        known = self.trained
        if controls is None:
            return no_cells(known, cells or 0, cell_type, assay_batch)
        return control_cells(
            controls,
            known.recipe,
            columns=columns,
            expression=expression,
            total_genes=known.total_genes,
            panel=known.genes,
            min_overlap=min_overlap,
        )

    def predict_cells(
        self,
        cells: Cells,
        conditions: pd.DataFrame,
        *,
        populations: int = 1,
        seed: int = 0,
        device: str = "auto",
        sampling: Mapping[str, Any] | None = None,
        min_overlap: float = 0.9,
        n_cells: int | None = None,
        counts: bool = False,
        track: "Track" = iter,
    ) -> anndata.AnnData:
        """As `predict`, from cells that are read already; `track` wraps the list of minibatches, to show progress."""
        from perturbdiff.prediction.inputs import torch_device, with_sampling
        from perturbdiff.prediction.predict import predict

        checkpoint = self.trained
        return predict(
            checkpoint,
            cells,
            conditions,
            populations=populations,
            seed=seed,
            device=torch_device(device),
            settings=with_sampling(checkpoint.settings, sampling),
            min_overlap=min_overlap,
            n_cells=n_cells,
            integers=counts,
            track=track,
        )

    def summarise(
        self,
        controls: anndata.AnnData,
        *,
        perturbation: str | None = None,
        cell_type: str | None = None,
        assay_batch: str | None = None,
        conditions: pd.DataFrame | None = None,
        populations: int = 100,
        level: float = 0.95,
        threshold: float = 0.5,
        top: int = 50,
        programmes: pd.DataFrame | None = None,
        seed: int = 0,
        device: str = "auto",
        sampling: Mapping[str, Any] | None = None,
        columns: Mapping[str, str | None] | None = None,
        expression: Mapping[str, Any] | None = None,
        min_overlap: float = 0.9,
        n_cells: int | None = None,
    ) -> pd.DataFrame:
        """What populations of each condition do on the mean, gene by gene: changes, intervals, probabilities.

        Args:
            controls: as in `predict`, as is all that is not named here.
            perturbation: label of one condition.
            cell_type: of the condition.
            assay_batch: of the condition.
            conditions: a table of conditions, in place of these.
            populations: how many are drawn of each condition, each as another donor might respond.
            level: of the intervals.
            threshold: of `p_changed`, log1p counts per 10^4.
            top: of `p_top`, so many genes.
            programmes: weights of genes [genes, programmes], by the names of genes, of which means are told as well.
            seed: of all noise.
            device: "auto", "cpu", "cuda".
            sampling: settings in place of the model's.
            columns: of `controls.obs`, in place of those of the training data.
            expression: where and on which scale `controls` holds its expression.
            min_overlap: least share of the panel's genes that `controls` must have.
            n_cells: of each population; intervals are those of a measurement of so many cells.

        Returns:
            A row for each condition and gene or programme, see `families.summary`.

        Raises:
            ValueError: as `predict`; too few populations for the level, or a programme without a gene of the panel.
        """
        from perturbdiff.families.summary import Reading
        from perturbdiff.prediction.conditions import asked_conditions
        from perturbdiff.prediction.inputs import torch_device, with_sampling
        from perturbdiff.prediction.summary import summarise

        one = {"perturbation": perturbation, "cell_type": cell_type, "assay_batch": assay_batch}
        known = self.trained
        return summarise(
            known,
            self.control_cells(controls, columns=columns, expression=expression, min_overlap=min_overlap),
            asked_conditions(known, one, table=conditions),
            populations=populations,
            reading=Reading(level, threshold, top),
            programmes=programmes,
            seed=seed,
            device=torch_device(device),
            settings=with_sampling(known.settings, sampling),
            min_overlap=min_overlap,
            n_cells=n_cells,
        )

    def dose_response(
        self,
        controls: anndata.AnnData,
        perturbation: str,
        doses: Sequence[float],
        *,
        unit: str | None = None,
        cell_type: str | None = None,
        assay_batch: str | None = None,
        modality: str | None = None,
        **options: Any,  # noqa: ANN401 - those of `predict`
    ) -> pd.DataFrame:
        """The predicted response over doses, trained or not; see `prediction.dose_response` for the columns.

        Args:
            controls: as in `predict`, as are all that is not named here (seed, populations, device, sampling).
            perturbation: without its dose.
            doses: above 0, two or more.
            unit: of the doses; that of the training data when absent, where they have one.
            cell_type: of the condition.
            assay_batch: of the condition.
            modality: of the perturbation.
            options: of `predict`.

        Raises:
            ValueError: as `predict`; or a dose is not above 0 or occurs twice.
        """
        from perturbdiff.prediction.dose_response import check_doses, dose_table, falls_sentence

        check_doses(doses)
        options |= {"cell_type": cell_type, "assay_batch": assay_batch, "modality": modality, "dose_unit": unit}
        predicted = [self.predict(controls, perturbation=perturbation, dose=dose, **options) for dose in doses]
        table = dose_table(predicted, doses, unit or str(self.trained.recipe.columns.dose_unit))
        falling = falls_sentence(table, perturbation)
        if falling is not None:
            _LOG.warning(falling)
        return table

    def with_features(self, features: Mapping[str, Features]) -> Self:
        """The trained model with features of more labels, beside those that it has.

        Raises:
            ValueError: it was trained without features of that covariate, or they are of another width.
        """
        tables = tables_of(features, "further features")
        return type(self)(self.recipe, checkpoint=self.trained.with_features(tables))

    def conditions(self) -> pd.DataFrame:
        """What the trained model can be asked, a row a label; see `prediction.coverage`."""
        from perturbdiff.prediction.coverage import coverage

        return coverage(self.trained.conditions)
