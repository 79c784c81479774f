"""What a memory asks of its width, its tokens and the state it goes on from, so that a wrong one is refused by name.

Shapes: B batch, T tokens, D width, H heads, K = D / H, S size of a convolution.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from nested.errors import UserError

Chunks = ("anchor", "chunk", "projection_chunk")  # tokens between two anchors of a memory's gradient, where it has some


class Convolved(NamedTuple):
    """What a memory behind a short convolution holds: the convolution's last tokens, and the memory itself."""

    seen: Tensor  # (B, S-1, channels)
    memory: Tensor  # (B, H, V, K)


def head_size(width: int, heads: int, rotary: bool = False) -> int:
    """K. Raises UserError where heads do not divide the width, or leave odd sizes, which cannot be rotary."""
    step = 2 if rotary else 1
    if width % (step * heads):
        fit = [n for n in range(1, width // step + 1) if width % (step * n) == 0]
        text = f"{heads} heads do not divide a width of {width}{' into even sizes' if rotary else ''}; "
        text += f"heads that do: {', '.join(map(str, fit)) or 'none, take an even width'}"
        raise UserError(text, key="model.heads", seen=heads, allowed=fit)
    return width // heads


def check_tokens(x: Tensor, width: int) -> None:
    """Raises UserError for tokens that are not (B, T, width), and for none."""
    if x.ndim != 3 or x.shape[-1] != width or not x.numel():
        text = f"tokens of shape {tuple(x.shape)} are not allowed; (B, T, {width}) with B and T of at least 1 is"
        raise UserError(text, key="x", seen=tuple(x.shape), allowed=f"(B, T, {width})")


def check_length(memory: nn.Module, tokens: int, where: str = "model") -> None:
    """Raises UserError where a sequence ends within the first chunk of the memory: none of its tokens sees a write."""
    for name in Chunks:
        chunk = getattr(memory, name, 1)
        if isinstance(chunk, int) and chunk > tokens:  # of a user's memory it may be anything
            text = f"a chunk of {chunk} tokens is longer than the sequence of {tokens}: no token would see a write"
            text += f"; take at most {tokens} (the first piece of a longer sequence is read from initial_state)"
            raise UserError(text, key=f"{where}.{name}", seen=chunk, allowed=tokens)


def check_states(state: Any, wanted: Any, x: Tensor) -> None:
    """`check_state` of every tensor in a named tuple."""
    for part, held, new in zip(wanted._fields, state, wanted):
        check_state(part, held, new, x)


def check_state(part: str, seen: Tensor, wanted: Tensor, x: Tensor, dtype: bool = True) -> None:
    """Raises UserError where a part of the state has another shape, device or `dtype` than x (B, T, D) needs."""
    for what in ("shape", "device", "dtype") if dtype else ("shape", "device"):
        have, need = getattr(seen, what), getattr(wanted, what)
        if have != need:
            have, need = (tuple(h) if what == "shape" else h for h in (have, need))
            text = f"the state's {part} has {what} {have}, tokens of shape {tuple(x.shape)} need {need}"
            raise UserError(f"{text}; start from initial_state({len(x)})", key="state", seen=have, allowed=need)
