r"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685): ``W + B A`` with W frozen, A and B of a small rank.

peft puts them around the linear maps of the blocks; in the model that is kept they are added to the weights, so that it
is a model like any other.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from perturbdiff.core.denoiser import Denoiser
from perturbdiff.core.randomness import stream

_NAME = "adapter"
_MAPS = r"blocks\.\d+\.(?!.*modulation).*(linear|proj|up|down)"
"""The linear maps of the blocks but for the modulations, whose weights begin at zero and are cheap."""


def adapted(denoiser: Denoiser, rank: int, seed: int) -> int:
    """Put adapters into a denoiser, in place, a function of the seed; how many.

    Raises:
        ValueError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ValueError(
            f"finetuning.adapter_rank = {rank} needs the library peft, which is not installed; install "
            "perturbdiff[adapters], or set it to 0."
        ) from None
    trained = {name for name, parameter in denoiser.named_parameters() if parameter.requires_grad}
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=_MAPS, bias="none")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.set_state(stream(seed, -3).get_state())
        inject_adapter_in_model(config, denoiser, adapter_name=_NAME)
    for name, parameter in denoiser.named_parameters():
        parameter.requires_grad = "lora_" in name or name in trained
    return sum(name.endswith(f"lora_A.{_NAME}.weight") for name, _ in denoiser.named_parameters())


def merged(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights with their adapters added to them."""
    found = {}
    for name, value in weights.items():
        if "lora_" in name:
            continue
        plain = name.replace(".base_layer.", ".")
        if plain != name and name.endswith("weight"):
            stem = name.removesuffix("base_layer.weight")
            a, b = (weights[f"{stem}lora_{part}.{_NAME}.weight"] for part in "AB")
            value = value + b @ a
        found[plain] = value
    return found
