"""The LightningModule: a model, its levels and a method, and one training step of them.

Optimization is manual: a Lightning step is a block of one or more mini-batches, each a full step of its own, so that
the numbers do not depend on the size of the block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nested.errors import Diverged, UserError
from nested.levels import Level
from nested.methods.method import Method
from nested.optim.leveled import Leveled
from nested.sequences.exact_match import exact_match, positions_right
from nested.streams.stream import Batch, Examples, Experience, Stream

Rows = tuple[int, int, Tensor]  # epoch, batch, rows of the experience's training examples


class Judged(NamedTuple):
    """What a model made of some examples."""

    total: float  # correct answers, or summed mean squared error
    count: int  # examples
    positions: tuple[int, int] | None = None  # right ones, judged ones; where answers are sequences


@dataclass
class Cursor:
    """Where a run stands: what it will do next. Experience -1 is the evaluation before any training."""

    experience: int = -1
    phase: Literal["fit", "evaluate"] = "evaluate"
    epoch: int = 0
    batch: int = 0  # next mini-batch of the epoch, or next column of the matrix
    inside: bool = False  # the method has been told that the experience began
    step: int = 0  # optimizer steps of the whole run
    loss_sum: float = 0.0  # training loss since it was last recorded
    loss_count: int = 0
    examples: int = 0  # examples trained on, what a method adds included

    def next_experience(self) -> None:
        """Stand before the first step of the next one."""
        self.experience, self.phase, self.epoch, self.batch, self.inside = self.experience + 1, "fit", 0, 0, False


class Learner(L.LightningModule):
    """A model on a stream: masked logits, the task's loss, one step, one evaluation."""

    def __init__(
        self,
        model: nn.Module,
        stream: Stream,
        optimizer: Leveled,
        method: Method,
        mask: Literal["none", "seen", "experience"] = "none",
        precision: Literal["32-true", "bf16-mixed", "64-true"] = "32-true",
        device: torch.device | None = None,
        reading: Sequence[Level] = (),
    ):
        super().__init__()
        self.automatic_optimization = False
        self.model, self.stream, self.optimizer, self.method = model, stream, optimizer, method
        self.reading = tuple(reading)  # levels on the token clock, fastest first; the model makes them learn
        self.where = device or torch.device("cpu")
        self.dtype_in = torch.float64 if precision == "64-true" else torch.float32
        self.mixed = precision == "bf16-mixed"
        self.cursor = Cursor()
        self.examples: Examples = stream.experiences[0].train  # what the current fit draws from
        self.on_start: Callable[[], None] = lambda: None  # called when a fit has begun
        self.after_block: Callable[[], None] = lambda: None
        self.watch: Callable[[str], None] | None = None  # told "before:LEVEL", "after:LEVEL" and "step"
        self.curriculum = method.experiences(stream)
        method.attach(self)
        self._masks = _Masks(stream, self.curriculum, mask, self.where)

    @property
    def step(self) -> int:
        """Optimizer steps of the whole run."""
        return self.cursor.step

    def forward(self, x: Tensor) -> Tensor:
        """(B, *S) -> (B, n_outputs), or (B, T, n_outputs) where each position has a target; no mask."""
        return self.model(x)

    def _context(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.where.type, torch.bfloat16) if self.mixed else nullcontext()

    def logits(self, x: Tensor, task: Tensor, training: bool) -> Tensor:
        """(B, *S), (B,) -> outputs as of forward(), with those that may not compete at minus infinity."""
        with self._context():
            out = self.model(x)
        allowed = self._masks.allowed(task, self.cursor.experience, training)
        if allowed is None:
            return out
        return out.masked_fill(~allowed.reshape(len(x), *[1] * (out.ndim - 2), -1), -math.inf)  # equal at all positions

    def competing(self) -> Tensor | None:
        """(tasks, n_outputs) bool: which outputs may compete when a sample of a task is judged now; None where all."""
        return self._masks.allowed(torch.arange(self.stream.n_tasks), self.cursor.experience, training=False)

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross entropy over the batch (over all judged positions in it), or mean squared error for regression."""
        out = self.logits(batch.x, batch.task, training=True)
        if self.stream.regression:
            return F.mse_loss(out.float() if self.mixed else out, batch.y)
        return F.cross_entropy((out.float() if self.mixed else out).flatten(0, -2), batch.y.flatten())

    def fetch(self, examples: Examples, rows: Tensor) -> Batch:
        """A batch in this run's precision (tokens stay integers), on its device."""
        x, y, task = examples.batch(rows)
        y = y.to(self.dtype_in) if self.stream.regression else y
        wanted = torch.int64 if self.stream.vocabulary is not None else self.dtype_in
        if x.dtype is wanted and self.where.type == "cpu":
            return Batch(x, y, task)
        return Batch(x.to(self.where, wanted), y.to(self.where), task.to(self.where))

    def configure_optimizers(self) -> Leveled:
        """The one optimizer of the whole run: a new one at each border would lose every momentum."""
        return self.optimizer

    def on_train_start(self) -> None:
        self.model.train()
        self.on_start()

    def cpu(self) -> Learner:
        """Stay where it is: Lightning calls this after each fit, and evaluation goes on on the device."""
        return self

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # rows, not data: `fetch` moves the data

    def training_step(self, block: list[Rows], block_index: int) -> None:  # type: ignore[override]
        for epoch, number, rows in block:
            self.learn(rows)
            self.cursor.epoch, self.cursor.batch = epoch, number + 1
        self.after_block()

    def learn(self, rows: Tensor) -> None:
        """One optimizer step on the given rows. Raises Diverged when the loss is not finite."""
        batch = self.method.batch(self, self.fetch(self.examples, rows))
        try:
            loss = self.method.loss(self, batch)
        except Diverged as error:  # within a sequence
            raise Diverged(self._diagnosis(str(error), self.step + 1)) from None
        value = loss.item()
        if not math.isfinite(value):
            raise Diverged(self._diagnosis(f"the loss is {value}", self.step + 1))
        loss.backward()
        self.method.after_backward(self)
        slow = self._slow_levels_due() if self.watch else {}
        try:
            self.optimizer.step()
        except Diverged as error:
            raise Diverged(f"{error}{self._smaller_eta()}") from None
        self.method.after_step(self)
        cursor = self.cursor  # a plain object: setting attributes of a module costs microseconds
        cursor.step += 1
        cursor.examples += len(batch.y)
        cursor.loss_sum += value
        cursor.loss_count += 1
        if self.watch:
            for name, updates in slow.items():
                if self.optimizer.updates[name] > updates:  # a step that is not finite updates nothing
                    self.watch(f"after:{name}")
            self.watch("step")

    def _slow_levels_due(self) -> dict[str, int]:
        """Levels slower than every step that are about to learn, each announced, with their updates so far."""
        assert self.watch is not None
        slow = [level.name for level in self.optimizer.due_next() if level.period > 1]
        for name in slow:
            self.watch(f"before:{name}")
        return {name: self.optimizer.updates[name] for name in slow}

    def _diagnosis(self, what: str, step: int) -> str:
        """Which level holds what is not finite, in which experience and at which step."""
        where = f"{what} in experience {self.cursor.experience}, step {step}"
        mend = f"lower its rate or set trainer.clip_norm{self._smaller_eta()}"
        members = self.optimizer.members
        for name, params in members.items():
            if not all(bool(p.isfinite().all()) for p in params):
                updates = self.optimizer.updates[name]
                return f"{where}: parameters of level {name!r} are not finite after {updates} updates; {mend}"
        largest = max(members, key=lambda n: max(float(p.detach().abs().max()) for p in members[n]))
        return f"{where}: all parameters are finite, the largest are in level {largest!r}; {mend}"

    def _smaller_eta(self) -> str:
        """Where levels learn within sequences: that the outer gradient may have grown in their updates."""
        keys = " or ".join(f"levels.{level.name}.eta" for level in self.reading if level.eta)
        return f"; where updates on the token clock are the cause, lower {keys}" if keys else ""

    def evaluate(self, examples: Examples, batch_size: int) -> tuple[float, int]:
        """(correct answers, or summed mean squared error; number of examples), with the model in evaluation mode."""
        found = self.judge(examples, batch_size)
        return found.total, found.count

    @torch.no_grad()
    def judge(self, examples: Examples, batch_size: int) -> Judged:
        """As `evaluate`, and more of sequences.

        A sequence with a target for each position is one answer: correct when every judged position is. That is zero
        for long while a model learns, so its positions are counted too.
        """
        training = self.model.training
        self.model.eval()
        total = torch.zeros((), dtype=torch.float64 if self.stream.regression else torch.int64)
        lost = torch.zeros((), dtype=torch.bool, device=self.where)
        right = judged = 0
        for rows in torch.arange(len(examples)).split(batch_size):
            x, y, task = self.fetch(examples, rows)
            out = self.logits(x, task, training=False)
            lost |= out.isnan().any()
            if self.stream.regression:
                total += F.mse_loss(out.double(), y.double(), reduction="none").flatten(1).mean(1).sum().cpu()
            elif self.stream.per_position:
                answers = out.argmax(-1)
                total += exact_match(answers, y).sum().cpu()
                right, judged = (a + b for a, b in zip((right, judged), positions_right(answers, y)))
            else:
                total += (out.argmax(1) == y).sum().cpu()
        self.model.train(training)
        if lost:
            raise Diverged(self._diagnosis("outputs are NaN in evaluation", self.step))
        return Judged(total.item(), len(examples), (right, judged) if self.stream.per_position else None)

    def take_loss(self) -> float | None:
        """Mean training loss since the last call."""
        cursor = self.cursor
        mean = cursor.loss_sum / cursor.loss_count if cursor.loss_count else None
        cursor.loss_sum, cursor.loss_count = 0.0, 0
        return mean


class _Masks:
    """Which outputs may compete, (tasks, n_outputs) bool tables; None where all may.

    Task scenario: the task's own outputs, in training and test. Class scenario with `seen`: the classes met so far, in
    both; with `experience`: in training those of the example's own experience, in test those met so far (a test that
    used the experience would be told the task).
    """

    def __init__(
        self,
        stream: Stream,
        curriculum: list[Experience],
        mask: Literal["none", "seen", "experience"],
        device: torch.device,
    ):
        if mask != "none" and stream.scenario != "class":
            text = f"{mask!r} has a meaning in the class scenario only, and this stream's is {stream.scenario!r}"
            raise UserError(text, key="head.mask", seen=mask, allowed=["none"])
        self.table = stream.task_outputs.to(device)
        self.by_task = stream.scenario == "task"
        self.mask = mask
        if self.mask == "none":
            return
        self.own = torch.zeros(stream.n_tasks, stream.n_outputs, dtype=torch.bool, device=device)
        for e in stream.experiences:
            self.own[e.task, list(e.classes)] = True
        met = [self.own[e.train.task.unique()].any(0) for e in curriculum]
        self.seen = torch.stack(met).cumsum(0).bool()  # (experiences trained on, n_outputs)

    def allowed(self, task: Tensor, experience: int, training: bool) -> Tensor | None:
        """(B, n_outputs) bool, or None."""
        if self.by_task:
            return self.table[task]
        if self.mask == "none" or experience < 0:
            return None
        if self.mask == "experience" and training:
            return self.own[task]
        return self.seen[min(experience, len(self.seen) - 1)].expand(len(task), -1)
