"""Rotary positions: a key's product with a query depends on how far apart the two stand, not on where.

"RoFormer" (arXiv 2104.09864) Eq. 34: entries (2i, 2i + 1) of a head, neighbours and not two halves, are a pair, turned
by position * theta^(-2i / K).

Shapes: B batch, T tokens, H heads, K key.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nested.precision import wide


def rotate(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """x (B, T, H, K) at positions (T,), whole numbers or not -> (B, T, H, K) of the same dtype.

    Angles are float64, since float32 loses the pair that turns fastest after some million tokens; the product is at
    least float32. Raises ValueError for an odd K, and for positions of another length.
    """
    size = x.shape[-1]
    if x.ndim != 4 or size % 2 or positions.shape != x.shape[1:2]:
        seen = f"x {tuple(x.shape)} at positions {tuple(positions.shape)}"
        raise ValueError(f"rotate: {seen} is not allowed; (B, T, H, K) with K even, at (T,), is")
    frequency = theta ** (-torch.arange(0, size, 2, device=x.device, dtype=torch.float64) / size)
    angle = torch.outer(positions.to(torch.float64), frequency).unsqueeze(1)  # (T, 1, K / 2)
    pairs = wide(x).unflatten(-1, (-1, 2))  # (B, T, H, K / 2, 2)
    a, b = pairs.unbind(-1)
    cos, sin = angle.cos().to(pairs.dtype), angle.sin().to(pairs.dtype)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)
