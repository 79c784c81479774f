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
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from nested.config import Bound
from nested.errors import UserError
from nested.levels import Level, due
from nested.optim.newton_schulz import newton_schulz
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


def orthogonalised(memory: Tensor, steps: int) -> Tensor:
    """Newton-Schulz of (O, ...) as a matrix; in bfloat16, as in torch's Muon, unless the memory is float64."""
    precise = memory if memory.dtype is torch.float64 else memory.bfloat16()
    return newton_schulz(precise.flatten(1), steps).view_as(memory)


def move(p: Tensor, direction: Tensor, variance: Tensor, rate: float, eps: float) -> None:
    """Line 10 of Algorithm 1, in place: p - rate direction / (sqrt(variance) + eps); variance 0 leaves p alone."""
    deviation = torch.threshold_(variance.sqrt(), 0.0, math.inf).add_(eps)
    p.addcdiv_(direction, deviation, value=-rate)


class M3(Optimizer):
    """Muon with a fast and a slow momentum (M3, "Nested Learning" Algorithm 1); AdamW for what is no matrix.

    Two parameter groups, matrices (two or more dimensions) first, each with a rate of its own. The slow momentum, of
    weight `alpha`, learns every `frequency` steps and is orthogonalised only then. With `divide` a step is about
    lr / |g| per element: the smaller the gradients the larger, so the rate must fit them. `weight_decay` is decoupled
    and shared. Momenta are at least float32. A parameter without gradient is left alone and its clock stands; a
    gradient that is not finite spoils the momenta for good, so skip it, as levels do. Raises UserError for a beta of 0
    in the literal form, where it is the weight of all that is remembered.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: Rate = 0.02,
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
        betas = {"beta1": beta1, "beta2": beta2, "beta3": beta3}
        for name, beta in betas.items():
            if form == "literal" and not beta:
                text = "0 is not allowed in the literal form, where it would leave a memory empty; above 0 is"
                raise UserError(text, key=f"optim.{name}", seen=beta)
        everything = list(params)
        others = [p for p in everything if p.ndim < 2]
        values = {"lr": lr, **betas, "alpha": alpha, "frequency": frequency, "form": form, "divide": divide}
        values |= {"steps": steps, "eps": eps, "weight_decay": weight_decay}
        groups: list[dict[str, Any]] = [{"params": [p for p in everything if p.ndim >= 2], **values}]
        self._adamw = AdamW(others, lr=adamw_lr, weight_decay=weight_decay) if others else None
        if self._adamw:
            groups = [g for g in groups if g["params"]] + self._adamw.param_groups
        super().__init__(groups if everything else everything, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of all groups; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if "frequency" in group:
                for p in group["params"]:
                    if p.grad is not None:
                        self._step_matrix(p, p.grad, group)
            elif self._adamw:
                # loading a state replaces groups and state: the rule is shown the present ones at every step
                self._adamw.param_groups, self._adamw.state = [group], self.state
                self._adamw.step()
        return loss

    def _step_matrix(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        """Lines 6 to 10 of Algorithm 1, then lines 3 and 4 if the slow memory is due."""
        state = self.state[p] or self._begin(p, group)
        form, fast = group["form"], state["fast"]
        g = g.to(fast.dtype)
        state["step"] += 1
        remember(fast, g, group["beta1"], form)
        direction = orthogonalised(fast, group["steps"])
        if group["alpha"]:
            direction = direction.add_(state["slow_orthogonal"], alpha=group["alpha"])
        if group["weight_decay"]:
            p.mul_(1 - group["lr"] * group["weight_decay"])
        rate = group["lr"] * (1.0 if form == "literal" else math.sqrt(max(1.0, len(p) ** 2 / max(1, p.numel()))))
        if group["divide"]:
            remember_square(state["variance"], g, group["beta2"], form)
            root = 1.0 if form == "literal" else math.sqrt(1 - group["beta2"] ** state["step"])  # bias correction
            move(p, direction.to(g.dtype), state["variance"], rate * root, group["eps"] * root)
        else:
            p.add_(direction, alpha=-rate)
        if group["alpha"]:
            self._learn_slowly(state, g, group)

    def _learn_slowly(self, state: dict[str, Any], g: Tensor, group: dict[str, Any]) -> None:
        state["gathered"].add_(g)
        period = group["frequency"]
        if not due(Level("slow", "rest", period), state["step"]):
            return
        gathered = state["gathered"] if group["form"] == "literal" else state["gathered"] / period
        remember(state["slow"], gathered, group["beta3"], group["form"])
        state["slow_orthogonal"] = orthogonalised(state["slow"], group["steps"])
        state["gathered"].zero_()

    def _begin(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        if p.grad is not None and p.grad.is_sparse:
            raise UserError("M3 needs dense gradients", key="optim", seen="sparse")
        names = ["fast"]
        names += ["slow", "gathered"] if group["alpha"] else []
        names += ["variance"] if group["divide"] else []
        state = self.state[p]
        state["step"] = 0
        for name in names:
            state[name] = zeros(p)
        if group["alpha"]:
            state["slow_orthogonal"] = orthogonalised(state["slow"], group["steps"])
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, but memories keep their precision (torch would cast them to the parameter's)."""
        super().load_state_dict(state_dict)
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        for i, p in zip(saved, (p for group in self.param_groups for p in group["params"])):
            held = state_dict["state"].get(i, {})
            if "fast" in held:
                copies = {n: t.to(p.device, copy=True) for n, t in held.items() if isinstance(t, Tensor)}
                self.state[p].update(copies)
