"""What a stream is made of: rows of one shared base, experiences in order, and what is known of the whole.

Shapes: N rows, B batch, T tokens, S sample shape (images are C, H, W; sequences of tokens are T).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

Scenario = Literal["class", "domain", "task"]


class Indexable(Protocol):
    """Data that is read when it is asked for: rows LongTensor (B,) in, samples Tensor (B, *S) out."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # (N, *S)

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor, /) -> Tensor: ...  # (B,) int64 -> (B, *S)

    def digest(self) -> str: ...


class Batch(NamedTuple):
    """A mini-batch: x (B, *S) float32 or (B, T) int64, y (B,) or (B, T) int64 or (B, K) float32, task (B,) int64."""

    x: Tensor
    y: Tensor
    task: Tensor


@dataclass(frozen=True, eq=False)
class Examples:
    """Rows of one shared base with their targets and tasks; the only copy of the data is `base`.

    A base of uint8 is read as float32 in 0..1, one of int64 (tokens) as it is. `transforms`, one per task, apply to the
    rows of their task when read. Targets (N, T) int64 are one for each position, IGNORED where none is judged. Where
    `tokens`, base and targets may be integers of any type, views of one text: both are read as int64.
    """

    base: Tensor | Indexable  # (M, *S)
    index: Tensor  # (N,) int64, rows of base
    targets: Tensor  # (N,) or (N, T) int64, or (N, K) float32
    task: Tensor  # (N,) int64
    transforms: tuple[Callable[[Tensor], Tensor], ...] | None = None
    tokens: bool = False

    def __post_init__(self) -> None:
        if not len(self.index) == len(self.targets) == len(self.task):
            raise ValueError(f"{len(self.index)} rows, {len(self.targets)} targets, {len(self.task)} tasks")

    def __len__(self) -> int:
        return self.index.shape[0]

    @cached_property
    def only_task(self) -> Tensor | None:
        """The one task () of all rows, or None where there are several (or no rows)."""
        alone = len(self) > 0 and bool((self.task == self.task[0]).all())
        return self.task[0] if alone else None

    @cached_property
    def _only_transform(self) -> Callable[[Tensor], Tensor] | None:
        if self.transforms is None or self.only_task is None:
            return None
        return self.transforms[int(self.only_task)]

    def batch(self, rows: Tensor) -> Batch:
        """The samples at `rows` (B,), positions in this set, any order, repeats allowed."""
        index = self.index.index_select(0, rows)
        x = self.base.index_select(0, index) if isinstance(self.base, Tensor) else self.base[index]
        y = self.targets.index_select(0, rows)
        if self.tokens:
            x, y = x.long(), y.long()
        elif x.dtype is torch.uint8:
            x = x.div(255)
        if self.only_task is None:
            task = self.task.index_select(0, rows)
            return Batch(x if self.transforms is None else self._transformed(x, task), y, task)
        if self._only_transform is not None:
            x = self._only_transform(x)
        return Batch(x, y, self.only_task.expand(rows.shape[0]))

    def _transformed(self, x: Tensor, task: Tensor) -> Tensor:
        assert self.transforms is not None
        out = torch.empty_like(x)
        for t in task.unique().tolist():
            rows = (task == t).nonzero().squeeze(1)
            out[rows] = self.transforms[t](x.index_select(0, rows))
        return out

    def subset(self, rows: Tensor) -> Examples:
        """The examples at `rows` (B,), on the same base."""
        return replace(self, index=self.index[rows], targets=self.targets[rows], task=self.task[rows])

    @staticmethod
    def concat(parts: list[Examples]) -> Examples:
        """All parts one after another; they must share base and transforms, else ValueError."""
        if not parts:
            raise ValueError("nothing to join")
        first = parts[0]
        if any(p.base is not first.base or p.transforms is not first.transforms for p in parts):
            raise ValueError("only examples of one base with the same transforms can be joined")
        index, targets, task = (torch.cat([getattr(p, f) for p in parts]) for f in ("index", "targets", "task"))
        return replace(first, index=index, targets=targets, task=task)


@dataclass(frozen=True, eq=False)
class Experience:
    """One part of a stream: what is trained on, what is chosen by (validation), and what is judged by (test)."""

    index: int
    name: str
    task: int
    classes: tuple[int, ...]  # original labels, in the order of the stream; () for regression
    train: Examples
    validation: Examples
    test: Examples


@dataclass(frozen=True, eq=False)
class Stream:
    """Experiences in the order in which they are learned."""

    name: str
    scenario: Scenario
    experiences: tuple[Experience, ...]
    n_outputs: int
    sample_shape: tuple[int, ...]  # of the longest part: sequences that are trained on may be shorter
    regression: bool
    digest: str  # hash of the data and of the split
    task_outputs: Tensor  # (tasks, n_outputs) bool: outputs each task may use; all of them but in the task scenario
    vocabulary: int | None = None  # samples are int64 tokens below it; None: samples are floats
    language: bool = False  # targets are the next tokens, all judged by the bits they cost
    causal: bool = False  # later inputs give answers away, so that no model may see them; of language always so
    token_bytes: Tensor | None = None  # (vocabulary,) int64: bytes of text that each token stands for; None: one
    about: Mapping[str, str] = field(default_factory=dict)  # where the data come from, for the record

    @property
    def measure(self) -> str:
        """What a score is."""
        return "bits per byte" if self.language else "loss" if self.regression else "accuracy"

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller score is a better one: squared error of regression, bits per byte of language."""
        return self.regression or self.language

    @property
    def per_position(self) -> bool:
        """Whether there is a target for each position of a sequence: outputs are then (B, T, n_outputs)."""
        return not self.regression and self.experiences[0].train.targets.ndim == 2

    @property
    def n_tasks(self) -> int:
        return self.task_outputs.shape[0]

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Position in `train` of each experience's first sample, and the number of samples at the end."""
        return tuple(accumulate((len(e.train) for e in self.experiences), initial=0))

    @cached_property
    def train(self) -> Examples:
        """The training samples of all experiences; a sample's position here is its id."""
        return Examples.concat([e.train for e in self.experiences])

    def avalanche(self) -> Any:
        """The same stream as a real Avalanche benchmark, equal sample by sample (classification only)."""
        from nested.streams.avalanche import to_avalanche

        return to_avalanche(self)


@dataclass(frozen=True, eq=False)
class Source:
    """Data before it is arranged as a stream.

    `test_index` names the official test rows, `validation_index` official validation rows, where there are any;
    `task` (M,) the task of each row, where the data bring their own. With a `vocabulary` x is (M, T) of tokens below
    it, padded on the right; y (M, T) has a target for each position, IGNORED where none is judged (as at padding).
    """

    name: str
    x: Tensor | Indexable  # (M, *S)
    y: Tensor  # (M,) or (M, T) int64, or (M, K) float32 for regression
    test_index: Tensor | None = None  # (T,) int64
    validation_index: Tensor | None = None  # (V,) int64
    task: Tensor | None = None  # (M,) int64 in 0..tasks-1
    regression: bool = False
    class_names: tuple[str, ...] | None = None
    task_names: tuple[str, ...] | None = None
    vocabulary: int | None = None

    @property
    def per_position(self) -> bool:
        """Whether there is a target for each position of a sequence."""
        return not self.regression and self.y.ndim == 2
