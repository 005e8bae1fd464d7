"""Which cells an evaluation judges, and how much it computes."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from perturbdiff.evaluation.cache import Cache
from perturbdiff.evaluation.scores import Track
from perturbdiff.metrics.ceilings import HALVINGS
from perturbdiff.metrics.conditions import APART, Pooling
from perturbdiff.metrics.intervals import RESAMPLES
from perturbdiff.metrics.tables import OURS
from perturbdiff.results.evaluation import CONTROL, MEAN_SHIFT

SIMPLE = (CONTROL, MEAN_SHIFT)
"""The baselines of a quick evaluation."""


@dataclass(frozen=True)
class Scope:
    """Which cells are judged.

    Attributes:
        pooling: which conditions are judged over all assay batches together.
        apart: observed cells that take no part [n], such as those that trained; None where all may.
        predicted_controls: whether control cells come from a predicted file in place of the observed one.
        unit: what the intervals draw where there are several: perturbations, assay batches or cell types.
    """

    pooling: Pooling = APART
    apart: NDArray[np.bool_] | None = None
    predicted_controls: bool = False
    unit: str = "perturbation"


EVERYTHING = Scope()
"""All cells, every assay batch by itself."""


@dataclass(frozen=True)
class Depth:
    """How much is computed.

    Attributes:
        suites: of metrics: "ours", "paper", "vcc2026", "families".
        forced: suites that also judge contexts of very many cells.
        baselines: by name; those that need training cells are left out without them.
        halvings: how many random halvings the ceiling averages.
        replicates: whether assay batches are held against each other.
        projection: whether cells are placed on principal components.
        umap: whether some of them are placed by UMAP too.
        resamples: draws of perturbations for the intervals.
        jobs: conditions judged side by side; the numbers are the same for any.
        cache: of the tests of the observed cells.
        track: draws progress.
    """

    suites: Sequence[str] = (OURS,)
    forced: Sequence[str] = ()
    baselines: Sequence[str] = SIMPLE
    halvings: int = HALVINGS
    replicates: bool = False
    projection: bool = False
    umap: bool = False
    resamples: int = RESAMPLES
    jobs: int = 1
    cache: Cache | None = None
    track: Track = field(default=iter)
