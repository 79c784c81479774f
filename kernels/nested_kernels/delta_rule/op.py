"""The delta rule as one function: arguments checked, a form chosen, precision kept.

Both forms are plain differentiable torch: first and higher orders of differentiation are exact in both.

Shapes: B batch, T tokens, H heads, K key, V value.
"""

from __future__ import annotations

from functools import reduce
from typing import Literal, get_args

import torch
from torch import Tensor

from nested_kernels.delta_rule.chunked import delta_rule_chunked
from nested_kernels.delta_rule.reference import delta_rule_reference
from nested_kernels.delta_rule.rule import Objective, Read, Retain, Rule, State

Backend = Literal["auto", "reference", "chunked"]
CHUNK = 32  # the fastest or near it from 50 to 1,024 tokens on a CPU, for heads of 16 to 64
FEW = 4  # tokens for which the loop is as fast as a chunk
Axes = {"q": "BHTK", "k": "BHTK", "v": "BHTV", "eta": "BHT", "alpha": "BHT"}
Axes |= dict.fromkeys(("state", "state.anchor", "initial"), "BHVK")


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    alpha: Tensor,
    state: Tensor | State,
    *,
    objective: Objective = "l2",
    rule: Rule = "dgd",
    anchor: int = 1,
    read: Read = "cumulative",
    retain: Retain = "zero",
    initial: Tensor | None = None,
    chunk: int | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, State]:
    """Read T tokens: q, k (B, H, T, K), v (B, H, T, V), eta, alpha (B, H, T) -> y (B, H, T, V), the state after them.

    rule "dgd": M_t = M_{t-1} (alpha_t I - eta_t k_t k_t^T) - eta_t grad; "gd" has no erase term. The gradient is that
    of `objective` ("dot", "l2", "l2_doubled") at M_xi, where xi(t) = anchor * floor((t - 1) / anchor); anchor 1 is the
    exact recurrence. retain "initial" decays towards `initial` (B, H, V, K) instead of towards zero.
    read "cumulative": y_t = M_{t-1} q_t; "after": M_t q_t; "anchor": M_xi q_t.

    `state` is a memory (B, H, V, K), which begins an anchor chunk, or the State of an earlier call with the same
    options: pieces give what the whole gives. All is computed, and the state kept, in float32, or in float64 where an
    operand is float64; y has the dtype of v. `chunk` is the chunk length of the chunked form (with an anchor it is the
    anchor). Differentiable to any order. Raises ValueError that names the argument, what was seen and what is allowed.
    """
    options = {"objective": objective, "rule": rule, "read": read, "retain": retain, "backend": backend}
    for (name, seen), words in zip(options.items(), (Objective, Rule, Read, Retain, Backend)):
        if seen not in get_args(words):
            raise ValueError(f"delta_rule: {name} is {seen!r}; allowed: {', '.join(get_args(words))}")
    state = state if isinstance(state, State) else State(state)
    _check_lengths(anchor, chunk, state)
    _check_tensors(q, k, v, eta, alpha, state, retain, initial)
    out, dtype = v.dtype, _dtype(q, k, v, eta, alpha, state.memory)
    q, k, v, eta, alpha = (x.to(dtype) for x in (q, k, v, eta, alpha))
    state = State(state.memory.to(dtype), None if state.anchor is None else state.anchor.to(dtype), state.position)
    initial = None if initial is None else initial.to(dtype)
    given = {"objective": objective, "rule": rule, "anchor": anchor, "read": read, "initial": initial}
    with torch.autocast(q.device.type, enabled=False):  # which would compute the state in half precision
        if backend == "reference" or (backend == "auto" and q.shape[2] <= FEW):
            y, state = delta_rule_reference(q, k, v, eta, alpha, state, **given)
        else:
            y, state = delta_rule_chunked(q, k, v, eta, alpha, state, chunk=chunk or CHUNK, **given)
    return y.to(out), state


def _dtype(*tensors: Tensor) -> torch.dtype:
    """That of the most precise operand, at least float32."""
    return reduce(torch.promote_types, (x.dtype for x in tensors), torch.float32)


def _check_lengths(anchor: int, chunk: int | None, state: State) -> None:
    for name, length in (("anchor", anchor), ("chunk", chunk)):
        if length is not None and length < 1:
            raise ValueError(f"delta_rule: {name} is {length}; 1 or more is allowed")
    if anchor > 1 and chunk not in (None, anchor):
        raise ValueError(f"delta_rule: chunk is {chunk} with anchor {anchor}; allowed: none, or {anchor}")
    if not 0 <= state.position < anchor:
        raise ValueError(f"delta_rule: state.position is {state.position}; with anchor {anchor} it is below {anchor}")
    if (state.anchor is None) != (state.position == 0):
        has = "no anchor" if state.anchor is None else "an anchor"
        raise ValueError(
            f"delta_rule: state has {has} at position {state.position}; it has one exactly where a chunk is open"
        )


def _check_tensors(
    q: Tensor, k: Tensor, v: Tensor, eta: Tensor, alpha: Tensor, state: State, retain: Retain, initial: Tensor | None
) -> None:
    given = {"q": q, "k": k, "v": v, "eta": eta, "alpha": alpha, "state": state.memory}
    held = {"state.anchor": state.anchor, "initial": initial}
    given |= {name: x for name, x in held.items() if x is not None}
    for name, x in given.items():
        if not isinstance(x, Tensor):
            seen = "None" if x is None else f"a {type(x).__name__}"
            raise ValueError(f"delta_rule: {name} is {seen}; a tensor ({', '.join(Axes[name])}) is needed")
    if q.ndim != 4 or v.ndim != 4 or not q.shape[0] or not q.shape[2]:
        raise ValueError(
            f"delta_rule: q is {tuple(q.shape)}, v {tuple(v.shape)}; allowed: (B, H, T, K) and (B, H, T, V), "
            "B and T > 0"
        )
    if (initial is None) != (retain == "zero"):
        raise ValueError(f"delta_rule: retain is {retain!r}, so initial must{' not' * (retain == 'zero')} be given")
    sizes = {"V": v.shape[3], **dict(zip("BHTK", q.shape))}
    for name, x in given.items():
        shape = tuple(sizes[axis] for axis in Axes[name])
        if x.shape != shape:
            raise ValueError(
                f"delta_rule: {name} is {tuple(x.shape)}; beside q {tuple(q.shape)} and v {tuple(v.shape)} "
                f"it must be {shape}"
            )
        if not x.is_floating_point():
            raise ValueError(f"delta_rule: {name} is {x.dtype}; floating-point dtypes are allowed")
        if x.device != q.device:
            raise ValueError(f"delta_rule: {name} is on {x.device} and q on {q.device}; one device is allowed")
