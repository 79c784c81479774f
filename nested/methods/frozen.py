"""Levels that learn in the first experience alone: the control for whatever is said of how levels learn later."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import nn

from nested.errors import unknown
from nested.levels import assign_tokens
from nested.methods.method import Method

if TYPE_CHECKING:
    from nested.learner import Learner
    from nested.optim.leveled import Leveled
    from nested.streams.stream import Experience


class Frozen(Method):
    """Let levels learn in the first experience alone; all others go on as ever.

    `levels` names them (null: all); of a level on the token clock it is the initial state that stays. Their gradients
    are cleared before the optimizer sees them, and what they have gathered is dropped: clocks go on. Raises UserError
    for a level that there is not.
    """

    def __init__(self, levels: tuple[str, ...] | None = None):
        self.levels = levels
        self.begun = 0  # experiences
        self._frozen: list[nn.Parameter] = []

    def attach(self, learner: Learner) -> None:
        members = {name: list(params) for name, params in learner.optimizer.members.items()}
        if learner.reading:
            named = dict(learner.model.named_parameters())
            tokens = assign_tokens(learner.reading, learner.model)
            members |= {level: [named[n] for n in names] for level, names in tokens.items()}
        wanted = tuple(members) if self.levels is None else self.levels
        for name in wanted:
            if name not in members:
                raise unknown("level", name, members, "method.levels")
        self._frozen = list(dict.fromkeys(p for name in wanted for p in members[name]))

    def before_experience(self, learner: Learner, experience: Experience) -> None:
        self.begun += 1
        if self.begun > 1:
            drop_gathered(learner.optimizer, self._frozen)

    def after_backward(self, learner: Learner) -> None:
        if self.begun > 1:
            for p in self._frozen:
                p.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {"begun": self.begun}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.begun = state["begun"]


def drop_gathered(optimizer: Leveled, params: Iterable[nn.Parameter]) -> None:
    """Drop what slow levels have gathered for these parameters: it would move them at the next tick."""
    ids = {id(p) for p in params}
    for name, held in optimizer.gathered.items():
        members = optimizer.members[name]
        optimizer.gathered[name] = [None if id(p) in ids else g for p, g in zip(members, held)]
