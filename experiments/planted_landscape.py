"""Is the one period that works found on a real stream, and what does pruning spare?

The stream is planted so that one period works and no other: ten experiences of regression with the same hidden
weights, one pass over each in eight mini-batches. Labels bear a noise ten times as large as themselves that adds up to
nothing over an experience. A level that learns every eight steps sees no noise; one that learns more often sees what is
left of it; one that learns at a multiple of eight sees none, but too seldom for the directions in which inputs vary
little. A study must find the period, of the powers of two up to 32, and a rate, from 0.05 to 1; it is judged on
validation data without noise.

For every period the least loss over a grid of rates; then, for ten seeds of the sampler, a study of 40 trials through
`nested tune` (TPE), with every trial to its end and with the median pruner from the first experience on. Cells on file
are not made again. Half a minute of a core for a study, beside other work.
Run: .venv/bin/python experiments/planted_landscape.py [WORKERS]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from cells import compute

from nested import rundir
from nested.config import compose
from nested.run import run_trial

FILE = Path("reports/planted_landscape.json")
PLANTED, EXPERIENCES = 8, 10
VARIANCES, NOISE = (1.0, 0.5, 0.25, 0.1), 10.0  # of the inputs in each direction; of the labels
PERIODS, RATES = (1, 2, 4, 8, 16, 32), (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
TRIALS, SEEDS, PRUNERS = 40, range(10), ("none", "median")
SPACE = [
    f"tune.space.levels.all.period_steps={{choices:[{','.join(map(str, PERIODS))}]}}",
    f"tune.space.optim.lr={{low:{RATES[0]},high:{RATES[-1]},log:true}}",
]
COMMON = [
    "model.hidden=[]", "optim=sgd", "optim.momentum=0", "trainer.batch_size=2", "trainer.epochs=1",
    "trainer.allow_idle=true", "trainer.threads=1", "trainer.progress=false", "trainer.batches_per_block=8",
    "checkpoint.every_seconds=1000", "evaluate.parts=[validation]", "tracking=off",
]  # fmt: skip


def write(file: Path) -> None:
    """The planted stream: in training each input stands twice, its label with the noise added and taken away."""
    directions = np.eye(len(VARIANCES)) * np.sqrt(len(VARIANCES) * np.array(VARIANCES))
    x = np.concatenate([directions, -directions])  # (8, 4): mean 0, the variances on the diagonal
    y = x @ np.ones(len(VARIANCES))
    parts = (("train", y + NOISE), ("train", y - NOISE), ("validation", y), ("test", y))
    labels, split = np.concatenate([found for _, found in parts]), np.repeat([name for name, _ in parts], len(x))
    np.savez(
        file,
        x=np.tile(x, (len(parts) * EXPERIENCES, 1)),
        y=np.tile(labels, EXPERIENCES),
        split=np.tile(split, EXPERIENCES),
        task=np.repeat(np.arange(EXPERIENCES), len(split)),
    )


def stream(folder: Path) -> list[str]:
    """The words that choose it, written to a folder."""
    write(folder / "planted.npz")
    return ["stream=tensors", f"stream.path={folder / 'planted.npz'}", *COMMON]


def loss(period: int, rate: float, folder: Path) -> float | None:
    """Mean loss over the experiences at the end; None where it diverged."""
    words = [*stream(folder), f"levels.all.period_steps={period}", f"optim.lr={rate}"]
    return run_trial(compose(words), folder / f"{period}-{rate}", lambda *_: None).runs[0]["acc"]


def search(seed: int, pruner: str, folder: Path) -> dict[str, Any]:
    """A study; `steps` are those of all its trials together."""
    from nested.tuning.search import tune

    words = [f"tune.n_trials={TRIALS}", f"tune.seed={seed}", f"tune.pruner={pruner}", "tune.warmup=0"]
    found = tune([*SPACE, *words, "tune.study=s", f"runs={folder}", *stream(folder)], None, lambda _: None)
    (best,) = found.best
    ended = [rundir.read_json(file) for file in folder.glob("s/trial-*/seed-0/summary.json")]
    return {
        "period": best.params["levels.all.period_steps"],
        "rate": best.params["optim.lr"],
        "loss": best.value,
        "trial": best.number,
        "steps": sum(summary["cost"]["steps"] for summary in ended),
        **{state: sum(s["status"] == state for s in ended) for state in ("done", "pruned", "diverged")},
    }


def one(cell: dict[str, Any]) -> dict[str, Any]:
    begun = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        if cell["part"] == "landscape":
            losses = {rate: loss(cell["of"], rate, Path(folder)) for rate in RATES}
            known = {rate: v for rate, v in losses.items() if v is not None}
            rate = min(known, key=lambda r: known[r])
            found: dict[str, Any] = {"rate": rate, "loss": known[rate]}
        else:
            found = search(cell["of"], cell["pruner"], Path(folder))
    return {**cell, **found, "seconds": round(time.process_time() - begun, 1)}


def said(row: dict[str, Any]) -> str:
    if row["part"] == "landscape":
        return f"period {row['of']}: at best {row['loss']:.2g}, at rate {row['rate']:g}, {row['seconds']} s"
    return (
        f"seed {row['of']}, pruner {row['pruner']}: period {row['period']}, rate {row['rate']:.2g}, loss "
        f"{row['loss']:.2g}, trial {row['trial']}; {row['steps']} steps, {row['pruned']} pruned, {row['seconds']} s"
    )


def summary(rows: list[dict[str, Any]]) -> str:
    by = {pruner: {r["of"]: r for r in rows if r.get("pruner") == pruner} for pruner in PRUNERS}
    lines = []
    for pruner, found in by.items():
        hits = sum(r["period"] == PLANTED for r in found.values())
        lines.append(f"pruner {pruner}: the planted period in {hits} of {len(found)} studies of {TRIALS} trials")
    spared = [1 - by["median"][seed]["steps"] / by["none"][seed]["steps"] for seed in SEEDS]
    lines.append(f"pruning spares {np.mean(spared):.0%} of the steps, from {min(spared):.0%} to {max(spared):.0%}")
    return "\n".join(lines)


def main(workers: int) -> None:
    cells = [{"part": "landscape", "of": period} for period in PERIODS]
    cells += [{"part": "study", "of": seed, "pruner": pruner} for seed in SEEDS for pruner in PRUNERS]
    print(summary(compute(FILE, cells, one, ("part", "of", "pruner"), said, workers)))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
