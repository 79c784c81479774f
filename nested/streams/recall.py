"""Multi-query associative recall as a stream: each experience has keys and values of its own."""

from __future__ import annotations

from typing import Annotated

import torch

from nested.config import Bound
from nested.errors import UserError
from nested.sequences.exact_match import IGNORED
from nested.sequences.recall import associative_recall
from nested.streams.arrange import Count, Seed, Share, by_task
from nested.streams.boundaries import Boundary
from nested.streams.seeding import generator
from nested.streams.sequence_source import PARTS, Data, sequence_source
from nested.streams.stream import Scenario, Stream

FILLER = 0


def recall(
    *,
    n_experiences: Count = 5,
    keys: Count = 8,
    values: Count = 8,
    pairs: Count = 4,
    length: Annotated[int, Bound(ge=4)] = 24,
    power: Annotated[float, Bound(gt=0)] = 0.01,
    n_train: Count = 2000,
    n_validation: Count = 200,
    n_test: Count = 500,
    scenario: Scenario = "class",
    boundary: Boundary = "hard",
    blur: Share = 0.2,
    repeats: Count = 1,
    seed: Seed = None,
) -> Stream:
    """Associative recall, asked for many keys at once; every experience brings keys and values that none had before.

    How to recall stays the same and can be carried over; which tokens are values, and their outputs, can be forgotten.
    The targets are the values of all experiences, in the domain scenario the rank among the experience's own. Raises
    UserError where the pairs do not fit.
    """
    first = 1 + n_experiences * keys  # token of the first value; keys come before, the filler is 0
    tasks = {}
    for k in range(n_experiences):
        own = torch.arange(1 + k * keys, 1 + (k + 1) * keys), torch.arange(first + k * values, first + (k + 1) * values)
        draws = [generator(seed or 0, "recall", k, part) for part in PARTS]
        sizes = (n_train, n_validation, n_test)
        try:
            made = [associative_recall(n, d, *own, pairs, length, power, FILLER) for n, d in zip(sizes, draws)]
        except ValueError as error:
            allowed = f"<= {min(keys, values, length // 4)}"
            raise UserError(str(error), key="stream.pairs", seen=pairs, allowed=allowed) from None
        tasks[f"vocabulary {k}"] = [_labelled(data, first) for data in made]
    n_values = n_experiences * values
    source = sequence_source("recall", tasks, first + n_values, pad=FILLER, n_labels=n_values)
    return by_task(source, scenario=scenario, boundary=boundary, blur=blur, repeats=repeats, seed=seed)


def _labelled(data: Data, first: int) -> Data:
    """Targets that count values from 0."""
    x, y = data
    return x, (y - first).where(y != IGNORED, IGNORED)
