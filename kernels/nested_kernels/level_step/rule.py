"""How a level learns by Delta Momentum: the numbers of its rule, and the precision that its state has."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

Form = Literal["normalised", "printed"]
Shape = Literal["vector", "matrix"]


class LevelRule(NamedTuple):
    """A level's rule; `scale` multiplies the gathered gradient: 1 / period makes a mean of a sum."""

    lr: float
    momentum: float
    beta: float = 1.0
    form: Form = "normalised"
    shape: Shape = "vector"
    weight_decay: float = 0.0
    eps: float = 1e-8
    scale: float = 1.0


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of momenta and gathered gradients: float32, whatever narrower a parameter is, and float64 beside float64."""
    return torch.float64 if dtype is torch.float64 else torch.float32
