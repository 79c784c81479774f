"""Random cosine features: a fixed map under which a linear head sees a Gaussian kernel (Rahimi and Recht 2007).

Shapes: B batch, D input, F features.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from nested.config import Bound


class RandomFeatures(nn.Module):
    """Fixed random cosine features of the flattened sample under a linear head: only the head learns.

    h = sqrt(2 / F) cos(V x + b), so that <h(x), h(x')> is close to exp(-scale^2 |x - x'|^2 / 2 D). Frequencies and
    phases are buffers, drawn once when the model is made, as initial weights are.
    """

    def __init__(
        self,
        sample_shape: tuple[int, ...],
        n_outputs: int,
        features: Annotated[int, Bound(ge=1)] = 512,
        scale: Annotated[float, Bound(gt=0)] = 6.0,
    ):
        super().__init__()
        width = math.prod(sample_shape)
        self.frequencies: Tensor
        self.phases: Tensor
        self.register_buffer("frequencies", torch.randn(features, width) * scale / math.sqrt(width))  # (F, D)
        self.register_buffer("phases", torch.rand(features) * 2 * math.pi)  # (F,)
        self.head = nn.Linear(features, n_outputs)

    def features(self, x: Tensor) -> Tensor:
        """x (B, *sample_shape) -> (B, F), of norm close to 1."""
        angles = nn.functional.linear(x.flatten(1), self.frequencies, self.phases)
        return angles.cos() * math.sqrt(2 / len(self.phases))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, *sample_shape) -> (B, n_outputs)."""
        return self.head(self.features(x))
