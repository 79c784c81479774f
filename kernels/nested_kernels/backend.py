"""Which form of an op runs: asked for by an argument, `using` or the environment, or left to the device and the shapes.

For every call that leaves it open ("auto"), `using(backend)` names one, and where that says nothing
NESTED_KERNELS_BACKEND. What an argument names must serve, or is refused. What is named otherwise, and what a device
would take by itself, gives way where it cannot serve, and one line in the log of `nested_kernels` says why.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache

import torch
from torch import Tensor
from torch.autograd import forward_ad

ENVIRONMENT = "NESTED_KERNELS_BACKEND"
EVERYWHERE = ("auto", "reference", "chunked", "triton")  # words for all ops at once
_used = "auto"


@contextmanager
def using(backend: str) -> Iterator[None]:
    """Inside, calls that leave their backend open take `backend`. Raises ValueError for other words."""
    global _used
    if backend not in EVERYWHERE:
        raise ValueError(f"using: backend is {backend!r}; allowed: {', '.join(EVERYWHERE)}")
    before, _used = _used, backend
    try:
        yield
    finally:
        _used = before


def chosen(op: str, backend: str, allowed: Sequence[str]) -> str:
    """`backend`, or where that is "auto" what `using` or else the environment names. Raises ValueError for others."""
    if backend not in allowed:
        raise ValueError(f"{op}: backend is {backend!r}; allowed: {', '.join(allowed)}")
    if backend != "auto":
        return backend
    named = _used if _used != "auto" else os.environ.get(ENVIRONMENT, "auto")
    if named not in EVERYWHERE:
        raise ValueError(f"{op}: {ENVIRONMENT} is {named!r}; allowed: {', '.join(EVERYWHERE)}")
    if named not in allowed:
        fall_back(op, "auto", "it has no Triton kernel" if named == "triton" else "it has no such form", named)
        return "auto"
    return named


def form_of(
    op: str,
    backend: str,
    named: str,
    plain: str,
    on_device: bool,
    unfit: Callable[[], str | None],
    operands: Iterable[Tensor | None],
) -> str:
    """The form that runs: as `named` by `chosen`, or Triton where that is `on_device` and fit, or `plain` torch.

    Raises ValueError where `backend`, the argument, is "triton" and `unfit()` or a differentiation says why not.
    """
    if named not in ("auto", "triton"):
        return named
    if named == "auto" and not on_device:
        return plain
    why = unfit() or transformed(*operands)
    if why is None:
        return "triton"
    if backend == "triton":
        raise ValueError(f"{op}: backend is 'triton', and {why}")
    fall_back(op, plain, why)
    return plain


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


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Inside, what is computed on the device of x has the precision of its operands; a meta device has no autocast."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


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
    _while_compiling(f'{op}: backend "{to}" in place of "{asked}": {why}')


@torch.compiler.assume_constant_result
def _while_compiling(line: str) -> None:
    """`_say`, which a compiler calls once, as it reads the code, and not in the code."""
    _say(line)


@cache
def _say(line: str) -> None:
    logging.getLogger("nested_kernels").warning(line)
