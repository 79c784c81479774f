"""Experiences in order, and the cursor: what has been done, what is next, and how to continue after a stop.

Each experience is one `fit` of a new Lightning Trainer over all its remaining mini-batches (all epochs of it). The
order of samples comes from a generator seeded by (seed, experience, epoch): a resumed run continues inside it.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import lightning as L
import torch

from nested.config import Config
from nested.generators import rng_state, set_rng_state
from nested.learner import Cursor, Learner
from nested.metrics import forgetting
from nested.microscope.snapshots import Snapshots
from nested.plan import Blocks, Plan, judged
from nested.rundir import SeedDir
from nested.score_matrix import ScoreMatrix
from nested.streams.stream import Experience

LOG_EVERY = 50  # optimizer steps between two recorded training losses
MOST_CURVES = 50  # experiences with a curve of their own in the tracker; the rows of the matrix always have all


class Stopped(Exception):
    """The user asked to stop; the last checkpoint holds everything."""


class Loop:
    """One seed, from where its directory stands to the end."""

    def __init__(self, learner: Learner, config: Config, directory: SeedDir, seed: int, display: Display | None = None):
        self.learner, self.config, self.directory, self.seed = learner, config, directory, seed
        self.stream = learner.stream
        self.curriculum = learner.curriculum
        self.n = len(self.stream.experiences)
        self.joint = not learner.method.ordered
        self.plan = Plan(learner, config.trainer)
        self.display = display or Display()
        self.parts = list(config.evaluate.parts)
        self.judged = judged(self.parts)
        self.matrices: dict[str, dict[str, ScoreMatrix]] = {}
        self.anytime: dict[str, list[Any]] = {"step": [], "moment": [], "experience": [], "accuracy": []}
        self.loss: float | None = None  # the training loss last recorded
        self.seconds = {"train": 0.0, "evaluate": 0.0, "anytime": 0.0, "other": 0.0}
        self._doing = "other"
        self.stop = False
        self.flops: dict[tuple[int, ...], float | None] = {}  # shape of a batch -> FLOPs of one step per example
        self.after_row: Callable[[int], None] | None = None  # told of every row after the first experience
        self.snapshots = Snapshots(directory.path) if config.evaluate.snapshots else None
        self._clock = time.perf_counter()
        self._saved = time.monotonic()
        learner.after_block = self._after_block
        if config.evaluate.anytime_steps or config.evaluate.anytime_ticks:
            learner.watch = self._watch

    # -- the story ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Continue from the cursor to the end. Raises Diverged and Stopped; what was reached is then on disk."""
        cursor = self.learner.cursor
        self.display.measure = self.stream.measure
        while cursor.experience < len(self.curriculum):
            if cursor.phase == "fit":
                self._fit(self.curriculum[cursor.experience])
            self._evaluate()
            self._record_row()
            if self.snapshots:
                self.snapshots.write(self.learner, cursor.experience)
            cursor.next_experience()
            self._maybe_save()
        self.save()

    def _fit(self, experience: Experience) -> None:
        learner, cursor = self.learner, self.learner.cursor
        learner.examples = experience.train
        if not cursor.inside:
            learner.optimizer.start_experience(self.plan.steps_of(experience), self.plan.total_steps)
            learner.method.before_experience(learner, experience)
            cursor.inside = True
        self.display.experience(cursor.experience, len(self.curriculum))
        blocks = Blocks(
            len(experience.train), self.plan.epochs, self.config.trainer.batch_size,
            self.config.trainer.batches_per_block, self.seed, experience.index, cursor,
        )  # fmt: skip
        self._switch("train")
        if len(blocks):
            self._lightning(blocks)
        learner.optimizer.end_experience()
        learner.method.after_experience(learner, experience)
        self._log_loss()
        self._switch("other")
        cursor.phase, cursor.epoch, cursor.batch = "evaluate", 0, 0
        self._maybe_save()

    def _lightning(self, blocks: Blocks) -> None:
        """One fit. Lightning answers a signal that comes inside one with SystemExit: the last checkpoint stands."""
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module=r"lightning\.")  # advice on workers, loggers, its own imports
                _trainer(self.config).fit(self.learner, train_dataloaders=blocks)
        except SystemExit:
            raise Stopped from None

    def _after_block(self) -> None:
        if self.learner.step // LOG_EVERY > self._logged:
            self._log_loss()
        self.display.step(self.learner)
        self._maybe_save()

    @property
    def _logged(self) -> int:
        return (self.learner.step - self.learner.cursor.loss_count) // LOG_EVERY

    def _log_loss(self) -> None:
        mean = self.learner.take_loss()
        if mean is not None:
            self.loss = mean
            self.directory.metrics(
                self.learner.step, {"train/loss": mean, "train/skipped_steps": self.learner.optimizer.skipped}
            )

    def _evaluate(self) -> None:
        """One row: every column that is still missing, for every view and part."""
        cursor, row = self.learner.cursor, self.learner.cursor.experience + 1
        self._switch("evaluate")
        for column in range(cursor.batch, self.n):
            for view, context in self.learner.method.views().items():
                with context:
                    for part in self.parts:
                        self._score(view, part, row, column)
            cursor.batch = column + 1
            self.display.evaluated(column + 1, self.n)
            self._maybe_save()
        self._switch("other")

    def _score(self, view: str, part: str, row: int, column: int) -> None:
        examples = getattr(self.stream.experiences[column], part)
        found = self.learner.judge(examples, self.config.trainer.eval_batch_size)
        for name, (total, count) in found.parts(part).items():
            self._matrix(view, name).update(row, column, total, count)

    def _matrix(self, view: str, part: str) -> ScoreMatrix:
        parts = self.matrices.setdefault(view, {})
        if part not in parts:
            parts[part] = ScoreMatrix(len(self.curriculum) + 1, self.n, self.stream.lower_is_better)
        return parts[part]

    def _record_row(self) -> None:
        row = self.learner.cursor.experience + 1
        for view, parts in self.matrices.items():
            for part, matrix in parts.items():
                self.directory.event(
                    "row",
                    row=row,
                    view=view,
                    part=part,
                    sum=matrix.sums[row].tolist(),
                    count=matrix.counts[row].tolist(),
                )
        main = next(iter(self.matrices.values()))
        values: dict[str, float | None] = {}
        for part, matrix in main.items():
            scores = matrix.compute()[row]
            values[f"experience/{part}/mean"] = float(scores.mean())
            if row:
                seen = scores[: row if not self.joint else self.n]
                values[f"experience/{part}/seen"] = float(seen.mean())
                if not self.joint:
                    values[f"experience/{part}/learned"] = float(scores[row - 1])
                    past = matrix.compute()[1 : row + 1, :row].numpy()
                    values[f"experience/{part}/forgetting"] = forgetting(past, self.stream.lower_is_better)
            if self.n <= MOST_CURVES:
                width = len(str(self.n - 1))
                values |= {f"experience/{part}/exp-{j:0{width}d}": float(s) for j, s in enumerate(scores)}
        self.directory.metrics(row, values)
        self.display.row(row, {**values, "train/loss": self.loss})
        if self.learner.watch:
            self._record_anytime(self.learner.step, "border", main[self.judged].compute()[row].tolist())
        if self.after_row and row:
            self.after_row(row)

    def _watch(self, moment: str) -> None:
        options = self.config.evaluate
        step = self.learner.step
        wanted = (
            options.anytime_ticks if moment != "step" else options.anytime_steps and step % options.anytime_steps == 0
        )
        if not wanted:
            return
        self._switch("anytime")
        context = next(iter(self.learner.method.views().values()))
        device, size = self.learner.where, self.config.trainer.eval_batch_size
        with context, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            pairs = [self.learner.evaluate(getattr(e, self.judged), size) for e in self.stream.experiences]
        self._record_anytime(step, moment, [s / c for s, c in pairs])
        self._switch("train")

    def _record_anytime(self, step: int, moment: str, scores: list[float]) -> None:
        entry = {"step": step, "moment": moment, "experience": self.learner.cursor.experience, "accuracy": scores}
        for name, value in entry.items():
            self.anytime[name].append(value)

    def _switch(self, what: str) -> None:
        """Account the time since the last switch, and go on with something else."""
        t = time.perf_counter()
        self.seconds[self._doing] += t - self._clock
        self._clock, self._doing = t, what

    # -- stop and resume ----------------------------------------------------------------------------------------------

    def _maybe_save(self) -> None:
        if self.stop or time.monotonic() - self._saved >= self.config.checkpoint.every_seconds:
            self.save()
        if self.stop:
            raise Stopped

    def save(self) -> None:
        """Write a checkpoint of everything that the rest of the run depends on."""
        self._switch(self._doing)
        self.directory.save_checkpoint(self.state(), self.config.checkpoint.keep)
        self._saved = time.monotonic()

    def state(self) -> dict[str, Any]:
        learner = self.learner
        return {
            "cursor": asdict(learner.cursor),
            "model": learner.model.state_dict(),
            "optimizer": learner.optimizer.state_dict(),
            "method": learner.method.state_dict(),
            "matrices": {v: {p: m.state_dict() for p, m in parts.items()} for v, parts in self.matrices.items()},
            "anytime": self.anytime,
            "seconds": self.seconds,
            "rng": rng_state(),
            "training": learner.model.training,
        }

    def restore(self) -> list[str]:
        """Load the newest whole checkpoint, if there is one; sentences about damaged ones are returned."""
        state, complaints = self.directory.load_checkpoint()
        if state is None:
            return complaints
        learner = self.learner
        learner.cursor = Cursor(**state["cursor"])
        learner.model.load_state_dict(state["model"])
        learner.model.train(state["training"])
        learner.optimizer.load_state_dict(state["optimizer"])
        learner.method.load_state_dict(state["method"])
        for view, parts in state["matrices"].items():
            for part, matrix in parts.items():
                self._matrix(view, part).load_state_dict(matrix)
        self.anytime = {k: list(v) for k, v in state["anytime"].items()}
        self.seconds = dict(state["seconds"])
        set_rng_state(state["rng"])
        return complaints


class Display:
    """What a user sees while a run goes on; this one shows nothing."""

    measure = "accuracy"  # what the scores are

    def experience(self, index: int, total: int) -> None: ...

    def step(self, learner: Learner) -> None: ...

    def evaluated(self, done: int, total: int) -> None: ...

    def row(self, row: int, values: dict[str, float | None]) -> None: ...


def _trainer(config: Config) -> L.Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return L.Trainer(
        accelerator=config.trainer.accelerator, devices=1, max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, inference_mode=False,
        use_distributed_sampler=False,
    )  # fmt: skip
