"""From settings to what they stand for: where configuration ends, and core takes keyword arguments."""

from collections.abc import Sequence

from torch import Tensor

from perturbdiff.core.conditioning import Conditioning, Covariate
from perturbdiff.core.denoiser import Denoiser, DenoiserContract
from perturbdiff.core.guidance import Guided
from perturbdiff.core.kernel import EnergyKernel, GaussianKernel, Kernel
from perturbdiff.core.objective import Objective
from perturbdiff.core.process import Process, linear_betas, power_cosine_betas
from perturbdiff.core.sampler import DDIM, DDPM, Sampler, respaced
from perturbdiff.recipes.settings import Guidance, ModelSettings, SamplingSettings, Settings


def build_process(settings: ModelSettings) -> Process:
    """The forward chain."""
    if settings.schedule == "linear":
        betas = linear_betas(settings.times)
    else:
        gamma = 1.0 if settings.schedule == "cosine" else settings.gamma
        betas = power_cosine_betas(settings.times, gamma)
    return Process(betas, rho=settings.shared_noise)


def build_kernel(settings: ModelSettings) -> Kernel:
    """The kernel of the loss."""
    return EnergyKernel() if settings.kernel == "energy" else GaussianKernel(settings.bandwidths)


def build_denoiser(
    settings: Settings,
    *,
    n_genes: int,
    labels: Sequence[int | Covariate],
    scale: float = 1.0,
    sources: Tensor | None = None,
) -> Denoiser:
    """The network, untrained, for so many genes, the labels of each covariate, the scale and sources of the batches."""
    model = settings.model
    conditioning = Conditioning(labels, width=model.width, embedding_width=model.embedding_width, null=model.null)
    return Denoiser(
        conditioning,
        n_genes=n_genes,
        width=model.width,
        depth=model.depth,
        heads=model.heads,
        joint=model.joint,
        target=model.target,
        modulate_by=model.modulate_by,
        self_conditioning=settings.training.self_conditioning > 0,
        scale=scale,
        sources=sources if model.projections == "per_source" else None,
    )


def build_objective(settings: Settings) -> Objective:
    """The loss."""
    training = settings.training
    return Objective(
        build_process(settings.model),
        kernel=build_kernel(settings.model),
        mmd_weight=training.mmd_weight,
        mse_weight=training.mse_weight,
        condition_dropout=training.condition_dropout,
        control_dropout=training.control_dropout,
        self_conditioning=training.self_conditioning,
        dropout_per=training.dropout_per,
        novelty=training.novelty,
        context_dropout=training.context_dropout,
    )


def build_guided(settings: SamplingSettings, denoiser: DenoiserContract) -> DenoiserContract:
    """The denoiser with its guidance; itself where all strengths are 0."""
    given = settings.guidance
    guided = Guided(
        denoiser,
        strength=given.strengths if isinstance(given, Guidance) else given,
        of=settings.guidance_of,
        one_pass=settings.guidance_passes == "one",
    )
    return guided if guided.terms else denoiser


def build_sampler(settings: Settings) -> Sampler:
    """The reverse chain."""
    sampling = settings.sampling
    return Sampler(
        build_process(settings.model),
        respaced(settings.model.times, sampling.steps, truncate=sampling.truncate),
        DDIM(sampling.eta) if sampling.sampler == "ddim" else DDPM(sampling.variance),
        cutoff=sampling.cutoff,
    )
