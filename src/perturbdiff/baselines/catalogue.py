"""All baselines by name, and fitting them.

    found, notes = fitted(("control", "ridge"), training, genes, conditions=[("STAT1", "T"), ...])
    moved = found["ridge"].predict(control_prediction)      # cells, without those of conditions it can't predict
    found["ridge"].left_out                                 # {("STAT1", "T"): "training has ..."}

A baseline is fitted to training cells and asked for conditions (perturbation, cell type), of which it sees the labels
alone. `control_prediction` are control cells under the labels to predict, see `baselines.control`.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from perturbdiff.baselines.additive import Additive
from perturbdiff.baselines.context import ContextMean, PerturbedMean
from perturbdiff.baselines.kernel import KernelRidge
from perturbdiff.baselines.mean import Shifted
from perturbdiff.baselines.nearest import NearestCellType
from perturbdiff.baselines.predictor import Predictor, Response, Training, predictor
from perturbdiff.baselines.pseudobulk import Vector, pseudobulks
from perturbdiff.baselines.ridge import Ridge
from perturbdiff.baselines.similar import SimilarContexts
from perturbdiff.cells.counts import Totals
from perturbdiff.cells.memory import Cells
from perturbdiff.features.tables import FeatureTable
from perturbdiff.recipes.dataset import PLAIN, Grammar
from perturbdiff.spelling import nearest


class NoResponse(Response):
    """No change under any condition."""

    def shift(self, perturbation: str, cell_type: str, given: Vector) -> Vector:  # noqa: ARG002
        """Zeros [genes]."""
        return np.zeros_like(given)


@dataclass(frozen=True, eq=False)
class Unchanged(Predictor):
    """Control cells as they are."""

    @property
    def moves(self) -> bool:
        """It moves none."""
        return False

    def predict(self, control_prediction: Cells, totals: Totals | None = None) -> Cells:  # noqa: ARG002
        """The same cells."""
        return control_prediction


@dataclass(frozen=True)
class Baseline:
    """A simple predictor.

    Attributes:
        name: in the tables.
        about: what it predicts.
        response: what it expects of conditions, once fitted to training cells; None for control cells, unchanged.
    """

    name: str
    about: str
    response: Callable[[Training], Response] | None = field(default=None, repr=False)

    @property
    def needs_training(self) -> bool:
        """Whether it is fitted to training cells."""
        return self.response is not None

    def fit(
        self,
        training: Cells | None,
        genes: Sequence[str],
        *,
        conditions: Collection[tuple[str, str]],
        grammar: Grammar = PLAIN,
        features: FeatureTable | None = None,
    ) -> Predictor:
        """Fit it to training cells.

        Args:
            training: perturbed and control cells; None for a baseline that needs none.
            genes: to predict.
            conditions: (perturbation, cell type) that are to be predicted, by their labels alone.
            grammar: what labels of perturbation are made of, see `labels.members.grammar_of`.
            features: of the agents of perturbations.

        Raises:
            ValueError: there are no training cells, or none that are perturbed beside control cells of their cell type;
                a gene is not there; a label cannot be read.
        """
        if self.response is None:
            return Unchanged(self.name, tuple(genes), NoResponse())
        if training is None:
            raise ValueError(f"the baseline {self.name!r} is fitted to training cells, and none are given; give some.")
        asked = tuple(dict.fromkeys(str(perturbation) for perturbation, _ in conditions))
        data = Training(pseudobulks(training, genes), training.control, grammar, features, asked)
        return predictor(self.name, self.response(data), data, conditions)


BASELINES = (
    Baseline("control", "control cells, unchanged"),
    Baseline("control + mean shift", "control cells, moved by the mean change that training saw", Shifted),
    Baseline("perturbed mean", "control cells, moved by the mean change of all trained perturbations", PerturbedMean),
    Baseline(
        "context mean",
        "control cells, moved by the mean change of their cell type and the perturbation's departure from it",
        ContextMean,
    ),
    Baseline("additive", "control cells, moved by the sum of what the members of a combination do alone", Additive),
    Baseline(
        "ridge",
        "control cells, moved by ridge regression from embeddings of perturbations to components of genes",
        Ridge,
    ),
    Baseline(
        "kernel ridge",
        "control cells, moved by kernel ridge regression over control pseudobulks and embeddings of perturbations",
        KernelRidge,
    ),
    Baseline("nearest cell type", "control cells, moved by the change of the nearest cell type", NearestCellType),
    Baseline(
        "similar contexts",
        "control cells, moved by the mean change in trained cell types, which counts by similarity",
        SimilarContexts,
    ),
)
"""All baselines, in the order of the tables."""

NAMES = tuple(one.name for one in BASELINES)


def check_names(names: Sequence[str]) -> None:
    """Refuse a name that no baseline has.

    Raises:
        ValueError: there is one; the nearest is named.
    """
    for name in names:
        if name not in NAMES:
            raise ValueError(f"there is no baseline {name!r}; {nearest(name, NAMES)}.")


def fitted(
    names: Sequence[str],
    training: Cells | None,
    genes: Sequence[str],
    *,
    conditions: Collection[tuple[str, str]],
    grammar: Grammar = PLAIN,
    features: FeatureTable | None = None,
) -> tuple[dict[str, Predictor], list[str]]:
    """The baselines of these names that can be fitted, in the order of the tables, and what is to be said of them.

    Those that need training cells are left out without them, and a note names them. The others as in `Baseline.fit`.

    Raises:
        ValueError: there is no baseline of a name; or as in `Baseline.fit`.
    """
    check_names(names)
    chosen = [one for one in BASELINES if one.name in names]
    missing = [one.name for one in chosen if one.needs_training and training is None]
    found = {
        one.name: one.fit(training, genes, conditions=conditions, grammar=grammar, features=features)
        for one in chosen
        if one.name not in missing
    }
    notes = [note for one in found.values() for note in one.notes]
    if missing:
        listed, are, they = ", ".join(map(repr, missing)), "are", "they need"
        if len(missing) == 1:
            are, they = "is", "it needs"
        notes.insert(0, f"{listed} {are} missing: {they} the training cells; give them with --run or --recipe.")
    return found, notes
