"""The gated MLP of a language model, W2 (silu(W1 x) * W3 x) (arXiv 2002.05202), in its residual frame.

Shapes: B batch, T tokens, D width, F hidden.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nested.layers.linear import Linear
from nested.layers.norm import rms_norm


class SwiGLU(nn.Module):
    """Three projections without biases; their weights may be each sequence's own."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.w1, self.w3 = (Linear(width, hidden, bias=False) for _ in range(2))
        self.w2 = Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class NormedSwiGLU(nn.Module):
    """x + norm(SwiGLU(norm(x))): a norm before and one after, as TTT-E2E (arXiv 2512.23675) has them."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.norm = rms_norm(width)
        self.mlp = SwiGLU(width, hidden)
        self.post_norm = rms_norm(width)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        return x + self.post_norm(self.mlp(self.norm(x)))
