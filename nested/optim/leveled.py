"""Levels on the stream clock: one optimizer made of one rule per level, each applied when its level is due.

One tick is one call of `step`. A level gathers its gradients in this optimizer's state (not in `.grad`, which is
cleared at every step) and hands their mean or sum to its rule at every `period`-th tick: Nested Learning, Eq. 71.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nested.errors import Diverged, UserError
from nested.levels import Level, assign, due, ticks
from nested.optim.delta_momentum import DeltaMomentum, Turn, step_together
from nested.optim.schedule import rate_factor
from nested.settings import Schedule
from nested.signature import accepts, build
from nested.wording import counted

PATIENCE = 10  # non-finite gradients in a row that end the run


class Leveled(torch.optim.Optimizer):
    """An optimizer whose parts keep their own clocks.

    `rules[name]` is the torch optimizer of level `name`; `param_groups` are theirs, so a rate written there counts.
    `updates[name]` counts the ticks of a level; `skipped` counts steps with a non-finite gradient, which move no clock.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        rules: Mapping[str, torch.optim.Optimizer],
        clip_norm: float | None = None,
        at_border: Literal["carry", "flush", "drop"] = "carry",
        schedule: Schedule | None = None,
    ):
        self.levels = [level for level in levels if level.clock == "stream"]
        self.rules = dict(rules)
        self.members = {n: [p for g in r.param_groups for p in g["params"]] for n, r in self.rules.items()}
        super().__init__([{"params": ps} for ps in self.members.values()], {})
        self.param_groups = [g for rule in self.rules.values() for g in rule.param_groups]
        for group in self.param_groups:
            if "lr" in group:
                group.setdefault("initial_lr", group["lr"])
        self.clip_norm, self.at_border = clip_norm, at_border
        self.schedule = schedule or Schedule()
        self.tick = self.skipped = self._skipped_in_a_row = 0
        self.experience_start, self.experience_steps, self.stream_steps = 0, 0, 0
        self.updates = {level.name: 0 for level in self.levels}
        self.count = {level.name: 0 for level in self.levels}  # gradients gathered since the last update
        self.gathered: dict[str, list[Tensor | None]] = {level.name: [] for level in self.levels}
        self._everything = [p for ps in self.members.values() for p in ps]

    def due_next(self) -> list[Level]:
        """The levels that the next step will update."""
        return [level for level in self.levels if due(level, self.tick + 1)]

    def start_experience(self, steps: int, stream_steps: int) -> None:
        """Say how many steps this experience and the whole stream have: the schedule's horizon."""
        self.experience_start, self.experience_steps, self.stream_steps = self.tick, steps, stream_steps

    def end_experience(self) -> None:
        """Treat what is gathered but not yet applied, as `at_border` says."""
        for level in self.levels:
            if self.count[level.name] and self.at_border == "flush":
                self._update(level, extra=1)
            if self.at_border != "carry":
                self.gathered[level.name], self.count[level.name] = [], 0

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One tick: gather for every level, update those that are due, clear `.grad`.

        Raises Diverged, naming the level, after ten non-finite gradients in a row.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self._finite():
            return loss
        self.tick += 1
        if self._together():
            self._step_together()
        else:
            for level in self.levels:
                if level.period > 1:
                    self._gather(level)
                if due(level, self.tick):
                    self._update(level)
        self.zero_grad()
        return loss

    step.hooked = True  # type: ignore[attr-defined]  # torch would wrap it in a profiler range; each rule's step has one

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear `.grad`; gathered gradients stay."""
        for p in self._everything:
            p.grad = None

    def _finite(self) -> bool:
        grads = [p.grad for p in self._everything if p.grad is not None]
        # a sum is the cheapest thing that no NaN or infinity survives; where it overflows, look at every value
        total = torch.stack([g.sum() for g in grads]).sum().item() if grads else 0.0
        if math.isfinite(total) or all(bool(g.isfinite().all()) for g in grads):
            self._skipped_in_a_row = 0
            return True
        self.skipped += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= PATIENCE:
            bad = [
                n
                for n, ps in self.members.items()
                if any(p.grad is not None and not p.grad.isfinite().all() for p in ps)
            ]
            last, updates = self.tick + self.skipped, self.updates[bad[0]]
            raise Diverged(
                f"level {bad[0]!r}: its gradient was not finite in {PATIENCE} steps in a row, {last - PATIENCE + 1} to "
                f"{last}, after {counted(updates, 'update')}"
            )
        self.zero_grad()
        return False

    def _gather(self, level: Level) -> None:
        params, store = self.members[level.name], self.gathered[level.name]
        if not store:
            store.extend(None for _ in params)
        for i, p in enumerate(params):
            if p.grad is None:
                continue
            held = store[i]
            if held is None:
                store[i] = p.grad.clone()  # a copy: `.grad` may be written again
            else:
                held.add_(p.grad)
        self.count[level.name] += 1

    def _together(self) -> bool:
        """Whether all levels can learn in one call, and that pays: Delta Momentum on a device, where launches count."""
        same = self.clip_norm is None and all(isinstance(rule, DeltaMomentum) for rule in self.rules.values())
        return same and self._everything[0].device.type != "cpu"

    def _step_together(self) -> None:
        """`_gather` and `_update` of all levels in one call."""
        turns, learning = [], [level for level in self.levels if due(level, self.tick)]
        for level in self.levels:
            store = self.gathered[level.name] if level.period > 1 else None
            if store is not None:
                store.extend(None for _ in range(len(store), len(self.members[level.name])))
                self.count[level.name] += 1
            if level in learning:
                self._set_rate(level, 0)
            rule, mean = self.rules[level.name], level.gather == "mean" and store is not None
            assert isinstance(rule, DeltaMomentum)
            turns.append(Turn(rule, level in learning, store, 1 / self.count[level.name] if mean else 1.0))
        step_together(turns)
        for level in learning:
            self.updates[level.name] += 1
            self.gathered[level.name], self.count[level.name] = [], 0

    def _update(self, level: Level, extra: int = 0) -> None:
        """Apply what is gathered; `extra` is 1 for an update between two ticks."""
        params = self.members[level.name]
        if level.period > 1:
            for p, held in zip(params, self.gathered[level.name], strict=True):
                p.grad = held
            if level.gather == "mean" and self.count[level.name] > 1:
                for p in params:
                    if p.grad is not None:
                        p.grad.div_(self.count[level.name])
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(params, self.clip_norm)
        self._set_rate(level, extra)
        self.rules[level.name].step()
        self.updates[level.name] += 1
        if level.period > 1:
            self.gathered[level.name], self.count[level.name] = [], 0

    def _set_rate(self, level: Level, extra: int) -> None:
        if self.schedule.shape == "constant" and not self.schedule.warmup:
            return
        stream = self.schedule.scope == "stream"
        first = 0 if stream else self.experience_start
        last = self.stream_steps if stream else self.experience_start + self.experience_steps
        done = ticks(level, first, self.tick) - 1 + extra
        factor = rate_factor(self.schedule, done, ticks(level, first, last) + extra)
        for group in self.rules[level.name].param_groups:
            group["lr"] = group["initial_lr"] * factor

    def state_dict(self) -> dict[str, Any]:  # type: ignore[override]
        """Clocks, gathered gradients and every rule's own state, as plain tensors and numbers."""
        return {
            "clocks": [self.tick, self.skipped, self._skipped_in_a_row],
            "scope": [self.experience_start, self.experience_steps, self.stream_steps],
            "updates": dict(self.updates),
            "count": dict(self.count),
            "gathered": {n: list(g) for n, g in self.gathered.items()},
            "rules": {n: r.state_dict() for n, r in self.rules.items()},
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # type: ignore[override]
        """Continue exactly where `state_dict` was taken."""
        self.tick, self.skipped, self._skipped_in_a_row = state_dict["clocks"]
        self.experience_start, self.experience_steps, self.stream_steps = state_dict["scope"]
        self.updates, self.count = dict(state_dict["updates"]), dict(state_dict["count"])
        self.gathered = {n: [None if t is None else t.clone() for t in g] for n, g in state_dict["gathered"].items()}
        for name, rule in self.rules.items():
            rule.load_state_dict(copy.deepcopy(state_dict["rules"][name]))  # torch would share its tensors
        self.param_groups = [g for rule in self.rules.values() for g in rule.param_groups]


def leveled(
    levels: Sequence[Level],
    model: nn.Module,
    optim: Mapping[str, Any],
    clip_norm: float | None = None,
    at_border: Literal["carry", "flush", "drop"] = "carry",
    schedule: Schedule | None = None,
) -> Leveled:
    """Assign the model's parameters to `levels` and build each level's rule from its section, or from `optim`.

    Raises UserError as `levels.assign` and as the rules' own checks do.
    """
    parameters = dict(model.named_parameters())
    rules = {}
    for name, members in assign(levels, model).items():
        level = next(level for level in levels if level.name == name)
        where = f"levels.{name}.optim" if level.rule else "optim"
        rules[name] = build(level.rule or optim, where, params=[parameters[n] for n in members], model=model)
        _check_steps_alone(rules[name], where)
        if level.lr_scale != 1.0:
            _scale(rules[name], level)
    return Leveled(levels, rules, clip_norm, at_border, schedule)


def _check_steps_alone(rule: torch.optim.Optimizer, where: str) -> None:
    """Raise UserError for an optimizer that computes the loss again within a step."""
    if not accepts(rule.step, 0):
        name = type(rule).__name__
        text = f"{name}.step needs a closure, by which it computes loss and gradient as often as it likes within a step"
        text += "; not supported: a tick of the stream clock is one backward pass, whose gradient the levels gather; "
        text += "take an optimizer whose step needs none, such as torch.optim.AdamW"
        raise UserError(text, key=f"{where}._target_", seen=name)


def _scale(rule: torch.optim.Optimizer, level: Level) -> None:
    for group in rule.param_groups:
        if "lr" not in group:
            text = f"{type(rule).__name__} has no rate to scale; leave it 1"
            raise UserError(text, key=f"levels.{level.name}.lr_scale", seen=level.lr_scale)
        group["lr"] *= level.lr_scale
