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
        if before + t <= length:  # one chunk: what came before its tokens has no part in it
            length, before = t, 0
        self.groups, self.chunks = b * h, cdiv(before + t, length)
        self.C, self.BK = (max(16, next_power_of_2(n)) for n in (length, key))
        BV = min(32, max(16, next_power_of_2(v.shape[3])))
        self.columns = cdiv(v.shape[3], BV)  # any number: rows of the memory do not depend on each other
        self.VP = self.columns * BV
        self.place = (t, length, before, h, *((t * h, 1, h) if self.tokens_first else (t * h, t, 1)))
        self.rule = {"ERASE": erase, "FIT": fit, "READ": kernels.READS[read]}
        self.sizes = {"K": key, "V": v.shape[3], "BK": self.BK, "BV": BV}
        self.blocks = {"C": self.C, "VP": self.VP}
        self.warps = 8 if self.BK == 128 and q.dtype == torch.float32 else 4  # of the scans, for their registers

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
    dtype: torch.dtype, K: int, V: int, length: int, read: str, erase: float, fit: float, tokens: int = 4096
) -> None:
    """Forward and backward of 8 sequences and 16 heads on meta tensors."""
    q, k, v = (torch.empty(8, 16, tokens, n, dtype=dtype, device="meta") for n in (K, K, V))
    eta, alpha = (torch.empty(8, 16, tokens, device="meta") for _ in range(2))
    memory = torch.empty(8, 16, V, K, device="meta")
    options = (erase, fit, read, length, 0, False)
    y, last, final = forward(q, k, v, eta, alpha, memory, *options)
    if tokens > STEPWISE:
        backward(y, last, final, q, k, v, eta, alpha, memory, *options)


BOTH = ("after", 1.0, 1.0)  # an erase beside gradients at an anchor, read after the write: the most that is computed
ONE = ("cumulative", 2.0, 0.0)
WIDE = {"gradients": 640}  # bytes of stack: three C x K sums and as many C x C ones do not fit into registers
WIDEST = {**WIDE, "scan": 128, "scan_back": 128}
AOT_CASES = [
    AotCase(name, partial(_example, *sizes), stack, slow)
    for name, sizes, stack, slow in (
        ("bfloat16, 64 wide", (torch.bfloat16, 64, 64, 64, *ONE), {"gradients": 128}, False),
        ("bfloat16, 64 wide, stale", (torch.bfloat16, 64, 64, 64, *BOTH), {"gradients": 128}, True),
        ("bfloat16, 64 wide, stale, C = 32", (torch.bfloat16, 64, 64, 32, *BOTH), {}, True),
        ("bfloat16, 64 wide, 194 rows", (torch.bfloat16, 64, 194, 64, *ONE), {"gradients": 128}, True),
        ("bfloat16, 128 wide", (torch.bfloat16, 128, 128, 64, *ONE), WIDE, True),
        ("bfloat16, 128 wide, stale", (torch.bfloat16, 128, 128, 64, *BOTH), WIDE, True),
        ("float32, 64 wide", (torch.float32, 64, 64, 16, *ONE), {}, True),
        ("float32, 64 wide, stale", (torch.float32, 64, 64, 16, *BOTH), {"gradients": 64}, True),
        ("float32, 64 wide, 194 rows", (torch.float32, 64, 194, 16, *ONE), {"scan_back": 64}, True),
        ("float32, 128 wide", (torch.float32, 128, 128, 16, *ONE), WIDEST, True),
        ("float32, 128 wide, stale", (torch.float32, 128, 128, 16, *BOTH), {**WIDEST, "prepare": 64}, True),
        ("one token", (torch.bfloat16, 64, 64, 64, *ONE, 1), {}, False),
        ("one token, float32", (torch.float32, 128, 128, 16, *BOTH, 1), {}, False),
    )
]
