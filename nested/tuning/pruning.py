"""When a trial is not worth continuing.

A trial reports after each experience of each seed, at step = (place of the seed) * experiences + experience: equal
steps of two trials are the same experience under the same seed, and a bad trial ends before its later seeds begin.

- median: worse than the median of the whole trials at this step. Optuna's own compares a trial's best value so far, and
  on a stream the mean over the experiences seen is best at the first: nothing would ever be pruned.
- hyperband: Optuna's, with the steps of a whole trial as the resource.
- wilcoxon: Optuna's, one value for each seed, paired over seeds.
- several objectives (median): at least half of the trials that have ended and have reached this step dominate the trial
  there: none of their values is worse, and one is better. Optuna takes no reports of such studies: the values are user
  attributes `at/<step>`, in the order of the objectives.

The first two kinds of our own wait for `startup` whole trials and for `warmup` experiences of each trial, and compare
with trials that keep to the budget.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from optuna.pruners import BasePruner, HyperbandPruner, NopPruner, WilcoxonPruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nested.errors import UserError

if TYPE_CHECKING:
    from optuna.study import Study

    from nested.tuning.settings import Tune

Values = Sequence[float | None]


def within_budget(trial: FrozenTrial) -> bool:
    return all(excess <= 0 for excess in trial.constraints.values())


class MedianAtStep(BasePruner):
    """Ends a trial whose last value is worse than the median of the whole trials at the same step."""

    def __init__(self, startup: int, warmup: int):
        self.startup, self.warmup = startup, warmup

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        step = trial.last_step
        if step is None or step < self.warmup:
            return False
        whole = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        others = [t.intermediate_values[step] for t in whole if step in t.intermediate_values and within_budget(t)]
        if len(others) < self.startup:
            return False
        value, middle = trial.intermediate_values[step], median(others)
        return value < middle if study.direction == StudyDirection.MAXIMIZE else value > middle


def pruner(tune: Tune, steps: int) -> BasePruner:
    """The pruner of a study of one objective whose whole trials take so many steps."""
    if tune.pruner == "median":
        return MedianAtStep(tune.startup, tune.warmup)
    if tune.pruner == "hyperband":
        return HyperbandPruner(min_resource=1, max_resource=steps, reduction_factor=tune.reduction)
    return WilcoxonPruner(p_threshold=tune.p_value) if tune.pruner == "wilcoxon" else NopPruner()


def check(tune: Tune, objectives: int, n_seeds: int) -> None:
    """Raise UserError for a pruner that cannot be used here, or could never prune."""
    if objectives > 1 and tune.pruner not in ("median", "none"):
        text = f"{tune.pruner} knows one objective; several are pruned by dominance: tune.pruner=median, or none"
        raise UserError(text, key="tune.pruner", seen=tune.pruner, allowed=["median", "none"])
    least = 2.0 ** -(n_seeds - 1)  # of the test with all seeds but the last
    if tune.pruner == "wilcoxon" and least >= tune.p_value:
        need = next(n for n in range(2, 99) if 2.0 ** -(n - 1) < tune.p_value)
        text = f"{n_seeds} seeds can never reach p < {tune.p_value:g} before the last: {need} are needed, seeds={need}"
        raise UserError(text, key="tune.pruner", seen="wilcoxon", allowed=["median", "hyperband", "none"])


def dominates(a: Values, b: Values, directions: Sequence[str]) -> bool:
    """Whether `a` is nowhere worse than `b` and somewhere better; values not yet defined are not compared."""
    signs = [1.0 if d == "maximize" else -1.0 for d in directions]
    pairs = [(s * x, s * y) for s, x, y in zip(signs, a, b) if x is not None and y is not None]
    return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)


def dominated(values: Values, others: Sequence[Values], directions: Sequence[str], tune: Tune) -> bool:
    """Whether at least half of `others` dominate; with fewer than `startup` of them nothing is said."""
    worse = sum(dominates(o, values, directions) for o in others)
    return len(others) >= tune.startup and 2 * worse >= len(others)


def at(step: int) -> str:
    """The user attribute that holds the values of a trial of several objectives at a step."""
    return f"at/{step}"


def reached(trials: Iterable[FrozenTrial], step: int) -> list[Any]:
    """The values at a step of the trials that have ended, have come so far, and keep to the budget."""
    ended = (t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED) and within_budget(t))
    return [t.user_attrs[at(step)] for t in ended if at(step) in t.user_attrs]
