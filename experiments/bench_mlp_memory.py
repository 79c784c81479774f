"""The two-layer memory: chunks beside the token loop, Triton beside chunks in torch; tables of `bench_kernels.py`.

Two memories by name: HOPE's (own values, DGD on the l2 objective in both layers, retention to the start, read before
the write) and Titans' (given values, gradient descent, momentum, read after the write). Operations are those of the
matrix products in chunks, none counted twice; bytes are operands and results once each. There is no row for chunks of
512: Triton's form ends at 64 tokens, and chunks in torch multiply in float32, which no share of bfloat16's peak can say
anything of (see kernels/README.md).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from nested_kernels import MLPState, Weights, mlp_memory
from nested_kernels.mlp_memory.rule import operations, write_of
from timing import measured, ratio, roofline
from torch import Tensor

Form = Callable[[list[Tensor]], list[Tensor]]
MEMORIES: dict[str, dict[str, Any]] = {
    "HOPE": {"values": "own", "retain": "initial"},
    "Titans": {"rule": "gd", "bounded": False, "read": "after"},
}


@dataclass(frozen=True)
class Shape:
    memory: str
    B: int
    H: int
    T: int
    K: int
    E: int
    chunk: int
    dtype: torch.dtype

    def operations(self, backward: bool) -> float:
        """With gradients three times those of the forward pass."""
        hope = self.memory == "HOPE"
        write = write_of("l2", "dgd" if hope else "gd", "every", "own" if hope else "given", hope)
        one = operations(self.T, 1, self.K, self.E, self.chunk, write, True, hope, not hope)
        return (1 + 2 * backward) * self.B * self.H * one

    def bytes(self, backward: bool) -> float:
        """q, k, v, y, the rates and what is held, before and after; with gradients these again, but y once."""
        rows, rates = self.B * self.H * self.T * self.K * self.dtype.itemsize, 4 * self.B * self.H * self.T
        held = 8 * self.B * self.H * self.K * self.E  # both layers
        pairs = 3  # before, after, and the start or the momentum
        return 11 * rows + 6 * rates + (2 * pairs + 1) * held if backward else 4 * rows + 3 * rates + pairs * held

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        sizes = f"B {self.B}, T {self.T}, H {self.H}, K {self.K}, E {self.E}"
        return f"{self.memory}, {sizes}, chunks of {self.chunk}, {kind}"


def operands(shape: Shape, device: str) -> list[Tensor]:
    """Unit tokens, eta in [0, alpha / 2], alpha in [0.9, 1], beta in [0, 1]; the layers, and the start or momentum."""
    g = torch.Generator().manual_seed(0)
    size = (shape.B, shape.H, shape.T)
    q, k, v = (F.normalize(torch.randn(*size, shape.K, generator=g), dim=-1).to(shape.dtype) for _ in range(3))
    alpha, eta, beta = (torch.rand(size, generator=g) for _ in range(3))
    alpha = 1 - 0.1 * alpha
    layers = [(shape.E, shape.K), (shape.K, shape.E)] * 2
    held = [torch.randn(*size[:2], 1, *layer, generator=g) / layer[1] ** 0.5 for layer in layers]
    return [x.to(device).requires_grad_() for x in (q, k, v, 0.5 * alpha * eta, alpha, beta, *held)]


def ours(shape: Shape, backend: str) -> Form:
    def form(x: list[Tensor]) -> list[Tensor]:
        (q, k, v, eta, alpha, beta), held, other = x[:6], Weights(*x[6:8]), Weights(*x[8:])
        options: dict[str, Any] = {**MEMORIES[shape.memory], "anchor": shape.chunk, "backend": backend}
        if shape.memory == "HOPE":
            y, state = mlp_memory(q, k, v, eta, alpha, held, initial=other, **options)
        else:
            y, state = mlp_memory(q, k, v, eta, alpha, MLPState(held, momentum=other), beta=beta, **options)
        assert y is not None
        return [y, *state.weights]

    return form


def called(form: Form, x: list[Tensor], backward: bool) -> list[Tensor]:
    with torch.set_grad_enabled(backward):
        found = form(x)
    if not backward:
        return found
    loss = torch.stack([o.float().square().mean() for o in found]).sum()
    grads = torch.autograd.grad(loss, x, allow_unused=True)
    return [*(o.detach() for o in found), *(g for g in grads if g is not None)]


def error(shape: Shape, backend: str, device: str) -> float:
    """The largest relative one of any output or gradient, against the float64 token loop, on 2 heads of 64 tokens."""
    short = replace(shape, B=1, H=2, T=64)
    x = operands(short, device)
    exact = called(ours(short, "reference"), [t.detach().double().requires_grad_() for t in x], True)
    return max(float((a - b).norm() / b.norm()) for a, b in zip(called(ours(short, backend), x, True), exact))


def table(shape: Shape, forms: dict[str, tuple[str, Form]], device: str, allowed: float, rounds: int) -> list[str]:
    """The first form is what the others are compared with."""
    first = next(iter(forms))
    lines = [f"**mlp_memory**: {shape}", ""]
    lines += [f"| form | passes | ms | {first} / it | TFLOP/s | GB/s | of the roofline | error |", "|" + "---|" * 8]
    errors = {name: error(shape, backend, device) for name, (backend, _) in forms.items()}
    x = operands(shape, device)
    for backward in (False, True):
        calls = {n: partial(called, form, x, backward) for n, (_, form) in forms.items() if errors[n] <= allowed}
        times = measured(calls, device, rounds)
        operations, moved = shape.operations(backward), shape.bytes(backward)
        for name, each in times.items():
            ms = statistics.median(each)
            cells = [name, "forward and backward" if backward else "forward", f"{ms:.3g}", ratio(times[first], each)]
            cells += [f"{operations / ms / 1e9:.3g}", f"{moved / ms / 1e6:.3g}"]
            cells += [roofline(ms, operations, moved, device), f"{errors[name]:.1e}"]
            lines.append("| " + " | ".join(cells) + " |")
    lines += [f"Not timed, wrong by {errors[name]:.1e}: {name}." for name in forms if errors[name] > allowed]
    return [*lines, ""]


def tables(device: str, rounds: int) -> list[str]:
    lines: list[str] = []
    for memory in MEMORIES:
        if device == "cpu":
            shape = Shape(memory, 1, 4, 1024, 64, 64, 32, torch.float32)
            forms = {name: (back, ours(shape, back)) for name, back in (("token loop", "reference"), ("chunked",) * 2)}
            lines += table(shape, forms, device, 1e-5, min(rounds, 7))
            continue
        for chunk in (32, 64):
            shape = Shape(memory, 8, 16, 4096, 64, 256, chunk, torch.bfloat16)
            eager = ours(shape, "chunked")
            forms = {"chunked, eager": ("chunked", eager), "chunked, compiled": ("chunked", torch.compile(eager))}
            lines += table(shape, {**forms, "triton": ("triton", ours(shape, "triton"))}, device, 2e-2, rounds)
    return lines
