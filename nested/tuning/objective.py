"""What is sought: values of a run by name, which way each is better, and what a trial may cost.

A trial's value is the mean over its seeds, of the part that trials are judged on (validation). Cost is that of
training, for each seed: `flops`, `parameter_updates`, `seconds`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from nested.errors import NestedError, UserError, unknown

Direction = Literal["maximize", "minimize"]
BETTER: dict[str, Direction] = {  # scores: where higher scores are better, else the other way round
    "acc": "maximize",
    "learning_acc": "maximize",
    "forgetting": "minimize",
    "bwt": "maximize",
    "fwt": "maximize",
    "flops": "minimize",
    "parameter_updates": "minimize",
    "seconds": "minimize",
}
SCORES = ("acc", "learning_acc")
ORDERED = ("forgetting", "bwt", "fwt")  # differences of rows: there are none without an order or a second experience
COSTS = ("flops", "seconds")  # that a budget can bound


class Unavailable(NestedError):
    """A run came to no value for an objective."""


@dataclass(frozen=True)
class Objective:
    """One value or several, each with the direction in which it is better, and bounds on cost."""

    names: tuple[str, ...]
    directions: tuple[Direction, ...]
    budget: dict[str, float]

    @property
    def single(self) -> bool:
        """Whether there is one value, so that a trial reports it and Optuna's pruners apply."""
        return len(self.names) == 1

    def of_runs(self, summaries: Sequence[Mapping[str, Any]]) -> list[float]:
        """The values of a trial: means over its seeds' summaries. Raises Unavailable."""
        return [mean(name, summaries) for name in self.names]

    def so_far(self, values: Mapping[str, Any]) -> list[float | None]:
        """The values of one seed after an experience; None where there is none yet."""
        return [None if values.get(n) is None else float(values[n]) for n in self.names]

    def excess(self, summaries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Budgeted cost -> how far above its bound, as a share of it: at most 0 where the trial keeps to it."""
        return {name: mean(name, summaries) / bound - 1.0 for name, bound in self.budget.items()}


def mean(name: str, summaries: Sequence[Mapping[str, Any]]) -> float:
    """The mean of a value over seeds' summaries. Raises Unavailable."""
    found = [_value(name, s) for s in summaries]
    known = [v for v in found if v is not None and math.isfinite(v)]
    if not known or len(known) < len(found):
        raise Unavailable(f"a run came to no {name}")
    return fmean(known)


def _value(name: str, summary: Mapping[str, Any]) -> float | None:
    """One value of a summary; `seconds` are those of training, as in a budget."""
    if name in SCORES or name in ORDERED:
        return summary.get(name)
    return summary["cost"].get("train_seconds" if name == "seconds" else name)


def objective(
    wanted: str | Sequence[str], budget: Mapping[str, Any] | None, n: int, ordered: bool, lower_is_better: bool = False
) -> Objective:
    """What a search of n experiences seeks. Raises UserError for an unknown word, or a value there cannot be."""
    names = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    if not names or len(set(names)) < len(names):
        raise UserError("one or more values are needed, all different", key="tune.objective", seen=list(names))
    for name in names:
        if name not in BETTER:
            raise unknown("objective", name, BETTER, "tune.objective")
        if name in ORDERED and not ordered:
            text = f"there is no {name} when everything is learned at once; take acc, or another method"
            raise UserError(text, key="tune.objective", seen=name, allowed=[b for b in BETTER if b not in ORDERED])
        if name in ORDERED and n < 2:
            text = f"one experience alone has no {name}; take learning_acc or acc, or more experiences"
            raise UserError(text, key="tune.objective", seen=name, allowed=[b for b in BETTER if b not in ORDERED])
    directions: tuple[Direction, ...] = tuple([_direction(name, lower_is_better) for name in names])
    return Objective(names, directions, _budget(budget or {}))


def _direction(name: str, lower_is_better: bool) -> Direction:
    if lower_is_better and name in SCORES:
        return "minimize"
    return BETTER[name]


def _budget(budget: Mapping[str, Any]) -> dict[str, float]:
    for name, bound in budget.items():
        if name not in COSTS:
            raise unknown("cost", name, COSTS, "tune.budget")
        if isinstance(bound, bool) or not isinstance(bound, int | float) or not bound > 0:
            text = f"{bound!r} is not allowed; a number above 0"
            raise UserError(text, key=f"tune.budget.{name}", seen=bound)
    return {str(k): float(v) for k, v in budget.items()}
