"""Every method on every context, by a suite of another library: what it is given, and what becomes of its numbers.

A suite judges a whole context at once, the control cells and all conditions of one cell type (and assay batch), as
AnnData of log1p counts per 10^4 with the same real control cells on both sides. Our ceiling is made for it too: the
first halves of the observed cells stand for the prediction, the second halves for the truth. A context that is too
large to be held in memory several times is left out, and a note says so, unless the suite was asked for by name. A
method that does not predict every condition of a context is judged on those that it predicts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from perturbdiff.evaluation.pairs import Pairs
from perturbdiff.evaluation.scores import CEILING, Predictions, Scores
from perturbdiff.metrics.ceilings import halves
from perturbdiff.metrics.conditions import Condition, Context
from perturbdiff.metrics.sides import PERTURBATION
from perturbdiff.metrics.suites import Suite

VALUES = 1 << 26
"""A context of more values (cells times genes) is left out of a suite that was not asked for by name."""

type Sparse = Any
"""A CSR matrix of float32."""


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
