"""Predictions beside baselines and ceilings, on the same conditions, genes and control cells.

The methods of the tables: each predicted file under its name; the baselines (see `perturbdiff.baselines`), with as
many cells of each condition as the first predicted file has, moved in the nearer way (see `evaluation.ways`); "ceiling"
(one half of the observed cells against the disjoint other half) and "replicates" (the observed cells of one assay batch
against those of the others).
"""

import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from perturbdiff.cells.memory import Cells
from perturbdiff.evaluation.alignment import align
from perturbdiff.evaluation.contexts import VALUES, judge_by, too_large
from perturbdiff.evaluation.families import SIMPLE_FAMILIES, Scored, judge_families
from perturbdiff.evaluation.methods import BASELINES, Methods, fitted
from perturbdiff.evaluation.pairs import File, Pairs
from perturbdiff.evaluation.projection import project
from perturbdiff.evaluation.scope import EVERYTHING, Depth, Scope
from perturbdiff.evaluation.scores import CEILING, REPLICATES, Contexts, Judged, Judging
from perturbdiff.evaluation.ways import as_counts, chosen, offered
from perturbdiff.families.scores import ALL_METRICS
from perturbdiff.features.tables import FeatureTable
from perturbdiff.metrics import suites, warnings
from perturbdiff.metrics.ceilings import HALVINGS
from perturbdiff.metrics.conditions import LABELS, Condition
from perturbdiff.metrics.intervals import Scale, summarise, unit_of
from perturbdiff.metrics.ours import CONTEXT_METRICS, METRICS
from perturbdiff.metrics.suites import Suite
from perturbdiff.metrics.tables import COLUMNS, FAMILIES, OURS, long_table, overall_table, undefined_notes
from perturbdiff.metrics.warnings import Warned
from perturbdiff.recipes.dataset import PLAIN, Grammar
from perturbdiff.results.evaluation import CONTROL, MEAN_SHIFT, Evaluation
from perturbdiff.results.folder import Method
from perturbdiff.results.parts import OBSERVED, Genes

HEADLINE = ("energy_distance", "pearson_from_centroid", "de_auroc", "de_overlap")
"""What the tables lead with. R2 of means is high for nearly everything and is never among them."""


def evaluate(
    predicted: Mapping[str, File],
    observed: File,
    *,
    training: Cells | None,
    seed: int,
    conditions: Collection[tuple[str, ...]] | None = None,
    halvings: int = HALVINGS,
    scope: Scope = EVERYTHING,
    depth: Depth | None = None,
    grammar: Grammar = PLAIN,
    features: FeatureTable | None = None,
) -> Evaluation:
    """Judge predicted files, the baselines and the ceilings against the observed cells.

    Args:
        predicted: files of predicted cells by name; baselines have as many cells of a condition as the first one.
        observed: the observed cells; changes are measured, and baselines predict, from its control cells.
        training: the training cells, perturbed and control; None leaves out the baselines that need them, and a note
            names these.
        seed: draws the baselines' control cells, the ceiling's halves and the units of the intervals.
        conditions: (perturbation, cell type), or with the assay batch, to judge; None for all predicted ones.
        halvings: how many random halvings the ceiling averages, where `depth` does not say.
        scope: which cells are judged, from which control cells, and what intervals draw.
        depth: how much is computed; our own metrics beside control and mean shift where None.
        grammar: what labels of perturbation are made of, for the baselines.
        features: of the agents of perturbations, for the baselines.

    Raises:
        ValueError: the files cannot be compared (see `evaluation.alignment.align`), a name is that of a method here,
            there is no such suite or baseline, or values cannot be on the scale that is declared.
    """
    depth = depth or Depth(halvings=halvings)
    suites.check_suites(depth.suites)
    for name in predicted:
        if name in {*BASELINES, *map(as_counts, BASELINES), CEILING, REPLICATES, OBSERVED, *SIMPLE_FAMILIES}:
            raise ValueError(
                f"a predicted file is named {name!r}, which is the name of a method here; name it otherwise."
            )
    pairs = align(
        predicted,
        observed,
        conditions=conditions,
        pooling=scope.pooling,
        apart=scope.apart,
        predicted_controls=scope.predicted_controls,
        seed=seed,
    )
    unit = unit_of(pd.DataFrame(pairs.conditions, columns=list(LABELS)), scope.unit)
    known, notes = fitted(depth.baselines, training, pairs, grammar=grammar, features=features)
    left_out = {name: sum(one.pair in own.left_out for one in pairs.conditions) for name, own in known.items()}
    baselines = {name: one for name, one in known.items() if left_out[name] < len(pairs.conditions)}
    ways, only = offered(baselines, pairs)
    methods = Methods.of(predicted, pairs, ways, seed)
    judged, baselines, said = chosen(_judged(pairs, methods, predicted, depth, seed), ways)
    methods = replace(methods, baselines=baselines)
    has_replicates = depth.replicates and any(
        pd.notna(one.scores[REPLICATES]["mae"]) for one in judged if REPLICATES in one.scores
    )
    families = judge_families(predicted, pairs, training, seed=seed) if FAMILIES in depth.suites else iter(())
    table, more = _tables(pairs, methods, judged, families, depth, seed, replicates=has_replicates)
    baseline = next(name for name in (MEAN_SHIFT, CONTROL, *methods.names[len(predicted) :], "") if name in baselines)
    overall, contexts, ranges = _summaries(table, baseline, depth, unit, seed)
    return Evaluation(
        scores=table,
        overall=overall,
        contexts=contexts,
        ranges=ranges,
        notes=(
            *pairs.notes,
            *notes,
            *only,
            *said,
            *more,
            *undefined_notes(overall[overall["method"] != REPLICATES], left_out),
        ),
        warnings=warnings.in_order(_warnings(table, judged, ranges, list(predicted), baseline, depth, unit, seed)),
        methods=tuple(_methods(predicted, baselines, table, replicates=has_replicates)),
        genes=Genes.of([(one.condition, one.tests) for one in judged], pairs.genes),
        projection=project(pairs, predicted, seed=seed, umap=depth.umap) if depth.projection else None,
        legend=suites.legend(depth.suites, ALL_METRICS),
        baseline=baseline,
        ceiling=CEILING,
        leading=_leading(overall),
        versions={**suites.versions(), "python": sys.version.split()[0]},
        settings=_settings(depth, unit, seed),
    )


def _judged(pairs: Pairs, methods: Methods, predicted: Mapping[str, File], depth: Depth, seed: int) -> list[Judged]:
    """Every condition by our own metrics; the scale of the files is checked with each, so with the first already."""
    known = depth.cache.load(pairs) if depth.cache is not None else {}
    judging = Judging(
        seed=seed,
        halvings=depth.halvings,
        replicates=depth.replicates,
        jobs=depth.jobs,
        kept=tuple(predicted),
        known=known,
        track=depth.track,
    )
    judged = []
    for one in judging.judge(pairs, methods):
        warnings.check_total(OBSERVED, one.total[OBSERVED])
        for side in predicted:
            warnings.check_total(side, one.total[side], one.total[OBSERVED])
        judged.append(one)
    if depth.cache is not None and not known:
        depth.cache.save(pairs, {one.condition: one.tests[OBSERVED].test for one in judged})
    return judged


def _tables(
    pairs: Pairs,
    methods: Methods,
    judged: list[Judged],
    families: Scored,
    depth: Depth,
    seed: int,
    *,
    replicates: bool,
) -> tuple[pd.DataFrame, list[str]]:
    """The long table of all suites, and what is to be said of them."""
    order = [*methods.names, CEILING, *([REPLICATES] if replicates else [])]
    tables, notes = [], []
    if OURS in depth.suites:
        tables.append(_sorted(long_table(_ours(judged, order)), order).assign(suite=OURS))
    for name in depth.suites:
        if name == OURS:
            continue
        if name == FAMILIES:
            tables.append(_sorted(long_table(families), [*methods.files, *SIMPLE_FAMILIES]).assign(suite=name))
            continue
        large = [] if name in depth.forced else too_large(pairs, methods.n_cells)
        if large:
            notes.append(
                f"the suite {name!r} is left out: {large[0]} has more than {VALUES:.0e} values, "
                f"which it holds in memory several times; ask for it by --suites {name}."
            )
            continue
        tests = depth.cache.keep(pairs) if depth.cache is not None else lambda _, made: made()
        scores = judge_by(Suite.of(name), pairs, methods, seed=seed, threads=depth.jobs, tests=tests)
        tables.append(_sorted(long_table(scores), order).assign(suite=name))
    if not tables:
        raise ValueError(f"no suite is left of {', '.join(depth.suites)}; ask for 'ours' too.")
    columns = ["suite", *COLUMNS]
    return pd.concat(tables, ignore_index=True)[columns], notes


def _ours(judged: list[Judged], order: list[str]) -> Iterator[tuple[str, Condition, dict[str, float]]]:
    contexts = Contexts()
    for one in judged:
        contexts.add(one)
        for method in order:
            yield method, one.condition, one.scores[method]
    yield from contexts.scores()


def _sorted(table: pd.DataFrame, order: list[str]) -> pd.DataFrame:
    place = {method: i for i, method in enumerate(order)}
    return table.sort_values("method", key=lambda column: column.map(place), kind="stable", ignore_index=True)


def _summaries(
    table: pd.DataFrame, baseline: str, depth: Depth, unit: str, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Means over conditions, the same for each cell type, and the dynamic range of each metric, suite by suite."""
    legend = suites.legend(depth.suites, ALL_METRICS)
    overall, contexts, ranges = [], [], []
    for suite, own in table.groupby("suite", sort=False):
        better = {metric: said["better"] for metric, said in legend[str(suite)].items()}
        scale = Scale(baseline, CEILING, better)
        means, span = summarise(own, scale, resamples=depth.resamples, seed=seed, unit=unit)
        overall.append(means.assign(suite=suite))
        ranges.append(span.assign(suite=suite))
        for kind, some in own.groupby("cell_type", sort=False):
            means, _ = summarise(some, scale, resamples=depth.resamples, seed=seed, unit=unit)
            contexts.append(means.assign(suite=suite, cell_type=kind))
    return (
        _first(overall, ["suite", "method"]),
        _first(contexts, ["suite", "method", "cell_type"]),
        _first(ranges, ["suite"]),
    )


def _first(tables: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    together = pd.concat(tables, ignore_index=True)
    return together[[*columns, *(name for name in together.columns if name not in columns)]]


def _warnings(
    table: pd.DataFrame,
    judged: list[Judged],
    ranges: pd.DataFrame,
    predicted: list[str],
    baseline: str,
    depth: Depth,
    unit: str,
    seed: int,
) -> Iterator[Warned]:
    yield from warnings.few((getattr(one.condition, unit) for one in judged), unit)
    totals = {side: sum(one.total[side] for one in judged) / len(judged) for side in (OBSERVED, *predicted)}
    yield from warnings.off_scale({name: totals[name] for name in predicted}, totals[OBSERVED])
    if OURS in depth.suites:
        ours = table[table["suite"] == OURS]
        yield from warnings.behind(ours, predicted, CONTROL, resamples=depth.resamples, seed=seed, unit=unit)
        between = overall_table(ours[ours["metric"] == CONTEXT_METRICS[0].name]).set_index("method")["value"]
        spreads = {str(method): float(value) for method, value in between.items()}
        yield from warnings.collapsed(spreads, spreads.get(CEILING, float("nan")), predicted)
        yield from warnings.scattered(spreads, spreads.get(CEILING, float("nan")), predicted)
        every = long_table(
            (method, one.condition, scores) for one in judged for method, scores in one.all_genes.items()
        )
        yield from warnings.carried_by_targets(
            ours, every, predicted, baseline, resamples=depth.resamples, seed=seed, unit=unit
        )
    yield from warnings.indistinct(ranges, baseline, CEILING)


def _leading(overall: pd.DataFrame) -> tuple[str, ...]:
    """`HEADLINE`; without a centroid, the correlation of the change in place of that from the centroid."""
    known = set(overall.loc[overall["value"].notna(), "metric"])
    names = ["pearson_of_change" if one == "pearson_from_centroid" and one not in known else one for one in HEADLINE]
    return tuple(name for name in names if name in known)


def _methods(
    predicted: Mapping[str, File], baselines: Mapping[str, Any], table: pd.DataFrame, *, replicates: bool
) -> Iterator[Method]:
    for name in predicted:
        yield Method(name, "predicted", "predicted cells")
    for name in baselines:
        yield Method(name, "baseline", BASELINES[name].about)
    yield Method(CEILING, "ceiling", "one half of the observed cells against the disjoint other half")
    if replicates:
        yield Method(REPLICATES, "ceiling", "the observed cells of one assay batch against those of the others")
    judged = set(table["method"])
    yield from (Method(name, "family", about) for name, about in SIMPLE_FAMILIES.items() if name in judged)


def _settings(depth: Depth, unit: str, seed: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "suites": list(depth.suites),
        "baselines": list(depth.baselines),
        "halvings": depth.halvings,
        "resamples": depth.resamples,
        "interval": 0.95,
        "unit": unit,
        "false_discovery_rate": 0.05,
        "scale": "log1p counts per 10^4",
        "metrics": [metric.name for metric in METRICS],
        **suites.settings(depth.suites),
    }
