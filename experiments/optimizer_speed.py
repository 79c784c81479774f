"""What a step of our optimizers costs, as a ratio to torch's: same tensors, one thread, side by side.

4.7 million parameters in 72 tensors, as in a small transformer, float32, gradients given. Rounds are interleaved: in
each, every optimizer takes one step, in a new random order, and its time is divided by its reference's in the same
round; the first rounds are thrown away. The median of the rounds, and its 95 percent interval. Compared are Delta
Momentum with torch's fused SGD with momentum (wanted: at most 3, and 2 compiled), M3 with torch's Muon on the matrices
alone (wanted: at most 1.1 (1 + 1 / f)), the associative Adam with torch's fused Adam. Two minutes of one core.
Run: .venv/bin/python experiments/optimizer_speed.py [ROUNDS]
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nested.optim import AssociativeAdam, DeepMomentum, DeltaMomentum, PreconditionedMomentum
from nested.optim.delta_momentum import delta_momentum
from nested.optim.m3 import M3

ROUNDS, MATRIX_ROUNDS = 60, 12
Step = Callable[[], Any]


def shapes(matrices_only: bool = False) -> list[tuple[int, ...]]:
    """Six blocks of width 256: query, key and value in one, the way out, two norms, an MLP of 1024."""
    width = 256
    block = [(3 * width, width), (3 * width,), (width, width), (width,), *[(width,)] * 4]
    block += [(4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    return [s for s in block * 6 if len(s) == 2 or not matrices_only]


def parameters(matrices_only: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(s, generator=generator).requires_grad_() for s in shapes(matrices_only)]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)
    return params


def stepper(make: Callable[..., torch.optim.Optimizer], matrices_only: bool = False) -> Step:
    return make(parameters(matrices_only), lr=1e-5).step


def compiled() -> Step:
    """Delta Momentum's vector form through torch.compile, tensor by tensor, for each of their five sizes."""

    @partial(torch.compile, dynamic=False)
    def one(p: Tensor, g: Tensor, m: Tensor) -> None:
        m.copy_(delta_momentum(m, g, 1e-5, 0.9, shape="vector"))
        p.add_(m)

    params = parameters(False)
    rows = [(p.detach().view(-1), p.grad.view(-1), torch.zeros(p.numel())) for p in params if p.grad is not None]
    return lambda: [one(*row) for row in rows]


def interval(values: list[float]) -> tuple[float, float, float]:
    """Median and its 95 percent interval from the order statistics."""
    from scipy.stats import binom

    ordered, n = sorted(values), len(values)
    k = max(1, int(binom.ppf(0.025, n, 0.5)))
    return statistics.median(ordered), ordered[k - 1], ordered[n - k]


def compare(reference: str, steps: dict[str, Step], rounds: int, wanted: dict[str, float]) -> list[dict[str, Any]]:
    times: dict[str, list[float]] = {name: [] for name in steps}
    for r in range(-5, rounds):
        for name in random.Random(r).sample(list(steps), len(steps)):
            begun = time.perf_counter()
            steps[name]()
            if r >= 0:
                times[name].append(time.perf_counter() - begun)
    rows = []
    for name, taken in times.items():
        middle, low, high = interval([t / base for t, base in zip(taken, times[reference], strict=True)])
        rows.append(
            {
                "optimizer": name, "reference": reference, "ratio": middle, "low": low, "high": high,
                "milliseconds": 1e3 * statistics.median(taken), "wanted": wanted.get(name),
            }
        )  # fmt: skip
    return rows


def main(rounds: int = ROUNDS) -> None:
    torch.set_num_threads(1)
    muon = partial(torch.optim.Muon, nesterov=False)
    elementwise = {
        "torch SGD, momentum, fused": stepper(partial(torch.optim.SGD, momentum=0.9, fused=True)),
        "torch SGD, momentum": stepper(partial(torch.optim.SGD, momentum=0.9)),
        "Delta Momentum, vector": stepper(DeltaMomentum),
        "Delta Momentum, vector, printed": stepper(partial(DeltaMomentum, form="printed", beta=1e-9)),
        "Delta Momentum, vector, compiled": compiled(),
        "preconditioned, diagonal": stepper(PreconditionedMomentum),
    }
    adam = {
        "torch Adam, fused": stepper(partial(torch.optim.Adam, fused=True)),
        "torch Adam": stepper(torch.optim.Adam),
        "associative Adam": stepper(AssociativeAdam),
    }
    matrices = {
        "torch Muon": stepper(muon, True),
        **{f"M3, f = {f}": stepper(partial(M3, frequency=f), True) for f in (1, 5, 10)},
        "Delta Momentum, matrix": stepper(partial(DeltaMomentum, shape="matrix"), True),
        "deep momentum": stepper(DeepMomentum, True),
        "deep momentum, newton_schulz": stepper(partial(DeepMomentum, output="newton_schulz"), True),
    }
    few = max(5, rounds * MATRIX_ROUNDS // ROUNDS)
    wanted = {"Delta Momentum, vector": 3.0, "Delta Momentum, vector, compiled": 2.0}
    rows = compare("torch SGD, momentum, fused", elementwise, rounds, wanted)
    rows += compare("torch Adam, fused", adam, rounds, {})
    rows += compare("torch Muon", matrices, few, {f"M3, f = {f}": 1.1 * (1 + 1 / f) for f in (1, 5, 10)})
    print(f"{'optimizer':34} {'ratio':>6} {'95 % interval':>15} {'wanted':>6} {'ms':>7}  reference")
    for r in rows:
        bound = "" if r["wanted"] is None else f"{r['wanted']:.2f}"
        print(
            f"{r['optimizer']:34} {r['ratio']:6.2f} {r['low']:6.2f} to {r['high']:5.2f} {bound:>6} "
            f"{r['milliseconds']:7.1f}  {r['reference']}"
        )
    found = {"torch": torch.__version__, "parameters": sum(p.numel() for p in parameters(False)), "rows": rows}
    Path("reports/optimizer_speed.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
