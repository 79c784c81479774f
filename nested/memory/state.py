"""What every memory asks of its tokens and of the state it goes on from, so that a wrong one is refused by name.

Shapes: B batch, T tokens, D width.
"""

from __future__ import annotations

from torch import Tensor

from nested.errors import UserError


def check_tokens(x: Tensor, width: int) -> None:
    """Raises UserError for tokens that are not (B, T, width), and for none."""
    if x.ndim != 3 or x.shape[-1] != width or not x.numel():
        text = f"tokens of shape {tuple(x.shape)} are not allowed; (B, T, {width}) with B and T of at least 1 is"
        raise UserError(text, key="x", seen=tuple(x.shape), allowed=f"(B, T, {width})")


def check_chunk(chunk: int, name: str, x: Tensor) -> None:
    """Raises UserError for a first piece x (B, T, D) shorter than a chunk, where nothing says that more follows."""
    if chunk > x.shape[1]:
        raise UserError(
            f"a chunk of {chunk} tokens is longer than the sequence of {x.shape[1]}: no token would see a write; "
            f"take at most {x.shape[1]}, or pass initial_state({len(x)}) where more of the sequence follows",
            key=f"model.{name}",
            seen=chunk,
            allowed=x.shape[1],
        )


def check_state(part: str, seen: Tensor, wanted: Tensor, x: Tensor, dtype: bool = True) -> None:
    """Raises UserError where a part of the state has another shape, device or `dtype` than x (B, T, D) needs."""
    for what in ("shape", "device", "dtype") if dtype else ("shape", "device"):
        have, need = getattr(seen, what), getattr(wanted, what)
        if have != need:
            have, need = (tuple(h) if what == "shape" else h for h in (have, need))
            text = f"the state's {part} has {what} {have}, tokens of shape {tuple(x.shape)} need {need}"
            raise UserError(f"{text}; start from initial_state({len(x)})", key="state", seen=have, allowed=need)
