"""Causal softmax attention as a memory: nothing is compressed, every key and value is kept.

"Nested Learning" (arXiv 2512.24695v1) section 3.2 reads attention as a memory with infinite update frequency; with it
in place of the self-modifying memories HOPE is Hope-Attention (section 8.3). Positions are rotary, so that reading in
pieces needs no more than the number of tokens read before. Plain products instead of a fused kernel: inner levels
differentiate it twice.

Shapes: B batch, T tokens, S tokens before them, D width, H heads, K = D / H.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nested.errors import UserError
from nested.memory.state import check_state, check_tokens

BASE = 10000.0  # of the rotary frequencies


class Kept(NamedTuple):
    """Keys (already rotated) and values of all tokens read, each (B, H, S, K)."""

    keys: Tensor
    values: Tensor


def rotate(x: Tensor, first: int) -> Tensor:
    """Rotary positions for x (B, H, T, K), K even, whose first token has position `first`."""
    half = x.shape[-1] // 2
    frequency = BASE ** (-torch.arange(half, device=x.device, dtype=torch.float64) / half)
    position = torch.arange(first, first + x.shape[-2], device=x.device, dtype=torch.float64)
    angle = torch.outer(position, frequency).to(x.dtype)  # (T, K / 2)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q (B, H, T, K), k and v (B, H, S + T, K) -> (B, H, T, K): token t sees the S tokens before and those up to t."""
    scores = q @ k.mT / math.sqrt(q.shape[-1])  # (B, H, T, S + T)
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril(k.shape[-2] - q.shape[-2])
    return scores.masked_fill(~seen, -math.inf).softmax(-1) @ v


class AttentionMemory(nn.Module):
    """Causal multi-head attention that remembers every token it has read."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % (2 * heads):
            allowed = [n for n in range(1, width // 2 + 1) if width % (2 * n) == 0]
            text = f"a width of {width} is no multiple of twice the {heads} heads, which rotary positions need; "
            text += f"heads that fit: {', '.join(map(str, allowed)) or 'none, take an even width'}"
            raise UserError(text, key="model.heads", seen=heads, allowed=allowed)
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def initial_state(self, batch: int) -> Kept:
        """Nothing kept."""
        d = self.out.in_features
        none = self.out.weight.new_zeros(batch, self.heads, 0, d // self.heads)
        return Kept(none, none)

    def forward(self, x: Tensor, state: Kept | None = None) -> tuple[Tensor, Kept]:
        """x (B, T, D) -> y (B, T, D) and what is kept. Raises UserError for other tokens, or a state not of x."""
        check_tokens(x, self.out.in_features)
        b, t, d = x.shape
        nothing = self.initial_state(b)
        before = nothing if state is None else state
        for part, held, none in zip(Kept._fields, before, nothing):
            check_state(part, held[:, :, :0], none, x, dtype=False)  # however many tokens it keeps
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)  # (B, H, T, K)
        first = before.keys.shape[2]
        kept = Kept(torch.cat([before.keys, rotate(k, first)], 2), torch.cat([before.values, v], 2))
        y = causal_attention(rotate(q, first), kept.keys, kept.values)
        return self.out(y.transpose(1, 2).reshape(b, t, d)), kept
