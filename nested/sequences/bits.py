"""Bits per byte: what a text costs a language model, whatever its tokens are.

Sums of bits over sums of bytes: tokenizers that cut the text otherwise can be compared, and every byte counts the same.

Shapes: N sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import math

from torch import Tensor

AT_ONCE = 1024  # sequences whose tokens are looked up at a time


def bits(nats: float) -> float:
    """What a negative log likelihood in nats is in bits."""
    return nats / math.log(2)


def byte_count(targets: Tensor, token_bytes: Tensor | None) -> int:
    """Bytes of text that the tokens (N, T) stand for, token_bytes (V,) each; None: one each."""
    if token_bytes is None:
        return targets.numel()
    return sum(int(token_bytes[rows.long()].sum()) for rows in targets.split(AT_ONCE))
