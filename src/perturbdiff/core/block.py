r"""The two-stream MM-DiT block: perturbed cells and control cells meet in one attention.

With c the condition vector, LN a LayerNorm without weights, and (shift, scale, gate) from a zero-initialised linear
map of SiLU(c), each stream h is changed by

    h <- h + gate_a Attention(LN(h) (1 + scale_a) + shift_a) + gate_m MLP(LN(h) (1 + scale_m) + shift_m)

both norms reading the block's input (adaLN-Zero: a new block is the identity). Queries and keys are RMS-normalised per
head. The two streams are joined

* ``"tokens"``: each cell of either stream is a token, 2m in all, with the weights of its stream. Nothing ties perturbed
  cell j to control cell j; perturbed outputs are equivariant to the order of perturbed cells and invariant to that of
  the control cells.
* ``"features"``: the release's way. Token j is [perturbed cell j, control cell j] on the feature axis, m tokens in all.

The last block of a network whose control stream is not read has no control parts after the attention: no weight is
without a gradient.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from perturbdiff.core.choices import Joint

Stream = Float[Tensor, "batch cells width"]
Vector = Float[Tensor, "batch _ width"]  # one vector a population (1) or a cell
EPS = 1e-6


def modulate(
    h: Float[Tensor, "batch cells width"],
    shift: Float[Tensor, "batch _ width"],
    scale: Float[Tensor, "batch _ width"],
) -> Float[Tensor, "batch cells width"]:
    """LN(h) (1 + scale) + shift."""
    return torch.addcmul(shift, functional.layer_norm(h, h.shape[-1:], eps=EPS), 1 + scale)


def normalised(x: Float[Tensor, "batch _ cells _"], norm: nn.RMSNorm) -> Float[Tensor, "batch _ cells _"]:
    """RMS-normalise the last axis in the type of x, also where mixed precision keeps the weight in float32."""
    weight = None if norm.weight is None else norm.weight.to(x.dtype)
    return functional.rms_norm(x, x.shape[-1:], weight, norm.eps)


class Modulation(nn.Module):
    """SiLU(c) -> chunks of the network's width; zero at initialisation."""

    def __init__(self, width: int, chunks: int) -> None:
        super().__init__()
        self.chunks = chunks
        self.linear = nn.Linear(width, chunks * width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, c: Float[Tensor, "batch _ width"]) -> tuple[Tensor, ...]:
        modulation: Tensor = self.linear(functional.silu(c))
        return modulation.chunk(self.chunks, dim=-1)


class MLP(nn.Module):
    """Linear, tanh GELU, linear."""

    def __init__(self, width: int, ratio: int = 4) -> None:
        super().__init__()
        self.up = nn.Linear(width, ratio * width)
        self.down = nn.Linear(ratio * width, width)

    def forward(self, h: Float[Tensor, "batch cells width"]) -> Float[Tensor, "batch cells width"]:
        result: Tensor = self.down(functional.gelu(self.up(h), approximate="tanh"))
        return result


class QKV(nn.Module):
    """Tokens -> RMS-normalised queries and keys, and values, per head; without queries where none are read."""

    def __init__(self, width: int, heads: int, *, queries: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.linear = nn.Linear(width, (2 + queries) * width)
        self.q_norm = nn.RMSNorm(width // heads, eps=EPS) if queries else None
        self.k_norm = nn.RMSNorm(width // heads, eps=EPS)

    def forward(self, h: Float[Tensor, "batch cells width"]) -> tuple[Tensor | None, Tensor, Tensor]:
        packed = rearrange(self.linear(h), "b n (p h d) -> p b h n d", h=self.heads, p=2 + bool(self.q_norm))
        q = normalised(packed[0], self.q_norm) if self.q_norm is not None else None
        return q, normalised(packed[-2], self.k_norm), packed[-1]


def attend(
    q: Float[Tensor, "batch _ cells _"],
    k: Float[Tensor, "batch _ others _"],
    v: Float[Tensor, "batch _ others _"],
    mask: Bool[Tensor, "batch others"] | None,
) -> Float[Tensor, "batch cells width"]:
    """Softmax attention over the tokens that exist."""
    keys = None if mask is None else mask[:, None, None, :]
    return rearrange(functional.scaled_dot_product_attention(q, k, v, attn_mask=keys), "b h n d -> b n (h d)")


class TokenAttention(nn.Module):
    """One attention over the cells of both streams, each stream with its own projections."""

    def __init__(self, width: int, heads: int, *, reads_control: bool) -> None:
        super().__init__()
        self.qkv = QKV(width, heads)
        self.control_qkv = QKV(width, heads, queries=reads_control)
        self.proj = nn.Linear(width, width)
        self.control_proj = nn.Linear(width, width) if reads_control else None

    def forward(self, h: Stream, control: Stream, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        q, k, v = self.qkv(h)
        control_q, control_k, control_v = self.control_qkv(control)
        k, v = torch.cat([k, control_k], dim=2), torch.cat([v, control_v], dim=2)
        if control_q is not None:
            q = torch.cat([q, control_q], dim=2)
        out = attend(q, k, v, None if mask is None else torch.cat([mask, mask], dim=1))
        n_cells = h.shape[1]
        if self.control_proj is None:
            return self.proj(out), None
        return self.proj(out[:, :n_cells]), self.control_proj(out[:, n_cells:])


class FeatureAttention(nn.Module):
    """Attention over m tokens of twice the width: [perturbed cell j, control cell j]."""

    def __init__(self, width: int, heads: int, *, reads_control: bool) -> None:
        super().__init__()
        self.qkv = QKV(2 * width, heads)
        self.proj = nn.Linear(2 * width, (1 + reads_control) * width)

    def forward(self, h: Stream, control: Stream, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        q, k, v = self.qkv(torch.cat([h, control], dim=-1))
        out: Tensor = self.proj(attend(q, k, v, mask))
        width = h.shape[-1]
        if out.shape[-1] == width:
            return out, None
        return out[..., :width], out[..., width:]


class Block(nn.Module):
    """One two-stream block.

    Args:
        width: of each stream.
        heads: of the attention.
        joint: how the streams meet.
        reads_control: whether anything reads the control stream after this block.
    """

    def __init__(self, width: int, heads: int, *, joint: Joint = "tokens", reads_control: bool = True) -> None:
        super().__init__()
        attention = TokenAttention if joint == "tokens" else FeatureAttention
        self.attention = attention(width, heads, reads_control=reads_control)
        self.mlp = MLP(width)
        self.modulation = Modulation(width, 6)
        self.control_mlp = MLP(width) if reads_control else None
        self.control_modulation = Modulation(width, 6 if reads_control else 2)

    def forward(
        self,
        h: Float[Tensor, "batch cells width"],
        control: Float[Tensor, "batch cells width"],
        c: Float[Tensor, "batch _ width"],
        mask: Bool[Tensor, "batch cells"] | None = None,
    ) -> tuple[Float[Tensor, "batch cells width"], Float[Tensor, "batch cells width"]]:
        """Both streams after the block; the control stream unchanged where nothing reads it."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(c)
        of_control = self.control_modulation(c)
        attended, control_attended = self.attention(
            modulate(h, shift_a, scale_a), modulate(control, *of_control[:2]), mask
        )
        h = h + gate_a * attended + gate_m * self.mlp(modulate(h, shift_m, scale_m))
        if self.control_mlp is not None:
            _, _, gate_a, shift_m, scale_m, gate_m = of_control
            changed = self.control_mlp(modulate(control, shift_m, scale_m))
            control = control + gate_a * control_attended + gate_m * changed
        return h, control
