"""Whether a model of sequences looks ahead: the inputs after a position are changed, and its answer must not.

Where the targets are what comes next, a model that sees later inputs reads its answers off them: it scores nearly
perfectly and has learned nothing. What has no numbers in it (a mask, a kernel) is asked numerically, before training.

Shapes: T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

ROUNDING = 1e3  # a difference below so many units in the last place of the largest answer is none,
MOST = 1e-2  # and one above this share of it never is rounding


class Peek(NamedTuple):
    """An answer that changed with inputs after it."""

    position: int  # the first one that did
    changed: int  # inputs from here on were changed


def first_peek(
    answers: Callable[[Tensor], Tensor], x: Tensor, judged: Tensor, vocabulary: int | None = None
) -> Peek | None:
    """The first judged position whose answer depends on inputs after it; None where none does.

    Inputs x (1, T, ...), tokens where there is a `vocabulary`; `answers` to them (1, T, ...), the same for the same
    inputs and the same random numbers; `judged` (T,) bool. Inputs are changed from the second position on, from the
    middle on, and the last two and the last one alone: some memories read in chunks.
    """
    places = torch.arange(x.shape[1], device=x.device)
    before, found = _asked(answers, x), []
    for cut in sorted({1, len(places) // 2, len(places) - 2, len(places) - 1} & set(range(1, len(places)))):
        other = x + 1 if vocabulary is None else (x + 1) % vocabulary
        after = _asked(answers, torch.where((places >= cut).reshape(1, -1, *[1] * (x.ndim - 2)), other, x))
        moved = _differ(before, after) & judged & (places < cut)
        found += [Peek(int(moved.nonzero()[0]), cut)] if moved.any() else []
    return min(found, default=None)


def _asked(answers: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.no_grad(), torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        return answers(x)


def _differ(a: Tensor, b: Tensor) -> Tensor:
    """(T,) bool: where two answers (1, T, ...) differ by more than rounding."""
    finite = a.isfinite() & b.isfinite()
    bound = min(ROUNDING * torch.finfo(a.dtype).eps, MOST) * a.where(finite, 0).abs().max()
    moved = torch.where(finite, (a - b).abs() > bound, (a != b) & ~(a.isnan() & b.isnan()))
    return moved.reshape(a.shape[1], -1).any(1)
