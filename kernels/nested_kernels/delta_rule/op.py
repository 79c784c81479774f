"""The delta rule as one function: arguments checked, a form chosen, precision kept.

Order of differentiation: "reference" and "chunked" any, both plain torch; "triton" one, and a second raises; "auto"
any, since it takes second and higher orders from the chunked form, whatever computed the first. Compiled code has one,
whatever the backend, and refuses a backward pass that keeps its graph (`orders.py`).

Shapes: B batch, T tokens, H heads, K key, V value.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from nested_kernels.arguments import (
    check_length,
    check_operands,
    check_position,
    check_retention,
    check_tensor,
    check_words,
    widest,
)
from nested_kernels.backend import chosen, form_of, without_autocast, without_triton
from nested_kernels.delta_rule.chunked import delta_rule_chunked
from nested_kernels.delta_rule.reference import delta_rule_reference
from nested_kernels.delta_rule.rule import Objective, Read, Retain, Rule, State
from nested_kernels.orders import once_if_compiled

Backend = Literal["auto", "reference", "chunked", "triton"]
CHUNK = 32  # the fastest or near it from 50 to 1,024 tokens on a CPU, for heads of 16 to 64
FEW = 4  # tokens for which the loop is as fast as a chunk
WIDEST = 128  # K in Triton: a block of the memory and a chunk of keys lie in registers
LONGEST = {torch.bfloat16: 64, torch.float32: 16}  # tokens of a chunk in Triton, for their registers
MOST = 65_000  # chunks: an axis of the grid of CUDA's
WORDS = {"objective": Objective, "rule": Rule, "read": Read, "retain": Retain}
ALLOWED = {name: get_args(words) for name, words in WORDS.items()}
BACKENDS = get_args(Backend)
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
    options: pieces give what the whole gives. What is returned shares no memory with it, but an anchor that stays open
    is handed on as it is. All is computed, and the state kept, in float32, or in float64 where an operand is float64; y
    has the dtype of v. `chunk` is the chunk length of the chunked form (with an anchor it is the anchor).

    `backend` "auto" is Triton on a CUDA device, for K up to 128 and any V, else torch. Where q, k and v are all
    bfloat16, Triton multiplies them as such, adds up in float32, and takes chunks (`anchor` or `chunk`) of up to 64
    tokens; else it multiplies in float32 and takes up to 16. Of a longer chunk it takes as many at a time, as decoding
    does. Differentiable to any order, with "triton" once. Raises ValueError that names the argument, what was seen and
    what is allowed.
    """
    named = chosen("delta_rule", backend, BACKENDS)
    check_words("delta_rule", {"objective": objective, "rule": rule, "read": read, "retain": retain}, ALLOWED)
    state = state if isinstance(state, State) else State(state)
    _check_lengths(anchor, chunk, state)
    _check_tensors(q, k, v, eta, alpha, state, retain, initial)
    out, dtype = v.dtype, widest(q, k, v, eta, alpha, state.memory)
    half = q.dtype == k.dtype == v.dtype == torch.bfloat16
    narrow = torch.bfloat16 if half else dtype  # in which Triton multiplies
    fitting = anchor if anchor > 1 else chunk or LONGEST.get(narrow, CHUNK)
    operands = (q, k, v, eta, alpha, *state[:2], initial)
    plain = "reference" if q.shape[2] <= FEW else "chunked"
    unfit = partial(_unfit, dtype, narrow, fitting, state.position, q)
    form = form_of("delta_rule", backend, named, plain, q.is_cuda, unfit, operands)
    narrow = narrow if form == "triton" else dtype
    q, k, v, eta, alpha = q.to(narrow), k.to(narrow), v.to(narrow), eta.to(dtype), alpha.to(dtype)
    state = State(state.memory.to(dtype), None if state.anchor is None else state.anchor.to(dtype), state.position)
    initial = None if initial is None else initial.to(dtype)
    given = {"objective": objective, "rule": rule, "anchor": anchor, "read": read, "initial": initial}
    begun = state.anchor is None and q.shape[2] < anchor  # the chunk whose anchor is the memory that is given
    held = state.memory
    with without_autocast(q):  # which would compute the state in half precision
        if form == "reference":
            y, state = delta_rule_reference(q, k, v, eta, alpha, state, **given)
        elif form == "chunked":
            y, state = delta_rule_chunked(q, k, v, eta, alpha, state, chunk=chunk or CHUNK, **given)
        else:
            from nested_kernels.delta_rule.library import recurrence  # needs Triton

            given["recurrence"] = partial(recurrence, again=backend == "auto")
            y, state = delta_rule_chunked(q, k, v, eta, alpha, state, chunk=fitting, **given)
    anchored = held.clone() if begun else state.anchor
    memory, anchored = (None if x is None else once_if_compiled(x) for x in (state.memory, anchored))
    return once_if_compiled(y.to(out)), state._replace(memory=memory, anchor=anchored)


def _unfit(dtype: torch.dtype, narrow: torch.dtype, length: int, position: int, q: Tensor) -> str | None:
    """Why Triton cannot do it."""
    tokens = q.shape[2]
    if q.shape[3] > WIDEST:
        return f"q has K = {q.shape[3]}; at most {WIDEST} is allowed"
    if dtype != torch.float32:
        return f"an operand is {dtype}; float32 and bfloat16 are allowed"
    if tokens > MOST * length:
        return f"there are more than {MOST} chunks of {length} tokens"
    if position + tokens <= length:  # all in one chunk
        length = tokens
    if length > LONGEST[narrow]:
        bf16, fp32 = LONGEST.values()
        return f"a chunk has {length} tokens; at most {bf16} are allowed where q, k and v are bfloat16, else {fp32}"
    return without_triton(q.device)


def _check_lengths(anchor: int, chunk: int | None, state: State) -> None:
    for name, length in (("anchor", anchor), ("chunk", chunk)):
        if length is not None:
            check_length("delta_rule", name, length)
    if anchor > 1 and chunk not in (None, anchor):
        raise ValueError(f"delta_rule: chunk is {chunk} with anchor {anchor}; allowed: none, or {anchor}")
    check_position("delta_rule", anchor, state.position, state.anchor is not None)


def _check_tensors(
    q: Tensor, k: Tensor, v: Tensor, eta: Tensor, alpha: Tensor, state: State, retain: Retain, initial: Tensor | None
) -> None:
    given = {"q": q, "k": k, "v": v, "eta": eta, "alpha": alpha, "state": state.memory}
    held = {"state.anchor": state.anchor, "initial": initial}
    given |= {name: x for name, x in held.items() if x is not None}
    for name, x in given.items():
        check_tensor("delta_rule", name, x, Axes[name])
    if q.ndim != 4 or v.ndim != 4 or not all(q.shape) or not all(v.shape):
        raise ValueError(
            f"delta_rule: q is {tuple(q.shape)}, v {tuple(v.shape)}; allowed: (B, H, T, K) and (B, H, T, V), "
            "all at least 1"
        )
    check_retention("delta_rule", retain, initial is not None)
    sizes = {"V": v.shape[3], **dict(zip("BHTK", q.shape))}
    check_operands("delta_rule", given, Axes, sizes, {"q": q, "v": v})
