"""Judging other weights than the model's: put them in, and take them out again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def holding(model: nn.Module, weights: list[Tensor]) -> Iterator[None]:
    """Within it the model's parameters hold `weights`, one for each; afterwards exactly what they held."""
    params = list(model.parameters())
    saved = [p.detach().clone() for p in params]
    try:
        _write(params, weights)
        yield
    finally:
        _write(params, saved)


def loaded(model: nn.Module, weights: Iterable[Tensor]) -> list[Tensor]:
    """Copies of saved weights, each where the model's parameter is."""
    devices = [p.device for p in model.parameters()]
    return [w.to(device, copy=True) for w, device in zip(weights, devices, strict=True)]


@torch.no_grad()
def _write(params: list[nn.Parameter], values: list[Tensor]) -> None:
    for p, value in zip(params, values, strict=True):
        p.copy_(value)
