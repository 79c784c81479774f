"""Run a config in this process and die by SIGKILL at a named point: started by test_kill.py as a process of its own."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from nested import rundir
from nested.config import compose
from nested.learner import Learner
from nested.loop import Loop
from nested.models.hope_attention import HopeAttention
from nested.optim.leveled import Leveled
from nested.run import resume, run


def noisy(sample_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
    """Three levels behind a dropout, which draws from torch's generator at every step."""
    return nn.Sequential(nn.Dropout(0.1), HopeAttention(sample_shape, n_outputs, width=16, hidden=32))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_step(experience: int, epoch: int, batch: int) -> None:
    """Die when the step after that many mini-batches begins."""
    inner = Learner.learn

    def learn(self: Learner, rows: Tensor) -> None:
        c = self.cursor
        if (c.experience, c.epoch, c.batch) == (experience, epoch, batch):
            die()
        inner(self, rows)

    Learner.learn = learn


def inside_gather(tick: int) -> None:
    """Die when the middle level has gathered and the slow one has not."""
    inner = Leveled._gather

    def gather(self: Leveled, level: object) -> None:
        if self.tick >= tick and level is self.levels[-1]:
            die()
        inner(self, level)

    Leveled._gather = gather


def in_evaluation(row: int, column: int) -> None:
    inner = Loop._score

    def score(self: Loop, matrix: object, r: int, c: int, part: str) -> None:
        if (r, c) == (row, column) and part == "validation":
            die()
        inner(self, matrix, r, c, part)

    Loop._score = score


def before_row(row: int) -> None:
    inner = Loop._record_row

    def record(self: Loop) -> None:
        if self.learner.cursor.experience + 1 == row:
            die()
        inner(self)

    Loop._record_row = record


def in_checkpoint(number: int) -> None:
    """Die with half a checkpoint written."""
    inner = rundir.write_atomic

    def write(path: Path, data: bytes) -> None:
        if path.suffix == ".pt" and int(path.stem) == number:
            path.with_name(f".{path.name}.{os.getpid()}").write_bytes(data[: len(data) // 2])
            die()
        inner(path, data)

    rundir.write_atomic = write


def after_seconds(seconds: float) -> None:
    """Die at any moment at all after the run directory has been made, wherever the process then is."""
    inner = rundir.create

    def create(*given: object) -> Path:
        made = inner(*given)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process as SIGKILL does: no line of Python runs
        signal.setitimer(signal.ITIMER_REAL, seconds)
        return made

    rundir.create = create


POINTS = {f.__name__: f for f in (at_step, inside_gather, in_evaluation, before_row, in_checkpoint, after_seconds)}

if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    if task["kill"]:
        name, *numbers = task["kill"]
        POINTS[name](*numbers)
    if task["resume"]:
        resume(Path(task["resume"]))
    else:
        run(compose(task["overrides"]))
