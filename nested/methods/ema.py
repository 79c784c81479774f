"""Averages of the weights along the way, judged beside the weights themselves."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor, nn

from nested.config import Bound
from nested.errors import UserError
from nested.methods.holding import holding, loaded
from nested.methods.method import Method
from nested.precision import wide

if TYPE_CHECKING:
    from nested.learner import Learner


class EMA(Method):
    """Train as naive does and judge exponential averages of the weights, one for each of several periods.

    Each step moves average p by 1 / p of its distance to the weights (decay 1 - 1 / p), starting from the initial
    weights. Training never sees the averages. Views are `ema-<p>` in the order of `periods`, the first being the main
    one, then `raw`. Parameters are averaged, at least in float32; buffers are the model's present ones.
    """

    def __init__(self, periods: tuple[Annotated[float, Bound(ge=1)], ...] = (100.0,)):
        if not periods or len(set(periods)) < len(periods):
            raise UserError(f"{list(periods)} is not allowed; one or more different periods are", key="method.periods")
        self.periods = tuple(periods)
        self.averages: list[list[Tensor]] = []  # per period, per parameter; none until the first step
        self._model: nn.Module | None = None

    def attach(self, learner: Learner) -> None:
        self._model = learner.model

    def before_experience(self, learner: Learner, experience: Any) -> None:
        if not self.averages:
            self.averages = [[wide(p.detach()).clone() for p in learner.model.parameters()] for _ in self.periods]

    @torch.no_grad()
    def after_step(self, learner: Learner) -> None:
        weights = [wide(p.detach()) for p in learner.model.parameters()]
        for period, average in zip(self.periods, self.averages):
            torch._foreach_lerp_(average, weights, 1 / period)  # pyright: ignore[reportPrivateImportUsage]

    def views(self) -> dict[str, AbstractContextManager[Any]]:
        names = [f"ema-{p:g}" for p in self.periods]
        assert self._model is not None, "attach() tells the method which model it averages"
        held = [holding(self._model, a) for a in self.averages] or [nullcontext() for _ in names]  # initially all equal
        return {**dict(zip(names, held, strict=True)), "raw": nullcontext()}

    def state_dict(self) -> dict[str, Any]:
        return {"averages": self.averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert self._model is not None, "attach() comes before loading"
        self.averages = [loaded(self._model, a) for a in state["averages"]]
