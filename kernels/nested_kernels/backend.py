"""Which form of an op runs: asked for by an argument, by the environment, or left to the device and the shapes.

NESTED_KERNELS_BACKEND names a backend for every call that leaves it open ("auto"). What an argument names must serve,
or is refused. What the environment names, and what a device would take by itself, gives way where it cannot serve, and
one line in the log of `nested_kernels` says why.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.autograd import forward_ad

ENVIRONMENT = "NESTED_KERNELS_BACKEND"
EVERYWHERE = ("auto", "reference", "chunked", "triton")  # words that the environment may say


def chosen(op: str, backend: str, allowed: Sequence[str]) -> str:
    """`backend`, or where that is "auto" what the environment names. Raises ValueError for other words."""
    if backend not in allowed:
        raise ValueError(f"{op}: backend is {backend!r}; allowed: {', '.join(allowed)}")
    if backend != "auto":
        return backend
    named = os.environ.get(ENVIRONMENT, "auto")
    if named not in EVERYWHERE:
        raise ValueError(f"{op}: {ENVIRONMENT} is {named!r}; allowed: {', '.join(EVERYWHERE)}")
    if named not in allowed:
        fall_back(op, "auto", "it has no Triton kernel" if named == "triton" else "it has no such form", named)
        return "auto"
    return named


@torch.compiler.assume_constant_result
def without_triton(device: torch.device) -> str | None:
    """Why no Triton kernel runs on `device`, or None where one does."""
    return _without_triton(device)


@cache
def _without_triton(device: torch.device) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    from triton import knobs

    if knobs.runtime.interpret:
        return None
    if device.type != "cuda":
        return f"the operands are on {device}, and a CUDA device is needed"
    capability = torch.cuda.get_device_capability(device)
    return None if capability >= (8, 0) else f"{device} has compute capability {capability}, and (8, 0) is needed"


def transformed(*operands: Tensor | None) -> str | None:
    """Why no op of torch.library may take part in a differentiation that is going on, or None where it may.

    Such an op has a backward pass alone: a forward-mode derivative of it would be 0 without a word.
    """
    if torch._C._are_functorch_transforms_active():
        return "it is called inside a transform of torch.func"
    if any(x is not None and forward_ad.unpack_dual(x).tangent is not None for x in operands):
        return "a forward-mode derivative is asked for"
    return None


def fall_back(op: str, to: str, why: str, asked: str = "triton") -> None:
    """Say so, once for each reason."""
    if not torch.compiler.is_compiling():
        _say(f'{op}: backend "{to}" in place of "{asked}": {why}')


@cache
def _say(line: str) -> None:
    logging.getLogger("nested_kernels").warning(line)
