"""A rule for matrices with AdamW beside it, as one optimizer: a level of a network holds biases and norms too."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from nested.optim.rule import Rule


class MatrixRule(Rule):
    """A rule for the parameters that it `serves`, matrices; AdamW at `adamw_lr` for all others.

    Each group that is given becomes two, matrices first, each with a rate of its own: a schedule that scales the rates
    scales both. `weight_decay` is decoupled and shared; AdamW's other values are torch's defaults.
    """

    decoupled = True

    def serves(self, p: Tensor) -> bool:
        """Whether `p` counts as a matrix; with more than two dimensions as (O, rest)."""
        return p.ndim >= 2

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; the group's values are checked, and it becomes two groups if it holds both kinds."""
        super().add_param_group(param_group)
        group = self.param_groups.pop()
        served = [self.serves(p) for p in group["params"]]
        rates = {"lr": group.pop("adamw_lr"), "weight_decay": group["weight_decay"]}
        for values, wanted in ((group, True), (AdamW([torch.zeros(0)]).defaults | rates, False)):
            names = [name for name in ("params", "param_names") if name in group]
            chosen = {name: [v for v, s in zip(group[name], served) if s is wanted] for name in names}
            if chosen["params"]:
                self.param_groups.append(values | chosen)

    def step_group(self, group: dict[str, Any]) -> None:
        """One update of the group's parameters that have a gradient."""
        if "betas" in group:
            follow(AdamW, group, self.state)
        else:
            self.step_matrices(group)

    def step_matrices(self, group: dict[str, Any]) -> None:
        """`step_group` for matrices alone."""
        super().step_group(group)


def follow(rule: Callable[[list[Tensor]], Optimizer], group: dict[str, Any], state: defaultdict[Tensor, Any]) -> None:
    """One step of torch's `rule` on a group and a state that another optimizer holds."""
    engine = rule(group["params"][:1])  # made anew: a loaded or copied state comes with other groups
    engine.param_groups, engine.state = [group], state
    engine.step()
