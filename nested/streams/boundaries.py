"""What happens to training samples at the borders between experiences. Validation and test are never touched."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch

from nested.streams.seeding import generator
from nested.streams.stream import Examples

Boundary = Literal["hard", "blurry", "none"]


def rearranged(parts: list[Examples], boundary: Boundary, blur: float, seed: int) -> list[Examples]:
    """The training samples of all experiences with the stated kind of border; each sample still occurs exactly once."""
    if boundary == "blurry":
        return blurred(parts, blur, seed)
    return shuffled(parts, seed) if boundary == "none" else parts


def exchanged(sizes: list[int], blur: float) -> list[int]:
    """How many samples cross each border in each direction: half the share of the smaller neighbour."""
    return [round(blur / 2 * min(pair)) for pair in pairwise(sizes)]


def blurred(parts: list[Examples], blur: float, seed: int) -> list[Examples]:
    """At each border, blur / 2 of the smaller neighbour's samples, drawn at random, change places in both directions.

    With equal sizes an experience between two others so has the share `blur` from its neighbours, half of it from each;
    the first and the last, which have one neighbour, have blur / 2. Sizes do not change, nothing moves twice.
    """
    joint, sizes = Examples.concat(parts), [len(p) for p in parts]
    own, start = [], 0
    for i, n in enumerate(sizes):
        own.append(start + torch.randperm(n, generator=generator(seed, "blur", i)))
        start += n
    cross = [0, *exchanged(sizes, blur), 0]  # cross[i]: over the border before experience i
    left = [rows[:k] for rows, k in zip(own, cross)]
    right = [rows[k : k + m] for rows, k, m in zip(own, cross, cross[1:])]
    stay = [rows[k + m :] for rows, k, m in zip(own, cross, cross[1:])]
    none = own[0][:0]
    moved = zip([none, *right], stay, [*left[1:], none])
    return [joint.subset(torch.cat(rows).sort().values) for rows in moved]


def shuffled(parts: list[Examples], seed: int) -> list[Examples]:
    """All samples in one random order, cut into pieces of the old sizes."""
    joint = Examples.concat(parts)
    order = torch.randperm(len(joint), generator=generator(seed, "no boundary"))
    return [joint.subset(rows.sort().values) for rows in order.split([len(p) for p in parts])]
