"""Which rows are trained on, which choose (validation), which judge (test): stratified and fixed by the seed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nested.streams.seeding import generator
from nested.streams.stream import Source


class Parts(NamedTuple):
    """Rows of the source, each sorted: disjoint, and together all rows."""

    train: Tensor
    validation: Tensor
    test: Tensor


def divide(source: Source, strata: Tensor, validation: float, test: float, seed: int) -> Parts:
    """The official parts of the source where it has them, else the stated shares of each stratum.

    `strata` (M,) are the groups, such as classes, that every part holds in equal shares; `test` is a share of the rows
    without an official part, `validation` a share of what the test leaves. A stratum of two rows or more gives at least
    one to each part asked for, as long as one is left to train on.
    """
    part = torch.zeros(len(source.y), dtype=torch.int8)  # 0 train, 1 validation, 2 test
    if source.validation_index is not None:
        part[source.validation_index] = 1
    if source.test_index is not None:
        part[source.test_index] = 2
    free = (part == 0).nonzero().squeeze(1)
    free = free[torch.randperm(len(free), generator=generator(seed, "parts"))]
    free = free[strata[free].argsort(stable=True)]  # by stratum, in random order within
    for rows in free.split(strata[free].unique_consecutive(return_counts=True)[1].tolist()):
        n_test = 0 if source.test_index is not None else share_of(test, len(rows))
        n_validation = 0 if source.validation_index is not None else share_of(validation, len(rows) - n_test)
        part[rows[:n_test]] = 2
        part[rows[n_test : n_test + n_validation]] = 1
    return Parts(*((part == k).nonzero().squeeze(1) for k in range(3)))


def share_of(share: float, n: int) -> int:
    """The number of rows nearest to share * n, but at least one and never all of them (none of a single row)."""
    return min(max(1, round(share * n)), n - 1) if n > 1 else 0
