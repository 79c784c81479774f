"""Second moments of gradients and what divides by their square root: the preconditioner of the optimizers here.

Shapes: g is a matrix (O, I), or a tensor of more dimensions read as (O, rest).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Moment = Literal["diagonal", "left"]


def second_moment(g: Tensor, kind: Moment) -> Tensor:
    """g^2, shaped as g ("diagonal"), or G G^T, (O, O) ("left"); fewer than two dimensions are always diagonal."""
    if kind == "diagonal" or g.ndim < 2:
        return g * g
    rows = g.flatten(1)  # (O, I)
    return rows @ rows.mT


def divided_by_root(g: Tensor, h: Tensor, kind: Moment, eps: float) -> Tensor:
    """H^(-1/2) g, shaped as g, where h is a (mean or sum of) `second_moment`; `eps` is added to the root of H.

    "left" takes an eigendecomposition of H, O^3 operations. Directions in which H is zero to rounding are left out:
    there nothing was seen, g included, and the quotient of two rounding errors can be of any size.
    """
    if kind == "diagonal" or g.ndim < 2:
        return g / h.sqrt().add_(eps)
    values, vectors = torch.linalg.eigh(h)  # (O,), (O, O)
    noise = values[-1:] * len(h) * torch.finfo(h.dtype).eps
    inverse = torch.where(values > noise, 1 / (values.clamp_min(0).sqrt() + eps), 0)  # (O,)
    inverse = (vectors * inverse) @ vectors.mT  # (O, O)
    return (inverse @ g.flatten(1)).view_as(g)
