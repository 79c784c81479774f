"""A scalar function of all outputs of an op, and its gradients, by which forms of the op are compared."""

from collections.abc import Sequence

import torch
from torch import Tensor


def gradients(outputs: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
    loss = torch.stack([(o * weights(o)).sum() + o.square().mean() for o in outputs]).sum()
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves)]


def weights(o: Tensor) -> Tensor:
    return torch.arange(1, o.numel() + 1, dtype=o.dtype).sin().view_as(o)
