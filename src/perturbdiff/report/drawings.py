"""The figures of a page: what each is given of an evaluation, or the sentence that says why it is not there."""

import numpy as np
import pandas as pd

from perturbdiff.families.scores import STRENGTHS
from perturbdiff.figures.curve import curves
from perturbdiff.figures.density import densities
from perturbdiff.figures.drawing import Drawing, mark_key
from perturbdiff.figures.fan import MOST_ROWS, Fan, fans
from perturbdiff.figures.looks import CEILING, REFERENCE, looks
from perturbdiff.figures.numbers import condition_name
from perturbdiff.figures.projection import COMPONENTS, UMAP, projection
from perturbdiff.figures.radar import radar
from perturbdiff.figures.scatter import scatter
from perturbdiff.figures.strip_plot import MOST, Strip, strip_plot
from perturbdiff.metrics.conditions import LABELS
from perturbdiff.metrics.tables import FAMILIES
from perturbdiff.report.ranking import Comparer, directed, score_by
from perturbdiff.results.evaluation import LAST, Evaluation, Metric
from perturbdiff.results.parts import OBSERVED, SIGNIFICANT

MOST_PANELS = 6
"""So many metrics are drawn condition by condition."""


def names_of(evaluation: Evaluation, *kinds: str) -> list[str]:
    """The names of the methods of these kinds."""
    return [method.name for method in evaluation.of_kind(*kinds)]


def absent(evaluation: Evaluation, part: str) -> str:
    """Why a part of the evaluation is not shown."""
    return evaluation.missing.get(part, f"The evaluation has no {part}.")


def radar_of(evaluation: Evaluation) -> Drawing | str:
    """The paper's metrics, scaled, of each predicted file."""
    paper = evaluation.of_suite("paper")
    if not paper:
        return absent(evaluation, "paper")
    files = names_of(evaluation, "predicted")
    scaled = {name: [score_by(evaluation, metric, name).scaled for metric in paper] for name in files}
    titles = [metric.title for metric in paper]
    return radar(pd.DataFrame(scaled, index=titles), evaluation.baseline, evaluation.ceiling)


def scatter_metrics(evaluation: Evaluation) -> list[Metric]:
    """The headline metrics and the paper's AUROC, no more than there are panels."""
    auroc = [metric for metric in evaluation.of_suite("paper") if metric.name == "AUROC"]
    wanted = dict.fromkeys([*evaluation.headline, *auroc])
    return [metric for metric in wanted if directed(metric) and metric.name != LAST][:MOST_PANELS]


def scatter_of(evaluation: Evaluation, comparer: Comparer, against: str | None) -> Drawing | str:
    """All predicted files against one method, condition by condition."""
    if against is None:
        return "There is no method to compare with condition by condition: the evaluation has no baseline."
    shown = looks(name for name in names_of(evaluation, "predicted") if name != against)
    panels = []
    for number, metric in enumerate(scatter_metrics(evaluation)):
        pairs = {name: comparer.differences(metric, name, against) for name in shown}
        found = {name: one for name, one in pairs.items() if one is not None}
        if found:
            note = "; ".join(f"{name} wins {100 * one.win_rate:.0f} % of {one.n}" for name, one in found.items())
            tables = {
                name: pd.DataFrame(
                    {"condition": map(condition_name, one.conditions), "own": one.model, "other": one.other}
                )
                for name, one in found.items()
            }
            drawn = scatter(metric.title, metric.better, tables, against, shown, note=note, prefix=f"scatter{number}")
            panels.append(drawn)
    if not panels:
        return f"No headline metric has values by condition for both a predicted file and {against}."
    caption = (
        f"A mark is a condition: across, its score by {against}; up, by a predicted file. On the line both are equal; "
        "on the shaded side the predicted file is better.",
    )
    return Drawing(tuple(panels), tuple(mark_key(look, name) for name, look in shown.items()), caption)


def distances_of(evaluation: Evaluation) -> Drawing | str:
    """Energy distance and MMD of all methods, as strips."""
    files = looks(names_of(evaluation, "predicted"))
    by_kind = {"baseline": REFERENCE, "ceiling": CEILING}
    panels = []
    metrics = [one for one in evaluation.of_suite("ours") if "energy" in one.name or "mmd" in one.name.lower()]
    for number, metric in enumerate(metrics[:2]):
        table = evaluation.scores
        table = table[(table["suite"] == metric.suite) & (table["metric"] == metric.name)]
        rows = []
        for method in evaluation.methods:
            score = score_by(evaluation, metric, method.name)
            if np.isfinite(score.value):
                values = table.loc[table["method"] == method.name, "value"].to_numpy()
                look = files.get(method.name, by_kind.get(method.kind, REFERENCE))
                rows.append(Strip(method.name, look, values, score.value, score.low, score.high))
        if rows:
            panels.append(strip_plot(metric.title, rows, note=metric.meaning, prefix=f"strips{number}"))
    if not panels:
        return "No distance between populations has a value in this evaluation."
    caption = [
        "A faint mark is a condition, the large one their mean with its 95 % interval. The ceiling is what half of the "
        "observed cells reach against the other half."
    ]
    if len(evaluation.conditions) > MOST:
        caption.append(f"Strips show {MOST} of {len(evaluation.conditions)} conditions, evenly taken by value.")
    keys = [mark_key(look, name) for name, look in files.items()]
    keys += [mark_key(look, f"{kind}s") for kind, look in by_kind.items() if evaluation.of_kind(kind)]
    return Drawing(tuple(panels), tuple(keys), tuple(caption), size="medium")


def families_of(evaluation: Evaluation) -> Drawing | str:
    """The strengths that several populations were drawn with, and the observed ones."""
    table = evaluation.scores[(evaluation.scores["suite"] == FAMILIES) & (evaluation.scores["perturbation"] != "")]
    if table.empty:
        return "No predicted file holds several populations of a condition, or families were not asked for."
    panels, shown = [], looks(names_of(evaluation, "predicted"))
    for number, (name, look) in enumerate(shown.items()):
        own, wanted = table[table["method"] == name], [*STRENGTHS, "strength_observed"]
        wide = own.pivot_table(index=list(LABELS), columns="metric", values="value", sort=False).reset_index()
        if wide.empty:
            continue
        names = [condition_name(key) for key in wide[list(LABELS)].itertuples(index=False, name=None)]
        rows = [Fan(one, *numbers) for one, numbers in zip(names, wide[wanted].to_numpy().tolist(), strict=True)]
        some = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MOST_ROWS)).astype(int))]
        inside = sum(row.low <= row.observed <= row.high for row in rows)
        note = f"{inside} of {len(rows)} observed conditions lie within their 95 % interval."
        panels.append(fans(name, some, look, note=note, prefix=f"fan{number}"))
    caption = (
        "Bars are intervals of 50 % and 95 % over the drawn populations, a full mark their median, a hollow one the "
        "observed cells; 1 is the mean response of the donors that trained or, without these, of those here.",
    )
    keys = [mark_key(look, name) for name, look in shown.items()]
    return Drawing(tuple(panels), (*keys, mark_key(CEILING, "observed")), caption, size="medium")


def densities_of(evaluation: Evaluation) -> Drawing | str:
    """The evidence that each predicted file gives of truly DE genes, and of the others."""
    genes = evaluation.genes
    if genes is None:
        return absent(evaluation, "genes")
    predicted = {side: genes.evidence[side] for side in genes.predicted}
    return densities(genes.evidence[OBSERVED], predicted, SIGNIFICANT)


def projection_of(evaluation: Evaluation) -> Drawing | str:
    """All cells on two principal components."""
    cells = evaluation.projection
    if cells is None:
        return absent(evaluation, "cells")
    files, (_, axes) = names_of(evaluation, "predicted"), cells.components
    return projection(cells.on(cells.components), files, axes, caption=COMPONENTS, prefix="projection")


def umap_of(evaluation: Evaluation) -> Drawing | str:
    """The same by UMAP."""
    cells = evaluation.projection
    if cells is None or cells.umap is None:
        return "No cells were placed by UMAP; evaluate --umap places some."
    files = names_of(evaluation, "predicted")
    return projection(cells.on(cells.umap), files, cells.umap.axes, caption=UMAP, prefix="umap")


def curves_of(evaluation: Evaluation) -> Drawing | str:
    """The training curve of the run."""
    history = evaluation.history
    if history is None:
        return absent(evaluation, "history")
    if "step" not in history.columns:
        return "The history of the training run names no steps."
    return curves(history)
