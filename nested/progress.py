"""What a user sees on the terminal while a run goes on: one line that says experience, step and the scores so far."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from nested.learner import Learner
from nested.loop import Display
from nested.metrics import FROZEN, POSITIONS

REFRESH_SECONDS = 0.1
EXPLAINED = "exact match is every judged position of a sequence right"


class Bar(Display):
    """A progress bar on standard error; on a terminal that is none, one line per experience instead."""

    def __init__(self, title: str, total_steps: int, console: Console | None = None):
        self.console = console or Console(stderr=True)
        self.title, self.last = title, 0.0
        columns = (
            TextColumn("{task.description}", markup=False),  # a label may hold brackets
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        self.task = self.progress.add_task(title, total=total_steps)

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def experience(self, index: int, total: int) -> None:
        self.progress.update(self.task, description=f"{self.title} · experience {index + 1}/{total}")

    def step(self, learner: Learner) -> None:
        if not self.progress.disable and time.monotonic() - self.last > REFRESH_SECONDS:
            self.last = time.monotonic()
            self.progress.update(self.task, completed=learner.step)

    def row(self, row: int, values: dict[str, float | None]) -> None:
        part = "test" if "experience/test/mean" in values else "validation"
        sequences = f"experience/{part}{POSITIONS}/mean" in values
        word = "exact match" if sequences else "mean" if self.measure == "accuracy" else self.measure
        said = [_means(values, part, f"{part} {word}")]
        for beside, name in ((POSITIONS, "positions right"), (FROZEN, "frozen")):
            if f"experience/{part}{beside}/mean" in values:
                said.append(_means(values, part + beside, name))
        if row and (loss := values.get("train/loss")) is not None:
            said.append(f"training loss {loss:.3g}")
        if sequences and not row:
            said.append(EXPLAINED)
        what = "before training" if row == 0 else f"after experience {row}"
        text = f"{self.title} · {what}: {'; '.join(said)}"
        self.console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)


def _means(values: dict[str, float | None], part: str, name: str) -> str:
    """`test mean 0.512, over those seen 0.934`."""
    seen = values.get(f"experience/{part}/seen")
    return f"{name} {values[f'experience/{part}/mean']:.3f}" + ("" if seen is None else f", over those seen {seen:.3f}")
