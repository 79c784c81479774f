"""Muon for matrices, AdamW for everything else, as one optimizer.

torch's Muon refuses parameters that are not matrices, while a level of a network holds biases and norms too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from nested.config import Bound

Rate = Annotated[float, Bound(ge=0)]


class Muon(Optimizer):
    """Muon (orthogonalised momentum) for parameters of two dimensions, AdamW at `adamw_lr` for all others.

    Two parameter groups, matrices first, each with a rate of its own; a schedule that scales the rates scales both.
    `weight_decay` is decoupled and shared. The rules are `torch.optim.Muon` and `torch.optim.AdamW`; all arguments not
    named here keep torch's defaults.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: Rate = 0.02,
        momentum: Annotated[float, Bound(ge=0, lt=1)] = 0.95,
        nesterov: bool = True,
        weight_decay: Rate = 0.0,
        adamw_lr: Rate = 1e-3,
    ):
        everything = list(params)
        matrices = [p for p in everything if p.ndim == 2]
        others = [p for p in everything if p.ndim != 2]
        self._rules: list[Optimizer] = []
        if matrices:
            rule = torch.optim.Muon(matrices, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
            self._rules.append(rule)
        if others or not matrices:  # none at all: AdamW says what torch says
            self._rules.append(AdamW(others, lr=adamw_lr, weight_decay=weight_decay))
        super().__init__([group for rule in self._rules for group in rule.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of all groups; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for rule, group in zip(self._rules, self.param_groups, strict=True):
            # loading a state replaces groups and state: the rules are shown the present ones at every step
            rule.param_groups, rule.state = [group], self.state
            rule.step()
        return loss
