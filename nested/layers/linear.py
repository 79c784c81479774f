"""Linear maps and layer norms whose weights may differ from sequence to sequence.

Shapes: B batch, T tokens, D in, E out. Per-sequence weights carry the batch first and use batched products.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (B, T, D) with weight (E, D) and bias (E,) shared, or (B, E, D) and (B, E) per sequence -> (B, T, E)."""
    if weight.ndim == 2:
        return F.linear(x, weight, bias)
    return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (B, T, D) normalised over D; weight and bias (D,) shared, or (B, D) per sequence -> (B, T, D)."""
    if weight.ndim == 1:
        return F.layer_norm(x, weight.shape, weight, bias)
    return torch.addcmul(bias.unsqueeze(1), F.layer_norm(x, weight.shape[1:]), weight.unsqueeze(1))


class Linear(nn.Linear):
    """`nn.Linear` that also runs with per-sequence weights put in its place by `torch.func.functional_call`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` that also runs with per-sequence weights put in its place by `torch.func.functional_call`."""

    def forward(self, input: Tensor) -> Tensor:
        return layer_norm(input, self.weight, self.bias)
