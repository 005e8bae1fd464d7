r"""Beginning a training from a pretrained model: what is kept, what begins afresh, what is frozen or learns slowly.

    blocks, time embedding                  kept
    input projections                       kept for the genes that both panels have, fresh for the others; of a
                                            pretraining with projections per source those of one source, or their mean
    cell types, assay batches               kept where both know the label, fresh for the others; their nulls are kept
    mixing of the covariates                kept, but for what reads the perturbation
    perturbations                           fresh: pretraining has no perturbation
    output head                             fresh, or kept for the genes that both panels have

The network is that of the pretrained model, and so are its process, kernel and scale: weights mean something only with
these. With a learning rate of eta, layer decay d and L blocks, block l = 1 .. L learns at ``eta d^(L + 1 - l)``, what
comes before the blocks at ``eta d^(L + 1)``, and what comes after them, or is fresh, at eta.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from perturbdiff.checkpoint import Checkpoint, ModelSpec
from perturbdiff.core.choices import COVARIATES
from perturbdiff.recipes.dataset import Recipe
from perturbdiff.recipes.settings import Settings
from perturbdiff.spelling import nearest
from perturbdiff.split.rules import Split
from perturbdiff.training.adapters import adapted, merged
from perturbdiff.training.fitting import InitialState
from perturbdiff.training.run import weights_hash

_LOG = logging.getLogger(__name__)

BOUND = (
    *("width", "depth", "heads", "embedding_width", "joint", "null", "modulate_by"),
    *("schedule", "gamma", "times", "shared_noise", "kernel", "bandwidths"),
)
"""Settings of the network that a fine-tuned model takes from the pretrained one."""

BACKBONE = ("blocks.", "time.")
FRESH = ("conditioning.novelty_embedding.", "conditioning.tables.0.")


def fine_tuned(recipe: Recipe, pretrained: Checkpoint, **overrides: Mapping[str, Any]) -> Settings:
    """The settings of a recipe, its network and scale those of a pretrained model.

    Raises:
        ValueError: the recipe asks for another network, or as in `settings_with`.
    """
    before = pretrained.settings
    own = {name: getattr(before.model, name) for name in BOUND} | {"scale": pretrained.scale}
    given = {name: value for name, value in dict(recipe.model).items() if name != "preset"}
    asked = recipe.settings_with(**overrides).model
    for name, value in own.items():
        if name in given and getattr(asked, name) != value:
            raise ValueError(
                f"model.{name} = {getattr(asked, name)!r} is not that of the pretrained model ({value!r}), whose "
                "weights mean nothing with another; leave it out."
            )
    table = {name: value for name, value in own.items() if name != "gamma" or before.model.schedule == "power-cosine"}
    settings = recipe.settings_with(**{**overrides, "model": {**overrides.get("model", {}), **table}})
    if (settings.training.self_conditioning > 0) != (before.training.self_conditioning > 0):
        raise ValueError(
            f"training.self_conditioning = {settings.training.self_conditioning} does not fit the pretrained model's "
            f"{before.training.self_conditioning}: a network looks at its own estimate or has no weights for it; set "
            "both above 0, or both to 0."
        )
    return settings


def check_unseen(pretrained: Checkpoint, split: Split) -> None:
    """The audit of a fine-tuning: that pretraining has not seen the split's held-out cells.

    Raises:
        ValueError: it has.
    """
    seen = () if pretrained.pretraining is None else pretrained.pretraining.seen
    leaks = [leak for own in seen for leak in own.leaks(split)]
    if leaks:
        raise ValueError(leaks[0])


def begun_from(pretrained: Checkpoint) -> dict[str, Any]:
    """What a fine-tuned model remembers of the pretrained one."""
    return {
        "weights": weights_hash(pretrained.weights),
        "name": pretrained.recipe.name,
        "sources": _source_names(pretrained),
        "history": dict(pretrained.history),
    }


def _source_names(pretrained: Checkpoint) -> list[str]:
    """What a model was trained on first."""
    if pretrained.pretraining is None:
        return [pretrained.recipe.name]
    return [str(own["name"]) for own in pretrained.pretraining.sources]


_NAMES = (
    ("blocks", r"blocks\."),
    ("time embedding", r"time\."),
    ("input projections", r"embed"),
    ("perturbations", r"conditioning\.(tables\.0|novelty_embedding)"),
    ("cell types", r"conditioning\.tables\.1"),
    ("assay batches", r"conditioning\.tables\.2"),
    ("mixing of covariates", r"conditioning\."),
    ("output head", r"head\."),
)


class _Part(NamedTuple):
    """What became of some weights, for the summary."""

    name: str
    kept: int
    fresh: int


def transferred(pretrained: Checkpoint, fresh: InitialState) -> InitialState:
    """What a fine-tuning starts with; what was kept is logged.

    Args:
        pretrained: the model to begin from.
        fresh: the same training without it.

    Raises:
        ValueError: no gene is in both panels, or `finetuning.source` is none of the pretraining's.
    """
    spec, denoiser = fresh.spec, fresh.denoiser
    new, old, transfer = denoiser.state_dict(), pretrained.weights, _Transfer.of(pretrained, spec)
    parts = []
    for name, value in new.items():
        untouched = torch.ones_like(value, dtype=torch.bool)
        if not name.startswith(FRESH) and name in old:
            before = transfer.of_source(old[name], value)
            for to, at in transfer.kept(name, value):
                value[to] = before[at]
                untouched[to] = False
        parts.append(_Part(name, int((~untouched).sum()), int(untouched.sum())))
    if spec.settings.finetuning.control_stream == "copied":
        _copy_stream(new)
    denoiser.load_state_dict(new)
    for sentence in transfer.summary(parts):
        _LOG.info(sentence)
    return _frozen(fresh)


@dataclass(frozen=True, eq=False)
class _Transfer:
    """What the pretrained model and the model to come have in common.

    Attributes:
        pretrained: the model to begin from.
        spec: of the model to come.
        genes: those of both panels, by their places in the new and in the old one.
        source: the one of the pretraining that the cells are like, 1 and up; 0 for none.
    """

    pretrained: Checkpoint
    spec: ModelSpec
    genes: tuple[Tensor, Tensor]
    source: int

    @classmethod
    def of(cls, pretrained: Checkpoint, spec: ModelSpec) -> "_Transfer":
        """Match the two; errors as in `transferred`."""
        place = {gene: i for i, gene in enumerate(pretrained.genes)}
        shared = [(i, place[gene]) for i, gene in enumerate(spec.genes) if gene in place]
        if not shared:
            raise ValueError(
                f"none of the panel's {len(spec.genes)} genes, such as {spec.genes[0]!r}, is among the {len(place)} of "
                f"the pretrained model, such as {pretrained.genes[0]!r}; give both the same kind of names."
            )
        wanted = spec.settings.finetuning.source
        names = [] if pretrained.pretraining is None else _source_names(pretrained)
        if wanted is not None and wanted not in names:
            raise ValueError(
                f"finetuning.source = {wanted!r} is none of the sources that the model was pretrained on; "
                f"{nearest(wanted, names)}."
            )
        name = wanted or spec.recipe.name
        return cls(pretrained, spec, _places(shared), names.index(name) + 1 if name in names else 0)

    def of_source(self, before: Tensor, like: Tensor) -> Tensor:
        """Of weights for each source those of one, or their mean."""
        if before.ndim == like.ndim:
            return before
        return before[self.source - 1] if self.source else before.mean(dim=0)

    def kept(self, name: str, value: Tensor) -> list[tuple[Any, Any]]:
        """Which of the new weights are which of the old ones: pairs of indices."""
        everything = [(slice(None), slice(None))]
        if name.startswith("head."):
            if self.spec.settings.finetuning.head == "fresh":
                return []
            return [self.genes] if name.startswith("head.linear") else everything
        if name.startswith("embed") and not name.endswith("bias"):
            # beside x_t stands the network's own estimate, where it looks at one
            (to, at), n_genes, n_before = self.genes, len(self.spec.genes), len(self.pretrained.genes)
            inputs = range(value.shape[1] // n_genes)
            return [((slice(None), to + i * n_genes), (slice(None), at + i * n_before)) for i in inputs]
        if name.startswith("conditioning.tables."):
            return self._by_label(name, value)
        if name == "conditioning.mix.weight":
            first = value.shape[1] // len(COVARIATES)
            return [((slice(None), slice(first, None)),) * 2]
        return everything

    def _by_label(self, name: str, value: Tensor) -> list[tuple[Any, Any]]:
        """Where the vectors of shared labels stand; a projection of features is kept whole, where they are as wide."""
        covariate = COVARIATES[int(name.split(".")[2])]
        if not name.endswith(f"{name.split('.')[2]}.weight"):
            same = self.pretrained.weights[name].shape == value.shape
            return [(slice(None), slice(None))] if same else []
        rows = [(0, 0)]
        if self.spec.settings.finetuning.labels == "by_name":
            known = {label: i for i, label in enumerate(self.pretrained.vocabularies[covariate].labels, start=1)}
            called = self._batches
            for i, label in enumerate(self.spec.vocabularies[covariate].labels, start=1):
                # an assay batch is that of another data set only where the sources are the same
                old = called.get(label) if covariate == "assay_batch" else label
                if old in known:
                    rows.append((i, known[old]))
        return [_places(rows)]

    @property
    def _batches(self) -> Mapping[str, str]:
        """What the assay batches of the cells were called in the pretraining."""
        if self.pretrained.pretraining is None or not self.source:
            return {}
        batches: Mapping[str, str] = self.pretrained.pretraining.sources[self.source - 1]["batches"]
        return batches

    def summary(self, parts: list[_Part]) -> Iterator[str]:
        """What the user is told."""
        names, spec = _source_names(self.pretrained), self.spec
        like = f"; these cells are taken as more of {names[self.source - 1]!r}" if self.source else ""
        yield f"begins from a model pretrained on {', '.join(map(repr, names))}{like}."
        yield (
            f"genes: {len(self.genes[0])} of the panel's {len(spec.genes)} are among the {len(self.pretrained.genes)} "
            "of pretraining."
        )
        left = list(parts)
        for title, pattern in _NAMES:
            own = [part for part in left if re.match(pattern, part.name)]
            left = [part for part in left if part not in own]
            kept, fresh = sum(part.kept for part in own), sum(part.fresh for part in own)
            if not kept + fresh:
                continue
            held = title in {"blocks", "time embedding"} and spec.settings.finetuning.freezes
            state = (
                "kept" if not fresh else "fresh" if not kept else f"{kept / (kept + fresh):.0%} kept, the rest fresh"
            )
            yield f"{title}: {state}{', frozen' if held else ''} ({kept + fresh:,} numbers)."


def _places(pairs: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Pairs of (new place, old place) as two rows of indices."""
    to, at = (torch.tensor(places) for places in zip(*pairs, strict=True))
    return to, at


def _copy_stream(weights: dict[str, Tensor]) -> None:
    """Let what reads control cells begin as what reads cells does: in pretraining it saw zeros only."""
    for name in list(weights):
        twin = re.sub(r"(^|\.)control_(?=qkv|proj|mlp|modulation)", r"\1", name).replace("embed_control", "embed")
        if twin == name or twin not in weights:
            continue
        # rows or columns that only one of the two has (queries, the network's own estimate) are left as they are
        own, other = weights[name], weights[twin]
        if own.shape == other.shape:
            own.copy_(other)
        elif name == "embed_control.weight":
            own.copy_(other[:, : own.shape[1]])


def _frozen(begun: InitialState) -> InitialState:
    denoiser, settings = begun.denoiser, begun.spec.settings.finetuning
    if settings.freezes:
        for name, parameter in denoiser.named_parameters():
            parameter.requires_grad = not name.startswith(BACKBONE)
    if not settings.adapter_rank:
        return begun
    n_adapted = adapted(denoiser, settings.adapter_rank, begun.spec.settings.training.seed)
    _LOG.info(f"{n_adapted} linear maps of the blocks learn by adapters of rank {settings.adapter_rank}.")
    return replace(begun, finished=merged)
