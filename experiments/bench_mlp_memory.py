"""The two-layer memory: chunks beside the token loop, Triton beside chunks in torch; tables of `bench_kernels.py`.

Two memories by name: HOPE's (own values, DGD on the l2 objective in both layers, retention to the start, read before
the write) and Titans' (given values, gradient descent, momentum, read after the write). Operations are those of the
matrix products in chunks, none counted twice; bytes are operands and results once each. Chunks of 512, where 40 percent
of the peak of bfloat16 are wanted, have rows of torch alone: Triton's form ends at 64 tokens. In torch chunks multiply
in float32 (see kernels/README.md), and their share of the roofline is what is had instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from nested_kernels import MLPState, Weights, mlp_memory
from nested_kernels.mlp_memory.rule import operations, write_of
from timing import apart, checked, compiled, head, measured, rows
from torch import Tensor

Form = Callable[[list[Tensor]], list[Tensor]]
PIECE = 2  # chunks that are compiled as one
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


def of_backend(shape: Shape, backend: str) -> Form:
    return form_of(shape, partial(mlp_memory, backend=backend))  # type: ignore[arg-type]


def compiled_pieces(shape: Shape) -> Form:
    """In torch, compiled, `PIECE` chunks at a time: 250 operations each, and all 128 would take hours."""
    return form_of(shape, compiled(partial(mlp_memory, backend="chunked")), PIECE * shape.chunk)


def form_of(shape: Shape, op: Callable[..., Any], piece: int | None = None) -> Form:
    """The memory by `op`, called with that many tokens at a time, or with all."""

    def form(x: list[Tensor]) -> list[Tensor]:
        tokens, held, other = x[:6], Weights(*x[6:8]), Weights(*x[8:])
        options: dict[str, Any] = {**MEMORIES[shape.memory], "anchor": shape.chunk}
        titans = shape.memory == "Titans"
        state, found = MLPState(held, momentum=other if titans else None), []
        for parts in zip(*(t.split(piece, 2) for t in tokens)) if piece else [tokens]:
            more = {"beta": parts[5]} if titans else {"initial": other}
            y, state = op(*parts[:5], state, **more, **options)
            found.append(y)
        return [torch.cat(found, 2) if piece else found[0], *state.weights]

    return form


def called(form: Form, x: list[Tensor], backward: bool) -> list[Tensor]:
    with torch.set_grad_enabled(backward):
        found = form(x)
    if not backward:
        return found
    loss = torch.stack([o.float().square().mean() for o in found]).sum()
    grads = torch.autograd.grad(loss, x, allow_unused=True)
    return [*(o.detach() for o in found), *(g for g in grads if g is not None)]


def truth(shape: Shape, device: str) -> tuple[list[Tensor], list[Tensor]]:
    """Operands, and what the float64 token loop makes of them: outputs and gradients.

    A processor takes the shape that is timed, a device 2 heads of 2,048 tokens of it: the loop keeps all its memories.
    """
    x = operands(shape if device == "cpu" else replace(shape, B=1, H=2, T=2048), device)
    return x, called(of_backend(shape, "reference"), [t.detach().double().requires_grad_() for t in x], True)


def error(form: Form, x: list[Tensor], exact: list[Tensor]) -> float:
    """Of any output, without gradients and with them, or gradient."""
    alone = called(form, x, False)
    return apart([*alone, *called(form, x, True)], [*exact[: len(alone)], *exact])


def table(shape: Shape, forms: dict[str, Form], ours: str, device: str, allowed: float, rounds: int) -> list[str]:
    lines = [f"**mlp_memory**: {shape}", "", *head(ours)]
    given = truth(shape, device)
    errors, said = checked({name: partial(error, form, *given) for name, form in forms.items()}, ours, allowed)
    x = operands(shape, device)
    for backward, passes in enumerate(("forward", "forward and backward")):
        calls = {name: partial(called, forms[name], x, bool(backward)) for name in errors}
        counted = shape.operations(bool(backward)), shape.bytes(bool(backward))
        lines += rows(passes, measured(calls, device, rounds), errors, ours, *counted, device)
    return [*lines, *(part for line in said for part in ("", line)), ""]


def tables(device: str, rounds: int) -> list[str]:
    lines: list[str] = []
    for memory in MEMORIES:
        if device == "cpu":
            shape = Shape(memory, 1, 4, 1024, 64, 64, 32, torch.float32)
            forms = {"token loop": of_backend(shape, "reference"), "chunked": of_backend(shape, "chunked")}
            lines += table(shape, forms, "chunked", device, 1e-5, min(rounds, 7))
            continue
        for chunk in (32, 64, 512):
            shape = Shape(memory, 8, 16, 4096, 64, 256, chunk, torch.bfloat16)
            forms = {"chunked, eager": of_backend(shape, "chunked"), "chunked, compiled": compiled_pieces(shape)}
            forms |= {"triton": of_backend(shape, "triton")} if chunk <= 64 else {}
            ours = "triton" if chunk <= 64 else "chunked, eager"  # which auto takes
            lines += table(shape, forms, ours, device, 2e-2, rounds)
    return lines
