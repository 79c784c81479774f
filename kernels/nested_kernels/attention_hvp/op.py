"""Attention as one function: arguments checked, a form chosen, precision kept.

Order of differentiation: "reference" any; "chunked" and "triton" two (a third raises and says so), and so "auto" for
more than a few tokens; "fused" one (a second raises): torch's own fused attention, for what no inner gradient passes.
Compiled code has one, whatever the backend, and refuses a backward pass that keeps its graph (`orders.py`).

Shapes: B batch, T tokens (queries), N keys and values, H heads, K head size.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from nested_kernels.arguments import check_device, check_floating, check_length, check_tensor
from nested_kernels.attention_hvp.chunked import attention_hvp_chunked
from nested_kernels.attention_hvp.reference import attention_hvp_reference, hidden
from nested_kernels.backend import chosen, form_of, without_autocast, without_triton
from nested_kernels.orders import once_if_compiled

Backend = Literal["auto", "reference", "chunked", "triton", "fused"]
BLOCK = 64  # the fastest or near it on a CPU, for windows of 64 and 512 and without one, heads of 32 and 64
FEW = 16  # tokens for which all scores at once are faster (1.3 to 1.9 times, most shapes); that is still linear in N
WIDEST = 128  # head size in Triton: rows of queries and keys, and two sums of them, lie in registers


def attention_hvp(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None = None,
    backend: Backend = "auto",
    *,
    block: int | None = None,
) -> Tensor:
    """q (B, T, H, K), k and v (B, N, H, K), N >= T -> (B, T, H, K): causal attention with scale 1 / sqrt(K).

    Queries are the last T of the N positions: query t stands at N - T + t and sees the `window` keys that end with its
    own position, or without a window all keys up to it.

    Differentiable twice, with "reference" to any order. The chunked form, `block` queries at a time (nothing to the
    other forms), and Triton keep memory linear in T and N. `backend` "auto" is Triton on a CUDA device, for heads of
    up to 128, else chunked; for 16 queries or fewer it is the formula. Computed in float32, or in float64 where the
    operands are float64; Triton multiplies bfloat16 operands as such and adds up in float32. The result has the dtype
    of the operands. So are the derivatives; an autocast around the differentiation reaches those of "reference".
    Raises ValueError that names the argument, what was seen and what is allowed.
    """
    named = chosen("attention_hvp", backend, get_args(Backend))
    for name, length in (("window", window), ("block", block)):
        if length is not None:
            check_length("attention_hvp", name, length)
    _check_tensors(q, k, v)
    out, dtype = q.dtype, torch.promote_types(q.dtype, torch.float32)
    plain, on_device = ("reference", False) if q.shape[1] <= FEW else ("chunked", q.is_cuda)
    form = form_of("attention_hvp", backend, named, plain, on_device, partial(_unfit, dtype, q), (q, k, v))
    narrow = out if form == "triton" and out == torch.bfloat16 else dtype
    q, k, v = (x.to(narrow) for x in (q, k, v))
    with without_autocast(q):  # which would add up in half precision
        if window is not None:
            k, v = (x[:, -(q.shape[1] - 1 + window) :] for x in (k, v))  # the keys that some query sees
        if form == "reference":
            y = attention_hvp_reference(q, k, v, window=window)
        elif form == "fused":
            y = _fused(q, k, v, window)
        elif form == "chunked":
            y = attention_hvp_chunked(q, k, v, window=window, block=block or BLOCK)
        else:
            from nested_kernels.attention_hvp.library import attention  # needs Triton

            y, _ = attention(q, k, v, min(window or k.shape[1], k.shape[1]))
    return once_if_compiled(y.to(out))


def _unfit(dtype: torch.dtype, q: Tensor) -> str | None:
    """Why Triton cannot do it."""
    if q.shape[3] > WIDEST:
        return f"q has K = {q.shape[3]}; at most {WIDEST} is allowed"
    if dtype != torch.float32:
        return f"the operands are {dtype}; float32, bfloat16 and float16 are allowed"
    return without_triton(q.device)


def _fused(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """torch's fused attention; a second derivative, for which torch may have none, always raises."""
    square = q.shape[1] == k.shape[1] and (window is None or window >= k.shape[1])
    mask = None if square else hidden(q.shape[1], k.shape[1], window, q)
    operands = (_Once.apply(x, True).transpose(1, 2) for x in (q, k, v))  # (B, H, ., K)
    return F.scaled_dot_product_attention(*operands, attn_mask=mask, is_causal=square).transpose(1, 2)


class _Once(torch.autograd.Function):
    """The identity, of which a second derivative raises: whether torch's kernel has one depends on the kernel."""

    @staticmethod
    def forward(x: Tensor, first: bool) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, bool], output: Tensor) -> None:
        ctx.first = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if ctx.first:
            return _Once.apply(grad, False), None  # type: ignore[return-value]
        text = 'attention_hvp: "fused" is differentiable once; take "chunked" (twice) or "reference" (any order)'
        raise NotImplementedError(text)


def _check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        axes = "BTHK" if name == "q" else "BNHK"
        check_tensor("attention_hvp", name, x, axes)
        if x.ndim != 4 or not x.numel():
            allowed = f"({', '.join(axes)}), each 1 or more"
            raise ValueError(f"attention_hvp: {name} is {tuple(x.shape)}; allowed: {allowed}")
        check_floating("attention_hvp", name, x)
        if x.dtype != q.dtype:
            raise ValueError(f"attention_hvp: {name} is {x.dtype} and q {q.dtype}; one dtype is allowed")
        check_device("attention_hvp", name, x, "q", q.device)
    (b, t, h, size), n = q.shape, k.shape[1]
    if k.shape != (b, n, h, size) or n < t:
        allowed = f"beside q {tuple(q.shape)} it must be ({b}, N, {h}, {size}) with N of {t} or more"
        raise ValueError(f"attention_hvp: k is {tuple(k.shape)}; {allowed}")
    if v.shape != k.shape:
        raise ValueError(f"attention_hvp: v is {tuple(v.shape)}; as k it must be {tuple(k.shape)}")
