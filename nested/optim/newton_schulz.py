"""Matrices with orthonormal rows (or columns) in place of what momenta hold: Newton-Schulz, and one step towards it.

"Nested Learning" (arXiv 2512.24695v1) Eq. 42, whose mathematics is in `nested_kernels.newton_schulz`, and Eq. 43-44.

Shapes: B any leading dimensions, O rows, I columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from nested_kernels.newton_schulz import QUINTIC, newton_schulz, newton_schulz_each
from torch import Tensor

__all__ = ["QUINTIC", "newton_schulz", "orthogonalisation_step", "orthogonalised", "orthogonalised_each"]


def orthogonalised(memory: Tensor, steps: int = 5) -> Tensor:
    """`newton_schulz` of (O, ...) as a matrix (O, rest); in bfloat16, as in torch's Muon, unless it is float64."""
    return newton_schulz(_matrix(memory), steps).view_as(memory)


def orthogonalised_each(memories: Sequence[Tensor], steps: int = 5) -> Iterable[Tensor]:
    """`orthogonalised` of each; on a device those of one shape in one batch, and results may share memory."""
    if all(m.device.type == "cpu" for m in memories):
        return (orthogonalised(m, steps) for m in memories)  # one by one, as they are asked for
    found = newton_schulz_each([_matrix(m) for m in memories], steps)
    return [x.reshape(m.shape) for x, m in zip(found, memories)]


def _matrix(memory: Tensor) -> Tensor:
    return (memory if memory.dtype is torch.float64 else memory.bfloat16()).flatten(1)


def orthogonalisation_step(o: Tensor, g: Tensor, rate: float) -> Tensor:
    """Eq. 44: O <- O - rate (O - G + 2 O (O^T O - I)), all (*B, O, I); it starts from O = G.

    This is gradient descent on |O - G|^2 / 2 + |O^T O - I|^2 / 2. Eq. 43 prints the second term alone, whose gradient
    has no G in it.
    """
    return o - rate * (o - g + 2 * (o @ (o.mT @ o) - o))
