"""The denoiser's symmetries, its masks, and a gradient for every parameter."""

import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from perturbdiff.core.choices import Target
from perturbdiff.core.conditioning import Conditioning
from perturbdiff.core.denoiser import Denoiser, DenoiserContract, Head, TimeEmbedding
from perturbdiff.core.objective import Objective
from perturbdiff.core.observation import observed
from perturbdiff.core.population import NULL, Condition, Noised, PopulationBatch
from perturbdiff.core.process import Process, linear_betas

ORDER, OTHER = torch.tensor([3, 0, 5, 4, 1, 2]), torch.tensor([1, 5, 0, 2, 4, 3])
both_joints = pytest.mark.parametrize("joint", ["tokens", "features"])
every_target = pytest.mark.parametrize("target", get_args(Target))
clamped_targets = pytest.mark.parametrize("target", [target for target in get_args(Target) if target != "counts"])
full_or_masked = pytest.mark.parametrize("lengths", [None, (6, 2, 4)])


def close(actual: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-10)


def differ(actual: Tensor, wanted: Tensor) -> None:
    assert float((actual - wanted).detach().abs().max()) > 1e-3


def reorder(noised: Noised, cells: Tensor | None = None, controls: Tensor | None = None) -> Noised:
    """Perturbed cells with their hints, and control cells, each in a new order."""
    if cells is not None:
        noised = noised._replace(x_t=noised.x_t[:, cells], self_conditioning=noised.self_conditioning[:, cells])
    if controls is not None:
        noised = noised._replace(control=noised.control[:, controls], totals=noised.totals[:, controls])
    return noised


# what the network gives


@both_joints
@clamped_targets
def test_x_0_is_what_the_target_says_clamped_at_0(make_denoiser, make_noised, joint, target):
    denoiser, noised = make_denoiser(joint=joint, target=target), make_noised()
    if target == "change":
        noised = noised._replace(expected=None)
    out, control_out = denoiser.streams(noised)
    unclamped = out if target == "cell" else out + noised.control
    if target == "residual":
        unclamped = unclamped + noised.expected[:, None]
    close(denoiser.unclamped(noised), unclamped)
    close(denoiser(noised), unclamped.clamp(min=0))
    assert denoiser.estimate(noised).totals is None
    assert (unclamped < 0).any()
    assert control_out is None
    assert isinstance(denoiser, DenoiserContract)


@both_joints
@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_counts_are_drawn_with_what_is_expected_and_what_the_network_adds_as_their_change(
    make_denoiser, make_noised, joint, scale
):
    denoiser, noised = make_denoiser(joint=joint, target="counts", scale=scale), make_noised()
    change = denoiser.streams(noised)[0] + noised.expected[:, None]
    close(denoiser.unclamped(noised), change)
    wanted = observed(noised.control, noised.totals, change * scale, noised.seed, scale=scale)
    found = denoiser.estimate(noised)
    close(found.x_0, wanted.x_0)
    assert torch.equal(found.totals, wanted.totals)
    assert torch.equal(denoiser(noised), found.x_0)
    assert isinstance(denoiser, DenoiserContract)


@pytest.mark.parametrize("field", ["totals", "seed"])
def test_counts_are_not_drawn_without_totals_and_seeds(make_denoiser, make_noised, field):
    denoiser, noised = make_denoiser(target="counts"), make_noised()._replace(**{field: None})
    with pytest.raises(ValueError, match="give their totals, and seeds"):
        denoiser(noised)
    denoiser.unclamped(noised)


@every_target
def test_what_is_expected_is_added_to_a_change_and_to_no_cell_and_only_where_the_perturbation_is_known(
    make_denoiser, make_noised, target
):
    denoiser, noised = make_denoiser(target=target), make_noised()
    noised = noised._replace(dropped=torch.tensor([[True, False, False], [False, True, True], [False] * 3]))
    added = denoiser.unclamped(noised) - denoiser.unclamped(noised._replace(expected=None))
    there = torch.tensor([[0.0], [1.0], [1.0]]) * (target != "cell")
    close(added, (there * noised.expected)[:, None].expand_as(added))


@both_joints
@pytest.mark.parametrize("target", ["change", "residual", "counts"])
def test_a_new_network_gives_the_control_cells_with_what_is_expected_of_them(make_noised, joint, target):
    conditioning = Conditioning((4, 3, 2), width=8, embedding_width=3)
    denoiser = Denoiser(conditioning, n_genes=5, width=8, depth=2, heads=2, joint=joint, target=target).double()
    noised = make_noised()._replace(expected=None)
    control = noised.control
    if target == "counts":  # there are whole numbers of them only
        per_count = (1e4 / noised.totals).unsqueeze(-1)
        control = torch.log1p((torch.expm1(control) / per_count).round() * per_count)
    close(denoiser(noised), control)
    expected = make_noised().expected
    unclamped = denoiser.unclamped(noised._replace(expected=expected))
    close(unclamped, expected[:, None] + (0 if target == "counts" else 1) * noised.control)


def test_the_time_embedding_is_its_formula(randomise):
    embedding = randomise(TimeEmbedding(6).double())
    t = torch.tensor([0, 1, 999])
    angles = torch.tensor([[u * 10_000 ** (-i / 128) for i in range(128)] for u in t.tolist()], dtype=torch.float64)
    waves = torch.cat([angles.cos(), angles.sin()], dim=1)
    wanted = embedding.down(torch.nn.functional.silu(embedding.up(waves)))
    # frequencies are made in float32, and angles reach 999
    torch.testing.assert_close(embedding(t), wanted, rtol=1e-3, atol=1e-3)
    assert math.isclose(float(embedding.frequencies[-1]), 10_000 ** (-127 / 128), rel_tol=1e-5)


def test_the_head_is_a_modulated_norm_and_one_linear_map(randomise, normal):
    head = randomise(Head(6, 4, std=0.02).double())
    h, c = normal(2, 3, 6, seed=30), normal(2, 1, 6, seed=31)
    shift, scale = (torch.sigmoid(c) * c @ head.modulation.linear.weight.T + head.modulation.linear.bias).split(6, -1)
    standard = (h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()
    close(head(h, c), (standard * (1 + scale) + shift) @ head.linear.weight.T + head.linear.bias)


@pytest.mark.parametrize(
    "field", ["x_t", "control", "self_conditioning", "t", "perturbation", "cell_type", "assay_batch"]
)
@both_joints
def test_everything_the_network_is_given_counts(make_denoiser, make_noised, joint, field):
    denoiser, noised = make_denoiser(joint=joint, target="cell"), make_noised()
    if field in Condition._fields:
        index = getattr(noised.condition, field)
        changed = noised._replace(condition=noised.condition._replace(**{field: torch.where(index == 1, 2, 1)}))
    else:
        changed = noised._replace(**{field: getattr(noised, field) + 1})
    difference = (denoiser.streams(changed)[0] - denoiser.streams(noised)[0]).abs()
    assert (difference.amax(dim=(1, 2)) > 1e-5).all()


@both_joints
def test_no_hint_is_a_hint_of_zeros(make_denoiser, make_noised, joint):
    denoiser, noised = make_denoiser(joint=joint), make_noised()
    zeros = noised._replace(self_conditioning=torch.zeros_like(noised.x_t))
    assert torch.equal(denoiser(noised._replace(self_conditioning=None)), denoiser(zeros))


@both_joints
@full_or_masked
@pytest.mark.parametrize("control_head", [False, True])
def test_modulation_by_cell_is_modulation_by_population(make_denoiser, make_noised, joint, lengths, control_head):
    noised = make_noised(lengths=lengths)
    by_population, by_cell = (
        make_denoiser(joint=joint, control_head=control_head, modulate_by=unit).streams(noised)
        for unit in ("population", "cell")
    )
    close(by_cell[0], by_population[0])
    if control_head:
        close(by_cell[1], by_population[1])


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="width=8 must be a multiple of heads=3"):
        Denoiser(Conditioning((1, 1, 1), width=8, embedding_width=2), n_genes=3, width=8, depth=1, heads=3)


# symmetries


def test_over_tokens_the_network_follows_the_cells_and_is_blind_to_the_order_of_controls(make_denoiser, make_noised):
    denoiser, noised = make_denoiser(joint="tokens", control_head=True), make_noised()
    out, control_out = denoiser.streams(noised)
    permuted, permuted_control = denoiser.streams(reorder(noised, ORDER, OTHER))
    close(permuted, out[:, ORDER])
    close(permuted_control, control_out[:, OTHER])


@both_joints
@every_target
def test_x_0_follows_cells_and_controls_permuted_together(make_denoiser, make_noised, joint, target):
    denoiser, noised = make_denoiser(joint=joint, target=target), make_noised()
    permuted = reorder(noised, ORDER, ORDER)
    close(denoiser.unclamped(permuted), denoiser.unclamped(noised)[:, ORDER])
    if target != "counts":  # whose draws are in the order of cells
        close(denoiser(permuted), denoiser(noised)[:, ORDER])


def test_under_the_change_target_x_0_is_tied_to_its_control_cell_by_the_sum_alone(make_denoiser, make_noised):
    denoiser, noised = make_denoiser(joint="tokens", target="change"), make_noised()
    other = reorder(noised, None, OTHER)
    close(denoiser.unclamped(other) - other.control, denoiser.unclamped(noised) - noised.control)
    differ(denoiser(other), denoiser(noised))


@pytest.mark.parametrize(("cells", "controls"), [(ORDER, None), (None, ORDER)], ids=["cells", "controls"])
def test_over_features_pairs_that_are_parted_give_another_output(make_denoiser, make_noised, cells, controls):
    denoiser, noised = make_denoiser(joint="features"), make_noised()
    out = denoiser.streams(noised)[0]
    parted = denoiser.streams(reorder(noised, cells, controls))[0]
    differ(parted, out if cells is None else out[:, cells])


@both_joints
@every_target
def test_masked_cells_may_stand_anywhere(make_denoiser, make_noised, joint, target):
    denoiser, noised = make_denoiser(joint=joint, target=target), make_noised(lengths=(6, 2, 4))
    last_first = torch.arange(6).flip(0)
    for order in (ORDER, last_first):
        moved = reorder(noised, order, order)._replace(mask=noised.mask[:, order])
        close(denoiser.unclamped(moved)[moved.mask], denoiser.unclamped(noised)[:, order][moved.mask])
    # the cells in the order that they had, so that counts are drawn alike, and padding before and between them
    for i, order in enumerate(([0, 1, 2, 3, 4, 5], [4, 0, 2, 5, 1, 3], [4, 0, 1, 5, 2, 3])):
        moved = reorder(noised, torch.tensor(order), torch.tensor(order))._replace(mask=noised.mask[:, order])
        close(denoiser(moved)[i][moved.mask[i]], denoiser(noised)[i][noised.mask[i]])


# populations are on their own


def alone(noised: Noised, i: int, length: int) -> Noised:
    rows = slice(i, i + 1)
    return noised._replace(
        x_t=noised.x_t[rows, :length],
        t=noised.t[rows],
        control=noised.control[rows, :length],
        condition=Condition(*(index[rows] for index in noised.condition)),
        mask=None,
        self_conditioning=noised.self_conditioning[rows, :length],
        totals=noised.totals[rows, :length],
        expected=noised.expected[rows],
        seed=noised.seed[rows],
    )


@both_joints
@full_or_masked
def test_a_population_of_a_minibatch_is_denoised_as_if_alone_and_unpadded(make_denoiser, make_noised, joint, lengths):
    denoiser, noised = make_denoiser(joint=joint, control_head=True), make_noised(lengths=lengths)
    out, control_out = denoiser.streams(noised)
    for i, m in enumerate(lengths or (6, 6, 6)):
        own, own_control = denoiser.streams(alone(noised, i, m))
        close(out[i, :m], own[0])
        close(control_out[i, :m], own_control[0])


@both_joints
@every_target
@full_or_masked
def test_x_0_of_a_population_of_a_minibatch_is_that_of_the_population_alone_and_unpadded(
    make_denoiser, make_noised, joint, target, lengths
):
    denoiser, noised = make_denoiser(joint=joint, target=target), make_noised(lengths=lengths)
    together = denoiser(noised)
    for i, m in enumerate(lengths or (6, 6, 6)):
        close(together[i, :m], denoiser(alone(noised, i, m))[0])


@both_joints
@every_target
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_padding_has_no_influence_whatsoever_on_cells_loss_or_gradients(
    make_denoiser, make_batch, normal, joint, target, dtype
):
    denoiser, batch = make_denoiser(joint=joint, target=target).to(dtype), make_batch(lengths=(6, 2, 4))
    padding = ~batch.mask.unsqueeze(-1)
    kept = batch.mask
    objective = Objective(Process(linear_betas(100)), condition_dropout=0.5, self_conditioning=0.7)
    results = []
    for value in (0.0, 1e3):
        padded = batch._replace(
            perturbed=batch.perturbed.masked_fill(padding, value).to(dtype),
            control=batch.control.masked_fill(padding, -2 * value).to(dtype),
            totals=batch.totals.masked_fill(~kept, 1 + value).to(dtype),
            expected=batch.expected.to(dtype),
        )
        draw = objective.draw(padded, seed=0, step=0)
        assert draw.self_conditioned.any()
        asked = Noised(
            padded.perturbed,
            draw.t,
            padded.control,
            padded.condition,
            padded.mask,
            draw.dropped,
            totals=padded.totals,
            expected=padded.expected[:, 0],
            seed=draw.seed,
        )
        loss = objective(denoiser, padded, draw)
        grads = torch.autograd.grad(loss.total, list(denoiser.parameters()), allow_unused=True)
        results.append([denoiser(asked)[kept], *loss, *(grad for grad in grads if grad is not None)])
    assert len(results[0]) > 30
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


# gradients


def _gradients(denoiser: Denoiser, batch: PopulationBatch, options: dict[str, Any]) -> dict[str, Tensor | None]:
    """After one loss in which each covariate is dropped for one population and kept for another."""
    n_populations = len(batch.key)
    dropped = torch.eye(n_populations, 3, dtype=torch.bool)
    dropped[-1] = True
    chosen = torch.arange(n_populations) % 2 == 0
    objective = Objective(Process(linear_betas(100)))
    draw = objective.draw(batch, seed=0, step=0)
    draw = draw._replace(dropped=dropped, control_dropped=torch.zeros_like(chosen), self_conditioned=chosen)
    total = objective(denoiser, batch, draw).total
    if options["control_head"]:
        noised = Noised(batch.perturbed, draw.t, batch.control, batch.condition, batch.mask, dropped)
        total = total + denoiser.streams(noised)[1].square().mean()
    total.backward()
    return {name: parameter.grad for name, parameter in denoiser.named_parameters()}


@pytest.mark.parametrize("depth", [1, 2])
@both_joints
@every_target
@pytest.mark.parametrize("null", ["covariate", "joint"])
@pytest.mark.parametrize("control_head", [False, True])
def test_gradients_reach_every_parameter(make_denoiser, make_batch, joint, target, null, control_head, depth):
    options = {"joint": joint, "target": target, "null": null, "control_head": control_head, "depth": depth}
    denoiser = make_denoiser(**options)
    with torch.no_grad():
        # no gene that random weights silence in every cell, and no change that is above the highest
        denoiser.head.linear.bias.fill_(2.0 if target == "counts" else 20.0)
    grads = _gradients(denoiser, make_batch(5), options)
    without = [name for name, grad in grads.items() if grad is None or not grad.isfinite().all() or not grad.any()]
    assert without == []
    # of each row of a weight, not only of the weight
    for name, grad in grads.items():
        if not name.startswith("conditioning") and grad.ndim == 2:
            assert (grad != 0).any(dim=1).all(), name


def test_nulls_and_the_labels_in_use_are_trained_and_no_others(make_denoiser, make_batch):
    batch = make_batch(3)
    grads = _gradients(make_denoiser(), batch, {"control_head": False})
    dropped = torch.eye(3, dtype=torch.bool) | (torch.arange(3) == 2)[:, None]
    for i, index in enumerate(batch.condition):
        trained = grads[f"conditioning.tables.{i}.weight"].ne(0).any(dim=1).nonzero().squeeze(1).tolist()
        assert trained == sorted({NULL, *index[~dropped[:, i]].tolist()})


@every_target
def test_a_new_network_opens_within_three_steps_and_every_weight_learns(make_batch, target):
    # at first only the head can move, which begins at zero; then the gates (adaLN-Zero); then all that is behind them
    conditioning = Conditioning((4, 3, 2), width=8, embedding_width=3)
    denoiser = Denoiser(conditioning, n_genes=5, width=8, depth=2, heads=2, target=target).double()
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-2)
    counts = []
    for _ in range(4):
        optimizer.zero_grad()
        grads = _gradients(denoiser, make_batch(5)._replace(expected=None), {"control_head": False})
        counts.append(sum(bool(grad.any()) for grad in grads.values()))
        optimizer.step()
    assert counts[0] < counts[-1] == len(grads)
