"""Lookahead (Zhang et al. 2019, arXiv 1907.08610): slow weights that look where the fast ones go."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor, nn

from nested.config import Bound
from nested.errors import UserError
from nested.methods.holding import holding, loaded
from nested.methods.method import Method

if TYPE_CHECKING:
    from nested.learner import Learner
    from nested.streams.stream import Experience


class Lookahead(Method):
    """Every k steps the slow weights go alpha of the way to the weights, which then go on from there.

    One clock for all parameters, which runs on over borders; the optimizer's own state (momentum) stays as it is, as in
    the paper. With alpha 1 training is naive's to the last bit. Views are `slow`, the main one, then `raw`. Raises
    UserError when the run has fewer than k steps: its slow weights would be the initial ones to the end.
    """

    def __init__(self, k: Annotated[int, Bound(ge=1)] = 5, alpha: Annotated[float, Bound(gt=0, le=1)] = 0.5):
        self.k, self.alpha = k, alpha
        self.slow: list[Tensor] = []  # per parameter; none until the first experience begins
        self.steps = 0  # since the slow weights last moved
        self._model: nn.Module | None = None

    def attach(self, learner: Learner) -> None:
        self._model = learner.model

    def before_experience(self, learner: Learner, experience: Experience) -> None:
        steps = learner.optimizer.stream_steps
        # one experience alone, as it is trained for `gain`, may be shorter than k where the stream is not
        if 0 < steps < self.k and len(learner.stream.experiences) > 1:
            text = f"the slow weights never move in a run of {steps} steps; lower it, or train longer"
            raise UserError(text, key="method.k", seen=self.k, allowed=f"<= {steps}")
        if not self.slow:
            self.slow = [p.detach().clone() for p in learner.model.parameters()]

    @torch.no_grad()
    def after_step(self, learner: Learner) -> None:
        self.steps += 1
        if self.steps == self.k:
            self.steps = 0
            for slow, fast in zip(self.slow, learner.model.parameters(), strict=True):
                slow.lerp_(fast, self.alpha)  # exact at alpha = 1, where slow + alpha (fast - slow) is not
                fast.copy_(slow)

    def views(self) -> dict[str, AbstractContextManager[Any]]:
        assert self._model is not None, "attach() tells the method which model it holds slow weights of"
        return {"slow": holding(self._model, self.slow) if self.slow else nullcontext(), "raw": nullcontext()}

    def state_dict(self) -> dict[str, Any]:
        return {"slow": self.slow, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert self._model is not None, "attach() comes before loading"
        self.slow = loaded(self._model, state["slow"]) if state["slow"] else []  # none before the first experience
        self.steps = state["steps"]
