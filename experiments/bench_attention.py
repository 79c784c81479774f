"""Attention and its two derivatives beside eager torch: time and memory; tables of `bench_kernels.py`.

Eager is the formula with all scores at once, in the dtype of the operands where it is torch's own ("eager"), and in
float32 where it is ours ("reference"). Operations are those of products over visible pairs: 2 forward, 5 backward, 12
for the backward pass of that; bytes are operands and results once each. Memory is the peak above the operands: of the
device, or of the process in one of its own.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from nested_kernels import attention_hvp
from timing import apart, checked, head, measured, rows
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Form = Callable[..., Tensor]  # q, k, v (B, T, H, K) -> y
PASSES = ["forward", "forward and backward", "forward, backward and second backward"]
PRODUCTS, ROWS = (2, 7, 19), (4, 12, 24)
ONCE = ("fused", "sdpa")  # forms without a second derivative


@dataclass(frozen=True)
class Shape:
    B: int
    H: int
    T: int
    K: int
    dtype: torch.dtype

    def operations(self, order: int) -> float:
        return PRODUCTS[order] * self.B * self.H * self.K * self.T * (self.T + 1)  # 2 T (T + 1) / 2 pairs

    def bytes(self, order: int) -> float:
        return ROWS[order] * self.B * self.H * self.T * self.K * self.dtype.itemsize

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"causal, B {self.B}, T = N = {self.T}, H {self.H}, K {self.K}, {kind}"


def operands(shape: Shape, device: str) -> list[Tensor]:
    """q, k, v, the output's gradient, and what the gradients of q, k and v are weighted with."""
    g = torch.Generator().manual_seed(0)
    size = (shape.B, shape.T, shape.H, shape.K)
    return [torch.randn(size, generator=g).to(device, shape.dtype).requires_grad_() for _ in range(7)]


def of_backend(backend: str) -> Form:
    return partial(attention_hvp, backend=backend)  # type: ignore[arg-type]


def torchs(*allowed: SDPBackend) -> Form:
    def form(*x: Tensor) -> Tensor:
        with sdpa_kernel(list(allowed)):
            q, k, v = (t.transpose(1, 2) for t in x)
            return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)

    return form


def called(form: Form, x: list[Tensor], order: int) -> list[Tensor]:
    q, k, v, d_out, *u = x
    with torch.set_grad_enabled(order > 0):
        y = form(q, k, v)
    if not order:
        return [y]
    first = torch.autograd.grad(y, (q, k, v), d_out, create_graph=order > 1)
    second = torch.autograd.grad(first, (q, k, v, d_out), u) if order > 1 else ()
    return [t.detach() for t in (y, *first, *second)]


def error(form: Form, shape: Shape, device: str, order: int) -> float:
    """Of any result against the formula in float64, on 2 heads of 300 tokens."""
    x = operands(Shape(1, 2, 300, shape.K, shape.dtype), device)
    exact = called(of_backend("reference"), [t.detach().double().requires_grad_() for t in x], order)
    return apart(called(form, x, order), exact)


def peak(form: Form, shape: Shape, device: str, order: int) -> int:
    """Bytes at the peak of one call above those before it."""
    x = operands(shape, device)
    if device != "cpu":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        called(form, x, order)
        return torch.cuda.max_memory_allocated() - before
    called(form, operands(Shape(1, 1, 64, shape.K, shape.dtype), device), order)  # what torch holds from then on
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is what is held now
    before = highest()
    called(form, x, order)
    return highest() - before


def highest() -> int:
    """Bytes that this process has held in memory at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def peaks(forms: dict[str, Form], shape: Shape, device: str) -> dict[str, int]:
    """Of each form to its highest order."""
    found = {}
    for name, form in forms.items():
        order = 1 if name in ONCE else 2
        if device == "cpu":
            with multiprocessing.get_context("spawn").Pool(1) as process:
                found[name] = process.apply(peak, (form, shape, device, order))
        else:
            found[name] = peak(form, shape, device, order)
    return found


def table(shape: Shape, forms: dict[str, Form], ours: str, device: str, allowed: float, rounds: int) -> list[str]:
    lines = [f"**attention_hvp**: {shape}", "", *head(ours)]
    x, said, right = operands(shape, device), [], dict(forms)
    for order, passes in enumerate(PASSES):
        able = {name: form for name, form in right.items() if order < 2 or name not in ONCE}
        wrong = {name: partial(error, form, shape, device, order) for name, form in able.items()}
        errors, more = checked(wrong, ours, allowed)
        said += [f"{passes.capitalize()}. {line}" for line in more]
        right = {name: form for name, form in right.items() if name in errors or name not in able}
        calls = {name: partial(called, forms[name], x, order) for name in errors}
        counted = shape.operations(order), shape.bytes(order)
        lines += rows(passes, measured(calls, device, rounds), errors, ours, *counted, device)
    held = peaks(right, shape, device)
    lines += ["", f"Memory at the peak, all passes that a form has: {'; '.join(beside(held, ours))}."]
    return [*lines, *(part for line in said for part in ("", line)), ""]


def beside(held: dict[str, int], ours: str) -> list[str]:
    """Each form's memory, and how many times that of ours it is."""
    said = {name: f"{name} {size / 2**20:.0f} MiB" for name, size in held.items()}
    if ours not in held:
        return list(said.values())
    times = {name: f" ({size / max(held[ours], 1):.2g} times ours)" for name, size in held.items() if name != ours}
    return [said[name] + times.get(name, "") for name in (ours, *times)]


def tables(device: str, rounds: int) -> list[str]:
    if device == "cpu":
        forms = {name: of_backend(name) for name in ("reference", "chunked", "fused")}
        return table(Shape(1, 4, 1024, 64, torch.float32), forms, "chunked", device, 1e-5, rounds)
    lines: list[str] = []
    own = {name: of_backend(name) for name in ("reference", "chunked", "triton")}
    for size in (64, 80, 96, 128):
        forms = {"eager": torchs(SDPBackend.MATH), **own}
        forms |= {"sdpa": torchs(SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION)}
        lines += table(Shape(1, 8, 8192, size, torch.bfloat16), forms, "triton", device, 2e-2, rounds)
    return [*lines, *table(Shape(1, 4, 8192, 64, torch.float32), own, "triton", device, 1e-5, rounds)]
