"""A method: it counts the steps, and pulls the weights to zero."""

from typing import Annotated, Any

from torch import Tensor

from nested.config import Bound
from nested.learner import Learner
from nested.methods.method import Method
from nested.streams.stream import Batch


class Hatter(Method):
    """Add a pull to zero to the loss, and count how often."""

    def __init__(self, madness: Annotated[float, Bound(ge=0)] = 0.001):
        self.madness, self.steps = madness, 0

    def loss(self, learner: Learner, batch: Batch) -> Tensor:
        self.steps += 1
        pull = sum(p.square().sum() for p in learner.model.parameters())
        return learner.loss(batch) + self.madness * pull

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
