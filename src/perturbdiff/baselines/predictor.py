r"""A fitted baseline: control cells, moved by the change that it expects of their condition.

    predicted = max(control cell + shift(tau, c), 0)

in log1p counts per 10^4; or, as counts, the cells that are drawn from the control cells' counts by a change of which
the mean is

    E predicted = max(mean(control cells) + shift(tau, c), 0)

as near as can be (`cells.counts`), so that zeros stay zeros. A baseline is what it says of a condition, a `Response`;
moving cells is the same for all. A condition of which it can say nothing is left out, with the reason.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perturbdiff.baselines.pseudobulk import Pseudobulks, Vector
from perturbdiff.cells.counts import Counts, Curves, Totals, changed, logs, whole
from perturbdiff.cells.memory import Cells
from perturbdiff.features.tables import FeatureTable
from perturbdiff.labels.members import Members, members_of
from perturbdiff.recipes.dataset import Grammar

_SHOWN = 5
"""So many labels are named in a sentence."""

CURVE_CELLS = 256
"""Of so many control cells, at most, it is computed what changes make of the mean."""

_SEED = 0

type Way = Literal["log1p", "counts"]
"""How a shift is given to cells: it is added to log1p values, or cells are drawn as counts."""


class Response(ABC):
    """What a baseline expects of conditions; of everything, and without a remark, unless it says otherwise."""

    @abstractmethod
    def shift(self, perturbation: str, cell_type: str, given: Vector) -> Vector:
        """The change that it expects [genes]; `given` is the mean of the control cells that are to be moved [genes]."""

    def refusal(self, perturbation: str, cell_type: str) -> str:  # noqa: ARG002 - it has an answer to everything
        """Why it can say nothing of a condition, as the end of a sentence; "" where it can."""
        return ""

    def remarks(self, perturbations: Sequence[str]) -> list[str]:  # noqa: ARG002 - nothing is to be said
        """What is to be said of some perturbations, as sentences without the baseline's name."""
        return []


class Training(NamedTuple):
    """What a baseline is fitted to.

    Attributes:
        bulks: means of the training cells.
        control: the control label.
        grammar: what labels of perturbation are made of.
        features: of agents; None where there are none.
        asked: the perturbations that are to be predicted, by their labels alone.
    """

    bulks: Pseudobulks
    control: str | None
    grammar: Grammar
    features: FeatureTable | None
    asked: tuple[str, ...]

    def members(self, label: str) -> Members:
        """The members of a label."""
        return members_of(label, self.grammar, self.control)


@dataclass(frozen=True, eq=False)
class Predictor:
    """A fitted baseline.

    Attributes:
        name: in the tables.
        genes: that it predicts.
        response: what it expects.
        left_out: of the conditions it was fitted for (perturbation, cell type), those that it can't predict, and why.
        notes: what is to be said of it, as sentences.
        way: how it moves cells.
    """

    name: str
    genes: tuple[str, ...]
    response: Response
    left_out: Mapping[tuple[str, str], str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    way: Way = "log1p"

    @property
    def moves(self) -> bool:
        """Whether it moves cells, so that the way matters."""
        return True

    def predict(self, control_prediction: Cells, totals: Totals | None = None) -> Cells:
        """Move each cell by the shift of its labels; float32, dense, log1p counts per 10^4.

        Added to log1p values, and clipped at 0; or, as counts, drawn: the draws belong to the condition and to the
        order of its cells, whatever else is predicted. A shift of 0 leaves cells as they are, either way. A condition
        with a cell whose total count is not known is moved on log1p values.

        Cells of conditions that it can't predict are left out of the result.

        Args:
            control_prediction: control cells under the labels to predict.
            totals: their total counts [n], NaN where unknown, if their genes are a part of those that were measured;
                None where they tell it themselves.

        Raises:
            ValueError: a gene is not there.
        """
        if totals is None and self.way == "counts":
            totals = control_prediction.known_totals
        values = control_prediction.log_expression(self.genes).toarray()
        kept = np.ones(control_prediction.n_cells, dtype=np.bool_)
        groups: Any = control_prediction.labels.groupby(["perturbation", "cell_type"], observed=True).indices
        for (perturbation, cell_type), rows in groups.items():
            if self.response.refusal(str(perturbation), str(cell_type)):
                kept[rows] = False
                continue
            given = values[rows]
            shift = self.response.shift(str(perturbation), str(cell_type), given.mean(axis=0, dtype=np.float64))
            if not shift.any():
                continue
            own = None if totals is None or self.way == "log1p" else totals[rows]
            if own is None or np.isnan(own).any():
                values[rows] = np.maximum(given + shift.astype(np.float32), 0.0)
                continue
            counts = whole(given, own)
            labels = (str(perturbation), str(cell_type))
            change = _curves(control_prediction, (self.genes, *labels), counts, own).realised(shift)
            values[rows] = logs(*changed(counts, own, change, _draws(labels)))
        genes = pd.Index(self.genes)
        moved = replace(control_prediction, values=values, scale="log1p", total_counts=None, genes=genes)
        return moved if kept.all() else moved.take(kept)


_CURVES: "WeakKeyDictionary[Cells, tuple[Any, Totals, Curves]]" = WeakKeyDictionary()


def _curves(cells: Cells, key: Any, counts: Counts, totals: Totals) -> Curves:  # noqa: ANN401 - anything that compares
    """The curves of a condition's cells; those of a population's last condition are held, for the next baseline."""
    held = _CURVES.get(cells)
    if held is not None and held[0] == key and np.array_equal(held[1], totals):
        return held[2]
    made = Curves.of_some(counts, totals, CURVE_CELLS)
    _CURVES[cells] = key, totals, made
    return made


def _draws(labels: tuple[str, str]) -> np.random.Generator:
    """The draws of a condition: a function of its labels alone."""
    digest = hashlib.sha256("\0".join(labels).encode()).digest()
    words: NDArray[np.uint32] = np.frombuffer(digest, dtype="<u4")
    return np.random.default_rng([_SEED, *map(int, words)])


def predictor(name: str, response: Response, training: Training, conditions: Collection[tuple[str, str]]) -> Predictor:
    """A baseline with what is to be said of it, if these conditions are to be predicted."""
    left_out = {}
    for perturbation, cell_type in dict.fromkeys((str(one), str(other)) for one, other in conditions):
        reason = response.refusal(perturbation, cell_type)
        if reason:
            left_out[perturbation, cell_type] = reason
    notes = [f"{name!r}: {remark}" for remark in response.remarks(training.asked)]
    if left_out:
        reasons = list(dict.fromkeys(left_out.values()))
        more = f"; and {len(reasons) - 2} more reasons" if len(reasons) > 2 else ""
        notes.append(
            f"{name!r} leaves out {len(left_out)} of {len(set(conditions))} conditions: {'; '.join(reasons[:2])}{more}."
        )
    if training.bulks.left_out:
        groups = f"{training.bulks.left_out} training groups"
        notes.append(f"{name!r}: {groups} without control cells of their cell type are left out.")
    return Predictor(name, training.bulks.genes, response, left_out, tuple(notes))


def unseen_remark(unseen: Sequence[str], perturbations: Sequence[str], why: str, instead: str) -> list[str]:
    """The sentence on perturbations that are predicted by something more general; none where there are none."""
    if not unseen:
        return []
    return [f"{len(unseen)} of {len(perturbations)} perturbations {why} ({named(unseen)}) and take {instead}."]


def named(labels: Sequence[str]) -> str:
    """Up to five labels, for a sentence."""
    return ", ".join(map(repr, labels[:_SHOWN])) + (" and others" if len(labels) > _SHOWN else "")
