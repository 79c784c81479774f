"""Causal softmax attention over the last tokens, or all: the attention of TTT-E2E (arXiv 2512.23675) and its baselines.

A token sees itself and the window - 1 tokens before it. Queries and keys are normalised within each head (RMSNorm, one
scale per entry) and then turned by rotary positions, interleaved, relative to the oldest key still held: products
depend on distances alone, so that equals absolute positions, and theta need not grow with the context. Keys are kept as
they are before rotation.

What is held is a list of keys and values as they came, each once. Attention is a function that can be differentiated
twice in linear memory (`nested_kernels`), but it keeps what each call is given, keys joined and rotated: a graph over
many chunks of C tokens holds T * (window / C + 1) of them. Where chunks are computed again (`checkpoint`) it holds T.

Shapes: B batch, T tokens, N tokens held and read, D width, H heads, K = D / H.
"""

from __future__ import annotations

from typing import Annotated

import torch
from nested_kernels.attention_hvp import attention_hvp
from torch import Tensor, nn

from nested.config import Bound
from nested.layers.norm import rms_norm
from nested.layers.rotary import rotate
from nested.memory.state import head_size

Size = Annotated[int, Bound(ge=1)]
Held = tuple[tuple[Tensor, Tensor], ...]  # keys and values (B, n, H, K) of n tokens at a time, oldest first
GROWS = 16  # tokens: pieces shorter together are joined, so that decoding does not make one for each token


class QKNormAttention(nn.Module):
    """The projections of softmax attention, without biases, and its query and key norms, within each head.

    Raises UserError when heads do not divide the width into even sizes.
    """

    def __init__(self, width: int, heads: int, theta: float):
        super().__init__()
        size = head_size(width, heads, rotary=True)
        self.heads, self.theta = heads, theta
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.query_norm, self.key_norm = (rms_norm(size) for _ in range(2))

    def split(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, H, K)."""
        return x.unflatten(-1, (self.heads, -1))


class WindowAttention(QKNormAttention):
    """Multi-head causal attention with query and key norms and rotary positions; no biases.

    Raises UserError when heads do not divide the width into even sizes.
    """

    def __init__(
        self,
        width: Size,
        heads: Size,
        window: Size | None = None,
        theta: Annotated[float, Bound(gt=1)] = 500_000.0,
    ):
        super().__init__(width, heads, theta)
        self.window = window

    def initial_state(self, batch: int) -> Held:
        """Nothing is held before the first token."""
        return ()

    def forward(self, x: Tensor, state: Held) -> tuple[Tensor, Held]:
        """x (B, T, D) and what is held -> (B, T, D), and what is held after the last token."""
        kept = self.kept(x)
        return self.attend(x, kept, state), self.held(state, kept)

    def kept(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys, normalised but not rotated, and values of x (B, T, D): (B, T, H, K) each, token by token."""
        return _normalised(self.key_norm, self.split(self.key(x))), self.split(self.value(x))

    def attend(self, x: Tensor, kept: tuple[Tensor, Tensor], state: Held, once: bool = False) -> Tensor:
        """x (B, T, D), its own keys and values, and those held before it -> (B, T, D).

        `once`: no inner gradient passes, so that a form that can be differentiated once will do, where it is faster.
        """
        keys, values = (torch.cat(tensors, 1) for tensors in zip(*state, kept))  # (B, N, H, K)
        t = x.shape[1]
        if self.window is not None:
            keys, values = keys[:, -(self.window + t - 1) :], values[:, -(self.window + t - 1) :]
        at = torch.arange(keys.shape[1], device=x.device)
        query = rotate(_normalised(self.query_norm, self.split(self.query(x))), at[-t:], self.theta)
        backend = "fused" if once and self.window is None else "auto"
        operands = (query, rotate(keys, at, self.theta), values.to(query.dtype))
        y = attention_hvp(*operands, window=self.window, backend=backend)
        return self.out(y.flatten(2))

    def held(self, state: Held, kept: tuple[Tensor, Tensor]) -> Held:
        """What later tokens may still see."""
        entries = [*state, kept]
        if len(entries) > 1 and entries[-2][0].shape[1] + kept[0].shape[1] <= GROWS:
            last = entries.pop()
            keys, values = (torch.cat(pair, 1) for pair in zip(entries.pop(), last))
            entries.append((keys, values))
        if self.window is None:
            return tuple(entries)
        needed, after = self.window - 1, []
        while entries and needed > 0:
            after.insert(0, tuple(_last(t, needed) for t in entries.pop()))
            needed -= after[0][0].shape[1]
        return tuple(after)


def _normalised(norm: nn.Module, x: Tensor) -> Tensor:
    """In the dtype of x: an autocast on a CUDA device norms in float32, and attention multiplies what it is given."""
    return norm(x).to(x.dtype)


def _last(x: Tensor, tokens: int) -> Tensor:
    """The last tokens of x (B, n, H, K); a copy, where no graph needs the whole, so that the rest can be freed."""
    if x.shape[1] <= tokens:
        return x
    kept = x[:, -tokens:]
    return kept if kept.requires_grad else kept.clone()
