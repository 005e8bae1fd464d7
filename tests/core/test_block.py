"""The two-stream block, against an attention written out token by token, and by its symmetries."""

import itertools

import pytest
import torch
from torch import Tensor

from perturbdiff.core.block import Block, FeatureAttention, TokenAttention

WIDTH, HEADS, HEAD = 8, 2, 4
everywhere = pytest.mark.parametrize(
    ("joint", "reads_control"), list(itertools.product(["tokens", "features"], [True, False]))
)


@pytest.fixture
def make_block(randomise):
    def make(joint: str, *, reads_control: bool = True) -> Block:
        return randomise(Block(WIDTH, HEADS, joint=joint, reads_control=reads_control).double())

    return make


@pytest.fixture
def inputs(normal) -> tuple[Tensor, Tensor, Tensor]:
    """Both streams and the condition vectors of three populations."""
    return normal(3, 5, WIDTH, seed=2), normal(3, 5, WIDTH, seed=3), normal(3, 1, WIDTH, seed=4)


def close(actual: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-10)


def layer_norm(h: Tensor) -> Tensor:
    centred = h - h.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()


def heads_of(packed: Tensor, width: int) -> list[Tensor]:
    """One token's packed projections -> its parts, each [heads, width of a head]."""
    return [part.reshape(HEADS, width // HEADS) for part in packed.split(width)]


def normed(part: Tensor, weight: Tensor) -> Tensor:
    return part / (part.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * weight


def mix(q: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """One query's softmax average, head by head."""
    out = []
    for head in range(HEADS):
        scores = torch.stack([q[head] @ k[head] for k in keys]) / q.shape[-1] ** 0.5
        weights = scores.exp() / scores.exp().sum()
        out.append(sum(w * v[head] for w, v in zip(weights, values, strict=True)))
    return torch.cat(out)


@pytest.mark.parametrize("lengths", [(5, 5), (5, 3)])
def test_attention_over_tokens_is_softmax_over_the_cells_of_both_streams(randomise, normal, make_mask, lengths):
    attention = randomise(TokenAttention(WIDTH, HEADS, reads_control=True).double())
    h, control = normal(2, 5, WIDTH, seed=5), normal(2, 5, WIDTH, seed=6)
    out, control_out = attention(h, control, make_mask(lengths, 5))
    for b, m in enumerate(lengths):
        queries, keys, values = [], [], []
        for stream, qkv in ((h, attention.qkv), (control, attention.control_qkv)):
            for cell in stream[b, :m]:
                q, k, v = heads_of(qkv.linear(cell), WIDTH)
                queries.append(normed(q, qkv.q_norm.weight))
                keys.append(normed(k, qkv.k_norm.weight))
                values.append(v)
        mixed = [mix(q, keys, values) for q in queries]
        close(out[b, :m], attention.proj(torch.stack(mixed[:m])))
        close(control_out[b, :m], attention.control_proj(torch.stack(mixed[m:])))


def test_attention_over_features_is_softmax_over_pairs(randomise, normal, make_mask):
    attention = randomise(FeatureAttention(WIDTH, HEADS, reads_control=True).double())
    h, control, m = normal(1, 5, WIDTH, seed=5), normal(1, 5, WIDTH, seed=6), 4
    out, control_out = attention(h, control, make_mask([m], 5))
    tokens = [heads_of(attention.qkv.linear(pair), 2 * WIDTH) for pair in torch.cat([h, control], dim=-1)[0, :m]]
    keys = [normed(k, attention.qkv.k_norm.weight) for _, k, _ in tokens]
    values = [v for _, _, v in tokens]
    mixed = [mix(normed(q, attention.qkv.q_norm.weight), keys, values) for q, _, _ in tokens]
    wanted = attention.proj(torch.stack(mixed))
    close(out[0, :m], wanted[:, :WIDTH])
    close(control_out[0, :m], wanted[:, WIDTH:])


@everywhere
def test_a_block_is_its_formula_around_the_attention(make_block, inputs, joint, reads_control):
    block = make_block(joint, reads_control=reads_control)
    h, control, c = inputs

    def chunks(modulation, n: int) -> tuple[Tensor, ...]:
        return (c * torch.sigmoid(c) @ modulation.linear.weight.T + modulation.linear.bias).split(WIDTH, dim=-1)[:n]

    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = chunks(block.modulation, 6)
    control_shift, control_scale = chunks(block.control_modulation, 2)
    attended, control_attended = block.attention(
        layer_norm(h) * (1 + scale_a) + shift_a, layer_norm(control) * (1 + control_scale) + control_shift, None
    )
    new, new_control = block(*inputs)
    close(new, h + gate_a * attended + gate_m * block.mlp(layer_norm(h) * (1 + scale_m) + shift_m))
    if reads_control:
        _, _, gate_a, shift_m, scale_m, gate_m = chunks(block.control_modulation, 6)
        changed = block.control_mlp(layer_norm(control) * (1 + scale_m) + shift_m)
        close(new_control, control + gate_a * control_attended + gate_m * changed)
    else:
        assert torch.equal(new_control, control)


@everywhere
def test_a_new_block_is_the_identity(inputs, joint, reads_control):
    block = Block(WIDTH, HEADS, joint=joint, reads_control=reads_control).double()
    h, control = block(*inputs)
    assert torch.equal(h, inputs[0])
    assert torch.equal(control, inputs[1])


@pytest.mark.parametrize("reads_control", [True, False])
def test_tokens_tie_no_cell_to_a_control_cell(make_block, inputs, reads_control):
    block = make_block("tokens", reads_control=reads_control)
    h, control, c = inputs
    order, other = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([1, 4, 0, 2, 3])
    new, new_control = block(h, control, c)
    permuted, permuted_control = block(h[:, order], control[:, other], c)
    close(permuted, new[:, order])
    close(permuted_control, new_control[:, other])


def test_features_tie_each_cell_to_its_control_cell(make_block, inputs):
    block = make_block("features")
    h, control, c = inputs
    order = torch.tensor([3, 0, 4, 1, 2])
    new, new_control = block(h, control, c)
    permuted, permuted_control = block(h[:, order], control[:, order], c)
    close(permuted, new[:, order])
    close(permuted_control, new_control[:, order])
    untied, _ = block(h, control[:, order], c)
    assert float((untied - new).detach().abs().max()) > 1e-3


@everywhere
def test_without_control_readers_the_perturbed_stream_is_computed_as_with_them(
    make_block, inputs, joint, reads_control
):
    # the same weights, the control stream's own output apart
    full, lean = make_block(joint), make_block(joint, reads_control=reads_control)
    weights = full.state_dict()
    lean.load_state_dict({name: _part(weights[name], like) for name, like in lean.state_dict().items()})
    close(lean(*inputs)[0], full(*inputs)[0])


def _part(weight: Tensor, like: Tensor) -> Tensor:
    """The rows that a lean block keeps: keys and values of the controls, their shift and scale, the first outputs."""
    if weight.shape == like.shape:
        return weight
    keeps_last = (len(weight), len(like)) == (3 * WIDTH, 2 * WIDTH)
    return weight[-len(like) :] if keeps_last else weight[: len(like)]
