"""The residual MLP of a transformer block, as a pure function of its weights and as a module.

Shapes: B batch, T tokens, D width, E hidden.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from nested.layers.linear import LayerNorm, Linear, layer_norm, linear

Names = ("norm.weight", "norm.bias", "up.weight", "up.bias", "down.weight", "down.bias")


def feedforward(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """x + W_down gelu(W_up norm(x)), x (B, T, D); `weights` holds `Names`, shared or with the batch first."""
    hidden = F.gelu(
        linear(layer_norm(x, weights["norm.weight"], weights["norm.bias"]), weights["up.weight"], weights["up.bias"])
    )
    return x + linear(hidden, weights["down.weight"], weights["down.bias"])


def feedforward_parameters(width: int, hidden: int) -> int:
    """Number of parameters: norm 2D, up DE + E, down ED + D."""
    return hidden * (2 * width + 1) + 3 * width


class FeedForward(nn.Module):
    """`feedforward` with weights of its own; the projections are modules, so hooks see their inputs."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.norm = LayerNorm(width)
        self.up = Linear(width, hidden)
        self.down = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))
