"""Softmax attention over all tokens.

Shapes: B batch, T tokens, D width, H heads, K = D / H.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nested.errors import UserError


class Attention(nn.Module):
    """Residual, pre-norm, bidirectional multi-head attention. Raises UserError when heads do not divide the width."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise UserError(
                f"{heads} heads do not divide a width of {width}",
                key="model.heads",
                seen=heads,
                allowed=_divisors(width),
            )
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        b, t, d = x.shape
        q, k, v = (
            self.qkv(self.norm(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        )  # (B, H, T, K)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(1, 2).reshape(b, t, d))


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
