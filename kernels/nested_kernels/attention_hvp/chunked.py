"""Attention for a block of queries at a time, with its first and second derivative from their formulas.

Nothing of size T x N is kept: q, k and v are saved, and the scores of a block are computed again in every pass. With
q already divided by sqrt(K), and J(X) = P * (X - rowsum(P * X)) the derivative of the softmax, which is symmetric,

    S = Q K^T;    P = softmax(S);    O = P V
    dP = dO V^T;    dS = J(dP);    dQ = dS K;    dK = dS^T Q;    dV = P^T dO

and, for cotangents U_Q, U_K, U_V of dQ, dK, dV, with X' = X - rowsum(P * X),

    F = U_Q K^T + Q U_K^T;    A = J(F);    R = J(F' * dP' + dO U_V^T)
    barQ = dS U_K + R K;    barK = dS^T U_Q + R^T Q;    barV = A^T dO;    bar(dO) = P U_V + A V

A block sees all keys of its queries: rowsums end with the block, and no logsumexp need be kept. What belongs to keys is
summed over the blocks that see them. The second derivative is not differentiable: a third one raises.

Shapes: G batch and heads, T tokens (queries), N keys and values, K head size, C queries of a block, M keys it sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from nested_kernels.attention_hvp.reference import hidden
from nested_kernels.backend import without_autocast

SCORES = 2**18  # of a block on a processor: more leave its cache
Part = tuple[slice, slice]
Needs = Sequence[bool]


def attention_hvp_chunked(q: Tensor, k: Tensor, v: Tensor, *, window: int | None, block: int) -> Tensor:
    """As `attention_hvp_reference`, in blocks of `block` queries; differentiable twice."""
    b, _, h, size = q.shape
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q * size**-0.5, k, v))  # (G, T or N, K)
    return _Attention.apply(q, k, v, window, block).unflatten(0, (b, h)).transpose(1, 2)


class _Attention(Function):
    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, window: int | None, block: int) -> Tensor:
        return _attend(q, k, v, window, block)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        *tensors, ctx.window, ctx.block = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor | None) -> tuple:
        if d_out is None:
            return (None,) * 5
        needs = ctx.needs_input_grad[:3]
        return *_Backward.apply(*ctx.saved_tensors, d_out, needs, ctx.window, ctx.block), None, None


class _Backward(Function):
    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, d_out: Tensor, needs: Needs, window: int | None, block: int) -> tuple:
        return _gradients(q, k, v, d_out, needs, window, block)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        *tensors, _, ctx.window, ctx.block = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *u: Tensor | None) -> tuple:
        if all(x is None for x in u):
            return (None,) * 7
        needs = ctx.needs_input_grad[:4]
        return *_SecondBackward.apply(*ctx.saved_tensors, *u, needs, ctx.window, ctx.block), None, None, None


class _SecondBackward(Function):
    @staticmethod
    def forward(*inputs: Any) -> tuple:
        return _second_gradients(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple:
        raise NotImplementedError(
            'attention_hvp: backend "chunked" is differentiable twice, and a third derivative was asked for; '
            'backend "reference" has it'
        )


def _attend(q: Tensor, k: Tensor, v: Tensor, window: int | None, block: int) -> Tensor:
    out = torch.empty_like(q)
    for rows, keys, bias in _blocks(q, k, window, block):
        out[rows] = _probabilities(q[rows], k[keys], bias) @ v[keys]
    return out


def _gradients(
    q: Tensor, k: Tensor, v: Tensor, d_out: Tensor, needs: Needs, window: int | None, block: int
) -> tuple[Tensor | None, ...]:
    """dQ, dK and dV, each where it is needed."""
    with without_autocast(q):  # of whoever differentiates
        dq, dk, dv = found = _zeros((q, k, v), needs)
        for rows, keys, bias in _blocks(q, k, window, block):
            p = _probabilities(q[rows], k[keys], bias)  # (G, C, M)
            _add(dv, keys, p.mT, d_out[rows])
            if dq is not None or dk is not None:
                ds = _centred(p, d_out[rows] @ v[keys].mT).mul_(p)  # (G, C, M)
                _add(dq, rows, ds, k[keys])
                _add(dk, keys, ds.mT, q[rows])
        return found


def _second_gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    d_out: Tensor,
    u_q: Tensor | None,
    u_k: Tensor | None,
    u_v: Tensor | None,
    needs: Needs,
    window: int | None,
    block: int,
) -> tuple[Tensor | None, ...]:
    """barQ, barK, barV and bar(dO), each where it is needed."""
    with without_autocast(q):
        bar_q, bar_k, bar_v, bar_d_out = found = _zeros((q, k, v, d_out), needs)
        for rows, keys, bias in _blocks(q, k, window, block):
            p = _probabilities(q[rows], k[keys], bias)  # (G, C, M)
            r = None if u_v is None else d_out[rows] @ u_v[keys].mT  # (G, C, M)
            _add(bar_d_out, rows, p, _at(u_v, keys))
            f = _scores((_at(u_q, rows), k[keys]), (q[rows], _at(u_k, keys)))
            if f is not None:
                f, dp = _centred(p, f), _centred(p, d_out[rows] @ v[keys].mT)  # (G, C, M)
                r = f * dp if r is None else r.addcmul_(f, dp)
                a, ds = f.mul_(p), dp.mul_(p)
                _add(bar_d_out, rows, a, v[keys])
                _add(bar_v, keys, a.mT, d_out[rows])
                _add(bar_q, rows, ds, _at(u_k, keys))
                _add(bar_k, keys, ds.mT, _at(u_q, rows))
            if bar_q is not None or bar_k is not None:
                assert r is not None
                r = _centred(p, r).mul_(p)
                _add(bar_q, rows, r, k[keys])
                _add(bar_k, keys, r.mT, q[rows])
        return found


def _blocks(q: Tensor, k: Tensor, window: int | None, block: int) -> Iterator[tuple[Part, Part, Tensor]]:
    """Where the queries of a block are in q, where the keys that they see are in k, and what hides keys (C, M)."""
    (g, t, _), n = q.shape, k.shape[1]
    bias = q.new_empty(0)
    for begin, end, start, stop in spans(t, n, window, block):
        if bias.shape != (shape := (end - begin, stop - start)):
            bias = hidden(*shape, window, q)
        heads = max(1, SCORES // bias.numel()) if q.device.type == "cpu" else g
        for head in range(0, g, heads):
            some = slice(head, head + heads)
            yield (some, slice(begin, end)), (some, slice(start, stop)), bias


def spans(t: int, n: int, window: int | None, block: int) -> Iterator[tuple[int, int, int, int]]:
    """Of each block of queries its begin and end, and those of the keys that it sees."""
    for begin in range(0, t, block):
        end = min(begin + block, t)
        yield begin, end, 0 if window is None else max(0, n - t + begin - window + 1), n - t + end


def _probabilities(q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
    return torch.baddbmm(bias, q, k.mT).softmax(-1)


def _centred(p: Tensor, x: Tensor) -> Tensor:
    """x less its mean under p, in place."""
    return x.sub_((p * x).sum(-1, keepdim=True))


def _zeros(like: Sequence[Tensor], needs: Needs) -> tuple[Tensor | None, ...]:
    return tuple(torch.zeros_like(x) if need else None for x, need in zip(like, needs))


def _at(x: Tensor | None, part: Part) -> Tensor | None:
    return None if x is None else x[part]


def _add(total: Tensor | None, part: Part, a: Tensor, b: Tensor | None) -> None:
    if total is not None and b is not None:
        sums = total[part]
        if torch.compiler.is_compiling():  # which has no `out` that is a part of something
            sums.baddbmm_(a, b)
        else:
            torch.baddbmm(sums, a, b, out=sums)  # a counter of FLOPs does not see baddbmm_


def _scores(*pairs: tuple[Tensor | None, Tensor | None]) -> Tensor | None:
    """The sum of a b^T over the pairs that are there."""
    total = None
    for a, b in pairs:
        if a is not None and b is not None:
            total = a @ b.mT if total is None else torch.baddbmm(total, a, b.mT, out=total)
    return total
