"""With the release's weights and the parity settings, every tensor it was recorded to compute."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from perturbdiff.core.conditioning import Conditioning
from perturbdiff.core.denoiser import Denoiser
from perturbdiff.core.guidance import Guided
from perturbdiff.core.kernel import EnergyKernel, energy_distance
from perturbdiff.core.objective import Objective
from perturbdiff.core.population import Condition, Noised, PopulationBatch
from perturbdiff.core.process import Process, linear_betas
from perturbdiff.core.sampler import DDIM, Sampler, respaced

pytestmark = pytest.mark.golden


def release_weights(weights: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """The release's names and layout -> ours."""
    w = {name.removeprefix("denoiser."): value for name, value in weights.items()}
    null = w["gene_embedding.null_emb.weight"][0]
    n_genes = w["final_layer.linear.weight"].shape[0]

    def with_null(table: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(table[:1]), table])

    ours = {
        "time.up": "t_embedder.mlp.0",
        "time.down": "t_embedder.mlp.2",
        "conditioning.project": "class_embedding.emb",
        "conditioning.mix": "covariates.transform",
        "head.linear": "final_layer.linear",
        "head.modulation.linear": "final_layer.adaLN_modulation.1",
        "control_head.linear": "control_final_layer.linear",
        "control_head.modulation.linear": "control_final_layer.adaLN_modulation.1",
    }
    for i in range(depth):
        block, theirs = f"blocks.{i}", f"blocks.{i}.block"
        ours |= {
            f"{block}.attention.qkv.linear": f"{theirs}.attn.qkv",
            f"{block}.attention.proj": f"{theirs}.attn.proj",
            f"{block}.mlp.up": f"{theirs}.mlp.fc1",
            f"{block}.mlp.down": f"{theirs}.mlp.fc2",
            f"{block}.control_mlp.up": f"{theirs}.control_mlp.fc1",
            f"{block}.control_mlp.down": f"{theirs}.control_mlp.fc2",
            f"{block}.modulation.linear": f"{theirs}.adaLN_modulation.1",
            f"{block}.control_modulation.linear": f"{theirs}.control_adaLN_modulation.1",
        }
    state = {f"{a}.{part}": w[f"{b}.{part}"] for a, b in ours.items() for part in ("weight", "bias")}
    for i in range(depth):
        for norm in ("q_norm", "k_norm"):
            state[f"blocks.{i}.attention.qkv.{norm}.weight"] = w[f"blocks.{i}.block.attn.{norm}.weight"]
    return state | {
        # the null gene embedding is added to every token of both streams: a part of their biases
        "embed.weight": w["x_embedder.weight"],
        "embed.bias": w["x_embedder.bias"] + null,
        # the second half of the control stream's input is always zero
        "embed_control.weight": w["x_control_embedder.weight"][:, :n_genes],
        "embed_control.bias": w["x_control_embedder.bias"] + null,
        "conditioning.joint_null": w["class_embedding.null_emb.weight"][0],
        "conditioning.tables.0.weight": w["covariates.pert_encoder.weight"],
        "conditioning.tables.1.weight": with_null(w["covariates.celltype_encoder.weight"]),
        "conditioning.tables.2.weight": with_null(w["covariates.batch_encoder.weight"]),
    }


@pytest.fixture(scope="module")
def config(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "original.json").read_text())["config"]


@pytest.fixture(scope="module")
def expected(golden: Path) -> dict[str, Tensor]:
    return load_file(golden / "original.tensors.safetensors")


@pytest.fixture(scope="module")
def process(config: dict[str, Any]) -> Process:
    return Process(linear_betas(config["steps"]))


@pytest.fixture(scope="module", params=["population", "cell"])
def denoiser(request: pytest.FixtureRequest, golden: Path, config: dict[str, Any]) -> Denoiser:
    conditioning = Conditioning(
        (config["n_perturbations"], config["n_cell_types"], config["n_batches"]),
        width=config["hidden"],
        embedding_width=config["covariate_hidden"],
        mixed_width=config["n_genes"],
        null="joint",
    )
    model = Denoiser(
        conditioning,
        n_genes=config["n_genes"],
        width=config["hidden"],
        depth=config["depth"],
        heads=config["heads"],
        joint="features",
        target="cell",
        modulate_by=request.param,
        control_head=True,
    )
    weights = load_file(golden / "original.weights.safetensors")
    model.load_state_dict(release_weights(weights, config["depth"]))
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def condition(expected: dict[str, Tensor]) -> Condition:
    labels = (expected[name] for name in ("perturbation", "cell_type", "batch"))
    return Condition(*(label[:, 0].long() + 1 for label in labels))


@pytest.fixture(scope="module")
def asked(expected: dict[str, Tensor], condition: Condition) -> Noised:
    return Noised(
        expected["x_t"],
        expected["t"],
        expected["control"],
        condition,
        self_conditioning=expected["self_conditioning"],
    )


def close(actual: Tensor, wanted: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual.to(wanted.dtype), wanted, rtol=1e-4, atol=atol)


def test_conditions_are_constant_in_a_population_and_mixed_as_in_the_release(denoiser, expected, condition):
    conditioning = denoiser.conditioning
    vectors = [table(index) for table, index in zip(conditioning.tables, condition, strict=True)]
    mixed = conditioning.mix(torch.cat(vectors, dim=-1))
    close(mixed[:, None].expand_as(expected["covariate_embedding"]), expected["covariate_embedding"])


def test_the_network_denoises_as_the_release(denoiser, expected, asked):
    perturbed, control = (out.relu() for out in denoiser.streams(asked))
    close(perturbed, expected["denoised"])
    close(control, expected["denoised_control_stream"])
    close(denoiser(asked), expected["denoised"])


def test_the_unconditional_pass_replaces_the_condition_and_keeps_the_controls(denoiser, expected, asked):
    everything = torch.ones(len(asked.t), 3, dtype=torch.bool)
    close(denoiser(asked._replace(dropped=everything)), expected["denoised_unconditional"])


def test_the_diffusion_algebra_is_the_releases(process, expected):
    x_0, t, noise = expected["x0"], expected["t"], expected["noise"]
    close(process.corrupt(x_0, t, noise), expected["x_t"])
    mean, variance = process.posterior(x_0, expected["x_t"], t)
    close(mean, expected["posterior_mean"])
    close(variance[:, None, None].expand(expected["posterior_variance"].shape), expected["posterior_variance"])


def test_the_losses_are_the_releases(denoiser, process, expected, asked):
    estimate = denoiser(asked._replace(self_conditioning=None))
    batch = PopulationBatch(expected["x0"], expected["control"], None, asked.condition, torch.arange(len(asked.t)))
    loss = Objective(process, kernel=EnergyKernel()).compare(batch, estimate)
    close(loss.mse, expected["mse_per_set"])
    close(loss.mmd, expected["energy_per_set"], atol=1e-4)
    close(loss.total, (expected["mse_per_set"] + expected["energy_per_set"]).mean(), atol=1e-4)


def test_the_energy_distance_is_the_releases(expected):
    energy = energy_distance(expected["x0"], expected["control"], estimate="biased")
    close(energy, expected["energy_x0_control"], atol=1e-4)


@pytest.mark.parametrize("one_pass", [True, False])
@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_truncated_guided_sampling_is_the_releases(denoiser, process, config, expected, condition, strength, one_pass):
    start = Noised(
        expected["ddim_initial_noise"],
        torch.zeros(len(condition.perturbation), dtype=torch.long),
        expected["control"],
        condition,
    )
    times = respaced(config["steps"], config["start_time"], truncate=config["start_time"])
    assert times == list(range(config["start_time"] - 1, -1, -1))
    sampler = Sampler(process, times, DDIM(), cutoff=config["cutoff"])
    *_, last = sampler.reverse(Guided(denoiser, strength=strength, one_pass=one_pass), start, torch.zeros_like)
    assert last.t == -1
    close(last.x_t, expected[f"ddim_12_steps_guidance_{strength:.0f}"], atol=1e-4)
