"""Five token manipulation tasks of MAD (Poli et al. 2024, arXiv 2403.17844): those of Nested Learning's table 4.

Vocabularies and lengths are arguments; their defaults are the published base settings (12,800 training sequences, 1,280
to judge by). Special tokens come last in a task's vocabulary.

Departures. Only positions whose answer is determined are targets, in training too (in the recall tasks the published
code trains on every next token, and judges as here). Sequences are padded on the right, not on the left. Compression is
published with a decoder of its own, an MLP that sees nothing but the output at the aggregation token; here the model
itself goes on and reads out, so that any model of one answer per position takes part: it tests a bounded state, not
attention, which can look past the aggregation token. The published measure is the share of judged positions that are
right (`exact_match.positions_right`); whole sequences are the harder one.

Shapes: N sequences, T tokens.
"""

from __future__ import annotations

from random import Random

import torch
from torch import Tensor

from nested.sequences.exact_match import IGNORED

Data = tuple[Tensor, Tensor]  # tokens and targets, both (N, T) int64


def in_context_recall(n: int, draw: torch.Generator, tokens: int = 16, length: int = 128) -> Data:
    """Key-value pairs; at each key that has come before its value is asked for. T = length - 1.

    The lower half of the tokens are keys, the upper half values; each sequence maps keys to values anew. The last key
    is always one that has come before, and its value is not shown.
    """
    keys, pairs = tokens // 2, length // 2
    mapped = keys + torch.randint(tokens - keys, (n, keys), generator=draw)  # (N, keys)
    key = torch.randint(keys, (n, pairs), generator=draw)
    shown = torch.zeros(n, keys, dtype=torch.bool).scatter_(1, key[:, :-1], True)
    key[:, -1] = (torch.rand(n, keys, generator=draw) * shown).argmax(1)  # uniform among those shown
    value = mapped.gather(1, key)
    again = (key.unsqueeze(2) == key.unsqueeze(1)).tril(-1).any(2)  # (N, pairs): the same key stands before
    x = torch.stack([key, value], 2).flatten(1)
    y = torch.stack([value.where(again, IGNORED), torch.full_like(value, IGNORED)], 2).flatten(1)
    return x[:, :-1], y[:, :-1]


def fuzzy_in_context_recall(
    n: int, draw: torch.Generator, tokens: int = 16, length: int = 128, most: int = 3, longest_keys: bool = False
) -> Data:
    """Recall with keys and values of 1 to `most` different tokens; at a key that has come before all of its value.

    The last token is padding; of the others the lower half are for keys, the upper half for values. The last key has
    come before. `longest_keys`: keys have `most` tokens, as in published test data. T = length - 1 at most, padded.
    """
    random = Random(int(torch.randint(2**62, (), generator=draw)))
    made = [_fuzzy(random, tokens - 1, length, most, longest_keys) for _ in range(n)]
    x = torch.tensor([a + [tokens - 1] * (length - 1 - len(a)) for a, _ in made])
    y = torch.tensor([b + [IGNORED] * (length - 1 - len(b)) for _, b in made])
    return x, y


def _fuzzy(random: Random, plain: int, length: int, most: int, longest_keys: bool) -> tuple[list[int], list[int]]:
    """One sequence without padding: tokens, and for each the token to be answered, which is the next one."""

    def word(first: int, last: int, size: int) -> tuple[int, ...]:
        return tuple(random.sample(range(first, last), size))

    known: dict[tuple[int, ...], tuple[int, ...]] = {}
    x: list[int] = []
    judged: list[bool] = []

    def add(key: tuple[int, ...]) -> None:
        again = key in known
        value = known.setdefault(key, word(plain // 2, plain, random.randint(1, most)))
        x.extend(key + value)
        judged.extend([False] * len(key) + [again] * len(value))

    while len(x) + 4 * most <= length:  # room for one more pair and for the last
        add(word(0, plain // 2, most if longest_keys else random.randint(1, most)))
    add(random.choice(list(known)))
    return x[:-1], [token if asked else IGNORED for token, asked in zip(x[1:], judged[1:], strict=True)]


def selective_copying(n: int, draw: torch.Generator, tokens: int = 16, length: int = 256, copied: int = 16) -> Data:
    """Tokens strewn among blanks; after the copy token they are asked for in their order, one at each blank.

    The last two tokens are the blank and the copy token. T = length.
    """
    blank, copy, body = tokens - 2, tokens - 1, length - copied - 1
    told = torch.randint(tokens - 2, (n, copied), generator=draw)
    places = torch.rand(n, body, generator=draw).topk(copied).indices.sort(1).values
    x = torch.full((n, length), blank).scatter_(1, places, told)
    x[:, body] = copy
    y = torch.full((n, length), IGNORED)
    y[:, body + 1 :] = told
    return x, y


def compression(n: int, draw: torch.Generator, tokens: int = 16, length: int = 32) -> Data:
    """Random tokens, then as often the aggregation token (the last one), at which they are asked for in their order.

    `length` counts the tokens and the first aggregation token, as published. T = 2 (length - 1).
    """
    told = torch.randint(tokens - 1, (n, length - 1), generator=draw)
    x = torch.cat([told, torch.full_like(told, tokens - 1)], 1)
    return x, torch.cat([torch.full_like(told, IGNORED), told], 1)


def memorization(n: int, draw: torch.Generator, facts: Tensor, length: int = 32) -> Data:
    """Keys, each followed by the insert token, at which the key's value is asked for: `facts` (keys,), never shown.

    Tokens are the keys, as many values, and the insert token. T = length.
    """
    key = torch.randint(len(facts), (n, length // 2), generator=draw)
    x = torch.stack([key, torch.full_like(key, 2 * len(facts))], 2).flatten(1)
    y = torch.stack([torch.full_like(key, IGNORED), facts[key]], 2).flatten(1)
    return x, y


def random_facts(draw: torch.Generator, tokens: int = 256) -> Tensor:
    """(keys,) the value of each key, all different: one fixed mapping for everything that is trained on and judged."""
    keys = (tokens - 1) // 2
    return keys + torch.randperm(keys, generator=draw)
