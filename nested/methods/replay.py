"""Experience replay: a few old samples with every batch of new ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from torch import Tensor

from nested.config import Bound
from nested.errors import UserError
from nested.methods.method import Method
from nested.methods.sample_memory import ClassBalanced, Reservoir, SampleMemory
from nested.streams.seeding import generator
from nested.streams.stream import Batch

if TYPE_CHECKING:
    from nested.learner import Learner
    from nested.streams.stream import Experience

Policies = {"reservoir": Reservoir, "class_balanced": ClassBalanced}
Positive = Annotated[int, Bound(ge=1)]


class Replay(Method):
    """Keep a bounded sample of earlier experiences and add a random part of it to every batch.

    The memory holds ids, positions in `stream.train`; an experience's samples are offered once, when it ends. Each step
    draws `batch_size` of them without replacement (null: as many as the batch has; all when there are fewer). A sample
    keeps its task, so masks treat it as when it was new. The loss is the mean over old and new samples together.
    """

    def __init__(
        self,
        seed: int,
        capacity: Positive = 200,
        policy: Literal["reservoir", "class_balanced"] = "reservoir",
        batch_size: Positive | None = None,
    ):
        self.memory: SampleMemory = Policies[policy](capacity)
        self.policy, self.batch_size = policy, batch_size
        self.random = generator(seed, "replay")
        self._kept = self.memory.kept()  # (M,) ids

    def attach(self, learner: Learner) -> None:
        stream = learner.stream
        if (stream.regression or stream.per_position) and self.policy == "class_balanced":
            seen = "numbers" if stream.regression else "one for each position"
            raise UserError(
                f"class_balanced needs a class for each sample and this stream's targets are {seen}; use reservoir",
                key="method.policy",
                seen=self.policy,
                allowed=["reservoir"],
            )

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        n = min(self.batch_size or len(batch.y), len(self._kept))
        if n == 0:
            return batch
        drawn = self._kept[torch.randperm(len(self._kept), generator=self.random)[:n]]
        old = learner.fetch(learner.stream.train, drawn)
        return Batch(*(torch.cat(pair) for pair in zip(batch, old)))

    def after_experience(self, learner: Learner, experience: Experience) -> None:
        self.memory.offer(_ids(learner, experience), experience.train.targets, self.random)
        self._kept = self.memory.kept()

    def state_dict(self) -> dict[str, Any]:
        return {"memory": self.memory.state_dict(), "random": self.random.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.memory.load_state_dict(state["memory"])
        self.random.set_state(state["random"])
        self._kept = self.memory.kept()


def _ids(learner: Learner, experience: Experience) -> Tensor:
    """(N,) positions of the experience's samples in `stream.train`."""
    place = next(i for i, e in enumerate(learner.stream.experiences) if e is experience)
    return torch.arange(*learner.stream.offsets[place : place + 2])
