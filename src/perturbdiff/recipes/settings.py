"""Settings: strict, typed, carried by a recipe or a mixture, from whose tables [encoders], [model], ... they are read.

A preset fills in what is not given. Configuration ends at `building`: each `build_*` hands keyword arguments to core.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from perturbdiff.core.choices import COVARIATES, DropoutPer, Joint, ModulateBy, Null, Of, Pairing, Target, Variance
from perturbdiff.recipes.tables import Table, todays_names, validated

Preset = Literal["tiny", "small", "medium", "paper"]

_PRESETS: Mapping[Preset, Mapping[str, Mapping[str, int]]] = {
    "tiny": {
        "model": {"width": 64, "depth": 2, "heads": 4, "embedding_width": 32},
        "training": {"cells_per_population": 32, "populations_per_batch": 8},
    },
    "small": {
        "model": {"width": 128, "depth": 3, "heads": 4, "embedding_width": 64},
        "training": {"cells_per_population": 64, "populations_per_batch": 12},
    },
    "medium": {
        "model": {"width": 256, "depth": 6, "heads": 8, "embedding_width": 128},
        "training": {"cells_per_population": 128, "populations_per_batch": 16},
    },
    "paper": {
        "model": {"width": 512, "depth": 8, "heads": 8, "embedding_width": 512},
        "training": {"cells_per_population": 256, "populations_per_batch": 8},
    },
}


class EncoderSettings(Table):
    """What stands for the labels of a covariate.

    Attributes:
        kind: "labels" (a learned vector each), or features: a "table" (label -> vector, of any origin), fingerprints of
            molecules from "smiles", or genes by their expression "loadings" on the training control cells.
        file: of the table or of the SMILES, relative to the recipe.
        learned: whether labels with features have a learned vector too.
        missing: whether a training label without features is an "error", or has a "learned" vector only.
        components: of the loadings.
        radius, size: of the fingerprints.
    """

    kind: Literal["labels", "table", "smiles", "loadings"] = "labels"
    file: str | None = None
    learned: bool = True
    missing: Literal["error", "learned"] = "error"
    components: int = Field(default=32, ge=1)
    radius: int = Field(default=2, ge=1)
    size: int = Field(default=1024, ge=8)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind in {"labels", "loadings"} and self.file is not None:
            raise ValueError(
                f'file = {self.file!r} is of no use to kind = "{self.kind}"; leave it out, or write kind = "table" or '
                'kind = "smiles"'
            )
        if self.missing == "learned" and not self.learned:
            raise ValueError(
                'missing = "learned" and learned = false contradict each other: labels without features would have '
                "nothing; change one of them"
            )
        return self


class Encoders(Table):
    """An encoder for each covariate."""

    perturbation: EncoderSettings = EncoderSettings()
    cell_type: EncoderSettings = EncoderSettings()
    assay_batch: EncoderSettings = EncoderSettings()

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("cell_type", "assay_batch"):
            if getattr(self, name).kind == "loadings":
                raise ValueError(f'{name}.kind = "loadings" is of genes, which perturbations may be; use "table"')
        return self

    @property
    def with_learned_labels(self) -> frozenset[str]:
        """The covariates whose labels have a learned vector."""
        return frozenset(name for name in COVARIATES if getattr(self, name).learned)


class ModelSettings(Table):
    """The network, the process and the kernel: what a checkpoint's weights are bound to.

    Attributes:
        preset: fills in width, depth, heads and embedding_width where they are not given.
        joint, target, null, modulate_by: see `core.block`, `core.denoiser` and `core.conditioning`.
        schedule: "linear" (the paper), "cosine" or "power-cosine" (abar of the cosine to the power gamma).
        times: T.
        shared_noise: share of each cell's noise variance that its population has in common (rho); 0 is the paper.
        kernel: of the MMD; bandwidths, for the Gaussian one, in units of the training scale.
        scale: what expression is divided by; None measures it on the training cells (the release: 10).
        projections: of a mixture, whether its sources share the maps that read cells, see `core.denoiser`.
    """

    preset: Preset = "small"
    width: int = Field(default=0, ge=8)
    depth: int = Field(default=0, ge=1)
    heads: int = Field(default=0, ge=1)
    embedding_width: int = Field(default=0, ge=1)
    joint: Joint = "tokens"
    target: Target = "counts"
    null: Null = "covariate"
    modulate_by: ModulateBy = "population"
    schedule: Literal["linear", "cosine", "power-cosine"] = "linear"
    gamma: float = Field(default=0.3, gt=0)
    times: int = Field(default=1000, ge=2)
    shared_noise: float = Field(default=0.5, ge=0, le=1)
    kernel: Literal["energy", "gaussian"] = "energy"
    bandwidths: tuple[float, ...] = ()
    scale: float | None = Field(default=None, gt=0)
    projections: Literal["shared", "per_source"] = "shared"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width = {self.width} is not a multiple of heads = {self.heads}; change one of them")
        if (self.kernel == "gaussian") != bool(self.bandwidths):
            raise ValueError(
                f'bandwidths = {list(self.bandwidths)} does not fit kernel = "{self.kernel}"; '
                "give bandwidths for the gaussian kernel and none for the energy kernel"
            )
        return self


class TrainingSettings(Table):
    """How long and on what a model is trained; the objective's weights and coins.

    Attributes:
        max_steps: optimiser steps.
        cells_per_population: m.
        populations_per_batch: populations in one optimiser step, shared out among the processes of a training.
        learning_rate: of the plateau; reached after warmup_steps, held until (1 - decay_share) of the steps are done,
            then lowered along a cosine to a hundredth.
        weight_decay: of matrices only.
        ema_decay: of the averaged weights; step n averages with min(ema_decay, (1 + n) / (10 + n)).
        control_share: share of control -> control populations.
        novelty: share of populations whose label is taken, in each covariate, as if training had not seen it; of use
            where labels have features, doses, modalities or several members.
        context_dropout: share of populations whose expected change is taken from other contexts than their own.
        pairing: which control cells stand beside which perturbed cells, see `populations.pairing`.
        validate_every: steps between validations.
        validate_start: whether the weights of step 0 are judged too, and kept where none are found that are better.
        validation_populations: populations that a validation looks at, at most.
        patience: validations without a better one that end a training, once they are as many steps as the best one
            took, see `training.patience`; 0 trains on to max_steps.
        seed: of the split, the populations and all noise.
        precision: "auto" is bfloat16 where the device has it, else float32.
    """

    max_steps: int = Field(default=2000, ge=1)
    cells_per_population: int = Field(default=0, ge=2)
    populations_per_batch: int = Field(default=0, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    warmup_steps: int = Field(default=50, ge=0)
    decay_share: float = Field(default=0.5, ge=0, le=1)
    weight_decay: float = Field(default=0.01, ge=0)
    gradient_clip: float = Field(default=1.0, gt=0)
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    control_share: float = Field(default=0.1, ge=0, lt=1)
    pairing: Pairing = "assay_batch"
    mmd_weight: float = Field(default=1.0, ge=0)
    mse_weight: float = Field(default=0.0, ge=0)
    condition_dropout: float = Field(default=0.1, ge=0, le=1)
    control_dropout: float = Field(default=0.0, ge=0, le=1)
    self_conditioning: float = Field(default=0.0, ge=0, le=1)
    dropout_per: DropoutPer = "population"
    novelty: float = Field(default=0.5, ge=0, le=1)
    context_dropout: float = Field(default=0.25, ge=0, le=1)
    validate_every: int = Field(default=100, ge=1)
    validate_start: bool = True
    validation_populations: int = Field(default=32, ge=1)
    patience: int = Field(default=15, ge=0)
    seed: int = Field(default=0, ge=0)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.mmd_weight == self.mse_weight == 0:
            raise ValueError("mmd_weight and mse_weight are both 0; give one of them a positive weight")
        return self


class Guidance(Table):
    """A strength of the guidance for each covariate, in place of one for all at once, see `core.guidance`."""

    perturbation: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    cell_type: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    assay_batch: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    @property
    def strengths(self) -> tuple[float, float, float]:
        """In the order of `COVARIATES`."""
        return self.perturbation, self.cell_type, self.assay_batch


class SamplingSettings(Table):
    """How populations are drawn from a trained model.

    Attributes:
        steps: network evaluations, spread over the whole chain.
        truncate: keep to t < truncate (the release: 100, with as many steps).
        sampler: "ddim" with its eta, or "ddpm" with one of its fixed variances.
        guidance: strength w, or a table with one for each covariate; guidance_of: what it is applied to, see
            `core.guidance`.
        guidance_passes: "one" minibatch of all copies, or "two": the copies one after the other.
        cutoff: estimates of x_0 below it become 0, in units of the training scale.
    """

    steps: int = Field(default=10, ge=1)
    truncate: int | None = Field(default=None, ge=1)
    sampler: Literal["ddim", "ddpm"] = "ddim"
    eta: float = Field(default=0.0, ge=0, le=1)
    variance: Variance = "small"
    guidance: float | Guidance = 0.0
    guidance_of: Of = "change"
    guidance_passes: Literal["one", "two"] = "one"
    cutoff: float = Field(default=1e-4, ge=0)

    @field_validator("guidance", mode="before")
    @classmethod
    def _read_guidance(cls, given: Any) -> float | Guidance:  # noqa: ANN401 - whatever the file holds
        if isinstance(given, Mapping):
            return Guidance.model_validate(given)
        if isinstance(given, Guidance):
            return given
        if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given < math.inf:
            raise ValueError(
                f"{given!r} is no strength, which is a number of at least 0; write guidance = 1.0, or "
                "guidance = { perturbation = 1.5 } for one a covariate"
            )
        return float(given)


class FinetuningSettings(Table):
    """What a training that starts from a pretrained model keeps, freezes and learns slowly, see `training.transfer`.

    Attributes:
        head: whether the output head begins "fresh", or is "kept" for the genes that both panels have.
        labels: whether cell types and assay batches that both know keep their vectors ("by_name"), or none ("fresh").
        source: of a pretraining on several, the one that these cells are like: its assay batches are the same ones,
            and where each source has input projections they are taken from it; the recipe's own name when absent.
        control_stream: whether what reads control cells, which pretraining has none of, begins as pretraining left it
            ("kept") or as what reads cells ("copied").
        freeze: "nothing", or the "backbone": the blocks and the time embedding.
        layer_decay: the learning rate of a layer is this times that of the next one nearer to the output.
        adapter_rank: of low-rank adapters in the blocks, which are frozen then; 0 for none.
    """

    head: Literal["fresh", "kept"] = "fresh"
    labels: Literal["by_name", "fresh"] = "by_name"
    source: str | None = None
    control_stream: Literal["kept", "copied"] = "kept"
    freeze: Literal["nothing", "backbone"] = "nothing"
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    adapter_rank: int = Field(default=0, ge=0)

    @property
    def freezes(self) -> bool:
        """Whether the backbone stays as it is, adapters aside."""
        return self.freeze == "backbone" or self.adapter_rank > 0


class Settings(Table):
    """All settings of a run."""

    encoders: Encoders = Encoders()
    model: ModelSettings
    training: TrainingSettings
    sampling: SamplingSettings
    finetuning: FinetuningSettings = FinetuningSettings()

    @model_validator(mode="before")
    @classmethod
    def _rename(cls, tables: Any) -> Any:  # noqa: ANN401 - whatever the file holds
        return todays_names(tables)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (
            self.model.null == "joint"
            and self.training.dropout_per == "population"
            and self.training.condition_dropout > 0
        ):
            raise ValueError(
                'model.null = "joint" replaces all labels at once, which coins of one population each seldom drop '
                'together; set training.dropout_per = "minibatch"'
            )
        guidance = self.sampling.guidance
        if self.model.null == "joint" and isinstance(guidance, Guidance) and any(guidance.strengths):
            raise ValueError(
                f"sampling.guidance has strengths {guidance.strengths} for covariates one by one, and "
                'model.null = "joint" has no null but that of all; write one number, such as guidance = 1.0'
            )
        end = self.sampling.truncate or self.model.times
        if not self.sampling.steps <= end <= self.model.times:
            raise ValueError(
                f"sampling.steps = {self.sampling.steps} of {end} times does not fit a chain of "
                f"model.times = {self.model.times}; lower steps or truncate"
            )
        return self

    def without_counts(self) -> "Settings":
        """The same for cells that cannot be drawn as counts: their log1p values are changed."""
        if self.model.target != "counts":
            return self
        return self.model_copy(update={"model": self.model.model_copy(update={"target": "residual"})})


class Configured(Table):
    """A table that carries settings, in tables of its own by the names of those of `Settings`."""

    name: str

    @model_validator(mode="before")
    @classmethod
    def _rename(cls, table: Any) -> Any:  # noqa: ANN401 - whatever the file holds
        return todays_names(table)

    @property
    def settings(self) -> Settings:
        """Its settings; errors as in `settings_with`."""
        return self.settings_with()

    def settings_with(self, **overrides: Mapping[str, Any]) -> Settings:
        """Its settings, with the preset's values and then `overrides` per table (model=..., training=...).

        Raises:
            ValueError: an unknown key (the nearest is named), a wrong type or a value out of range.
        """
        tables = {
            name: dict(getattr(self, name, {})) | {k: v for k, v in overrides.get(name, {}).items() if v is not None}
            for name in Settings.model_fields
        }
        preset = tables["model"].get("preset", "small")
        filled = {name: dict(_PRESETS.get(preset, {}).get(name, {})) | table for name, table in tables.items()}
        return validated(Settings, filled, f"the settings of {self.name!r}")
