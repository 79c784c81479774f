"""Every form of an op beside the others: checked against float64 first, then timed interleaved, with intervals.

On a processor: chunked torch against the token loop, one thread, one chunk length in both directions. On a CUDA device:
Triton against chunked torch, eager and compiled, and where `fla` is installed against its closest ops. Of these each
has operands of its own, which say the same; to make them, and to take gradients back through that, is checked and not
timed. In each round every form runs once, in a new random order.

The column "its time / ours" names ours, the form that `auto` takes there (on a processor in chunks or in place, on a
device Triton), and has for each form how many times as long as ours it takes: above 1 ours is faster. It is a ratio of
medians; its interval is the middle 95 percent of 2,000 resamplings of the rounds. The error is the largest of any
result, gradients among them, relative to that result. Operations and bytes are counted from the shapes: bytes are the
operands and results once each (ours: `chunk_kda` has gates as large as keys beside them), operations those of the
chunked algorithm.

Attention: `bench_attention.py`; optimizers: `bench_optimizers.py`; memories of two layers: `bench_mlp_memory.py`.
Writes reports/kernels.md. Run: python experiments/bench_kernels.py
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from bench_attention import tables as attention
from bench_mlp_memory import tables as mlp_memories
from bench_optimizers import tables as optimizers
from nested_kernels import delta_rule
from timing import apart, checked, compiled, head, measured, rows
from torch import Tensor

PAGE = Path("reports/kernels.md")
Op = Callable[[list[Tensor]], tuple[Tensor, Tensor]]  # operands -> y, the memory at the end


@dataclass(frozen=True)
class Form:
    op: Op
    own: Callable[[list[Tensor]], list[Tensor]] = list  # its operands, from those of the delta rule


@dataclass(frozen=True)
class Shape:
    B: int
    H: int
    T: int
    D: int
    chunk: int
    dtype: torch.dtype

    def operations(self, backward: bool) -> float:
        """Of matrix products: C x C times C x D five times, C x D times D x D three times; with gradients 20 and 11."""
        squares, memories = (20, 11) if backward else (5, 3)
        each = squares * self.chunk * self.D + memories * self.D**2 + backward * self.chunk**2
        return 2 * self.B * self.H * self.T * each

    def bytes(self, backward: bool) -> float:
        """q, k, v, both rates, y and two memories; with gradients these again but y, and what belongs to each."""
        heads, rows = self.B * self.H, self.B * self.H * self.T * self.D * self.dtype.itemsize
        rates, memories = 4 * heads * self.T, 4 * heads * self.D**2
        return 11 * rows + 6 * rates + 5 * memories if backward else 4 * rows + 2 * rates + 2 * memories

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"B {self.B}, T {self.T}, H {self.H}, K = V = {self.D}, chunks of {self.chunk}, {kind}"


def operands(shape: Shape, device: str) -> list[Tensor]:
    """Unit keys and queries, eta in [0, alpha], alpha in [0.9, 1], a memory; heads beside each other, as in layers."""
    g = torch.Generator().manual_seed(0)
    size = (shape.B, shape.T, shape.H, shape.D)
    q, k, v = (torch.randn(size, generator=g).transpose(1, 2) for _ in range(3))
    alpha = 1 - 0.1 * torch.rand(size[:3], generator=g).transpose(1, 2)
    eta = alpha * torch.rand(size[:3], generator=g).transpose(1, 2)
    memory = torch.randn(shape.B, shape.H, shape.D, shape.D, generator=g) / shape.D**0.5
    wide = [x.to(shape.dtype) for x in (F.normalize(q, dim=-1), F.normalize(k, dim=-1), v)]
    return [x.to(device).requires_grad_() for x in (*wide, eta, alpha, memory)]


def of_backend(backend: str, chunk: int | None) -> Op:
    def op(x: list[Tensor]) -> tuple[Tensor, Tensor]:
        y, state = delta_rule(*x, backend=backend, chunk=chunk, read="after")  # type: ignore[misc]
        return y, state.memory

    return op


def flas(name: str) -> Form:
    """One of fla's: S_t = a_t S_{t-1} - b_t (S_{t-1} p_t - v_t) k_t^T. DGD on the l2 objective erases with p = 2 k.

    `chunk_comba` has p. The others have p = a k, so theirs are b = 2 eta / alpha and alpha v / 2; the gate of
    `chunk_kda` is one for each channel, here the same in all.
    """

    def own(x: list[Tensor]) -> list[Tensor]:
        q, k, v, eta, alpha = (t.transpose(1, 2) for t in x[:5])
        g, start = alpha.log(), x[5].mT.contiguous()
        if name == "chunk_comba":
            return [q, k, v, 2 * k, g, eta, start]
        v = (alpha.unsqueeze(-1) * v / 2).to(v.dtype)
        g = g.unsqueeze(-1).expand(k.shape).contiguous() if name == "chunk_kda" else g
        return [q, k, v, g, 2 * eta / alpha, start]

    def op(x: list[Tensor]) -> tuple[Tensor, Tensor]:
        *operands, start = x
        call = getattr(importlib.import_module("fla.ops"), name)
        y, state = call(*operands, scale=1.0, initial_state=start, output_final_state=True)
        return y.transpose(1, 2), state.mT

    return Form(op, own)


def called(op: Op, x: list[Tensor], backward: bool) -> list[Tensor]:
    with torch.set_grad_enabled(backward):
        y, memory = op(x)
    if not backward:
        return [y, memory]
    return [y, memory, *torch.autograd.grad(y.float().square().mean() + memory.square().mean(), x)]


def truth(shape: Shape, device: str) -> tuple[list[Tensor], list[Tensor]]:
    """Operands, and what the float64 token loop makes of them: outputs and gradients.

    A processor takes the shape that is timed, a device 2 heads of 2,048 tokens of it: the loop keeps all its memories.
    """
    x = operands(shape if device == "cpu" else replace(shape, B=1, H=2, T=2048), device)
    return x, called(of_backend("reference", None), [t.detach().double().requires_grad_() for t in x], True)


def error(form: Form, x: list[Tensor], exact: list[Tensor]) -> float:
    """Of any output, without gradients and with them, or gradient."""
    whole = [called(lambda given: form.op(form.own(given)), x, backward) for backward in (False, True)]
    return apart([*whole[0], *whole[1]], [*exact[:2], *exact])


def table(shape: Shape, forms: dict[str, Form], ours: str, device: str, allowed: float, rounds: int) -> list[str]:
    lines = [f"**delta_rule, DGD on the l2 objective, read after the write**: {shape}", "", *head(ours)]
    given = truth(shape, device)
    errors, said = checked({name: partial(error, form, *given) for name, form in forms.items()}, ours, allowed)
    own = {name: [t.detach().requires_grad_() for t in forms[name].own(operands(shape, device))] for name in errors}
    for backward, passes in enumerate(("forward", "forward and backward")):
        calls = {name: partial(called, forms[name].op, x, bool(backward)) for name, x in own.items()}
        counted = shape.operations(bool(backward)), shape.bytes(bool(backward))
        lines += rows(passes, measured(calls, device, rounds), errors, ours, *counted, device)
    return [*lines, *(part for line in said for part in ("", line)), ""]


def hardware() -> str:
    cpu = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in cpu.read_text().splitlines() if "model name" in line]
    return names[0] if names else platform.processor()


def main(rounds: int) -> str:
    torch.set_num_threads(1)
    versions = [f"Python {platform.python_version()}, torch {torch.__version__}"]
    packages = {"triton": "triton", "fla": "flash-linear-attention"}
    versions += [f"{name} {version(package)}" for name, package in packages.items() if find_spec(name)]
    lines = [
        "# Kernels, measured",
        "",
        "Written by `make bench-kernels`; what is counted stands at the top of `experiments/bench_kernels.py`.",
        "",
        "Each table compares its forms with ours, the one that the column of ratios names: this form takes so many",
        "times as long as ours (in brackets the interval of 95 percent); above 1 ours is faster. All that is timed was",
        "compared with float64 before: the last column, relative to what is right.",
        "",
    ]
    lines += [f"{', '.join(versions)}; {rounds} rounds, {time.strftime('%Y-%m-%d')}.", ""]
    load = f"load average {os.getloadavg()[0]:.1f} at the start"
    lines += [f"## Processor: {hardware()}, one thread, {load}", ""]
    shape = Shape(2, 4, 1024, 64, 32, torch.float32)
    forms = {"token loop": Form(of_backend("reference", None)), "chunked": Form(of_backend("chunked", 32))}
    lines += table(shape, forms, "chunked", "cpu", 1e-5, rounds)
    lines += mlp_memories("cpu", rounds)
    lines += attention("cpu", rounds)
    lines += optimizers("cpu", rounds)
    if not torch.cuda.is_available():
        return "\n".join([*lines, "No CUDA device here: its rows are missing.", ""])
    lines += [f"## Device: {torch.cuda.get_device_name()}", ""]
    for width in (64, 128):
        shape = Shape(8, 16, 4096, width, 64, torch.bfloat16)
        chunked = of_backend("chunked", 64)
        forms = {"chunked, eager": Form(chunked), "chunked, compiled": Form(compiled(chunked))}
        closest = ("chunk_comba", "chunk_gated_delta_rule", "chunk_kda") if find_spec("fla") else ()
        forms |= {f"fla {name}": flas(name) for name in closest}
        forms |= {"triton": Form(of_backend("triton", 64))}
        lines += table(shape, forms, "triton", "cuda", 2e-2, rounds)
    lines += mlp_memories("cuda", rounds)
    lines += attention("cuda", rounds)
    lines += optimizers("cuda", rounds)
    return "\n".join(lines)


if __name__ == "__main__":
    page = main(int(sys.argv[1]) if len(sys.argv) > 1 else 21)
    PAGE.write_text(page)
    print(page)
