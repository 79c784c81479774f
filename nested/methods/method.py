"""What a continual-learning method may do, and when: the hooks the learner calls, each with a harmless default.

One training step calls `batch` -> `loss` -> backward -> `after_backward` -> optimizer step -> `after_step`.
One experience is framed by `before_experience` and `after_experience`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from nested.learner import Learner
    from nested.streams.stream import Batch, Experience, Stream


class Method:
    """Change nothing: the default of every hook (subclass it and override what the method does)."""

    ordered = True  # False where everything is learned at once: every row of the matrix is then its one row

    def experiences(self, stream: Stream) -> list[Experience]:
        """What is trained on, in order; the matrix keeps one row per experience of the stream itself."""
        return list(stream.experiences)

    def attach(self, learner: Learner) -> None:
        """Called once when the learner is made, before anything is trained, evaluated or loaded."""

    def before_experience(self, learner: Learner, experience: Experience) -> None:
        """Called once before the first step of an experience (not again when a run is resumed inside it)."""

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        """The examples the step is made from."""
        return batch

    def loss(self, learner: Learner, batch: Batch) -> Tensor:
        """Scalar to be differentiated."""
        return learner.loss(batch)

    def after_backward(self, learner: Learner) -> None:
        """Called when this batch's gradients stand in `.grad`, already unscaled, before the optimizer sees them."""

    def after_step(self, learner: Learner) -> None:
        """Called when the optimizer has taken its step."""

    def after_experience(self, learner: Learner, experience: Experience) -> None:
        """Called once after the last step of an experience, before anything is evaluated."""

    def views(self) -> dict[str, AbstractContextManager[Any]]:
        """Sets of weights to be judged: within each context the model holds that set; the first is the main one."""
        return {"model": nullcontext()}

    def exported(self, model: nn.Module) -> nn.Module:
        """The model that the main view judges, for use without the method; `model` holds that view's weights.

        To be written where the main view is more than other weights. A method that has never been attached gives the
        same modules without their values, which are then loaded.
        """
        return model

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs: only tensors, numbers, strings, lists and dictionaries of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly as the method which gave `state` would have."""
