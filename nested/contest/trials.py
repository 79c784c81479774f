"""The trials of a contest: an arm at a rate is one run directory, its orders are the seeds in it.

Seeds that are done are not done again, a trial whose process is killed goes on from its last checkpoint, and what
another config has left under the same name is refused.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from nested import rundir
from nested.cells import outcomes
from nested.config import Config, from_dict
from nested.contest.arms import Arm, checked, scaled
from nested.continuing import FREE, config_difference, told
from nested.environment import usable_cores
from nested.errors import Interrupted, NestedError, UserError
from nested.run import run_trial

ATTEMPTS = 3  # at a trial whose process was killed
ENDED = ("done", "diverged")
ASSUMED = "if every arm takes what a few steps of the candidate took just now, alone; measured from the first trial on"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Trial:
    """One arm at one rate."""

    arm: str  # its directory's
    factor: float
    config: Config
    path: Path

    def ended(self) -> list[int]:
        """The seeds that have come to their end."""
        return [s for s in self.config.seed_list() if (found := summary(self.path, s)) and found["status"] in ENDED]


Cell = tuple[Path, int]  # a trial's directory and a seed


class Ended(NamedTuple):
    """How a trial ended: a word for each seed's status, or what went wrong."""

    status: str
    problem: str | None = None


def trials(arms: Sequence[Arm], factors: Sequence[float], path: Path) -> list[Trial]:
    """Every arm at every rate, the candidate first; arms that share a training share its trials."""
    homes = {arm.home: arm for arm in reversed(arms)}
    ordered = sorted(homes, key=[arm.home for arm in arms].index)
    return [
        Trial(home, f, replace(checked(scaled(homes[home].config, f)), runs=str(path)), path / f"{home}-{f:g}")
        for home in ordered
        for f in factors
    ]


def summary(path: Path, seed: int) -> dict[str, Any] | None:
    """What a seed came to, if it has come to an end."""
    file = path / f"seed-{seed}" / "summary.json"
    return rundir.read_json(file) if file.is_file() else None


def check_same(found: Sequence[Trial]) -> None:
    """Raise UserError where a directory holds another config; a trial may get more seeds, or fewer."""
    for trial in found:
        if not (trial.path / "FORMAT").is_file():
            continue
        before = from_dict(rundir.read_config(trial.path))
        changed = config_difference(before, trial.config, (*FREE, "label", "seed"))
        if changed:
            text = f"{trial.path} was made with another config: {told(changed)}. Give this contest a name of its own"
            raise UserError(text, key="contest.name", seen=trial.path.parent.name)
        if before.seed_list() != trial.config.seed_list():
            (trial.path / "FORMAT").unlink()  # the record of its config is written anew


def fought(found: Sequence[Trial], workers: int, say: Say, cell: float = 0.0) -> dict[str, str]:
    """Run what is left of every trial; directory -> what went wrong, of those that could not.

    `cell` are the seconds that one is expected to take alone. Raises KeyboardInterrupt with everything saved.
    """
    clock = Clock(found, min(workers, usable_cores()))
    say(clock.begun(cell))
    problems: dict[str, str] = {}
    left = [t for t in found if len(t.ended()) < len(t.config.seed_list())]
    for attempt in range(ATTEMPTS):
        killed = []
        with closing(_outcomes(left, workers)) as found_out:  # whatever happens here, no process goes on
            for trial, outcome in found_out:
                if isinstance(outcome, BrokenExecutor):
                    killed.append(trial)
                    say(f"{trial.path.name}: its process was killed, or out of memory")
                    continue
                if outcome.status == "interrupted":
                    raise KeyboardInterrupt
                if outcome.problem:
                    problems[trial.path.name] = outcome.problem
                say(clock.told(trial, outcome))
        left = killed
        if not left:
            return problems
        if attempt + 1 == ATTEMPTS:
            problems |= {t.path.name: f"its process was killed {ATTEMPTS} times" for t in left}
    return problems


def _outcomes(left: Sequence[Trial], workers: int) -> Generator[tuple[Trial, Any], None, None]:
    if workers > 1:
        yield from outcomes(one, left, workers)
    else:
        yield from ((trial, one(trial)) for trial in left)


def one(trial: Trial) -> Ended:
    """Run a trial, in whatever process; the checkpoints of seeds that are done have served."""
    try:
        result = run_trial(trial.config, trial.path, lambda *_: None)
    except Interrupted:
        return Ended("interrupted")
    except (NestedError, OSError) as error:  # a config that cannot be run, or the machine
        return Ended("failed", str(error))
    except Exception as error:  # of a component
        traceback.print_exc()
        return Ended("failed", f"unexpected {type(error).__name__}: {' '.join(str(error).split())}")
    for seed in trial.ended():
        for file in (trial.path / f"seed-{seed}" / "checkpoints").glob("*.pt"):
            file.unlink()
    return Ended(result.status)


class Clock:
    """How many cells are done and, from what they took, how long the others will take.

    A cell that is left takes what those of its arm have taken, or those of all arms where its own has none. The sum is
    shared by `at_once` processes until the first trial is told, whose start they had to wait for; from then on it is
    stretched as the clock stretches what is recorded. A cell that was begun before is no measure of that.
    """

    def __init__(self, found: Sequence[Trial], at_once: int):
        self.at_once = at_once
        self.cells = {(t.path, seed): t.arm for t in found for seed in t.config.seed_list()}
        self.trials = len(found)
        self.before = self._done()
        self.begun_before = {(path, seed) for path, seed in self.cells if (path / f"seed-{seed}").exists()}
        self.lost: set[Cell] = set()  # of trials that have ended without them
        self.first: tuple[float, float] | None = None  # when the first trial was told, and what cells had taken by then

    def _done(self) -> dict[Cell, float]:
        """The seconds of every cell that has come to its end."""
        known = ((cell, summary(*cell)) for cell in self.cells)
        return {cell: found["seconds"] for cell, found in known if found and found["status"] in ENDED}

    def begun(self, each: float) -> str:
        """`each`: seconds expected for a cell."""
        left = len(self.cells) - len(self.before)
        rest = f", {left:,} of them left" if self.before else ""
        orders = len(self.cells) // self.trials
        said = f"{self.trials} trials of {orders} orders, {len(self.cells):,} cells{rest}"
        if not left or not each:
            return said
        return f"{said}: about {_minutes(left * each / self.at_once)} {ASSUMED}"

    def told(self, trial: Trial, ended: Ended) -> str:
        done = self._done()
        self.lost |= {cell for cell in self.cells if cell[0] == trial.path and cell not in done}
        seconds = self._left(done)
        left = "" if seconds is None else f", about {_minutes(seconds)} left"
        values = [s for seed in trial.ended() if (s := summary(trial.path, seed))]
        means = " ".join(f"{n} {_mean(values, n)}" for n in ("learning_acc", "forgetting")) if values else ""
        how = f"{ended.status}: {ended.problem}" if ended.problem else ended.status if ended.status != "done" else means
        return f"{len(done):,} of {len(self.cells):,} cells{left}  |  {trial.path.name}  {how}"

    def _left(self, done: dict[Cell, float]) -> float | None:
        """Seconds until the last cell ends; None where none is left, or none has ever been done."""
        waiting = self.cells.keys() - done.keys() - self.lost
        worked = sum(seconds for cell, seconds in done.items() if cell not in self.begun_before)
        now, first = time.monotonic(), self.first
        self.first = first or (now, worked)
        if not waiting or not done:
            return None
        by_arm: dict[str, list[float]] = {}
        for cell, seconds in done.items():
            by_arm.setdefault(self.cells[cell], []).append(seconds)
        usual = {arm: fmean(seconds) for arm, seconds in by_arm.items()}
        work = sum(usual.get(self.cells[cell], fmean(done.values())) for cell in waiting)
        if first is None or worked == first[1]:  # nothing has ended since the first look
            return work / self.at_once
        return work * (now - first[0]) / (worked - first[1])


def _mean(values: Sequence[dict[str, Any]], name: str) -> str:
    known = [v[name] for v in values if v.get(name) is not None]
    return f"{sum(known) / len(known):.3f}" if known else "-"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
