"""What is known of a study and its trials: plain records, so that nothing here knows who searched.

A step is an experience of a seed, seed after seed: seeds * experiences steps make a whole trial.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from nested.report.tables import Grid

Curve = tuple[tuple[int, float], ...]  # (step, value so far in this seed)
ENDED = ("done", "pruned", "failed")
COSTS = ("flops", "parameter_updates", "seconds")


@dataclass(frozen=True)
class Axis:
    """One dimension of the space, by its config path."""

    path: str
    log: bool = False
    choices: tuple[Any, ...] | None = None
    whole: bool = False  # whole numbers

    def place(self, value: Any) -> float:
        """Where a value lies on a scale."""
        return float(self.choices.index(value)) if self.choices is not None else float(value)


@dataclass(frozen=True)
class Trial:
    """One trial, whatever became of it."""

    number: int
    state: str  # done | pruned | failed | running | waiting
    params: Mapping[str, Any]
    values: tuple[float, ...] | None = None  # of one that is done, in the order of the objectives
    curves: tuple[Curve, ...] = ()  # of each objective
    reached: int = 0  # steps
    summary: Mapping[str, float | None] = field(default_factory=dict)  # means over the seeds it came to
    seconds: float | None = None  # of the clock, evaluation included
    over_budget: bool = False
    reason: str | None = None  # of one that failed
    deaths: int = 0  # workers that died on it
    same: int | None = None  # the earlier trial of the same values whose numbers it has, not run again


@dataclass(frozen=True)
class Fresh:
    """What `nested tune best` measured on fresh seeds: a sentence, remarks, a table for each stream."""

    sentence: str
    notes: Sequence[str] = ()
    tables: Sequence[tuple[str, Grid]] = ()


@dataclass(frozen=True)
class Study:
    """A study as it stands; `front` and `chosen` are numbers of trials: one is both, where there is one objective."""

    name: str
    title: str
    objectives: tuple[str, ...]
    directions: tuple[str, ...]  # maximize | minimize
    axes: tuple[Axis, ...]
    trials: tuple[Trial, ...]
    planned: int
    seeds: tuple[int, ...]
    experiences: int
    front: tuple[int, ...] = ()
    chosen: tuple[int, ...] = ()
    default: int | None = None  # the trial with the default values
    importances: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # objective -> path -> share
    budget: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    verdict: str = ""
    fresh: Fresh | None = None

    @property
    def steps(self) -> int:
        """Of a whole trial."""
        return len(self.seeds) * self.experiences

    @cached_property
    def done(self) -> tuple[Trial, ...]:
        """The whole trials that came to values."""
        return tuple(t for t in self.trials if t.values is not None)

    @cached_property
    def ended(self) -> tuple[Trial, ...]:
        return tuple(t for t in self.trials if t.state in ENDED)

    def of_state(self, state: str) -> int:
        """How many trials are in a state; those not made yet wait."""
        made = sum(t.state == state for t in self.trials)
        return made + (self.planned - len(self.trials) if state == "waiting" else 0)

    @property
    def spared(self) -> float:
        """The share of the experiences of all ended trials that pruning spared."""
        ended = [t for t in self.ended if t.state != "failed"]
        asked = len(ended) * self.steps
        return sum(self.steps - t.reached for t in ended if t.state == "pruned") / asked if asked else 0.0

    def kind(self, trial: Trial) -> str:
        """What a trial is drawn as: chosen, default, front, done, or its state."""
        if trial.number in self.chosen:
            return "chosen"
        if trial.number == self.default and trial.values is not None:
            return "default"
        return "front" if trial.number in self.front else trial.state
