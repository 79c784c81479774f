"""Linear maps and layer norms whose weights may differ from sequence to sequence.

Shapes: B batch, T tokens, D in, E out. Per-sequence weights carry the batch first and use batched products.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (B, T, D) with weight (E, D) and bias (E,) shared, or (B, E, D) and (B, E) per sequence -> (B, T, E).

    The bias may be shared where the weight is not, and the other way round, or be None.
    """
    if weight.ndim == 2 and (bias is None or bias.ndim == 1):
        return F.linear(x, weight, bias)
    _check_tokens(x)
    weight = weight.expand(len(x), *weight.shape[-2:])
    return torch.bmm(x, weight.mT) if bias is None else torch.baddbmm(bias.unsqueeze(-2), x, weight.mT)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float = 1e-5) -> Tensor:
    """x (B, T, D) normalised over D; weight and bias (D,) shared, or (B, D) per sequence -> (B, T, D).

    One may be shared where the other is not; the bias may be None.
    """
    if weight.ndim == 1 and (bias is None or bias.ndim == 1):
        return F.layer_norm(x, weight.shape, weight, bias, eps)
    _check_tokens(x)
    scale, normed = weight.unsqueeze(-2), F.layer_norm(x, weight.shape[-1:], eps=eps)
    return normed * scale if bias is None else torch.addcmul(bias.unsqueeze(-2), normed, scale)


def _check_tokens(x: Tensor) -> None:
    """Anything but (B, T, D) would broadcast sequences against each other without a word."""
    if x.ndim != 3:
        raise ValueError(f"weights of each sequence's own need an input (batch, tokens, width), not {tuple(x.shape)}")


class Linear(nn.Linear):
    """`nn.Linear` that also runs with per-sequence weights put in its place by `torch.func.functional_call`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` that also runs with per-sequence weights put in its place by `torch.func.functional_call`."""

    def forward(self, input: Tensor) -> Tensor:
        return layer_norm(input, self.weight, self.bias, self.eps)
