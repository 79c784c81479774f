"""An update rule as a torch optimizer: groups, closures, weight decay and a state that is wider than its parameter.

The mathematics of each rule is a pure function in the rule's own file; here is what all of them share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from nested.errors import UserError
from nested.precision import wide_dtype
from nested.signature import arguments, value_of


class Rule(Optimizer):
    """An optimizer that says what a parameter's state begins with (`start`) and how all of them change (`update`).

    Gradients and state are at least float32, whatever the parameter is. `weight_decay` adds to the gradient, as in
    `torch.optim.SGD`, unless the rule is `decoupled`: then it shrinks the parameter, as in `torch.optim.AdamW`. A
    group's values are keywords of the constructor. Raises UserError for values that the constructor's annotations do
    not allow, in any group, and for sparse gradients.
    """

    decoupled = False

    def start(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """What is kept for `p`, before its first update."""
        raise NotImplementedError

    def update(
        self, params: list[Tensor], gs: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]
    ) -> None:
        """Change parameters and states, in place."""
        raise NotImplementedError

    def check(self, group: dict[str, Any]) -> None:
        """Raise UserError where a value of the group is not what the constructor's signature allows."""
        for name, argument in arguments(type(self)).items():
            if name in group:
                value_of(group[name], argument.annotation, f"optim.{name}")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; the group's values are checked."""
        super().add_param_group(param_group)
        self.check(self.param_groups[-1])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self.step_group(group)
        return loss

    def step_group(self, group: dict[str, Any]) -> None:
        """One update of the group's parameters that have a gradient."""
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        states = [self._state(p, group) for p in params]
        gs = [p.grad if p.grad.dtype == wide_dtype(p.dtype) else p.grad.to(wide_dtype(p.dtype)) for p in params]
        if group["weight_decay"] and self.decoupled:
            for p in params:
                p.mul_(1 - group["lr"] * group["weight_decay"])
        elif group["weight_decay"]:
            gs = [g.add(p, alpha=group["weight_decay"]) for g, p in zip(gs, params)]
        self.update(params, gs, states, group)

    def _state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        if not self.state[p]:
            if p.grad is not None and p.grad.is_sparse:
                raise UserError(f"{type(self).__name__} needs dense gradients", key="optim", seen="sparse")
            self.state[p] = self.start(p, group)
        return self.state[p]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, but the state keeps its precision (torch would cast it to the parameter's)."""
        super().load_state_dict(state_dict)
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        for i, p in zip(saved, (p for group in self.param_groups for p in group["params"])):
            for name, value in state_dict["state"].get(i, {}).items():
                if isinstance(value, Tensor):  # a copy; torch would share it
                    self.state[p][name] = value.to(self.state[p][name].device, copy=True)


def zeros(p: Tensor, *shape: int) -> Tensor:
    """A state of zeros as long as `p`, or of another shape."""
    return torch.zeros(shape or p.shape, dtype=wide_dtype(p.dtype), device=p.device)
