"""The two-layer memory as one function: arguments checked, a form chosen, precision kept.

Order of differentiation: "reference" and "chunked" any, both plain torch; "triton" one, and a second raises; "auto"
any, since it takes second and higher orders from the chunked form, whatever computed the first. Compiled code has one,
whatever the backend, and refuses a backward pass that keeps its graph (`orders.py`).

Shapes: B batch, T tokens, H heads, N memories that share tokens, K head width, E hidden width.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, get_args

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
from nested_kernels.delta_rule import Objective, Retain, Rule
from nested_kernels.mlp_memory.chunked import mlp_memory_chunked
from nested_kernels.mlp_memory.reference import mlp_memory_reference
from nested_kernels.mlp_memory.rule import Erase, MLPState, Read, Values, Weights, all_of, both, write_of
from nested_kernels.orders import once_if_compiled

Backend = Literal["auto", "reference", "chunked", "triton"]
# K, and tokens of a chunk, in Triton: keys, and blocks of both layers as wide as they, lie in registers
LARGEST = {torch.bfloat16: ((64, 64), (128, 32)), torch.float32: ((64, 16),)}
WORDS = {"objective": Objective, "rule": Rule, "erase": Erase, "values": Values, "read": Read, "retain": Retain}
ALLOWED = {name: get_args(words) for name, words in WORDS.items()}
BACKENDS = get_args(Backend)
Axes = {"q": "BHTK", "k": "BHTK", "v": "BHTK", "eta": "BHT", "alpha": "BHT", "beta": "BHT"}
PAIRS = ("state.weights", "state.anchor", "state.momentum", "initial")
Axes |= {f"{pair}.{part}": axes for pair in PAIRS for part, axes in (("up", "BHNEK"), ("down", "BHNKE"))}


def mlp_memory(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    alpha: Tensor,
    state: Weights | MLPState,
    *,
    beta: Tensor | None = None,
    objective: Objective = "l2",
    rule: Rule = "dgd",
    erase: Erase = "every",
    values: Values = "given",
    bounded: bool = True,
    anchor: int = 1,
    read: Read = "cumulative",
    retain: Retain = "zero",
    initial: Weights | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor | None, MLPState]:
    """Read T tokens: q, k, v (B, H, T, K), rates (B, H, T) -> y (B, H, T, K) or None, the state after them.

    M(x) = x + down gelu(up x), N of them for each head: up (B, H, N, E, K), down (B, H, N, K, E). All are written by
    the same k, v and rates, each layer by W_t = alpha_t W_{t-1} - eta_t (grad + W_{t-1} x x^T) with its input x; rule
    "gd", and `erase` "input" for `down`, have no second term. The gradient is that of `objective` ("dot", "l2",
    "l2_doubled") of M(k_t) and v_t, or with values "own" of M(k_t) and M(v_t), the latter taken for a constant. It, x
    and M(v_t) are of the weights M_xi with xi(t) = anchor * floor((t - 1) / anchor); anchor 1 is the exact recurrence.
    `bounded` divides the eta of `down` by max(1, |x|^2). `beta` is that of Titans' momentum, None is none. retain
    "initial" decays towards `initial` instead of towards zero. The first of the N memories is read: y_t = M_{t-1}(q_t)
    with read "cumulative", M_t(q_t) with "after", none where q is None.

    `state` is weights, which begin an anchor chunk, or the MLPState of an earlier call with the same options: pieces
    give what the whole gives. What is returned shares no memory with it, but an anchor that stays open is handed on as
    it is. All is computed, and the state kept, in float32, or in float64 where an operand is
    float64; y has the dtype of v.

    `backend` "auto" is Triton on a CUDA device, else torch. Where q, k and v are all bfloat16, Triton multiplies them
    as such, adds up in float32, and takes chunks of up to 64 tokens for K up to 64, of up to 32 for K up to 128; else
    it multiplies in float32 and takes up to 16, for K up to 64. Of a longer `anchor` it takes as many at a time, as
    decoding does. Momentum it takes with rule "gd". Differentiable to any order, with "triton" once. Raises ValueError
    that names the argument, what was seen and what is allowed.
    """
    named = chosen("mlp_memory", backend, BACKENDS)
    words = {"objective": objective, "rule": rule, "erase": erase, "values": values, "read": read, "retain": retain}
    check_words("mlp_memory", words, ALLOWED)
    state = state if isinstance(state, MLPState) else MLPState(state)
    _check_state(anchor, state, beta)
    tensors = {"q": q, "k": k, "v": v, "eta": eta, "alpha": alpha, "beta": beta}
    tensors |= _parts(dict(zip(PAIRS, (*state[:3], initial))))
    _check_tensors(tensors, retain)
    out, dtype = v.dtype, widest(*tensors.values())
    half = k.dtype == v.dtype == torch.bfloat16 and (q is None or q.dtype == torch.bfloat16)
    narrow = torch.bfloat16 if half else dtype  # in which Triton multiplies
    unfit = partial(_unfit, dtype, narrow, min(anchor, k.shape[2]), beta is not None and rule != "gd", k)
    form = form_of("mlp_memory", backend, named, "chunked", k.is_cuda, unfit, tensors.values())
    narrow = narrow if form == "triton" else dtype

    def wide(x: Tensor) -> Tensor:
        return x.to(dtype)

    q, k, v = None if q is None else q.to(narrow), k.to(narrow), v.to(narrow)
    eta, alpha, beta = wide(eta), wide(alpha), None if beta is None else wide(beta)
    state, initial = all_of(wide, state), None if initial is None else both(wide, initial)
    begun = state.anchor is None and k.shape[2] < anchor  # the chunk whose anchor is the weights that are given
    held = state.weights
    given: dict[str, Any] = {"write": write_of(objective, rule, erase, values, bounded), "anchor": anchor}
    given |= {"read": read, "initial": initial}
    with without_autocast(k):  # which would compute the state in half precision
        if form == "reference":
            y, state = mlp_memory_reference(q, k, v, eta, alpha, beta, state, **given)
        elif form == "chunked":
            y, state = mlp_memory_chunked(q, k, v, eta, alpha, beta, state, **given)
        else:
            from nested_kernels.mlp_memory.library import mlp_memory_triton  # needs Triton

            y, state = mlp_memory_triton(q, k, v, eta, alpha, beta, state, **given, again=backend == "auto")
    state = all_of(once_if_compiled, state._replace(anchor=both(torch.clone, held)) if begun else state)
    return None if y is None else once_if_compiled(y.to(out)), state


def _unfit(dtype: torch.dtype, narrow: torch.dtype, length: int, both: bool, k: Tensor) -> str | None:
    """Why Triton cannot do it."""
    if dtype != torch.float32:
        return f"an operand is {dtype}; float32 and bfloat16 are allowed"
    width = k.shape[3]
    if not any(width <= wide and length <= long for wide, long in LARGEST[narrow]):
        return f"k has K = {width} and a chunk {length} tokens; allowed: {_largest()}"
    if both:
        return "beta is given with rule 'dgd'; with momentum, rule 'gd' is allowed"
    return without_triton(k.device)


def _largest() -> str:
    sizes = [f"K up to {wide} and {long} tokens" for wide, long in LARGEST[torch.bfloat16]]
    wide, long = LARGEST[torch.float32][0]
    return f"{', '.join(sizes)} where q, k and v are bfloat16, else {wide} and {long}"


def _parts(pairs: dict[str, Weights | None]) -> dict[str, Tensor | None]:
    """Both layers of each pair, by name."""
    for name, pair in pairs.items():
        if pair is not None and not (isinstance(pair, tuple) and len(pair) == 2):
            raise ValueError(f"mlp_memory: {name} is a {type(pair).__name__}; Weights(up, down) are needed")
    parts = {name: pair if pair is not None else (None, None) for name, pair in pairs.items()}
    return {f"{name}.{part}": x for name, pair in parts.items() for part, x in zip(Weights._fields, pair)}


def _check_state(anchor: int, state: MLPState, beta: Tensor | None) -> None:
    check_length("mlp_memory", "anchor", anchor)
    check_position("mlp_memory", anchor, state.position, state.anchor is not None)
    if state.momentum is not None and beta is None:
        raise ValueError("mlp_memory: state has a momentum and beta is None; a tensor (B, H, T) is needed")


def _check_tensors(given: dict[str, Tensor | None], retain: Retain) -> None:
    optional = ("q", "beta", *(n for n in Axes if n.startswith(PAIRS[1:])))
    there = {name: x for name, x in given.items() if x is not None or name not in optional}
    for name, x in there.items():
        check_tensor("mlp_memory", name, x, Axes[name])
    check_retention("mlp_memory", retain, given["initial.up"] is not None)
    k, up = given["k"], given["state.weights.up"]
    assert k is not None
    assert up is not None
    if k.ndim != 4 or up.ndim != 5 or not all(k.shape) or not all(up.shape):
        raise ValueError(
            f"mlp_memory: k is {tuple(k.shape)}, state.weights.up {tuple(up.shape)}; allowed: (B, H, T, K) and "
            "(B, H, N, E, K), all at least 1"
        )
    sizes = {"N": up.shape[2], "E": up.shape[3], **dict(zip("BHTK", k.shape))}
    operands = {name: x for name, x in there.items() if x is not None}
    check_operands("mlp_memory", operands, Axes, sizes, {"k": k, "state.weights.up": up})
