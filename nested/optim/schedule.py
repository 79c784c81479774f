"""The learning rate as a pure function of a level's own ticks.

A torch scheduler made anew for each experience on a kept optimizer silently ends at rate 0: hence a function.
"""

from __future__ import annotations

import math

from nested.settings import Schedule


def rate_factor(schedule: Schedule, tick: int, ticks: int) -> float:
    """Rate at `tick` (0, 1, ..., ticks - 1) as a share of the level's full rate."""
    warm = round(schedule.warmup * ticks)
    if tick < warm:
        return (tick + 1) / warm
    if schedule.shape == "constant":
        return 1.0
    progress = min(1.0, (tick - warm) / max(1, ticks - warm - 1))
    fall = progress if schedule.shape == "linear" else (1 - math.cos(math.pi * progress)) / 2
    return 1.0 - (1.0 - schedule.final) * fall
