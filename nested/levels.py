"""The central noun: a level is some parameters, the clock on which they learn, and how.

No optimizer and no autograd here: the engines (`optim/leveled.py` for the stream clock, `inner.py` for the token clock)
import this file, never the other way round. Every trainable parameter has exactly one level on the stream clock; any
parameter may also be in at most one on the token clock, where each sequence has a copy of its own that starts from it.
Source: "Nested Learning" (arXiv 2512.24695v1) section 3.2, definitions 2 and 3; section 7.1 for the token clock.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from nested.errors import UserError, unknown
from nested.signature import Bound, checked, value_of

if TYPE_CHECKING:
    from torch import nn

Clock = Literal["stream", "token"]
Positive = Annotated[int, Bound(ge=1)]
Own = {
    "stream": ("period_steps", "lr_scale", "optim"),
    "token": ("chunk_tokens", "eta", "eta_warmup_steps", "clip_norm", "shift_norm", "reset"),
}
NEAREST = 6  # parameters shown where a glob matches none
FEWEST_TICKS = 10  # a level that ticks fewer times in a run has hardly learned: an error unless it is asked for


class Parametrised(Protocol):
    """Anything with named parameters, as a torch module has them."""

    def named_parameters(self) -> Iterator[tuple[str, Any]]: ...


@dataclass(frozen=True)
class LevelConfig:
    """One level: which parameters, on which clock, by which rule."""

    params: list[str] | str  # globs over parameter names, or `rest`: all that no other level names
    period_steps: Positive | None = None  # stream clock: optimizer steps between two updates
    chunk_tokens: Positive | None = None  # token clock: observed tokens between two updates
    eta: Annotated[float, Bound(ge=0)] | None = None  # token clock: inner rate, needed there
    eta_warmup_steps: Annotated[int, Bound(ge=0)] = 0  # token clock: optimizer steps in which eta rises from a tenth
    clip_norm: Annotated[float, Bound(gt=0)] | None = None  # token clock: norm of a sequence's gathered gradient
    shift_norm: Annotated[float, Bound(gt=0)] | None = None  # token clock: how far reading may move its weights, a norm
    reset: bool = False  # token clock: back to the initial state when the next slower level learns
    gather: Literal["mean", "sum"] | None = None  # gradients of a period; null = mean, or sum on the token clock
    lr_scale: Annotated[float, Bound(gt=0)] = 1.0  # stream clock: the level's rate as a multiple of its rule's
    optim: dict[str, Any] | None = None  # stream clock: null = the run's optimizer


@dataclass(frozen=True)
class Level:
    """Parameters that learn together: at every `period`-th tick of a clock, by one rule, from a gathered gradient.

    Raises UserError for what a config could not say either, with the key it has there (`period` is `period_steps` or
    `chunk_tokens`, `rule` is `optim`).
    """

    name: str
    params: tuple[str, ...] | Literal["rest"]  # globs over parameter names; rest: all that no other level names
    period: int = 1  # optimizer steps (stream clock) or tokens (token clock)
    clock: Clock = "stream"
    gather: Literal["mean", "sum"] | None = None  # None = mean on the stream clock, on the token clock Eq. 71's sum
    rule: Mapping[str, Any] | None = None  # stream clock: optimizer section; None = the run's
    lr_scale: float = 1.0  # stream clock: multiplies the rule's rate
    eta: float | None = None  # token clock: inner rate
    eta_warmup_steps: int = 0  # token clock: optimizer steps in which eta rises to its value, from a tenth of it
    clip_norm: float | None = None  # token clock: norm of one sequence's gathered gradient; None = no clipping
    shift_norm: float | None = None  # token clock: norm of one sequence's distance from the initial state; None = any
    reset: bool = False  # token clock: back to the initial state whenever the next slower level learns (Eq. 72)

    def __post_init__(self) -> None:
        clock = value_of(self.clock, Clock, f"levels.{self.name}.clock")
        same = ("params", "eta", "eta_warmup_steps", "clip_norm", "shift_norm", "reset", "gather", "lr_scale")
        section = {n: getattr(self, n) for n in same} | {Own[clock][0]: self.period, "optim": self.rule}
        params = level_config(self.name, section).params
        object.__setattr__(self, "params", params if isinstance(params, str) else tuple(params))
        if self.gather is None:
            object.__setattr__(self, "gather", "mean" if clock == "stream" else "sum")


def level_config(name: str, section: Any) -> LevelConfig:
    """One level's settings, checked: names, types, bounds, one clock and only its keys. Raises UserError."""
    key = f"levels.{name}"
    if not isinstance(section, Mapping):
        text = f"{section!r} is not allowed; a level is a mapping with params and period_steps"
        raise UserError(text, key=key, seen=section)
    strange = next((n for n in section if n not in {f.name for f in fields(LevelConfig)}), None)
    if strange is not None:
        raise unknown_key(name, section, f"{key}.{strange}")
    level = LevelConfig(**checked(LevelConfig, section, key))
    if (level.period_steps is None) == (level.chunk_tokens is None):
        text = "give period_steps (stream clock) or chunk_tokens (token clock), and not both"
        raise UserError(text, key=key, seen=dict(section))
    if level.params != "rest" and (isinstance(level.params, str) or not level.params):
        form = f"[{level.params!r}]" if level.params else "['blocks.*']"
        text = f"{level.params!r} is not allowed; a list of globs, such as {form}, or the word rest"
        raise UserError(text, key=f"{key}.params", seen=level.params)
    _check_clock(level, key)
    return level


def clock_of(section: Mapping[str, Any]) -> Clock:
    """The clock of a level's settings: that of the period they have."""
    return "stream" if section.get("chunk_tokens") is None else "token"


def unknown_key(name: str, section: Mapping[str, Any], path: str) -> UserError:
    """The error for a key `path` that no level has: the keys of this level's clock, its rate for another's `lr`."""
    clock = clock_of(section)
    other = Own["token" if clock == "stream" else "stream"]
    allowed = [f"levels.{name}.{f.name}" for f in fields(LevelConfig) if f.name not in other]
    error = unknown("key", path, allowed)
    if path != f"levels.{name}.lr":
        return error
    text = {
        "token": f"the inner rate of a level on the token clock is levels.{name}.eta",
        "stream": f"the rate of a level is the run's, optim.lr, times levels.{name}.lr_scale",
    }[clock]
    return UserError(f"a level has no lr; {text}", key=path, seen=path, allowed=error.allowed)


def _check_clock(level: LevelConfig, key: str) -> None:
    """Raise UserError for a key of the other clock, or an inner rate that is missing."""
    here = clock_of(vars(level))
    there = "token" if here == "stream" else "stream"
    plain = {f.name: f.default for f in fields(LevelConfig)}
    for name in Own[there]:
        if getattr(level, name) != plain[name]:
            text = f"belongs to the {there} clock, and this level is on the {here} clock; leave it out"
            raise UserError(text, key=f"{key}.{name}", seen=getattr(level, name))
    if here == "token" and level.eta is None:
        raise UserError("a level on the token clock needs its inner rate, a number >= 0", key=f"{key}.eta")


def due(level: Level, tick: int) -> bool:
    """Whether the level learns at `tick` (1, 2, ...): i = 0 (mod C) in Eq. 71."""
    return tick % level.period == 0


def eta_at(level: Level, step: int | None) -> float:
    """The inner rate at an outer step (0, 1, ...): from a tenth of eta straight up to eta; None is after the warm-up.

    The warm-up of TTT-E2E (arXiv 2512.23675), whose inner rate begins at a tenth.
    """
    warm = level.eta_warmup_steps
    share = 1.0 if step is None or step + 1 >= warm else 0.1 + 0.9 * (step + 1) / warm
    return share * (level.eta or 0.0)


def ticks(level: Level, first: int, last: int) -> int:
    """How often the level is due in steps first < t <= last."""
    return last // level.period - first // level.period


def from_config(section: Mapping[str, LevelConfig]) -> list[Level]:
    """The levels of a config, in its order."""
    return [
        Level(
            name=name,
            params="rest" if isinstance(c.params, str) else tuple(c.params),
            period=c.period_steps or c.chunk_tokens or 1,
            clock=clock_of(vars(c)),
            gather=c.gather,
            rule=c.optim,
            lr_scale=c.lr_scale,
            eta=c.eta,
            eta_warmup_steps=c.eta_warmup_steps,
            clip_norm=c.clip_norm,
            shift_norm=c.shift_norm,
            reset=c.reset,
        )
        for name, c in section.items()
    ]


def assign(levels: Sequence[Level], model: nn.Module) -> dict[str, list[str]]:
    """Stream level -> names of its parameters; each trainable parameter has exactly one.

    Raises UserError for a glob that matches nothing, a parameter in two levels or in none, a level with no parameter.
    """
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    stream = [level for level in levels if level.clock == "stream"]
    _one_rest(stream)
    found = {level.name: _matched(level, names) for level in stream if level.params != "rest"}
    owner = _owners(found)
    left = [name for name in names if name not in owner]
    rest = next((level.name for level in stream if level.params == "rest"), None)
    if rest is None and left:
        raise UserError(
            f"{len(left)} parameters are in no level, for example {left[0]!r}; give one level params: rest",
            key="levels",
            seen=left[:5],
        )
    if rest is not None:
        if not left:
            raise UserError(
                "nothing is left for it: the other levels name every parameter", key=f"levels.{rest}.params"
            )
        found[rest] = left
    return {level.name: found[level.name] for level in stream}


def token_levels(levels: Sequence[Level]) -> list[Level]:
    """Those on the token clock, fastest first; levels with equal chunks stay in their order."""
    return sorted((level for level in levels if level.clock == "token"), key=lambda level: level.period)


def assign_tokens(levels: Sequence[Level], model: Parametrised) -> dict[str, list[str]]:
    """Token level -> names of the parameters that are its initial state, fastest level first; frozen ones may be.

    Raises UserError for a glob that matches nothing, a parameter in two of them, chunks that are no multiples of the
    shortest or, where a level is reset, do not nest.
    """
    ordered = token_levels(levels)
    if not ordered:
        raise UserError("there is none on the token clock; give one chunk_tokens and eta", key="levels")
    names = [name for name, _ in model.named_parameters()]
    for level in ordered:
        if level.params == "rest":
            text = "a level on the token clock names its parameters; a list of globs is needed"
            raise UserError(text, key=f"levels.{level.name}.params", seen="rest")
    _check_nesting(ordered)
    found = {level.name: _matched(level, names) for level in ordered}
    _owners(found)
    return found


def next_slower(level: Level, levels: Sequence[Level]) -> Level | None:
    """The token level whose update ends the context of `level`; None for the slowest."""
    return next((other for other in token_levels(levels) if other.period > level.period), None)


def check_chunks(levels: Sequence[Level], tokens: int) -> None:
    """Raise UserError for a token level that never learns in a sequence of so many tokens (the last has no label)."""
    for level in token_levels(levels):
        if level.period > tokens - 1:
            raise UserError(
                f"a chunk of {level.period} tokens is longer than the sequence: {tokens} tokens have {tokens - 1} "
                f"labels; take at most {tokens - 1}, or longer sequences",
                key=f"levels.{level.name}.chunk_tokens",
                seen=level.period,
                allowed=tokens - 1,
            )


def check_whole_chunks(levels: Sequence[Level], tokens: int) -> None:
    """Raise UserError for sequences of so many tokens that are no whole number of a level's chunks."""
    for level in token_levels(levels):
        if tokens > level.period and tokens % level.period:
            near = _nearest_multiple(tokens, level.period)
            raise UserError(
                f"sequences of {tokens} tokens are no whole number of chunks of {level.period} (levels.{level.name}): "
                f"the last tokens would never be learned from; take {near} tokens, the nearest that is",
                key="stream.length",
                seen=tokens,
                allowed=f"multiples of {level.period}",
            )


def _check_nesting(ordered: Sequence[Level]) -> None:
    shortest = ordered[0]
    for level in ordered:
        if level.period % shortest.period:
            raise UserError(
                f"chunks of {level.period} tokens do not nest with those of {shortest.name!r}: a multiple of "
                f"{shortest.period} is needed, for example {_nearest_multiple(level.period, shortest.period)}",
                key=f"levels.{level.name}.chunk_tokens",
                seen=level.period,
                allowed=f"multiples of {shortest.period}",
            )
        slower = next_slower(level, ordered)
        if level.reset and slower is None:
            text = (
                "the slowest level has no slower one to be reset by; its context is the whole sequence: leave it false"
            )
            raise UserError(text, key=f"levels.{level.name}.reset", seen=True, allowed=False)
        if level.reset and slower is not None and slower.period % level.period:
            raise UserError(
                f"chunks of {slower.period} tokens do not hold whole chunks of {level.name!r}, which is reset at their "
                f"end: a multiple of {level.period} is needed, for example "
                f"{_nearest_multiple(slower.period, level.period)}",
                key=f"levels.{slower.name}.chunk_tokens",
                seen=slower.period,
                allowed=f"multiples of {level.period}",
            )


def _nearest_multiple(number: int, of: int) -> int:
    return max(1, round(number / of)) * of


def _owners(found: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Parameter -> its level. Raises UserError when it is in two."""
    owner: dict[str, str] = {}
    for level, members in found.items():
        for name in members:
            if name in owner:
                raise UserError(
                    f"parameter {name!r} is in two levels, {owner[name]!r} and {level!r}; make their globs disjoint",
                    key=f"levels.{level}.params",
                    seen=name,
                )
            owner[name] = level
    return owner


def _one_rest(levels: Sequence[Level]) -> None:
    rest = [level.name for level in levels if level.params == "rest"]
    if len(rest) > 1:
        raise UserError(
            f"only one level may have params: rest, here {' and '.join(rest)}", key=f"levels.{rest[1]}.params"
        )


def _matched(level: Level, names: Sequence[str]) -> list[str]:
    for glob in level.params:
        if not any(fnmatchcase(name, glob) for name in names):
            near = difflib.get_close_matches(glob, names, NEAREST, cutoff=0)
            more = f" and {len(names) - len(near)} more" if len(names) > len(near) else ""
            raise UserError(
                f"glob {glob!r} matches no parameter; the model has, nearest first: {', '.join(near)}{more}",
                key=f"levels.{level.name}.params",
                seen=glob,
                allowed=list(names),
            )
    return [name for name in names if any(fnmatchcase(name, glob) for glob in level.params)]


def check_ticks(levels: Sequence[Level], steps: int, allow_idle: bool) -> None:
    """Raise UserError for a level due fewer than 10 times in a run of `steps`, unless that is asked for."""
    for level in levels:
        n = ticks(level, 0, steps)
        if n < FEWEST_TICKS and not allow_idle:
            most = steps // FEWEST_TICKS
            raise UserError(
                f"period {level.period} gives {n} updates in {steps} steps, fewer than {FEWEST_TICKS}; "
                + (f"take a period of at most {most}, " if most else f"take {FEWEST_TICKS} steps or more by ")
                + "more epochs or more to train on, or take trainer.allow_idle=true",
                key=f"levels.{level.name}.period_steps",
                seen=level.period,
            )
