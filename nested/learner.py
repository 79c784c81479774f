"""The LightningModule: a model, its levels and a method, and one training step of them.

Optimization is manual: a Lightning step is a block of one or more mini-batches, each a full step of its own, so that
the numbers do not depend on the size of the block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nested.errors import Diverged, UserError
from nested.judging import Judged, judged
from nested.levels import Level
from nested.methods.method import Method
from nested.optim.leveled import Leveled
from nested.sequences.bits import byte_count
from nested.sequences.exact_match import IGNORED
from nested.signature import takes
from nested.streams.stream import Batch, Examples, Experience, Stream

Rows = tuple[int, int, Tensor]  # epoch, batch, rows of the experience's training examples


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
        micro_batch: int | None = None,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.model, self.stream, self.optimizer, self.method = model, stream, optimizer, method
        self.reading = tuple(reading)  # levels on the token clock, fastest first; the model makes them learn
        self.micro_batch = micro_batch  # examples differentiated at once; None: all of a step
        _check_warm_up(model, self.reading)
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

    def nll(self, x: Tensor, y: Tensor, frozen: bool = False) -> Tensor:
        """Tokens and those that follow them, (B, T) each -> minus log-likelihood of each, (B, T) nats.

        The model's own `nll` where it has one (it need not hold all logits at once), else the cross entropy of its
        outputs. `frozen`: no level learns while it reads. Raises UserError for an `nll` of another shape.
        """
        own = getattr(self.model, "nll", None)
        with self._context():
            if own is None:
                out = self.model(x)
                found = F.cross_entropy((out.float() if self.mixed else out).mT, y, reduction="none")
            else:
                found = own(x, y, frozen=True) if frozen else own(x, y)
        if found.shape != y.shape:
            seen, wanted = tuple(found.shape), tuple(y.shape)
            text = f"{type(self.model).__name__}.nll returned {seen}; (batch, T) = {wanted} is needed"
            raise UserError(text, key="model._target_", seen=seen, allowed=wanted)
        return found.float() if self.mixed else found

    @property
    def freezes(self) -> bool:
        """Whether the model can also be read with no level learning meanwhile: it is then judged so, too."""
        own = getattr(self.model, "nll", None)
        return bool(self.reading) and own is not None and takes(own, "frozen")

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross entropy over the batch (all judged positions or tokens in it), or mean squared error."""
        if self.stream.language:
            return self.nll(batch.x, batch.y).mean()
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
        if self.reading:
            self.model.step = self.step  # type: ignore[assignment]  # inner rates may warm up over the outer steps
        value = sum(self._differentiated(part, share) for part, share in self.parts(batch))
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

    def parts(self, batch: Batch) -> list[tuple[Batch, float]]:
        """Parts of a batch that are differentiated one after another, each with its share of all that is judged."""
        if self.micro_batch is None or self.micro_batch >= len(batch.y):
            return [(batch, 1.0)]
        parts = [Batch(*tensors) for tensors in zip(*(t.split(self.micro_batch) for t in batch))]
        every = self.stream.regression
        judged = [part.y.numel() if every else int((part.y != IGNORED).sum()) for part in parts]  # what a mean is over
        return [(part, n / sum(judged)) for part, n in zip(parts, judged) if n]

    def _differentiated(self, batch: Batch, share: float) -> float:
        """Add the gradient of a share of the loss, and return it. Raises Diverged when it is not finite."""
        try:
            loss = share * self.method.loss(self, batch)
        except Diverged as error:  # within a sequence
            raise Diverged(self._diagnosis(str(error), self.step + 1)) from None
        value = loss.item()
        if not math.isfinite(value):
            raise Diverged(self._diagnosis(f"the loss is {value}", self.step + 1))
        loss.backward()
        return value

    def _slow_levels_due(self) -> dict[str, int]:
        """Levels slower than every step that are about to learn, each announced, with their updates so far."""
        assert self.watch is not None
        slow = [level.name for level in self.optimizer.due_next() if level.period > 1]
        for name in slow:
            self.watch(f"before:{name}")
        return {name: self.optimizer.updates[name] for name in slow}

    def _diagnosis(self, what: str, step: int) -> str:
        """Which level holds what is not finite, in which experience and at which step."""
        where = f"experience {self.cursor.experience}, step {step}: {what}"
        mend = f"lower its rate or set trainer.clip_norm{self._smaller_eta()}"
        members = self.optimizer.members
        for name, params in members.items():
            if not all(bool(p.isfinite().all()) for p in params):
                updates = self.optimizer.updates[name]
                return f"{where}; parameters of level {name!r} are not finite after {updates} updates; {mend}"
        largest = max(members, key=lambda n: max(float(p.detach().abs().max()) for p in members[n]))
        return f"{where}; all parameters are finite, the largest are in level {largest!r}; {mend}"

    def _smaller_eta(self) -> str:
        """Where levels learn within sequences: that the outer gradient may have grown in their updates."""
        keys = " or ".join(f"levels.{level.name}.eta" for level in self.reading if level.eta)
        return f"; where updates on the token clock are the cause, lower {keys}" if keys else ""

    def evaluate(self, examples: Examples, batch_size: int) -> tuple[float, int]:
        """(correct answers and examples, summed squared error and examples, or bits and bytes), in evaluation mode."""
        found = self.judge(examples, batch_size, beside=False)
        return found.total, found.count

    def count(self, examples: Examples) -> int:
        """What a total is divided by: the examples or, of text, the bytes that its targets stand for."""
        return byte_count(examples.targets, self.stream.token_bytes) if self.stream.language else len(examples)

    @torch.no_grad()
    def judge(self, examples: Examples, batch_size: int, beside: bool = True) -> Judged:
        """As `evaluate`, and what is counted beside it."""
        training = self.model.training
        self.model.eval()
        try:
            return judged(self, examples, batch_size, beside)
        finally:
            self.model.train(training)

    def check_scores(self, finite: bool, what: str) -> None:
        """Raise Diverged, with a diagnosis, for scores that are no numbers."""
        if not finite:
            raise Diverged(self._diagnosis(f"{what} in evaluation", self.step))

    def take_loss(self) -> float | None:
        """Mean training loss since the last call."""
        cursor = self.cursor
        mean = cursor.loss_sum / cursor.loss_count if cursor.loss_count else None
        cursor.loss_sum, cursor.loss_count = 0.0, 0
        return mean


def _check_warm_up(model: nn.Module, reading: Sequence[Level]) -> None:
    """Raise UserError for an inner rate that should warm up in a model that cannot be told the step."""
    for level in reading:
        if level.eta_warmup_steps and not hasattr(model, "step"):
            text = f"{type(model).__name__} has no attribute `step`, so its inner rates cannot warm up; leave it 0"
            key = f"levels.{level.name}.eta_warmup_steps"
            raise UserError(text, key=key, seen=level.eta_warmup_steps, allowed=0)


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
