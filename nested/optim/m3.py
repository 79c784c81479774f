"""M3, multi-scale momentum Muon: a fast and a slow momentum, each orthogonalised, over Adam's second moment.

"Nested Learning" (arXiv 2512.24695v1) Eq. 75 and Algorithm 1, in two forms:
- literal: M1 <- M1 + beta1 g, V <- V + beta2 g^2, M2 <- M2 + beta3 (sum of f gradients). Plain sums: nothing is ever
  forgotten, V only grows, and beta1 is without effect, for Newton-Schulz ignores the size of its input.
- ema: M1 <- beta1 M1 + (1 - beta1) g, V likewise with bias correction, M2 <- beta3 M2 + (1 - beta3) (mean of f
  gradients). M1 and M2 need no correction, for the same reason. As in Muon the rate is multiplied by sqrt(O / I) for
  tall matrices; with alpha = 0 and no division this is Muon without Nesterov momentum.

Departures, in both forms. The slow sum takes the f gradients since the last slow update; printed is (k - 1) f ... k f,
which is one more. So M2 and its orthogonalisation are zero for the first f steps. Where an element has never had a
gradient, V = 0, it is not moved: O / (sqrt(V) + eps) would be O / eps there. Parameters that are not matrices, for
which Newton-Schulz means nothing, are left to AdamW.

Shapes: O rows, I columns; a tensor of more than two dimensions is the matrix (O, rest).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from nested.config import Bound
from nested.errors import UserError
from nested.optim.matrix_rule import MatrixRule
from nested.optim.newton_schulz import orthogonalised, orthogonalised_each
from nested.optim.rule import zeros

Form = Literal["ema", "literal"]
Rate = Annotated[float, Bound(ge=0)]
Decay = Annotated[float, Bound(ge=0, lt=1)]


def remember(memory: Tensor, value: Tensor, beta: float, form: Form) -> None:
    """Write `value` into `memory`, in place: memory + beta value, or beta memory + (1 - beta) value."""
    if form == "literal":
        memory.add_(value, alpha=beta)
    else:
        memory.lerp_(value, 1 - beta)


def remember_square(memory: Tensor, value: Tensor, beta: float, form: Form) -> None:
    """`remember` value^2, without a tensor in between."""
    if form == "ema":
        memory.mul_(beta)
    memory.addcmul_(value, value, value=beta if form == "literal" else 1 - beta)


def move(p: Tensor, direction: Tensor, variance: Tensor, rate: float, eps: float) -> None:
    """Line 10 of Algorithm 1, in place: p - rate direction / (sqrt(variance) + eps); variance 0 leaves p alone."""
    deviation = torch.threshold_(variance.sqrt(), 0.0, math.inf).add_(eps)
    p.addcdiv_(direction, deviation, value=-rate)


class M3(MatrixRule):
    """Muon with a fast and a slow momentum (M3, "Nested Learning" Algorithm 1); AdamW for what is no matrix.

    Two parameter groups, matrices (two or more dimensions) first, each with a rate of its own. The slow momentum, of
    weight `alpha`, learns every `frequency` steps and is orthogonalised only then. With `divide` a step is about
    lr / |g| per element: the smaller the gradients the larger, so the rate must fit them. `weight_decay` is decoupled
    and shared. Momenta are at least float32. A parameter without gradient is left alone and its clock stands; a
    gradient that is not finite spoils the momenta for good, so skip it, as levels do. Raises UserError for a value
    outside these ranges, and for a beta of 0 in the literal form, where it is the weight of all that is remembered.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: Rate = 0.005,
        beta1: Decay = 0.95,
        beta2: Decay = 0.999,
        beta3: Decay = 0.9,
        alpha: Annotated[float, Bound(ge=0)] = 1.0,
        frequency: Annotated[int, Bound(ge=1)] = 10,
        form: Form = "ema",
        divide: bool = False,
        steps: Annotated[int, Bound(ge=1)] = 5,
        eps: Annotated[float, Bound(gt=0)] = 1e-8,
        weight_decay: Rate = 0.0,
        adamw_lr: Rate = 1e-3,
    ):
        given = {"lr": lr, "beta1": beta1, "beta2": beta2, "beta3": beta3, "alpha": alpha, "frequency": frequency}
        last = {"form": form, "divide": divide, "steps": steps, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**given, **last, "adamw_lr": adamw_lr})

    def check(self, group: dict[str, Any]) -> None:
        super().check(group)
        for name in ("beta1", "beta2", "beta3"):
            if group["form"] == "literal" and not group[name]:
                text = "0 is not allowed in the literal form, where it would leave a memory empty; above 0 is"
                raise UserError(text, key=f"optim.{name}", seen=group[name])

    def start(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        names = ["fast"]
        names += ["slow", "gathered"] if group["alpha"] else []
        names += ["variance"] if group["divide"] else []
        state: dict[str, Any] = {"step": 0, **{name: zeros(p) for name in names}}
        if group["alpha"]:
            state["slow_orthogonal"] = orthogonalised(state["slow"], group["steps"])
        return state

    def update(
        self, params: list[Tensor], gs: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]
    ) -> None:
        for g, state in zip(gs, states):
            state["step"] += 1
            remember(state["fast"], g, group["beta1"], group["form"])
        directions = orthogonalised_each([state["fast"] for state in states], group["steps"])
        for p, g, state, direction in zip(params, gs, states, directions):
            _follow(p, g, direction, state, group)
        if group["alpha"]:
            _learn_slowly(gs, states, group)


def _follow(p: Tensor, g: Tensor, direction: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    """Lines 8 to 10 of Algorithm 1, along the orthogonalised fast momentum."""
    form = group["form"]
    if group["alpha"]:
        direction = direction.add_(state["slow_orthogonal"], alpha=group["alpha"])
    rate = group["lr"] * (1.0 if form == "literal" else math.sqrt(max(1.0, len(p) ** 2 / max(1, p.numel()))))
    if group["divide"]:
        remember_square(state["variance"], g, group["beta2"], form)
        root = 1.0 if form == "literal" else math.sqrt(1 - group["beta2"] ** state["step"])  # bias correction
        move(p, direction.to(g.dtype), state["variance"], rate * root, group["eps"] * root)
    else:
        p.add_(direction, alpha=-rate)


def _learn_slowly(gs: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]) -> None:
    """Lines 3 and 4 of Algorithm 1, every f steps of a parameter."""
    period, learned = group["frequency"], []
    for g, state in zip(gs, states):
        state["gathered"].add_(g)
        if state["step"] % period == 0:
            gathered = state["gathered"] if group["form"] == "literal" else state["gathered"] / period
            remember(state["slow"], gathered, group["beta3"], group["form"])
            state["gathered"].zero_()
            learned.append(state)
    directions = orthogonalised_each([state["slow"] for state in learned], group["steps"])
    for state, direction in zip(learned, directions):
        state["slow_orthogonal"].copy_(direction)
