"""Gates, rates and norms that keep a fast memory stable.

"Nested Learning" (arXiv 2512.24695v1) leaves open how eta and alpha are parametrised (Eq. 76, 83). Here both are gates,
and eta = eta_max alpha gate, so that token by token no data leads out of the contractive range of
`nested.memory.objectives` (over a chunk of stale gradients an alpha that changes can: see there). What has to last for
hundreds of tokens needs an alpha of exactly 1 and an eigenvalue of exactly -1: a sigmoid reaches neither, the hard gate
both (with keys in half precision the eigenvalue is about 2 eps short of it, see `unit`).

Shapes: B batch, T tokens, H heads, K key, V value.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from nested.errors import UserError
from nested.precision import wide

Gate = Literal["sigmoid", "hard"]
LEAST = 1e-3  # vectors shorter than this stay shorter than 1: bounds the gradient at zero


def gate(z: Tensor, kind: Gate = "sigmoid") -> Tensor:
    """z of any shape -> [0, 1], at least float32. "hard", clamp(1.2 sigmoid(z) - 0.1, 0, 1), reaches both ends."""
    share = torch.sigmoid(wide(z))
    return share if kind == "sigmoid" else (1.2 * share - 0.1).clamp(0, 1)


def gate_bias(start: float, kind: Gate = "sigmoid", key: str = "model.alpha_start") -> float:
    """The z at which the gate is `start`, for a gate that begins there; UserError where the gate does not get there.

    The hard gate also begins at 0 or at 1: at the corner, where it still has a gradient.
    """
    share = start if kind == "sigmoid" else (start + 0.1) / 1.2
    if not (0 <= start <= 1 and 0 < share < 1):
        allowed = "a value above 0 and below 1" if kind == "sigmoid" else "a value from 0 to 1"
        why = "it reaches neither end, a hard one does"
        if not 0 <= start <= 1:
            why = "beyond, retention or the share of the rate's bound would make a memory grow or turn its sign"
        raise UserError(f"{start:g} is not allowed for a {kind} gate; {allowed} is: {why}", key=key, seen=start)
    return math.log(share / (1 - share))


def rate(z: Tensor, alpha: Tensor, eta_max: float, kind: Gate = "sigmoid") -> Tensor:
    """eta = eta_max alpha gate(z), shapes equal: with the bound as eta_max, eigenvalues stay in [-alpha, alpha]."""
    return eta_max * alpha * gate(z, kind)


def unit(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """x (..., K) at length 1, in its own dtype or in `dtype`; below length `LEAST` proportional to x, so that 0 has a
    gradient.

    Computed at least in float32. What is then rounded is made shorter by 1 - eps / 2 before, because rounding makes an
    entry larger by up to 1 + eps / 2, and along a key longer than 1 a rate at its bound makes the memory grow.
    """
    dtype = x.dtype if dtype is None else dtype
    x = wide(x)
    x = x * (x * x).sum(-1, keepdim=True).clamp_min(LEAST * LEAST).rsqrt()
    eps = torch.finfo(dtype).eps
    return (x if eps <= torch.finfo(x.dtype).eps else x * (1 - eps / 2)).to(dtype)


def read_norm(y: Tensor, eps: float = 1e-6) -> Tensor:
    """y (..., V) at root mean square 1 (0 stays 0), at least float32: a read no longer tells how full the memory is."""
    y = wide(y)
    return y * (y.square().mean(-1, keepdim=True) + eps).rsqrt()
