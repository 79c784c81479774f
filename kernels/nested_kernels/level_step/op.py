"""A step of all levels as one function: arguments checked, a form chosen.

Order of differentiation: none. It is an optimizer's step; a call for which autograd would record something raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import increment_version
from torch.nn import Parameter

from nested_kernels.alike import alike
from nested_kernels.arguments import FLOATING, check_floating
from nested_kernels.backend import chosen, fall_back, transformed, without_triton
from nested_kernels.level_step.chunked import level_step_chunked
from nested_kernels.level_step.reference import level_step_reference
from nested_kernels.level_step.rule import Form, LevelRule, Shape, state_dtype

Backend = Literal["auto", "reference", "chunked", "triton"]
BACKENDS = get_args(Backend)
PLAIN = {Tensor, Parameter}  # whose memory is what their address says
NUMBERS = ("lr", "momentum", "beta", "weight_decay", "eps", "scale")  # of a rule
NUMERIC = (float, int)  # a union would be made anew for each number
LEAST = 1e-15  # of eps: its square is not 0 in float32
NARROW = (torch.float32, torch.bfloat16, torch.float16)
TORCH = {"reference": level_step_reference, "chunked": level_step_chunked}


def level_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momenta: Sequence[Tensor],
    rules: LevelRule | Sequence[LevelRule],
    *,
    levels: Sequence[int] | None = None,
    gathered: Sequence[Tensor | None] | None = None,
    due: Sequence[bool] | Tensor | None = None,
    backend: Backend = "auto",
) -> None:
    """Gather, and where a level is due make a step of Delta Momentum, in place: params, momenta and gathered change.

    Tensor i belongs to level `levels[i]`, which learns by `rules[levels[i]]`; without `levels` to the only one. What it
    has gathered, `gathered[i]`, gets its gradient added. Where `due` says so of the level, or says nothing, g =
    scale * what is gathered + weight_decay * parameter; the momentum becomes `delta_momentum` of it and is added to the
    parameter, and nothing is gathered any more. A tensor that gathers nothing (None) uses its gradient when due, and is
    left alone when not.

    Momenta and what is gathered are float32 (float64 beside float64 parameters), contiguous. `due` may be a tensor
    (levels,) of bool, on the device; in the vector form with Triton the host does not wait for it.

    `backend` "auto" is Triton for vectors on a CUDA device, else torch in place; matrices of one shape are multiplied
    in batches, for which there is no kernel: "triton" refuses them. What is written shares no memory with anything else
    that is given. Not differentiable. Raises ValueError that names the argument, what was seen and what is allowed.
    """
    named = chosen("level_step", backend, BACKENDS)
    rules = [rules] if isinstance(rules, LevelRule) else rules
    _check_rules(rules)
    given = {"params": params, "grads": grads, "momenta": momenta, "gathered": [] if gathered is None else gathered}
    _check_lists(given)
    gathered = [None] * len(params) if gathered is None else gathered
    levels = [0] * len(params) if levels is None else levels
    _check_tensors(params, grads, momenta, gathered, levels, len(rules))
    _check_due(due, len(rules), params[0].device)
    written = [*params, *momenta, *(x for x in gathered if x is not None)]
    _check_derivative([*grads, *written])
    _check_memory(grads, written)
    step = _Tensors(params, grads, momenta, gathered, levels)
    if named in TORCH or (named == "auto" and not params[0].is_cuda):
        _in_torch(named, step, rules, due)
        return
    kinds = [
        (p.dtype, g.dtype) if p.ndim < 2 or rules[level].shape == "vector" else "matrix"
        for p, g, level in zip(params, grads, levels)
    ]
    parts = [(kinds[same[0]], step.at(same)) for same in alike(kinds)]
    reasons = [
        (_no_kernel(part) if named == "triton" else None) if kind == "matrix" else _unfit(part) for kind, part in parts
    ]
    why = next((reason for reason in reasons if reason), None)
    if why and backend == "triton":
        raise ValueError(f"level_step: backend is 'triton', and {why}")
    for (kind, part), reason in zip(parts, reasons):
        if reason:
            fall_back("level_step", "chunked", reason)
        if reason or kind == "matrix":
            _in_torch("chunked", part, rules, due)
        else:
            _in_triton(part, rules, due)


class _Tensors(NamedTuple):
    params: Sequence[Tensor]
    grads: Sequence[Tensor]
    momenta: Sequence[Tensor]
    gathered: Sequence[Tensor | None]
    levels: Sequence[int]

    def at(self, places: Sequence[int]) -> _Tensors:
        chosen: Any = ([xs[i] for i in places] for xs in self)
        return _Tensors(*chosen)


def _in_torch(form: str, step: _Tensors, rules: Sequence[LevelRule], due: Sequence[bool] | Tensor | None) -> None:
    with torch.no_grad():
        TORCH.get(form, level_step_chunked)(*step, rules, _flags(due, len(rules)))


def _in_triton(step: _Tensors, rules: Sequence[LevelRule], due: Sequence[bool] | Tensor | None) -> None:
    from nested_kernels.level_step import library  # needs Triton

    params, grads, momenta, gathered, levels = step
    on_device = isinstance(due, Tensor)
    rows = library.table_of_rules(rules, _flags(None if on_device else due, len(rules)), params[0].device)
    if on_device:
        rows[:, 0] = due
    some = any(x is not None for x in gathered)
    held = [rows.new_empty(0) if x is None else x for x in gathered] if some else []
    grads = [g if g.is_contiguous() else g.contiguous() for g in grads]
    if torch.compiler.is_compiling():
        library.step(params, grads, momenta, held, levels, rows)
    else:  # the same without the dispatcher, which takes half a millisecond for 900 tensors
        library.step_(params, grads, momenta, held, levels, rows)
        increment_version([*params, *momenta, *held])


def _flags(due: Sequence[bool] | Tensor | None, levels: int) -> list[bool]:
    if due is None:
        return [True] * levels
    return [bool(x) for x in (due.tolist() if isinstance(due, Tensor) else due)]


def _no_kernel(step: _Tensors) -> str:
    return f"rules[{step.levels[0]}].shape is 'matrix', for tensors of two dimensions or more; 'vector' is allowed"


def _unfit(step: _Tensors) -> str | None:
    """Why Triton cannot do it."""
    params, grads, momenta, gathered, _ = step
    for name, x in (("params", params[0]), ("grads", grads[0])):
        if x.dtype not in NARROW:
            return f"{name} has {x.dtype}; float32, bfloat16 and float16 are allowed"
    for name, xs in (("params", params), ("grads", grads), ("momenta", momenta), ("gathered", gathered)):
        if strange := {type(x) for x in xs if x is not None} - PLAIN:
            return f"{name} has a {strange.pop().__name__}; plain tensors are allowed"
    if not all(p.is_contiguous() for p in params):
        return "params has a tensor that is not contiguous"
    return without_triton(params[0].device)


def _check_derivative(operands: Sequence[Tensor]) -> None:
    """An in-place step under autograd would lose its derivative, or have that of half of it."""
    seen = transformed(*(operands if forward_ad._current_level >= 0 else ()))
    if seen is None and torch.is_grad_enabled() and any(x.requires_grad for x in operands):
        seen = "an operand requires a gradient while autograd records"
    if seen:
        raise ValueError(f"level_step: {seen}; an optimizer's step has no derivative: call it under torch.no_grad()")


def _check_rules(rules: Sequence[LevelRule]) -> None:
    if not isinstance(rules, Sequence) or isinstance(rules, str) or not rules:
        raise ValueError(f"level_step: rules is {rules!r}; a LevelRule, or a list of one or more, is allowed")
    for i, rule in enumerate(rules):
        if not isinstance(rule, LevelRule):
            raise ValueError(f"level_step: rules[{i}] is {rule!r}; a LevelRule is needed")
        for name in NUMBERS:
            seen = getattr(rule, name)
            if not isinstance(seen, NUMERIC) or not -inf < seen < inf:
                raise ValueError(f"level_step: rules[{i}].{name} is {seen!r}; finite numbers are allowed")
        if rule.form == "normalised" and not rule.eps >= LEAST:
            raise ValueError(f"level_step: rules[{i}].eps is {rule.eps}; {LEAST} or more is allowed")
        for name, seen, allowed in (("form", rule.form, get_args(Form)), ("shape", rule.shape, get_args(Shape))):
            if seen not in allowed:
                raise ValueError(f"level_step: rules[{i}].{name} is {seen!r}; allowed: {', '.join(allowed)}")


def _check_due(due: Sequence[bool] | Tensor | None, rules: int, device: torch.device) -> None:
    """Flags that can be read: of the host, or in a tensor there or on the device of params."""
    if due is None:
        return
    if not isinstance(due, Tensor | Sequence):
        raise ValueError(f"level_step: due is {due!r}; a list of {rules} flags, or a tensor ({rules},), is allowed")
    shape = tuple(due.shape) if isinstance(due, Tensor) else (len(due),)
    if shape != (rules,):
        raise ValueError(f"level_step: due is {shape}; beside {rules} rules it must be ({rules},)")
    if not isinstance(due, Tensor):
        if strange := [i for i, now in enumerate(due) if not isinstance(now, bool)]:
            raise ValueError(f"level_step: due[{strange[0]}] is {due[strange[0]]!r}; True or False is allowed")
        return
    if due.dtype is not torch.bool:
        raise ValueError(f"level_step: due is {due.dtype}; torch.bool is allowed")
    if due.device.type == "meta" or (due.device != device and due.device.type != "cpu"):
        where = "cpu" if device.type in ("cpu", "meta") else f"cpu or {device}"
        raise ValueError(f"level_step: due is on {due.device} and params on {device}; flags on {where} are allowed")


def _check_lists(given: dict[str, Sequence[Tensor | None]]) -> None:
    for name, xs in given.items():
        if not isinstance(xs, Sequence):
            raise ValueError(f"level_step: {name} is a {type(xs).__name__}; a list of tensors is needed")
        for i, x in enumerate(xs):
            if not isinstance(x, Tensor) and not (x is None and name == "gathered"):
                raise ValueError(f"level_step: {name}[{i}] is {x!r}; a tensor is needed")


def _check_memory(read: Sequence[Tensor], written: Sequence[Tensor]) -> None:
    """No tensor is written twice, or read beside; parts of one another are not looked for, which would take long."""
    if torch.compiler.is_compiling() or {type(x) for x in (*read, *written)} - PLAIN:
        return  # they may have no address
    addresses = [at for x in written if (at := x.data_ptr())]  # 0 where there is no element, or no memory
    once = set(addresses)
    if len(once) < len(addresses) or not once.isdisjoint([x.data_ptr() for x in read]):
        raise ValueError(
            "level_step: two of params, momenta and gathered, or one of them and one of grads, have the same memory; "
            "what is written has its own"
        )


def _check_tensors(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momenta: Sequence[Tensor],
    gathered: Sequence[Tensor | None],
    levels: Sequence[int],
    rules: int,
) -> None:
    if not params:
        raise ValueError("level_step: params is empty; one tensor or more is allowed")
    if not isinstance(levels, Sequence):
        raise ValueError(f"level_step: levels is a {type(levels).__name__}; a list of integers is needed")
    given = {"params": params, "grads": grads, "momenta": momenta, "gathered": gathered, "levels": levels}
    for name, xs in given.items():
        if len(xs) != len(params):
            raise ValueError(f"level_step: {name} has {len(xs)} entries; as params it must have {len(params)}")
    if strange := [level for level in levels if not isinstance(level, int)]:
        raise ValueError(f"level_step: levels has {strange[0]!r}; integers are allowed")
    if not all(0 <= level < rules for level in levels):
        raise ValueError(f"level_step: levels has {min(levels)} to {max(levels)}; allowed: 0 to {rules - 1}")
    shapes, device = [p.shape for p in params], params[0].device
    states = [state_dtype(p.dtype) for p in params]
    for name, xs in (("params", params), ("grads", grads), ("momenta", momenta), ("gathered", gathered)):
        places = [i for i, x in enumerate(xs) if x is not None]
        there = [x for x in xs if x is not None]
        _check_each(name, "shape", places, [x.shape for x in there], shapes)
        _check_each(name, "device", places, [x.device for x in there], [device] * len(params))
        _check_each(name, "layout", places, [x.layout for x in there], [torch.strided] * len(params))
        if name in ("momenta", "gathered"):
            _check_each(name, "dtype", places, [x.dtype for x in there], states)
            if apart := [i for i, x in zip(places, there) if not x.is_contiguous()]:
                raise ValueError(f"level_step: {name}[{apart[0]}] is not contiguous; contiguous tensors are allowed")
        elif not {x.dtype for x in there}.issubset(FLOATING):
            for i, x in zip(places, there):
                check_floating("level_step", f"{name}[{i}]", x)


def _check_each(name: str, what: str, places: list[int], seen: list[Any], of_params: list[Any]) -> None:
    """Lists are compared as a whole: one by one, hundreds of tensors would take longer than the step."""
    needed = of_params if len(places) == len(of_params) else [of_params[i] for i in places]
    if seen != needed:
        i, x, y = next((i, x, y) for i, x, y in zip(places, seen, needed) if x != y)
        x, y = (tuple(z) if what == "shape" else z for z in (x, y))
        raise ValueError(f"level_step: {name}[{i}] has {what} {x}; beside params[{i}] it must have {y}")
