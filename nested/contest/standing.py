"""How the arms stand: what their trials have recorded, as arrays.

Shapes: F rates, S orders; NaN where a run diverged, is missing, or has no order to forget in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nested import metrics, rundir
from nested.contest.arms import Arm
from nested.contest.trials import Trial, summary
from nested.contest.verdict import Array, Curve

SCORES = ("learning_acc", "forgetting", "acc")
COSTS = ("flops", "parameter_updates", "state_bytes", "train_seconds")


@dataclass(frozen=True, eq=False)
class Standing:
    """One arm: its scores and costs at each rate and order, (F, S)."""

    arm: Arm
    values: dict[str, Array]
    diverged: int
    missing: int

    def curve(self, lower_is_better: bool) -> Curve:
        """Learning signed, so that more is better."""
        return Curve(metrics.signed(self.values["learning_acc"], lower_is_better), self.values["forgetting"])

    def mean(self, name: str, factor: int) -> float | None:
        """The mean over orders at one rate; None where an order is missing."""
        return metrics.interval(self.listed(name, factor))[0]

    def half(self, name: str, factor: int) -> float | None:
        return metrics.interval(self.listed(name, factor))[1]

    def listed(self, name: str, factor: int) -> list[float | None]:
        """Each order's value, None where there is none."""
        return [None if np.isnan(v) else float(v) for v in self.values[name][factor]]


def standing(arm: Arm, trials: Sequence[Trial]) -> Standing:
    """Read an arm's trials, in the order of their rates."""
    ours = [t for t in trials if t.arm == arm.home]
    seeds = ours[0].config.seed_list()
    values = {name: np.full((len(ours), len(seeds)), np.nan) for name in (*SCORES, *COSTS)}
    states: list[str | None] = []
    for f, trial in enumerate(ours):
        for s, seed in enumerate(seeds):
            found = summary(trial.path, seed)
            states.append(found["status"] if found else None)
            if found is None or found["status"] != "done":
                continue
            scores = found if arm.view is None else of_view(trial.path / f"seed-{seed}", arm.view, found["judged_on"])
            for name in SCORES:
                values[name][f, s] = np.nan if scores[name] is None else scores[name]
            for name in COSTS:
                cost = found["cost"][name]
                values[name][f, s] = np.nan if cost is None else cost
    done = states.count("done")
    diverged = states.count("diverged")
    return Standing(arm, values, diverged, len(states) - done - diverged)


def of_view(path: Path, view: str, part: str) -> dict[str, Any]:
    """Metrics of one set of weights of a seed, read off its matrix."""
    about = rundir.read_json(path / "matrix.json")
    cells = about["views"][view][part]
    rows = np.asarray(cells["sum"], dtype=np.float64) / np.asarray(cells["count"])
    return metrics.summarise(rows[1:], rows[0], about["lower_is_better"])
