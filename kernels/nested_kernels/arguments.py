"""What ops check of their arguments before anything is launched; each raises ValueError in the same words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_words(op: str, words: Mapping[str, str], allowed: Mapping[str, Sequence[str]]) -> None:
    for name, seen in words.items():
        if seen not in allowed[name]:
            raise ValueError(f"{op}: {name} is {seen!r}; allowed: {', '.join(allowed[name])}")


def check_length(op: str, name: str, length: int, least: int = 1) -> None:
    if isinstance(length, bool) or not isinstance(length, int | torch.SymInt) or length < least:
        raise ValueError(f"{op}: {name} is {length!r}; an integer, {least} or more is allowed")


def check_position(op: str, anchor: int, position: int, has_anchor: bool) -> None:
    """A state has an anchor exactly where a chunk is open."""
    check_length(op, "state.position", position, 0)
    if position >= anchor:
        raise ValueError(f"{op}: state.position is {position}; with anchor {anchor} it is below {anchor}")
    if has_anchor != (position > 0):
        has = "an anchor" if has_anchor else "no anchor"
        raise ValueError(f"{op}: state has {has} at position {position}; it has one exactly where a chunk is open")


def check_tensor(op: str, name: str, x: object, axes: Sequence[str]) -> None:
    if not isinstance(x, Tensor):
        seen = "None" if x is None else f"a {type(x).__name__}"
        raise ValueError(f"{op}: {name} is {seen}; a tensor ({', '.join(axes)}) is needed")
    if x.is_nested or x.layout != torch.strided:
        seen = "is nested" if x.is_nested else f"has layout {x.layout}"
        raise ValueError(f"{op}: {name} {seen}; dense tensors are allowed")


def check_retention(op: str, retain: str, given: bool) -> None:
    if given != (retain != "zero"):
        raise ValueError(f"{op}: retain is {retain!r}, so initial must{' not' * (retain == 'zero')} be given")


def check_operands(
    op: str,
    given: Mapping[str, Tensor],
    axes: Mapping[str, str],
    sizes: Mapping[str, int],
    beside: Mapping[str, Tensor],
) -> None:
    """Shapes by the sizes of named axes, dtypes, and one device: all as `beside`, the tensors that give the sizes."""
    first, like = next(iter(beside.items()))
    for name, x in given.items():
        shape = tuple(sizes[axis] for axis in axes[name])
        if x.shape != shape:
            said = " and ".join(f"{name} {tuple(x.shape)}" for name, x in beside.items())
            raise ValueError(f"{op}: {name} is {tuple(x.shape)}; beside {said} it must be {shape}")
        check_floating(op, name, x)
        check_device(op, name, x, first, like.device)


def widest(*tensors: Tensor | None) -> torch.dtype:
    """The dtype of the most precise, at least float32."""
    return reduce(torch.promote_types, (x.dtype for x in tensors if x is not None), torch.float32)


def check_floating(op: str, name: str, x: Tensor) -> None:
    if x.dtype not in FLOATING:
        raise ValueError(f"{op}: {name} is {x.dtype}; floating-point dtypes are allowed, of 16, 32 or 64 bits")


def check_device(op: str, name: str, x: Tensor, first: str, device: torch.device) -> None:
    if x.device != device:
        raise ValueError(f"{op}: {name} is on {x.device} and {first} on {device}; one device is allowed")
