"""When a trial is not worth continuing.

A trial reports after each experience of each seed, at step = (place of the seed) * experiences + experience: equal
steps of two trials are the same experience under the same seed, and a bad trial ends before its later seeds begin. What
it reports is the mean over the seeds begun, of the last value of each: at the last step that is the trial's value.

- median: worse than the median of the whole trials at this step, and than the best of them was at it: what looks like
  the best under a seed that deceives goes on. Optuna's own compares a trial's best value so far, and on a stream the
  mean over the experiences seen is best at the first: nothing would ever be pruned.
- hyperband: Optuna's, with the steps of a whole trial as the resource.
- wilcoxon: Optuna's, one value for each seed, paired over seeds.
- several objectives (median): at least half of the trials that have ended and have reached this step dominate the trial
  there: none of their values is worse, and one is better. Optuna takes no reports of such studies: the values are user
  attributes `at/<step>`, in the order of the objectives.

The kinds of our own, median and several objectives, wait for `startup` whole trials and for `warmup` experiences of
each trial, and compare with trials that keep to the budget. On a stream who learns most begins best, and who forgets
least ends best: nothing is judged before a trial's first seed has seen the whole stream, or half where it is the only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from optuna.pruners import BasePruner, HyperbandPruner, NopPruner, WilcoxonPruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nested.errors import UserError
from nested.wording import counted

if TYPE_CHECKING:
    from optuna.study import Study

    from nested.tuning.settings import Tune

AT = "at/"
Values = Sequence[float | None]


def within_budget(trial: FrozenTrial) -> bool:
    return all(excess <= 0 for excess in trial.constraints.values())


class MedianAtStep(BasePruner):
    """Ends a trial that is worse than the median of the whole trials at its last step, and than the best was there."""

    def __init__(self, startup: int, warmup: int):
        self.startup, self.warmup = startup, warmup

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        step = trial.last_step
        if step is None or step < self.warmup:
            return False
        whole = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        others = [t for t in whole if step in t.intermediate_values and within_budget(t)]
        if len(others) < self.startup:
            return False
        sign = 1.0 if study.direction == StudyDirection.MAXIMIZE else -1.0
        best = max(others, key=lambda t: sign * (t.value or 0.0))  # 0 only for the type: a whole trial has a value

        def at_step(t: FrozenTrial) -> float:
            return sign * t.intermediate_values[step]

        return at_step(trial) < min(median(map(at_step, others)), at_step(best))


def warmup(tune: Tune, experiences: int, seeds: int) -> int:
    """The first step at which a trial is judged."""
    if tune.warmup is not None:
        return tune.warmup
    return experiences - 1 if seeds > 1 else experiences // 2


def pruner(tune: Tune, experiences: int, seeds: int) -> BasePruner:
    """The pruner of a study of one objective on so many experiences under so many seeds."""
    if tune.pruner == "median":
        return MedianAtStep(tune.startup, warmup(tune, experiences, seeds))
    if tune.pruner == "hyperband":
        return HyperbandPruner(min_resource=1, max_resource=seeds * experiences, reduction_factor=tune.reduction)
    return WilcoxonPruner(p_threshold=tune.p_value) if tune.pruner == "wilcoxon" else NopPruner()


def idle(tune: Tune, experiences: int, seeds: int) -> str | None:
    """What to say of a pruner that can prune nothing: at its last step a trial has nothing left to spare."""
    first = warmup(tune, experiences, seeds) if tune.pruner == "median" else 0
    if tune.pruner == "none" or first < seeds * experiences - 1:
        return None
    steps = f"a trial has {counted(seeds * experiences, 'step')}, and is judged from step {first + 1} on"
    return f"tune.pruner={tune.pruner} can prune nothing here: {steps}, but not at its last"


def check(tune: Tune, objectives: int, n_seeds: int) -> None:
    """Raise UserError for a pruner that cannot be used here, or has too few seeds for its test."""
    if objectives > 1 and tune.pruner not in ("median", "none"):
        text = f"{tune.pruner} knows one objective; several are pruned by dominance: tune.pruner=median, or none"
        raise UserError(text, key="tune.pruner", seen=tune.pruner, allowed=["median", "none"])
    least = 2.0 ** -(n_seeds - 1)  # of the test with all seeds but the last
    if tune.pruner == "wilcoxon" and least >= tune.p_value:
        need = next(n for n in range(2, 99) if 2.0 ** -(n - 1) < tune.p_value)
        have = counted(n_seeds, "seed")
        text = f"{have} can never reach p < {tune.p_value:g} before the last: {need} are needed, seeds={need}"
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


def so_far(told: Values, before: Values, place: int) -> list[float | None]:
    """The means over the seeds begun: `told` of the one at this place, `before` the means at the end of the others."""
    if not place:
        return list(told)
    known = zip(told, before, strict=True)
    return [None if x is None or mean is None else (place * mean + x) / (place + 1) for x, mean in known]


def at(step: int) -> str:
    """The user attribute that holds the values of a trial of several objectives at a step."""
    return f"{AT}{step}"


def reached(trials: Iterable[FrozenTrial], step: int) -> list[Any]:
    """The values at a step of the trials that have ended, have come so far, and keep to the budget."""
    ended = (t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED) and within_budget(t))
    return [t.user_attrs[at(step)] for t in ended if at(step) in t.user_attrs]
