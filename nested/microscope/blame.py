"""Who forgot and who learned, level by level: hybrids of a run's snapshots, judged on validation data.

A hybrid has some levels as after one experience and the others as after another. For forgetting, levels are rolled
back from the end to experience i: from none of them rolled back to all of them the score on experience j changes by
R[i, j] - R[n-1, j], with i the (last) row of the maximum for forgetting and i = j for minus BWT. For learning, levels
are carried forward from before experience j to after it: R[j, j] - R[j-1, j]. With at most five levels the change is
split into exact Shapley shares; beyond, each level is changed alone and all but it are, and the rest is interaction.

Two players are no levels, and play only where they differ: tensors outside every level (buffers, frozen parameters),
and the outputs that may compete, where `head.mask` widens from experience to experience. A level on the token clock
begins anew in every sequence: its initial state is a parameter, and counts for the stream level that this learns in.

Shapes: n experiences, L players.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nested import metrics
from nested.errors import NestedError, UserError
from nested.learner import Learner
from nested.microscope.shapley import Array, ends, every_set, rollbacks, shapley
from nested.microscope.snapshots import BEFORE, Snapshots, put, tensors

EXACT = 5  # levels up to which every set of them is judged
PART = "validation"
OUTSIDE, MASK = "(no level)", "(outputs that may compete)"


@dataclass(frozen=True)
class Change:
    """A change of a score, positive where it is forgetting or learning, and each player's part in it (L,)."""

    total: float
    parts: dict[str, Array]  # "shares", or "single" and "all_but_one"
    interaction: float = 0.0


class Bench:
    """Hybrids of two snapshots, judged on the validation data of one experience.

    Experience -1 is the state before the first. `recorded` (n + 1, n) are the sums of the run's own matrix on
    validation data, if it has one: raises NestedError where a pure state is judged otherwise here.
    """

    def __init__(self, learner: Learner, snapshots: Snapshots, batch_size: int, recorded: Array | None = None):
        self.learner, self.snapshots, self.batch_size, self.recorded = learner, snapshots, batch_size, recorded
        levels = snapshots.header(BEFORE)["levels"]
        owned = {name: level for level, names in levels.items() for name in names}
        self.owner = {name: owned.get(name, OUTSIDE) for name in tensors(learner.model)}
        self.levels = tuple(levels)
        self.players = (*levels, OUTSIDE, MASK)
        self.exact = len(levels) <= EXACT
        self.evaluations = 0
        self._state = lru_cache(maxsize=2)(snapshots.state)
        self._changes: dict[tuple[int, int, int], Change] = {}

    def change(self, base: int, taken: int, column: int) -> Change:
        """How the score on experience `column` changes from state `base` to state `taken`, and by whom."""
        key = base, taken, column
        if key not in self._changes:
            self._changes[key] = self._attributed(*key)
        return self._changes[key]

    def score(self, base: int, taken: int, chosen: Iterable[str], column: int) -> float:
        """The sum of scores with these players as in state `taken` and all others as in state `base`."""
        old, new, chosen = self._state(base), self._state(taken), set(chosen)
        put(self.learner.model, {name: (new if self.owner[name] in chosen else old)[name] for name in old})
        self.learner.cursor.experience = taken if MASK in chosen else base
        self.evaluations += 1
        return self.learner.evaluate(self._examples(column), self.batch_size)[0]

    def count(self, column: int) -> int:
        return self.learner.count(self._examples(column))

    def _examples(self, column: int) -> Any:
        return getattr(self.learner.stream.experiences[column], PART)

    def _attributed(self, base: int, taken: int, column: int) -> Change:
        playing = self._differing(base, taken)
        members = every_set(len(playing)) if self.exact else ends(len(playing))
        sums = np.array([self.score(base, taken, itertools.compress(playing, row), column) for row in members])
        self._check(base, column, sums[0])
        self._check(taken, column, sums[-1])
        scale = (-1 if self.learner.stream.lower_is_better else 1) / self.count(column)
        total = float(sums[-1] - sums[0]) * scale
        if self.exact:
            shares = shapley(sums) * scale
            assert np.isclose(shares.sum(), total, rtol=1e-9, atol=1e-12), f"shares {shares} do not sum to {total}"
            return Change(total, {"shares": self._spread(playing, shares)})
        found = rollbacks(sums * scale)
        parts = {"single": found.single, "all_but_one": found.all_but_one}
        return Change(total, {k: self._spread(playing, v) for k, v in parts.items()}, found.interaction)

    def _differing(self, base: int, taken: int) -> list[str]:
        """The players whose states differ; another one's part is zero, and it need not be tried."""
        one, other = (self.snapshots.header(i)["fingerprints"] for i in (base, taken))
        changed = {self.owner[name] for name, mark in one.items() if other[name] != mark}
        old, new = self._competing(base), self._competing(taken)
        if not (old is new or (old is not None and new is not None and torch.equal(old, new))):
            changed.add(MASK)
        return [p for p in self.players if p in changed]

    def _competing(self, state: int) -> Tensor | None:
        self.learner.cursor.experience = state
        return self.learner.competing()

    def _spread(self, playing: Sequence[str], values: Array) -> Array:
        found = dict(zip(playing, values, strict=True))
        return np.array([found.get(p, 0.0) for p in self.players])

    def _check(self, state: int, column: int, total: float) -> None:
        if self.recorded is None:
            return
        wanted, n = self.recorded[state + 1, column], self.count(column)
        if not np.isclose(total, wanted, rtol=1e-6 if self.learner.stream.lower_is_better else 0, atol=0):
            text = f"after experience {state} the score on experience {column} is {total / n:.6g} here"
            raise NestedError(f"{text} and {wanted / n:.6g} in the recorded matrix")


def blame(bench: Bench) -> tuple[list[int], dict[str, Any]]:
    """(the row of the maximum of each experience but the last, everything counted by experience and player)."""
    n = len(bench.learner.stream.experiences)
    if bench.snapshots.last != n - 1:
        raise NestedError(f"{bench.snapshots.folder} ends after experience {bench.snapshots.last}, the stream has {n}")
    if empty := [j for j in range(n) if not bench.count(j)]:
        raise UserError(f"experience {empty[0]} has no {PART} data to judge by", key="stream", seen=empty)
    r = metrics.signed(_matrix(bench, n), bench.learner.stream.lower_is_better)
    # the last of equal maxima: the shortest way to the end
    rows = [max(range(n - 1), key=lambda i: (r[i, j], i)) for j in range(n - 1)]
    return rows, {
        "forgot": _table(bench, [bench.change(n - 1, i, j) for j, i in enumerate(rows)]),
        "backward": _table(bench, [bench.change(n - 1, j, j) for j in range(n - 1)]),
        "learned": _table(bench, [bench.change(j - 1, j, j) for j in range(n)]),
        **_movements(bench, n),
    }


def _matrix(bench: Bench, n: int) -> Array:
    """(n, n) R on validation data: the recorded one, or judged here."""
    sums = (
        bench.recorded[1:]
        if bench.recorded is not None
        else np.array([[bench.score(i, i, (), j) for j in range(n)] for i in range(n)])
    )
    return sums / [bench.count(j) for j in range(n)]


def _table(bench: Bench, changes: list[Change]) -> dict[str, Any]:
    """{"total": [one for each experience], kind of part: {player: [one for each experience]}}."""
    kinds = ("shares",) if bench.exact else ("single", "all_but_one")
    parts = {k: {p: [float(c.parts[k][i]) for c in changes] for i, p in enumerate(bench.players)} for k in kinds}
    left = {} if bench.exact else {"interaction": [c.interaction for c in changes]}
    return {"total": [c.total for c in changes], **parts, **left}


def _movements(bench: Bench, n: int) -> dict[str, dict[str, list[float]]]:
    """Norm of each level's change in each experience, and its updates there."""
    drift: dict[str, list[float]] = {p: [] for p in bench.players[:-1]}
    updates: dict[str, list[float]] = {level: [] for level in bench.levels}
    old = bench.snapshots.state(BEFORE)
    for i in range(n):
        new = bench.snapshots.state(i)
        squares = dict.fromkeys(drift, 0.0)
        for name, player in bench.owner.items():
            squares[player] += float((new[name].double() - old[name].double()).square().sum())
        before, after = (bench.snapshots.header(k)["updates"] for k in (i - 1, i))
        for player, square in squares.items():
            drift[player].append(square**0.5)
        for level, numbers in updates.items():
            numbers.append(after[level] - before[level])
        old = new
    return {"drift": drift, "updates": updates}
