"""A sample cut into equal pieces, each of which becomes a token.

Shapes: B batch, C channels, H height, W width of the image, T tokens, P values in a piece, D width of the model.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nested.errors import UserError

MAX_TOKENS = 256  # beyond it an automatic choice would make attention needlessly slow


def default_patch(sample_shape: tuple[int, ...]) -> int:
    """Side of a patch: the largest divisor of both sides up to a quarter of the shorter one (2 for 8, 7 for 28).

    For flat samples (F,) the length of a piece: the largest divisor of F up to F / 16, so 16 pieces where F allows it.
    Raises UserError when that leaves more than 256 tokens.
    """
    sides = sample_shape[-2:]
    most = max(1, min(sides) // (4 if len(sides) == 2 else 16))
    patch = max(n for n in _divisors(sides) if n <= most)
    tokens = math.prod(side // patch for side in sides)
    if tokens > MAX_TOKENS:
        raise UserError(
            f"samples of shape {sample_shape} divide badly: the largest patch up to {most} is {patch}, which makes "
            f"{tokens} tokens; pad or resize the samples, or choose one of {_divisors(sides)}",
            key="model.patch",
            seen=None,
            allowed=_divisors(sides),
        )
    return patch


def check_patch(sample_shape: tuple[int, ...], patch: int) -> None:
    """Raise UserError when `patch` does not divide the sides of an image, or the length of a flat sample."""
    sides = sample_shape[-2:]
    if any(side % patch for side in sides):
        raise UserError(
            f"a patch of {patch} does not divide samples of shape {sample_shape}; what divides: {_divisors(sides)}",
            key="model.patch",
            seen=patch,
            allowed=_divisors(sides),
        )


def _divisors(sides: tuple[int, ...]) -> list[int]:
    common = math.gcd(*sides)
    return [n for n in range(1, common + 1) if common % n == 0]


def cut(x: Tensor, patch: int) -> Tensor:
    """Images (B, H, W) or (B, C, H, W), or flat samples (B, F), into tokens (B, T, P), row by row."""
    if x.ndim == 2:
        return x.unflatten(1, (-1, patch))
    if x.ndim == 3:
        x = x.unsqueeze(1)
    b, c, h, w = x.shape
    pieces = x.reshape(b, c, h // patch, patch, w // patch, patch).permute(0, 2, 4, 1, 3, 5)
    return pieces.reshape(b, (h // patch) * (w // patch), c * patch * patch)


class Patches(nn.Module):
    """Cut samples into patches, project each linearly and add a learned position."""

    def __init__(self, sample_shape: tuple[int, ...], patch: int | None, width: int):
        super().__init__()
        if len(sample_shape) not in (1, 2, 3):
            raise UserError(
                f"samples of shape {sample_shape}: (F,), (H, W) or (C, H, W) is needed", key="model", seen=sample_shape
            )
        self.patch = default_patch(sample_shape) if patch is None else patch
        check_patch(sample_shape, self.patch)
        tokens, values = cut(torch.empty(1, *sample_shape, device="meta"), self.patch).shape[1:]
        self.project = nn.Linear(values, width)
        self.position = nn.Parameter(torch.empty(tokens, width).normal_(std=0.02))

    def pieces(self, x: Tensor) -> Tensor:
        """x (B, *sample_shape) -> what its tokens say, (B, T, P)."""
        return cut(x, self.patch)

    def embed(self, pieces: Tensor) -> Tensor:
        """The first T' pieces (B, T', P) of each sample -> (B, T', D)."""
        return self.project(pieces) + self.position[: pieces.shape[1]]

    def forward(self, x: Tensor) -> Tensor:
        """x (B, *sample_shape) -> (B, T, D)."""
        return self.embed(self.pieces(x))
