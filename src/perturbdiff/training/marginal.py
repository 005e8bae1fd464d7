"""Marginal pretraining: a model of the cells of each context, ``D_c ~ F(. | c)``, from a mixture of sources.

No perturbation is told and the control stream is zero; cell type and assay batch are kept. The panel is made by merging
and then selecting: the genes of highest variability of each source, on its training cells, and their union in the order
of the sources. Genes that a source lacks are masked, not taken for zeros. A population of each large group is held
back to choose the weights by. The scale is the root of the weighted mean of the sources' squared ones.

The output begins at the mean expression: with controls of zero an output of zero would pass no gradient (ReLU).
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from perturbdiff.cells.genes import measured_scale, select_panel
from perturbdiff.cells.measure import measure
from perturbdiff.cells.moments import Moments
from perturbdiff.cells.order import Segments
from perturbdiff.cells.source import Source
from perturbdiff.checkpoint import ModelSpec, Pretraining
from perturbdiff.features.tables import FeatureTable
from perturbdiff.labels.conditions import Conditions
from perturbdiff.labels.members import grammar_of
from perturbdiff.labels.vocabulary import Vocabulary
from perturbdiff.populations.epochs import Populations
from perturbdiff.populations.marginal import Marginal, batch_names, held_back
from perturbdiff.populations.mixture import Aligned, MixedPopulations
from perturbdiff.recipes.dataset import hold_outs_of
from perturbdiff.recipes.mixture import Member, Mixture, check_known, check_names, recipe_of
from perturbdiff.recipes.settings import Settings
from perturbdiff.split.audit import find_leaks
from perturbdiff.split.fingerprints import Seen
from perturbdiff.split.rules import HELD_OUT, Split, split_cells
from perturbdiff.training.encoders import check_features, features_named
from perturbdiff.training.fitting import InitialState, TrainingResult, check_processes, fit, initial
from perturbdiff.training.run import Run

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Given:
    """A source of a mixture and its split.

    Attributes:
        member: name, recipe, weight.
        split: of its cells; those that are held out are never seen.
    """

    member: Member
    split: Split

    @property
    def training(self) -> Segments:
        """The cells that are used."""
        segments = self.split.of("train")
        if self.member.cells == "all":
            return segments
        return segments.take(self.split.source.runs.is_control[segments.run])


def split_sources(
    members: Sequence[Member], sources: Sequence[Source], hold_out: Mapping[str, Any], settings: Settings
) -> list[Given]:
    """The sources with their splits; `hold_out` has rules in place of those of the recipes, by source.

    Raises:
        ValueError: a rule does not fit, or is of no source.
    """
    check_known("hold_out", hold_out, [member.name for member in members])
    training, found = settings.training, []
    for member, source in zip(members, sources, strict=True):
        rules = member.recipe.hold_out
        if member.name in hold_out:
            rules = hold_outs_of(hold_out[member.name], member.recipe)
        split = split_cells(source, rules, seed=training.seed, cells_per_population=training.cells_per_population)
        found.append(Given(member, split))
    return found


def pretrain(
    mixture: Mixture,
    given: Sequence[Given],
    settings: Settings,
    *,
    run: Run,
    features: Mapping[str, FeatureTable] | None = None,
    folder: Path | None = None,
) -> TrainingResult:
    """Pretrain a model on the training cells of some sources.

    Args:
        mixture: panel and settings.
        given: the sources.
        settings: of the mixture.
        run: its folder and its device.
        features: of cell types or assay batches, in place of those that the settings name.
        folder: that files of features are relative to.

    Raises:
        ValueError: the audit finds held-out cells in training, a source has none of the panel's genes, or as in
            `training.trainer.train`.
    """
    check_processes(settings.training)
    settings = settings.without_counts()  # there are no control cells to change
    check_names([one.member.name for one in given])
    seen = [Seen.of(one.member.name, one.split.source, one.training) for one in given]
    audit(given, seen)
    _LOG.info(f"the audit of {len(given)} sources found no held-out cell among the training cells.")
    for one in given:
        for note in one.split.source.notes:
            _LOG.info(f"{one.member.name}: {note}")
    measured = [_measured(one, mixture) for one in given]
    genes, lists = _panel(mixture, given, measured)
    weights = np.array([one.member.weight for one in given])
    known = [np.asarray(genes)[np.isin(genes, moments.genes)].tolist() for moments in measured]
    for one, own, chosen in zip(given, known, lists, strict=True):
        _LOG.info(
            f"{one.member.name}: {one.training.n_cells:,} cells, weight {one.member.weight:g}; {len(own)} of the "
            f"panel's {len(genes)} genes are measured, {len(chosen)} were chosen on it."
        )
    scales = [measured_scale(moments, own) for moments, own in zip(measured, known, strict=True)]
    scale = settings.model.scale or float(np.sqrt((weights * np.square(scales)).sum() / weights.sum()))
    called = batch_names([one.member.name for one in given], [_labels(one, "assay_batch") for one in given])
    conditions = _conditions(given, called, settings, folder, features)
    populations, validation = _populations(given, called, genes, scale, conditions, settings, weights)
    for note in populations.notes:
        _LOG.info(note)
    spec = ModelSpec(
        settings=settings,
        genes=tuple(genes),
        scale=scale,
        vocabularies=conditions.trained,
        features=conditions.features,
        recipe=recipe_of(mixture, tuple(one.member for one in given)),
        folder=None,
        split=_split(given),
        pretraining=Pretraining(
            tuple(_of_source(one, own, names) for one, own, names in zip(given, lists, called, strict=True)),
            tuple(seen),
        ),
    )
    means = _mean_expression(measured, genes, weights) / scale

    def begin() -> InitialState:
        denoiser = initial(spec, conditions)
        denoiser.head.linear.bias.data.copy_(torch.from_numpy(means))
        return InitialState(spec, denoiser, populations, validation)

    return fit(spec, begin, run=run)


def audit(given: Sequence[Given], seen: Sequence[Seen]) -> None:
    """Fail where held-out cells of one source train, in it or in another; `seen` are the training cells of each.

    Raises:
        ValueError: some do; the first leak is said.
    """
    leaks = [
        f"{one.member.name}: {leak}"
        for one in given
        if one.split.source.control is not None
        for leak in find_leaks(one.split, grammar_of(one.member.recipe))
    ]
    for i, trains in enumerate(seen):
        others = [one for place, one in enumerate(given) if place != i]
        leaks += [f"{one.member.name}: {leak}" for one in others for leak in trains.leaks(one.split)]
    if leaks:
        more = f" ({len(leaks) - 1} more)" if len(leaks) > 1 else ""
        raise ValueError(f"held-out cells would be pretrained on: {leaks[0]}{more}")


def _measured(one: Given, mixture: Mixture) -> Moments:
    source = one.split.source
    whole = one.member.cells == "all"
    known = source.moments(one.split.hash) if whole else None
    wanted = None if mixture.genes is None else [gene for gene in mixture.genes if gene in source.genes]
    return known or measure(source, wanted, one.training)


def _panel(mixture: Mixture, given: Sequence[Given], measured: Sequence[Moments]) -> tuple[list[str], list[list[str]]]:
    """The panel, and the genes that each source gave to it."""
    if mixture.genes is not None:
        lists = [[gene for gene in mixture.genes if gene in moments.genes] for moments in measured]
        absent = [gene for gene in mixture.genes if not any(gene in moments.genes for moments in measured)]
        if absent:
            raise ValueError(
                f"{len(absent)} of the panel's {len(mixture.genes)} genes are in no source, such as {absent[0]!r}; "
                "leave them out, or mend the names."
            )
        for one, own in zip(given, lists, strict=True):
            if not own:
                raise ValueError(
                    f"source {one.member.name!r} has none of the panel's {len(mixture.genes)} genes, such as "
                    f"{mixture.genes[0]!r}; give all sources the same kind of gene names."
                )
        return list(mixture.genes), lists
    lists = [select_panel(moments, mixture.n_genes) for moments in measured]
    return list(dict.fromkeys(gene for own in lists for gene in own)), lists


def _labels(one: Given, covariate: str) -> list[str]:
    runs = one.split.source.runs
    return sorted({str(label) for label in runs.labels[covariate].iloc[np.unique(one.training.run)]})


def _conditions(
    given: Sequence[Given],
    called: Sequence[Mapping[str, str]],
    settings: Settings,
    folder: Path | None,
    features: Mapping[str, FeatureTable] | None,
) -> Conditions:
    """The labels of all sources; cell types of one name are one, assay batches of different sources never."""
    types = sorted({label for one in given for label in _labels(one, "cell_type")} - {""})
    batches = [names[label] for one, names in zip(given, called, strict=True) for label in _labels(one, "assay_batch")]
    trained = {
        "perturbation": Vocabulary("perturbation", ()),
        "cell_type": Vocabulary("cell_type", tuple(types)),
        "assay_batch": Vocabulary("assay_batch", tuple(sorted(batches))),
    }
    found = features_named(settings, folder, features)
    conditions = Conditions(trained, features=found, learned=settings.encoders.with_learned_labels)
    check_features(conditions, settings)
    return conditions


def _populations(
    given: Sequence[Given],
    called: Sequence[Mapping[str, str]],
    genes: Sequence[str],
    scale: float,
    conditions: Conditions,
    settings: Settings,
    weights: npt.NDArray[np.float64],
) -> tuple[MixedPopulations, MixedPopulations | None]:
    """What trains, and what judges."""
    training = settings.training
    trains: list[Populations] = []
    judges: list[Populations] = []
    judging: list[int] = []
    for i, (one, names) in enumerate(zip(given, called, strict=True)):
        aligned = Aligned.to(one.split.source, genes)
        unlabelled = Marginal(aligned, dict(names))
        own, back = held_back(one.training, training.cells_per_population)
        for segments, into in ((own, trains), (back, judges)):
            if len(segments):
                into.append(
                    Populations(
                        unlabelled,
                        segments,
                        genes,
                        scale,
                        conditions.vocabularies,
                        cells_per_population=training.cells_per_population,
                        control_share=0.0,
                        seed=training.seed + i,
                        present=aligned.present,
                    )
                )
        judging += [i] * bool(len(back))
    drawn = MixedPopulations(trains, weights.tolist(), seed=training.seed)
    if not judges:
        return drawn, None
    return drawn, MixedPopulations(judges, weights[judging].tolist(), seed=training.seed)


def _mean_expression(
    measured: Sequence[Moments], genes: Sequence[str], weights: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """The mean log1p counts per 10^4 of each gene, over the sources that have it, by their weights [genes]."""
    totals, counted = np.zeros(len(genes)), np.zeros(len(genes))
    for moments, weight in zip(measured, weights, strict=True):
        place = moments.genes.get_indexer(pd.Index(genes))
        there = place >= 0
        totals[there] += weight * moments.logs[place[there]] / moments.n_cells
        counted[there] += weight
    return (totals / counted).astype(np.float32)


def _of_source(one: Given, own: Sequence[str], names: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": one.member.name,
        "recipe": one.member.recipe.name,
        "weight": one.member.weight,
        "cells": one.member.cells,
        "split": one.split.hash,
        "genes": list(own),
        "batches": dict(names),
    }


def _split(given: Sequence[Given]) -> dict[str, Any]:
    """What is kept of the splits: one hash over those of the sources; conditions are in the sources' recipes."""
    hashes = " ".join(one.split.hash for one in given)
    return {"hash": hashes, "seed": given[0].split.seed, "conditions": {part: [] for part in HELD_OUT}}
