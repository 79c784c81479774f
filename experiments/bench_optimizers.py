"""Steps of Delta Momentum for many tensors, and Newton-Schulz for many matrices; tables of `bench_kernels.py`.

A step is a whole call with the host's part in it: gradients are there, and the device is waited for at both ends. Its
bytes are those that must move: g twice, m twice and p once read, m and p written, 28 for each float32 parameter, which
is also what AdamW moves. Operations of Newton-Schulz are those of the quintic, whichever form runs.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from nested_kernels import LevelRule, level_step, newton_schulz, newton_schulz_each
from nested_kernels.level_step.reference import delta_momentum
from nested_kernels.newton_schulz.op import stacked
from nested_kernels.newton_schulz.reference import QUINTIC
from timing import measured, ratio, roofline
from torch import Tensor

from nested.optim import M3, Muon

Shapes = Sequence[tuple[int, ...]]
RULE = LevelRule(1e-6, 0.9)
BYTES = 28
HEAD = ["| form | ms | {} / it | TFLOP/s | GB/s | of the roofline | error |", "|" + "---|" * 7]


def transformer(width: int, blocks: int) -> Shapes:
    """12 tensors a block: query, key and value in one, the way out, norms, an MLP four times as wide."""
    block = [(3 * width, width), (3 * width,), (width, width), (width,), *[(width,)] * 4]
    return [*block, (4 * width, width), (4 * width,), (width, 4 * width), (width,)] * blocks


class Tensors:
    """Parameters, gradients and momenta of a step, drawn anew for every form."""

    def __init__(self, shapes: Shapes, device: str):
        g = torch.Generator(device).manual_seed(0)
        self.grads, self.momenta, self.params = (
            [torch.randn(s, generator=g, device=device) for s in shapes] for _ in range(3)
        )

    def step(self, backend: Any) -> None:
        if backend == "eager":
            for p, g, m in zip(self.params, self.grads, self.momenta):
                p.add_(m.copy_(delta_momentum(m, g, RULE.lr, RULE.momentum, shape="vector")))
        else:
            level_step(self.params, self.grads, self.momenta, RULE, backend=backend)

    def error(self, backend: Any) -> float:
        """Of any momentum after one step, relative to the rule in float64."""
        exact = [delta_momentum(m.double(), g.double(), RULE.lr, RULE.momentum, shape="vector") for m, g in
                 zip(self.momenta, self.grads)]  # fmt: skip
        self.step(backend)
        return max(float((m - y).norm() / y.norm()) for m, y in zip(self.momenta, exact))

    def torchs(self, make: Callable[..., torch.optim.Optimizer]) -> Callable[[], object]:
        params = [p.requires_grad_() for p in self.params]
        for p, g in zip(params, self.grads):
            p.grad = g
        return make(params, lr=1e-6).step


def steps(shapes: Shapes, device: str, backends: dict[str, str], rounds: int) -> list[str]:
    size = sum(torch.Size(s).numel() for s in shapes)
    lines = [f"**level_step, vector form, normalised**: {size / 1e6:.1f} M float32 parameters in {len(shapes)} tensors"]
    found = {name: Tensors(shapes[:12], device).error(backend) for name, backend in backends.items()}
    calls: dict[str, Callable[[], object]]
    calls = {name: partial(Tensors(shapes, device).step, b) for name, b in backends.items() if found[name] < 1e-5}
    adam = partial(torch.optim.AdamW, fused=True)
    calls["torch AdamW, fused"] = Tensors(shapes, device).torchs(adam)
    return [*lines, "", *rows(calls, found, 0, BYTES * size, device, rounds)]


def levels(shapes: Shapes, device: str, backends: dict[str, str], rounds: int) -> list[str]:
    """Four levels of the same size, all gathering, one of them due."""
    size, of = sum(torch.Size(s).numel() for s in shapes), [i * 4 // len(shapes) for i in range(len(shapes))]
    lines = [
        f"**level_step, four levels that gather, one due**: {size / 1e6:.1f} M parameters in {len(shapes)} tensors"
    ]
    calls = {}
    for name, backend in backends.items():
        x, held = Tensors(shapes, device), [torch.zeros(s, device=device) for s in shapes]
        given: dict[str, Any] = {"levels": of, "gathered": held, "due": [True, False, False, False]}
        calls[name] = partial(level_step, x.params, x.grads, x.momenta, [RULE] * 4, **given, backend=backend)
    return [*lines, "", *rows(calls, {}, 0, (3 * 12 + 40) * size / 4, device, rounds)]


def matrices(count: int, m: int, n: int, dtype: torch.dtype, device: str, rounds: int) -> list[str]:
    g = torch.Generator(device).manual_seed(0)
    gs = [torch.randn(m, n, generator=g, device=device).to(dtype) for _ in range(count)]
    forms: dict[str, Callable[[list[Tensor]], list[Tensor]]] = {
        "one by one, quintic": lambda gs: [newton_schulz(g, backend="reference") for g in gs],
        "one by one, Gram": lambda gs: [newton_schulz(g, backend="gram") for g in gs],
        "batch, quintic": lambda gs: stacked(gs, 5, QUINTIC, "reference"),
        "batch, Gram": lambda gs: stacked(gs, 5, QUINTIC, "gram"),
        "auto": newton_schulz_each,
    }
    exact = newton_schulz(gs[0].double(), backend="reference")
    found = {name: float((form(gs[:2])[0].double() - exact).norm() / exact.norm()) for name, form in forms.items()}
    allowed = 5e-2 if dtype == torch.bfloat16 else 1e-4
    calls = {name: partial(form, gs) for name, form in forms.items() if found[name] < allowed}
    kind = str(dtype).removeprefix("torch.")
    lines = [f"**newton_schulz, five steps**: {count} of {m} x {n}, {kind}", ""]
    operations = 5 * count * (4 * m * m * n + 2 * m**3)
    return [*lines, *rows(calls, found, operations, 2 * count * m * n * dtype.itemsize, device, rounds)]


def optimizers(shapes: Shapes, device: str, rounds: int) -> list[str]:
    """Whole steps over the matrices alone, each with its own parameters."""
    wide = [s for s in shapes if len(s) == 2]
    makes: dict[str, Callable[..., torch.optim.Optimizer]] = {"torch Muon": torch.optim.Muon, "Muon": Muon}
    makes |= {f"M3, f = {f}": partial(M3, frequency=f) for f in (1, 10)}
    calls = {name: Tensors(wide, device).torchs(make) for name, make in makes.items()}
    lines = [f"**Muon and M3**: {sum(torch.Size(s).numel() for s in wide) / 1e6:.1f} M in {len(wide)} matrices", ""]
    return [*lines, *rows(calls, {}, 0, 0, device, rounds)]


def rows(
    calls: Mapping[str, Callable[[], object]],
    errors: dict[str, float],
    operations: float,
    moved: float,
    device: str,
    rounds: int,
) -> list[str]:
    """The first form is what the others are compared with; a form that is wrong is not among them."""
    with torch.no_grad():
        times = measured(calls, device, rounds)
    first = next(iter(times))
    lines = [HEAD[0].format(first), HEAD[1]]
    for name, of_form in times.items():
        ms = statistics.median(of_form)
        speeds = [f"{operations / ms / 1e9:.3g}" if operations else "", f"{moved / ms / 1e6:.3g}" if moved else ""]
        share = roofline(ms, operations, moved, device) if moved else ""
        cells = [name, f"{ms:.3g}", ratio(times[first], of_form), *speeds, share]
        lines.append("| " + " | ".join([*cells, f"{errors[name]:.1e}" if name in errors else ""]) + " |")
    lines += [f"Not timed, wrong by {errors[name]:.1e}: {name}." for name in errors if name not in calls]
    return [*lines, ""]


def tables(device: str, rounds: int) -> list[str]:
    if device == "cpu":
        forms = {"eager, tensor by tensor": "eager", "in place": "chunked"}
        lines = steps(transformer(256, 6), device, forms, rounds)
        for m, n in ((64, 256), (256, 1024)):
            lines += matrices(4, m, n, torch.bfloat16, device, rounds)
        return [*lines, *matrices(4, 256, 1024, torch.float32, device, rounds)]
    forms = {"foreach": "chunked", "triton": "triton"}
    lines = steps(transformer(576, 25), device, {"eager, tensor by tensor": "eager", **forms}, rounds)
    lines += levels(transformer(576, 25), device, {"tensor by tensor": "reference", **forms}, rounds)
    for count, m, n in ((25, 1024, 4096), (25, 1024, 1024), (100, 256, 1024), (25, 576, 1728)):
        lines += matrices(count, m, n, torch.bfloat16, device, rounds)
    return lines + optimizers(transformer(576, 25), device, rounds)
