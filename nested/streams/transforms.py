"""Transforms that make tasks out of one data set, computed from a few numbers when they are applied.

Shapes: B batch, S sample shape; images are (B, C, H, W).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from nested.streams.seeding import generator


@dataclass(frozen=True)
class Permutation:
    """Moves the pixels of an image, or the values of a flat sample, by the task's own permutation; task 0 moves none.

    The channels of a pixel stay together.
    """

    seed: int
    task: int

    def __call__(self, x: Tensor) -> Tensor:
        """(B, *S) -> (B, *S)."""
        if self.task == 0:
            return x
        places = x.shape[2:].numel() if x.ndim > 2 else x.shape[1]
        order = pixel_order(self.seed, self.task, places).to(x.device)
        return x.reshape(x.shape[0], -1, places).index_select(2, order).reshape(x.shape)


@lru_cache(maxsize=64)  # bounded: a stream of any number of tasks holds at most this many permutations
def pixel_order(seed: int, task: int, places: int) -> Tensor:
    """The permutation (places,) of one task."""
    return torch.randperm(places, generator=generator(seed, "permutation", task))


@dataclass(frozen=True)
class Rotation:
    """Turns images counter-clockwise about their centre, bilinear, with zeros from outside."""

    degrees: float

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if self.degrees == 0:
            return x
        grid = rotation_grid(self.degrees, x.shape[-2], x.shape[-1]).to(x)
        return F.grid_sample(x, grid.expand(x.shape[0], -1, -1, -1), padding_mode="zeros", align_corners=False)


@lru_cache(maxsize=64)
def rotation_grid(degrees: float, height: int, width: int) -> Tensor:
    """Where each pixel of the turned image is read: (1, H, W, 2), coordinates x, y in -1..1."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    theta = torch.tensor([[[c, -s * height / width, 0.0], [s * width / height, c, 0.0]]])
    return F.affine_grid(theta, [1, 1, height, width], align_corners=False)
