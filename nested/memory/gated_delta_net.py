"""Gated DeltaNet: a matrix memory per head that forgets by a gate, and then replaces what a key held by its value.

"Gated Delta Networks" (arXiv 2412.06464), the gated delta rule, a and b of the token and head:
    S_t = a_t S_{t-1} (I - b_t k_t k_t^T) + b_t v_t k_t^T,      y_t = S_t q_t
The gate stands before the write, in our delta rule beside it. With M_t = a_{t+1} S_t the two are one,
    M_t = a_{t+1} (M_{t-1} - b_t (M_{t-1} k_t - v_t) k_t^T)
the delta rule at alpha = a_{t+1} and eta = a_{t+1} b_t; y_t follows from M_{t-1} = a_t S_{t-1}, what there was to read
before the write. There is no quotient: a may be 0. On a GPU flash-linear-attention computes it where that is installed
(`nested.memory.fla`).

The layer is the paper's: short convolutions and silu before q, k and v, q and k of unit length, each head's read
normalised and gated. Departures: the convolution has no bias and starts as the identity; no factor K^-1/2 on queries,
which the norm undoes.

Shapes: B batch, T tokens, D width, H heads, K key, V = expand K, S size of the convolution.
"""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from nested_kernels.delta_rule import delta_rule
from torch import Tensor, nn

from nested.layers.convolution import CausalConvolution
from nested.memory import fla
from nested.memory.decay import Decay
from nested.memory.gates import gate, unit
from nested.memory.state import Convolved, check_states, check_tokens, head_size
from nested.precision import wide
from nested.signature import Bound, checked


def gated_delta_rule(q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """q, k (B, H, T, K), v (B, H, T, V), a, b (B, H, T), S_0 (B, H, V, K) -> y (B, H, T, V) and S_T."""
    if fla.serves(q, k, v, a, b, memory):
        return fla.gated_delta_rule(q, k, v, a, b, memory)
    following = F.pad(a[..., 1:], (0, 1), value=1.0)  # a_{t+1}, and after the last token S itself
    same = (b * (wide(q) * k).sum(-1)).unsqueeze(-1)  # (B, H, T, 1): what of its own write a token reads
    held = a[..., :1, None] * memory  # M_0
    asked = (q - same * k).to(q.dtype)
    y, after = delta_rule(asked, k, v, following * b, following, held, objective="l2", rule="gd", read="cumulative")
    return y + same * v, after.memory


class GatedDeltaNet(nn.Module):
    """The Gated DeltaNet layer: the delta rule with a gate that forgets, and a gate on what is read.

    `key_size` null is the width over the heads. Raises UserError for a value out of its range, and for heads that do
    not divide the width where they have to.
    """

    def __init__(
        self,
        width: Annotated[int, Bound(ge=1)],
        heads: Annotated[int, Bound(ge=1)],
        key_size: Annotated[int, Bound(ge=1)] | None = None,
        expand: Annotated[int, Bound(ge=1)] = 2,
        convolution: Annotated[int, Bound(ge=1)] = 4,
    ):
        super().__init__()
        given = {"width": width, "heads": heads, "key_size": key_size, "expand": expand, "convolution": convolution}
        checked(GatedDeltaNet, given, "model")
        self.width, self.heads = width, heads
        self.key_size = head_size(width, heads) if key_size is None else key_size
        self.value_size = expand * self.key_size
        channels = heads * (2 * self.key_size + self.value_size)
        self.input = nn.Linear(width, channels, bias=False)
        self.convolution = CausalConvolution(channels, convolution)
        self.decay = Decay(width, heads)
        self.rate = nn.Linear(width, heads, bias=False)
        self.gate = nn.Linear(width, heads * self.value_size, bias=False)
        self.norm = nn.RMSNorm(self.value_size, eps=1e-5)
        self.output = nn.Linear(heads * self.value_size, width, bias=False)

    def initial_state(self, batch: int) -> Convolved:
        """Nothing read, nothing held."""
        seen = wide(self.convolution.initial_state(batch))
        return Convolved(seen, seen.new_zeros(batch, self.heads, self.value_size, self.key_size))

    def forward(self, x: Tensor, state: Convolved | None = None) -> tuple[Tensor, Convolved]:
        """x (B, T, D) -> y (B, T, D) and the state after it. Raises UserError for other tokens, or a state not of x."""
        check_tokens(x, self.width)
        start = self.initial_state(len(x))
        state = start if state is None else state
        check_states(state, start, x)
        mixed, seen = self.convolution(self.input(x), state.seen)
        heads = F.silu(mixed).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, T, 2 K + V)
        q, k, v = heads.split((self.key_size, self.key_size, self.value_size), -1)
        _, kept = self.decay(x)
        y, held = gated_delta_rule(unit(q), unit(k), v, kept, gate(self.rate(x).mT), state.memory)
        y = self.norm(y.transpose(1, 2).to(x.dtype)).flatten(2) * F.silu(self.gate(x))  # (B, T, H V)
        return self.output(y), Convolved(wide(seen).clone(), held)  # a view would keep all tokens
