"""A killed run, continued, ends bit for bit as one that was never killed, and does less work than starting again."""

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nested import rundir

HERE = Path(__file__).parent
LEVELED = [
    "model={_target_: killed.noisy}",
    "levels=continuum",
    "optim=delta_momentum",
    "method=replay",
    "stream.boundary=blurry",
]
PLAIN = ["stream=split_digits", "trainer.epochs=4", "trainer.progress=false", "tracking=off", "seed=3"]


def start(overrides: list[str], kill: list | None, resume: Path | None = None) -> subprocess.CompletedProcess:
    task = json.dumps({"overrides": overrides, "kill": kill, "resume": str(resume) if resume else None})
    env = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(HERE / "killed.py"), task], env=env, capture_output=True, text=True, check=False
    )


def overrides(runs: Path, every_seconds: float = 0.0) -> list[str]:
    return [*PLAIN, *LEVELED, f"runs={runs}", f"checkpoint.every_seconds={every_seconds}"]


def equal(a: object, b: object) -> bool:
    """Equal to the last bit, through nested states; NaN equals NaN."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def end_of(run: Path) -> tuple[dict, dict, list]:
    """Final state, summary, and recorded numbers of the one seed; times are left out, they cannot be equal."""
    seed = next(run.glob("seed-*"))
    state, complaints = rundir.SeedDir(seed).load_checkpoint()
    assert state is not None
    assert not complaints
    state.pop("seconds")
    summary = rundir.read_json(seed / "summary.json")
    summary = {k: v for k, v in summary.items() if k not in ("run_id", "seconds", "cost")}
    events = [e for e in rundir.read_events(seed / "events.jsonl") if e["event"] in ("metrics", "row")]
    numbers = [{k: v for k, v in e.items() if k != "t"} for e in events]
    return state, summary, sorted(numbers, key=lambda e: json.dumps(e, sort_keys=True))


@dataclass(frozen=True)
class Whole:
    """A run that was not killed: its end, its optimizer steps, its seconds from its first file to its last."""

    end: tuple[dict, dict, list]
    steps: int
    seconds: float


def assert_same_end(run: Path, whole: Whole) -> None:
    state, summary, numbers = end_of(run)
    assert equal(state, whole.end[0])
    assert equal(summary, whole.end[1])
    assert numbers == whole.end[2]


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The uninterrupted run."""
    runs = tmp_path_factory.mktemp("whole")
    done = start(overrides(runs), None)
    assert done.returncode == 0, done.stderr
    run = rundir.all_runs(runs)[0]
    seconds = (run / "report.html").stat().st_mtime - (run / "FORMAT").stat().st_mtime
    return Whole(end_of(run), executed(run), seconds)


def executed(run: Path) -> int:
    """Optimizer steps of the process that ended the run."""
    seed = next(run.glob("seed-*"))
    return [e for e in rundir.read_events(seed / "events.jsonl") if e["event"] == "end"][-1]["executed_steps"]


def steps_saved(run: Path) -> int:
    """Optimizer steps that the newest whole checkpoint holds."""
    [seed, *_] = [*run.glob("seed-*"), None]
    state, _ = rundir.SeedDir(seed).load_checkpoint() if seed else (None, [])
    return state["cursor"]["step"] if state else 0


def kill_and_resume(runs: Path, kill: list, every_seconds: float = 0.0) -> Path:
    killed = start(overrides(runs, every_seconds), kill)
    assert killed.returncode == -9, f"was to die at {kill}: {killed.stderr}"
    run = rundir.all_runs(runs)[0]
    resumed = start([], None, run)
    assert resumed.returncode == 0, resumed.stderr
    return run


# 252 training examples per experience and batches of 32: 8 or 9 mini-batches an epoch
NAMED = {
    "first epoch": ["at_step", 1, 0, 3],
    "middle epoch": ["at_step", 2, 1, 4],
    "last epoch": ["at_step", 4, 3, 2],
    "epoch border": ["at_step", 2, 2, 1],
    "inside a gather": ["inside_gather", 50],
    "during evaluation": ["in_evaluation", 3, 2],
    "between checkpoint and matrix row": ["before_row", 2],
    "inside a checkpoint write": ["in_checkpoint", 40],
}
QUICK = ("inside a gather", "between checkpoint and matrix row", "inside a checkpoint write")


@pytest.mark.parametrize("point", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in NAMED])
def test_killed_at_a_named_point(point: str, whole: Whole, tmp_path: Path) -> None:
    run = kill_and_resume(tmp_path, NAMED[point])
    assert_same_end(run, whole)
    assert executed(run) < whole.steps


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_killed_at_a_random_moment(number: int, whole: Whole, tmp_path: Path) -> None:
    """The moment falls anywhere between the first file and the last; checkpoints always, or every 0.2 s."""
    moment = 0.85 * whole.seconds * random.Random(number).random()
    killed = start(overrides(tmp_path, 0.2 * (number % 2)), ["after_seconds", moment])
    runs = rundir.all_runs(tmp_path)
    if killed.returncode == 0:
        pytest.skip(f"after {moment:.1f} s the run was over")
    assert killed.returncode == -signal.SIGALRM, killed.stderr
    saved, finished = steps_saved(runs[0]), bool(next(runs[0].glob("seed-*/summary.json"), None))
    resumed = start([], None, runs[0])
    assert resumed.returncode == 0, (killed.returncode, resumed.stderr)
    assert_same_end(runs[0], whole)
    assert finished or executed(runs[0]) == whole.steps - saved


def test_equal_sees_one_bit() -> None:
    a = {"w": [torch.tensor([1.0, float("nan")])]}
    b = {"w": [torch.tensor([1.0, float("nan")])]}
    assert equal(a, b)
    b["w"][0][0] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    assert not equal(a, b)
