"""The central noun: a level is some parameters, the clock on which they learn, and how.

No optimizer and no autograd here: the engines (`optim/leveled.py` for the stream clock) import this file, never the
other way round. Source: Nested Learning, section 3.2, definitions 2 and 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from nested.errors import UserError, nearest

if TYPE_CHECKING:
    from torch import nn

    from nested.config import LevelConfig

FEWEST_TICKS = 10  # a level that ticks fewer times in a run has hardly learned: an error unless it is asked for


@dataclass(frozen=True)
class Level:
    """Parameters that learn together: at every `period`-th tick of a clock, by one rule, from a gathered gradient."""

    name: str
    params: tuple[str, ...] | Literal["rest"]  # globs over parameter names; rest: all that no other level names
    period: int = 1  # optimizer steps (stream clock) or tokens (token clock)
    clock: Literal["stream", "token"] = "stream"
    gather: Literal["mean", "sum"] = "mean"  # Eq. 71 prints a sum; on the stream clock a mean is the default
    rule: Mapping[str, Any] | None = None  # optimizer section; None = the run's
    lr_scale: float = 1.0  # multiplies the rule's rate


def due(level: Level, tick: int) -> bool:
    """Whether the level learns at `tick` (1, 2, ...): i = 0 (mod C) in Eq. 71."""
    return tick % level.period == 0


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
            clock="stream" if c.period_steps else "token",
            gather=c.gather,
            rule=c.optim,
            lr_scale=c.lr_scale,
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


def _one_rest(levels: Sequence[Level]) -> None:
    rest = [level.name for level in levels if level.params == "rest"]
    if len(rest) > 1:
        raise UserError(
            f"only one level may have params: rest, here {' and '.join(rest)}", key=f"levels.{rest[1]}.params"
        )


def _matched(level: Level, names: Sequence[str]) -> list[str]:
    for glob in level.params:
        if not any(fnmatchcase(name, glob) for name in names):
            shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
            raise UserError(
                f"glob {glob!r} matches no parameter{nearest(glob, names)}; the model has: {shown}",
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
            raise UserError(
                f"period {level.period} gives {n} updates in {steps} steps, fewer than {FEWEST_TICKS}; "
                f"take a period of at most {max(1, steps // FEWEST_TICKS)}, more epochs, or trainer.allow_idle=true",
                key=f"levels.{level.name}.period_steps",
                seen=level.period,
            )
