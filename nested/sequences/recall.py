"""Multi-query associative recall (Arora et al. 2023, Zoology, arXiv 2312.04927).

A sequence first shows pairs of key and value, then asks for the value of every key, once each. How far behind the pairs
a key is asked for follows a power law: p(gap) ~ gap^(power - 1), near ones being more likely. What stands between the
questions is one filler token (the published experiments' setting; the alternative there is random tokens).

Shapes: N sequences, T tokens, P pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nested.sequences.exact_match import IGNORED


def associative_recall(
    n: int,
    draw: torch.Generator,
    keys: Tensor,
    values: Tensor,
    pairs: int = 4,
    length: int = 64,
    power: float = 0.01,
    filler: int = 0,
) -> tuple[Tensor, Tensor]:
    """Tokens and targets, both (N, T) int64, T = length: the value at each key that is asked for, IGNORED elsewhere.

    `keys` and `values` are the tokens to draw from, without replacement within a sequence. Raises ValueError where
    there are too few of them, or too few places.
    """
    places = (length - 2 * pairs) // 2  # a question stands at every second place, as published
    if pairs > min(len(keys), len(values), places):
        seen = f"{len(keys)} keys, {len(values)} values and {max(0, places)} places"
        raise ValueError(f"{pairs} pairs do not fit into {seen} (length {length})")
    key, value = _without_replacement(n, keys, pairs, draw), _without_replacement(n, values, pairs, draw)
    x = torch.full((n, length), filler)
    x[:, : 2 * pairs] = torch.stack([key, value], 2).flatten(1)
    weight = torch.arange(1, places + 1, dtype=torch.float64) ** (power - 1)
    asked = 2 * pairs + 2 * weight.expand(n, -1).multinomial(pairs, generator=draw)  # (N, P)
    y = torch.full((n, length), IGNORED)
    return x.scatter_(1, asked, key), y.scatter_(1, asked, value)


def _without_replacement(n: int, tokens: Tensor, pairs: int, draw: torch.Generator) -> Tensor:
    """(N, P) tokens, different within a row."""
    return tokens[torch.rand(n, len(tokens), generator=draw).topk(pairs).indices]
