"""Every condition's score by a model against that by another method: one panel a metric, above the line or below it."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from perturbdiff.figures.drawing import Drawn
from perturbdiff.figures.looks import Look
from perturbdiff.figures.svg import Panel, limits

TITLED = 250
"""With more conditions than this, marks carry no names."""

_DIAGONAL = Look("grey")


def scatter(
    title: str,
    better: str,
    pairs: Mapping[str, pd.DataFrame],
    against: str,
    shown: Mapping[str, Look],
    *,
    note: str,
    prefix: str,
) -> Drawn:
    """Draw the scores of predicted files by one metric against those of another method.

    Args:
        title: of the metric.
        better: "higher", "lower", or anything else where neither side of the line is better.
        pairs: by file, a row a condition: condition (its name), own, other.
        against: the other method.
        shown: the look of each file.
        note: the line under the panel.
        prefix: of the panel's ids; unique in the page.
    """
    panel = Panel(320, 300, margins=(10, 12, 44, 56))
    both = limits(np.concatenate([one[["own", "other"]].to_numpy().ravel() for one in pairs.values()]), share=0.06)
    panel.view(both, both)
    ends = np.array(both)
    if better in {"higher", "lower"}:
        panel.fill(ends, ends, Look("rule"), to=both[1] if better == "higher" else both[0], opacity=0.35, above=0)
    panel.line(ends, ends, _DIAGONAL, width=1, above=1)
    panel.labels(against, "predicted file" if len(pairs) > 1 else next(iter(pairs)))
    n = max(map(len, pairs.values()))
    for name, one in pairs.items():
        titles = [
            f"{row.condition}: {name} {row.own:.3g}, {against} {row.other:.3g}"
            for row in one.itertuples(index=False)
            if n <= TITLED
        ]
        panel.marks(
            one["other"],
            one["own"],
            shown[name],
            radius=3.6 if n <= 60 else 2.4 if n <= TITLED else 1.6,
            opacity=0.85 if n <= TITLED else 0.6,
            titles=titles,
        )
    label = f"{title} of each condition against {against}: {note}."
    return Drawn(title, panel.write(prefix, label), note)
