"""Where every kernel is launched, so that what is compiled ahead of time in tests is what runs.

A kernel module has AOT_CASES: calls on meta tensors, each with its budget. Nothing is launched for meta tensors; their
launches are handed to `recording`, which says what would have been compiled and with which arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Launch:
    """One launch: a kernel, its grid, its arguments in order, its constants, and how many warps and stages it has."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Tensor | int, ...]
    constants: dict[str, Any]
    warps: int
    stages: int


@dataclass(frozen=True)
class AotCase:
    """A call whose kernels are compiled ahead of time, and the bytes of stack that each may use (0 where not named)."""

    name: str
    call: Callable[[], object]
    stack: Mapping[str, int] = field(default_factory=dict)
    slow: bool = False


_recorded: list[Launch] | None = None


def launch(
    kernel: Any, grid: tuple[int, ...], *arguments: Tensor | int, warps: int = 4, stages: int = 2, **constants: Any
) -> None:
    """Run `kernel` on `grid`, on the device of its first argument, or record that it would have run."""
    if _recorded is not None:
        _recorded.append(Launch(kernel, grid, arguments, constants, warps, stages))
        return
    first = arguments[0]
    assert isinstance(first, Tensor)
    with torch.cuda.device(first.device) if first.is_cuda else nullcontext():
        kernel[grid](*arguments, **constants, num_warps=warps, num_stages=stages)


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """All launches inside are recorded, and none takes place."""
    global _recorded
    _recorded = []
    try:
        yield _recorded
    finally:
        _recorded = None
