"""How many steps a run takes, and which examples each mini-batch holds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from nested.learner import Cursor, Learner, Rows
from nested.settings import Trainer
from nested.streams.stream import Experience


def judged(parts: Sequence[str]) -> str:
    """The part that metrics are read off: test, where it is evaluated at all."""
    return "test" if "test" in parts else "validation"


def order(seed: int, experience: int, epoch: int, n: int) -> Tensor:
    """(n,) a permutation that depends on nothing but its arguments."""
    mixed = hashlib.blake2b(f"{seed}/{experience}/{epoch}".encode(), digest_size=7).digest()
    return torch.randperm(n, generator=torch.Generator().manual_seed(int.from_bytes(mixed, "big")))


class Blocks:
    """All mini-batches that an experience still has, as rows, in blocks of `per_block`."""

    def __init__(
        self, n: int, epochs: int, batch_size: int, per_block: int, seed: int, experience: int, cursor: Cursor
    ):
        self.n, self.epochs, self.batch_size, self.per_block = n, epochs, batch_size, per_block
        self.seed, self.experience = seed, experience
        self.first = (cursor.epoch, cursor.batch)
        self.per_epoch = -(-n // batch_size)
        self.left = self.per_epoch * (epochs - cursor.epoch) - cursor.batch

    def __len__(self) -> int:
        return -(-self.left // self.per_block)

    def _batches(self) -> Iterator[Rows]:
        epoch, skip = self.first
        for e in range(epoch, self.epochs):
            batches = order(self.seed, self.experience, e, self.n).split(self.batch_size)
            for b in range(skip if e == epoch else 0, len(batches)):
                yield e, b, batches[b]

    def __iter__(self) -> Iterator[list[Rows]]:
        block: list[Rows] = []
        for rows in self._batches():
            block.append(rows)
            if len(block) == self.per_block:
                yield block
                block = []
        if block:
            yield block


class Plan:
    """How many steps a run will take."""

    def __init__(self, learner: Learner, trainer: Trainer):
        self.curriculum = learner.curriculum
        self.batch_size = trainer.batch_size
        self.epochs = trainer.epochs if learner.method.ordered else trainer.joint_epochs or trainer.epochs

    def steps_of(self, experience: Experience) -> int:
        """Optimizer steps that one experience takes."""
        return self.epochs * -(-len(experience.train) // self.batch_size)

    @property
    def examples(self) -> int:
        """Examples trained on, without any that a method adds."""
        return self.epochs * sum(len(e.train) for e in self.curriculum)

    @property
    def total_steps(self) -> int:
        return sum(self.steps_of(e) for e in self.curriculum)
