"""What is known of a run, finished or not: one record for the run and one for each of its seeds.

Shapes: n experiences; a matrix is (n + 1, n) float64, row 0 before training, row i after experience i, NaN where
nothing was measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
METRICS = ("learning_acc", "acc", "forgetting", "bwt", "fwt", "gain", "min_acc", "wc_acc")


@dataclass(frozen=True, eq=False)
class Seed:
    """One seed of a run, with whatever it has recorded so far."""

    seed: int
    status: str  # done | diverged | interrupted | failed | unfinished
    metrics: dict[str, float | None]
    views: dict[str, Array]  # set of weights -> test matrix (n + 1, n); the first is the main one
    levels: tuple[dict[str, Any], ...] = ()
    cost: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    anytime: dict[str, Any] | None = None
    datasets: tuple[dict[str, Any], ...] = ()  # one for each experience, in order
    environment: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, Any] = field(default_factory=dict)
    started: float | None = None  # unix milliseconds

    @property
    def matrix(self) -> Array | None:
        """The main view's matrix (n + 1, n), or None where nothing has been evaluated."""
        return next(iter(self.views.values()), None)

    @property
    def rows(self) -> int:
        """Rows of the matrix that are complete, the one before training included."""
        return 0 if self.matrix is None else int((~np.isnan(self.matrix)).all(1).sum())


@dataclass(frozen=True, eq=False)
class Run:
    """One run: its seeds, and their means with 95 percent half widths where they are known."""

    path: Path
    run_id: str
    label: str
    status: str  # as for a seed
    stream: str
    scenario: str
    lower_is_better: bool
    experiences: tuple[str, ...]
    planned: int  # seeds asked for
    seeds: tuple[Seed, ...]
    config: dict[str, Any]  # dotted path -> value
    mean: dict[str, float | None]
    ci95: dict[str, float | None]

    @property
    def n(self) -> int:
        """Number of experiences."""
        return len(self.experiences)

    @cached_property
    def shown(self) -> tuple[Seed, ...]:
        """The seeds that means are taken over: those that are done, else the one that came furthest."""
        done = tuple(s for s in self.seeds if s.status == "done" and s.matrix is not None)
        begun = [s for s in self.seeds if s.matrix is not None]
        return done or tuple(sorted(begun, key=lambda s: -s.rows)[:1])

    @cached_property
    def matrices(self) -> Array | None:
        """The main matrices (seeds, n + 1, n) of the seeds shown, or None where there is none."""
        return np.stack([s.views[next(iter(s.views))] for s in self.shown]) if self.shown else None

    @property
    def single_fit(self) -> bool:
        """Whether all experiences were learned at once: then there is no order, hence no forgetting."""
        return (
            self.n > 1
            and self.mean.get("forgetting") is None
            and self.matrices is not None
            and bool((self.matrices[:, 1:] == self.matrices[:, 1:2]).all())
        )

    @property
    def parameters(self) -> int | None:
        """Trainable parameters: every one of them is in exactly one level."""
        known = [int(level["parameters"]) for level in self.levels if level.get("parameters") is not None]
        return sum(known) if known else None

    @property
    def levels(self) -> tuple[dict[str, Any], ...]:
        """The levels of the first seed that recorded them."""
        return next((s.levels for s in self.seeds if s.levels), ())

    def cost(self, name: str) -> list[float]:
        """A cost of every seed that recorded it."""
        return [v for s in self.seeds if (v := number(s.cost.get(name))) is not None]


def number(value: Any) -> float | None:
    """A finite number as it is, everything else as None."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if good else None
