"""Softmax attention as its formula, every score at once. It defines the chunked form.

    S = Q K^T / sqrt(K);    P = softmax(S over the visible keys);    O = P V

Plain differentiable torch: any dtype, any order of differentiation, memory T x N.

Shapes: B batch, T tokens (queries), N keys and values, H heads, K head size.
"""

from __future__ import annotations

import torch
from torch import Tensor


def attention_hvp_reference(q: Tensor, k: Tensor, v: Tensor, *, window: int | None) -> Tensor:
    """As `attention_hvp`, in the dtype of the operands."""
    scores = torch.einsum("bthk,bnhk->bhtn", q, k) * q.shape[3] ** -0.5  # (B, H, T, N)
    p = (scores + hidden(q.shape[1], k.shape[1], window, scores)).softmax(-1)
    return torch.einsum("bhtn,bnhk->bthk", p, v)


def hidden(rows: int, columns: int, window: int | None, like: Tensor) -> Tensor:
    """(rows, columns), to be added to scores: -inf where a query does not see a key, else 0.

    Queries are the last of the positions. Each sees its own position and those before it, `window` of them at most.
    """
    never = torch.full((rows, columns), float("-inf"), dtype=like.dtype, device=like.device)
    own = columns - rows  # of the first query
    later = never.triu(own + 1)
    return later if window is None else later + never.tril(own - window)
