"""What a model can be asked: its labels, what stands for them, and how many of them training has seen."""

from itertools import groupby
from typing import Any

import pandas as pd

from perturbdiff.checkpoint import Checkpoint
from perturbdiff.core.choices import COVARIATES
from perturbdiff.labels.conditions import PERTURBATION, Conditions
from perturbdiff.labels.dose import Quantity

COLUMNS = ["covariate", "label", "trained", "encoder", "doses"]


def coverage(known: Conditions) -> pd.DataFrame:
    """A row for each label that a model can be asked by itself; of perturbation for each agent, too.

    Columns:
        covariate, label.
        trained: whether training has seen it.
        encoder: what stands for it: "learned", "features", or both.
        doses: of a perturbation, those that training has seen, "" without.
    """
    rows = []
    for name in COVARIATES:
        table, learned = known.features.get(name), name in known.learned
        trained = known.trained[name].labels
        is_set = name == PERTURBATION
        encoded = known.agents if is_set else known.vocabularies[name].labels
        own, featured = {*encoded}, set() if table is None else {*table.labels}
        seen = {*trained, *(known.trained_agents if is_set else ())}
        for label in dict.fromkeys((*trained, *encoded)):
            parts = ["features"] if label in featured else []
            if label in own and label in seen and (learned or label not in featured):
                parts.insert(0, "learned")
            doses = written(known.doses.get(label, [])) if is_set else ""
            rows.append((name, label, label in seen, " + ".join(parts) or "by its members", doses))
    return pd.DataFrame(rows, columns=COLUMNS)


def encoders(known: Conditions) -> list[dict[str, Any]]:
    """Of each covariate, what stands for its labels: counts of those that training has seen, and of further ones.

    Keys: covariate, learned (whether there are learned vectors), features (their origin, None without), width, trained
    (labels), trained_with_features and features_only (labels, of perturbation: agents).
    """
    table, found = coverage(known), []
    for name in COVARIATES:
        own, features = table[table["covariate"] == name], known.features.get(name)
        found.append(
            {
                "covariate": name,
                "learned": features is None or name in known.learned,
                "features": None if features is None else features.origin,
                "width": None if features is None else features.width,
                "trained": len(known.trained[name]),
                "trained_with_features": int((own["trained"] & own["encoder"].str.contains("features")).sum()),
                "features_only": int((~own["trained"]).sum()),
            }
        )
    return found


def summary(known: Conditions) -> list[str]:
    """A sentence for each covariate: its trained labels, and what stands for them and for others."""
    lines = []
    for one in encoders(known):
        name = one["covariate"].replace("_", " ")
        if not one["trained"]:
            lines.append(f"{name}: the data have none, or it is not labelled.")
            continue
        parts = ["learned vectors"] if one["learned"] else []
        if one["features"] is not None:
            parts.append(
                f"features ({one['features']}, {one['width']} wide: of {one['trained_with_features']} trained ones and "
                f"{one['features_only']} that training has not seen)"
            )
        labels = known.trained[one["covariate"]].labels
        lines.append(f"{name}: {one['trained']} trained labels by {' and '.join(parts)}: {_shown(labels)}.")
    return lines


def rules(known: Conditions) -> list[str]:
    """Sentences on what else can be asked."""
    found = []
    agents = [agent for agent in known.trained_agents if agent != known.control]
    new = len(known.agents) - len(known.trained_agents)
    if known.grammar.separator is not None or known.grammar.doses:
        more = f", or of the {new} that have features only" if new else ""
        found.append(f"can be asked: any set of the {len(agents)} trained agents ({_shown(agents)}){more}.")
    elif new:
        found.append(f"can be asked: any of the {new} perturbations that have features only.")
    if known.modalities:
        found.append(f"modalities: {', '.join(known.modalities)}.")
    if known.dimensions:
        found.append(f"doses: any, in {' or '.join(known.dimensions)} or what converts to it.")
    found.append("cell types and assay batches that are new and have no features take the trained null.")
    return found


def begun(checkpoint: Checkpoint) -> list[str]:
    """Sentences on the pretraining that a model is, or begins from."""
    if checkpoint.pretraining is not None:
        found = []
        for own, seen in zip(checkpoint.pretraining.sources, checkpoint.pretraining.seen, strict=True):
            what = "control cells" if own["cells"] == "controls" else "cells"
            found.append(
                f"pretrained on {seen.n_cells:,} {what} of {own['name']!r}, weight {own['weight']:g}; "
                f"{len(own['genes'])} genes were chosen on it."
            )
        return [*found, "it knows no perturbation: it predicts the cells of a cell type and assay batch (zero-shot)."]
    if checkpoint.begun_from is not None:
        sources = ", ".join(map(repr, checkpoint.begun_from["sources"]))
        return [f"fine-tuned from a model pretrained on {sources}."]
    return []


def written(doses: list[Quantity]) -> str:
    """Doses as a text: "500, 1000 nM"."""
    parts = []
    for dimension, own in groupby(doses, key=lambda dose: dose.dimension):
        parts.append(f"{', '.join(f'{dose.amount:g}' for dose in own)} {dimension}")
    return "; ".join(parts)


def _shown(labels: "tuple[str, ...] | list[str]", at_most: int = 12) -> str:
    more = f", and {len(labels) - at_most} more" if len(labels) > at_most else ""
    return ", ".join(labels[:at_most]) + more
