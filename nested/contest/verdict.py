"""Who forgets less where both have learned equally well: pure functions on arrays.

An arm is a curve: learning and forgetting at each of F rates, over S orders (seeds), NaN where a run diverged. Its
frontier are the rates that no other rate of its own beats on the means in both; between them, order by order,
forgetting is interpolated, beyond them nothing is. Two arms are compared, order by order, at what the candidate has
learned at its own rate, or as near to that as both frontiers reach; differences are paired, p-values are those of the
two-sided paired t-test, corrected by Holm (1979) for as many controls as are compared. Frontiers that do not meet are
compared at their nearest ends: who learns more and forgets less at once has won there, anything else is no comparison.

Shapes: F rates, S orders. `learning` is signed: more is better, also where scores are losses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nested.metrics import paired

Array = NDArray[np.float64]
Outcome = Literal["less", "more", "even", "apart"]
LEVEL = 0.05


@dataclass(frozen=True, eq=False)
class Curve:
    """Learning and forgetting of an arm, (F, S) each."""

    learning: Array
    forgetting: Array


@dataclass(frozen=True, eq=False)
class Comparison:
    """The candidate against one control; `difference` is the control's forgetting minus the candidate's."""

    orders: int  # in which both could be compared
    learning: float | None  # at which they were, the mean over orders; None: they do not meet
    difference: float
    half: float | None  # half the 95 percent interval
    p: float
    holm: float = 1.0  # p, corrected
    gap: float = 0.0  # where they do not meet: how much more the control has learned, at the least
    at: Array | None = None  # (S,) learning, NaN in orders where they do not meet
    differences: Array | None = None  # (S,)

    @property
    def meet(self) -> bool:
        return self.learning is not None

    @property
    def outcome(self) -> Outcome:
        """Whether the candidate forgets less than the control, more, or neither can be said."""
        significant = self.holm < LEVEL
        if self.meet:
            return "even" if not significant else "less" if self.difference > 0 else "more"
        if self.gap > 0:  # the control has learned more
            return "even" if not significant else "more" if self.difference < 0 else "apart"
        return "less" if significant and self.difference > 0 else "apart"


def frontier(curve: Curve) -> list[int]:
    """The rates on the frontier; one at which any order diverged is not, nor one that another of them dominates."""
    whole = [f for f in range(len(curve.learning)) if np.isfinite(curve.learning[f] + curve.forgetting[f]).all()]
    x, y = curve.learning.mean(1), curve.forgetting.mean(1)

    def dominated(f: int) -> bool:
        return any(x[g] >= x[f] and y[g] <= y[f] and (x[g] > x[f] or y[g] < y[f]) for g in whole)

    return [f for f in whole if not dominated(f)]


def forgetting_at(learning: Array, forgetting: Array, where: float) -> float:
    """Forgetting (F,) at a learning accuracy between the least and the most of `learning` (F,), linear in between.

    Equal learning counts once, with the mean forgetting.
    """
    x, place = np.unique(learning, return_inverse=True)
    y = np.bincount(place, forgetting) / np.bincount(place)
    return float(np.interp(where, x, y))


def compare(candidate: Curve, control: Curve, own: int) -> Comparison | None:
    """Order by order on both frontiers, `own` being the candidate's own rate; None where one has no frontier.

    Where fewer than half of the orders meet, all are compared at the nearest ends.
    """
    a, b = (_on_frontier(c) for c in (candidate, control))
    if a is None or b is None:
        return None
    low = np.maximum(a.learning.min(0), b.learning.min(0))
    high = np.minimum(a.learning.max(0), b.learning.max(0))
    wanted = np.nan_to_num(candidate.learning[own], nan=np.inf)
    at = np.where(low <= high, np.clip(wanted, low, np.maximum(low, high)), np.nan)  # (S,)
    met = np.isfinite(at)
    if met.sum() < max(2, math.ceil(len(at) / 2)):
        return _apart(a, b)
    differences = np.full(len(at), np.nan)
    for s in np.flatnonzero(met):
        ours, theirs = (forgetting_at(c.learning[:, s], c.forgetting[:, s], at[s]) for c in (a, b))
        differences[s] = theirs - ours
    return _tested(differences, at)


def _on_frontier(curve: Curve) -> Curve | None:
    rates = frontier(curve)
    return Curve(curve.learning[rates], curve.forgetting[rates]) if rates else None


def _apart(a: Curve, b: Curve) -> Comparison | None:
    """Frontiers that do not meet, at the ends nearest to each other; None where neither lies beyond the other."""
    x, y = a.learning.mean(1), b.learning.mean(1)
    if y.min() > x.max():
        ours, theirs, gap = x.argmax(), y.argmin(), y.min() - x.max()
    elif y.max() < x.min():
        ours, theirs, gap = x.argmin(), y.argmax(), y.max() - x.min()
    else:
        return None
    return _tested(b.forgetting[theirs] - a.forgetting[ours], None, float(gap))


def _tested(differences: Array, at: Array | None, gap: float = 0.0) -> Comparison:
    """The paired test of the differences (S,) that are known."""
    known = differences[np.isfinite(differences)]
    mean, half, p = paired(known)
    if p is None:  # they do not vary: surely nothing, or surely something
        p = float(mean == 0)
    learning = None if at is None else float(at[np.isfinite(at)].mean())
    return Comparison(len(known), learning, mean, half, p, 1.0, gap, at, differences)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the chance of any false claim among all stays below the level."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    corrected, least = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = least
    return corrected


def compared(candidate: Curve, controls: dict[str, Curve], own: int) -> dict[str, Comparison | None]:
    """Every control against the candidate, p-values corrected for all of them."""
    found = {name: compare(candidate, curve, own) for name, curve in controls.items()}
    known = {name: c for name, c in found.items() if c is not None}
    corrected = dict(zip(known, holm([c.p for c in known.values()])))
    return {name: c if c is None else replace(c, holm=corrected[name]) for name, c in found.items()}
