"""A multilayer perceptron over flattened samples."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated

from torch import Tensor, nn

from nested.config import Bound


class MLP(nn.Module):
    """Fully connected ReLU network over samples of any shape, flattened."""

    def __init__(
        self, sample_shape: tuple[int, ...], n_outputs: int, hidden: tuple[Annotated[int, Bound(ge=1)], ...] = (100,)
    ):
        super().__init__()
        widths = [math.prod(sample_shape), *hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.head = nn.Linear(widths[-1], n_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, *sample_shape) -> (B, n_outputs)."""
        x = x.flatten(1)
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(x)
