"""Mamba-2: a matrix memory per head that decays by itself and adds up keys times values, behind a short convolution.

"Transformers are SSMs" (arXiv 2405.21060), with x, B and C of the paper as value, key and query:
    S_t = exp(-A dt_t) S_{t-1} + dt_t v_t k_t^T,      y_t = S_t q_t + D v_t
followed by the norm of y silu(z). Keys and queries are shared by all heads (one group). That is gradient descent on the
dot product with dt as its rate, so the delta rule computes it: nothing is erased, nothing fitted. On a GPU
flash-linear-attention computes it where that is installed (`nested.memory.fla`).

Departures: the convolution has no bias and starts as the identity.

Shapes: B batch, T tokens, D width, E = expand D, H heads, V = E / H, K key (the paper's N), S size of the convolution.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from nested_kernels.delta_rule import delta_rule
from torch import Tensor, nn

from nested.layers.convolution import CausalConvolution
from nested.memory import fla
from nested.memory.decay import Decay
from nested.memory.state import Convolved, check_states, check_tokens, head_size
from nested.precision import wide
from nested.signature import Bound, checked


def decaying_sum(q: Tensor, k: Tensor, v: Tensor, step: Tensor, kept: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """q, k (B, H, T, K), v (B, H, T, V), dt, exp(-A dt) (B, H, T), S_0 (B, H, V, K) -> S_t q_t (B, H, T, V) and S_T."""
    if fla.serves(q, k, v, step, kept, memory):
        return fla.decaying_sum(q, k, v, step, kept, memory)
    y, after = delta_rule(q, k, v, step, kept, memory, objective="dot", rule="gd", read="after")
    return y, after.memory


class Mamba2(nn.Module):
    """The Mamba-2 layer: a state that decays at a rate of the token's own, and a gate on what is read from it.

    `key_size` is the paper's state dimension N. Raises UserError for a value out of its range, and for heads that do
    not divide the width.
    """

    def __init__(
        self,
        width: Annotated[int, Bound(ge=1)],
        heads: Annotated[int, Bound(ge=1)],
        key_size: Annotated[int, Bound(ge=1)] = 128,
        expand: Annotated[int, Bound(ge=1)] = 2,
        convolution: Annotated[int, Bound(ge=1)] = 4,
    ):
        super().__init__()
        given = {"width": width, "heads": heads, "key_size": key_size, "expand": expand, "convolution": convolution}
        checked(Mamba2, given, "model")
        self.width, self.heads = width, heads
        self.sizes = (expand * width, key_size, key_size)  # of all values, of a key and of a query
        self.value_size = expand * head_size(width, heads)
        self.input = nn.Linear(width, sum(self.sizes), bias=False)
        self.convolution = CausalConvolution(sum(self.sizes), convolution)
        self.decay = Decay(width, heads)
        self.skip = nn.Parameter(torch.ones(heads))  # D
        self.gate = nn.Linear(width, expand * width, bias=False)  # z
        self.norm = nn.RMSNorm(expand * width, eps=1e-5)
        self.output = nn.Linear(expand * width, width, bias=False)

    def initial_state(self, batch: int) -> Convolved:
        """Nothing read, nothing held."""
        seen = wide(self.convolution.initial_state(batch))
        return Convolved(seen, seen.new_zeros(batch, self.heads, self.value_size, self.sizes[1]))

    def forward(self, x: Tensor, state: Convolved | None = None) -> tuple[Tensor, Convolved]:
        """x (B, T, D) -> y (B, T, D) and the state after it. Raises UserError for other tokens, or a state not of x."""
        check_tokens(x, self.width)
        start = self.initial_state(len(x))
        state = start if state is None else state
        check_states(state, start, x)
        mixed, seen = self.convolution(self.input(x), state.seen)
        value, key, query = F.silu(mixed).split(self.sizes, -1)
        value = value.unflatten(-1, (self.heads, self.value_size)).transpose(1, 2)  # (B, H, T, V)
        key, query = (s.unsqueeze(1).expand(-1, self.heads, -1, -1) for s in (key, query))  # (B, H, T, K)
        step, kept = self.decay(x)
        y, held = decaying_sum(query, key, value, step, kept, state.memory)  # (B, H, T, V)
        y = (y + wide(self.skip)[:, None, None] * value).transpose(1, 2).flatten(2)  # (B, T, E)
        y = self.norm((y * F.silu(wide(self.gate(x)))).to(x.dtype))
        return self.output(y), Convolved(wide(seen).clone(), held)  # a view would keep all tokens
