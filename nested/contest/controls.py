"""From a candidate's config to the configs of every control, as pure functions.

A control takes one thing away from the candidate, or gives an ordinary network one thing in its place; what is left is
equal: stream, model, optimizer, schedule, seeds, and the FLOPs of training, to which epochs are fitted. Where a control
is of no use to a candidate it is absent, and says why.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from nested.config import Config
from nested.contest.arms import (
    EMA,
    EQUAL,
    HEAD,
    JOINT,
    METHODS,
    NAIVE,
    REPLAY,
    Absent,
    Arm,
    Facts,
    Idle,
    Levels,
    checked,
    drift,
    on_stream,
    on_tokens,
    period,
    plain,
    slow,
    with_levels,
    with_method,
)  # fmt: skip
from nested.levels import LevelConfig
from nested.wording import counted

PERIODS = (4.0, 16.0, 64.0)  # of averages, where the candidate has no slow level to take them from
LOOKAHEAD = 5  # its own default, likewise
CAPACITY = 200  # samples in replay's memory, where the candidate keeps nothing beside its weights


def arms(candidate: Config, facts: Facts) -> tuple[list[Arm], list[Absent]]:
    """The candidate first, then every control that is another config than those before it; and who is left out."""
    found = [Arm("candidate", candidate.name(), "as it is given", checked(candidate))]
    absent: list[Absent] = []
    for title, control in CONTROLS.items():
        try:
            made = control(candidate, facts)
        except Idle as reason:
            absent.append(Absent(title, str(reason)))
            continue
        for arm in made:
            same = next((a for a in found if _key(a) == _key(arm)), None)
            if same is None:
                found.append(replace(arm, config=checked(replace(arm.config, label=arm.title))))
            else:
                whose = "the candidate itself" if same.name == "candidate" else f"the same as: {same.title}"
                absent.append(Absent(arm.title, f"it is {whose}"))
    return found, absent


def _one_rule(levels: Mapping[str, LevelConfig]) -> None:
    if len({json.dumps(lv.optim, sort_keys=True) for lv in levels.values()}) > 1:
        raise Idle("the levels learn by different rules, whose rates cannot be compared")


def _needs_slow(config: Config) -> Levels:
    found = slow(config)
    if not found:
        raise Idle("every level of the candidate learns at every step")
    return found


def _needs_naive(config: Config) -> None:
    if config.method["_target_"] != NAIVE:
        raise Idle("it is a method, and so is what the candidate has: it cannot have both")


# -- controls: the candidate without one thing -------------------------------------------------------------------------


def eta_zero(config: Config, facts: Facts) -> list[Arm]:
    """The same computation, in which no level learns while it reads."""
    tokens = on_tokens(config)
    if not any(level.eta for level in tokens.values()):
        raise Idle("the candidate has no level that learns while it reads")
    levels = {n: replace(lv, eta=0.0) if n in tokens else lv for n, lv in config.level_configs().items()}
    return [Arm("eta_zero", "eta = 0", "levels on the token clock that never learn", with_levels(config, levels))]


def equal_updates(config: Config, facts: Facts) -> list[Arm]:
    """Levels as one, at the period and rate of their mean update: the slow ones, or all where only one is slow."""
    several = _needs_slow(config)
    alone = len(several) == 1
    several = on_stream(config) if alone else several
    _one_rule(several)
    if len({lv.gather or "mean" for lv in several.values() if period(lv) > 1}) > 1:
        raise Idle("some slow levels learn from the sum of what they gathered, others from the mean")
    size = {n: facts.parameters[n] for n in several}
    updates = sum(size[n] / period(lv) for n, lv in several.items())  # parameter updates per step
    every = max(1, round(sum(size.values()) / updates))
    rate = sum(size[n] / period(lv) * lv.lr_scale for n, lv in several.items()) / updates
    globs = [glob for lv in several.values() if not isinstance(lv.params, str) for glob in lv.params]
    rest = alone or any(isinstance(lv.params, str) for lv in several.values())
    first = next(lv for lv in several.values() if period(lv) > 1)
    one = replace(first, params="rest" if rest else globs, period_steps=every, lr_scale=rate)
    others = {n: lv for n, lv in config.level_configs().items() if n not in several}
    which, name = ("all", "all") if alone else ("the slow", "slow")
    what = f"{which} levels as one that learns every {every} steps: as many updates of as many parameters"
    return [Arm("equal_updates", "one level, equal updates", what, with_levels(config, {**others, name: one}))]


def one_level(config: Config, facts: Facts) -> list[Arm]:
    """An ordinary network."""
    what = "an ordinary network: every parameter learns at every step, at the rate of the fastest level"
    return [Arm("one_level", "one level, equal FLOPs", what, plain(config, facts))]


def one_level_same_drift(config: Config, facts: Facts) -> list[Arm]:
    """An ordinary network at the candidate's mean rate per step."""
    levels = on_stream(config)
    _one_rule(levels)
    total = sum(facts.parameters.values())
    rate = sum(facts.parameters[n] * drift(lv) for n, lv in levels.items()) / total
    ordinary = plain(config, facts)
    one = replace(ordinary.level_configs()["all"], lr_scale=rate)
    what = f"an ordinary network at {rate:.3g} times the rate: the candidate's mean drift per step"
    return [Arm("one_level_same_drift", "one level, same drift", what, with_levels(ordinary, {"all": one}))]


def same_drift(config: Config, facts: Facts) -> list[Arm]:
    """Every level at every step, at its rate over its period."""
    several = _needs_slow(config)
    levels = {
        n: replace(lv, period_steps=1, lr_scale=drift(lv), gather=None) if n in several else lv
        for n, lv in config.level_configs().items()
    }
    what = "every level learns at every step, at its rate divided by its period"
    return [Arm("same_drift", "every level at period 1, same drift", what, with_levels(config, levels))]


def frozen(config: Config, facts: Facts) -> list[Arm]:
    """The candidate whose slow levels, and levels on the token clock, learn in the first experience alone."""
    names = [*slow(config), *on_tokens(config)]
    if not names:
        raise Idle("the candidate has no level but that of every step")
    _needs_naive(config)
    what = f"{' and '.join(names)} learn in the first experience alone"
    made = with_method(config, f"{METHODS}.frozen.Frozen", levels=names)
    return [Arm("frozen", "levels frozen after the first experience", what, made)]


def reset(config: Config, facts: Facts) -> list[Arm]:
    """The candidate without what its optimizer remembers over a border."""
    _needs_naive(config)
    what = "momentum, moments and gathered gradients begin anew with every experience"
    made = with_method(config, f"{METHODS}.reset.Reset")
    return [Arm("reset", "state reset at every experience", what, made)]


def _head(rule: str, title: str, words: str) -> Callable[[Config, Facts], list[Arm]]:
    def control(config: Config, facts: Facts) -> list[Arm]:
        _needs_naive(config)
        made = with_method(config, HEAD, rule=rule, features="learned")
        return [Arm(rule, title, f"the candidate's features, judged by {words} in place of its head", made)]

    return control


# -- controls: an ordinary network with one thing more -----------------------------------------------------------------


def ema(config: Config, facts: Facts) -> list[Arm]:
    """Plain averages of an ordinary network's weights, one for each period of a slow level: one training."""
    every = sorted({float(period(lv)) for lv in slow(config).values()}) or list(PERIODS)
    made = with_method(plain(config, facts), EMA, periods=every)
    what = "an ordinary network judged by an exponential average of its weights over {:g} steps"
    return [Arm(f"ema-{p:g}", f"EMA, period {p:g}", what.format(p), made, f"ema-{p:g}", "ema") for p in every]


def lookahead(config: Config, facts: Facts) -> list[Arm]:
    """Slow weights that follow an ordinary network's, at the shortest and the longest period of a slow level."""
    every = sorted({period(lv) for lv in slow(config).values()}) or [LOOKAHEAD]
    what = "an ordinary network with slow weights that go half of the way every {} steps"
    return [
        Arm(
            f"lookahead-{k}", f"Lookahead, {k} steps", what.format(k),
            with_method(plain(config, facts), f"{METHODS}.lookahead.Lookahead", k=k),
        )
        for k in sorted({every[0], every[-1]})
    ]  # fmt: skip


def replay(config: Config, facts: Facts) -> list[Arm]:
    """An ordinary network that also sees old examples, in fewer epochs, with as many bytes as the candidate keeps."""
    kept = facts.method_bytes + sum(facts.bytes[n] for n in slow(config))
    capacity = max(1, kept // facts.sample_bytes) if kept else CAPACITY
    ordinary = plain(config, facts)
    epochs, old = shares(ordinary.trainer.epochs, ordinary.trainer.batch_size, facts.experiences, capacity)
    made = with_method(ordinary, REPLAY, capacity=capacity, batch_size=old)
    made = replace(made, trainer=replace(made.trainer, epochs=epochs))
    size = f"what the candidate's {kept:,} bytes hold" if kept else "the candidate keeps nothing beside its weights"
    spent = f"{counted(epochs, 'epoch')}, {counted(old, 'old example')} with each batch, of {capacity:,} kept"
    what = f"an ordinary network, {spent}: {size}"
    title = "uniform replay, equal FLOPs" + (" and bytes" if kept else "")
    return [Arm("replay", title, what, made)]


def shares(epochs: int, batch_size: int, experiences: int, capacity: int) -> tuple[int, int]:
    """(epochs, old examples for each batch) of the most replay that trains on as many examples as `epochs` without it.

    There is nothing to replay in the first experience. Raises Idle where no whole numbers come near enough.
    """
    later = (experiences - 1) / experiences
    for fewer in range(math.ceil(epochs / 2), epochs + 1):
        old = min(capacity, max(1, round(batch_size * (epochs / fewer - 1) / later)))
        if abs(fewer * (1 + later * old / batch_size) / epochs - 1) <= EQUAL + 1e-9:
            return fewer, old
    raise Idle(f"epochs: {epochs}, kept examples: {capacity:,}; no share of old ones makes the FLOPs equal")


def joint(config: Config, facts: Facts) -> list[Arm]:
    """An ordinary network that learns everything at once: what no order can take away."""
    made = with_method(plain(config, facts), JOINT)
    made = replace(made, trainer=replace(made.trainer, joint_epochs=made.trainer.epochs))
    return [Arm("joint", "joint", "an ordinary network that learns all experiences at once: the ceiling", made)]


CONTROLS: dict[str, Callable[[Config, Facts], Sequence[Arm]]] = {
    "eta = 0": eta_zero,
    "one level, equal FLOPs": one_level,
    "one level, equal updates": equal_updates,
    "one level, same drift": one_level_same_drift,
    "every level at period 1, same drift": same_drift,
    "levels frozen after the first experience": frozen,
    "EMA": ema,
    "Lookahead": lookahead,
    "class means on the same features": _head("class_means", "class means, same features", "class means"),
    "least squares on the same features": _head("least_squares", "least squares, same features", "least squares"),
    "uniform replay": replay,
    "state reset at every experience": reset,
    "joint": joint,
}


def _key(arm: Arm) -> str:
    """All that a training depends on, but for the names of levels, and what of it is judged."""
    levels = sorted(json.dumps(_plain(lv), sort_keys=True) for lv in arm.config.level_configs().values())
    values = {k: v for k, v in checked(arm.config).to_dict().items() if k not in ("levels", "label", "choices")}
    return json.dumps([values, levels, arm.view], sort_keys=True, default=list)


def _plain(level: LevelConfig) -> dict[str, Any]:
    values = dict(vars(level))
    if level.period_steps is not None:
        values["gather"] = "mean" if period(level) == 1 else level.gather or "mean"
    return values
