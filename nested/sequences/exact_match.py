"""How answers for each position of a sequence are judged.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

from torch import Tensor

IGNORED = -100  # the target of a position that is not judged; torch's cross entropy leaves it out


def exact_match(answers: Tensor, targets: Tensor) -> Tensor:
    """(B, T), (B, T) int64 -> (B,) bool: whether every judged position of the sequence is right."""
    return ((answers == targets) | (targets == IGNORED)).all(1)


def positions_right(answers: Tensor, targets: Tensor) -> tuple[int, int]:
    """(B, T), (B, T) int64 -> (judged positions that are right, judged positions)."""
    judged = targets != IGNORED
    return int((answers.eq(targets) & judged).sum()), int(judged.sum())
