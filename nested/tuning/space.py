"""The space of a search: one dimension for each config path, its checks, its defaults, its grid.

A dimension is a range {low, high, log, step} or {choices: [...]}. There is no second encoding: a value is drawn,
spelled as an override, and composed like any other.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from nested.config import flatten
from nested.errors import UserError
from nested.settings import Config, Groups
from nested.signature import Bound, arguments, checked, locate

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

Scalar = str | int | float | bool | None
Compose = Callable[[list[str]], Config]
BOUNDS = ("low", "high", "log", "step", "choices")
MOST_POINTS = 10_000  # of a grid


@dataclass(frozen=True)
class Dimension:
    """One config path and the values it may take: whole numbers where both bounds are, else fractions."""

    path: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None
    choices: tuple[Scalar, ...] | None = None

    @property
    def whole(self) -> bool:
        """Whether it is a range of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def distribution(self) -> BaseDistribution:
        """As Optuna models it."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices is not None:
            return CategoricalDistribution(self.choices)
        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def suggest(self, trial: Trial) -> Scalar:
        """The trial's value: the one it has, or a new one."""
        d = self.distribution()
        if self.choices is not None:
            return trial.suggest_categorical(self.path, self.choices)
        if self.whole:
            return trial.suggest_int(self.path, d.low, d.high, step=d.step, log=d.log)  # type: ignore[attr-defined]
        return trial.suggest_float(self.path, d.low, d.high, step=d.step, log=d.log)  # type: ignore[attr-defined]

    def holds(self, value: Any) -> bool:
        """Whether `value` is one of those it may take."""
        if self.choices is not None:
            return any(value == c and isinstance(value, bool) == isinstance(c, bool) for c in self.choices)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if not self.low <= value <= self.high or (self.whole and value != int(value)):
            return False
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return abs(steps - round(steps)) < 1e-8

    def points(self) -> list[Scalar]:
        """Every value, for a grid. Raises UserError for a range of fractions without a step."""
        if self.choices is not None:
            return list(self.choices)
        if self.low == self.high:
            return [self.low]
        step = self.step or (1 if self.whole else None)
        if step is None:
            text = "a grid needs `step`, or `choices`, since a range of fractions has no end of points"
            raise UserError(text, key=f"tune.space.{self.path}", seen=self.as_dict())
        count = math.floor((self.high - self.low) / step + 1e-8) + 1
        return [self.low + i * step for i in range(count)]

    def ends(self) -> Sequence[Scalar]:
        """The bounds of a range, or all choices."""
        return self.choices if self.choices is not None else (self.low, self.high)

    def as_dict(self) -> dict[str, Any]:
        """What a file would say of it."""
        if self.choices is not None:
            return {"choices": list(self.choices)}
        return {k: v for k, v in asdict(self).items() if k in BOUNDS and v is not None and v is not False}


@dataclass(frozen=True)
class _Range:
    low: float
    high: float
    log: bool = False
    step: Annotated[float, Bound(gt=0)] | None = None


def read(space: Mapping[str, Any]) -> list[Dimension]:
    """The dimensions of a section `space`, each sound in itself. Raises UserError."""
    if not space:
        raise UserError("nothing is searched; name a config path and its bounds", key="tune.space", seen={})
    return [_dimension(str(path), section) for path, section in space.items()]


def _dimension(path: str, section: Any) -> Dimension:
    key = f"tune.space.{path}"
    if not isinstance(section, Mapping):
        text = f"{section!r} is not allowed; {{low: 1, high: 8}} or {{choices: [1, 2]}} is needed"
        raise UserError(text, key=key, seen=section)
    if "choices" in section:
        return Dimension(path, choices=_choices(section, key))
    values = checked(_Range, section, key)
    whole = all(isinstance(section.get(n, 1), int) for n in ("low", "high", "step"))
    values = {n: int(v) if whole and n != "log" and v is not None else v for n, v in values.items()}
    _check_range(Dimension(path, **values), key)
    return Dimension(path, **values)


def _choices(section: Mapping[str, Any], key: str) -> tuple[Scalar, ...]:
    found = section["choices"]
    others = sorted(set(section) - {"choices"})
    if others:
        raise UserError(f"{', '.join(others)} and choices exclude each other; drop one", key=key, seen=dict(section))
    if not isinstance(found, Sequence) or isinstance(found, str) or not found:
        raise UserError(f"{found!r} is not allowed; a list of one or more values", key=f"{key}.choices", seen=found)
    for value in found:
        if value is not None and not isinstance(value, str | int | float | bool):
            text = f"{value!r} is no number, word, true, false or null; search single values, or choices"
            raise UserError(text, key=f"{key}.choices", seen=value)
    twice = [v for i, v in enumerate(found) if v in found[:i]]
    if twice:
        raise UserError(f"{twice[0]!r} is in it twice; leave one out", key=f"{key}.choices", seen=list(found))
    return tuple(found)


def _check_range(d: Dimension, key: str) -> None:
    """Raise UserError for bounds that no value fits between."""
    if d.low > d.high:
        text = f"low {d.low:g} lies above high {d.high:g}; exchange them"
        raise UserError(text, key=key, seen=[d.low, d.high])
    if d.log and d.low <= 0:
        raise UserError(f"a logarithmic range begins above 0, here at {d.low:g}", key=f"{key}.low", seen=d.low)
    if d.log and d.step is not None:
        raise UserError("log and step exclude each other; drop one", key=key, seen=d.as_dict())
    if d.step is not None and not d.holds(d.high):
        last = d.low + math.floor((d.high - d.low) / d.step) * d.step
        text = f"{d.high:g} is no whole number of steps from low; {last:g} is"
        raise UserError(text, key=f"{key}.high", seen=d.high, allowed=last)


def fitted(dimensions: Iterable[Dimension], compose: Compose) -> list[Dimension]:
    """The dimensions, each bound having been composed. Raises UserError for an unknown path or a value out of bounds.

    Whole bounds of a path that takes fractions make a range of fractions.
    """
    return [_fitted(d, compose) for d in dimensions]


def _fitted(d: Dimension, compose: Compose) -> Dimension:
    composed = [value_at(compose([override(d.path, v)]), d.path) for v in d.ends()]
    if d.choices is None and d.whole and isinstance(composed[0], float):
        return replace(d, low=float(d.low), high=float(d.high), step=d.step and float(d.step))
    return d


def value_at(config: Config, path: str) -> Any:
    """The value at a dotted path, the choice of a group, or the default in a component's signature; else None."""
    if path in Groups and path in config.choices:
        return config.choices[path]
    flat = flatten(config.to_dict())
    if path in flat:
        return flat[path]
    where, _, name = path.rpartition(".")
    target = flat.get(f"{where}._target_")
    known = arguments(locate(str(target), where)) if target else {}
    return known[name].default if name in known else None


def defaults(dimensions: Iterable[Dimension], config: Config) -> tuple[dict[str, Scalar], list[str]]:
    """What the config itself has at each path, and a sentence for each default that the space does not hold."""
    fixed, notes = {}, []
    for d in dimensions:
        value = value_at(config, d.path)
        if d.holds(value):
            fixed[d.path] = int(value) if d.choices is None and d.whole else value
        else:
            notes.append(
                f"the default {d.path}={spelled(value)} is not in {_shown(d)}: trial 0 has a value of the space there, "
                "so that it is not the default configuration"
            )
    return fixed, notes


def _shown(d: Dimension) -> str:
    if d.choices is not None:
        return f"[{', '.join(map(spelled, d.choices))}]"
    return f"{d.low:g} to {d.high:g}" + (f" in steps of {d.step:g}" if d.step else "")


def override(path: str, value: Scalar) -> str:
    """`path=value` as the command line takes it."""
    return f"{path}={spelled(value)}"


def told(values: Mapping[str, Scalar]) -> str:
    """A point of the space in a sentence."""
    return " ".join(f"{k}={v:.4g}" if isinstance(v, float) else override(k, v) for k, v in values.items())


def spelled(value: Any) -> str:
    """A scalar as Hydra's grammar reads it back."""
    if isinstance(value, str):
        return _quoted(value) if _ambiguous(value) else value
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _quoted(text: str) -> str:
    """In quotes; a backslash means itself but before a quote or the end."""
    doubled = re.sub(r"(\\+)(?='|$)", r"\1\1", text)
    return "'" + doubled.replace("'", "\\'") + "'"


def _ambiguous(text: str) -> bool:
    """Whether a word would be read as something else without quotes."""
    return not text.replace("_", "a").isalnum() or not text[0].isalpha() or text.lower() in ("null", "true", "false")


def grid(dimensions: Sequence[Dimension], first: Mapping[str, Scalar]) -> list[dict[str, Scalar]]:
    """Every combination of values, the one with the values `first` at the front. Raises UserError for too many."""
    points = [d.points() for d in dimensions]
    count = math.prod(map(len, points))
    if count > MOST_POINTS:
        text = f"a grid of {count} trials; at most {MOST_POINTS}: take fewer values, or sampler=tpe"
        raise UserError(text, key="tune.sampler", seen=count, allowed=MOST_POINTS)
    every = [dict(zip((d.path for d in dimensions), row)) for row in itertools.product(*points)]
    return sorted(every, key=lambda row: row != dict(first))
