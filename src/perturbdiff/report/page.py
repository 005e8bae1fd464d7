"""The page: everything that the template is filled with, and the template filled."""

import base64
import hashlib
import importlib.resources
import re
from dataclasses import dataclass

import jinja2
from markupsafe import Markup

from perturbdiff.figures.volcano import volcano_keys
from perturbdiff.metrics.intervals import LEAST, UNITS
from perturbdiff.metrics.tables import SUITES
from perturbdiff.report import drawings
from perturbdiff.report.conditions import shown_conditions
from perturbdiff.report.drawings import names_of
from perturbdiff.report.paired_differences import gain_tables
from perturbdiff.report.ranking import Comparer, strongest
from perturbdiff.report.summary import Summary, summarise
from perturbdiff.report.tables import context_tables, direction, facts, glance, range_table, suite_table, win_table
from perturbdiff.results.evaluation import Evaluation
from perturbdiff.results.folder import KINDS
from perturbdiff.results.parts import SIGNIFICANT
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
    "families": "Families",
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
    summary: Summary
    against: str | None


def report_of(evaluation: Evaluation, against: str | None) -> Report:
    """Judge an evaluation, beside a named method or the strongest baseline.

    Raises:
        ValueError: `against` is no method, or the only predicted file.
    """
    names, files = names_of(evaluation, *KINDS), names_of(evaluation, "predicted")
    if against is not None and against not in names:
        raise ValueError(f"--against {against!r} is none of the {len(names)} methods; {nearest(against, names)}.")
    if against is not None and files == [against]:
        raise ValueError(f"--against {against!r} is the only predicted file; name a baseline or the ceiling.")
    evaluation = evaluation.without_rash_intervals()
    comparer = Comparer(evaluation)
    chosen = against or strongest(evaluation, names_of(evaluation, "baseline"))
    return Report(evaluation, comparer, summarise(evaluation, comparer), chosen)


def page(report: Report, condition: str | None) -> str:
    """The report as one HTML document that needs nothing else.

    Raises:
        ValueError: there is no such condition.
    """
    evaluation, against = report.evaluation, report.against
    genes = shown_conditions(evaluation, condition)  # first, since it may refuse the condition
    suites = {suite: SUITES.get(suite, suite) for suite in dict.fromkeys(one.suite for one in evaluation.metrics)}
    tables = [suite_table(evaluation, report.comparer, suite, title) for suite, title in suites.items()]
    wins = None if against is None else win_table(evaluation, report.comparer, against)
    script, style = _text("script.js"), _text("style.css")
    filled = _environment().get_template("template.html.j2")
    return filled.render(
        evaluation=evaluation,
        title=f"Evaluation of {_joined(names_of(evaluation, 'predicted'))}",
        subtitle=_subtitle(evaluation),
        sections=_SECTIONS,
        summary=report.summary,
        glances=glance(evaluation, report.summary.standings, report.summary.model),
        warnings=[(_KINDS.get(kind, kind.capitalize()), text) for kind, text in evaluation.warnings],
        most=MOST_SENTENCES,
        suites=[table for table in tables if table is not None],
        absent_suites=[evaluation.missing[suite] for suite in SUITES if suite in evaluation.missing],
        radar=drawings.radar_of(evaluation),
        scatter=drawings.scatter_of(evaluation, report.comparer, against),
        against=against,
        unit=UNITS[evaluation.unit],
        intervals=evaluation.n_units >= LEAST,
        wins=wins,
        gains=gain_tables(evaluation, report.comparer, against),
        strips=drawings.distances_of(evaluation),
        fans=drawings.families_of(evaluation),
        densities=drawings.densities_of(evaluation),
        genes=genes,
        volcano_keys=volcano_keys(SIGNIFICANT),
        projection=drawings.projection_of(evaluation),
        umap=drawings.umap_of(evaluation),
        ranges=range_table(evaluation),
        contexts=context_tables(evaluation, report.comparer),
        curves=drawings.curves_of(evaluation),
        facts=_facts(evaluation),
        glossary=[(title, evaluation.of_suite(suite)) for suite, title in suites.items()],
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


def _facts(evaluation: Evaluation) -> list[tuple[str, list[tuple[str, str]]]]:
    """Settings, versions, audit and the settings of the run, those that there are."""
    parts = {
        "Settings of the evaluation": evaluation.settings,
        "Audit of the split": evaluation.audit or {},
        "Versions": evaluation.versions,
        "Settings of the training run": evaluation.run_settings,
    }
    return [(title, facts(mapping)) for title, mapping in parts.items() if mapping]
