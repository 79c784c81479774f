"""When it happened: the score just before and just after each tick of a slow level, as the anytime record has it.

The two evaluations frame one optimizer step, in which faster levels learn as well. Shapes: n experiences.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Ticks = dict[str, dict[str, list[Any]]]  # level -> step, experience, earlier, current: one for each tick


def around_ticks(anytime: Mapping[str, Any] | None) -> Ticks:
    """{level: {"step", "experience", "earlier", "current"}} of a seed's anytime record.

    `earlier` is the change of the mean score on the experiences before the present one (None in the first),
    `current` that on the present one: after the tick less before it. A tick that was skipped (its gradient was not
    finite) has no after and is left out.
    """
    ticks: Ticks = {}
    before: dict[str, np.ndarray] = {}
    known = anytime or {"step": [], "moment": [], "experience": [], "accuracy": []}
    for step, moment, experience, scores in zip(*(known[k] for k in ("step", "moment", "experience", "accuracy"))):
        kind, _, level = moment.partition(":")
        if kind == "before":
            before[level] = np.array(scores)
        elif kind == "after" and level in before:
            change = np.array(scores) - before.pop(level)
            entry = {
                "step": step,
                "experience": experience,
                "earlier": float(change[:experience].mean()) if experience > 0 else None,
                "current": float(change[experience]),
            }
            found = ticks.setdefault(level, {name: [] for name in entry})
            for name, value in entry.items():
                found[name].append(value)
    return ticks


def mean_effects(ticks: Ticks) -> dict[str, dict[str, float | None]]:
    """{level: {"earlier", "current"}}: means over its ticks, None where there are none."""
    return {
        level: {
            name: float(np.mean(known)) if (known := [v for v in found[name] if v is not None]) else None
            for name in ("earlier", "current")
        }
        for level, found in ticks.items()
    }
