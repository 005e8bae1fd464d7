"""Baselines either way: added to log1p values, and drawn as counts; the nearer one stands for the baseline.

A baseline says what the mean of a condition does. What its cells then are is another question, and the tables answer
it by the observed cells: every baseline that moves control cells is judged both ways, and the way with the smaller mean
energy distance over the judged conditions stands under its name. Counts need the totals of the control cells.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from perturbdiff.baselines.predictor import Predictor
from perturbdiff.evaluation.pairs import Pairs
from perturbdiff.evaluation.scores import Judged

CRITERION = "energy_distance"


def as_counts(name: str) -> str:
    """The name of a baseline that is drawn as counts, until the way is chosen."""
    return f"{name}, drawn as counts"


def offered(baselines: Mapping[str, Predictor], pairs: Pairs) -> tuple[dict[str, Predictor], list[str]]:
    """The baselines in all ways that there are, and a sentence where there is one only."""
    moving = {name: one for name, one in baselines.items() if one.moves}
    if not moving:
        return dict(baselines), []
    totals = np.concatenate([pairs.control_totals(context) for context in pairs.contexts])
    unknown = int(np.isnan(totals).sum())
    if unknown:
        which = f"the total counts of {unknown} of {len(totals)} control cells are not known"
        return dict(baselines), [f"Baselines move cells on log1p values only, since {which}."]
    drawn = {as_counts(name): replace(one, way="counts") for name, one in moving.items()}
    return {**baselines, **drawn}, []


def chosen(
    judged: Sequence[Judged], baselines: Mapping[str, Predictor]
) -> tuple[list[Judged], dict[str, Predictor], list[str]]:
    """The judged conditions and the baselines in the nearer way, and a sentence on the ways.

    Args:
        judged: conditions of which the baselines were judged in all ways.
        baselines: as `offered` gives them.
    """
    both = [name for name in baselines if as_counts(name) in baselines]
    counts = [name for name in both if _distance(judged, as_counts(name)) < _distance(judged, name)]
    left = {name if name in counts else as_counts(name) for name in both}
    names = {as_counts(name): name for name in counts}
    kept = [names.get(name, name) for name in baselines if name not in left]
    ways = {name: baselines[as_counts(name) if name in counts else name] for name in baselines if name in kept}
    return [_renamed(one, left, names) for one in judged], ways, _said(both, counts)


def _distance(judged: Sequence[Judged], method: str) -> float:
    """The mean energy distance over the conditions that a method predicts; infinite where there is none."""
    known = [one.scores[method][CRITERION] for one in judged]
    defined = [value for value in known if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("inf")


def _renamed(judged: Judged, left: set[str], names: Mapping[str, str]) -> Judged:
    """Without the ways that are left, and with the usual names of the others."""

    def usual[Value](found: Mapping[str, Value]) -> dict[str, Value]:
        return {names.get(name, name): value for name, value in found.items() if name not in left}

    return replace(
        judged,
        scores=usual(judged.scores),
        all_genes=usual(judged.all_genes),
        centres=usual(judged.centres),
        total=usual(judged.total),
    )


def _said(both: Sequence[str], counts: Sequence[str]) -> list[str]:
    """Which baselines are which way."""
    added = [name for name in both if name not in counts]
    parts = [
        f"{', '.join(names)}: {how}"
        for names, how in ((counts, "drawn as counts"), (added, "added to log1p values"))
        if names
    ]
    return [f"{'; '.join(parts)}; whichever is nearer to the observed cells on the mean."] if parts else []
