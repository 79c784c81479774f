"""Depthwise causal convolution over the last few tokens, which the paper puts before its memories.

"Nested Learning" (arXiv 2512.24695v1) section 8.3: "local convolutions with window size of 4"; where they sit is not
said: here one stands before each memory. It starts as the identity, so that a network begins without it.

Shapes: B batch, T tokens, D width, S size of the window.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CausalConvolution(nn.Module):
    """y_t = sum over s of w_s * x_{t-S+1+s}, per channel; tokens before the first are zero."""

    def __init__(self, width: int, size: int = 4):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, 1, size))
        with torch.no_grad():
            self.weight[:, :, -1] = 1.0

    def initial_state(self, batch: int) -> Tensor:
        """The S - 1 tokens before the first, (B, S-1, D)."""
        width, _, size = self.weight.shape
        return self.weight.new_zeros(batch, size - 1, width)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (B, T, D) and the S - 1 tokens before it -> y (B, T, D) and the last S - 1 tokens."""
        before = self.initial_state(len(x)) if state is None else state
        seen = torch.cat([before.to(x.dtype), x], 1)  # (B, S-1+T, D)
        y = F.conv1d(seen.mT, self.weight, groups=seen.shape[2])
        return y.mT, seen[:, x.shape[1] :]
