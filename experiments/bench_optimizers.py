"""Steps of Delta Momentum for many tensors, and Newton-Schulz for many matrices; tables of `bench_kernels.py`.

A step is a whole call with the host's part in it: gradients are there, and the device is waited for at both ends. Its
bytes are those that must move: g twice, m twice and p once read, m and p written, 28 for each float32 parameter, which
is also what AdamW moves. Operations of Newton-Schulz are those of the quintic, whichever form runs.

A step is right if parameters, momenta and what is gathered are those of the rule in float64, tensor by tensor. An
optimizer is right if it ends where its rule in float64 ends: the error is relative to how far that has moved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from nested_kernels import LevelRule, level_step, newton_schulz, newton_schulz_each
from nested_kernels.level_step.reference import delta_momentum, level_step_reference
from nested_kernels.newton_schulz.op import stacked
from nested_kernels.newton_schulz.reference import QUINTIC
from timing import apart, checked, head, measured, rows
from torch import Tensor

from nested.optim import M3, Muon

Shapes = Sequence[tuple[int, ...]]
Make = Callable[..., Any]  # parameters, lr -> what has a step
RULE = LevelRule(1e-6, 0.9)
BYTES = 28


def transformer(width: int, blocks: int) -> Shapes:
    """12 tensors a block: query, key and value in one, the way out, norms, an MLP four times as wide."""
    block = [(3 * width, width), (3 * width,), (width, width), (width,), *[(width,)] * 4]
    return [*block, (4 * width, width), (4 * width,), (width, 4 * width), (width,)] * blocks


class Tensors:
    """Parameters, gradients, momenta and gathered gradients of a step, drawn anew for every form."""

    def __init__(self, shapes: Shapes, device: str, levels: int = 1):
        g = torch.Generator(device).manual_seed(0)
        self.params, self.grads, self.momenta, self.gathered = (
            [torch.randn(s, generator=g, device=device) for s in shapes] for _ in range(4)
        )
        self.levels = [i * levels // len(shapes) for i in range(len(shapes))]  # of the same size, the first one due
        self.rules, self.due = [RULE] * levels, [i == 0 for i in range(levels)]

    def step(self, backend: Any) -> None:
        """One level does not gather; several do."""
        given = (self.params, self.grads, self.momenta)
        if backend == "eager":
            for p, g, m in zip(*given):
                p.add_(m.copy_(delta_momentum(m, g, RULE.lr, RULE.momentum, shape="vector")))
        elif len(self.rules) == 1:
            level_step(*given, RULE, backend=backend)
        else:
            more: dict[str, Any] = {"levels": self.levels, "gathered": self.gathered, "due": self.due}
            level_step(*given, self.rules, **more, backend=backend)

    def error(self, backend: Any) -> float:
        """Of parameters, momenta and what is gathered after one step."""
        named = (self.params, self.grads, self.momenta, self.gathered)
        exact: Any = [[x.double() for x in xs] for xs in named]
        held = exact[3] if len(self.rules) > 1 else [None] * len(self.params)
        level_step_reference(exact[0], exact[1], exact[2], held, self.levels, self.rules, self.due)
        self.step(backend)
        return apart([x for xs in named for x in xs], [x for xs in exact for x in xs])

    def optimizer(self, make: Make, lr: float) -> Any:
        """Of the parameters, which have their gradients."""
        params = [p.requires_grad_() for p in self.params]
        for p, g in zip(params, self.grads):
            p.grad = g
        return make(params, lr=lr)


class ExactMuon:
    """torch's Muon without decay, in the precision of its parameters, with the quintic as printed."""

    def __init__(self, params: list[Tensor], lr: float):
        self.params, self.lr, self.momenta = params, lr, [torch.zeros_like(p) for p in params]

    @torch.no_grad()
    def step(self) -> None:
        for p, m in zip(self.params, self.momenta):
            g = cast(Tensor, p.grad)
            m.lerp_(g, 0.05)
            direction = newton_schulz(g.lerp(m, 0.95), backend="reference")
            p.sub_(direction, alpha=self.lr * max(1, p.shape[0] / p.shape[1]) ** 0.5)


def error(make: Make, exact: Make, shapes: Shapes, device: str, steps: int) -> float:
    """Of parameters after steps with a gradient of their own each, relative to how far they should have moved."""
    wide, found = Tensors(shapes, device), Tensors(shapes, device)
    wide.params, wide.grads = [p.double() for p in wide.params], [g.double() for g in wide.grads]
    start = [p.clone() for p in wide.params]
    both = wide.optimizer(exact, 0.01), found.optimizer(make, 0.01)
    g = torch.Generator(device).manual_seed(1)
    for _ in range(steps):
        for here, there in zip(found.grads, wide.grads):
            there.copy_(here.normal_(generator=g))
        for optimizer in both:
            optimizer.step()
    moved = ([p.detach() - p0 for p, p0 in zip(x.params, start)] for x in (found, wide))
    return apart(*moved)


def steps(shapes: Shapes, device: str, backends: dict[str, str], ours: str, rounds: int) -> list[str]:
    size = sum(torch.Size(s).numel() for s in shapes)
    lines = [
        f"**level_step, vector form, normalised**: {size / 1e6:.1f} M float32 parameters in {len(shapes)} tensors",
        "",
    ]
    errors = {name: partial(Tensors(shapes, device).error, backend) for name, backend in backends.items()}
    calls = {name: partial(Tensors(shapes, device).step, backend) for name, backend in backends.items()}
    fused, adam = partial(torch.optim.AdamW, fused=True), "torch AdamW, fused"
    errors[adam] = partial(error, fused, torch.optim.AdamW, shapes[:12], device, 3)
    calls[adam] = Tensors(shapes, device).optimizer(fused, 1e-6).step
    return [*lines, *table("step", calls, errors, ours, 1e-5, (0, BYTES * size), device, rounds)]


def levels(shapes: Shapes, device: str, backends: dict[str, str], ours: str, rounds: int) -> list[str]:
    """Four levels of the same size, all gathering, one of them due."""
    size, drawn = sum(torch.Size(s).numel() for s in shapes), partial(Tensors, shapes, device, levels=4)
    lines = [
        f"**level_step, four levels that gather, one due**: {size / 1e6:.1f} M parameters in {len(shapes)} tensors",
        "",
    ]
    errors = {name: partial(drawn().error, backend) for name, backend in backends.items()}
    calls = {name: partial(drawn().step, backend) for name, backend in backends.items()}
    return [*lines, *table("step", calls, errors, ours, 1e-5, (0, (3 * 12 + 40) * size / 4), device, rounds)]


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
    exact = [newton_schulz(g.double(), backend="reference") for g in gs]
    errors = {name: partial(lambda form: apart(form(gs), exact), form) for name, form in forms.items()}
    calls = {name: partial(form, gs) for name, form in forms.items()}
    lines = [f"**newton_schulz, five steps**: {count} of {m} x {n}, {str(dtype).removeprefix('torch.')}", ""]
    counted = 5 * count * (4 * m * m * n + 2 * m**3), 2 * count * m * n * dtype.itemsize
    allowed = 5e-2 if dtype == torch.bfloat16 else 1e-4
    return [*lines, *table("forward", calls, errors, "auto", allowed, counted, device, rounds)]


def optimizers(shapes: Shapes, device: str, rounds: int) -> list[str]:
    """Whole steps over the matrices alone, each with its own parameters; checked on small ones, 12 steps."""
    wide, small = ([s for s in each if len(s) == 2] for each in (shapes, transformer(32, 1)))
    torchs, m3s = partial(torch.optim.Muon, weight_decay=0.0), {f: partial(M3, frequency=f) for f in (1, 10)}
    makes: dict[str, tuple[Make, Make]] = {"torch Muon": (torchs, ExactMuon), "Muon": (Muon, ExactMuon)}
    makes |= {f"M3, f = {f}": (m3, m3) for f, m3 in m3s.items()}  # throughout in float64
    errors = {name: partial(error, *both, small, device, 12) for name, both in makes.items()}
    calls = {name: Tensors(wide, device).optimizer(make, 1e-6).step for name, (make, _) in makes.items()}
    lines = [f"**Muon and M3**: {sum(torch.Size(s).numel() for s in wide) / 1e6:.1f} M in {len(wide)} matrices", ""]
    return [*lines, *table("step", calls, errors, "Muon", 5e-2, (0, 0), device, rounds)]


def table(
    passes: str,
    calls: Mapping[str, Callable[[], object]],
    errors: Mapping[str, Callable[[], float]],
    ours: str,
    allowed: float,
    counted: tuple[float, float],
    device: str,
    rounds: int,
) -> list[str]:
    """Of the forms that are right. `counted` are operations and bytes."""
    right, said = checked(errors, ours, allowed)
    with torch.no_grad():
        times = measured({name: calls[name] for name in right}, device, rounds)
    lines = [*head(ours), *rows(passes, times, right, ours, *counted, device)]
    return [*lines, *(part for line in said for part in ("", line)), ""]


def tables(device: str, rounds: int) -> list[str]:
    if device == "cpu":
        shapes, ours = transformer(256, 6), "in place"
        lines = steps(shapes, device, {"eager, tensor by tensor": "eager", ours: "chunked"}, ours, rounds)
        lines += levels(shapes, device, {"tensor by tensor": "reference", ours: "chunked"}, ours, rounds)
        for m, n in ((64, 256), (256, 1024)):
            lines += matrices(4, m, n, torch.bfloat16, device, rounds)
        return [*lines, *matrices(4, 256, 1024, torch.float32, device, rounds)]
    shapes, forms = transformer(576, 25), {"foreach": "chunked", "triton": "triton"}
    lines = steps(shapes, device, {"eager, tensor by tensor": "eager", **forms}, "triton", rounds)
    lines += levels(shapes, device, {"tensor by tensor": "reference", **forms}, "triton", rounds)
    for count, m, n in ((25, 1024, 4096), (25, 1024, 1024), (100, 256, 1024), (25, 576, 1728)):
        lines += matrices(count, m, n, torch.bfloat16, device, rounds)
    return lines + optimizers(shapes, device, rounds)
