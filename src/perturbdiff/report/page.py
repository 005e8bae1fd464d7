"""The page: everything that the template is filled with, and the template filled."""

import base64
import hashlib
import importlib.resources
import re
from dataclasses import dataclass
from typing import Any

import jinja2
from markupsafe import Markup

from perturbdiff.evaluation.result import Evaluation, Metric
from perturbdiff.metrics.intervals import LEAST, UNITS
from perturbdiff.metrics.tables import SUITES
from perturbdiff.report.conditions import place_of, shown_conditions
from perturbdiff.report.curve import curves
from perturbdiff.report.density import densities
from perturbdiff.report.gains import gain_tables
from perturbdiff.report.projection import projection, umap
from perturbdiff.report.radar import radar
from perturbdiff.report.scatter import scatter
from perturbdiff.report.standing import Comparer, strongest
from perturbdiff.report.strips import strips
from perturbdiff.report.tables import (
    Table,
    context_tables,
    direction,
    facts,
    glance,
    range_rows,
    suite_table,
    win_table,
)
from perturbdiff.report.verdict import Verdict, verdict
from perturbdiff.report.volcano import volcano_keys
from perturbdiff.spelling import nearest

MOST_SENTENCES = 60
"""So many notes or warnings are shown."""

_JOINTS = re.compile(r"(?<=[_\-./+|,:])(?=\w)")
_OPTION = re.compile(r"((?<!\S)--[a-z][a-z-]*)")
_KINDS = {
    "leak": "Leakage",
    "metric": "Metrics that say little",
    "collapse": "Collapsed predictions",
    "targets": "Target genes carry a score",
    "scale": "Scale",
    "few": "Few perturbations",
    "behind": "Behind unchanged control cells",
    "spread": "Too much spread between perturbations",
    "step0": "Nothing learned",
}
_SECTIONS = {
    "summary": "Summary",
    "radar": "Radar",
    "scatter": "By condition",
    "energy": "Distances",
    "densities": "Evidence",
    "genes": "Genes",
    "cells": "Cells",
    "contexts": "Cell types",
    "training": "Training",
    "settings": "Settings",
    "notes": "Notes",
    "glossary": "Glossary",
}


@dataclass(frozen=True)
class Report:
    """What is reported of an evaluation, before it is written in any form."""

    evaluation: Evaluation
    comparer: Comparer
    verdict: Verdict
    against: str | None


def report_of(evaluation: Evaluation, against: str | None) -> Report:
    """Judge an evaluation, beside a named method or the strongest baseline.

    Raises:
        ValueError: `against` is no method, or the only predicted file.
    """
    names = [method.name for method in evaluation.methods]
    files = [method.name for method in evaluation.of_kind("predicted")]
    if against is not None and against not in names:
        raise ValueError(f"--against {against!r} is none of the {len(names)} methods; {nearest(against, names)}.")
    if against is not None and files == [against]:
        raise ValueError(f"--against {against!r} is the only predicted file; name a baseline or the ceiling.")
    evaluation = evaluation.without_rash_intervals()
    comparer = Comparer(evaluation)
    chosen = against or strongest(evaluation, [method.name for method in evaluation.of_kind("baseline")])
    return Report(evaluation, comparer, verdict(evaluation, comparer), chosen)


def check_condition(evaluation: Evaluation, condition: str | None) -> None:
    """Refuse a condition that the evaluation does not have, before anything is drawn.

    Raises:
        ValueError: there is no such condition.
    """
    if condition is not None and evaluation.genes is not None:
        place_of(evaluation.genes, condition)


def page(report: Report, condition: str | None) -> str:
    """The report as one HTML document that needs nothing else.

    Raises:
        ValueError: there is no such condition.
    """
    evaluation, against = report.evaluation, report.against
    genes = shown_conditions(evaluation, condition)
    wins = None if against is None else win_table(evaluation, report.comparer, against)
    script, style = _text("script.js"), _text("style.css")
    filled = _environment().get_template("template.html.j2")
    return filled.render(
        title=f"Evaluation of {_joined([method.name for method in evaluation.of_kind('predicted')])}",
        subtitle=_subtitle(evaluation),
        sections=_SECTIONS,
        verdict=report.verdict,
        glances=glance(evaluation, report.verdict.standings, report.verdict.model),
        warnings=[(_KINDS.get(kind, kind.capitalize()), text) for kind, text in evaluation.warnings[:MOST_SENTENCES]],
        more_warnings=max(0, len(evaluation.warnings) - MOST_SENTENCES),
        suites=_suites(evaluation, report.comparer),
        absent_suites=[evaluation.missing[suite] for suite in SUITES if suite in evaluation.missing],
        baseline=evaluation.baseline,
        ceiling=evaluation.ceiling,
        radar=radar(evaluation),
        scatter=scatter(evaluation, report.comparer, against),
        against=against,
        unit=UNITS[evaluation.unit],
        intervals=evaluation.n_units >= LEAST,
        wins=wins,
        gains=gain_tables(evaluation, report.comparer, against),
        strips=strips(evaluation),
        densities=densities(evaluation),
        genes=genes,
        volcano_keys=volcano_keys(),
        projection=projection(evaluation),
        umap=umap(evaluation),
        ranges=range_rows(evaluation),
        contexts=context_tables(evaluation, report.comparer),
        curves=curves(evaluation),
        methods=evaluation.methods,
        facts=_facts(evaluation),
        no_audit=evaluation.missing.get("audit"),
        notes=evaluation.notes[:MOST_SENTENCES],
        more_notes=max(0, len(evaluation.notes) - MOST_SENTENCES),
        glossary=[(SUITES.get(suite, suite), metrics) for suite, metrics in _by_suite(evaluation).items()],
        style=Markup(style),  # noqa: S704 - comes with the package
        script=Markup(script),  # noqa: S704 - comes with the package
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _environment() -> jinja2.Environment:
    """Escapes whatever is put into the template, and fails where it names what is not given."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_text),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["said"] = _is_said
    environment.filters["direction"] = direction
    environment.filters["soft"] = soft
    environment.filters["prose"] = prose
    return environment


def soft(name: str) -> Markup:
    """A name, escaped, that may be broken behind its signs of punctuation."""
    return Markup("<wbr>").join(_JOINTS.split(name))


def prose(text: str) -> Markup:
    """A sentence, escaped, whose options of the command line are code and stay on one line."""
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if _OPTION.fullmatch(part) else part for part in _OPTION.split(text)
    )


def _is_said(value: Any) -> bool:  # noqa: ANN401 - whatever a template tests
    """Whether a part is a sentence that says why it is not shown."""
    return isinstance(value, str) and not isinstance(value, Markup)


def _text(name: str) -> str:
    return (importlib.resources.files("perturbdiff.report") / name).read_text(encoding="utf-8")


def _joined(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:3])} and {len(names) - 3} more"


def _subtitle(evaluation: Evaluation) -> str:
    conditions = evaluation.conditions
    counts = {
        "condition": len(conditions),
        "perturbation": len({perturbation for perturbation, _, _ in conditions}),
        "cell type": len({cell_type for _, cell_type, _ in conditions}),
    }
    batches = {batch for _, _, batch in conditions if batch}
    n = [f"{count:,} {name}{'' if count == 1 else 's'}" for name, count in counts.items()]
    n += [f"{len(batches):,} assay batch{'' if len(batches) == 1 else 'es'}"] if batches else []
    return f"{n[0]}: {', '.join(n[1:])}"


def _by_suite(evaluation: Evaluation) -> dict[str, list[Metric]]:
    suites = dict.fromkeys(metric.suite for metric in evaluation.metrics)
    return {suite: evaluation.of_suite(suite) for suite in suites}


def _suites(evaluation: Evaluation, comparer: Comparer) -> list[tuple[str, Table]]:
    tables = {
        suite: suite_table(evaluation, comparer, suite, SUITES.get(suite, suite)) for suite in _by_suite(evaluation)
    }
    return [(suite, table) for suite, table in tables.items() if table is not None]


def _facts(evaluation: Evaluation) -> list[tuple[str, list[tuple[str, str]]]]:
    """Settings, versions, audit and the settings of the run, those that there are."""
    parts = {
        "Settings of the evaluation": evaluation.settings,
        "Audit of the split": evaluation.audit or {},
        "Versions": evaluation.versions,
        "Settings of the training run": evaluation.run_settings,
    }
    return [(title, facts(mapping)) for title, mapping in parts.items() if mapping]
