"""How wide what is accumulated must be: fast weights, momenta, averages of weights."""

from __future__ import annotations

import torch
from torch import Tensor


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """`dtype`, and at least float32."""
    return torch.promote_types(dtype, torch.float32)


def wide(x: Tensor) -> Tensor:
    """x in its own dtype, and at least float32."""
    return x.to(wide_dtype(x.dtype))
