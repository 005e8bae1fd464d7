"""Predictions beside baselines and a ceiling, on the same conditions, genes and control cells.

The methods of the tables: each predicted file under its name; "control" (control cells, unchanged); "control +
mean shift" (moved by the mean change that training saw); "ceiling" (one half of the observed cells against the
disjoint other half).
"""

import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from perturbdiff.baselines.control import groups_of, predict_control
from perturbdiff.baselines.mean import MeanShift, mean_shift
from perturbdiff.data.cells import Cells
from perturbdiff.data.export import whole_file
from perturbdiff.evaluation.ceilings import HALVINGS, ceiling
from perturbdiff.evaluation.metrics import METRICS, judge
from perturbdiff.evaluation.pairs import Condition, Pairs, align, has_controls
from perturbdiff.evaluation.tables import long_table, overall_table, undefined_notes, wide_table

CONTROL, MEAN_SHIFT, CEILING = "control", "control + mean shift", "ceiling"
"""The names of the methods beside the predicted files."""


@dataclass(frozen=True)
class Comparison:
    """The tables of a comparison.

    Attributes:
        table: one row per method, condition and metric: method, perturbation, cell_type, metric, value.
        overall: means over conditions: method, metric, value, conditions, undefined (how many of them are NaN).
        notes: what was left out, undefined or missing, as sentences.
    """

    table: pd.DataFrame
    overall: pd.DataFrame
    notes: tuple[str, ...]

    def summary(self) -> pd.DataFrame:
        """The overall table as it is read: a row per method, a column per metric."""
        return wide_table(self.overall)

    def save(self, folder: Path) -> None:
        """Write metrics.csv, overall.csv and metrics.json (all of it; NaN is null), each file whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "metrics.csv", self.table.to_csv(index=False, na_rep="nan"))
        _write(folder / "overall.csv", self.overall.to_csv(index=False, na_rep="nan"))
        content = {
            "legend": {metric.name: {"better": metric.better, "meaning": metric.meaning} for metric in METRICS},
            "notes": list(self.notes),
            "overall": _records(self.overall),
            "conditions": _records(self.table),
        }
        _write(folder / "metrics.json", json.dumps(content, indent=1, allow_nan=False) + "\n")


def compare(
    predicted: Mapping[str, Cells],
    observed: Cells,
    *,
    training: Cells | None,
    seed: int,
    conditions: Collection[tuple[str, str]] | None = None,
    halvings: int = HALVINGS,
) -> Comparison:
    """Judge predicted files, the baselines and the ceiling against the observed cells.

    Args:
        predicted: files of predicted cells by name; the first one's control cells are those of the baselines.
        observed: the observed cells; changes are measured from its control cells, else from a predicted file's.
        training: the training cells, perturbed and control; None leaves the mean shift out, and a note says so.
        seed: draws the baselines' control cells and the ceiling's halves.
        conditions: (perturbation, cell type) pairs to judge; None for all predicted ones.
        halvings: how many random halvings the ceiling averages.

    Raises:
        ValueError: the files cannot be compared (see `evaluation.pairs.align`), or a name is that of a
        baseline.
    """
    for name in predicted:
        if name in {CONTROL, MEAN_SHIFT, CEILING}:
            raise ValueError(
                f"a predicted file is named {name!r}, which is the name of a method here; name it otherwise."
            )
    pairs = align(predicted, observed, conditions=conditions)
    baselines, notes = _baselines(predicted, pairs, training, np.random.default_rng([seed, 0]))
    files = {**predicted, **baselines}
    methods = [*predicted, CONTROL, MEAN_SHIFT, CEILING]
    scores = sorted(_scores(files, pairs, methods, seed, halvings), key=lambda score: methods.index(score[0]))
    table = long_table(scores)
    overall = overall_table(table)
    undefined = undefined_notes(overall[overall["method"].isin([*files, CEILING])])
    return Comparison(table, overall, (*pairs.notes, *notes, *undefined))


def _scores(
    files: Mapping[str, Cells], pairs: Pairs, methods: list[str], seed: int, halvings: int
) -> Iterator[tuple[str, Condition, dict[str, float]]]:
    """The metrics of every method on every condition; NaN for a method without a file."""
    populations = {name: pairs.populations_of(cells) for name, cells in files.items()}
    missing = {metric.name: math.nan for metric in METRICS}
    for index, (condition, reference) in enumerate(pairs.references()):
        rng = np.random.default_rng([seed, 1, index])
        for name in methods:
            if name == CEILING:
                yield name, condition, ceiling(reference, rng, halvings=halvings)
            elif name in populations:
                yield name, condition, judge(populations[name](condition), reference)
            else:
                yield name, condition, missing


def _baselines(
    predicted: Mapping[str, Cells], pairs: Pairs, training: Cells | None, rng: np.random.Generator
) -> tuple[dict[str, Cells], list[str]]:
    """The predictions of the baselines that can be made, and what is to be said of them."""
    first = next(iter(predicted.values()))
    controls = first if has_controls(first) else pairs.controls
    groups = groups_of(first)
    judged = [
        Condition(*key) in pairs.conditions for key in zip(groups["perturbation"], groups["cell_type"], strict=True)
    ]
    groups = groups[judged].reset_index(drop=True)
    unchanged = predict_control(groups, controls, genes=pairs.genes, control=str(controls.control), rng=rng)
    if training is None:
        missing = f"{MEAN_SHIFT!r} is missing: it needs the training cells; give them with --run or --recipe."
        return {CONTROL: unchanged}, [missing]
    shift, notes = _shift(training, pairs)
    return {CONTROL: unchanged, MEAN_SHIFT: shift.predict(unchanged)}, notes


def _shift(training: Cells, pairs: Pairs) -> tuple[MeanShift, list[str]]:
    """The mean shift of the training cells over the judged genes, and what is to be said of it."""
    absent = [gene for gene in pairs.genes if gene not in training.genes]
    if absent:
        raise ValueError(
            f"the training cells lack {len(absent)} of the {len(pairs.genes)} judged genes (such as {absent[0]!r}); "
            "give the cells that the model was trained on."
        )
    shift = mean_shift(training, pairs.genes)
    notes = []
    judged = list(dict.fromkeys(condition.perturbation for condition in pairs.conditions))
    unseen = shift.unseen(judged)
    if unseen:
        named = ", ".join(repr(label) for label in unseen[:5]) + (" and others" if len(unseen) > 5 else "")
        notes.append(
            f"{MEAN_SHIFT!r}: {len(unseen)} of {len(judged)} perturbations were not in training ({named}) and take "
            f"the mean shift over all {len(shift.shifts)} trained perturbations."
        )
    if shift.left_out:
        notes.append(
            f"{MEAN_SHIFT!r}: {shift.left_out} training groups without control cells of their cell type are left out."
        )
    return shift, notes


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table for JSON, NaN as None."""
    return [
        {str(key): None if isinstance(value, float) and math.isnan(value) else value for key, value in record.items()}
        for record in table.to_dict("records")
    ]


def _write(path: Path, text: str) -> None:
    """Write a text, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
