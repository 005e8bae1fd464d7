"""The methods that are judged: predicted files, and baselines that predict from the same control cells.

A baseline moves the control cells of a condition's context, from which every change is measured (the *control
prediction*: as many cells, of the same assay batches, as the first predicted file has). It is fitted to the training
cells once, and predicts a condition at a time; the total counts of control cells go with them, since the judged genes
are a part of all.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, cast

import numpy as np

from perturbdiff.baselines import catalogue
from perturbdiff.baselines.control import GROUP, drawn_rows, groups_of, under_labels
from perturbdiff.baselines.predictor import Predictor
from perturbdiff.cells.counts import Totals
from perturbdiff.cells.memory import Cells
from perturbdiff.evaluation.pairs import File, Pairs
from perturbdiff.features.tables import FeatureTable
from perturbdiff.metrics.conditions import Condition
from perturbdiff.metrics.ours import Population
from perturbdiff.recipes.dataset import PLAIN, Grammar
from perturbdiff.results.evaluation import CONTROL

BASELINES = {one.name: one for one in catalogue.BASELINES}
"""All baselines by name, in the order of the tables."""


def fitted(
    names: Sequence[str],
    training: Cells | None,
    pairs: Pairs,
    *,
    grammar: Grammar = PLAIN,
    features: FeatureTable | None = None,
) -> tuple[dict[str, Predictor], list[str]]:
    """The baselines that can be made, and what is to be said of them; "control" is always among them.

    Raises:
        ValueError: there is no baseline of a name; the training cells lack judged genes.
    """
    if training is not None:
        _check_genes(training, pairs)
    return catalogue.fitted(
        (CONTROL, *names),
        training,
        pairs.genes,
        conditions=list(dict.fromkeys(condition.pair for condition in pairs.conditions)),
        grammar=grammar,
        features=features,
    )


def _check_genes(training: Cells, pairs: Pairs) -> None:
    absent = [gene for gene in pairs.genes if gene not in training.genes]
    if absent:
        raise ValueError(
            f"the training cells lack {len(absent)} of the {len(pairs.genes)} judged genes (such as {absent[0]!r}); "
            "give the cells that the model was trained on."
        )


class Start(NamedTuple):
    """The control cells of a condition, under its labels, and their total counts [n]; NaN where unknown."""

    cells: Cells
    totals: Totals


@dataclass(frozen=True)
class Methods:
    """Predicted files and baselines, each a function from a condition to its cells."""

    files: Mapping[str, Callable[[Condition], Population]]
    baselines: Mapping[str, Predictor]
    unchanged: Callable[[Condition], Start]
    sizes: Mapping[Condition, int]
    genes: tuple[str, ...]

    @classmethod
    def of(
        cls, predicted: Mapping[str, File], pairs: Pairs, baselines: Mapping[str, Predictor], seed: int
    ) -> "Methods":
        """The methods of an evaluation; the baselines have as many cells of a condition as the first predicted file."""
        groups = groups_of(cast("Cells", next(iter(predicted.values()))))
        labels = zip(*(groups[name].astype(str) for name in GROUP), strict=True)
        places: dict[Condition, list[int]] = {}
        for row, key in enumerate(labels):
            places.setdefault(pairs.pooling.of(*key), []).append(row)
        place = {condition: index for index, condition in enumerate(pairs.conditions)}
        of_condition = {condition: groups.iloc[places[condition]].reset_index(drop=True) for condition in place}
        control_cells = lru_cache(maxsize=2)(pairs.control_cells)

        @lru_cache(maxsize=8)
        def unchanged(condition: Condition) -> Start:
            rng = np.random.default_rng([seed, 0, place[condition]])
            controls, groups = control_cells(condition.context), of_condition[condition]
            rows = drawn_rows(groups, controls, rng)
            cells = under_labels(groups, controls, rows, genes=pairs.genes, control=str(controls.control))
            return Start(cells, pairs.control_totals(condition.context)[rows])

        return cls(
            {name: pairs.populations_of(file) for name, file in predicted.items()},
            baselines,
            unchanged,
            {condition: int(own["cells"].sum()) for condition, own in of_condition.items()},
            pairs.genes,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The files, then the baselines."""
        return (*self.files, *self.baselines)

    def has(self, method: str, condition: Condition) -> bool:
        """Whether a method predicts a condition: a file does, a baseline may have nothing to say of it."""
        return method in self.files or condition.pair not in self.baselines[method].left_out

    def n_cells(self, condition: Condition) -> int:
        """How many cells a method has of a condition."""
        return self.sizes[condition]

    def __call__(self, method: str, condition: Condition) -> Population:
        """The cells of a method under a condition that it has."""
        if method in self.files:
            return self.files[method](condition)
        moved = self.baselines[method].predict(*self.unchanged(condition))
        return Population(moved.log_expression(self.genes).toarray(), moved.origins)
