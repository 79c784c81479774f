"""What a study costs beside its training: seconds of a trial outside it, and trials an hour of two workers and of one.

Split digits, a small model, random rates, SQLite, nothing pruned, no tracker. Outside its training is all that a worker
does for a trial but train and judge it: claim it, suggest, write its record, report after each experience, end it.
Two workers against one: a study of each with a small Hope-Attention, in rounds. Trials an hour are counted while every
worker has a trial, parts of trials included: without start-up and the wait for the last. One thread each:
OMP_NUM_THREADS=1 python experiments/study_speed.py [ROUNDS]   (make bench-study)
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SMALL = ["stream=split_digits", "model=mlp", "optim=sgd", "prefix=3", "trainer.epochs=1", "seeds=2"]
LARGE = ["recipe=digits_hope", "stream.scenario=domain", "seeds=3"]
EVERY = ["tune=rate", "tune.sampler=random", "tune.pruner=none", "tracking.enabled=false"]
TRIALS = 20
EACH = 6  # trials of a worker
seconds = [0.0]  # in training, of all trials


def timed(config: Any, path: Path, after_row: Any) -> Any:
    """`run_trial`, timed but for what the study does after each experience."""
    from nested.run import run_trial

    def reported(*row: Any) -> None:
        begun = time.perf_counter()
        after_row(*row)
        seconds[0] -= time.perf_counter() - begun

    begun = time.perf_counter()
    try:
        return run_trial(config, path, reported)
    finally:
        seconds[0] += time.perf_counter() - begun


def outside(runs: Path) -> float:
    """Seconds of a trial outside its training, with all modules imported: in the second of two studies."""
    from nested.tuning.search import tune

    for name in ("cold", "warm"):
        seconds[0] = 0.0
        tune([*SMALL, *EVERY, f"tune.n_trials={TRIALS}", *at(runs, name)], None, print, runner=f"{__name__}.timed")
    ran = spans(runs, "warm")
    return (max(end for _, end in ran) - min(begin for begin, _ in ran) - seconds[0]) / TRIALS


def rate(runs: Path, workers: int, turn: int) -> float:
    """Trials an hour while all workers have one."""
    name = f"{workers}-workers-{turn}"
    words = [*LARGE, *EVERY, f"tune.n_trials={EACH * workers}", f"workers={workers}", *at(runs, name)]
    command = [sys.executable, "-m", "nested", "tune", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    ran = spans(runs, name)
    begin, end = sorted(a for a, _ in ran)[workers - 1], sorted(b for _, b in ran)[-workers]
    done = sum(max(0.0, min(b, end) - max(a, begin)) / (b - a) for a, b in ran)
    return 3600 * done / (end - begin)


def at(runs: Path, name: str) -> list[str]:
    return [f"tune.study={name}", f"runs={runs}"]


def spans(runs: Path, name: str) -> list[tuple[float, float]]:
    """When each trial of a study began and ended, in seconds."""
    from nested.tuning.search import named

    trials = named(name, runs).trials("COMPLETE")
    return [(t.datetime_start.timestamp(), t.datetime_complete.timestamp()) for t in trials]  # type: ignore[union-attr]


def main(rounds: int) -> None:
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        print(f"a trial outside its training: {outside(runs):.3f} s, mean of {TRIALS}", flush=True)
        for turn in range(rounds):
            one, two = (rate(runs, workers, turn) for workers in (1, 2))
            ratios.append(two / one)
            print(f"trials an hour: one worker {one:.0f}, two {two:.0f}, {ratios[-1]:.2f} times", flush=True)
    print(f"two workers: {statistics.median(ratios):.2f} times one's ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
