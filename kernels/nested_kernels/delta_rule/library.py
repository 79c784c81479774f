"""The Triton recurrence as torch ops: kernels launched, gradients registered, the order of differentiation stated.

The backward pass is an op of its own and opaque to autograd; what it lacks is computed from the chunked form or refused
(`orders.py`).

Shapes: B batch, T tokens, H heads, K key, V value, N chunks.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula
from triton import cdiv, next_power_of_2

from nested_kernels.delta_rule import triton as kernels
from nested_kernels.delta_rule.chunked import read_chunks
from nested_kernels.launch import AotCase, launch
from nested_kernels.orders import differentiable

STEPWISE = 8  # tokens for which `step` is the forward pass: one launch, no matrix products
Three = tuple[Tensor, Tensor, Tensor]


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    alpha: Tensor,
    memory: Tensor,
    erase: float,
    fit: float,
    read: str,
    length: int,
    before: int,
    again: bool,
) -> Three:
    """As `chunked.read_chunks`: q and k of one dtype, float32 or bfloat16; eta, alpha and memory float32; y as v."""
    x = _Call(q, v, erase, fit, read, length, before)
    q, k, v, eta, alpha = (x.laid_out(t) for t in (q, k, v, eta, alpha))
    memory = memory.contiguous()
    y, last, final = x.empty(v), torch.empty_like(memory), torch.empty_like(memory)
    if q.shape[2] <= STEPWISE:
        x.step(q, k, v, eta, alpha, memory, y, last, final)
    else:
        by_value, by_memory, reads, _ = x.prepare(q, k, v, eta, alpha, keep=False)
        nothing = y
        x.scan(q, k, alpha, by_value, by_memory, reads, memory, y, last, final, nothing, nothing, keep=False)
    return y, last, final


def backward(
    dy: Tensor,
    d_last: Tensor,
    d_final: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    alpha: Tensor,
    memory: Tensor,
    erase: float,
    fit: float,
    read: str,
    length: int,
    before: int,
    again: bool,
) -> list[Tensor]:
    """Gradients of q, k, v, eta, alpha and memory; states are computed again, so that only operands were kept."""
    x = _Call(q, v, erase, fit, read, length, before)
    q, k, v, eta, alpha, dy = (x.laid_out(t) for t in (q, k, v, eta, alpha, dy))
    memory, d_last, d_final = memory.contiguous(), d_last.contiguous(), d_final.contiguous()
    by_value, by_memory, reads, solved = x.prepare(q, k, v, eta, alpha, keep=True)
    states, writes = x.scratch(q, x.BK, x.VP), x.scratch(q, x.C, x.VP)
    nothing = memory
    x.scan(q, k, alpha, by_value, by_memory, reads, memory, nothing, nothing, nothing, states, writes, keep=True)
    d_states, d_writes, d_memory = torch.empty_like(states), by_value, torch.empty_like(memory)
    x.scan_back(q, k, alpha, by_memory, reads, dy, d_last, d_final, d_memory, d_states, d_writes)
    found = [x.empty(t) for t in (q, k, v, eta, alpha)]
    x.gradients(q, k, v, eta, alpha, solved, states, writes, d_states, d_writes, dy, *found)
    return [*found, d_memory]


class _Call:
    """One call's sizes and layout, and the launches that have them in common."""

    def __init__(self, q: Tensor, v: Tensor, erase: float, fit: float, read: str, length: int, before: int):
        b, h, t, key = q.shape
        self.tokens_first = _tokens_first(q)
        self.groups, self.chunks = b * h, cdiv(before + t, length)
        self.C, self.BK, self.VP = (max(16, next_power_of_2(n)) for n in (length, key, v.shape[3]))
        self.place = (t, length, before, h, *((t * h, 1, h) if self.tokens_first else (t * h, t, 1)))
        self.rule = {"ERASE": erase, "FIT": fit, "READ": kernels.READS[read]}
        self.sizes = {"K": key, "V": v.shape[3], "BK": self.BK, "BV": min(32, self.VP)}
        self.blocks = {"C": self.C, "VP": self.VP}
        self.warps = 8 if self.BK == 128 and q.dtype == torch.float32 else 4  # of the scans, for their registers
        self.columns = cdiv(self.VP, self.sizes["BV"])

    def laid_out(self, x: Tensor) -> Tensor:
        """x (B, H, T, ...) with its rows one after the other in memory, in the order of those of q."""
        return x.transpose(1, 2).contiguous().transpose(1, 2) if self.tokens_first else x.contiguous()

    def empty(self, like: Tensor) -> Tensor:
        return _empty(like, self.tokens_first)

    def scratch(self, like: Tensor, *shape: int) -> Tensor:
        return like.new_empty(self.groups, self.chunks, *shape)

    def prepare(self, q: Tensor, k: Tensor, v: Tensor, eta: Tensor, alpha: Tensor, keep: bool) -> tuple[Tensor, ...]:
        by_value, by_memory = self.scratch(q, self.C, self.VP), self.scratch(q, self.C, self.BK)
        reads = self.scratch(q, self.C, self.C)
        solved = torch.empty_like(reads) if keep else reads
        tensors = (q, k, v, eta, alpha, by_value, by_memory, reads, solved)
        constants = {**self.rule, **self.sizes, **self.blocks, "KEEP": keep}
        grid, warps = (self.groups, self.chunks), 8 if self.C == 64 else 4
        launch(kernels.prepare, grid, *tensors, *self.place, self.chunks, warps=warps, **constants)
        return by_value, by_memory, reads, solved

    def scan(self, *tensors: Tensor, keep: bool) -> None:
        constants = {"READ": self.rule["READ"], **self.sizes, **self.blocks, "KEEP": keep}
        grid = (self.groups, self.columns)
        launch(kernels.scan, grid, *tensors, *self.place, self.chunks, warps=self.warps, **constants)

    def scan_back(self, *tensors: Tensor) -> None:
        constants = {"READ": self.rule["READ"], **self.sizes, **self.blocks}
        grid = (self.groups, self.columns)
        launch(kernels.scan_back, grid, *tensors, *self.place, self.chunks, warps=self.warps, **constants)

    def gradients(self, *tensors: Tensor) -> None:
        constants = {**self.rule, **self.sizes, **self.blocks}
        launch(kernels.gradients, (self.groups, self.chunks), *tensors, *self.place, self.chunks, warps=8, **constants)

    def step(self, *tensors: Tensor) -> None:
        launch(kernels.step, (self.groups, self.columns), *tensors, *self.place, **self.rule, **self.sizes)


def _tokens_first(q: Tensor) -> bool:
    """Is q (B, H, T, K) a view of (B, T, H, K)?"""
    return not q.is_contiguous() and q.transpose(1, 2).is_contiguous()


def _empty(like: Tensor, tokens_first: bool) -> Tensor:
    if not tokens_first:
        return torch.empty_like(like, memory_format=torch.contiguous_format)
    return torch.empty_like(like.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


recurrence = torch.library.custom_op("nested_kernels::delta_rule", forward, mutates_args=())
recurrence_backward = torch.library.custom_op("nested_kernels::delta_rule_backward", backward, mutates_args=())


@recurrence.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, eta: Tensor, alpha: Tensor, memory: Tensor, *_: Any) -> Three:
    def held() -> Tensor:
        return torch.empty_like(memory, memory_format=torch.contiguous_format)

    return _empty(v, _tokens_first(q)), held(), held()


@recurrence_backward.register_fake
def _(dy: Tensor, d_last: Tensor, d_final: Tensor, *rest: Any) -> list[Tensor]:
    *operands, memory = rest[:6]
    found = [_empty(t, _tokens_first(rest[0])) for t in operands]
    return [*found, torch.empty_like(memory, memory_format=torch.contiguous_format)]


@register_flop_formula(torch.ops.nested_kernels.delta_rule)
def _forward_flops(*given: Any, out_val: Any = None, **_: Any) -> int:
    """Those of the chunked form at this chunk length; `given` has shapes in place of tensors."""
    shapes, options = given[:6], given[6:11]
    q, k, v, eta, alpha, memory = (torch.empty(shape, device="meta") for shape in shapes)
    with FlopCounterMode(display=False) as counter:
        read_chunks(q, k, v, eta, alpha, memory, *options)
    return counter.get_total_flops()


@register_flop_formula(torch.ops.nested_kernels.delta_rule_backward)
def _backward_flops(*given: Any, out_val: Any = None, **_: Any) -> int:
    """Two products for each of the forward pass."""
    return 2 * _forward_flops(*given[3:])


def _in_torch(operands: tuple[Tensor, ...], erase: float, fit: float, read: Any, length: int, before: int) -> Three:
    q, k, v, eta, alpha, memory = (x.float() for x in operands)
    y, last, final = read_chunks(q, k, v, eta, alpha, memory, erase, fit, read, length, before)
    return y.to(operands[2].dtype), last, final


differentiable("delta_rule", recurrence, recurrence_backward, _in_torch, ends=3)


def _example(
    dtype: torch.dtype, size: int, length: int, read: str, erase: float, fit: float, tokens: int = 4096
) -> None:
    """Forward and backward of 8 sequences and 16 heads on meta tensors."""
    shape = (8, 16, tokens, size)
    q, k, v = (torch.empty(shape, dtype=dtype, device="meta") for _ in range(3))
    eta, alpha = (torch.empty(shape[:3], device="meta") for _ in range(2))
    memory = torch.empty(8, 16, size, size, device="meta")
    options = (erase, fit, read, length, 0, False)
    y, last, final = forward(q, k, v, eta, alpha, memory, *options)
    if tokens > STEPWISE:
        backward(y, last, final, q, k, v, eta, alpha, memory, *options)


WIDE = {"gradients": 640}  # bytes of stack: three C x K sums and as many C x C ones do not fit into registers
AOT_CASES = [
    AotCase("bfloat16, 64 wide", partial(_example, torch.bfloat16, 64, 64, "cumulative", 2.0, 0.0), {"gradients": 128}),
    AotCase("bfloat16, 64 wide, stale", partial(_example, torch.bfloat16, 64, 32, "after", 1.0, 1.0), slow=True),
    AotCase("bfloat16, 128 wide", partial(_example, torch.bfloat16, 128, 64, "cumulative", 2.0, 0.0), WIDE, slow=True),
    AotCase("float32, 64 wide", partial(_example, torch.float32, 64, 16, "cumulative", 2.0, 0.0), slow=True),
    AotCase(
        "float32, 128 wide",
        partial(_example, torch.float32, 128, 16, "cumulative", 2.0, 0.0),
        {**WIDE, "scan": 128, "scan_back": 128},
        slow=True,
    ),
    AotCase("one token", partial(_example, torch.bfloat16, 64, 64, "cumulative", 2.0, 0.0, tokens=1)),
]
