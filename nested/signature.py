"""A callable's signature is its schema: names, types, defaults and bounds, read once and checked before the call."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import math
import pkgutil
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Union

from nested.errors import UserError, unknown

Context = frozenset(
    {
        "self",
        "params",
        "model",
        "sample_shape",
        "n_outputs",
        "vocabulary",
        "per_position",
        "token_levels",
        "tokenizer_mark",
        "root",
        "args",
        "kwargs",
    }
)


@dataclass(frozen=True)
class Bound:
    """The interval a number must lie in: `Annotated[int, Bound(ge=1)]`."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def holds(self, value: float) -> bool:
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )

    def __str__(self) -> str:
        signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
        return " and ".join(
            f"{sign} {getattr(self, name):g}" for name, sign in signs.items() if getattr(self, name) is not None
        )


@dataclass(frozen=True)
class Argument:
    """One keyword of a component, as `nested show` prints it."""

    name: str
    annotation: Any
    default: Any
    required: bool

    def __str__(self) -> str:
        return spell(self.annotation)


def locate(target: str, key: str) -> Callable[..., Any]:
    """The object a dotted path names. Raises UserError when there is none, naming what is near."""
    module_name, _, name = target.rpartition(".")
    if not module_name:
        raise UserError("a dotted path such as mypackage.Thing is needed", key=key, seen=target)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise  # the module is there, something it needs is not: its own message says what
        raise UserError(
            f"cannot import {module_name!r} of {target!r}: no module named {error.name!r}; "
            "install it or put it in the current directory",
            key=key,
            seen=target,
        ) from None
    found = getattr(module, name, None)
    if found is None or inspect.ismodule(found):
        raise _no_component(target, module, key)
    return found


def _no_component(target: str, module: types.ModuleType, key: str) -> UserError:
    """The error for a target that is a module itself, or that its module does not have, with what there is."""
    name = target.rpartition(".")[2]
    if hasattr(module, "__path__") and importlib.util.find_spec(target):
        held = _held(importlib.import_module(target))
        text = f"{target!r} is a module; name what it holds: {', '.join(f'{target}.{n}' for n in held)}"
        return UserError(text, key=key, seen=target, allowed=held)
    return unknown(f"name in {module.__name__}:", name, _held(module), key)


def _held(module: types.ModuleType) -> list[str]:
    """What can be called in a module and comes from it or from one below it; where there is nothing, its modules."""
    public = {n: v for n, v in vars(module).items() if not n.startswith("_") and callable(v)}
    own = sorted(n for n, v in public.items() if str(getattr(v, "__module__", "")).startswith(module.__name__))
    return own[:40] or sorted(m.name for m in pkgutil.iter_modules(getattr(module, "__path__", [])))


def arguments(function: Callable[..., Any]) -> dict[str, Argument]:
    """Every keyword that a config may give to `function`; context arguments (data, shapes, parameters) are left out."""
    parameters = inspect.signature(function).parameters
    owner = function.__init__ if inspect.isclass(function) else function
    try:
        hints = typing.get_type_hints(owner, include_extras=True)
    except (NameError, TypeError):  # annotations that only a type checker can resolve: names are still checked
        hints = {}
    given: frozenset[str] = frozenset() if is_dataclass(function) else Context  # a section of our own has keys only
    made = {f.name: f.default_factory for f in fields(function)} if is_dataclass(function) else {}
    found = {}
    for name, parameter in parameters.items():
        if name in given or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        required = parameter.default is inspect.Parameter.empty
        factory = made.get(name, MISSING)
        default = None if required else parameter.default if factory is MISSING else factory()
        found[name] = Argument(name, hints.get(name, Any), default, required)
    return found


def wants_maker(argument: Argument) -> bool:
    """Whether a section given for it is handed over as a `Callable` that builds it, not as what it builds."""
    parts = (argument.annotation, *typing.get_args(argument.annotation))  # `Callable | None` is a union
    return any(typing.get_origin(part) is Callable for part in parts)


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether `function` has a parameter of that name."""
    parameters = inspect.signature(function).parameters
    return name in parameters


def accepts(function: Callable[..., Any], count: int) -> bool:
    """Whether `function` can be called with that many values, none of them by name."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    return True


def pair(result: Any, whose: str, wanted: str, key: str | None = None) -> tuple[Any, Any]:
    """The two values that a callable of the user's is to return. Raises UserError where it did not."""
    if isinstance(result, tuple) and len(result) == 2:
        return result
    seen = type(result).__name__ + (f" of {len(result)}" if isinstance(result, tuple) else "")
    raise UserError(f"{whose} returned a {seen}; {wanted} is needed", key=key, seen=seen, allowed=wanted)


def checked(
    function: Callable[..., Any], values: Mapping[str, Any], where: str, later: Collection[str] = ()
) -> dict[str, Any]:
    """`values`, each coerced to its declared type. Raises UserError for an unknown or missing key, type or bound.

    Keys named in `later` come from elsewhere and may be missing.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{values!r} is not allowed; its keys are given one by one", key=where, seen=values)
    known = arguments(function)
    result = {}
    for name, value in values.items():
        if name not in known:
            raise unknown("key", f"{where}.{name}", [f"{where}.{k}" for k in known])
        result[name] = value_of(value, known[name].annotation, f"{where}.{name}")
    missing = [n for n, a in known.items() if a.required and n not in values and n != "seed" and n not in later]
    if missing:
        raise UserError(
            f"a value is needed: {where}.{missing[0]}=... ({known[missing[0]]})", key=f"{where}.{missing[0]}"
        )
    return result


def value_of(value: Any, annotation: Any, key: str) -> Any:
    """`value` as its annotation wants it. Raises UserError naming key, value seen and what is allowed."""
    if value == "???":
        raise UserError(f"a value is needed: {key}=... ({spell(annotation)})", key=key)
    if isinstance(value, Mapping) and "_target_" in value:
        return value  # a nested component: checked when it is built
    accepted, result = _coerce(value, annotation, key)
    if not accepted:
        allowed, shown = spell(annotation), repr(value)
        hint = ""
        words = [str(w) for w in _words(annotation)]
        near = difflib.get_close_matches(value, words, 1) if isinstance(value, str) else []
        if near and near[0] != value:
            hint = f" (did you mean {near[0]!r}?)"
        elif isinstance(value, float) and not math.isfinite(value):
            hint, value = " (it must be finite)", str(value)  # as text: JSON has no word for it
        raise UserError(f"{shown} is not allowed{hint}; allowed: {allowed}", key=key, seen=value, allowed=allowed)
    return result


def _coerce(value: Any, annotation: Any, key: str) -> tuple[bool, Any]:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        accepted, result = _coerce(value, inner[0], key)
        bounds = [b for b in inner[1:] if isinstance(b, Bound)]
        number = isinstance(result, int | float) and not isinstance(result, bool)
        return accepted and all(b.holds(result) for b in bounds if number), result
    if origin is Literal:
        return value in inner, value
    if origin in (Union, types.UnionType):
        for option in inner:
            accepted, result = _coerce(value, option, key)
            if accepted:
                return True, result
        return False, value
    if origin in (list, tuple):
        if isinstance(value, str) or not isinstance(value, list | tuple):
            return False, value
        items = inner if _fixed(annotation) else (inner[0] if inner else Any,) * len(value)
        if len(items) != len(value):
            return False, value
        return True, origin(value_of(v, a, f"{key}[{i}]") for i, (v, a) in enumerate(zip(value, items, strict=True)))
    return _plain(value, annotation)


def _plain(value: Any, annotation: Any) -> tuple[bool, Any]:
    if annotation is type(None) or annotation is None:
        return value is None, value
    if annotation is bool:
        return isinstance(value, bool), value
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    if annotation is float:
        accepted = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return accepted, float(value) if accepted else value
    if annotation is Path:
        return isinstance(value, str), Path(value) if isinstance(value, str) else value
    kind = typing.get_origin(annotation) or annotation
    if annotation is Any or not inspect.isclass(kind) or getattr(kind, "_is_protocol", False):
        return True, value  # nothing that could be asked of a plain value
    return isinstance(value, kind), value


def _fixed(annotation: Any) -> bool:
    """Whether it is a tuple of a given length, such as `tuple[float, float]`."""
    inner = typing.get_args(annotation)
    return typing.get_origin(annotation) is tuple and bool(inner) and inner[-1] is not Ellipsis


def _words(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) is Literal:
        return list(typing.get_args(annotation))
    return [w for part in typing.get_args(annotation) for w in _words(part)]


def spell(annotation: Any) -> str:
    """An annotation in words: `int >= 1`, `hard | blurry | none`, `float or null`."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return " ".join([spell(inner[0]), *(str(b) for b in inner[1:] if isinstance(b, Bound))])
    if origin is Literal:
        return " | ".join(str(w) for w in inner)
    if origin is Callable:
        return "a section with a _target_"
    if origin in (Union, types.UnionType):
        return " or ".join(s for s in (spell(a) for a in inner) if s != "Tensor")
    if _fixed(annotation):
        return f"[{', '.join(spell(a) for a in inner)}]"
    if origin in (list, tuple):
        return f"list of {spell(inner[0]) if inner else 'any'}"
    if annotation is type(None):
        return "null"
    return "any" if annotation is Any else getattr(annotation, "__name__", str(annotation))


def build(section: Mapping[str, Any], where: str, **context: Any) -> Any:
    """Call the `_target_` of a config section with its checked values and the context its signature asks for.

    Values that are sections themselves are built first, with the same context; where the signature wants a `Callable`
    it gets one that builds the section, as often as it is called and with what more context it is given.
    """
    values = {k: v for k, v in section.items() if k != "_target_"}
    function = locate(section["_target_"], f"{where}._target_")
    known = arguments(function)
    values = checked(function, values, where, context)
    for name, value in values.items():
        if isinstance(value, Mapping) and "_target_" in value:
            maker = partial(_made, value, f"{where}.{name}", context)
            values[name] = maker if wants_maker(known[name]) else maker()
    for name, value in context.items():
        if takes(function, name) and values.get(name) is None:
            values[name] = value
    try:
        return function(**values)
    except UserError as error:
        raise _placed(error, {n for n in known if n not in context}, where) from None
    except ValueError as error:  # how a constructor refuses an argument, torch's optimizers for example
        text = f"{section['_target_']} refuses these values: {error}"
        raise UserError(text, key=where, seen=dict(section)) from error


def _made(section: Mapping[str, Any], where: str, context: Mapping[str, Any], **given: Any) -> Any:
    """A section that is a value of another's, built with what the other one gives it. Raises UserError for a rival."""
    for name in given:
        if section.get(name) is not None:
            outer = where.rpartition(".")[0]
            text = f"{outer} itself gives it; leave it out"
            raise UserError(text, key=f"{where}.{name}", seen=section[name])
    return build(section, where, **context, **given)


def _placed(error: UserError, own: Collection[str], where: str) -> UserError:
    """The error of a component with the key that a config has for it: the component knows its group and no more."""
    group, _, name = (error.key or "").partition(".")
    return error.at(f"{where}.{name}") if group == where.partition(".")[0] and name in own else error


def summary(function: Callable[..., Any]) -> str:
    """The first sentence of a docstring, for `nested list`."""
    text = inspect.getdoc(function) or ""
    return " ".join(text.split("\n\n")[0].split())
