"""An optimizer without a memory of earlier experiences: the control for whatever its state is said to keep."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nested.methods.method import Method

if TYPE_CHECKING:
    from nested.learner import Learner
    from nested.streams.stream import Experience


class Reset(Method):
    """Begin every experience with an optimizer that remembers nothing: no momentum, no moments, nothing gathered.

    Weights stay, and so do clocks and rates.
    """

    def before_experience(self, learner: Learner, experience: Experience) -> None:
        optimizer = learner.optimizer
        state = optimizer.state_dict()
        state["rules"] = {name: {**rule, "state": {}} for name, rule in state["rules"].items()}
        state["gathered"] = {name: [] for name in state["gathered"]}
        state["count"] = dict.fromkeys(state["count"], 0)
        optimizer.load_state_dict(state)
