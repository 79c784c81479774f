"""The Triton form of attention as torch ops: kernels launched, gradients registered, the order stated.

The forward pass, its backward pass and the backward pass of that are an op each, and each is the registered gradient of
the one before. The last is opaque: a third derivative raises and names the backend that has one, and so does one that
no backward pass makes. Kept between them are the operands, the output and the logsumexp of each query; the sums over
rows are computed again from these.

Shapes: B batch, T tokens (queries), N keys and values, H heads, K head size.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula
from triton import cdiv, next_power_of_2

from nested_kernels.attention_hvp import triton as kernels
from nested_kernels.attention_hvp.chunked import spans
from nested_kernels.attention_hvp.op import BLOCK
from nested_kernels.backend import transformed
from nested_kernels.launch import AotCase, launch

# Queries, keys, warps and stages of a tile for heads of up to so many entries: the largest that the compiler keeps in
# registers for sm_90, or nearly.
TILES: dict[torch.dtype, dict[str, dict[int, tuple[int, int, int, int]]]] = {
    torch.bfloat16: {
        "forward": {128: (128, 64, 8, 2)},
        "backward_rows": {128: (128, 64, 8, 2)},
        "backward_columns": {96: (64, 128, 8, 2), 128: (32, 128, 8, 2)},
        "second_rows": {128: (128, 32, 8, 2)},
        "second_columns": {64: (64, 128, 8, 2), 128: (32, 128, 8, 2)},
    },
    torch.float32: {
        "forward": {128: (128, 32, 8, 1)},
        "backward_rows": {96: (128, 32, 8, 1), 128: (16, 16, 4, 2)},
        "backward_columns": {64: (32, 128, 8, 1), 128: (16, 16, 4, 2)},
        "second_rows": {64: (32, 16, 4, 2), 128: (16, 16, 4, 2)},
        "second_columns": {64: (16, 64, 8, 1), 128: (16, 16, 4, 2)},
    },
}
Two = tuple[Tensor, Tensor]
Three = tuple[Tensor, Tensor, Tensor]
Four = tuple[Tensor, Tensor, Tensor, Tensor]


def forward(q: Tensor, k: Tensor, v: Tensor, window: int) -> Two:
    """O, and the logsumexp of each query's scores, of base 2 (B, T, H); one dtype, a window of at most N."""
    x = _Call(q, k, window)
    q, k, v = (t.contiguous() for t in (q, k, v))
    out, lse = torch.empty_like(q), x.of_queries()
    x.over_queries(kernels.forward, q, k, v, out, lse)
    return out, lse


def backward(d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, window: int) -> Three:
    """Gradients of q, k and v."""
    x = _Call(q, k, window)
    d_out, q, k, v, out, lse = (t.contiguous() for t in (d_out, q, k, v, out, lse))
    dq, dk, dv, sums = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), x.of_queries()
    x.over_queries(kernels.backward_rows, d_out, q, k, v, out, lse, dq, sums)
    x.over_keys(kernels.backward_columns, d_out, q, k, v, lse, sums, dk, dv)
    return dq, dk, dv


def second(
    u_q: Tensor,
    u_k: Tensor,
    u_v: Tensor,
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    window: int,
) -> Four:
    """Gradients of d_out, q, k and v, given those of `backward`'s results; through `out` and `lse` as well."""
    x = _Call(q, k, window)
    given = [t.contiguous() for t in (u_q, u_k, u_v, d_out, q, k, v)]
    out, lse = out.contiguous(), lse.contiguous()
    bar_d_out, bar_q, bar_k, bar_v = (torch.empty_like(t) for t in given[3:])
    of_rows = [x.of_queries() for _ in range(3)]
    x.over_queries(kernels.second_rows, *given, out, lse, bar_q, bar_d_out, *of_rows)
    x.over_keys(kernels.second_columns, *given, lse, *of_rows, bar_k, bar_v)
    return bar_d_out, bar_q, bar_k, bar_v


class _Call:
    """One call's sizes, and its launches over blocks of queries or of keys."""

    def __init__(self, q: Tensor, k: Tensor, window: int):
        (self.b, self.t, self.h, self.size), self.n = q.shape, k.shape[1]
        self.window, self.like = window, q

    def of_queries(self) -> Tensor:
        """A number for each query of each head."""
        return self.like.new_empty(self.b, self.t, self.h, dtype=torch.float32)

    def over_queries(self, kernel: Any, *tensors: Tensor) -> None:
        self._over(kernel, self.t, 0, *tensors)

    def over_keys(self, kernel: Any, *tensors: Tensor) -> None:
        self._over(kernel, self.n, 1, *tensors)

    def _over(self, kernel: Any, rows: int, axis: int, *tensors: Tensor) -> None:
        *tile, warps, stages = tile_of(kernel.__name__, self.like.dtype, self.size)
        constants = {
            "SCALE": self.size**-0.5,
            "H": self.h,
            "K": self.size,
            "SIZES": sizes_of(self.size, self.like.dtype),
        }
        constants |= dict(zip(("BM", "BN"), tile))
        grid = (self.b * self.h * cdiv(rows, tile[axis]),)
        place = (self.t, self.n, self.window)
        launch(kernel, grid, *tensors, *place, warps=warps, stages=stages, **constants)


def sizes_of(size: int, dtype: torch.dtype) -> tuple[int, ...]:
    """Powers of two that together hold a head: 80 = 64 + 16, and 112 is 128. Of float32, 80 is in 64 + 32: with 16 the
    compiler keeps nothing in registers."""
    whole, least = max(16, next_power_of_2(size)), 16 if dtype == torch.bfloat16 else 32
    first, rest = whole // 2, max(least, next_power_of_2(size - whole // 2))
    return (first, rest) if 16 <= first < size and first + rest < whole else (whole,)


def tile_of(name: str, dtype: torch.dtype, size: int) -> tuple[int, int, int, int]:
    return next(tile for most, tile in TILES[dtype][name].items() if size <= most)


attention = torch.library.custom_op("nested_kernels::attention", forward, mutates_args=())
attention_backward = torch.library.custom_op("nested_kernels::attention_backward", backward, mutates_args=())
attention_second = torch.library.custom_op("nested_kernels::attention_second", second, mutates_args=())


def _like(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in tensors)


@attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, window: int) -> tuple[Tensor, ...]:
    return *_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@attention_backward.register_fake
def _(d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, window: int) -> tuple[Tensor, ...]:
    return _like(q, k, v)


@attention_second.register_fake
def _(u_q: Tensor, u_k: Tensor, u_v: Tensor, d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple:
    return _like(d_out, q, k, v)


def _product(q: Any, k: Any, window: int) -> int:
    """Operations of one product of queries and keys as the chunked form has it; shapes are given."""
    (b, t, h, size), n = q, k[1]
    return 2 * b * h * size * sum((e - i) * (stop - j) for i, e, j, stop in spans(t, n, window, BLOCK))


@register_flop_formula(torch.ops.nested_kernels.attention)
def _forward_flops(q: Any, k: Any, v: Any, window: int, out_val: Any = None, **_: Any) -> int:
    """As in the chunked form, here and below: what the kernels compute again is nobody's work."""
    return 2 * _product(q, k, window)


@register_flop_formula(torch.ops.nested_kernels.attention_backward)
def _backward_flops(d_out: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, window: int, **_: Any) -> int:
    return 5 * _product(q, k, window)


@register_flop_formula(torch.ops.nested_kernels.attention_second)
def _second_flops(*given: Any, out_val: Any = None, **_: Any) -> int:
    return 12 * _product(given[4], given[5], given[9])


def _keep(ctx: Any, inputs: tuple, output: tuple) -> None:
    *operands, ctx.window = inputs
    ctx.save_for_backward(*operands, *output)


def _first(ctx: Any, d_out: Tensor, d_lse: Tensor) -> tuple:
    """The output and the logsumexp are numbers here: what the gradients owe to them, they owe to q, k and v."""
    q, k, v, out, lse = _plain(d_out, d_lse, *ctx.saved_tensors)[2:]
    return *attention_backward(d_out, q, k, v, out.detach(), lse.detach(), ctx.window), None


def _keep_again(ctx: Any, inputs: tuple, output: tuple) -> None:
    *operands, ctx.window = inputs
    ctx.save_for_backward(*operands)


def _second(ctx: Any, *u: Tensor) -> tuple:
    return *attention_second(*_plain(*u, *ctx.saved_tensors), ctx.window), None, None, None


def _plain(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The same, as long as nothing but a backward pass goes on."""
    if why := transformed(*tensors):
        raise NotImplementedError(
            f'attention_hvp: backend "triton" is differentiated by backward passes, and {why}; '
            'backend "reference" has every derivative'
        )
    return tensors


def _third(ctx: Any, *u: Tensor) -> tuple:
    raise NotImplementedError(
        'attention_hvp: backend "triton" is differentiable twice, and a third derivative was asked for; '
        'backend "reference" has it'
    )


attention.register_autograd(_first, setup_context=_keep)
attention_backward.register_autograd(_second, setup_context=_keep_again)
attention_second.register_autograd(_third)


def _example(dtype: torch.dtype, size: int) -> None:
    """A chunk of 1,024 queries with a window of 8,192 and 32 heads, forward and twice backward on meta tensors."""
    q, k = (torch.empty(1, tokens, 32, size, dtype=dtype, device="meta") for tokens in (1024, 9216))
    out, lse = forward(q, k, k, 8192)
    backward(q, q, k, k, out, lse, 8192)
    second(q, k, k, q, q, k, k, out, lse, 8192)


# Bytes of stack: two sums as wide as a head and three tiles of scores; of float32 both halves of every operand, too.
STACK = {
    (torch.bfloat16, 96): {"second_rows": 64},
    (torch.bfloat16, 128): {"second_rows": 192, "second_columns": 64},
    (torch.float32, 64): {"second_rows": 128, "second_columns": 128},
    (torch.float32, 80): {"second_rows": 128, "second_columns": 64},
    (torch.float32, 96): {"second_rows": 128, "second_columns": 64},
    (torch.float32, 128): {"forward": 48, "second_rows": 448, "second_columns": 576},
}
AOT_CASES = [
    AotCase(
        f"attention, {str(dtype).removeprefix('torch.')}, {size} wide",
        partial(_example, dtype, size),
        STACK.get((dtype, size), {}),
        slow=(dtype, size) != (torch.bfloat16, 64),
    )
    for dtype in (torch.bfloat16, torch.float32)
    for size in (64, 80, 96, 128)
]
