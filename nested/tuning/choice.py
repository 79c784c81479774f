"""Which trials a study chooses: the best ones, or points of the Pareto front that anybody can tell the reason of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nested.tuning import pruning
from nested.tuning.search import best
from nested.tuning.study import Study

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


def chosen(study: Study, k: int = 1) -> list[FrozenTrial]:
    """The k best whole trials within the budget, all with different values of the space; fewer where there are fewer.

    Of several objectives: the trial of the front nearest to the best of everything (each objective scaled to its range
    on the front), then the best in each objective, in their order.
    """
    if study.objective.single:
        sign = -1.0 if study.objective.directions[0] == "maximize" else 1.0
        whole = [t for t in study.trials("COMPLETE") if pruning.within_budget(t)]
        order = sorted(whole, key=lambda t: (sign * t.values[0], t.number))
    else:
        order = _of_front(study, sorted(best(study), key=lambda t: t.number))
    different: dict[tuple, FrozenTrial] = {}
    for trial in order:
        different.setdefault(tuple(trial.params.get(d.path) for d in study.dimensions), trial)
    return list(different.values())[:k]


def _of_front(study: Study, front: list[FrozenTrial]) -> list[FrozenTrial]:
    if not front:
        return []
    signs = [1.0 if d == "maximize" else -1.0 for d in study.objective.directions]
    values = [[s * v for s, v in zip(signs, t.values)] for t in front]
    highest, lowest = ([f(column) for column in zip(*values)] for f in (max, min))

    def distance(k: int) -> float:
        return sum(((h - v) / (h - low)) ** 2 for v, h, low in zip(values[k], highest, lowest) if h > low)

    places = range(len(front))
    extremes = [max(places, key=lambda k, m=m: (values[k][m], -distance(k))) for m in range(len(signs))]
    return [front[k] for k in (min(places, key=distance), *extremes)]
