"""Elastic Weight Consolidation (Kirkpatrick et al. 2017).

loss + strength * sum_i F_i (theta_i - theta*_i)^2, without the paper's factor 1/2, as in Avalanche's `EWCPlugin`, whose
numbers this method reproduces when `fisher_batch_size` is the training batch size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from torch import Tensor

from nested.config import Bound
from nested.errors import UserError
from nested.methods.method import Method

if TYPE_CHECKING:
    from nested.learner import Learner
    from nested.streams.stream import Batch, Experience

Weights = dict[str, Tensor]


class EWC(Method):
    """Pull each weight back to its value after earlier experiences, in proportion to its importance for them.

    Importance is the diagonal empirical Fisher information over the experience's training examples: the mean, over
    batches of `fisher_batch_size`, of the squared gradient of the batch's loss. 1 is exact (one backward pass per
    example); a larger batch averages gradients before they are squared, is faster, and is smaller by up to that factor.
    `separate` keeps importance and weights of every experience; `online` keeps one importance, the older part of which
    is multiplied by `decay` (null: 1) at each border, and the latest weights. Raises UserError for `decay` without
    `online`.
    """

    def __init__(
        self,
        strength: Annotated[float, Bound(ge=0)] = 10.0,
        mode: Literal["separate", "online"] = "separate",
        decay: Annotated[float, Bound(ge=0, le=1)] | None = None,
        fisher_batch_size: Annotated[int, Bound(ge=1)] = 1,
    ):
        if mode == "separate" and decay is not None:
            raise UserError("decay is of use in mode online only; leave it null", key="method.decay", seen=decay)
        self.strength, self.mode, self.fisher_batch_size = strength, mode, fisher_batch_size
        self.decay = 1.0 if decay is None else decay
        self.anchors: list[Weights] = []  # weights at the end of an experience
        self.importances: list[Weights] = []
        self._device = torch.device("cpu")

    def attach(self, learner: Learner) -> None:
        self._device = learner.where

    def loss(self, learner: Learner, batch: Batch) -> Tensor:
        loss = learner.loss(batch)
        return loss + self.strength * self._penalty(learner) if self.anchors else loss

    def _penalty(self, learner: Learner) -> Tensor:
        penalty = torch.zeros((), device=self._device)
        for anchor, importance in zip(self.anchors, self.importances):
            for name, p in _trainable(learner).items():
                penalty = penalty + (importance[name] * (p - anchor[name]).pow(2)).sum()
        return penalty

    def after_experience(self, learner: Learner, experience: Experience) -> None:
        importance = fisher(learner, experience, self.fisher_batch_size)
        if self.mode == "online" and self.importances:
            older = self.importances.pop()
            importance = {n: self.decay * older[n] + f for n, f in importance.items()}
            self.anchors.pop()
        self.importances.append(importance)
        self.anchors.append({n: p.detach().clone() for n, p in _trainable(learner).items()})

    def state_dict(self) -> dict[str, Any]:
        return {"anchors": self.anchors, "importances": self.importances}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.anchors, self.importances = (
            [{n: t.to(self._device) for n, t in weights.items()} for weights in state[what]]
            for what in ("anchors", "importances")
        )


def fisher(learner: Learner, experience: Experience, batch_size: int) -> Weights:
    """Mean over batches of the squared gradient of the batch's loss, in evaluation mode; `.grad` is left alone."""
    params = _trainable(learner)
    total = {n: torch.zeros_like(p) for n, p in params.items()}
    batches = torch.arange(len(experience.train)).split(batch_size)
    training = learner.model.training
    learner.model.eval()
    for rows in batches:
        loss = learner.loss(learner.fetch(experience.train, rows))
        grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
        for held, g in zip(total.values(), grads):
            if g is not None:
                held += g.pow(2)
    learner.model.train(training)
    return {n: held / len(batches) for n, held in total.items()}


def _trainable(learner: Learner) -> Weights:
    return {n: p for n, p in learner.model.named_parameters() if p.requires_grad}
