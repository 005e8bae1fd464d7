"""Suites of metrics that other libraries compute: what they are given, and what becomes of their numbers.

A suite judges a whole context at once, the control cells and all conditions of one cell type (and assay batch), as
AnnData of log1p counts per 10^4 with the same real control cells on both sides. Our ceiling is made for it too: the
first halves of the observed cells stand for the prediction, the second halves for the truth. A context that is too
large to be held in memory several times is left out, and a note says so, unless the suite was asked for by name. A
method that does not predict every condition of a context is judged on those that it predicts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from perturbdiff.evaluation.pairs import Condition, Context, Pairs
from perturbdiff.evaluation.scores import CEILING, Predictions, Scores
from perturbdiff.metrics.ceilings import halves
from perturbdiff.metrics.ours import CONTEXT_METRICS, METRICS
from perturbdiff.metrics.tables import OURS

PAPER, VCC = "paper", "vcc2026"

VALUES = 1 << 26
"""A context of more values (cells times genes) is left out of a suite that was not asked for by name."""

PERTURBATION = "perturbation"
"""The column of obs that has the labels."""

_PLACES = {
    PAPER: ("perturbdiff.metrics.cell_eval", "cell_eval", "PAPER"),
    VCC: ("perturbdiff.metrics.vcc", "cell_eval2", "VCC"),
}
"""Of each suite the module, the library, and what names in the module begin with."""

SUITES = (OURS, *_PLACES)
"""All suites, by name."""

PACKAGES = ("perturbdiff", "cell-eval", "cell-eval2", "pdex", "numpy", "scipy", "anndata", "umap-learn")
"""What numbers depend on."""

type Legend = dict[str, dict[str, str]]
type Sparse = Any
"""A CSR matrix of float32."""


@dataclass(frozen=True)
class Suite:
    """A suite of another library.

    Attributes:
        name: in the tables.
        metrics: what each metric means; objects with name, better, meaning, range.
        side: makes what the suite judges, of an AnnData, a control label and a test of differential expression or None.
        test: the differential expression of a side.
        judge: of a predicted and an observed side, the metrics by perturbation; those of a context under "".
        settings: that the library is run with.
    """

    name: str
    metrics: Sequence[Any]
    side: Callable[..., Any]
    test: Callable[..., Any]
    judge: Callable[..., Mapping[str, Mapping[str, float]]]
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, name: str) -> "Suite":
        """The suite of a name.

        Raises:
            ValueError: there is no such suite, or its library is not installed.
        """
        check_suites([name])
        place, library, prefix = _PLACES[name]
        if not is_installed(name):
            raise ValueError(f"the suite {name!r} needs the package {library!r}, which is not installed; leave it out.")
        module: Any = import_module(place)
        judge = getattr(module, f"{prefix.lower()}_metrics")
        metrics, settings = getattr(module, f"{prefix}_METRICS"), getattr(module, f"{prefix}_SETTINGS")
        return cls(name, metrics, module.Side, module.differential_expression, judge, settings)


def is_installed(name: str) -> bool:
    """Whether the library of a suite is there."""
    return name == OURS or find_spec(_PLACES[name][1]) is not None


def check_suites(names: Sequence[str]) -> None:
    """Refuse a suite that there is not.

    Raises:
        ValueError: naming it.
    """
    for name in names:
        if name not in SUITES:
            raise ValueError(f"there is no suite {name!r}; choose of {', '.join(SUITES)}.")


def judge_by(
    suite: Suite,
    pairs: Pairs,
    predictions: Predictions,
    *,
    seed: int,
    threads: int,
    tests: Callable[[str, Callable[[], Any]], Any],
) -> Iterator[tuple[str, Condition, Scores]]:
    """The scores of every method and of the ceiling by a suite.

    Args:
        suite: the suite.
        pairs: conditions, genes and control cells.
        predictions: the methods.
        seed: of the halves.
        threads: how many the suite may use.
        tests: keeps the observed side's test of differential expression, by a name of its context.
    """
    names = [metric.name for metric in suite.metrics]
    for number, (where, conditions) in enumerate(pairs.contexts.items()):
        label = str(pairs.controls.control)
        control = pairs.control_cells(where).log_expression(pairs.genes)

        def side(cells: Mapping[Condition, Sparse], control: Sparse = control, label: str = label) -> Any:  # noqa: ANN401
            return suite.side(context(cells, control, pairs.genes, label), label, None)

        untested = side({one: sp.csr_matrix(pairs.observed_cells(one).cells) for one in conditions})
        known = tests(f"{suite.name}-{number}", partial(suite.test, untested, threads=threads))
        observed = suite.side(untested.adata, label, known)
        for method in predictions.names:
            own = [one for one in conditions if predictions.has(method, one)]
            found: Mapping[str, Mapping[str, float]] = {}
            if own:
                truth = observed if len(own) == len(conditions) else _some(suite, observed, own)
                predicted = side({one: sp.csr_matrix(predictions(method, one).cells) for one in own})
                found = suite.judge(predicted, truth, threads=threads)
            yield from _rows(method, where, conditions, names, found)
        first, second = _halved(pairs, conditions, seed)
        found = suite.judge(side(first), side(second), threads=threads) if first else {}
        yield from _rows(CEILING, where, conditions, names, found)


def _some(suite: Suite, observed: Any, conditions: Sequence[Condition]) -> Any:  # noqa: ANN401 - a side of the suite
    """The observed side with some of its conditions only, and the tests of these."""
    labels = [one.perturbation for one in conditions]
    kept = observed.adata.obs[PERTURBATION].isin([observed.control, *labels]).to_numpy()
    table = observed.de.filter(observed.de["target"].is_in(labels))
    return suite.side(observed.adata[kept].copy(), observed.control, table)


def too_large(pairs: Pairs, cells_of: Callable[[Condition], int]) -> list[Context]:
    """The contexts whose cells are too many for a suite that was not asked for by name."""
    large = []
    for where, conditions in pairs.contexts.items():
        cells = sum(max(cells_of(one), pairs.observed_rows[one].size) for one in conditions)
        if (cells + pairs.n_controls(where)) * len(pairs.genes) > VALUES:
            large.append(where)
    return large


def context(cells: Mapping[Condition, Sparse], control: Sparse, genes: Sequence[str], label: str) -> anndata.AnnData:
    """The control cells, then the cells of each condition, as AnnData with the labels in `PERTURBATION`."""
    parts = [control, *cells.values()]
    labels = np.repeat([label, *(one.perturbation for one in cells)], [part.shape[0] for part in parts])
    values: Any = sp.vstack(parts, format="csr", dtype=np.float32)
    obs = pd.DataFrame({PERTURBATION: pd.Categorical(labels)}, index=[f"cell-{i}" for i in range(len(labels))])
    return anndata.AnnData(X=values, obs=obs, var=pd.DataFrame(index=pd.Index(genes, dtype=str)))


def legend(names: Sequence[str]) -> dict[str, Legend]:
    """What each metric of each suite means, which direction is better, and its range."""
    metrics: dict[str, Sequence[Any]] = {OURS: (*METRICS, *CONTEXT_METRICS)}
    metrics |= {name: Suite.of(name).metrics for name in names if name != OURS}
    return {
        suite: {
            metric.name: {key: str(getattr(metric, key, "")) for key in ("better", "meaning", "range")}
            for metric in metrics[suite]
        }
        for suite in names
    }


def settings(names: Sequence[str]) -> dict[str, str]:
    """What the libraries of the suites are told, by the suite's name and the setting's."""
    return {
        f"{name}: {key}": str(value) for name in names if name != OURS for key, value in Suite.of(name).settings.items()
    }


def versions() -> dict[str, str]:
    """The versions of what numbers depend on; those that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _halved(
    pairs: Pairs, conditions: Sequence[Condition], seed: int
) -> tuple[dict[Condition, Sparse], dict[Condition, Sparse]]:
    """Two disjoint halves of the observed cells of each condition that has two cells for either."""
    first, second = {}, {}
    for condition in conditions:
        if pairs.observed_rows[condition].size < 2 * 2:
            continue
        cells = sp.csr_matrix(pairs.observed_cells(condition).cells)
        rng = np.random.default_rng([seed, 1, pairs.conditions.index(condition)])
        one, other = halves(cells.shape[0], rng)
        first[condition], second[condition] = cells[one], cells[other]
    return first, second


def _rows(
    method: str,
    where: Context,
    conditions: Sequence[Condition],
    names: Sequence[str],
    found: Mapping[str, Mapping[str, float]],
) -> Iterator[tuple[str, Condition, Scores]]:
    """The scores of each condition and of the context: what the suite does not say of a condition is NaN."""
    of_context = dict(found.get("", {}))
    for condition in conditions:
        own = found.get(condition.perturbation, {})
        scores = {name: float(own.get(name, float("nan"))) for name in names if name in own or name not in of_context}
        yield method, condition, scores
    if of_context:
        yield method, Condition("", *where), {name: float(value) for name, value in of_context.items()}
