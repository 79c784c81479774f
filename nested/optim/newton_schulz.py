"""Newton-Schulz: nearly the closest matrix with orthonormal rows (or columns), by matrix products alone.

"Nested Learning" (arXiv 2512.24695v1) Eq. 42 puts it on the output of a momentum, which makes Muon, and gives neither
coefficients nor a number of steps; here they are Muon's: X <- a X + (b X X^T + c (X X^T)^2) X from X = G / |G|. That
quintic brings singular values quickly into a band around 1 instead of slowly to 1 itself. Eq. 43-44, one step of
gradient descent towards an orthogonal matrix, is `orthogonalisation_step`.

Shapes: B any leading dimensions, O rows, I columns, m the smaller of O and I, n the larger.
"""

from __future__ import annotations

import torch
from torch import Tensor

QUINTIC = (3.4445, -4.7750, 2.0315)
LEAST_NORM = 1e-7  # a smaller matrix is not blown up to norm 1: zero stays zero


def newton_schulz(g: Tensor, steps: int = 5, coefficients: tuple[float, float, float] = QUINTIC) -> Tensor:
    """G = U S V^T -> about U V^T, (*B, O, I) both, computed in G's own precision.

    Five steps bring the singular values of a Gaussian matrix with n >= 1.5 m into [0.6, 1.2]; one below |G| / 1000
    stays below 0.5. The size of G makes no difference unless |G| is below 1e-7. A NaN spreads over its matrix. Raises
    ValueError for a tensor of fewer than two dimensions.
    """
    if g.ndim < 2:
        raise ValueError(f"Newton-Schulz needs a matrix; a tensor of shape {tuple(g.shape)} is none")
    a, b, c = coefficients
    tall = g.shape[-2] > g.shape[-1]
    x = g.mT if tall else g  # (*B, m, n): the products below are m x m
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp_min(LEAST_NORM)
    if x.ndim > 2:
        x = x.reshape(-1, *x.shape[-2:])  # (B, m, n)
    add = torch.addmm if x.ndim == 2 else torch.baddbmm  # on a CPU a batch of one costs up to twice the plain product
    for _ in range(steps):
        gram = x @ x.mT  # (B, m, m)
        x = add(x, add(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).reshape(g.shape)


def orthogonalised(memory: Tensor, steps: int = 5) -> Tensor:
    """`newton_schulz` of (O, ...) as a matrix (O, rest); in bfloat16, as in torch's Muon, unless it is float64."""
    precise = memory if memory.dtype is torch.float64 else memory.bfloat16()
    return newton_schulz(precise.flatten(1), steps).view_as(memory)


def orthogonalisation_step(o: Tensor, g: Tensor, rate: float) -> Tensor:
    """Eq. 44: O <- O - rate (O - G + 2 O (O^T O - I)), all (*B, O, I); it starts from O = G.

    This is gradient descent on |O - G|^2 / 2 + |O^T O - I|^2 / 2. Eq. 43 prints the second term alone, whose gradient
    has no G in it.
    """
    return o - rate * (o - g + 2 * (o @ (o.mT @ o) - o))
