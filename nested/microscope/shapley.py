"""Whose work a change is: exact Shapley shares of its players, or single and all-but-one roll-backs of too many.

A hybrid takes some players from one state and all others from another; what it is worth is its score. Pure functions on
arrays. Source: L. S. Shapley, "A value for n-person games", 1953.

Shapes: L players, H hybrids (rows of truth values: who is taken).
"""

from __future__ import annotations

from math import factorial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Members = NDArray[np.bool_]


class Rollbacks(NamedTuple):
    """What each player does by itself, with no claim to add up."""

    single: Array  # (L,) it alone is taken
    all_but_one: Array  # (L,) what is lost where all but it are taken
    interaction: float  # the whole change less the sum of the single ones


def every_set(players: int) -> Members:
    """(2^L, L): hybrid k takes player l where bit l of k is set."""
    return (np.arange(2**players)[:, None] >> np.arange(players) & 1).astype(bool)


def ends(players: int) -> Members:
    """(2 L + 2, L): nobody, each player alone, all but each, everybody."""
    alone = np.eye(players, dtype=bool)
    return np.concatenate([np.zeros((1, players), bool), alone, ~alone, np.ones((1, players), bool)])


def shapley(values: Array) -> Array:
    """Shares (L,) of the worths (2^L,) of `every_set`: each player's mean contribution over all orders of joining.

    They sum to values[-1] - values[0]. Raises ValueError for a number of worths that is no power of two.
    """
    players = len(values).bit_length() - 1
    if len(values) != 2**players:
        raise ValueError(f"{len(values)} worths; one for each set of players, a power of two, is needed")
    size = every_set(players).sum(1)
    orders = np.array([factorial(s) * factorial(players - 1 - s) for s in range(players)], dtype=np.float64)
    shares = np.zeros(players)
    for player in range(players):
        others = np.flatnonzero(np.arange(len(values)) >> player & 1 == 0)
        # whole numbers until the division: worths that are counts give exact shares
        shares[player] = orders[size[others]] @ (values[others | 1 << player] - values[others]) / factorial(players)
    return shares


def rollbacks(values: Array) -> Rollbacks:
    """From the worths (2 L + 2,) of `ends`."""
    players = len(values) // 2 - 1
    nobody, everybody = values[0], values[-1]
    single = values[1 : 1 + players] - nobody
    return Rollbacks(single, everybody - values[1 + players : -1], float(everybody - nobody - single.sum()))
