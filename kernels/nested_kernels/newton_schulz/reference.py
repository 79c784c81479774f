"""Newton-Schulz as it is printed: a quintic in X, step by step.

"Nested Learning" (arXiv 2512.24695v1) Eq. 42 puts it on the output of a momentum, which makes Muon, and gives neither
coefficients nor a number of steps; here they are Muon's: X <- a X + (b X X^T + c (X X^T)^2) X from X = G / |G|. That
quintic brings singular values quickly into a band around 1 instead of slowly to 1 itself.

Shapes: B any leading dimensions, O rows, I columns, m the smaller of O and I, n the larger.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Coefficients = tuple[float, float, float]
QUINTIC: Coefficients = (3.4445, -4.7750, 2.0315)
LEAST_NORM = 1e-7  # a smaller matrix is not blown up to norm 1: zero stays zero


def newton_schulz_reference(g: Tensor, steps: int, coefficients: Coefficients) -> Tensor:
    """As `newton_schulz`: 4 m^2 n + 2 m^3 operations a step."""
    a, b, c = coefficients
    x = normalised(g)
    add = added(x)
    for _ in range(steps):
        gram = x @ x.mT  # (B, m, m)
        x = add(x, add(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return shaped(x, g)


def normalised(g: Tensor) -> Tensor:
    """(*B, O, I) -> (m, n), or (B, m, n) with one leading dimension, of norm 1: products X X^T are m x m."""
    x = g.mT if g.shape[-2] > g.shape[-1] else g  # (*B, m, n)
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp_min(LEAST_NORM)
    return x.reshape(-1, *x.shape[-2:]) if x.ndim > 2 else x


def shaped(x: Tensor, g: Tensor) -> Tensor:
    """`normalised` backwards: as g again."""
    return (x.mT if g.shape[-2] > g.shape[-1] else x).reshape(g.shape)


def added(x: Tensor) -> Callable[..., Tensor]:
    """beta A + alpha B C; on a CPU a batch of one costs up to twice the plain product."""
    return torch.addmm if x.ndim == 2 else torch.baddbmm
