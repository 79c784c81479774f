"""The Triton memory as torch ops: kernels launched, gradients registered, the order of differentiation stated.

The backward pass is an op of its own and opaque to autograd; what it lacks is computed from the chunked form or refused
(`orders.py`).

Shapes: Z batch and heads, N memories, T tokens, K head width, E hidden width.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula
from triton import cdiv, next_power_of_2

from nested_kernels.launch import AotCase, launch
from nested_kernels.mlp_memory import triton as kernels
from nested_kernels.mlp_memory.chunked import Chunk, flat, read_chunk
from nested_kernels.mlp_memory.rule import MLPState, Weights, Write, all_of, both, operations, started
from nested_kernels.mlp_memory.triton_backward import gradients
from nested_kernels.orders import differentiable

SEGMENT = 16  # chunks whose weights are kept at once in a backward pass
BLOCK = {kernels.advance: 32, gradients: 16}  # hidden units that go by at once: the least stack
Five = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class Operands(NamedTuple):
    """What is differentiated. Without an anchor, gradients are taken at the beginning of each chunk."""

    q: Tensor | None  # (Z, T, K), as k and v
    k: Tensor
    v: Tensor
    eta: Tensor  # (Z, T), as the other rates
    alpha: Tensor
    beta: Tensor | None
    up: Tensor  # (Z, N, E, K), as the others
    down: Tensor  # (Z, N, K, E), as the others
    anchor_up: Tensor | None
    anchor_down: Tensor | None
    initial_up: Tensor | None
    initial_down: Tensor | None
    heap_up: Tensor | None
    heap_down: Tensor | None


class Options(NamedTuple):
    erase_up: float
    erase_down: float
    fit: float
    value: float
    own: bool
    bounded: bool
    read: str
    length: int  # tokens of a chunk; with an anchor there is one chunk


def forward(
    q: Tensor | None, k: Tensor, v: Tensor, eta: Tensor, alpha: Tensor, beta: Tensor | None, up: Tensor, down: Tensor,
    anchor_up: Tensor | None, anchor_down: Tensor | None, initial_up: Tensor | None, initial_down: Tensor | None,
    heap_up: Tensor | None, heap_down: Tensor | None, erase_up: float, erase_down: float, fit: float, value: float,
    own: bool, bounded: bool, read: str, length: int, again: bool,
) -> Five:  # fmt: skip
    """y as k, and the weights and the momentum after all tokens; nothing (0,) in place of what is not asked for."""
    operands = (q, k, v, eta, alpha, beta, up, down, anchor_up, anchor_down, initial_up, initial_down)
    x = _contiguous(Operands(*operands, heap_up, heap_down))
    call = _Call(x, Options(erase_up, erase_down, fit, value, own, bounded, read, length))
    held = [w.clone() for w in call.held(x)]
    y = torch.empty_like(x.k) if q is not None else x.k.new_empty(0)
    call.advance(x, held, y)
    up, down, *heaps = held
    heap_up, heap_down = heaps or (up.new_empty(0), up.new_empty(0))
    return y, up, down, heap_up, heap_down


class _Call:
    """One call's sizes, and the launches that have them in common."""

    def __init__(self, x: Operands, options: Options):
        (self.Z, self.T, K), (self.N, E) = x.k.shape, x.up.shape[1:3]
        self.length, self.read = options.length, options.read
        C, BK = (max(16, next_power_of_2(n)) for n in (min(options.length, self.T), K))
        names = ("ERASE_UP", "ERASE_DOWN", "FIT", "VALUE", "OWN", "BOUNDED")
        self.constants: dict[str, Any] = dict(zip(names, options))
        self.constants |= {"STALE": x.anchor_up is not None, "INITIAL": x.initial_up is not None}
        self.constants |= {"MOMENTUM": x.beta is not None, "K": K, "E": E, "C": C, "BK": BK}

    def held(self, x: Operands) -> list[Tensor]:
        """What the tokens change."""
        return [w for w in (x.up, x.down, x.heap_up, x.heap_down) if w is not None]

    def advance(self, x: Operands, held: list[Tensor], y: Tensor, slots: int = 1) -> None:
        """`held` (Z, N, slots, ...) in its place, or with several slots from the first of them into the others."""
        tensors = [*x[:6], *x[8:12], *held, *[None] * (4 - len(held)), y]
        self.launch(kernels.advance, x, tensors, slots)

    def back(self, x: Operands, dy: Tensor, found: dict[str, Tensor]) -> None:
        """Fills `found`, in which the gradients of what is held at the end are replaced by those at the beginning."""
        size, T = self.length * SEGMENT, self.T
        begins, nothing = list(range(0, T, size)), x.up
        unread = x._replace(q=None)
        starts = [self.held(x)]
        for begin in begins[:-1]:
            starts.append([w.clone() for w in starts[-1]])
            self.advance(_cut(unread, begin, begin + size), starts[-1], nothing)
        C, E = self.constants["C"], self.constants["E"]
        wrote, asked = (x.up.new_empty(self.Z * self.N, C, E) for _ in range(2))
        names = (*Operands._fields[6:8], *Operands._fields[12:], *Operands._fields[8:12])
        for begin, start in zip(reversed(begins), reversed(starts)):
            part = _cut(x, begin, begin + size)
            slots = cdiv(part.k.shape[1], self.length)
            kept = [w.new_empty(self.Z, self.N, slots, *w.shape[2:]) for w in start]
            for w, first in zip(kept, start):
                w[:, :, 0] = first
            if slots > 1:  # all but the last chunk, which ends in no slot
                self.advance(_cut(unread, begin, begin + (slots - 1) * self.length), kept, nothing, slots)
            tensors = [*part[:6], *part[8:12], *kept, *[None] * (4 - len(kept))]
            tensors += [dy[:, begin : begin + size] if x.q is not None else None, *(found.get(n) for n in names)]
            tensors += [wrote, asked, None if x.q is None else found["q"][:, begin : begin + size]]
            each = [found.get(name) for name in ("k", "v", "eta", "alpha", "beta")]
            tensors += [None if w is None else w[:, :, begin : begin + size] for w in each]
            self.launch(gradients, part, tensors, slots)

    def launch(self, kernel: Any, x: Operands, tensors: list[Tensor | None], slots: int) -> None:
        """For the memory that is read, and for those that are not."""
        T = x.k.shape[1]
        numbers = (T, self.T, self.length, cdiv(T, self.length), slots, self.N)
        given = [x.up if w is None else w for w in tensors]
        groups = [(0, 1, self.read), (1, self.N - 1, "none")] if x.q is not None else [(0, self.N, "none")]
        for first, count, read in groups:
            if count:
                constants = {**self.constants, "READ": kernels.READS[read], "BE": BLOCK[kernel]}
                launch(kernel, (self.Z * count,), *given, *numbers, first, count, warps=8, stages=1, **constants)


def _cut(x: Operands, begin: int, end: int) -> Operands:
    """Some of the tokens, where they are."""
    return Operands._make([*(None if w is None else w[:, begin:end] for w in x[:6]), *x[6:]])


def _contiguous(x: Operands) -> Operands:
    return Operands._make(None if w is None else w.contiguous() for w in x)


def backward(
    dy: Tensor, d_up: Tensor, d_down: Tensor, d_heap_up: Tensor, d_heap_down: Tensor,
    q: Tensor | None, k: Tensor, v: Tensor, eta: Tensor, alpha: Tensor, beta: Tensor | None, up: Tensor, down: Tensor,
    anchor_up: Tensor | None, anchor_down: Tensor | None, initial_up: Tensor | None, initial_down: Tensor | None,
    heap_up: Tensor | None, heap_down: Tensor | None, erase_up: float, erase_down: float, fit: float, value: float,
    own: bool, bounded: bool, read: str, length: int, again: bool,
) -> list[Tensor]:  # fmt: skip
    """Gradients of the operands that are given, in their order.

    Weights are kept at the beginning of each segment of chunks, and computed again inside it: nothing but the operands
    is kept from the forward pass.
    """
    operands = (q, k, v, eta, alpha, beta, up, down, anchor_up, anchor_down, initial_up, initial_down)
    x = _contiguous(Operands(*operands, heap_up, heap_down))
    call = _Call(x, Options(erase_up, erase_down, fit, value, own, bounded, read, length))
    ends = [d.clone(memory_format=torch.contiguous_format) for d in (d_up, d_down, d_heap_up, d_heap_down) if d.numel()]
    found = {n: torch.zeros_like(w) for n, w in zip(Operands._fields, x) if n.startswith("initial") and w is not None}
    found |= {n: torch.empty_like(w) for n, w in zip(Operands._fields, x) if n.startswith("anchor") and w is not None}
    found |= dict(zip([n for n in ("up", "down", "heap_up", "heap_down") if getattr(x, n) is not None], ends))
    if x.q is not None:
        found["q"] = torch.empty_like(x.q)
    for name in ("k", "v", "eta", "alpha", "beta"):
        if (w := getattr(x, name)) is not None:
            found[name] = w.new_empty(call.Z, call.N, *w.shape[1:], dtype=torch.float32)
    call.back(x, dy.contiguous(), found)
    for name in ("k", "v", "eta", "alpha", "beta"):  # of each memory, until here
        if name in found:
            found[name] = found[name].sum(1).to(getattr(x, name).dtype)
    return [found[name] for name in Operands._fields if name in found]


recurrence = torch.library.custom_op("nested_kernels::mlp_memory", forward, mutates_args=())
recurrence_backward = torch.library.custom_op("nested_kernels::mlp_memory_backward", backward, mutates_args=())


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@recurrence.register_fake
def _(q: Tensor | None, k: Tensor, *rest: Any) -> Five:
    x = Operands(q, k, *rest[:12])
    held = [_like(w) if w is not None else x.up.new_empty(0) for w in (x.up, x.down, x.heap_up, x.heap_down)]
    up, down, heap_up, heap_down = held
    return k.new_empty(0) if q is None else _like(k), up, down, heap_up, heap_down


@recurrence_backward.register_fake
def _(dy: Tensor, d_up: Tensor, d_down: Tensor, d_heap_up: Tensor, d_heap_down: Tensor, *rest: Any) -> list[Tensor]:
    return [_like(x) for x in rest[:14] if x is not None]


@register_flop_formula(torch.ops.nested_kernels.mlp_memory)
def _forward_flops(*given: Any, out_val: Any = None, **_: Any) -> int:
    """`given` has shapes in place of tensors."""
    x, options = Operands._make(given[:14]), Options(*given[14:22])
    Z, T, K = x.k
    N, E = x.up[1:3]
    asked, initial, momentum = (there is not None for there in (x.q, x.initial_up, x.beta))
    return Z * operations(T, N, K, E, min(T, options.length), Write(*options[:6]), asked, initial, momentum)  # type: ignore[arg-type]


@register_flop_formula(torch.ops.nested_kernels.mlp_memory_backward)
def _backward_flops(*given: Any, out_val: Any = None, **_: Any) -> int:
    """Two products for each of the forward pass."""
    return 2 * _forward_flops(*given[5:])


def _in_torch(operands: tuple, *numbers: Any) -> Five:
    """`forward` in plain torch."""
    x, options = Operands(*operands), Options(*numbers)
    write, length = Write(*options[:6]), options.length
    anchor, start, S = (None if x[at] is None else Weights._make(x[at : at + 2]) for at in (8, 10, 12))
    tokens = [None if w is None else w.float() if w.ndim == 3 else w.unsqueeze(-1) for w in x[:6]]
    live, ys = Weights(x.up, x.down), []
    for begin in range(0, x.k.shape[1], length):
        chunk = Chunk._make(None if w is None else w[:, begin : begin + length] for w in tokens)
        y, live, S = read_chunk(chunk, live, anchor or live, S, start, write, options.read)  # type: ignore[arg-type]
        ys.append(y)
    y = x.k.new_empty(0) if x.q is None else torch.cat(ys, 1).to(x.k.dtype)
    S = S or Weights(x.up.new_empty(0), x.up.new_empty(0))
    return y, live.up, live.down, S.up, S.down


differentiable("mlp_memory", recurrence, recurrence_backward, _in_torch, ends=5)


def mlp_memory_triton(
    q: Tensor | None, k: Tensor, v: Tensor, eta: Tensor, alpha: Tensor, beta: Tensor | None, state: MLPState,
    *, write: Write, anchor: int, read: str, initial: Weights | None, again: bool,
) -> tuple[Tensor | None, MLPState]:  # fmt: skip
    """As `mlp_memory_reference`: what is left of an open chunk, all whole ones, and the beginning of the next."""
    B, H, T, _ = k.shape
    tokens = [None if x is None else x.flatten(0, 1) for x in (q, k, v, eta, alpha, beta)]
    M, M_xi, S, position = all_of(flat, started(state, beta))
    start = None if initial is None else both(flat, initial)
    head = min(T, (anchor - position) % anchor)
    tail = head + (T - head) // anchor * anchor
    ys, none = [], (None, None)
    for begin, end in ((0, head), (head, tail), (tail, T)):
        if begin < end:
            seen = M_xi if begin < head else None
            M_xi = M_xi if begin < head else M
            piece = [None if x is None else x[:, begin:end] for x in tokens]
            given = (*piece, *M, *(seen or none), *(start or none), *(S or none))
            y, *found = recurrence(*given, *write, read, anchor, again)
            ys.append(y)
            M, S = Weights._make(found[:2]), None if beta is None else Weights._make(found[2:])
    y = None if q is None else torch.cat(ys, 1).unflatten(0, (B, H))
    position = (position + T) % anchor
    return y, all_of(lambda x: x.unflatten(0, (B, H)), MLPState(M, M_xi if position else None, S, position))


def _example(
    dtype: torch.dtype,
    K: int,
    E: int,
    length: int,
    hope: bool,
    tokens: int,
    stale: bool = False,
    momentum: bool = False,
    initial: bool = False,
) -> None:
    """Forward and backward of 8 sequences and 16 heads on meta tensors: HOPE's memory, or Titans'."""

    def pair(there: bool = True) -> tuple[Tensor | None, Tensor | None]:
        shapes = (1, E, K), (1, K, E)
        return tuple(torch.empty(128, *shape, device="meta") for shape in shapes) if there else (None, None)  # type: ignore[return-value]

    q, k, v = (torch.empty(128, tokens, K, dtype=dtype, device="meta") for _ in range(3))
    eta, alpha, beta = (torch.empty(128, tokens, device="meta") for _ in range(3))
    erase, read = (1.0, "cumulative") if hope else (0.0, "after")
    held = (*pair(), *pair(stale), *pair(hope or initial), *pair(momentum))
    x = (q, k, v, eta, alpha, beta if momentum else None, *held)
    options = (erase, erase, 1.0, 1.0, hope, hope, read, length, False)
    backward(*forward(*x, *options), *x, *options)  # type: ignore[arg-type]


BF16, FP32 = torch.bfloat16, torch.float32
MOMENTUM = {"momentum": True}
TOWARDS = {**MOMENTUM, "initial": True}
# bytes of stack, by Triton 3.6 or 3.9: `gradients` has, beside blocks, five sums over them and twenty vectors of rates
AOT_CASES = [
    AotCase(name, partial(_example, *sizes, **more), {"advance": advance, "gradients": gradients}, slow)
    for name, sizes, more, advance, gradients, slow in (
        ("HOPE's memory, 64 wide", (BF16, 64, 256, 32, True, 64), {}, 96, 1664, False),
        ("HOPE's memory, chunks of 64", (BF16, 64, 256, 64, True, 128), {}, 896, 4096, True),
        ("HOPE's memory, the rest of a chunk", (BF16, 64, 256, 32, True, 32), {"stale": True}, 96, 1856, True),
        ("HOPE's memory, the rest of a chunk of 64", (BF16, 64, 256, 64, True, 64), {"stale": True}, 1024, 4096, True),
        ("HOPE's memory, 128 wide", (BF16, 128, 512, 32, True, 64), {}, 576, 2816, True),
        ("HOPE's memory, 128 wide, the rest", (BF16, 128, 512, 32, True, 32), {"stale": True}, 640, 3072, True),
        ("HOPE's memory, float32", (FP32, 64, 256, 16, True, 32), {}, 640, 4096, True),
        ("HOPE's memory, float32, the rest", (FP32, 64, 256, 16, True, 16), {"stale": True}, 704, 4352, True),
        ("Titans' memory, 64 wide", (BF16, 64, 256, 32, False, 64), {}, 0, 640, True),
        ("Titans' memory, chunks of 64", (BF16, 64, 256, 64, False, 128), {}, 144, 2048, True),
        ("Titans' memory, momentum", (BF16, 64, 256, 32, False, 64), MOMENTUM, 96, 2304, True),
        ("Titans' memory, momentum, chunks of 64", (BF16, 64, 256, 64, False, 128), MOMENTUM, 3328, 4864, True),
        ("Titans' memory towards its start", (BF16, 64, 256, 32, False, 64), TOWARDS, 192, 2816, True),
        ("Titans' memory towards its start, 64", (BF16, 64, 256, 64, False, 128), TOWARDS, 3328, 5376, True),
        ("Titans' memory towards its start, 128 wide", (BF16, 128, 512, 32, False, 64), TOWARDS, 768, 4096, True),
        ("Titans' memory towards its start, float32", (FP32, 64, 256, 16, False, 32), TOWARDS, 960, 3456, True),
    )
]
