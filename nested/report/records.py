"""What is known of a run, finished or not: one record for the run and one for each of its seeds.

Shapes: n experiences; a matrix is (n + 1, n) float64, row 0 before training, row i after experience i, NaN where
nothing was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
METRICS = ("learning_acc", "acc", "forgetting", "bwt", "fwt", "gain", "min_acc", "wc_acc", "positions", "frozen")


@dataclass(frozen=True, eq=False)
class Seed:
    """One seed of a run, with whatever it has recorded so far."""

    seed: int
    status: str  # done | diverged | interrupted | failed | unfinished
    metrics: dict[str, float | None]
    views: dict[str, Array]  # set of weights -> matrix (n + 1, n); the first is the main one
    judged_on: str = "test"
    levels: tuple[dict[str, Any], ...] = ()
    cost: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    anytime: dict[str, Any] | None = None
    datasets: tuple[dict[str, Any], ...] = ()  # one for each experience, in order
    digest: str | None = None  # of data and split
    environment: dict[str, Any] = field(default_factory=dict)
    started: float | None = None  # unix milliseconds
    losses: bool = False  # whether the recorded scores are losses
    positions: Array | None = None  # (n + 1, n) share of judged positions right, where answers are sequences
    frozen: Array | None = None  # (n + 1, n) score of a model that learns nothing while it reads, where it can
    training: dict[int, float] = field(default_factory=dict)  # optimizer step -> training loss of the steps before it
    remarks: tuple[str, ...] = ()  # what it said of itself, in order

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
    measure: str  # accuracy | loss | bits per byte
    experiences: tuple[str, ...]
    planned: int  # seeds asked for
    seeds: tuple[Seed, ...]
    config: dict[str, Any]  # dotted path -> value
    choices: dict[str, Any]  # group -> choice
    mean: dict[str, float | None]
    ci95: dict[str, float | None]
    problems: tuple[str, ...] = ()
    sources: tuple[Run, ...] = ()  # the runs of one configuration that this one stands for
    tracked: str | None = None  # address of the tracker's page of it

    @property
    def directories(self) -> tuple[Run, ...]:
        """One record for each run directory."""
        return self.sources or (self,)

    @property
    def n(self) -> int:
        """Number of experiences."""
        return len(self.experiences)

    @property
    def done(self) -> tuple[Seed, ...]:
        """The seeds that came to their end."""
        return tuple(s for s in self.seeds if s.status == "done")

    @cached_property
    def shown(self) -> tuple[Seed, ...]:
        """The seeds that figures average over: those that are done, else the one that came furthest."""
        done = tuple(s for s in self.done if s.matrix is not None)
        begun = [s for s in self.seeds if s.matrix is not None]
        return done or tuple(sorted(begun, key=lambda s: -s.rows)[:1])

    @cached_property
    def matrices(self) -> Array | None:
        """The main matrices (seeds, n + 1, n) of the seeds shown, or None where there is none."""
        return np.stack([s.matrix for s in self.shown if s.matrix is not None]) if self.shown else None

    @cached_property
    def positions(self) -> Array | None:
        """As `matrices`, of the single positions of sequences; None where answers are no sequences."""
        known = [s.positions for s in self.shown if s.positions is not None]
        return np.stack(known) if known else None

    @cached_property
    def frozen(self) -> Array | None:
        """As `matrices`, of the model that learns nothing while it reads; None where it never does."""
        known = [s.frozen for s in self.shown if s.frozen is not None]
        return np.stack(known) if known else None

    @cached_property
    def single_fit(self) -> bool:
        """Whether all experiences were learned at once: then there is no order, hence no forgetting."""
        if self.n < 2 or self.matrices is None or self.mean.get("forgetting") is not None:
            return False
        return bool((self.matrices[:, 1:] == self.matrices[:, 1:2]).all())

    @property
    def levels(self) -> tuple[dict[str, Any], ...]:
        """The levels of the first seed that recorded them."""
        return next((s.levels for s in self.seeds if s.levels), ())

    @property
    def parameters(self) -> int | None:
        """Trainable parameters: every one of them is in exactly one level on the stream clock."""
        stream = [level for level in self.levels if on_stream(level)]
        return sum(int(level["parameters"]) for level in stream) if stream else None

    def cost(self, name: str) -> list[float]:
        """A cost of every seed that recorded it."""
        return [v for s in self.seeds if (v := number(s.cost.get(name))) is not None]


def on_stream(level: Mapping[str, Any]) -> bool:
    """Whether a recorded level learns at optimizer steps; else within every sequence, at tokens."""
    return level.get("clock", "stream") == "stream"


def number(value: Any) -> float | None:
    """A finite number as it is, everything else as None."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if good else None


def mean_of(values: Sequence[float]) -> float | None:
    """The mean, or None of nothing."""
    return float(np.mean(values)) if len(values) else None


def visible(text: Any) -> str:
    """One line of text; control characters and lone surrogates, which no page or terminal should get, replaced."""
    if (plain := str(text)).isprintable():
        return plain
    clean = plain.encode("utf-8", "replace").decode("utf-8")
    return "".join(" " if c.isspace() else c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in clean)
