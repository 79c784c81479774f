"""A model: one hidden layer for each ear."""

import math
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from nested.config import Bound


class Rabbit(nn.Module):
    """A layer for each ear, listened to side by side."""

    def __init__(
        self,
        sample_shape: tuple[int, ...],
        n_outputs: int,
        ears: Annotated[int, Bound(ge=1, le=4)] = 2,
        fur: Literal["white", "brown"] = "white",
    ):
        super().__init__()
        self.ears = nn.ModuleList(nn.Linear(math.prod(sample_shape), 8) for _ in range(ears))
        self.head = nn.Linear(8 * ears, n_outputs)
        self.fur = fur

    def forward(self, x: Tensor) -> Tensor:
        """x (B, *sample_shape) -> (B, n_outputs)."""
        return self.head(torch.cat([ear(x.flatten(1)).relu() for ear in self.ears], 1))
