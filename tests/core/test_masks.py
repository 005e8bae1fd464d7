"""Genes that were not measured have no part in the output, the loss or any gradient, whatever stands at them."""

from typing import get_args

import pytest
import torch

from perturbdiff.core.choices import Target
from perturbdiff.core.conditioning import Conditioning
from perturbdiff.core.denoiser import Denoiser, SourceLinear
from perturbdiff.core.objective import Objective
from perturbdiff.core.population import Condition, Noised, PopulationBatch
from perturbdiff.core.process import Process, linear_betas

GENES = 7
MEASURED = torch.tensor([[1, 1, 0, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1, 1]], dtype=torch.bool)


def denoiser(target, **options):
    conditioning = Conditioning((2, 2, 2), width=8, embedding_width=4)
    made = Denoiser(conditioning, n_genes=GENES, width=8, depth=2, heads=2, target=target, **options)
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return made


def batch(elsewhere, generator):
    cells = torch.rand(2, 2, 5, GENES, generator=generator)
    perturbed, control = (torch.where(MEASURED[:, None], own, elsewhere) for own in cells)
    index, totals = torch.tensor([1, 2]), torch.full((2, 5), 5000.0)
    expected = torch.where(MEASURED[:, None], torch.rand(2, 1, GENES, generator=generator), elsewhere)
    return PopulationBatch(
        perturbed, control, None, Condition(index, index, index), index, MEASURED, totals=totals, expected=expected
    )


@pytest.mark.parametrize("target", get_args(Target))
@pytest.mark.parametrize("elsewhere", [float("nan"), 1e9])
def test_what_stands_at_unmeasured_genes_changes_no_number_and_no_gradient(target, elsewhere, generator):
    model = denoiser(target, self_conditioning=True)
    objective = Objective(Process(linear_betas(20)), self_conditioning=1.0)
    state, found = generator.get_state(), []
    for value in (0.0, elsewhere):
        generator.set_state(state)
        own = batch(value, generator)
        model.zero_grad()
        loss = objective(model, own, objective.draw(own, seed=0, step=0))
        loss.total.backward()
        found.append([loss.total.detach(), loss.mmd.detach(), loss.mse.detach(), *(p.grad for p in model.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert all(bool(value.isfinite().all()) for value in found[1])


@pytest.mark.parametrize("target", get_args(Target))
def test_no_gradient_reaches_the_columns_of_unmeasured_genes_and_the_output_is_zero_there(target, generator):
    model = denoiser(target, self_conditioning=True)
    own = batch(0.5, generator)._replace(genes=MEASURED[:1].expand(2, -1))
    objective = Objective(Process(linear_betas(20)), self_conditioning=1.0)
    objective(model, own, objective.draw(own, seed=0, step=0)).total.backward()
    absent = ~MEASURED[0]
    for weight in (
        model.embed.weight.grad[:, :GENES],
        model.embed_control.weight.grad,
        model.head.linear.weight.grad.T,
    ):
        assert bool((weight[:, absent] == 0).all())
        assert bool((weight[:, ~absent] != 0).any())
    assert bool((model.head.linear.bias.grad[absent] == 0).all())
    noised = Noised(own.perturbed, own.key, own.control, own.condition, genes=own.genes)
    x_0 = model(noised._replace(totals=own.totals, expected=own.expected[:, 0], seed=own.key))
    assert bool((x_0[..., absent] == 0).all())


def test_the_mean_of_squares_is_over_measured_genes(generator):
    own = batch(0.0, generator)
    objective = Objective(Process(linear_betas(20)))
    given = torch.zeros_like(own.perturbed)
    expected = own.perturbed.square().sum(dim=(1, 2)) / (5 * MEASURED.sum(dim=1))
    torch.testing.assert_close(objective.compare(own, given).mse, expected)


def test_a_mask_of_all_genes_is_no_mask(generator):
    model = denoiser("change")
    own = batch(0.0, generator)
    noised = Noised(own.perturbed, own.key, own.control, own.condition)
    assert torch.equal(model(noised), model(noised._replace(genes=torch.ones_like(MEASURED))))


def test_each_source_reads_with_its_own_map_and_unknown_cells_with_their_mean(generator):
    maps = SourceLinear(2, GENES, 3)
    x = torch.rand(3, 4, GENES, generator=generator)
    out = maps(x, torch.tensor([1, 2, 0]))
    for i, source in enumerate((0, 1)):
        torch.testing.assert_close(out[i], x[i] @ maps.weight[source].T + maps.bias[source])
    torch.testing.assert_close(out[2], x[2] @ maps.weight.mean(dim=0).T + maps.bias.mean(dim=0))


def test_a_batch_is_read_by_the_map_of_its_source(generator):
    model = denoiser("change", sources=torch.tensor([0, 1, 2]))
    own = batch(0.0, generator)
    noised = Noised(own.perturbed, own.key, own.control, own.condition)
    before = model(noised)
    with torch.no_grad():
        model.embed.weight[0] += 1.0
    after = model(noised)
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
