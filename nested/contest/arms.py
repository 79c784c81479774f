"""Who fights: an arm is a config and the set of its weights that is judged; how configs are changed into others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nested.config import Config, from_dict
from nested.levels import LevelConfig, clock_of

METHODS = "nested.methods"
NAIVE = f"{METHODS}.naive.Naive"
JOINT = f"{METHODS}.joint.Joint"
REPLAY = f"{METHODS}.replay.Replay"
HEAD = f"{METHODS}.associative_head.AssociativeHead"
EMA = f"{METHODS}.ema.EMA"
INNER = ("inner", "inner_loss", "truncate")  # options of a model that only levels on the token clock have a use for
EQUAL = 0.05  # FLOPs that differ by no more of the candidate's are called equal
Levels = dict[str, LevelConfig]


@dataclass(frozen=True)
class Facts:
    """What the controls depend on and a config does not say."""

    parameters: dict[str, int]  # stream level -> how many
    bytes: dict[str, int]  # stream level -> of its parameters, hence of a gathered gradient
    sample_bytes: int  # of a stored example with its target
    experiences: int
    flops: float  # of the candidate, forward and backward, per example
    bare_flops: float  # the same with all levels as one
    method_bytes: int = 0  # what the candidate's method keeps over the stream


@dataclass(frozen=True)
class Arm:
    """One who fights: its config at the candidate's rate, and the set of weights that is judged."""

    name: str  # of its directory, but for those that share a training
    title: str
    what: str  # in one sentence, what differs
    config: Config
    view: str | None = None  # None: the main one
    folder: str = ""  # "": the name

    @property
    def ordered(self) -> bool:
        """Whether it learns one experience after the other: else it has nothing to forget."""
        return self.config.method["_target_"] != JOINT

    @property
    def home(self) -> str:
        return self.folder or self.name


class Idle(Exception):
    """The control is of no use to this candidate."""


@dataclass(frozen=True)
class Absent:
    """A control that is left out, and why."""

    title: str
    why: str


def checked(config: Config) -> Config:
    """The same config as it comes back from a file. Raises UserError."""
    return from_dict(config.to_dict())


def scaled(config: Config, factor: float) -> Config:
    """Every level's outer rate times `factor`; inner rates (eta) are part of what the model computes."""
    if factor == 1.0:
        return config
    levels = {
        name: level if clock_of(vars(level)) == "token" else replace(level, lr_scale=level.lr_scale * factor)
        for name, level in config.level_configs().items()
    }
    return replace(config, levels=levels)


# -- levels ------------------------------------------------------------------------------------------------------------


def on_stream(config: Config) -> Levels:
    return {n: lv for n, lv in config.level_configs().items() if clock_of(vars(lv)) == "stream"}


def on_tokens(config: Config) -> Levels:
    return {n: lv for n, lv in config.level_configs().items() if clock_of(vars(lv)) == "token"}


def slow(config: Config) -> Levels:
    """Levels that do not learn at every step."""
    return {n: lv for n, lv in on_stream(config).items() if period(lv) > 1}


def period(level: LevelConfig) -> int:
    return level.period_steps or 1


def drift(level: LevelConfig) -> float:
    """Rate per step, as a multiple of its rule's: a mean of gathered gradients moves a level once in a period."""
    return level.lr_scale if level.gather == "sum" else level.lr_scale / period(level)


def with_levels(config: Config, levels: Mapping[str, LevelConfig]) -> Config:
    choices = {k: v for k, v in config.choices.items() if k not in ("levels", "recipe")}
    return replace(config, levels=dict(levels), choices=choices)


def with_method(config: Config, target: str, **options: Any) -> Config:
    choice = target.split(".")[-2]
    return replace(config, method={"_target_": target, **options}, choices={**config.choices, "method": choice})


def fastest(config: Config, facts: Facts) -> LevelConfig:
    """The level that learns most often; of several that with the most parameters."""
    levels = on_stream(config)
    return levels[min(levels, key=lambda n: (period(levels[n]), -facts.parameters[n]))]


def bare(config: Config, facts: Facts) -> Config:
    """An ordinary network: every parameter in one level that learns at every step, by the rule of the fastest."""
    rule = fastest(config, facts)
    one = LevelConfig(params="rest", period_steps=1, lr_scale=rule.lr_scale, optim=rule.optim)
    model = {k: v for k, v in config.model.items() if not (on_tokens(config) and k in INNER)}
    return with_method(with_levels(replace(config, model=model), {"all": one}), NAIVE)


def plain(config: Config, facts: Facts) -> Config:
    """An ordinary network at the candidate's FLOPs: where these are more for each example, it has more epochs.

    Raises Idle where no FLOPs are counted to make equal.
    """
    ordinary = bare(config, facts)
    if not on_tokens(config):  # the same computation, whatever is counted of it
        return ordinary
    if not facts.flops or not facts.bare_flops:
        raise Idle("no FLOPs are counted for the candidate, or for an ordinary network: they cannot be made equal")
    epochs = max(1, round(config.trainer.epochs * facts.flops / facts.bare_flops))
    return replace(ordinary, trainer=replace(config.trainer, epochs=epochs))
